// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cfloat>
#include <cstdint>
#include <type_traits>

#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/score_chunks_kernels.cuh"
#include "chunkllm/kernels/trigger_work.cuh"

/// First pass of `launch_score_chunks` for 16 bit keys, on tensor cores.
namespace chunkllm::kernels {

/// Most triggers of a sequence that share a read of its keys. Part of no result: a column of the
/// product does not depend on its neighbours.
inline constexpr int kTriggerTile = 8;

namespace detail {

static_assert(kStretch == kWarpSize);              // a lane has the length of a chunk
inline constexpr int kColumnPairs = 4;             // queries of a product: 8 columns, 2 each
inline constexpr int kRowTiles = kStretch / 16;    // products of 16 rows a stretch
inline constexpr int kLaneRows = 2 * kRowTiles;    // rows of a stretch that a lane has results of
inline constexpr std::int32_t kStepFeatures = 32;  // features of one load: 8 a lane of a quad

/// Factor that brings values of at most `largest` below 4 in magnitude, and its inverse: powers of
/// two, so that scaling rounds nothing.
struct PowerOfTwo {
  float down = 1.0F;
  float up = 1.0F;
};
__device__ inline PowerOfTwo to_unit_range(float largest) {
  const std::uint32_t exponent = __float_as_uint(largest) >> 23U;  // of a value that is >= 0
  const std::uint32_t kept = min(max(exponent, 1U), 253U);
  return {__uint_as_float((254U - kept) << 23U), __uint_as_float(kept << 23U)};
}

/// Fragments of four queries, in shared memory, which leaves registers to the keys: a lane keeps
/// its own part there and reads no other's. Query p is column 2p, rounded to the keys' type, and
/// column 2p + 1, what rounding took away.
///
/// A product's 16 features may be any, so long as both factors agree. A lane of a quad reads 8
/// neighbouring features of a key, 16 bytes; they are its features of two products, the first four
/// of one, the others of the next:
///
///   product      m                             m + 1
///   k of lane j  2j, 2j+1, 8+2j, 9+2j          2j, 2j+1, 8+2j, 9+2j
///   features     8j, 8j+1, 8j+2, 8j+3          8j+4, 8j+5, 8j+6, 8j+7
template <typename Key, int kSteps>
struct QueryFragments {
  uint4 (&words)[kSteps][kWarpSize];
  PowerOfTwo factor;

  /// \param maybe_query  of this lane's column; null: zeros
  /// \param size         features, from the first that is loaded
  __device__ void load(const float* maybe_query, std::int32_t size, std::int32_t lane) {
    const bool is_rest = (lane / 4) % 2 == 1;
#pragma unroll 2  // all at once would not fit beside the keys
    for (int s = 0; s < kSteps; ++s) {
      const std::int32_t d = s * kStepFeatures + lane % 4 * 8;
      EightFloats elements;
      if (maybe_query != nullptr && d < size) elements.load_changed(maybe_query + d);
      float x[8];
      elements.copy_to(x);
      std::uint32_t fragment[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float low = x[2 * w] * factor.down;
        const float high = x[2 * w + 1] * factor.down;
        const std::uint32_t pair = Element<Key>::pack(low, high);
        const float2 rounded = Element<Key>::to_float2(pair);
        const std::uint32_t rest = Element<Key>::pack(low - rounded.x, high - rounded.y);
        fragment[w] = is_rest ? rest : pair;
      }
      words[s][lane] = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
    }
  }
  /// Where half precision would overflow, or lose what rounding took away, the query is scaled.
  __device__ void set_factor(const float* maybe_query, std::int32_t size, std::int32_t lane) {
    if constexpr (std::is_same_v<Key, __half>) {
      float largest = 0.0F;
      if (maybe_query != nullptr) {
#pragma unroll 1
        for (std::int32_t d = lane % 4 * 8; d < size; d += kStepFeatures) {
          EightFloats elements;
          elements.load_changed(maybe_query + d);
          float x[8];
          elements.copy_to(x);
#pragma unroll
          for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(x[e]));
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
      factor = to_unit_range(largest);
    }
  }
};

/// Fragments of a stretch of keys.
template <int kSteps>
struct KeyFragments {
  uint4 words[kRowTiles][2][kSteps];

