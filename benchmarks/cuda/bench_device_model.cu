// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Whole models of published shapes with random weights: a decode step behind 122,880 tokens, and
// the reading of as many, dense and with 10 % of the past attended. The two ways are measured in
// turn, in rounds, when the first of them is asked for; each case reports the median of its own
// samples, and `spread`, (largest - smallest) / median.
//
// A sample of decoding is 24 steps, by events: the mean length of a chunk, in which every sequence
// is refreshed once. Keys, values and chunk keys are random numbers. A sample of reading is all of
// `prefill` and `finish_prompt` in a new session, by the host's clock: the sentence rules run
// there, and logits come back. Shorter runs before the samples load the kernels. `bytes` are the
// weights without the embedding table and the attended keys and values; `of_copy` and `of_read` are
// the shares of the bandwidths of a copy and of a pure read in this run.
//
// There is no oracle of this size. Before anything is timed a short session with a budget that
// holds everything must give the logits of a dense one bit by bit; that the parts and small models
// are right is the business of the tests.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
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
using Backbone = cuda::DeviceBackbone<T>;

enum class Attended : bool { kChunks, kEverything };

struct ModelCase {
  const char* shape;
  int num_seqs;
  Attended attended;
};

constexpr double kShare = 0.1;             // of the past, where it is attended by chunks
constexpr std::int32_t kChunkTokens = 24;  // mean length, and steps between two refreshes
constexpr int kRounds = 3;
constexpr int kWarmSteps = 2 * kChunkTokens;
constexpr int kSamplesARound = 5;  // of kChunkTokens decode steps
constexpr std::int32_t kWarmPromptTokens = 16384;
constexpr std::int32_t kCheckedTokens = 1000;
constexpr std::int32_t kCheckedSteps = 2 * kChunkTokens;

Backbone random_backbone(const char* shape) {
  const BackboneConfig config = taken(cuda::backbone_shape(shape));
  return taken(Backbone::create(taken(cuda::DeviceWeights<T>::random(config, /*seed=*/1))));
}

// ---------------------------------------------------------------------------------------------
// What both ways took.

struct Measured {
  std::vector<double> seconds;  // samples
  double attended = 0.0;        // tokens of a decode step; when reading, their share of the past
};
struct MeasuredPair {
  Measured dense;
  Measured chunks;
  double weight_bytes = 0.0;  // that a decode step reads
  double kv_bytes = 0.0;      // a token

  [[nodiscard]] Measured& of(Attended attended) {
    return attended == Attended::kEverything ? dense : chunks;
  }
};

/// Measures both ways in turn the first time that a case of the pair asks. Repetitions of a case
/// get the same samples again.
template <typename Measure>
MeasuredPair& measured_once(const std::string& pair, const Measure& measure) {
  static std::map<std::string, MeasuredPair> pairs;
  const auto found = pairs.find(pair);
  return found != pairs.end() ? found->second : pairs.emplace(pair, measure()).first->second;
}

/// \return the median
double report_samples(benchmark::State& state, const Measured& measured) {
  const double seconds = median(measured.seconds);
  const auto [least, most] = std::minmax_element(measured.seconds.begin(), measured.seconds.end());
  report_time(state, seconds);
  state.counters["samples"] = static_cast<double>(measured.seconds.size());
  state.counters["spread"] = (*most - *least) / seconds;
  return seconds;
}

// ---------------------------------------------------------------------------------------------
// Sessions: the check, and reading.

/// Words, and a full stop at every kChunkTokens-th token.
std::string_view made_up_bytes(std::int32_t token) {
  return token % kChunkTokens == 0 ? "." : token % kChunkTokens == 1 ? " Word" : " word";
}

std::vector<std::int32_t> made_up_prompt(std::int32_t tokens) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::int32_t i = 0; i < tokens; ++i) ids[static_cast<std::size_t>(i)] = i % 9600;
  return ids;
}

std::unique_ptr<cuda::DeviceSession<T>> new_session(const Backbone& backbone, Attended attended,
                                                    const Budget& budget, std::int32_t tokens) {
  SessionOptions options;
  options.dense = attended == Attended::kEverything;
  options.block_len = 4096;
  options.chunk.budget = budget;
  auto session = taken(cuda::DeviceSession<T>::create(
      backbone, cuda::DeviceScorer<T>::mean_key(backbone.config()), made_up_bytes, options));
  require(session->reserve(tokens));
  return session;
}

Budget share_of_the_past() {
  Budget budget;
  budget.kind = Budget::Kind::kShare;
  budget.share = kShare;
  return budget;
}

/// Logits behind a short prompt and behind each of the tokens decoded after it.
std::vector<float> short_run(const Backbone& backbone, Attended attended) {
  Budget room;
  room.tokens = kCheckedTokens + kCheckedSteps;
  const auto session = new_session(backbone, attended, room, kCheckedTokens + kCheckedSteps);
  require(session->prefill(made_up_prompt(kCheckedTokens)));
  std::vector<float> logits;
  const auto keep = [&](std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  };
  keep(taken(session->finish_prompt()));
  for (std::int32_t i = 0; i < kCheckedSteps; ++i) keep(taken(session->step(kCheckedTokens + i)));
  return logits;
}

void check_against_dense(const Backbone& backbone) {
  require(short_run(backbone, Attended::kChunks) == short_run(backbone, Attended::kEverything),
          "a budget that holds everything gives other logits than dense attention, or NaN");
}

