// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/core/host_device.hpp"

/// Views of device memory that the kernels read and write. The caller owns all of it; pointers are
/// device pointers, strides count elements, token positions are int32.
namespace chunkllm::cuda {

/// The closed chunks of a batch of sequences: chunk c of sequence s is
/// [c == 0 ? 0 : ends[s][c - 1], ends[s][c]).
struct DeviceChunkTable {
  std::int32_t* ends = nullptr;        ///< [num_seqs, max_chunks], ascending
  std::int32_t* num_chunks = nullptr;  ///< [num_seqs]
  std::int32_t num_seqs = 0;
  std::int32_t max_chunks = 0;  ///< room a sequence

  CHUNKLLM_HD std::int32_t* ends_of(std::int32_t seq) const {
    return ends + static_cast<std::int64_t>(seq) * max_chunks;
  }
};

/// Triggers whose sets are chosen in one launch. In decode there is one a sequence; in prefill a
/// sequence has one for each boundary of the block, and each sees the chunks closed by then alone.
struct DeviceTriggers {
  const std::int32_t* tokens = nullptr;      ///< [count] the trigger's position; < 0: no refresh
  const std::int32_t* maybe_seqs = nullptr;  ///< [count] row of the chunk table; null: i is of
                                             ///< sequence i
  std::int32_t count = 0;

  CHUNKLLM_HD std::int32_t seq(std::int32_t i) const {
    return maybe_seqs == nullptr ? i : maybe_seqs[i];
  }
};

/// What tokens attend, one set a row: listed past tokens, and all from `tail_begin` on.
///
/// The list is the plan of attention and gather: tokens rather than chunks or pages, so that tiles
/// are full whatever the lengths of chunks and wherever pages end, and a token's rank (its in-cache
/// position) is its index. It stands still between refreshes, while the tail grows.
struct DeviceAttendedSets {
  std::int32_t* span_tokens = nullptr;      ///< [num_sets, span_capacity], ascending, < tail_begin
  std::int32_t* num_span_tokens = nullptr;  ///< [num_sets]
  std::int32_t* tail_begin = nullptr;       ///< [num_sets]
  std::int32_t num_sets = 0;
  std::int32_t span_capacity = 0;

  CHUNKLLM_HD std::int32_t* span_tokens_of(std::int32_t set) const {
    return span_tokens + static_cast<std::int64_t>(set) * span_capacity;
  }
  /// Tokens that the token at `position` attends, itself included.
  CHUNKLLM_HD std::int32_t num_attended(std::int32_t set, std::int32_t position) const {
    return num_span_tokens[set] + position + 1 - tail_begin[set];
  }
};

/// Keys and values of one layer for a batch of sequences, contiguous or paged. Both lie alike: one
/// page table and one set of strides serve the two.
///
/// Strides are taken as they are given. 0 does not stand for a dense array here, as it does
/// elsewhere: a view knows neither its heads nor its room. Launchers refuse a stride of 0 that is
/// stepped over.
///
/// \tparam T  __half, __nv_bfloat16 or __nv_fp8_e4m3. Rows of head_dim values must start at
///            multiples of 16 bytes.
template <typename T>
struct DeviceKvView {
  T* keys = nullptr;
  T* values = nullptr;
  std::int64_t seq_stride = 0;    ///< contiguous: from one sequence to the next
  std::int64_t token_stride = 0;  ///< from one token to the next, in its page where there are pages
  std::int64_t head_stride = 0;   ///< from one KV head to the next
  /// [num_seqs, max_pages] entry t / page_size names the page of the pool that holds token t. What
  /// stands behind the page of a sequence's last token pads the row. Null: contiguous.
  const std::int32_t* page_table = nullptr;
  std::int32_t max_pages = 0;    ///< entries of a row of the page table; paged: at least 1
  std::int32_t page_size = 1;    ///< tokens a page
  std::int64_t page_stride = 0;  ///< from one page of the pool to the next; not read if contiguous
  Rotation rotation = Rotation::kAtTokenPosition;
  float key_scale = 1.0F;    ///< stored key times this is the key; 1 but for fp8
  float value_scale = 1.0F;  ///< likewise

  /// Where token `token` of head 0 begins.
  CHUNKLLM_HD std::int64_t token_offset(std::int32_t seq, std::int32_t token) const {
    if (page_table == nullptr) {
      return seq * seq_stride + token * token_stride;
    }
    const std::int32_t page = token / page_size;
    return page_table[static_cast<std::int64_t>(seq) * max_pages + page] * page_stride +
           (token - page * page_size) * token_stride;
  }
};

/// The same cache, for reading.
template <typename T>
DeviceKvView<const T> as_const(const DeviceKvView<T>& view) {
  return {view.keys,        view.values,     view.seq_stride, view.token_stride,
          view.head_stride, view.page_table, view.max_pages,  view.page_size,
          view.page_stride, view.rotation,   view.key_scale,  view.value_scale};
}

/// cos and sin of positions 0, 1, ..., as `RopeTable` lays them out: head_dim / 2 cosines, then
/// head_dim / 2 sines a row.
struct DeviceRope {
  const float* values = nullptr;  ///< [count, head_dim]
  std::int32_t count = 0;
};

}  // namespace chunkllm::cuda
