// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/attention_args.hpp"
#include "chunkllm/chunk/attention_few_queries.hpp"
#include "chunkllm/chunk/attention_keys.hpp"
#include "chunkllm/chunk/attention_many_queries.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

namespace detail {

inline constexpr std::int64_t kLineFloats = 16;

/// Memory of one worker, whatever item it takes: whole cache lines.
inline std::int64_t attention_scratch_floats(std::int64_t head_dim) {
  // The type of keys makes no difference here.
  return round_up(std::max(ManyQueriesItem<float>::Scratch::num_floats(head_dim),
                           FewQueriesItem<float>::Scratch::num_floats(head_dim)),
                  kLineFloats);
}

/// `needed` floats of a workspace from its first cache line on: vectors that straddle two lines
/// cost twice.
inline Result<float*> take_workspace(std::span<float> workspace, std::int64_t needed) {
  if (static_cast<std::int64_t>(workspace.size()) < needed + kLineFloats) {
    return invalid_argument("chunk_attention: workspace of " + std::to_string(workspace.size()) +
                            " floats, needed " + std::to_string(needed + kLineFloats));
  }
  constexpr std::uintptr_t kLineBytes = kLineFloats * sizeof(float);
  const std::uintptr_t past_line = reinterpret_cast<std::uintptr_t>(workspace.data()) % kLineBytes;
  return workspace.data() + (past_line == 0 ? 0 : (kLineBytes - past_line) / sizeof(float));
}

/// A single token: too few items for the threads, so the splits of its keys are the items.
template <typename Item, typename T>
Status attend_token(const ChunkAttentionArgs<T>& args, std::span<float> workspace,
                    ThreadPool& pool) {
  const auto item = [&](std::int64_t head) {
    return Item(args, *args.tiles[0].set, /*first_row=*/0, /*num_rows=*/1, head);
  };
  const std::int64_t scratch_floats = attention_scratch_floats(args.head_dim);
  const std::int64_t workers = scratch_floats * pool.num_threads();
  const std::int64_t splits = item(0).num_splits();
  const std::int64_t partial_floats = item(0).partial_floats();
  CHUNKLLM_ASSIGN_OR_RETURN(
      float* memory,
      take_workspace(workspace, workers + args.num_kv_heads * splits * partial_floats));
  const auto scratch_of = [&](int thread) {
    return typename Item::Scratch(memory + thread * scratch_floats, args.head_dim);
  };
  float* partials = memory + workers;
  pool.parallel_for(args.num_kv_heads * splits, [&](std::int64_t i, int thread) {
    const Item work = item(i / splits);
    const auto scratch = scratch_of(thread);
    work.pack_queries(scratch.queries);
    work.reduce_split(i % splits, scratch, partials + i * partial_floats);
  });
  float* total = scratch_of(/*thread=*/0).total;
  for (std::int64_t head = 0; head < args.num_kv_heads; ++head) {
    const Item work = item(head);
    work.clear(total);
    for (std::int64_t split = 0; split < splits; ++split) {
      work.merge(total, partials + (head * splits + split) * partial_floats);
    }
    work.write_outputs(total);
  }
  return {};
}

/// Some rows of a tile in one KV head, from the first key to the outputs.
template <typename Item, typename T>
void attend_rows(const ChunkAttentionArgs<T>& args, const AttentionTile& tile, std::int64_t first,
                 std::int64_t num_rows, std::int64_t kv_head, float* memory) {
  const Item work(args, *tile.set, tile.first_row + first, num_rows, kv_head);
  const typename Item::Scratch scratch(memory, args.head_dim);
  work.pack_queries(scratch.queries);
  work.clear(scratch.total);
  for (std::int64_t split = 0; split < work.num_splits(); ++split) {
    work.reduce_split(split, scratch, scratch.partial);
    work.merge(scratch.total, scratch.partial);
  }
  work.write_outputs(scratch.total);
}

}  // namespace detail

