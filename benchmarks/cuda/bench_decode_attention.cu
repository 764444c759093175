// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// One layer's attention of one decoded token over 122,880 cached ones, dense and over a share of
// them in chunks of 8 to 40 tokens: attention only, the sets are planned. `bytes` are the attended
// keys and values; `of_copy` and `of_read` are the shares of the bandwidths of a device-to-device
// copy and of a pure read in this run. Launches are replayed as a graph and rotate over sets that
// share no chunk, so that none finds its keys in the L2 cache. A few heads are checked against the
// oracle before anything is timed.

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "bench_device_kv.hpp"
#include "bench_device_support.hpp"
#include "chunkllm/kernels/chunk_decode_attention.cuh"

namespace {

using namespace chunkllm::bench;  // NOLINT(google-build-using-namespace): a program
namespace kernels = chunkllm::kernels;
using T = __nv_bfloat16;

struct DecodeCase {
  int num_heads;
  int num_kv_heads;
  double share;
  int num_seqs = 1;
  int page_size = 0;
  bool is_in_cache = false;
  bool overlaps = false;  // starts while the launch in front ends, as behind `rope_store`
};

constexpr int kHeadDim = 128;
constexpr double kRopeTheta = 500000.0;

/// cos and sin of positions [0, count), as `RopeTable` lays them out.
std::vector<float> rope_values(std::int32_t count) {
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(count) * kHeadDim);
  for (std::int32_t position = 0; position < count; ++position) {
    for (const bool is_sine : {false, true}) {
      for (int i = 0; i < kHeadDim / 2; ++i) {
        const double angle = position * std::pow(kRopeTheta, -2.0 * i / kHeadDim);
        values.push_back(static_cast<float>(is_sine ? std::sin(angle) : std::cos(angle)));
      }
    }
  }
  return values;
}

/// The operands of a case: `num_sets` sets a sequence, launch i uses number i % num_sets.
template <typename Kv>
class DecodeProblem {
 public:
  explicit DecodeProblem(const DecodeCase& c)
      : case_(c),
        kv_({c.num_seqs, kTokens, c.num_kv_heads, kHeadDim, c.page_size}),
        num_sets_(c.share >= 1.0 ? 1
                                 : num_cold_sets(c.num_seqs * c.share * bytes_of(kTokens),
                                                 static_cast<int>(0.9 / c.share))),
        sets_(make_sets()),
        device_sets_(sets_),
        num_tokens_(std::vector<std::int32_t>(static_cast<std::size_t>(c.num_seqs), kTokens)),
        q_(random_array<T>(static_cast<std::size_t>(c.num_seqs) * c.num_heads * kHeadDim, 21)),
        out_(q_.size()),
        workspace_(
            kernels::chunk_decode_attention_workspace_bytes(c.num_seqs, c.num_heads, kHeadDim)) {
    if (c.is_in_cache) {
      std::int32_t longest = 0;
      for (const SpanList& set : sets_) longest = std::max(longest, set.num_attended(kTokens - 1));
      rope_ = DeviceArray<float>(rope_values(longest));
      rope_count_ = longest;
    }
    require(kernels::init_decode_attention_workspace(workspace_.data(), workspace_.bytes(),
                                                     stream_.get()));
    require(stream_.synchronize());
  }

  void launch(int i, cudaStream_t stream) const {
    kernels::DecodeAttentionArgs<T, Kv> args;
    args.q = q_.data();
    args.out = out_.data();
    args.kv = kv_.view();
    args.sets = device_sets_.rows(i % num_sets_ * case_.num_seqs, case_.num_seqs);
    args.num_tokens = num_tokens_.data();
    args.num_seqs = case_.num_seqs;
    args.num_heads = case_.num_heads;
    args.num_kv_heads = case_.num_kv_heads;
    args.head_dim = kHeadDim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
    if (case_.is_in_cache) {
      args.kv.rotation = chunkllm::Rotation::kNone;
      args.q_rotation = chunkllm::Rotation::kNone;
      args.positions = chunkllm::Positions::kInCache;
      args.rope = {rope_.data(), rope_count_};
    }
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.bytes();
    if (case_.overlaps) args.overlap = kernels::decode_attention::Overlap::kPast;
    require(kernels::launch_chunk_decode_attention(args, stream));
  }

  /// The first head of the first sequence, the last head of the last.
  void check() const {
    launch(0, stream_.get());
    require(stream_.synchronize());
    check_head(0, 0);
    check_head(case_.num_seqs - 1, case_.num_heads - 1);
  }

  [[nodiscard]] double seconds() const {
    return launch_seconds(stream_, num_launches(num_sets_),
                          [&](int i, cudaStream_t stream) { launch(i, stream); });
  }
  [[nodiscard]] double num_attended() const {
    double total = 0.0;
    for (const SpanList& set : sets_) total += set.num_attended(kTokens - 1);
    return total / num_sets_;
  }
  /// Keys and values of that many tokens.
  [[nodiscard]] double bytes_of(double tokens) const {
    return tokens * case_.num_kv_heads * kHeadDim * 2 * sizeof(Kv);
  }
  [[nodiscard]] int num_sets() const { return num_sets_; }

