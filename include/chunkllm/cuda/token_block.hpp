// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"

namespace chunkllm::cuda {

/// Consecutive tokens of one sequence that go through all layers together.
struct TokenBlockPlan {
  /// What the rows attend.
  enum class Sets : std::uint8_t {
    kEverything,  ///< all of the past; no set is chosen
    kLayerLocal,  ///< the layer's own, chosen anew at each trigger
    kStanding,    ///< the layer's own as they stand; none is chosen in the block
    kLook         ///< those of a second look: `PrefillBlock::look_set`
  };

  std::span<const std::int32_t> tokens;
  std::int32_t seq = 0;
  std::int32_t first_token = 0;  ///< position of tokens[0]
  std::int32_t first_chunk = 0;  ///< chunks that end before or at first_token
  /// Ends of the chunks that end among the tokens; written to the chunk table, but not by a second
  /// look, which finds them there.
  std::span<const std::int32_t> new_ends;
  /// Positions among the tokens at which layers choose their own sets; ascending; kLayerLocal.
  std::span<const std::int32_t> triggers;
  Sets sets = Sets::kEverything;
  bool shares_look_set = false;  ///< kLook: all layers look with set 0

  [[nodiscard]] std::int32_t num_rows() const { return static_cast<std::int32_t>(tokens.size()); }
  [[nodiscard]] std::int32_t num_new_chunks() const {
    return static_cast<std::int32_t>(new_ends.size());
  }
};

/// Tiles of a block's rows in one kind of layers.
struct TileList {
  std::vector<kernels::PrefillTile> tiles;
  std::int32_t most_rows = 0;

  [[nodiscard]] std::int32_t count() const { return static_cast<std::int32_t>(tiles.size()); }
};

/// Cuts a block's rows where sets change, `delay` tokens behind the triggers. Set 0 is the one that
/// stood in front of the block; trigger i chose set i + 1.
inline TileList cut_into_tiles(const TokenBlockPlan& plan, std::int32_t delay) {
  TileList list;
  std::int32_t begin = 0;
  std::int32_t set = 0;
  const auto close = [&](std::int32_t end) {
    if (end <= begin) return;
    list.tiles.push_back({begin, end - begin, set});
    list.most_rows = std::max(list.most_rows, end - begin);
    begin = end;
  };
  if (plan.sets == TokenBlockPlan::Sets::kLayerLocal) {
    for (const std::int32_t trigger : plan.triggers) {
      close(std::min(trigger - plan.first_token + delay, plan.num_rows()));
      ++set;
    }
  }
  close(plan.num_rows());
  return list;
}

/// What a block's kernels read that the host knows: tokens, the tokens whose queries are wanted,
/// tiles. Staged in pinned memory and copied without waiting.
class TokenBlockInputs {
 public:
  TokenBlockInputs() = default;

  /// \param max_rows   of a block   \param max_tokens  of a sequence
  /// \param max_triggers  of a block   \param max_ends  chunks that can end in a block
  static Result<TokenBlockInputs> create(std::int32_t max_rows, std::int32_t max_tokens,
                                         std::int32_t max_triggers, std::int32_t max_ends,
                                         cudaStream_t stream) {
    TokenBlockInputs inputs;
    inputs.rows_ = static_cast<std::size_t>(max_rows);
    inputs.queries_ = static_cast<std::size_t>(max_triggers) + 1;
    inputs.tiles_ = 2 * (inputs.queries_ + 1) + 1;
    const std::size_t size = inputs.round_begin() + kRoundWords;
    const std::size_t staged = size + static_cast<std::size_t>(max_ends) + 2;
    CHUNKLLM_ASSIGN_OR_RETURN(inputs.device_, DeviceBuffer<std::int32_t>::create(size));
    CHUNKLLM_ASSIGN_OR_RETURN(inputs.host_, PinnedBuffer<std::int32_t>::create(staged));
    CHUNKLLM_ASSIGN_OR_RETURN(inputs.copied_, Event::create());
    std::vector<std::int32_t> positions(static_cast<std::size_t>(max_tokens));
    for (std::size_t i = 0; i < positions.size(); ++i) {
      positions[i] = static_cast<std::int32_t>(i);
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        inputs.positions_,
        DeviceBuffer<std::int32_t>::from(std::span<const std::int32_t>(positions), stream));
    return Result<TokenBlockInputs>(std::move(inputs));
  }

