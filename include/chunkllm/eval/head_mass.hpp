// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm {

/// Whose attention is measured for a trigger.
enum class MassRows : std::uint8_t {
  kNext,  ///< the tokens behind it, up to the next trigger: what a set chosen there will serve
  kSame   ///< the trigger token itself
};

namespace detail {

/// Adds the attention mass of some rows of one head to chunks [0, num_chunks).
///
/// Lanes are rows. A chunk's mass is summed key by key in f32 lanes, then over lanes in a fixed
/// order, so it depends on nothing but the rows handed in.
template <typename T>
class ChunkMassKernel {
 public:
  ChunkMassKernel(const KvView<T>& kv, std::int64_t head_dim, float scale,
                  std::span<const std::int64_t> chunk_ends)
      : kv_(kv),
        head_dim_(head_dim),
        scale_(scale),
        chunk_ends_(chunk_ends),
        queries_(static_cast<std::size_t>(head_dim * kLanes)),
        keys_(static_cast<std::size_t>(head_dim * kKeys)),
        scores_(static_cast<std::size_t>(kLanes * kKeys)) {}

  /// \param q     [rows, num_heads * head_dim], rotated; `head` picks the columns
  /// \param lse   [rows, num_heads]
  /// \param mass  [num_chunks]; every chunk must lie before the first row's token, or end with it
  void add(MatrixView<const float> q, const float* lse, std::int64_t num_heads, std::int64_t head,
           std::int64_t kv_head, std::int64_t num_chunks, float* mass) {
    for (std::int64_t first = 0; first < q.rows; first += kLanes) {
      const std::int64_t rows = std::min(kLanes, q.rows - first);
      pack(q.middle_rows(first, rows), head);
      for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        lse_[lane] = lane < rows ? lse[(first + lane) * num_heads + head]
                                 : std::numeric_limits<float>::infinity();
      }
      add_lanes(rows, kv_head, num_chunks, mass);
    }
  }

 private:
  static constexpr std::int64_t kLanes = kPanelCols;
  static constexpr std::int64_t kKeys = 64;

  void pack(MatrixView<const float> q, std::int64_t head) {
    std::fill(queries_.begin(), queries_.end(), 0.0F);
    for (std::int64_t r = 0; r < q.rows; ++r) {
      const float* query = q.row(r) + head * head_dim_;
      for (std::int64_t d = 0; d < head_dim_; ++d) {
        queries_[static_cast<std::size_t>(d * kLanes + r)] = query[d] * scale_;
      }
    }
  }

  void add_lanes(std::int64_t rows, std::int64_t kv_head, std::int64_t num_chunks, float* mass) {
    const std::int64_t end = chunk_ends_[static_cast<std::size_t>(num_chunks - 1)];
    const simd::F32x16 lse[2] = {simd::load(lse_), simd::load(lse_ + simd::kLanes)};
    const int halves = rows > simd::kLanes ? 2 : 1;
    simd::F32x16 sum[2] = {simd::zero(), simd::zero()};
    std::int64_t chunk = 0;
    for (std::int64_t first = 0; first < end; first += kKeys) {
      const std::int64_t count = std::min(kKeys, end - first);
      for (std::int64_t k = 0; k < count; ++k) {
        const T* key = kv_.keys + kv_.offset(first + k, kv_head);
        for (std::int64_t d = 0; d < head_dim_; ++d) {
          keys_[static_cast<std::size_t>(k * head_dim_ + d)] = to_f32(key[d]);
        }
      }
      multiply_panel(keys_.data(), head_dim_, /*a_col=*/1, queries_.data(), kLanes, scores_.data(),
                     kLanes, count, head_dim_, /*accumulate=*/false);
      for (std::int64_t k = 0; k < count; ++k) {
        for (int half = 0; half < halves; ++half) {
          const float* scores = scores_.data() + k * kLanes + half * simd::kLanes;
          sum[half] = sum[half] + simd::exp(simd::load(scores) - lse[half]);
        }
        if (first + k + 1 != chunk_ends_[static_cast<std::size_t>(chunk)]) continue;
        mass[chunk++] += simd::horizontal_sum(sum[0]) + simd::horizontal_sum(sum[1]);
        sum[0] = sum[1] = simd::zero();
      }
    }
  }