 private:
  void check_head(std::int32_t seq, std::int32_t head) const {
    const std::vector<std::int64_t> at = {(std::int64_t{seq} * case_.num_heads + head) * kHeadDim};
    std::function<double(std::int64_t, std::int64_t)> angle;
    if (case_.is_in_cache) {
      angle = [](std::int64_t position, std::int64_t i) {
        return static_cast<double>(position) *
               std::pow(kRopeTheta, -2.0 * static_cast<double>(i) / kHeadDim);
      };
    }
    const chunkllm::oracle::Row expected =
        reference_attention(kv_, seq, head / (case_.num_heads / case_.num_kv_heads),
                            read_rows(q_.data(), at, kHeadDim)[0],
                            sets_[static_cast<std::size_t>(seq)].attended(kTokens - 1), angle);
    const double error = relative_error(read_rows(out_.data(), at, kHeadDim)[0], expected);
    require(error <= kTolerance16Bit, "sequence " + std::to_string(seq) + " head " +
                                          std::to_string(head) + " differs from the oracle by " +
                                          std::to_string(error));
  }

  /// [num_sets][num_seqs]
  [[nodiscard]] std::vector<SpanList> make_sets() const {
    std::vector<SpanList> sets(static_cast<std::size_t>(num_sets_ * case_.num_seqs));
    for (int seq = 0; seq < case_.num_seqs; ++seq) {
      const auto seed = static_cast<unsigned>(31 + seq);
      const std::vector<SpanList> own =
          disjoint_sets(random_chunk_ends(kTokens, seed), kTokens, case_.share, num_sets_, seed);
      for (int s = 0; s < num_sets_; ++s) {
        sets[static_cast<std::size_t>(s * case_.num_seqs + seq)] = own[static_cast<std::size_t>(s)];
      }
    }
    return sets;
  }

  DecodeCase case_;
  chunkllm::cuda::Stream stream_ = new_stream();
  KvMemory<Kv> kv_;
  int num_sets_;
  std::vector<SpanList> sets_;
  DeviceSets device_sets_;
  DeviceArray<std::int32_t> num_tokens_;
  DeviceArray<T> q_;
  DeviceArray<T> out_;
  DeviceArray<unsigned char> workspace_;
  DeviceArray<float> rope_;
  std::int32_t rope_count_ = 0;
};

template <typename Kv>
void decode_attention(benchmark::State& state, const DecodeCase& c) {
  run_case(state, [&] {
    const DecodeProblem<Kv> problem(c);
    problem.check();
    const double seconds = problem.seconds();
    report_time(state, seconds);
    report_reads(state, seconds, problem.bytes_of(problem.num_attended()));
    state.counters["attended"] = problem.num_attended() / c.num_seqs;
    state.counters["sets"] = problem.num_sets();
  });
}

void decode_bf16(benchmark::State& state, const DecodeCase& c) {
  decode_attention<T>(state, c);
}
void decode_fp8(benchmark::State& state, const DecodeCase& c) {
  decode_attention<__nv_fp8_e4m3>(state, c);
}

// Query heads, KV heads, share, sequences, page size, in-cache.
BENCHMARK_CAPTURE(decode_bf16, llama_100, {32, 8, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_50, {32, 8, 0.5})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10, {32, 8, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_100_overlap, {32, 8, 1.0, 1, 0, false, true})
    ->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_50_overlap, {32, 8, 0.5, 1, 0, false, true})
    ->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10_overlap, {32, 8, 0.1, 1, 0, false, true})
    ->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_100_page16, {32, 8, 1.0, 1, 16})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10_page16, {32, 8, 0.1, 1, 16})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10_page64, {32, 8, 0.1, 1, 64})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10_in_cache, {32, 8, 0.1, 1, 0, true})->Apply(device_case);
BENCHMARK_CAPTURE(decode_fp8, llama_100, {32, 8, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode_fp8, llama_10, {32, 8, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_100, {28, 4, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_10, {28, 4, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_100_overlap, {28, 4, 1.0, 1, 0, false, true})
    ->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_10_overlap, {28, 4, 0.1, 1, 0, false, true})
    ->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_100_batch16, {32, 8, 1.0, 16})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, llama_10_batch16, {32, 8, 0.1, 16})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_100_batch16, {28, 4, 1.0, 16})->Apply(device_case);
BENCHMARK_CAPTURE(decode_bf16, qwen25_10_batch16, {28, 4, 0.1, 16})->Apply(device_case);

}  // namespace

int main(int argc, char** argv) {
  return chunkllm::bench::run_benchmarks(argc, argv);
}