  [[nodiscard]] std::size_t device_bytes() const { return device_.bytes() + positions_.bytes(); }
  /// [rows]
  [[nodiscard]] const std::int32_t* tokens() const { return device_.data(); }
  /// [rows] positions first_token, first_token + 1, ...
  [[nodiscard]] const std::int32_t* positions(std::int32_t first_token) const {
    return positions_.data() + first_token;
  }
  /// [num_queries()] the triggers, and the last token where it is none.
  [[nodiscard]] const std::int32_t* query_tokens() const { return device_.data() + rows_; }
  [[nodiscard]] std::int32_t num_queries() const { return num_queries_; }
  /// Index of the last token's query.
  [[nodiscard]] std::int32_t last_query() const { return last_query_; }
  /// [num_queries()] the block's sequence.
  [[nodiscard]] const std::int32_t* query_seqs() const { return query_tokens() + queries_; }
  [[nodiscard]] const TileList& first_layer_tiles() const { return first_tiles_; }
  [[nodiscard]] const TileList& other_tiles() const { return other_tiles_; }
  /// On the device: those of the first layer, of the others, and one over all rows.
  [[nodiscard]] const kernels::PrefillTile* device_tiles() const {
    return reinterpret_cast<const kernels::PrefillTile*>(device_.data() + tiles_begin());
  }
  [[nodiscard]] const kernels::PrefillTile* one_tile() const {
    return device_tiles() + first_tiles_.count() + other_tiles_.count();
  }

  /// Of a round over some of the rows: its tile, and the one token whose query is wanted.
  [[nodiscard]] const kernels::PrefillTile* round_tile() const {
    return reinterpret_cast<const kernels::PrefillTile*>(device_.data() + round_begin());
  }
  [[nodiscard]] const std::int32_t* round_query_token() const {
    return device_.data() + round_begin() + kTileWords;
  }
  [[nodiscard]] const std::int32_t* round_query_seq() const { return round_query_token() + 1; }

  /// Copies the tile of a round; the round before must be over.
  Status upload_round(std::int32_t num_rows, cudaStream_t stream) {
    std::int32_t* words = host_.data() + round_begin();
    words[0] = 0;
    words[1] = num_rows;
    words[2] = 0;
    return copy(device_.data() + round_begin(), words, kTileWords, stream);
  }
  /// Copies what a round has found: the token whose query is wanted, and the ends of its chunks.
  ///
  /// \param first_chunk  index of the first of `ends`
  Status upload_found(std::int32_t token, std::int32_t seq, const DeviceChunkTable& table,
                      std::int32_t first_chunk, std::span<const std::int32_t> ends,
                      cudaStream_t stream) {
    std::int32_t* words = host_.data() + round_begin() + kTileWords;
    words[0] = token;
    words[1] = seq;
    CHUNKLLM_RETURN_IF_ERROR(copy(device_.data() + round_begin() + kTileWords, words, 2, stream));
    if (!ends.empty()) {
      CHUNKLLM_RETURN_IF_ERROR(upload_ends(seq, table, first_chunk, ends, stream));
    }
    has_rounds_ = true;
    return copied_.record(stream);
  }

  /// Copies the tokens.
  Status upload_tokens(const TokenBlockPlan& plan, cudaStream_t stream) {
    CHUNKLLM_RETURN_IF_ERROR(copied_.synchronize());
    std::copy(plan.tokens.begin(), plan.tokens.end(), host_.data());
    CHUNKLLM_RETURN_IF_ERROR(copy(device_.data(), host_.data(), plan.tokens.size(), stream));
    return copied_.record(stream);
  }

