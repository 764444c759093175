// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "chunkllm/kernels/primitives.cuh"

/// One warp's share of a decoded token's attention: tiles of 16 attended tokens of one KV head.
namespace chunkllm::kernels::decode_attention {

inline constexpr int kTileTokens = 16;  // rows of a matrix instruction
inline constexpr int kHeadColumns = 8;  // columns of a matrix instruction: query heads

/// A tile in shared memory: 16 keys, then 16 values. Rows are 16 bytes longer than they need be, so
/// that the eight rows of a matrix load start in eight different groups of banks.
template <typename Kv, int kHeadDim>
struct TileLayout {
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(Kv));
  static constexpr int kPitch = kRowBytes + 16;
  static constexpr int kValues = kTileTokens * kPitch;
  static constexpr int kBytes = 2 * kValues;
  static constexpr int kVectors = kRowBytes / 16;
};

/// 2^x within 2 units in the last place; -inf gives 0, NaN stays.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two e4m3 values, the first in the lower byte, as a pair of halves; exact.
__device__ inline std::uint32_t half_pair(std::uint32_t two_bytes) {
  const __half2_raw pair =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_bytes & 0xffffU), __NV_E4M3);
  return static_cast<std::uint32_t>(pair.x) | static_cast<std::uint32_t>(pair.y) << 16;
}

/// A row of a RoPE table, to be applied forwards or backwards.
struct Turn {
  const float* cosines = nullptr;  ///< sines follow them, head_dim / 2 behind; null: no turn
  float sign = 1.0F;               ///< of the sines; NaN: by more than the table knows
};
/// Steps that a table of `count` rows does not know.
inline constexpr std::int32_t kUnknownSteps = INT_MIN;
__device__ inline std::int32_t known_steps(std::int32_t steps, std::int32_t count) {
  return abs(steps) < count ? steps : kUnknownSteps;
}
/// \param steps  of `known_steps`: what is turned by unknown ones becomes NaN
__device__ inline Turn turn_by(const float* rope, std::int32_t steps, int head_dim) {
  if (steps == kUnknownSteps) return {rope, __int_as_float(0x7fffffff)};
  return {rope + static_cast<std::int64_t>(abs(steps)) * head_dim, steps < 0 ? -1.0F : 1.0F};
}

/// What keys and queries of a tile are still to be turned by.
///
/// Keys go to any position by steps of their own. Or, where they are stored unturned and their
/// wanted positions follow one another: to their row in the tile only, and the queries back by the
/// tile's first position. That takes one row of the RoPE table a tile rather than 16.
struct TileTurns {
  const std::int32_t* maybe_steps = nullptr;  ///< [16] of the keys, see `known_steps`
  const float* rope = nullptr;                ///< the table, for the steps
  const float* maybe_query_row = nullptr;     ///< row of the table, for the queries
  const float4* in_tile = nullptr;            ///< for the keys then, see `store_in_tile_turns`
};

/// Scores, softmax and weighted values of up to 16 query heads that share a KV head, for the tiles
/// that one warp takes.
///
/// Scores are made as K Q^T and outputs as V^T P^T: tokens fill the 16 rows of the instruction,
/// heads its 8 columns, so a group of 4 wastes half of the columns rather than three quarters of
/// the rows, and a head's running maximum rescales whole columns, which stand in the same lanes in
/// both products. In what follows lane = 4 g + t.
///
/// \tparam T            __half or __nv_bfloat16: queries
/// \tparam Kv           T, or __nv_fp8_e4m3, which is multiplied as __half
/// \tparam kColumnTiles 1 for up to 8 heads, 2 for up to 16
template <typename T, typename Kv, int kHeadDim, int kColumnTiles>
class WarpAttention {
 public:
  using Layout = TileLayout<Kv, kHeadDim>;
  using Operand = std::conditional_t<sizeof(Kv) == 1, __half, T>;

  static constexpr int kSteps = kHeadDim / 16;   // of 16 dimensions
  static constexpr int kHalfSteps = kSteps / 2;  // RoPE pairs step j with step j + kHalfSteps
  /// Floats from one head to the next where a warp lays down its result: lanes of different t, two
  /// heads apart, then write to different banks.
  static constexpr int kStatePitch = kHeadDim + 4;
  static constexpr int kStateFloats = kColumnTiles * kHeadColumns * (kStatePitch + 2);