  const KvView<T>& kv_;
  std::int64_t head_dim_;
  float scale_;
  std::span<const std::int64_t> chunk_ends_;
  std::vector<float> queries_;  // [head_dim][lanes]
  std::vector<float> keys_;     // [keys][head_dim]
  std::vector<float> scores_;   // [keys][lanes]
  float lse_[kLanes] = {};
};

/// Errors: kInvalidArgument where `values` is not strictly ascending or starts below `lowest`.
inline Status check_ascending(const std::string& name, std::span<const std::int64_t> values,
                              std::int64_t lowest) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t bound = i == 0 ? lowest : values[i - 1] + 1;
    if (values[i] < bound) {
      return invalid_argument(name + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
                              ", expected at least " + std::to_string(bound));
    }
  }
  return {};
}

}  // namespace detail

/// The attention mass that a trigger's rows give each chunk in one layer, head by head.
struct HeadMass {
  std::int64_t layer = 0;
  std::size_t trigger = 0;      ///< index
  std::int64_t num_rows = 0;    ///< summed: at least 1
  std::int64_t num_chunks = 0;  ///< closed at the trigger
  std::span<const float> sums;  ///< [num_heads][num_chunks]
};

/// Exact attention mass of every closed chunk at every trigger in each head, from a dense pass:
///
///   sums[h,c] = sum over the trigger's rows i of sum_{t in chunk c} exp(scale q_(i,h) . k_t -
///   lse_(i,h))
///
/// Streaming: hand `observe` to `Session::observe_attention` of a session that attends everything
/// at original positions. Nothing of size tokens x tokens is held. Layers with a sliding window
/// are left out: they take no selection.
///
/// Results do not depend on the number of threads; on the block length only by the rounding of
/// sums. Cost: 2 num_heads head_dim flops and one exponential for a pair of row and key.
class HeadMassCollector {
 public:
  /// \param chunk_ends  exclusive ends of the closed chunks, ascending, all above 0
  /// \param triggers    token positions, ascending
  /// Errors: kInvalidArgument where a list is not strictly ascending or starts too low.
  static Result<HeadMassCollector> create(const BackboneConfig& config,
                                          std::vector<std::int64_t> chunk_ends,
                                          std::vector<std::int64_t> triggers, MassRows rows,
                                          ThreadPool& pool) {
    CHUNKLLM_RETURN_IF_ERROR(detail::check_ascending("chunk_ends", chunk_ends, 1));
    CHUNKLLM_RETURN_IF_ERROR(detail::check_ascending("triggers", triggers, 0));
    HeadMassCollector collector(config, rows, pool);
    collector.chunk_ends_ = std::move(chunk_ends);
    collector.triggers_ = std::move(triggers);
    return collector;
  }

  [[nodiscard]] const std::vector<std::int64_t>& triggers() const { return triggers_; }

  /// Takes a block of a layer. Blocks of a layer come in order, each token once.
  ///
  /// \param q     [rows, num_heads * head_dim], rotated, as attention got them
  /// \param kv    rotated at token positions; holds all tokens up to the last row
  /// \param lse   [rows, num_heads] log of the softmax's denominator
  /// \param take  (const HeadMass&), called for each trigger that the block completes, in order;
  ///              the sums are valid until it returns
  template <typename T, typename Take>
  void observe(std::int64_t layer, std::int64_t first_token, MatrixView<const float> q,
               const KvView<T>& kv, std::span<const float> lse, const Take& take) {
    if (!config_.sliding_window.empty() &&
        config_.sliding_window[static_cast<std::size_t>(layer)] > 0) {
      return;
    }
    assert(kv.rotation == Rotation::kAtTokenPosition);
    std::vector<Piece> pieces = cut_into_pieces(layer, first_token, q.rows);
    const std::int64_t heads = config_.num_heads;
    pool_->parallel_for(
        static_cast<std::int64_t>(pieces.size()) * heads, [&](std::int64_t task, int) {
          Piece& piece = pieces[static_cast<std::size_t>(task / heads)];
          if (piece.num_chunks == 0) return;
          const std::int64_t head = task % heads;
          detail::ChunkMassKernel<T> kernel(kv, config_.head_dim, scale_, chunk_ends_);
          kernel.add(q.middle_rows(piece.first_row, piece.num_rows),
                     lse.data() + piece.first_row * heads, heads, head,
                     head / (heads / config_.num_kv_heads), piece.num_chunks,
                     piece.mass.data() + head * piece.num_chunks);
        });
    for (Piece& piece : pieces) {
      if (piece.is_complete) {
        take(mass_of(layer, piece));
      } else {
        open_[static_cast<std::size_t>(layer)] = std::move(piece);
      }
    }
  }