  /// Copies the rest, and what the batch must know of the block: where its chunks end and how long
  /// the sequence is behind it.
  ///
  /// \param first_layer_delay  tokens behind a trigger from which the first layer attends its set
  /// \param table              null ends: a batch without chunks
  Status upload_plan(const TokenBlockPlan& plan, std::int32_t first_layer_delay,
                     const DeviceChunkTable& table, std::int32_t* num_tokens, cudaStream_t stream) {
    // What this block's rounds have staged may still be on its way; the block before has gone.
    if (has_rounds_) CHUNKLLM_RETURN_IF_ERROR(copied_.synchronize());
    has_rounds_ = false;
    const std::int32_t last = plan.first_token + plan.num_rows() - 1;
    std::int32_t* queries = host_.data() + rows_;
    num_queries_ = 0;
    if (plan.sets == TokenBlockPlan::Sets::kLayerLocal) {
      for (const std::int32_t trigger : plan.triggers) queries[num_queries_++] = trigger;
    }
    if (num_queries_ == 0 || queries[num_queries_ - 1] != last) queries[num_queries_++] = last;
    last_query_ = num_queries_ - 1;
    std::fill_n(queries + queries_, num_queries_, plan.seq);
    first_tiles_ = cut_into_tiles(plan, first_layer_delay);
    other_tiles_ = cut_into_tiles(plan, 0);
    auto* tiles = reinterpret_cast<kernels::PrefillTile*>(host_.data() + tiles_begin());
    tiles = std::copy(first_tiles_.tiles.begin(), first_tiles_.tiles.end(), tiles);
    tiles = std::copy(other_tiles_.tiles.begin(), other_tiles_.tiles.end(), tiles);
    *tiles++ = {0, plan.num_rows(), 0};
    const auto end = static_cast<std::size_t>(reinterpret_cast<std::int32_t*>(tiles) - queries);
    CHUNKLLM_RETURN_IF_ERROR(copy(device_.data() + rows_, queries, end, stream));

    std::int32_t* count = host_.data() + round_begin() + kRoundWords;
    *count = last + 1;
    CHUNKLLM_RETURN_IF_ERROR(copy(num_tokens + plan.seq, count, 1, stream));
    if (table.ends != nullptr && plan.sets != TokenBlockPlan::Sets::kLook) {
      CHUNKLLM_RETURN_IF_ERROR(
          upload_ends(plan.seq, table, plan.first_chunk, plan.new_ends, stream));
    }
    return copied_.record(stream);
  }

 private:
  static constexpr std::size_t kTileWords = sizeof(kernels::PrefillTile) / sizeof(std::int32_t);
  static constexpr std::size_t kRoundWords = kTileWords + 2;

  [[nodiscard]] std::size_t tiles_begin() const { return rows_ + 2 * queries_; }
  [[nodiscard]] std::size_t round_begin() const { return tiles_begin() + tiles_ * kTileWords; }

  Status upload_ends(std::int32_t seq, const DeviceChunkTable& table, std::int32_t first_chunk,
                     std::span<const std::int32_t> ends, cudaStream_t stream) {
    std::int32_t* words = host_.data() + round_begin() + kRoundWords + 1;
    words[0] = first_chunk + static_cast<std::int32_t>(ends.size());
    std::copy(ends.begin(), ends.end(), words + 1);
    CHUNKLLM_RETURN_IF_ERROR(copy(table.num_chunks + seq, words, 1, stream));
    return copy(table.ends_of(seq) + first_chunk, words + 1, ends.size(), stream);
  }

  static Status copy(std::int32_t* to, const std::int32_t* from, std::size_t count,
                     cudaStream_t stream) {
    if (count == 0) return {};
    return cuda_status(
        cudaMemcpyAsync(to, from, count * sizeof(std::int32_t), cudaMemcpyHostToDevice, stream),
        "copy of a block to the device");
  }

  std::size_t rows_ = 0;
  std::size_t queries_ = 0;
  std::size_t tiles_ = 0;
  std::int32_t num_queries_ = 0;
  std::int32_t last_query_ = 0;
  bool has_rounds_ = false;  // of the block in progress
  TileList first_tiles_;
  TileList other_tiles_;
  DeviceBuffer<std::int32_t> device_;     // tokens, query tokens, their sequences, tiles; a round's
  PinnedBuffer<std::int32_t> host_;       // the same, then numbers of tokens and chunks, and ends
  DeviceBuffer<std::int32_t> positions_;  // 0, 1, ...
  Event copied_;                          // behind the last copy out of host_
};

}  // namespace chunkllm::cuda