  __device__ explicit WarpAttention(int lane) : g_(lane / 4), t_(lane % 4) {
    // Matrix l / 8, row l % 8 of the four that a load takes.
    key_row_ = static_cast<std::uint32_t>(lane % 16 * Layout::kPitch +
                                          lane / 16 * (kBytes == 2 ? 16 : kHalfSteps * 16));
    value_row_ = static_cast<std::uint32_t>(
        Layout::kValues + (kBytes == 2
                               ? (lane % 8 + lane / 16 * 8) * Layout::kPitch + lane / 8 % 2 * 16
                               : lane % 16 * Layout::kPitch + lane / 16 * 16));
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output_[c][i][e] = 0.0F;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        reference_[c][h] = -FLT_MAX;  // finite, so that nothing becomes inf - inf
        sum_[c][h] = 0.0F;
      }
    }
  }

  /// Reads the queries of `group` heads; the columns behind them are zero.
  template <bool kTurned>
  __device__ void load_queries(const T* q, int group, const Turn& turn) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const int head = c * kHeadColumns + g_;
      const T* row = q + head * kHeadDim;
#pragma unroll
      for (int j = 0; j < kHalfSteps; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t first = 0;
          std::uint32_t second = 0;
          if (head < group) {
            const int dim = dim_of(j, half);
            first = *reinterpret_cast<const std::uint32_t*>(row + dim);
            second = *reinterpret_cast<const std::uint32_t*>(row + dim + kHeadDim / 2);
            if constexpr (kTurned || !std::is_same_v<T, Operand>) {
              float2 a = Element<T>::to_float2(first);
              float2 b = Element<T>::to_float2(second);
              if constexpr (kTurned) {
                if (turn.cosines != nullptr) turn_pair(a, b, turn, dim);
              }
              first = Element<Operand>::pack(a.x, a.y);
              second = Element<Operand>::pack(b.x, b.y);
            }
          }
          query_[c][j][half] = first;
          query_[c][j + kHalfSteps][half] = second;
        }
      }
    }
  }

  /// Attends one tile. Rows from `num_rows` on hold zeros and weigh nothing.
  ///
  /// \param tile          shared memory address of the tile
  /// \param score_factor  scale, times the keys' scale, times log2(e)
  /// \param turns         what keys and queries are still to be turned by
  template <bool kTurned>
  __device__ void attend(std::uint32_t tile, std::int32_t num_rows, float score_factor,
                         const TileTurns& turns) {
    // Two chains, one for each half of the dimensions, so that an instruction waits for every
    // second one only.
    float low[kColumnTiles][4] = {};
    float high[kColumnTiles][4] = {};
    Turn upper;
    Turn lower;
    if constexpr (kTurned) {
      if (turns.maybe_steps != nullptr) {
        upper = turn_by(turns.rope, turns.maybe_steps[g_], kHeadDim);
        lower = turn_by(turns.rope, turns.maybe_steps[g_ + 8], kHeadDim);
      }
    }
#pragma unroll
    for (int j = 0; j < kHalfSteps; ++j) {
      std::uint32_t first[4];
      std::uint32_t second[4];
      load_keys(first, second, tile, j);
      if constexpr (kTurned) {
        if (turns.maybe_steps != nullptr) {
          turn_keys(first, second, j, [&](int e, float2& cosine, float2& sine) {
            const Turn& turn = e % 2 == 0 ? upper : lower;
            read_turn(turn, dim_of(j, e / 2), cosine, sine);
          });
        } else if (turns.maybe_query_row != nullptr) {
          turn_keys(first, second, j, [&](int e, float2& cosine, float2& sine) {
            const float4 row = turns.in_tile[(4 * j + e) * kWarpSize + 4 * g_ + t_];
            cosine = {row.x, row.y};
            sine = {row.z, row.w};
          });
        }
      }
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        std::uint32_t q_low[2] = {query_[c][j][0], query_[c][j][1]};
        std::uint32_t q_high[2] = {query_[c][j + kHalfSteps][0], query_[c][j + kHalfSteps][1]};
        if constexpr (kTurned) {
          if (turns.maybe_query_row != nullptr) {
            turn_query(q_low, q_high, j, {turns.maybe_query_row, 1.0F});
          }
        }
        Element<Operand>::multiply_add(low[c], first, q_low[0], q_low[1]);
        Element<Operand>::multiply_add(high[c], second, q_high[0], q_high[1]);
      }
    }
    std::uint32_t weights[kColumnTiles][2];
    weigh(low, high, num_rows, score_factor, weights);
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
      std::uint32_t first[4];
      std::uint32_t second[4];
      load_values(first, second, tile, i);
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        Element<Operand>::multiply_add(output_[c][i], first, weights[c][0], weights[c][1]);
        Element<Operand>::multiply_add(output_[c][i + 1], second, weights[c][0], weights[c][1]);
      }
    }
  }

  /// Writes [kHalfSteps, 4, 32] what `turns.in_tile` is: cosines and sines of two neighbouring
  /// dimensions of position 0 to 15, in the order in which lanes turn keys. Run by the whole block.
  __device__ static void store_in_tile_turns(float4* in_tile, const float* rope,
                                             std::int32_t rope_count) {
    for (int i = static_cast<int>(threadIdx.x); i < kHalfSteps * 4 * kWarpSize;
         i += static_cast<int>(blockDim.x)) {
      const int lane = i % kWarpSize;
      const int e = i / kWarpSize % 4;
      // A row behind the table's end turns no key: so many are not attended.
      const std::int32_t position = min(lane / 4 + e % 2 * 8, rope_count - 1);
      float2 cosine;
      float2 sine;
      read_turn(turn_by(rope, position, kHeadDim), dim_of(i / kWarpSize / 4, e / 2, lane % 4),
                cosine, sine);
      in_tile[i] = {cosine.x, cosine.y, sine.x, sine.y};
    }
  }

  /// Lays down the unnormalised outputs [heads, kStatePitch], then (reference, sum) of each head.
  __device__ void store(float* state) {
    float* stats = state + kColumnTiles * kHeadColumns * kStatePitch;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = c * kHeadColumns + 2 * t_ + h;
        float sum = sum_[c][h];
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) {
          sum += __shfl_xor_sync(kFullWarp, sum, mask);
        }
        if (g_ == 0) {
          stats[2 * head] = reference_[c][h];
          stats[2 * head + 1] = sum;
        }
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          float* row = state + head * kStatePitch + 16 * i;
          row[kBytes == 2 ? g_ : 2 * g_] = output_[c][i][h];
          row[kBytes == 2 ? g_ + 8 : 2 * g_ + 1] = output_[c][i][h + 2];
        }
      }
    }
  }

 private:
  static constexpr int kBytes = static_cast<int>(sizeof(Kv));
  /// Weights are kept within 2^kHeadroom instead of 1. A half has no normal numbers below 2^-14, so
  /// this keeps the tail of a peaked softmax; bfloat16 has the range of f32.
  static constexpr float kHeadroom = std::is_same_v<Operand, __half> ? 12.0F : 0.0F;

  /// First of the two neighbouring dimensions that this lane holds of step `j` in the lower (0) or
  /// upper (1) half of the instruction's depth. Bytes come four at a time, so there the order of
  /// the dimensions inside a step differs, for keys and queries alike.
  __device__ static int dim_of(int j, int half, int t) {
    return 16 * j + (kBytes == 2 ? 8 * half + 2 * t : 4 * t + 2 * half);
  }
  __device__ int dim_of(int j, int half) const {
    return dim_of(j, half, t_);
  }

  __device__ static void read_turn(const Turn& turn, int dim, float2& cosine, float2& sine) {
    cosine = *reinterpret_cast<const float2*>(turn.cosines + dim);
    sine = *reinterpret_cast<const float2*>(turn.cosines + kHeadDim / 2 + dim);
    sine = {turn.sign * sine.x, turn.sign * sine.y};
  }
  __device__ static void turn_pair(float2& a, float2& b, float2 cosine, float2 sine) {
    const float2 x = a;
    a = {x.x * cosine.x - b.x * sine.x, x.y * cosine.y - b.y * sine.y};
    b = {b.x * cosine.x + x.x * sine.x, b.y * cosine.y + x.y * sine.y};
  }
  __device__ static void turn_pair(float2& a, float2& b, const Turn& turn, int dim) {
    float2 cosine;
    float2 sine;
    read_turn(turn, dim, cosine, sine);
    turn_pair(a, b, cosine, sine);
  }

  /// Rows g (registers 0, 2) and g + 8 (1, 3) of steps j and j + kHalfSteps, which RoPE pairs;
  /// `read(e, cosine, sine)` gives what register e is turned by.
  template <typename Read>
  __device__ void turn_keys(std::uint32_t (&first)[4], std::uint32_t (&second)[4], int j,
                            const Read& read) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float2 a = Element<Operand>::to_float2(first[e]);
      float2 b = Element<Operand>::to_float2(second[e]);
      float2 cosine;
      float2 sine;
      read(e, cosine, sine);
      turn_pair(a, b, cosine, sine);
      first[e] = Element<Operand>::pack(a.x, a.y);
      second[e] = Element<Operand>::pack(b.x, b.y);
    }
  }
  __device__ void turn_query(std::uint32_t (&low)[2], std::uint32_t (&high)[2], int j,
                             const Turn& turn) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 a = Element<Operand>::to_float2(low[half]);
      float2 b = Element<Operand>::to_float2(high[half]);
      turn_pair(a, b, turn, dim_of(j, half));
      low[half] = Element<Operand>::pack(a.x, a.y);
      high[half] = Element<Operand>::pack(b.x, b.y);
    }
  }

  /// Keys of steps j and j + kHalfSteps as left operands: tokens x dimensions.
  __device__ void load_keys(std::uint32_t (&first)[4], std::uint32_t (&second)[4],
                            std::uint32_t tile, int j) const {
    if constexpr (kBytes == 2) {
      load_matrices(first, tile + key_row_ + j * 32);
      load_matrices(second, tile + key_row_ + (j + kHalfSteps) * 32);
    } else {
      std::uint32_t raw[4];  // a 16 bit element is two dimensions
      load_matrices(raw, tile + key_row_ + j * 16);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        first[e] = half_pair(raw[e]);
        first[e + 2] = half_pair(raw[e] >> 16);
        second[e] = half_pair(raw[e + 2]);
        second[e + 2] = half_pair(raw[e + 2] >> 16);
      }
    }
  }

  /// Values of steps i and i + 1 as left operands: dimensions x tokens. Of bytes, row g is
  /// dimension 2 g and row g + 8 dimension 2 g + 1.
  __device__ void load_values(std::uint32_t (&first)[4], std::uint32_t (&second)[4],
                              std::uint32_t tile, int i) const {
    if constexpr (kBytes == 2) {
      load_matrices_transposed(first, tile + value_row_ + i * 32);
      load_matrices_transposed(second, tile + value_row_ + (i + 1) * 32);
    } else {
      std::uint32_t raw[4];
      load_matrices_transposed(raw, tile + value_row_ + i * 16);
#pragma unroll
      for (int e = 0; e < 2; ++e) {  // tokens 0 to 7, then 8 to 15
        const std::uint32_t a = __byte_perm(raw[e], 0, 0x3120);
        const std::uint32_t b = __byte_perm(raw[e + 2], 0, 0x3120);
        first[2 * e] = half_pair(a);
        first[2 * e + 1] = half_pair(a >> 16);
        second[2 * e] = half_pair(b);
        second[2 * e + 1] = half_pair(b >> 16);
      }
    }
  }

  /// Turns the scores into weights, as right operands (tokens x heads), and brings sums and outputs
  /// to the maximum so far.
  __device__ void weigh(const float (&low)[kColumnTiles][4], const float (&high)[kColumnTiles][4],
                        std::int32_t num_rows, float score_factor,
                        std::uint32_t (&weights)[kColumnTiles][2]) {
    float kept[kColumnTiles][2];
    bool grew = false;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      float weight[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float a = (low[c][h] + high[c][h]) * score_factor;
        float b = (low[c][h + 2] + high[c][h + 2]) * score_factor;
        if (g_ >= num_rows) a = -INFINITY;
        if (g_ + 8 >= num_rows) b = -INFINITY;
        float largest = fmaxf(a, b);  // drops NaN, which the weights keep
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, mask));
        }
        const float reference = fmaxf(reference_[c][h], largest - kHeadroom);
        grew = grew || reference > reference_[c][h];
        kept[c][h] = exp2_approx(reference_[c][h] - reference);
        reference_[c][h] = reference;
        weight[h] = exp2_approx(a - reference);
        weight[h + 2] = exp2_approx(b - reference);
        sum_[c][h] = sum_[c][h] * kept[c][h] + (weight[h] + weight[h + 2]);
      }
      weights[c][0] = transpose_matrix(Element<Operand>::pack(weight[0], weight[1]));
      weights[c][1] = transpose_matrix(Element<Operand>::pack(weight[2], weight[3]));
    }
    if (!__any_sync(kFullWarp, grew)) return;  // most tiles, once the maximum has settled
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output_[c][i][e] *= kept[c][e % 2];
      }
    }
  }

  int g_;
  int t_;
  std::uint32_t key_row_;
  std::uint32_t value_row_;
  std::uint32_t query_[kColumnTiles][kSteps][2];
  float output_[kColumnTiles][kSteps][4];
  float reference_[kColumnTiles][2];
  float sum_[kColumnTiles][2];
};

}  // namespace chunkllm::kernels::decode_attention