  /// \param keys  this lane's first feature in row 0
  /// \param size  features, from there on
  /// \param last  behind the last row, which is read in place of those behind it
  template <typename Key>
  __device__ void load(const Key* keys, std::int32_t row_size, std::int32_t size,
                       std::int32_t first, std::int32_t last, std::int32_t lane) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int32_t chunk = min(first + tile * 16 + half * 8 + lane / 4, last - 1);
        const Key* row = keys + static_cast<std::int64_t>(chunk) * row_size;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          words[tile][half][s] = s * kStepFeatures < size ? load_streaming(row + s * kStepFeatures)
                                                          : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }
};

template <typename Key, int kSteps>
__device__ inline void multiply_stretch(float (&c)[kRowTiles][4], const KeyFragments<kSteps>& keys,
                                        const QueryFragments<Key, kSteps>& queries,
                                        std::int32_t lane) {
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const uint4 b = queries.words[s][lane];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const uint4& upper = keys.words[tile][0][s];
      const uint4& lower = keys.words[tile][1][s];
      const std::uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
      Element<Key>::multiply_add(c[tile], first, b.x, b.y);
    }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const uint4& upper = keys.words[tile][0][s];
      const uint4& lower = keys.words[tile][1][s];
      const std::uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
      Element<Key>::multiply_add(c[tile], second, b.z, b.w);
    }
  }
}

/// A product in f32, in every lane.
__device__ inline float dot(const float* a, const float* b, std::int32_t size, std::int32_t lane) {
  float sum = 0.0F;
#pragma unroll 1  // rare, and registers are scarce
  for (std::int32_t d = 4 * lane; d < size; d += 4 * kWarpSize) {
    const float4 x = *reinterpret_cast<const float4*>(a + d);
    const float4 y = *reinterpret_cast<const float4*>(b + d);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
    sum = fmaf(x.z, y.z, sum);
    sum = fmaf(x.w, y.w, sum);
  }
  return warp_sum(sum);
}

/// Shared memory of the first pass.
template <int kSteps>
struct ScoreLogitsShared {
  TriggerWork work;
  uint4 query_words[kWorkWarps][kSteps][kWarpSize];
};