/// Reads a prompt in a new session. Seconds, and the share of the past that was attended.
std::pair<double, double> read_prompt(const Backbone& backbone, Attended attended,
                                      std::int32_t tokens) {
  const auto session = new_session(backbone, attended, share_of_the_past(), tokens + 8);
  const std::vector<std::int32_t> ids = made_up_prompt(tokens);
  require(cudaDeviceSynchronize());
  const auto start = std::chrono::steady_clock::now();
  require(session->prefill(ids));
  require(session->finish_prompt().status());
  const auto end = std::chrono::steady_clock::now();
  return {std::chrono::duration<double>(end - start).count(), session->attended().share()};
}

MeasuredPair measure_reading(const ModelCase& c) {
  const Backbone backbone = random_backbone(c.shape);
  check_against_dense(backbone);
  MeasuredPair pair;
  for (const Attended attended : {Attended::kEverything, Attended::kChunks}) {
    read_prompt(backbone, attended, kWarmPromptTokens);
  }
  for (int round = 0; round < kRounds; ++round) {
    for (const Attended attended : {Attended::kEverything, Attended::kChunks}) {
      const auto [seconds, share] = read_prompt(backbone, attended, kTokens);
      pair.of(attended).seconds.push_back(seconds);
      pair.of(attended).attended = share;
    }
  }
  return pair;
}

void prefill(benchmark::State& state, const ModelCase& c) {
  run_case(state, [&] {
    const Measured& measured = measured_once(std::string("reading ") + c.shape, [&] {
                                 return measure_reading(c);
                               }).of(c.attended);
    const double seconds = report_samples(state, measured);
    state.counters["tokens/s"] = kTokens / seconds;
    state.counters["attended_share"] = measured.attended;
  });
}

// ---------------------------------------------------------------------------------------------
// Decode steps.

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
  FilledBatch(const ModelCase& c, const Backbone& backbone)
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
    if (c.attended == Attended::kChunks) fill_chunks(c, config);
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
    options.max_tokens = kTokens + kWarmSteps + kSamplesARound * kChunkTokens + 64;
    options.max_chunks = kTokens / 16;
    options.dense = c.attended == Attended::kEverything;
    options.chunk.budget = share_of_the_past();
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

MeasuredPair measure_decoding(const ModelCase& c) {
  const Backbone backbone = random_backbone(c.shape);
  check_against_dense(backbone);
  const BackboneConfig& config = backbone.config();
  MeasuredPair pair;
  pair.weight_bytes = static_cast<double>(backbone.weight_bytes());
  if (!config.tied_embeddings) {  // one row of the table is read
    pair.weight_bytes -= static_cast<double>(config.vocab_size * config.hidden_size) * sizeof(T);
  }
  pair.kv_bytes = 2.0 * static_cast<double>(config.num_layers * config.kv_size()) * sizeof(T);
  for (int round = 0; round < kRounds; ++round) {
    for (const Attended attended : {Attended::kEverything, Attended::kChunks}) {
      // One at a time: 16 sequences of the Qwen shape hold 113 GB.
      FilledBatch batch({c.shape, c.num_seqs, attended}, backbone);
      batch.seconds_a_step(kWarmSteps);
      Measured& measured = pair.of(attended);
      for (int i = 0; i < kSamplesARound; ++i) {
        measured.seconds.push_back(batch.seconds_a_step(kChunkTokens));
      }
      measured.attended = batch.num_attended();
    }
  }
  return pair;
}

void decode(benchmark::State& state, const ModelCase& c) {
  run_case(state, [&] {
    // The ceilings need memory that a model may leave too little of.
    copy_bandwidth();
    read_bandwidth();
    MeasuredPair& pair = measured_once(std::string(c.shape) + " " + std::to_string(c.num_seqs),
                                       [&] { return measure_decoding(c); });
    const Measured& measured = pair.of(c.attended);
    const double seconds = report_samples(state, measured);
    report_reads(state, seconds,
                 pair.weight_bytes + c.num_seqs * measured.attended * pair.kv_bytes);
    state.counters["attended"] = measured.attended;
    state.counters["tokens/s"] = c.num_seqs / seconds;
  });
}

constexpr auto kDense = Attended::kEverything;
constexpr auto kChunks = Attended::kChunks;
// Shape, sequences, what is attended.
BENCHMARK_CAPTURE(decode, llama_8b_dense, {"llama-3.1-8b", 1, kDense})->Apply(device_case);
BENCHMARK_CAPTURE(decode, llama_8b_10, {"llama-3.1-8b", 1, kChunks})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_dense, {"qwen2.5-7b", 1, kDense})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_10, {"qwen2.5-7b", 1, kChunks})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_dense_batch16, {"qwen2.5-7b", 16, kDense})->Apply(device_case);
BENCHMARK_CAPTURE(decode, qwen_7b_10_batch16, {"qwen2.5-7b", 16, kChunks})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, llama_8b_dense, {"llama-3.1-8b", 1, kDense})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, llama_8b_10, {"llama-3.1-8b", 1, kChunks})->Apply(device_case);

}  // namespace
}  // namespace chunkllm::bench

int main(int argc, char** argv) {
  return chunkllm::bench::run_benchmarks(argc, argv);
}
