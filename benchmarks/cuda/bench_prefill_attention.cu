// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// One layer's causal attention over a whole prompt at the heads of Llama-3.1-8B (32 query, 8 KV,
// 128 dimensions): dense, and with 10 % of the past. There every chunk of 8 to 40 tokens is a query
// tile with a set of its own: random past chunks, 10 % of what lies before it, and its local
// window. `flops` count attended pairs only; `mean_tile_rows` and `m_use` say how long tiles are
// and which part of the rows of the matrix instructions they fill. A few rows are checked against
// the oracle before anything is timed. `of_gemm` is the share of cuBLAS's 8192^3 product in this
// run.

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "bench_device_kv.hpp"
#include "bench_device_support.hpp"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"

namespace {

using namespace chunkllm::bench;  // NOLINT(google-build-using-namespace): a program
namespace kernels = chunkllm::kernels;
using T = __nv_bfloat16;

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kRowSize = kHeads * kHeadDim;

struct PrefillCase {
  std::int32_t num_tokens;
  double share;
  kernels::PrefillPath path = kernels::PrefillPath::kAuto;
};

class PrefillProblem {
 public:
  explicit PrefillProblem(const PrefillCase& c)
      : case_(c),
        kv_({1, c.num_tokens, kKvHeads, kHeadDim, 0}),
        q_(random_array<T>(static_cast<std::size_t>(c.num_tokens) * kRowSize, 21)),
        out_(q_.size()),
        sets_(make_tiles()),
        device_sets_(sets_),
        device_tiles_(tiles_) {}

  void launch(cudaStream_t stream) const {
    kernels::PrefillAttentionArgs<T> args;
    args.q = q_.data();
    args.out = out_.data();
    args.q_stride = args.out_stride = kRowSize;
    args.kv = kv_.view();
    args.sets = device_sets_.rows(0, static_cast<std::int32_t>(sets_.size()));
    args.tiles = device_tiles_.data();
    args.num_tiles = static_cast<std::int32_t>(tiles_.size());
    for (const kernels::PrefillTile& tile : tiles_) {
      args.max_tile_rows = std::max(args.max_tile_rows, tile.num_rows);
    }
    args.num_rows = case_.num_tokens;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kHeadDim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
    require(kernels::launch_chunk_prefill_attention(args, stream, case_.path));
  }

  /// Some rows, each of another head.
  void check() const {
    launch(stream_.get());
    require(stream_.synchronize());
    const std::int32_t last = case_.num_tokens - 1;
    for (const std::int32_t row : {std::int32_t{1}, last / 7, last / 2, last}) {
      const std::int32_t head = row % kHeads;
      std::size_t tile = 0;
      while (tiles_[tile].first_row + tiles_[tile].num_rows <= row) ++tile;
      const std::vector<std::int64_t> at = {std::int64_t{row} * kRowSize + head * kHeadDim};
      const chunkllm::oracle::Row expected = reference_attention(
          kv_, 0, head / (kHeads / kKvHeads), read_rows(q_.data(), at, kHeadDim)[0],
          sets_[static_cast<std::size_t>(tiles_[tile].set)].attended(row));
      const double error = relative_error(read_rows(out_.data(), at, kHeadDim)[0], expected);
      require(error <= kTolerance16Bit, "row " + std::to_string(row) + " head " +
                                            std::to_string(head) + " differs from the oracle by " +
                                            std::to_string(error));
    }
  }

