// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/first_layer_backbone.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone.hpp"

namespace chunkllm {

/// Tokens that a Chunk Adapter is fitted to: windows of equal length, one behind the other.
struct BoundaryExamples {
  std::int64_t hidden_size = 0;
  std::int64_t window_len = 0;       ///< tokens
  std::vector<float> hidden;         ///< [num_tokens, hidden_size] the first layer's output
  std::vector<std::uint8_t> labels;  ///< [num_tokens] 1: a sentence ends with the token

  [[nodiscard]] std::int64_t num_tokens() const { return static_cast<std::int64_t>(labels.size()); }
  [[nodiscard]] std::int64_t num_windows() const {
    return window_len == 0 ? 0 : num_tokens() / window_len;
  }
  [[nodiscard]] const float* row(std::int64_t token) const {
    return hidden.data() + token * hidden_size;
  }
};

struct BoundarySampling {
  std::int64_t window_len = 2048;  ///< tokens read at once, densely
  /// Held at most, rounded down to whole windows; each takes 4 * hidden_size bytes.
  std::int64_t max_tokens = std::int64_t{1} << 18;
};

/// First tokens of the windows to read of each text: as many of every text as it has, up to a
/// number that is the same for all, and evenly spread over it. So a short text is not drowned by a
/// long one.
///
/// \param text_lens  tokens
/// \return [text] ascending multiples of `window_len`; none of a text shorter than a window
inline std::vector<std::vector<std::int64_t>> spread_windows(
    std::span<const std::int64_t> text_lens, const BoundarySampling& sampling) {
  const std::int64_t most = sampling.max_tokens / sampling.window_len;
  std::vector<std::int64_t> counts(text_lens.size());
  std::int64_t num_windows = 0;
  for (bool is_full = false; !is_full;) {
    is_full = true;
    for (std::size_t t = 0; t < text_lens.size() && num_windows < most; ++t) {
      if (counts[t] == text_lens[t] / sampling.window_len) continue;
      ++counts[t];
      ++num_windows;
      is_full = false;
    }
  }
  std::vector<std::vector<std::int64_t>> firsts(text_lens.size());
  for (std::size_t t = 0; t < text_lens.size(); ++t) {
    const std::int64_t available = text_lens[t] / sampling.window_len;
    for (std::int64_t w = 0; w < counts[t]; ++w) {
      firsts[t].push_back(w * available / counts[t] * sampling.window_len);
    }
  }
  return firsts;
}

/// Reads windows of the texts through the first layer and labels their tokens by the sentence rules
/// that know the whole text.
///
/// The first tokens of a window lack the past that they would have in the text; the first layer
/// looks mostly at its neighbours, so that is borne.
///
/// \param texts        ids, without begin tokens
/// \param token_bytes  (std::int32_t id) -> std::string_view; empty for special tokens
/// \param progress     called with the tokens read so far; false stops; may be empty
/// Errors: kInvalidArgument for a window below 2 tokens, one that `max_tokens` has no room for or
///         that no text fills, or for an id outside the vocabulary; kInterrupted where `progress`
///         asks to stop.
/// Cost:   one layer over the windows; the result holds `max_tokens` rows, beside it no more than
///         one text's bytes
template <FrozenBackbone Backbone, typename TokenBytes>
Result<BoundaryExamples> read_boundary_examples(
    const Backbone& backbone, std::span<const std::span<const std::int32_t>> texts,
    const TokenBytes& token_bytes, const BoundarySampling& sampling,
    const std::function<bool(std::int64_t)>& progress, ThreadPool& pool) {
  if (sampling.window_len < 2 || sampling.max_tokens < sampling.window_len) {
    return invalid_argument("boundary examples: windows of " + std::to_string(sampling.window_len) +
                            " tokens in " + std::to_string(sampling.max_tokens) +
                            ", expected at least 2 in as many or more");
  }
  std::vector<std::int64_t> text_lens;
  for (const auto& ids : texts) {
    text_lens.push_back(static_cast<std::int64_t>(ids.size()));
    // Before `token_bytes` is asked for them.
    for (const std::int32_t id : ids) {
      if (id >= 0 && id < backbone.config().vocab_size) continue;
      return invalid_argument("boundary examples: text " + std::to_string(text_lens.size() - 1) +
                              " has the id " + std::to_string(id) + ", expected 0 to " +
                              std::to_string(backbone.config().vocab_size - 1));
    }
  }
  const auto firsts = spread_windows(text_lens, sampling);
  std::size_t num_windows = 0;
  for (const auto& of_text : firsts) num_windows += of_text.size();
  if (num_windows == 0) {
    return invalid_argument("boundary examples: no text has the " +
                            std::to_string(sampling.window_len) + " tokens of a window");
  }

  const FirstLayerBackbone first_layer(backbone);
  using FirstLayerSession = Session<FirstLayerBackbone<Backbone>, AnyScorer, float>;
  const auto scorer = std::make_shared<const AnyScorer>(RecentScorer());
  SessionOptions dense;
  dense.dense = true;
  BoundaryExamples examples;
  examples.hidden_size = backbone.config().hidden_size;
  examples.window_len = sampling.window_len;
  const auto window_len = static_cast<std::size_t>(sampling.window_len);
  examples.labels.reserve(num_windows * window_len);
  examples.hidden.reserve(num_windows * window_len *
                          static_cast<std::size_t>(examples.hidden_size));
  for (std::size_t t = 0; t < texts.size(); ++t) {
    if (firsts[t].empty()) continue;
    std::vector<std::uint8_t> labels(texts[t].size());
    for (const std::size_t token : sentence_label_tokens(texts[t], token_bytes)) labels[token] = 1;
    for (const std::int64_t first : firsts[t]) {
      CHUNKLLM_ASSIGN_OR_RETURN(FirstLayerSession session,
                                FirstLayerSession::create(
                                    first_layer, scorer, nullptr,
                                    [](std::int32_t) { return std::string_view(); }, dense, pool));
      const std::int64_t done = examples.num_tokens();
      CHUNKLLM_RETURN_IF_ERROR(session.read(
          texts[t].subspan(static_cast<std::size_t>(first), window_len), ReadMode::kDense,
          [&](std::int64_t read) { return !progress || progress(done + read); },
          [&](std::int64_t, MatrixView<const float> hidden) {
            for (std::int64_t r = 0; r < hidden.rows; ++r) {
              examples.hidden.insert(examples.hidden.end(), hidden.row(r),
                                     hidden.row(r) + hidden.cols);
            }
          }));
      examples.labels.insert(examples.labels.end(), labels.begin() + first,
                             labels.begin() + first + sampling.window_len);
    }
  }
  return examples;
}

}  // namespace chunkllm