  /// Gives, layer by layer, the last trigger whose rows were seen, where the text's end cut them
  /// off. To be called once, behind the last block.
  template <typename Take>
  void finish(const Take& take) {
    for (std::size_t layer = 0; layer < open_.size(); ++layer) {
      if (open_[layer].seen_rows == 0) continue;
      take(mass_of(static_cast<std::int64_t>(layer), open_[layer]));
      open_[layer] = {};
    }
  }

 private:
  /// Consecutive rows of one trigger in one layer.
  struct Piece {
    std::size_t trigger = 0;  // index
    std::int64_t first_row = 0;
    std::int64_t num_rows = 0;
    std::int64_t seen_rows = 0;  // of the trigger, these included
    std::int64_t num_chunks = 0;
    bool is_complete = false;
    std::vector<float> mass;  // [num_heads][num_chunks], summed over the rows seen
  };

  HeadMassCollector(const BackboneConfig& config, MassRows rows, ThreadPool& pool)
      : config_(config),
        scale_(softmax_scale(config)),
        rows_(rows),
        pool_(&pool),
        open_(static_cast<std::size_t>(config.num_layers)) {}

  static HeadMass mass_of(std::int64_t layer, const Piece& piece) {
    return {layer, piece.trigger, piece.seen_rows, piece.num_chunks, piece.mass};
  }

  /// The rows of each trigger within a block, with what earlier blocks gathered for it.
  std::vector<Piece> cut_into_pieces(std::int64_t layer, std::int64_t first_token,
                                     std::int64_t num_rows) {
    std::vector<Piece> pieces;
    const std::int64_t end_token = first_token + num_rows;
    // The last trigger in front of the block: its rows may reach into it.
    auto trigger = static_cast<std::size_t>(
        std::lower_bound(triggers_.begin(), triggers_.end(), first_token) - triggers_.begin());
    if (trigger > 0) --trigger;
    for (; trigger < triggers_.size(); ++trigger) {
      const std::int64_t token = triggers_[trigger];
      const bool same = rows_ == MassRows::kSame;
      const std::int64_t rows_begin = same ? token : token + 1;
      const std::int64_t rows_end = same                             ? token + 1
                                    : trigger + 1 < triggers_.size() ? triggers_[trigger + 1] + 1
                                                                     : kNoEnd;
      if (rows_begin >= end_token) break;
      const std::int64_t begin = std::max(rows_begin, first_token);
      const std::int64_t end = std::min(rows_end, end_token);
      if (begin >= end) continue;
      Piece piece;
      Piece& open = open_[static_cast<std::size_t>(layer)];
      if (open.seen_rows > 0 && open.trigger == trigger) {
        piece = std::exchange(open, Piece{});
      } else {
        piece.trigger = trigger;
        piece.num_chunks = std::upper_bound(chunk_ends_.begin(), chunk_ends_.end(), token + 1) -
                           chunk_ends_.begin();
        piece.mass.resize(static_cast<std::size_t>(config_.num_heads * piece.num_chunks));
      }
      piece.first_row = begin - first_token;
      piece.num_rows = end - begin;
      piece.seen_rows += piece.num_rows;
      piece.is_complete = end == rows_end;
      pieces.push_back(std::move(piece));
    }
    return pieces;
  }

  static constexpr std::int64_t kNoEnd = std::numeric_limits<std::int64_t>::max();

  BackboneConfig config_;
  float scale_;
  MassRows rows_;
  ThreadPool* pool_;
  std::vector<std::int64_t> chunk_ends_;
  std::vector<std::int64_t> triggers_;
  std::vector<Piece> open_;  // [layer] a trigger whose rows go on in the next block
};

}  // namespace chunkllm
