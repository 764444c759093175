// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Attention of one layer: decoding over long caches and prefill tiles, dense beside
// chunk-selective, on all cores. bytes/s count the attended keys and values read once; flops the
// two products of attended pairs. Before a case is timed, sampled rows are checked against the
// oracle.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "attention_problem.hpp"
#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace {

using chunkllm::AttendedSet;
using chunkllm::F16;
using chunkllm::bench::AttentionProblem;
using chunkllm::bench::AttentionShape;

constexpr AttentionShape kSmolLm2{9, 3, 64};
constexpr AttentionShape kLlama{32, 8, 128};

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

/// \param past    tokens in the cache   \param budget  0: dense
void attend(benchmark::State& state, const AttentionShape& shape, std::int64_t num_rows) {
  const std::int64_t past = state.range(0);
  const std::int64_t budget = state.range(1) == 0 ? past : state.range(1);
  AttentionProblem problem(shape, past, num_rows, pool().num_threads());
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
void prefill_chunk_tiles(benchmark::State& state, const AttentionShape& shape) {
  constexpr std::int64_t kPast = 8192;
  constexpr std::int64_t kRows = 512;
  AttentionProblem problem(shape, kPast, kRows, pool().num_threads());
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
