// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/attention_args.hpp"
#include "chunkllm/chunk/attention_item.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

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
  return workers + num_kv_heads * splits * detail::AttentionPartial::num_floats(lanes, head_dim);
}

namespace detail {

inline Status check_workspace(std::span<const float> workspace, std::int64_t needed) {
  if (static_cast<std::int64_t>(workspace.size()) >= needed) return {};
  return invalid_argument("chunk_attention: workspace of " + std::to_string(workspace.size()) +
                          " floats, needed " + std::to_string(needed));
}

}  // namespace detail

/// softmax(q k^T * scale) v over each row's attended set, causal inside the tail.
///
/// Serves decode (one row) and prefill (a tile for each stretch between refreshes) alike; dense
/// attention is the set {spans = {}, tail_begin = 0}. A row's result depends on its own query,
/// its set and the cache alone: the rows beside it, the tiling, the number of threads and the
/// split of the work do not change a bit.
///
/// \param workspace  `chunk_attention_workspace_floats`, 64-byte alignment helps; no allocation
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
  const std::int64_t scratch_floats = detail::attention_scratch_floats(args.head_dim);
  const std::int64_t rows_per_item = detail::kMaxQueries / (args.num_heads / args.num_kv_heads);
  const auto scratch_of = [&](int thread, std::int64_t lanes) {
    return detail::AttentionScratch(workspace.data() + thread * scratch_floats, lanes,
                                    args.head_dim);
  };
  const std::int64_t workers = scratch_floats * pool.num_threads();

  if (args.q.rows == 1) {  // decode: too few items for the threads, so the splits are the items
    const AttendedSet& set = *args.tiles[0].set;
    const auto item = [&](std::int64_t head) {
      return detail::AttentionItem<T>(args, set, /*first_row=*/0, /*num_rows=*/1, head);
    };
    const std::int64_t lanes = item(0).lanes();
    const std::int64_t splits = item(0).num_splits();
    const std::int64_t partial_floats = detail::AttentionPartial::num_floats(lanes, args.head_dim);
    CHUNKLLM_RETURN_IF_ERROR(
        detail::check_workspace(workspace, workers + args.num_kv_heads * splits * partial_floats));
    float* partials = workspace.data() + workers;
    pool.parallel_for(args.num_kv_heads * splits, [&](std::int64_t i, int thread) {
      const detail::AttentionItem<T> work = item(i / splits);
      const detail::AttentionScratch scratch = scratch_of(thread, lanes);
      work.pack_queries(scratch.queries);
      work.reduce_split(i % splits, scratch.queries, scratch.keys, scratch.values, scratch.scores,
                        detail::AttentionPartial(partials + i * partial_floats, lanes));
    });
    for (std::int64_t head = 0; head < args.num_kv_heads; ++head) {
      const detail::AttentionScratch scratch = scratch_of(/*thread=*/0, lanes);
      scratch.total.clear(lanes, args.head_dim);
      for (std::int64_t split = 0; split < splits; ++split) {
        float* partial = partials + (head * splits + split) * partial_floats;
        detail::merge_partial(scratch.total, detail::AttentionPartial(partial, lanes), lanes,
                              args.head_dim);
      }
      item(head).write_outputs(scratch.total);
    }
    return {};
  }

  CHUNKLLM_RETURN_IF_ERROR(detail::check_workspace(workspace, workers));
  std::int64_t num_items = 0;
  for (const AttentionTile& tile : args.tiles) {
    num_items += (tile.num_rows + rows_per_item - 1) / rows_per_item;
  }
  pool.parallel_for(num_items * args.num_kv_heads, [&](std::int64_t i, int thread) {
    // Last items first: with a dense set they see the most keys.
    std::int64_t index = num_items - 1 - i / args.num_kv_heads;
    const AttentionTile* tile = args.tiles.data();
    std::int64_t items = (tile->num_rows + rows_per_item - 1) / rows_per_item;
    while (index >= items) {
      index -= items;
      ++tile;
      items = (tile->num_rows + rows_per_item - 1) / rows_per_item;
    }
    const std::int64_t first = index * rows_per_item;
    const detail::AttentionItem<T> work(args, *tile->set, tile->first_row + first,
                                        std::min(rows_per_item, tile->num_rows - first),
                                        i % args.num_kv_heads);
    const detail::AttentionScratch scratch = scratch_of(thread, work.lanes());
    work.pack_queries(scratch.queries);
    scratch.total.clear(work.lanes(), args.head_dim);
    for (std::int64_t split = 0; split < work.num_splits(); ++split) {
      work.reduce_split(split, scratch.queries, scratch.keys, scratch.values, scratch.scores,
                        scratch.partial);
      detail::merge_partial(scratch.total, scratch.partial, work.lanes(), args.head_dim);
    }
    work.write_outputs(scratch.total);
  });
  return {};
}

}  // namespace chunkllm
