// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// Whole models of published shapes with random weights: a decode step behind 122,880 tokens, and
// the reading of as many, dense and by chunks.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench_device_kv.hpp"
#include "bench_device_support.hpp"
#include "chunkllm/cuda/backbone_shapes.hpp"
#include "chunkllm/cuda/device_session.hpp"

namespace chunkllm::bench {
namespace {

using T = __nv_bfloat16;

struct ModelCase {
  const char* shape;
  int num_seqs;
  double share;  // 1: dense
};

constexpr std::int32_t kChunkTokens = 24;  // mean length, and steps between two refreshes
constexpr int kWarmSteps = 2 * kChunkTokens;
constexpr int kTimedSteps = 10 * kChunkTokens;

cuda::DeviceBackbone<T> random_backbone(const char* shape) {
  const BackboneConfig config = taken(cuda::backbone_shape(shape));
  return taken(
      cuda::DeviceBackbone<T>::create(taken(cuda::DeviceWeights<T>::random(config, /*seed=*/1))));
}

void fill(T* values, std::int64_t count, float deviation, std::uint64_t seed, cudaStream_t stream) {
  kernels::RandomWeightsArgs<T> args;
  args.values = values;
  args.count = count;
  args.seed = seed;
  args.deviation = deviation;
  require(kernels::launch_random_weights(args, stream));
}

/// Sequences of kTokens tokens whose keys, values and chunk keys are random numbers.
class FilledBatch {
 public:
  FilledBatch(const ModelCase& c, const cuda::DeviceBackbone<T>& backbone)
      : stream_(new_stream()),
        cublas_(taken(cuda::CublasHandle::create(stream_.get()))),
        scorer_(cuda::DeviceScorer<T>::mean_key(backbone.config())),
        batch_(taken(cuda::DeviceBatch<T>::create(backbone.config(), scorer_, options_of(c),
                                                  stream_.get()))),
        step_(taken(cuda::DecodeStep<T>::create(backbone, scorer_, /*maybe_adapter=*/nullptr,
                                                batch_, cublas_, stream_.get()))) {
    const BackboneConfig& config = backbone.config();
    const std::int64_t kv = std::int64_t{batch_.options().max_tokens} * config.kv_size();
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      const auto seed = static_cast<std::uint64_t>(layer);
      fill(batch_.kv(layer).keys, c.num_seqs * kv, 1.0F, 2 * seed, stream_.get());
      fill(batch_.kv(layer).values, c.num_seqs * kv, 1.0F, 2 * seed + 1, stream_.get());
    }
    const std::vector<std::int32_t> lengths(static_cast<std::size_t>(c.num_seqs), kTokens);
    put(batch_.num_tokens(), lengths);
    put(step_.active(), std::vector<std::uint8_t>(lengths.size(), 1));
    if (c.share < 1.0) fill_chunks(c, config);
    require(stream_.synchronize());
  }

  /// Runs steps, every kChunkTokens-th a boundary in all sequences, those of the batch in turn.
  double seconds_a_step(int steps) {
    const cuda::Event start = new_timed_event();
    const cuda::Event end = new_timed_event();
    require(start.record(stream_.get()));
    for (int i = 0; i < steps; ++i) {
      if (wanted_.data() != nullptr) {
        const std::size_t row = static_cast<std::size_t>(count_++ % kChunkTokens);
        const auto seqs = static_cast<std::size_t>(batch_.num_seqs());
        require(cudaMemcpyAsync(step_.wanted(), wanted_.data() + row * seqs, seqs,
                                cudaMemcpyDeviceToDevice, stream_.get()));
      }
      require(step_.replay(stream_.get()));
    }
    require(end.record(stream_.get()));
    return seconds_between(start, end) / steps;
  }

  /// Tokens that the first sequence's next token attends.
  [[nodiscard]] double num_attended() const {
    std::int32_t tokens = 0;
    require(cudaMemcpy(&tokens, batch_.num_tokens(), sizeof tokens, cudaMemcpyDeviceToHost));
    if (batch_.options().dense) return tokens;
    const cuda::DeviceAttendedSets sets = batch_.sets(0);
    std::int32_t spans = 0;
    std::int32_t tail = 0;
    require(cudaMemcpy(&spans, sets.num_span_tokens, sizeof spans, cudaMemcpyDeviceToHost));
    require(cudaMemcpy(&tail, sets.tail_begin, sizeof tail, cudaMemcpyDeviceToHost));
    return spans + tokens - tail;
  }

 private:
  static cuda::DeviceBatchOptions options_of(const ModelCase& c) {
    cuda::DeviceBatchOptions options;
    options.num_seqs = c.num_seqs;
    options.max_tokens = kTokens + kWarmSteps + kTimedSteps + 64;
    options.max_chunks = kTokens / 16;
    options.dense = c.share >= 1.0;
    options.chunk.budget.kind = Budget::Kind::kShare;
    options.chunk.budget.share = std::min(c.share, 1.0);
    return options;
  }

