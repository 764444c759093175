// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/eval/first_layer_backbone.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// The chunks of a whole text.
struct TextChunks {
  std::vector<std::int64_t> ends;    ///< exclusive, ascending, of the closed chunks
  std::vector<float> probabilities;  ///< that a token ends a chunk; empty without an adapter
};

/// Chunks by a Chunk Adapter, as a session finds them that reads the text as a prompt. Only the
/// first layer runs.
///
/// \tparam KvType    float, F16 or BF16
/// \param scorer    ranks the chunks that the first layer attends
/// \param progress  called with the tokens read so far; false stops
/// Errors: those of `Session::create` and `Session::read`.
template <typename KvType, FrozenBackbone Backbone>
Result<TextChunks> chunks_by_adapter(const Backbone& backbone,
                                     const std::shared_ptr<const ChunkAdapter>& adapter,
                                     std::shared_ptr<const AnyScorer> scorer,
                                     const SessionOptions& options,
                                     std::span<const std::int32_t> ids,
                                     const std::function<bool(std::int64_t)>& progress,
                                     ThreadPool& pool) {
  const FirstLayerBackbone first_layer(backbone);
  using FirstLayerSession = Session<FirstLayerBackbone<Backbone>, AnyScorer, KvType>;
  CHUNKLLM_ASSIGN_OR_RETURN(
      FirstLayerSession session,
      FirstLayerSession::create(first_layer, std::move(scorer), adapter, {}, options, pool));
  session.reserve(static_cast<std::int64_t>(ids.size()));
  TextChunks chunks;
  chunks.probabilities.reserve(ids.size());
  CHUNKLLM_RETURN_IF_ERROR(session.read(
      ids, ReadMode::kLayerLocal, progress, [&](std::int64_t, MatrixView<const float> hidden) {
        for (std::int64_t r = 0; r < hidden.rows; ++r) {
          chunks.probabilities.push_back(adapter->probability(hidden.row(r)));
        }
      }));
  chunks.ends = session.chunks().table().ends();
  return chunks;
}

/// Chunk ends against the sentence ends that the rules find knowing the whole text. Special tokens
/// are no text.
///
/// \param ends  exclusive, ascending
/// Errors: those of `score_boundaries`.
inline Result<BoundaryScore> score_chunk_ends(const BpeTokenizer& tokenizer,
                                              std::span<const std::int32_t> ids,
                                              std::span<const std::int64_t> ends) {
  std::vector<std::size_t> predicted;
  predicted.reserve(ends.size());
  for (const std::int64_t end : ends) predicted.push_back(static_cast<std::size_t>(end - 1));
  const std::vector<std::size_t> labelled = sentence_label_tokens(ids, [&](std::int32_t id) {
    return tokenizer.is_special(id) ? std::string_view() : tokenizer.token_bytes(id);
  });
  return score_boundaries(predicted, labelled, ids.size());
}

}  // namespace chunkllm