  [[nodiscard]] double seconds() const {
    return launch_seconds(stream_, 1, [&](int, cudaStream_t stream) { launch(stream); });
  }
  /// (row, key) pairs that are attended.
  [[nodiscard]] double num_pairs() const {
    double pairs = 0.0;
    for (const kernels::PrefillTile& tile : tiles_) {
      const SpanList& set = sets_[static_cast<std::size_t>(tile.set)];
      for (std::int32_t r = 0; r < tile.num_rows; ++r) {
        pairs += set.num_attended(tile.first_row + r);
      }
    }
    return pairs;
  }
  [[nodiscard]] double mean_tile_rows() const {
    return static_cast<double>(case_.num_tokens) / static_cast<double>(tiles_.size());
  }
  /// Share of the rows of all query blocks that hold a query: a block has `kBlockRows` (token,
  /// head) pairs of one KV head and one tile.
  [[nodiscard]] double m_use() const {
    constexpr std::int32_t kBlockRows = kernels::prefill::MmaShape<kHeadDim>::kRows;
    double used = 0.0;
    double all = 0.0;
    for (const kernels::PrefillTile& tile : tiles_) {
      const std::int32_t rows = tile.num_rows * (kHeads / kKvHeads);
      used += rows;
      all += kernels::ceil_div(rows, kBlockRows) * kBlockRows;
    }
    return used / all;
  }

 private:
  /// Cuts `tiles_` and gives each its set.
  std::vector<SpanList> make_tiles() {
    if (case_.share >= 1.0) {
      tiles_ = {{0, case_.num_tokens, 0}};
      return std::vector<SpanList>(1);
    }
    const std::vector<std::int32_t> ends = random_chunk_ends(case_.num_tokens, 31);
    std::vector<SpanList> sets;
    std::minstd_rand random(32);
    std::int32_t first = 0;
    for (std::size_t chunk = 0; first < case_.num_tokens; ++chunk) {
      const std::int32_t end = chunk < ends.size() ? ends[chunk] : case_.num_tokens;
      SpanList set;
      set.tail_begin = local_window_begin(ends, first);
      const double wanted = case_.share * first - (first - set.tail_begin);
      const double chance = set.tail_begin > 0 ? wanted / set.tail_begin : 0.0;
      for (std::size_t c = 0; c < chunk && ends[c] <= set.tail_begin; ++c) {
        if (static_cast<double>(random() % 65536) < chance * 65536.0) {
          append_chunk(ends, static_cast<std::int32_t>(c), set.tokens);
        }
      }
      tiles_.push_back({first, end - first, static_cast<std::int32_t>(sets.size())});
      sets.push_back(std::move(set));
      first = end;
    }
    return sets;
  }

  PrefillCase case_;
  chunkllm::cuda::Stream stream_ = new_stream();
  KvMemory<T> kv_;
  DeviceArray<T> q_;
  DeviceArray<T> out_;
  std::vector<kernels::PrefillTile> tiles_;
  std::vector<SpanList> sets_;
  DeviceSets device_sets_;
  DeviceArray<kernels::PrefillTile> device_tiles_;
};

void prefill(benchmark::State& state, const PrefillCase& c) {
  run_case(state, [&] {
    const PrefillProblem problem(c);
    problem.check();
    const double seconds = problem.seconds();
    const double n = c.num_tokens;
    report_time(state, seconds);
    report_flops(state, seconds, 4.0 * kRowSize * problem.num_pairs());
    state.counters["of_n_x_n"] = problem.num_pairs() / (n * n);
    state.counters["of_causal"] = problem.num_pairs() / (n * (n + 1) / 2);
    state.counters["mean_tile_rows"] = problem.mean_tile_rows();
    state.counters["m_use"] = problem.m_use();
  });
}

constexpr auto kMma = kernels::PrefillPath::kMma;
// Tokens, share of the past, version of the kernel.
BENCHMARK_CAPTURE(prefill, dense_16k, {16384, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, dense_32k, {32768, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, dense_32k_mma, {32768, 1.0, kMma})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, dense_120k, {kTokens, 1.0})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, chunks_10_120k, {kTokens, 0.1})->Apply(device_case);
BENCHMARK_CAPTURE(prefill, chunks_10_120k_mma, {kTokens, 0.1, kMma})->Apply(device_case);

}  // namespace

int main(int argc, char** argv) {
  return run_benchmarks(argc, argv);
}