  template <typename Value>
  void put(Value* to, const std::vector<Value>& from) {
    require(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(Value), cudaMemcpyHostToDevice,
                            stream_.get()));
    require(stream_.synchronize());
  }

  void fill_chunks(const ModelCase& c, const BackboneConfig& config) {
    std::vector<std::int32_t> counts;
    for (int seq = 0; seq < c.num_seqs; ++seq) {
      const std::vector<std::int32_t> ends =
          random_chunk_ends(kTokens, static_cast<unsigned>(seq + 1));
      put(batch_.table().ends_of(seq), ends);
      counts.push_back(static_cast<std::int32_t>(ends.size()));
    }
    put(batch_.table().num_chunks, counts);
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      fill(batch_.chunk_keys(layer),
           std::int64_t{c.num_seqs} * batch_.max_chunks() * batch_.key_size(), 0.2F,
           static_cast<std::uint64_t>(1000 + layer), stream_.get());
    }
    // Row r: the sequences whose token ends a chunk at steps r, r + kChunkTokens, ...
    std::vector<std::uint8_t> wanted;
    for (std::int32_t row = 0; row < kChunkTokens; ++row) {
      for (std::int32_t seq = 0; seq < c.num_seqs; ++seq) {
        wanted.push_back(row == 4 + seq * (kChunkTokens - 4) / c.num_seqs ? 1 : 0);
      }
    }
    wanted_ = taken(cuda::DeviceBuffer<std::uint8_t>::create(wanted.size()));
    put(wanted_.data(), wanted);
  }

  cuda::Stream stream_;
  cuda::CublasHandle cublas_;
  cuda::DeviceScorer<T> scorer_;
  cuda::DeviceBatch<T> batch_;
  cuda::DecodeStep<T> step_;
  cuda::DeviceBuffer<std::uint8_t> wanted_;
  std::int64_t count_ = 0;
};

void decode(benchmark::State& state, const ModelCase& c) {
  run_case(state, [&] {
    const cuda::DeviceBackbone<T> backbone = random_backbone(c.shape);
    FilledBatch batch(c, backbone);
    batch.seconds_a_step(kWarmSteps);
    const double seconds = batch.seconds_a_step(kTimedSteps);
    const BackboneConfig& config = backbone.config();
    const double attended = batch.num_attended();
    const double kv = 2.0 * static_cast<double>(config.num_layers * config.kv_size()) * sizeof(T);
    const double embedding =
        config.tied_embeddings
            ? 0.0
            : static_cast<double>(config.vocab_size * config.hidden_size) * sizeof(T);
    report_time(state, seconds);
    report_bytes(
        state, seconds,
        static_cast<double>(backbone.weight_bytes()) - embedding + c.num_seqs * attended * kv);
    state.counters["attended"] = attended;
    state.counters["tokens/s"] = c.num_seqs / seconds;
  });
}

/// Words, and a full stop at every kChunkTokens-th token.
std::string_view made_up_bytes(std::int32_t token) {
  return token % kChunkTokens == 0 ? "." : token % kChunkTokens == 1 ? " Word" : " word";
}

void prefill(benchmark::State& state, const ModelCase& c) {
  run_case(state, [&] {
    const cuda::DeviceBackbone<T> backbone = random_backbone(c.shape);
    SessionOptions options;
    options.dense = c.share >= 1.0;
    options.block_len = 4096;
    options.chunk.budget.kind = Budget::Kind::kShare;
    options.chunk.budget.share = std::min(c.share, 1.0);
    const auto session = taken(cuda::DeviceSession<T>::create(
        backbone, cuda::DeviceScorer<T>::mean_key(backbone.config()), made_up_bytes, options));
    require(session->reserve(kTokens + 8));
    std::vector<std::int32_t> ids(kTokens);
    for (std::int32_t i = 0; i < kTokens; ++i) ids[static_cast<std::size_t>(i)] = i % 9600;
    require(cudaDeviceSynchronize());
    const auto start = std::chrono::steady_clock::now();
    require(session->prefill(ids));
    require(session->finish_prompt().status());
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report_time(state, seconds);
    state.counters["tokens/s"] = kTokens / seconds;
    state.counters["attended_share"] = session->attended().share();
  });
}

BENCHMARK_CAPTURE(decode, llama_8b_dense, {"llama-3.1-8b", 1, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode, llama_8b_10, {"llama-3.1-8b", 1, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_dense, {"qwen2.5-7b", 1, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_10, {"qwen2.5-7b", 1, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_dense_batch16, {"qwen2.5-7b", 16, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_10_batch16, {"qwen2.5-7b", 16, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, llama_8b_dense, {"llama-3.1-8b", 1, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, llama_8b_10, {"llama-3.1-8b", 1, 0.1})->Apply(device_case);

}  // namespace
}  // namespace chunkllm::bench

int main(int argc, char** argv) {
  return chunkllm::bench::run_benchmarks(argc, argv);
}
