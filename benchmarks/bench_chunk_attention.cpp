// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Attention of one layer: decoding over long caches and prefill tiles, dense beside
// chunk-selective, on all cores. bytes/s count the attended keys and values read once; flops the
// two products of attended pairs. Before a case is timed, sampled rows are checked against the
// oracle.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "../tests/reference/oracle.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"

namespace {

using chunkllm::AttendedSet;
using chunkllm::F16;

struct Shape {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
};
constexpr Shape kSmolLm2{9, 3, 64};
constexpr Shape kLlama{32, 8, 128};

chunkllm::ThreadPool& pool() {
  static chunkllm::ThreadPool pool(
      static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
  return pool;
}

/// Chunk 0, a local window of 100 tokens and chunks of 24 tokens all over the past, of `budget`
/// tokens in all; everything where the budget holds it.
AttendedSet selected_set(std::int64_t past, std::int64_t budget) {
  AttendedSet set;
  if (budget >= past) return set;
  set.tail_begin = past - 100;
  const std::int64_t num_chunks = (budget - 100) / 24;
  for (std::int64_t i = 0; i < num_chunks; ++i) {
    const std::int64_t begin = i * (set.tail_begin - 24) / num_chunks;
    if (!set.spans.empty() && set.spans.back().end >= begin) {
      set.spans.back().end = begin + 24;
    } else {
      set.spans.push_back({begin, begin + 24});
    }
  }
  return set;
}

class Problem {
 public:
  Problem(const Shape& shape, std::int64_t num_tokens, std::int64_t num_rows)
      : shape_(shape), num_tokens_(num_tokens), num_rows_(num_rows) {
    std::minstd_rand random(1);
    const auto width = static_cast<std::size_t>(shape.num_heads * shape.head_dim);
    const auto kv_width = static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim);
    const auto draw = [&] { return static_cast<float>(random() % 4096) / 1024.0F - 2.0F; };
    q_.resize(width * static_cast<std::size_t>(num_rows));
    for (float& x : q_) x = draw();
    out_.resize(q_.size());
    keys_.resize(kv_width * static_cast<std::size_t>(num_tokens));
    values_.resize(keys_.size());
    for (F16& x : keys_) x = chunkllm::to_f16(draw());
    for (F16& x : values_) x = chunkllm::to_f16(draw());
  }

  chunkllm::ChunkAttentionArgs<F16> args(std::span<const chunkllm::AttentionTile> tiles) {
    const std::int64_t width = shape_.num_heads * shape_.head_dim;
    chunkllm::ChunkAttentionArgs<F16> args;
    args.q = {q_.data(), num_rows_, width};
    args.out = {out_.data(), num_rows_, width};
    args.kv.keys = keys_.data();
    args.kv.values = values_.data();
    args.kv.num_tokens = num_tokens_;
    args.kv.token_stride = shape_.num_kv_heads * shape_.head_dim;
    args.kv.head_stride = shape_.head_dim;
    args.tiles = tiles;
    args.first_token = num_tokens_ - num_rows_;
    args.num_heads = shape_.num_heads;
    args.num_kv_heads = shape_.num_kv_heads;
    args.head_dim = shape_.head_dim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
    workspace_.resize(static_cast<std::size_t>(chunkllm::chunk_attention_workspace_floats(
        shape_.num_heads, shape_.num_kv_heads, shape_.head_dim, num_tokens_,
        pool().num_threads())));
    return args;
  }
  std::span<float> workspace() { return workspace_; }

  /// Whether the first and the last row are the oracle's, within the bound of n f32 additions and
  /// of the error that a score's head_dim products put on its weight.
  [[nodiscard]] bool is_right(const AttendedSet& set) const {
    namespace oracle = chunkllm::oracle;
    oracle::AttentionShape shape;
    shape.head_dim = shape_.head_dim;
    shape.scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim));
    const std::int64_t head = shape_.num_heads - 1;
    for (const std::int64_t row : {std::int64_t{0}, num_rows_ - 1}) {
      const std::int64_t token = num_tokens_ - num_rows_ + row;
      oracle::Rows keys;
      oracle::Rows values;
      oracle::TokenList attended;
      for (const chunkllm::TokenSpan& span : set.segments(token)) {
        for (std::int64_t t = span.begin; t < span.end; ++t) {
          const std::int64_t at =
              (t * shape_.num_kv_heads + shape_.num_kv_heads - 1) * shape_.head_dim;
          keys.push_back(row_of(keys_, at));
          values.push_back(row_of(values_, at));
          attended.push_back(static_cast<std::int64_t>(attended.size()));
        }
      }
      const std::int64_t at = (row * shape_.num_heads + head) * shape_.head_dim;
      const oracle::Row q(q_.begin() + at, q_.begin() + at + shape_.head_dim);
      const oracle::AttentionRow expected = oracle::attend(shape, q, keys, values, attended);
      const double score =
          static_cast<double>(shape_.head_dim + 8) * 0x1p-24 * expected.score_sizes[0];
      const double weight =
          2.0 * std::expm1(score) + static_cast<double>(attended.size() + 16) * 0x1p-24;
      for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
        const auto i = static_cast<std::size_t>(d);
        const auto actual = static_cast<double>(out_[static_cast<std::size_t>(at + d)]);
        if (!(std::abs(actual - expected.out[i]) <= weight * expected.value_sizes[i])) return false;
      }
    }
    return true;
  }

 private:
  [[nodiscard]] chunkllm::oracle::Row row_of(const std::vector<F16>& values,
                                             std::int64_t at) const {
    chunkllm::oracle::Row row;
    for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
      row.push_back(
          static_cast<double>(chunkllm::to_f32(values[static_cast<std::size_t>(at + d)])));
    }
    return row;
  }

  Shape shape_;
  std::int64_t num_tokens_;
  std::int64_t num_rows_;
  std::vector<float> q_;
  std::vector<float> out_;
  std::vector<F16> keys_;
  std::vector<F16> values_;
  std::vector<float> workspace_;
};