/// Body of `score_logits_mma_kernel`, by all blocks of a grid.
///
/// \param sight_of  first trigger of a batch -> what the thread's trigger of that batch sees
template <typename Key, int kSteps, bool kWhole, typename SightOf>
__device__ inline void score_logits_mma(const DeviceScoreArgs<Key>& args, const ScoreLayout& layout,
                                        ScoreLogitsShared<kSteps>& shared,
                                        const SightOf& sight_of) {
  constexpr std::int32_t kPartSize = kSteps * detail::kStepFeatures;
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x) / kWarpSize;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const std::int32_t lane_feature = lane % 4 * 8;
  const std::int32_t row_size = args.num_key_heads * args.key_dim;
  const std::int32_t unit = warp % layout.units_per_block;
  const std::int32_t first_in_piece = warp / layout.units_per_block * kStretch;
  // With null logits of its own the softmax is over the candidates, else over all there is.
  const bool all_count = args.maybe_null == nullptr;
  TriggerWork& work = shared.work;
  detail::QueryFragments<Key, kSteps> queries{shared.query_words[warp], {}};

  for (std::int32_t batch = 0; batch < args.triggers.count; batch += kWorkThreads) {
    const std::int32_t num_sets = args.num_layers * layout.unit_groups;
    number_work<kTriggerTile>(work, sight_of(batch), [&](std::int32_t num_closed, std::int32_t) {
      return ceil_div(num_closed, layout.block_chunks) * num_sets;
    });
    const WorkShare share = block_share(work);
    if (share.first >= share.last) continue;
    std::int32_t t = trigger_of_item(work, share.first);
    for (std::int32_t item = share.first; item < share.last;) {
      while (item >= work.items_before[t + 1]) ++t;
      const std::int32_t tile_closed = work.tile_closed[t];
      const std::int32_t pieces = ceil_div(tile_closed, layout.block_chunks);
      const std::int32_t set = (item - work.items_before[t]) / pieces;  // (layer, key heads)
      const std::int32_t piece = item - work.items_before[t] - set * pieces;
      const std::int32_t end_piece = min(pieces, piece + share.last - item);
      item += end_piece - piece;
      const std::int32_t layer = set / layout.unit_groups;
      const std::int32_t key_head =
          (set - layer * layout.unit_groups) * layout.units_per_block + unit;
      if (key_head >= args.num_key_heads) continue;
      const std::int32_t first_head = key_head * layout.group;
      const std::int32_t num_slots = work.tile_triggers[t] * layout.group;  // (trigger, head)
      const std::int32_t seq = args.triggers.seq(batch + t);
      const std::int32_t* ends = args.table.ends_of(seq);
      const Key* keys = args.keys + layer * args.key_layer_stride + seq * args.key_seq_stride +
                        static_cast<std::int64_t>(key_head) * args.key_dim + lane_feature;
      const auto query_of = [&](std::int32_t slot) {  // null behind the last
        const std::int32_t of = layout.trigger_of_slot(slot);
        return slot < num_slots
                   ? args.queries + layer * args.query_layer_stride +
                         (batch + t + of) * args.query_stride +
                         static_cast<std::int64_t>(first_head + slot - of * layout.group) *
                             args.key_dim
                   : nullptr;
      };
      bool has_queries = false;

      const std::int32_t end = min(end_piece * layout.block_chunks, tile_closed);
      for (std::int32_t first = piece * layout.block_chunks + first_in_piece; first < end;
           first += layout.block_chunks) {
        const std::int32_t last = min(first + kStretch, tile_closed);
        detail::KeyFragments<kSteps> fragments;
        if constexpr (kWhole) {
          fragments.load(keys, row_size, args.key_dim - lane_feature, first, last, lane);
        }
        float log_length = 0.0F;  // of chunk first + lane
        if (args.adds_log_length) {
          const std::int32_t chunk = min(first + lane, last - 1);
          const std::int32_t begin = chunk == 0 ? 0 : ends[chunk - 1];
          log_length = logf(static_cast<float>(ends[chunk] - begin));
        }

        for (std::int32_t first_slot = 0; first_slot < num_slots;
             first_slot += detail::kColumnPairs) {
          // Results of a query are in the lanes whose place in their quad is the query's.
          const std::int32_t slot = first_slot + lane % 4;
          const std::int32_t of = slot < num_slots ? layout.trigger_of_slot(slot) : 0;
          const std::int32_t closed = slot < num_slots ? work.num_closed[t + of] : 0;
          if (!__any_sync(kFullWarp, first < closed)) continue;

          float c[detail::kRowTiles][4] = {};
          if constexpr (kWhole) {
            // Four at most serve for all stretches.
            if (num_slots > detail::kColumnPairs || !has_queries) {
              const float* query = query_of(first_slot + lane / 8);
              queries.set_factor(query, args.key_dim, lane);
              queries.load(query, args.key_dim, lane);
              has_queries = true;
            }
            detail::multiply_stretch(c, fragments, queries, lane);
          } else {
            const float* query = query_of(first_slot + lane / 8);
            queries.set_factor(query, args.key_dim, lane);
            for (std::int32_t d = 0; d < args.key_dim; d += kPartSize) {
              fragments.load(keys + d, row_size, args.key_dim - d - lane_feature, first, last,
                             lane);
              queries.load(query == nullptr ? nullptr : query + d, args.key_dim - d, lane);
              detail::multiply_stretch(c, fragments, queries, lane);
            }
          }
          float scale = args.scale;
          if constexpr (std::is_same_v<Key, __half>) {
            scale *= __shfl_sync(kFullWarp, queries.factor.up, lane % 4 * 8);
          }

          const std::int32_t head = first_head + slot - of * layout.group;
          const std::int64_t head_row =
              (static_cast<std::int64_t>(layer) * args.triggers.count + batch + t + of) *
                  args.num_heads +
              head;
          const float* bias = nullptr;
          std::int32_t trigger = 0;
          if (args.maybe_bias != nullptr && closed > 0) {
            bias = args.maybe_bias + layer * args.bias_layer_stride +
                   static_cast<std::int64_t>(head) * kNumDistanceBins;
            trigger = args.triggers.tokens[batch + t + of];
          }
          float* logits = layout.logits + head_row * layout.logit_stride + first + lane / 4;
          const std::int32_t first_member = all_count ? 0 : 1;
          const std::int32_t members_end = all_count ? closed : min(closed, work.end[t + of]);
          float z[detail::kLaneRows];
          SoftmaxSum sum;
#pragma unroll
          for (int r = 0; r < detail::kLaneRows; ++r) {
            const std::int32_t chunk = first + r * 8 + lane / 4;
            z[r] = (c[r / 2][r % 2 * 2] + c[r / 2][r % 2 * 2 + 1]) * scale +
                   __shfl_sync(kFullWarp, log_length, r * 8 + lane / 4);
            if (bias != nullptr) {
              const std::int32_t last_token = ends[min(chunk, closed - 1)] - 1;
              z[r] += bias[distance_bin(max(trigger - last_token, 1))];
            }
            if (chunk < closed) logits[r * 8] = z[r];
            // Never a member: it adds exp(-infinity - largest) = 0.
            if (chunk < first_member || chunk >= members_end) z[r] = -INFINITY;
            sum.largest = fmaxf(sum.largest, z[r]);  // drops a NaN, but the sum keeps it
          }
#pragma unroll
          for (int mask = 4; mask < kWarpSize; mask *= 2) {
            sum.largest = fmaxf(sum.largest, __shfl_xor_sync(kFullWarp, sum.largest, mask));
          }
#pragma unroll
          for (int r = 0; r < detail::kLaneRows; ++r) sum.sum += expf(z[r] - sum.largest);
#pragma unroll
          for (int mask = 4; mask < kWarpSize; mask *= 2) {
            sum.sum += __shfl_xor_sync(kFullWarp, sum.sum, mask);
          }

          if (first == 0 && all_count && args.maybe_open_keys != nullptr) {
#pragma unroll 1
            for (std::int32_t p = 0; p < detail::kColumnPairs && first_slot + p < num_slots; ++p) {
              const float* query = query_of(first_slot + p);
              const std::int32_t open_t = t + layout.trigger_of_slot(first_slot + p);
              const std::int32_t open_trigger = args.triggers.tokens[batch + open_t];
              const std::int32_t open_begin = ends[work.num_closed[open_t] - 1];
              if (open_trigger < open_begin) continue;  // nothing is open
              const float product =
                  detail::dot(query,
                              args.maybe_open_keys + layer * args.open_key_layer_stride +
                                  static_cast<std::int64_t>(batch + open_t) * row_size +
                                  static_cast<std::int64_t>(key_head) * args.key_dim,
                              args.key_dim, lane);
              if (lane % 4 == p) {
                float open = product * args.scale;
                if (args.adds_log_length) {
                  open += logf(static_cast<float>(open_trigger + 1 - open_begin));
                }
                if (bias != nullptr) open += bias[0];  // its newest token is the trigger
                sum.add(open);
              }
            }
          }
          if (lane / 4 == 0 && first < closed) {
            layout.partials[head_row * layout.num_partials + first / kStretch] = sum;
          }
        }
      }
    }
  }
}

}  // namespace detail

/// First pass with 16 bit keys: logits of all closed chunks, and each stretch's part of the
/// softmax's sum.
///
/// A warp reads the keys of one key head and stretch into registers, straight as the fragments of
/// the product's left factor, and multiplies them with the queries of that head's group and of all
/// triggers of a tile, four at a time. A block's warps take neighbouring key heads, so that
/// together they read whole rows. Memory is kept busy by other warps while one multiplies.
///
/// \tparam kSteps  loads of 32 features: 2 or 4
/// \tparam kWhole  whether they are all of a key; else keys are read in parts, again (from L2) for
///                 every four queries
template <typename Key, int kSteps, bool kWhole>
__global__ void __launch_bounds__(kWorkThreads, kScoreBlocksPerSm)
    score_logits_mma_kernel(const DeviceScoreArgs<Key> args, const ScoreLayout layout) {
  __shared__ detail::ScoreLogitsShared<kSteps> shared;
  detail::score_logits_mma<Key, kSteps, kWhole>(args, layout, shared, [&](std::int32_t batch) {
    return trigger_sight(args.table, args.triggers, args.window,
                         batch + static_cast<std::int32_t>(threadIdx.x));
  });
}

}  // namespace chunkllm::kernels
