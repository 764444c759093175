// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_state.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

/// What is scored, and how the text is read.
struct PerplexityOptions {
  std::int64_t score_from = 1;  ///< first token that is scored, at least 1
  /// kAsDecode reads chunk by chunk with `ChunkOptions::selection`; kLayerLocal as `prefill` does.
  ReadMode mode = ReadMode::kAsDecode;
};

/// Negative log-likelihoods of given tokens, in nats.
struct PerplexityResult {
  std::int64_t num_tokens = 0;  ///< of the text
  std::int64_t score_from = 1;
  std::vector<float> nll;  ///< of token `score_from + i` given all tokens before it

  [[nodiscard]] std::int64_t num_scored() const { return static_cast<std::int64_t>(nll.size()); }
  [[nodiscard]] double nll_sum() const { return std::accumulate(nll.begin(), nll.end(), 0.0); }
  /// NaN where nothing was scored.
  [[nodiscard]] double nll_mean() const { return nll_sum() / static_cast<double>(nll.size()); }
  [[nodiscard]] double perplexity() const { return std::exp(nll_mean()); }
};

/// log(sum_i exp(x_i)). NaN where a value is NaN, +inf where one is.
///
/// Numerics: exponentials in f32 below the maximum, summed in f32 over at most 256 terms a lane
/// and in double beyond: relative error of the sum below 2e-5, so 2e-5 absolute in the result.
inline double log_sum_exp(std::span<const float> x) {
  constexpr std::int64_t kBlock = 256 * simd::kLanes;
  const auto size = static_cast<std::int64_t>(x.size());
  float largest = -std::numeric_limits<float>::infinity();
  std::int64_t i = 0;
  if (size >= simd::kLanes) {
    simd::F32x16 lanes = simd::load(x.data());
    for (; i + simd::kLanes <= size; i += simd::kLanes) {
      lanes = simd::max(lanes, simd::load(x.data() + i));
    }
    largest = simd::horizontal_max(lanes);
  }
  for (; i < size; ++i) largest = std::max(largest, x[static_cast<std::size_t>(i)]);
  if (std::isinf(largest)) return largest;
  const simd::F32x16 shift = simd::broadcast(largest);
  double sum = 0.0;
  i = 0;
  while (i + simd::kLanes <= size) {
    const std::int64_t end = std::min(size - simd::kLanes + 1, i + kBlock);
    simd::F32x16 lanes = simd::zero();
    for (; i < end; i += simd::kLanes) {
      lanes = lanes + simd::exp(simd::load(x.data() + i) - shift);
    }
    sum += static_cast<double>(simd::horizontal_sum(lanes));
  }
  for (; i < size; ++i) {
    sum += std::exp(static_cast<double>(x[static_cast<std::size_t>(i)] - largest));
  }
  return static_cast<double>(largest) + std::log(sum);
}

namespace detail {

/// Turns final hidden rows into negative log-likelihoods, a block of rows at a time.
template <typename Backbone>
class NllScorer {
 public:
  NllScorer(const Backbone& backbone, std::span<const std::int32_t> ids, PerplexityResult& result,
            ThreadPool& pool)
      : backbone_(backbone), ids_(ids), result_(result), pool_(pool) {}

  /// Row r is the state behind token `first_token + r`, which predicts the next one.
  void add_rows(std::int64_t first_token, MatrixView<const float> hidden) {
    const std::int64_t skip = std::max<std::int64_t>(0, result_.score_from - 1 - first_token);
    const std::int64_t vocab_size = backbone_.config().vocab_size;
    for (std::int64_t first = skip; first < hidden.rows; first += kRows) {
      const std::int64_t rows = std::min(kRows, hidden.rows - first);
      logits_.resize(static_cast<std::size_t>(kRows * vocab_size));
      const MatrixView<float> logits(logits_.data(), rows, vocab_size);
      backbone_.logits(hidden.middle_rows(first, rows), logits, pool_);
      const std::size_t done = result_.nll.size();
      result_.nll.resize(done + static_cast<std::size_t>(rows));
      pool_.parallel_for(rows, [&](std::int64_t r, int) {
        const std::span<const float> row(logits.row(r), static_cast<std::size_t>(vocab_size));
        const std::int32_t next = ids_[static_cast<std::size_t>(first_token + first + r + 1)];
        const double nll =
            log_sum_exp(row) - static_cast<double>(row[static_cast<std::size_t>(next)]);
        result_.nll[done + static_cast<std::size_t>(r)] = static_cast<float>(nll);
      });
    }
  }