/// \param past    tokens in the cache   \param budget  0: dense
void attend(benchmark::State& state, const Shape& shape, std::int64_t num_rows) {
  const std::int64_t past = state.range(0);
  const std::int64_t budget = state.range(1) == 0 ? past : state.range(1);
  Problem problem(shape, past, num_rows);
  const AttendedSet set = selected_set(past - num_rows + 1, budget);
  const chunkllm::AttentionTile tile{0, num_rows, &set};
  const auto args = problem.args({&tile, 1});
  const chunkllm::Status status = chunkllm::chunk_attention(args, problem.workspace(), pool());
  if (!status.ok() || !problem.is_right(set)) {
    state.SkipWithError(status.ok() ? "differs from the oracle" : status.message().c_str());
    return;
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(chunkllm::chunk_attention(args, problem.workspace(), pool()).ok());
    benchmark::ClobberMemory();
  }
  double pairs = 0.0;
  for (std::int64_t r = 0; r < num_rows; ++r) {
    pairs += static_cast<double>(set.num_attended(past - num_rows + r));
  }
  const auto read =
      static_cast<double>(set.num_attended(past - 1) * 2 * shape.num_kv_heads * shape.head_dim) *
      sizeof(F16);
  const auto flops = 4.0 * pairs * static_cast<double>(shape.num_heads * shape.head_dim);
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["bytes/s"] = benchmark::Counter(read * iterations, benchmark::Counter::kIsRate);
  state.counters["flop/s"] = benchmark::Counter(flops * iterations, benchmark::Counter::kIsRate);
  state.counters["attended"] = pairs / static_cast<double>(num_rows);
}

/// Context and budget, 0 for dense.
void decode_cases(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"past", "budget"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (const std::int64_t past : {2048, 32768, 122880}) {
    bench->Args({past, 0});
    if (past > 2048) bench->Args({past, 2048});
  }
}
void prefill_cases(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"past", "budget"})->UseRealTime()->Unit(benchmark::kMillisecond);
  bench->Args({8192, 0})->Args({8192, 2048});
}

BENCHMARK_CAPTURE(attend, decode_smollm2, kSmolLm2, 1)->Apply(decode_cases);
BENCHMARK_CAPTURE(attend, decode_llama, kLlama, 1)->Apply(decode_cases);
BENCHMARK_CAPTURE(attend, prefill_smollm2, kSmolLm2, 512)->Apply(prefill_cases);
BENCHMARK_CAPTURE(attend, prefill_llama, kLlama, 512)->Apply(prefill_cases);

/// A prefill block as a text cuts it: every 24 rows have a set of their own.
void prefill_chunk_tiles(benchmark::State& state, const Shape& shape) {
  constexpr std::int64_t kPast = 8192;
  constexpr std::int64_t kRows = 512;
  Problem problem(shape, kPast, kRows);
  std::vector<AttendedSet> sets;
  for (std::int64_t row = 0; row < kRows; row += 24) {
    sets.push_back(selected_set(kPast - kRows + row + 1, 2048));
  }
  std::vector<chunkllm::AttentionTile> tiles;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) * 24;
    tiles.push_back({row, std::min<std::int64_t>(24, kRows - row), &sets[i]});
  }
  const auto args = problem.args(tiles);
  const chunkllm::Status status = chunkllm::chunk_attention(args, problem.workspace(), pool());
  if (!status.ok()) {
    state.SkipWithError(status.message().c_str());
    return;
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(chunkllm::chunk_attention(args, problem.workspace(), pool()).ok());
    benchmark::ClobberMemory();
  }
  double pairs = 0.0;
  for (const chunkllm::AttentionTile& tile : tiles) {
    for (std::int64_t r = 0; r < tile.num_rows; ++r) {
      pairs += static_cast<double>(tile.set->num_attended(kPast - kRows + tile.first_row + r));
    }
  }
  state.counters["flop/s"] =
      benchmark::Counter(4.0 * pairs * static_cast<double>(shape.num_heads * shape.head_dim) *
                             static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
  state.counters["attended"] = pairs / static_cast<double>(kRows);
}
BENCHMARK_CAPTURE(prefill_chunk_tiles, smollm2, kSmolLm2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prefill_chunk_tiles, llama, kLlama)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
