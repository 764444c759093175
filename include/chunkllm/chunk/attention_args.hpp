// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/model/rope.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm {

/// Consecutive query rows that attend the same set.
struct AttentionTile {
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;
  const AttendedSet* set = nullptr;  ///< its tail must begin at or before the tile's first token
};

/// One layer's chunk-selective attention; row r is the token at position `first_token + r`.
template <typename T>
struct ChunkAttentionArgs {
  MatrixView<const float> q;             ///< [num_rows, num_heads * head_dim]
  MatrixView<float> out;                 ///< [num_rows, num_heads * head_dim]
  KvView<T> kv;                          ///< holds the rows' own keys and values already
  std::span<const AttentionTile> tiles;  ///< cover the rows once, in order
  std::int64_t first_token = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0F;       ///< on q . k; `softmax_scale(config)`
  std::int64_t window = 0;  ///< newest attended tokens seen, the query's own included; 0: all
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  /// Rotations by 0, 1, ...; needed where a key or query must still be turned. It must reach the
  /// largest difference between a wanted and a stored position: `rope_positions_needed`.
  const RopeTable* rope = nullptr;
  float* maybe_lse = nullptr;  ///< [num_rows, num_heads] log of the softmax's denominator, or null
};

/// Rotations, from 0 on, that `args.rope` must hold; 0 where nothing is turned.
template <typename T>
std::int64_t rope_positions_needed(const ChunkAttentionArgs<T>& args) {
  const bool from_none = args.q_rotation == Rotation::kNone || args.kv.rotation == Rotation::kNone;
  if (args.positions == Positions::kOriginal) {
    return from_none ? args.first_token + args.q.rows : 0;
  }
  const bool from_token = args.q_rotation == Rotation::kAtTokenPosition ||
                          args.kv.rotation == Rotation::kAtTokenPosition;
  std::int64_t most = 0;
  for (const AttentionTile& tile : args.tiles) {
    const std::int64_t last = args.first_token + tile.first_row + tile.num_rows - 1;
    const std::int64_t attended = tile.set->num_attended(last);
    if (from_none) most = std::max(most, attended);
    // A rank never exceeds its token's position, and falls behind it most in the tail.
    if (from_token) most = std::max(most, last + 1 - attended + 1);
  }
  return most;
}

/// Errors: kUnsupported lists the supported head sizes and ratios; kInvalidArgument names what
/// contradicts what. Page tables and strides are the caller's word.
template <typename T>
Status validate(const ChunkAttentionArgs<T>& args) {
  if (args.head_dim <= 0 || args.head_dim > ConfigLimits::kMaxHeadDim || args.head_dim % 2 != 0) {
    return unsupported("head_dim is " + std::to_string(args.head_dim) +
                       ", supported are even sizes up to " +
                       std::to_string(ConfigLimits::kMaxHeadDim));
  }
  if (args.num_kv_heads <= 0 || args.num_heads <= 0 || args.num_heads % args.num_kv_heads != 0 ||
      args.num_heads / args.num_kv_heads > ConfigLimits::kMaxHeadRatio) {
    return unsupported(std::to_string(args.num_heads) + " query heads for " +
                       std::to_string(args.num_kv_heads) +
                       " KV heads, supported are whole ratios from 1 to " +
                       std::to_string(ConfigLimits::kMaxHeadRatio));
  }
  const std::int64_t width = args.num_heads * args.head_dim;
  if (args.q.cols != width || args.out.cols != width || args.out.rows != args.q.rows) {
    return invalid_argument("queries are [" + std::to_string(args.q.rows) + ", " +
                            std::to_string(args.q.cols) + "] and outputs [" +
                            std::to_string(args.out.rows) + ", " + std::to_string(args.out.cols) +
                            "], expected equal rows of " + std::to_string(width));
  }
  if (args.q.rows > 0 && (args.q.data == nullptr || args.out.data == nullptr ||
                          args.kv.keys == nullptr || args.kv.values == nullptr)) {
    return invalid_argument("queries, outputs, keys or values are null");
  }
  if (args.first_token < 0 || args.first_token + args.q.rows > args.kv.num_tokens) {
    return invalid_argument("queries reach from token " + std::to_string(args.first_token) +
                            " to " + std::to_string(args.first_token + args.q.rows) +
                            ", the cache holds " + std::to_string(args.kv.num_tokens));
  }
  if (args.kv.page_table != nullptr && args.kv.page_size < 1) {
    return invalid_argument("page_size is " + std::to_string(args.kv.page_size));
  }
  if (args.kv.num_tokens > (std::int64_t{1} << 24)) {
    return unsupported("more than 2^24 tokens");  // masks compare ranks in f32
  }
  std::int64_t row = 0;
  for (const AttentionTile& tile : args.tiles) {
    if (tile.set == nullptr || tile.first_row != row || tile.num_rows <= 0 ||
        tile.set->tail_begin > args.first_token + row) {
      return invalid_argument("tile at row " + std::to_string(row) +
                              " leaves a gap or its set's tail begins after its first token");
    }
    std::int64_t end = 0;
    for (const TokenSpan& span : tile.set->spans) {
      if (span.begin < end || span.end < span.begin || span.end > tile.set->tail_begin) {
        return invalid_argument("span [" + std::to_string(span.begin) + ", " +
                                std::to_string(span.end) + ") of the tile at row " +
                                std::to_string(row) + " is out of order or reaches into the tail");
      }
      end = span.end;
    }
    if (tile.set->tail_begin < 0) {
      return invalid_argument("a tail begins at token " + std::to_string(tile.set->tail_begin));
    }
    row += tile.num_rows;
  }
  if (row != args.q.rows) {
    return invalid_argument("tiles cover " + std::to_string(row) + " of " +
                            std::to_string(args.q.rows) + " rows");
  }
  const std::int64_t turns = rope_positions_needed(args);
  if (turns > 0 && (args.rope == nullptr || args.rope->first() != 0 ||
                    2 * args.rope->half_dim() != args.head_dim || args.rope->count() < turns)) {
    return invalid_argument("keys or queries must be rotated, but no RoPE table of head_dim " +
                            std::to_string(args.head_dim) + " with positions 0 to " +
                            std::to_string(turns - 1) + " was given");
  }
  return {};
}

}  // namespace chunkllm
