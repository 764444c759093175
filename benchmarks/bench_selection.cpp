// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// A refresh of one layer at 5,000 chunks (120,000 tokens): scores, order and budget, the attended
// set. bytes/s count the chunk keys read once. Beside it `attend_dense`, what one decoded token
// would cost in that layer without selection, and `attend_selected`, what it costs with it.
// Before scoring is timed, scores are checked against the oracle.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "../tests/reference/oracle.hpp"
#include "attention_problem.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/score_chunks.hpp"

namespace {

constexpr std::int64_t kChunks = 5000;
constexpr std::int64_t kChunkLen = 24;

struct Shape {
  std::int64_t num_heads;
  std::int64_t num_key_heads;
  std::int64_t key_dim;
};
constexpr Shape kSmolLm2MeanKey{9, 3, 64};
constexpr Shape kLlamaMeanKey{32, 8, 128};
constexpr Shape kAdapter{4, 1, 128};

/// The operands of one refresh.
class Refresh {
 public:
  explicit Refresh(const Shape& shape) : shape_(shape), keys_(shape.num_key_heads * shape.key_dim) {
    std::minstd_rand random(1);
    const auto draw = [&] { return static_cast<float>(random() % 4096) / 1024.0F - 2.0F; };
    query_.resize(static_cast<std::size_t>(shape.num_heads * shape.key_dim));
    for (float& x : query_) x = draw();
    std::vector<float> key(static_cast<std::size_t>(keys_.key_size()));
    for (std::int64_t c = 0; c < kChunks; ++c) {
      for (float& x : key) x = draw();
      keys_.append(key.data());
      table_.close((c + 1) * kChunkLen);
    }
    log_lengths_.assign(kChunks, std::log(static_cast<float>(kChunkLen)));
    args_.query = query_.data();
    args_.maybe_log_lengths = log_lengths_.data();
    args_.keys = &keys_;
    args_.table = &table_;
    args_.query_token = kChunks * kChunkLen - 1;
    args_.range = chunkllm::candidate_range(table_, args_.query_token, 64, 2);
    args_.num_heads = shape.num_heads;
    args_.num_key_heads = shape.num_key_heads;
    args_.key_dim = shape.key_dim;
    args_.scale = 1.0F / std::sqrt(static_cast<float>(shape.key_dim));
    scores_.resize(static_cast<std::size_t>(args_.range.num_candidates()));
  }
  Refresh(const Refresh&) = delete;
  Refresh& operator=(const Refresh&) = delete;

  void score() { chunkllm::score_chunks(args_, scores_, scratch_); }
  [[nodiscard]] chunkllm::AttendedSet select() const {
    const chunkllm::Budget budget;  // 2048 tokens
    return chunkllm::make_attended_set(
        table_,
        chunkllm::take_within_budget(table_, args_.range, args_.query_token, budget,
                                     chunkllm::ChunkOrder(scores_, /*threshold=*/0.0F)),
        args_.range.tail_begin);
  }
  [[nodiscard]] double key_bytes() const {
    return static_cast<double>(kChunks * keys_.key_size()) * sizeof(float);
  }

  /// Whether each score is the oracle's, within the error that key_dim products put on a logit
  /// and a sum of 5,000 terms on the softmax.
  [[nodiscard]] bool is_right() const {
    chunkllm::oracle::ScoreProblem p;
    double size = 0.0;
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      const auto first = query_.begin() + h * shape_.key_dim;
      p.queries.emplace_back(first, first + shape_.key_dim);
    }
    for (const float x : query_) size = std::max(size, std::abs(static_cast<double>(x)));
    std::vector<float> key(static_cast<std::size_t>(keys_.key_size()));
    for (std::int64_t c = 0; c < kChunks; ++c) {
      keys_.read(c, key.data());
      p.keys.emplace_back(key.begin(), key.end());
      p.lengths.push_back(kChunkLen);
      p.last_tokens.push_back(table_.end(c) - 1);
    }
    p.candidate_end = args_.range.end;
    p.query_token = args_.query_token;
    p.num_key_heads = shape_.num_key_heads;
    p.scale = static_cast<double>(args_.scale);
    const chunkllm::oracle::Row expected = chunkllm::oracle::scores(p);
    const auto dim = static_cast<double>(shape_.key_dim);
    const double logit = 0x1p-24 * ((dim + 3.0) * p.scale * dim * size * 2.0 + 50.0);
    const double relative = 2.0 * std::expm1(2.0 * logit) + (kChunks + 16.0) * 0x1p-24;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double error = std::abs(static_cast<double>(scores_[i]) - expected[i]);
      if (!(error <= relative * expected[i] + 1e-37)) return false;
    }
    return true;
  }

 private:
  Shape shape_;
  chunkllm::ChunkKeys keys_;
  chunkllm::ChunkTable table_;
  std::vector<float> query_;
  std::vector<float> log_lengths_;
  std::vector<float> scores_;
  std::vector<float> scratch_;
  chunkllm::ScoreChunksArgs args_;
};

void score(benchmark::State& state, const Shape& shape) {
  Refresh refresh(shape);
  refresh.score();
  if (!refresh.is_right()) {
    state.SkipWithError("differs from the oracle");
    return;
  }
  for (auto _ : state) {
    refresh.score();
    benchmark::ClobberMemory();
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["bytes/s"] =
      benchmark::Counter(refresh.key_bytes() * iterations, benchmark::Counter::kIsRate);
  state.counters["flop/s"] = benchmark::Counter(
      2.0 * static_cast<double>(shape.num_heads * shape.key_dim * kChunks) * iterations,
      benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(score, smollm2_mean_key, kSmolLm2MeanKey)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(score, llama_mean_key, kLlamaMeanKey)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(score, adapter_4x128, kAdapter)->Unit(benchmark::kMicrosecond);

void select(benchmark::State& state) {
  Refresh refresh(kSmolLm2MeanKey);
  refresh.score();
  for (auto _ : state) benchmark::DoNotOptimize(refresh.select());
  state.SetItemsProcessed(state.iterations() * kChunks);
}
BENCHMARK(select)->Unit(benchmark::kMicrosecond);

/// One token's attention on one thread, dense or over the selected set.
void attend(benchmark::State& state, bool dense) {
  Refresh refresh(kSmolLm2MeanKey);
  refresh.score();
  const chunkllm::AttendedSet set = dense ? chunkllm::AttendedSet{} : refresh.select();
  constexpr std::int64_t kTokens = kChunks * kChunkLen;
  const Shape& shape = kSmolLm2MeanKey;
  chunkllm::ThreadPool pool(1);
  chunkllm::bench::AttentionProblem problem({shape.num_heads, shape.num_key_heads, shape.key_dim},
                                            kTokens, /*num_rows=*/1, pool.num_threads());
  const chunkllm::AttentionTile tile{0, 1, &set};
  const auto args = problem.args({&tile, 1});
  const chunkllm::Status status = chunkllm::chunk_attention(args, problem.workspace(), pool);
  if (!status.ok() || !problem.is_right(set)) {
    state.SkipWithError(status.ok() ? "differs from the oracle" : status.message().c_str());
    return;
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(chunkllm::chunk_attention(args, problem.workspace(), pool).ok());
    benchmark::ClobberMemory();
  }
  state.counters["attended"] = static_cast<double>(set.num_attended(kTokens - 1));
}
BENCHMARK_CAPTURE(attend, dense, true)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(attend, selected, false)->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