/// Workspace of `chunk_attention`, in floats.
///
/// \param max_attended  most tokens that any row attends
inline std::int64_t chunk_attention_workspace_floats(std::int64_t num_heads,
                                                     std::int64_t num_kv_heads,
                                                     std::int64_t head_dim,
                                                     std::int64_t max_attended, int num_threads) {
  const std::int64_t workers = detail::attention_scratch_floats(head_dim) * num_threads;
  // A single token's splits run in parallel; each leaves one partial result.
  const std::int64_t lanes = detail::round_up(num_heads / num_kv_heads, detail::kLanePanel);
  const std::int64_t splits = (max_attended + detail::kKeySplit - 1) / detail::kKeySplit;
  return detail::kLineFloats + workers +
         num_kv_heads * splits * detail::AttentionPartial::num_floats(lanes, head_dim);
}

/// softmax(q k^T * scale) v over each row's attended set, causal inside the tail.
///
/// Serves decode (one row) and prefill (a tile for each stretch between refreshes) alike; dense
/// attention is the set {spans = {}, tail_begin = 0}. A row's result depends on its own query,
/// its set and the cache alone: the rows beside it, the tiling, the number of threads and the
/// split of the work do not change a bit.
///
/// \param workspace  `chunk_attention_workspace_floats` of any alignment; no allocation
/// Numerics: f32 throughout, online softmax; NaN in a query, key or value reaches the output.
///        Hidden keys weigh an exact 0, so a value that is not finite also spoils earlier rows of
///        its tile: bit-equality holds for finite caches.
/// Cost:  4 * num_heads * head_dim flops for each attended (row, key); keys and values of a tile
///        are expanded once per KV head and 128 query vectors
/// Errors: those of `validate(args)`; kInvalidArgument if the workspace is too small
/// Source: online softmax, M. Milakov and N. Gimelshein, 2018; split keys as in FlashDecoding, 2023
template <typename T>
Status chunk_attention(const ChunkAttentionArgs<T>& args, std::span<float> workspace,
                       ThreadPool& pool) {
  CHUNKLLM_RETURN_IF_ERROR(validate(args));
  if (args.q.rows == 0) return {};
  const std::int64_t group = args.num_heads / args.num_kv_heads;
  if (args.q.rows == 1) {
    if (group <= detail::kFewQueries) {
      return detail::attend_token<detail::FewQueriesItem<T>>(args, workspace, pool);
    }
    return detail::attend_token<detail::ManyQueriesItem<T>>(args, workspace, pool);
  }

  const std::int64_t scratch_floats = detail::attention_scratch_floats(args.head_dim);
  CHUNKLLM_ASSIGN_OR_RETURN(float* memory,
                            detail::take_workspace(workspace, scratch_floats * pool.num_threads()));
  const std::int64_t rows_per_item = detail::kMaxQueries / group;
  const auto items_of = [&](const AttentionTile& tile) {
    return (tile.num_rows + rows_per_item - 1) / rows_per_item;
  };
  std::int64_t num_items = 0;
  for (const AttentionTile& tile : args.tiles) num_items += items_of(tile);
  pool.parallel_for(num_items * args.num_kv_heads, [&](std::int64_t i, int thread) {
    // Last items first: with a dense set they see the most keys.
    std::int64_t index = num_items - 1 - i / args.num_kv_heads;
    const AttentionTile* tile = args.tiles.data();
    for (; index >= items_of(*tile); ++tile) index -= items_of(*tile);
    const std::int64_t first = index * rows_per_item;
    const std::int64_t num_rows = std::min(rows_per_item, tile->num_rows - first);
    float* scratch = memory + thread * scratch_floats;
    const std::int64_t kv_head = i % args.num_kv_heads;
    if (num_rows * group <= detail::kFewQueries) {
      detail::attend_rows<detail::FewQueriesItem<T>>(args, *tile, first, num_rows, kv_head,
                                                     scratch);
    } else {
      detail::attend_rows<detail::ManyQueriesItem<T>>(args, *tile, first, num_rows, kv_head,
                                                      scratch);
    }
  });
  return {};
}

}  // namespace chunkllm