 private:
  // Enough rows to read the head's weights once for many, and 12 MB of logits at 49,152 tokens.
  static constexpr std::int64_t kRows = 64;

  const Backbone& backbone_;
  std::span<const std::int32_t> ids_;
  PerplexityResult& result_;
  ThreadPool& pool_;
  std::vector<float> logits_;
};

}  // namespace detail

/// Reads `ids` in a fresh session, teacher-forced, and scores each token given those before it.
///
/// The last token is scored but not read: nothing follows it. `session.attended()` afterwards
/// counts the rows that predicted a scored token.
///
/// \param ids       at least `score_from + 1`, at most the session's whole text
/// \param progress  called with the tokens read so far; false stops
/// \param result    where the status is kInterrupted: what was scored until then
/// Errors: kInvalidArgument for a session that has read tokens, a `score_from` outside
///         [1, ids.size() - 1], or an id outside the vocabulary; kInvalidFile for a likelihood
///         that is not finite; kInterrupted where `progress` asks to stop
/// Cost: beside the reading, 2 hidden_size vocab_size flops a scored token; 64 rows of logits
template <typename SessionType>
Status measure_perplexity(SessionType& session, std::span<const std::int32_t> ids,
                          const PerplexityOptions& options,
                          const std::function<bool(std::int64_t)>& progress, ThreadPool& pool,
                          PerplexityResult& result) {
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  result = {num_tokens, options.score_from, {}};
  if (session.num_tokens() != 0) {
    return invalid_argument("perplexity needs a fresh session, this one holds " +
                            std::to_string(session.num_tokens()) + " tokens");
  }
  if (num_tokens < 2) {
    return invalid_argument("perplexity needs at least 2 tokens, the text has " +
                            std::to_string(num_tokens));
  }
  if (options.score_from < 1 || options.score_from >= num_tokens) {
    return invalid_argument("the first scored token is " + std::to_string(options.score_from) +
                            ", expected 1 to " + std::to_string(num_tokens - 1));
  }
  const std::int64_t vocab_size = session.backbone().config().vocab_size;
  if (ids.back() < 0 || ids.back() >= vocab_size) {  // the others are checked as they are read
    return invalid_argument("token " + std::to_string(num_tokens - 1) + " has id " +
                            std::to_string(ids.back()) + ", expected 0 to " +
                            std::to_string(vocab_size - 1));
  }
  result.nll.reserve(static_cast<std::size_t>(num_tokens - options.score_from));
  session.reserve(num_tokens);
  session.count_attended_from(options.score_from - 1);
  detail::NllScorer scorer(session.backbone(), ids, result, pool);
  CHUNKLLM_RETURN_IF_ERROR(
      session.read(ids.first(ids.size() - 1), options.mode, progress,
                   [&](std::int64_t first_token, MatrixView<const float> hidden) {
                     scorer.add_rows(first_token, hidden);
                   }));
  const auto bad = std::find_if_not(result.nll.begin(), result.nll.end(),
                                    [](float nll) { return std::isfinite(nll); });
  if (bad != result.nll.end()) {
    return invalid_file("the model gives token " +
                        std::to_string(options.score_from + (bad - result.nll.begin())) +
                        " a likelihood that is not finite");
  }
  return {};
}

}  // namespace chunkllm
