// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/train/teacher_rows.hpp"

namespace chunkllm {

/// Which tokens attend what when a text is read with chunk 0 and the newest chunks alone, the way a
/// session with a `RecentScorer` reads it: a set is chosen at each chunk's end and holds from that
/// token on, in the first layer from the next token on.
struct RecentReading {
  /// Of chunk 0, whose length others may have chosen, no more are attended.
  static constexpr std::int64_t kMostSinkTokens = 128;

  /// Rows that attend one set.
  struct Tile {
    std::int64_t first_row = 0;
    std::int64_t num_rows = 0;
    std::int64_t set = 0;
  };

  /// Set s: tokens [0, num_sink_tokens) and all from tail_begins[s] on; where that is 0, all.
  std::vector<std::int64_t> tail_begins;
  std::int64_t num_sink_tokens = 0;
  std::vector<Tile> first_layer_tiles;  ///< cover the rows once, in order
  std::vector<Tile> tiles;              ///< of all other layers, likewise
};

/// \param rows    of `plan_teacher_rows`
/// \param budget  tokens attended at the moment a set is chosen, chunk 0 and the local window
///                included
inline RecentReading plan_recent_reading(const TeacherRows& rows, std::int64_t num_tokens,
                                         const ChunkOptions& options, std::int64_t budget) {
  RecentReading reading;
  reading.tail_begins.push_back(0);
  ChunkTable table;
  for (const std::int64_t end : rows.chunk_ends) table.close(end);
  if (table.num_chunks() > 0) {
    reading.num_sink_tokens = std::min(table.end(0), RecentReading::kMostSinkTokens);
  }
  const auto close = [num_tokens](std::vector<RecentReading::Tile>& tiles, std::int64_t begin,
                                  std::int64_t set) {
    if (!tiles.empty()) tiles.back().num_rows = begin - tiles.back().first_row;
    if (!tiles.empty() && tiles.back().num_rows == 0) tiles.pop_back();
    if (begin < num_tokens) tiles.push_back({begin, num_tokens - begin, set});
  };
  close(reading.first_layer_tiles, 0, 0);
  close(reading.tiles, 0, 0);
  for (std::int64_t chunk = 0; chunk < table.num_chunks(); ++chunk) {
    const std::int64_t trigger = table.end(chunk) - 1;
    const CandidateRange range = candidate_range(table, trigger, options);
    std::int64_t room = budget - table.length(0) - (trigger + 1 - range.tail_begin);
    std::int64_t tail = range.tail_begin;
    std::int64_t oldest = range.end;
    while (oldest > 1 && room >= table.length(oldest - 1)) {
      --oldest;
      room -= table.length(oldest);
      tail = table.begin(oldest);
    }
    if (oldest <= 1) continue;  // everything fits
    reading.tail_begins.push_back(tail);
    const auto set = static_cast<std::int64_t>(reading.tail_begins.size()) - 1;
    close(reading.tiles, trigger, set);
    close(reading.first_layer_tiles, trigger + 1, set);
  }
  return reading;
}

/// Replaces the inputs and pooled inputs of `rows` by those of a reading of the recent, on the CPU.
///
/// A question then has not seen what it asks for, as is so in use when a set is chosen for it. With
/// the inputs of the dense reading adapters learn to look for an answer that is already there.
///
/// \tparam KvType       of the cached keys and values
/// \param rows          of `collect_teacher_rows` for `ids`
/// \param maybe_adapter finds the boundaries; null: the sentence rules do
/// \param token_bytes   (std::int32_t id) -> std::string_view
/// \param budget        as of `plan_recent_reading`
/// Errors: those of `Session::create` and `Session::prefill`
/// Cost: a chunk reading within the budget
template <typename KvType, FrozenBackbone Backbone, typename TokenBytes>
Status take_recent_inputs(const Backbone& backbone, std::span<const std::int32_t> ids,
                          const std::shared_ptr<const ChunkAdapter>& maybe_adapter,
                          const TokenBytes& token_bytes, const ChunkOptions& options,
                          std::int64_t budget, KeyPooling pooling, ThreadPool& pool,
                          TeacherRows& rows) {
  detail::TeacherInputs inputs(rows, pooling);
  const detail::InputShowingBackbone<Backbone> decoder(
      backbone, [&](std::int64_t layer, MatrixView<const float> normed) {
        const bool is_taught = !rows.layers[static_cast<std::size_t>(layer)].mass.empty();
        if (is_taught) inputs.take(layer, normed);
      });
  SessionOptions recent;
  recent.chunk = options;
  recent.chunk.budget = {};
  recent.chunk.budget.tokens = budget;
  using RecentSession = Session<detail::InputShowingBackbone<Backbone>, RecentScorer, KvType>;
  CHUNKLLM_ASSIGN_OR_RETURN(
      RecentSession session,
      RecentSession::create(
          decoder, std::make_shared<const RecentScorer>(), maybe_adapter,
          [&](std::int32_t id) { return std::string_view(token_bytes(id)); }, recent, pool));
  session.reserve(static_cast<std::int64_t>(ids.size()));
  return session.prefill(ids, {});
}

}  // namespace chunkllm
