// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"
#include "support/guarded_buffer.hpp"

namespace chunkllm::testing {

/// One attention problem with its operands in f32, before any rotation.
struct AttentionCase {
  std::int64_t num_heads = 4;
  std::int64_t num_kv_heads = 2;
  std::int64_t head_dim = 16;
  std::int64_t num_tokens = 200;
  std::int64_t num_rows = 1;  // the last ones
  std::int64_t window = 0;
  std::int64_t page_size = 0;     // 0: contiguous
  std::int64_t extra_stride = 0;  // elements between a token's keys and the next one's
  bool rotates = false;
  Positions positions = Positions::kOriginal;
  Rotation q_rotation = Rotation::kNone;
  Rotation key_rotation = Rotation::kNone;
  std::vector<AttendedSet> sets = {{}};  // rows are shared out evenly
  std::uint32_t seed = 1;
  float query_size = 1.0F;
};

inline std::vector<float> random_values(std::size_t size, std::uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

inline RopeFrequencies frequencies(std::int64_t head_dim) {
  BackboneConfig config;
  config.head_dim = head_dim;
  return RopeFrequencies(config);
}

template <typename T>
class AttentionRun {
 public:
  explicit AttentionRun(const AttentionCase& c)
      : case_(c),
        width_(c.num_kv_heads * c.head_dim),
        first_(c.num_tokens - c.num_rows),
        q_(random_values(static_cast<std::size_t>(c.num_rows * c.num_heads * c.head_dim), c.seed,
                         c.query_size)),
        out_(q_.size()),
        lse_(static_cast<std::size_t>(c.num_rows * c.num_heads)),
        frequencies_(frequencies(c.head_dim)),
        rope_(frequencies_, 0, c.num_tokens + 1) {
    const auto size = static_cast<std::size_t>(c.num_tokens * width_);
    keys_ = random_values(size, c.seed + 1, 1.0F);
    values_ = random_values(size, c.seed + 2, 1.0F);
    // What the cache will hold, so that the oracle sees the values after their one rounding.
    if (c.key_rotation == Rotation::kNone) round_all(keys_);
    round_all(values_);
    place();
    std::int64_t row = 0;
    const auto num_sets = static_cast<std::int64_t>(c.sets.size());
    for (std::int64_t i = 0; i < num_sets; ++i) {
      const std::int64_t end = c.num_rows * (i + 1) / num_sets;
      if (end > row) tiles_.push_back({row, end - row, &case_.sets[static_cast<std::size_t>(i)]});
      row = end;
    }
  }

  std::vector<float>& values() { return values_; }
  std::vector<T>& stored_values() { return stored_values_; }
  std::vector<float>& q() { return q_; }
  std::vector<AttentionTile>& tiles() { return tiles_; }
  [[nodiscard]] std::vector<float> out() { return {out_.span().begin(), out_.span().end()}; }
  [[nodiscard]] std::vector<float> lse() { return {lse_.span().begin(), lse_.span().end()}; }

  ChunkAttentionArgs<T> args() {
    ChunkAttentionArgs<T> args;
    const std::int64_t width = case_.num_heads * case_.head_dim;
    rotated_q_ = q_;
    if (case_.rotates && case_.q_rotation == Rotation::kAtTokenPosition) {
      rotate_rows({rotated_q_.data(), case_.num_rows, width}, case_.num_heads,
                  RopeTable(frequencies_, first_, case_.num_rows), first_);
    }
    args.q = {rotated_q_.data(), case_.num_rows, width};
    args.out = {out_.data(), case_.num_rows, width};
    args.kv.keys = stored_keys_.data();
    args.kv.values = stored_values_.data();
    args.kv.num_tokens = case_.num_tokens;
    args.kv.token_stride = width_ + case_.extra_stride;
    args.kv.head_stride = case_.head_dim;
    if (case_.page_size > 0) {
      args.kv.page_table = page_table_.data();
      args.kv.page_size = case_.page_size;
      args.kv.page_stride = case_.page_size * args.kv.token_stride;
    }
    args.tiles = tiles_;
    args.first_token = first_;
    args.num_heads = case_.num_heads;
    args.num_kv_heads = case_.num_kv_heads;
    args.head_dim = case_.head_dim;
    args.scale = scale();
    args.window = case_.window;
    args.positions = case_.positions;
    args.q_rotation = case_.rotates ? case_.q_rotation : Rotation::kAtTokenPosition;
    args.kv.rotation = case_.rotates ? case_.key_rotation : Rotation::kAtTokenPosition;
    args.rope = case_.rotates ? &rope_ : nullptr;
    args.maybe_lse = lse_.data();
    return args;
  }

  void run(int threads = 1) {
    ThreadPool pool(threads);
    std::int64_t most = 0;
    for (const AttentionTile& tile : tiles_) {
      most = std::max(most, tile.set->num_attended(first_ + tile.first_row + tile.num_rows - 1));
    }
    GuardedBuffer workspace(static_cast<std::size_t>(chunk_attention_workspace_floats(
        case_.num_heads, case_.num_kv_heads, case_.head_dim, most, threads)));
    const Status status = chunk_attention(args(), workspace.span(), pool);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(workspace.intact());
    EXPECT_TRUE(out_.intact());
    EXPECT_TRUE(lse_.intact());
    EXPECT_FALSE(out_.has_unwritten());
    EXPECT_FALSE(lse_.has_unwritten());
  }

  /// Compares every row with the oracle, within what f32 arithmetic allows.
  ///
  /// A score is a chain of head_dim products, with up to two rotations of three roundings each in
  /// front: its error is at most (head_dim + 8) u times the sum of its products' sizes, and with
  /// positions in the cache's order two angles may each be off by u times the position. exp of
  /// that error scales a weight; a sum over n keys in any order adds n u.
  void expect_equals_oracle() {
    oracle::AttentionShape shape;
    shape.num_heads = case_.num_heads;
    shape.num_kv_heads = case_.num_kv_heads;
    shape.head_dim = case_.head_dim;
    shape.scale = static_cast<double>(scale());
    shape.window = case_.window;
    shape.in_cache = case_.positions == Positions::kInCache;
    if (case_.rotates) {
      // The angle is rounded to f32 by definition of the table.
      shape.angle = [&](std::int64_t position, std::int64_t i) {
        return static_cast<double>(static_cast<float>(position) *
                                   frequencies_.inverse_wavelength[static_cast<std::size_t>(i)]);
      };
    }
    const bool turns_back = case_.rotates && shape.in_cache &&
                            (case_.q_rotation == Rotation::kAtTokenPosition ||
                             case_.key_rotation == Rotation::kAtTokenPosition);
    const double storage = case_.rotates && case_.key_rotation == Rotation::kAtTokenPosition
                               ? storage_error()
                               : 0.0;  // keys are rounded behind their rotation
    const oracle::Rows keys = rows_of(keys_);
    const oracle::Rows values = rows_of(values_);
    for (const AttentionTile& tile : tiles_) {
      for (std::int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
        oracle::TokenList attended;
        for (const TokenSpan& span : tile.set->segments(first_ + r)) {
          for (std::int64_t t = span.begin; t < span.end; ++t) attended.push_back(t);
        }
        const std::int64_t size = case_.num_heads * case_.head_dim;
        const oracle::Row q(q_.begin() + r * size, q_.begin() + (r + 1) * size);
        const oracle::AttentionRow expected = oracle::attend(shape, q, keys, values, attended);
        const auto n = static_cast<double>(attended.size());
        std::vector<double> bounds;
        std::vector<double> lse_bounds;
        for (std::int64_t h = 0; h < case_.num_heads; ++h) {
          double relative = static_cast<double>(case_.head_dim + 8) * kUnitRoundoff + storage;
          if (turns_back) relative += 6.0 * kUnitRoundoff * static_cast<double>(case_.num_tokens);
          // A rotation mixes two dimensions, so its products' sizes may grow twofold.
          const double score = (case_.rotates ? 2.0 : 1.0) * relative *
                               expected.score_sizes[static_cast<std::size_t>(h)];
          const double weight = 2.0 * std::expm1(score) + (n + 16.0) * kUnitRoundoff;
          for (std::int64_t d = 0; d < case_.head_dim; ++d) {
            bounds.push_back(
                weight * expected.value_sizes[static_cast<std::size_t>(h * case_.head_dim + d)]);
          }
          const double lse = expected.lse[static_cast<std::size_t>(h)];
          lse_bounds.push_back(weight + 4.0 * kUnitRoundoff * std::abs(lse));
        }
        ASSERT_TRUE(all_within(
            std::span<const float>(out_.span())
                .subspan(static_cast<std::size_t>(r * size), static_cast<std::size_t>(size)),
            expected.out, bounds))
            << "row " << r;
        ASSERT_TRUE(all_within(std::span<const float>(lse_.span())
                                   .subspan(static_cast<std::size_t>(r * case_.num_heads),
                                            static_cast<std::size_t>(case_.num_heads)),
                               expected.lse, lse_bounds))
            << "row " << r;
      }
    }
  }

 private:
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(case_.head_dim)); }
  static double storage_error() {
    return std::is_same_v<T, F16> ? 0x1p-11 : std::is_same_v<T, BF16> ? 0x1p-8 : 0.0;
  }
  static void round_all(std::vector<float>& values) {
    for (float& value : values) value = to_f32(from_f32<T>(value));
  }
  [[nodiscard]] oracle::Rows rows_of(const std::vector<float>& values) const {
    oracle::Rows rows;
    for (std::int64_t t = 0; t < case_.num_tokens; ++t) {
      rows.emplace_back(values.begin() + t * width_, values.begin() + (t + 1) * width_);
    }
    return rows;
  }

  /// Lays keys and values out as the case asks for; gaps and foreign pages hold NaN.
  void place() {
    std::vector<float> rotated = keys_;
    if (case_.rotates && case_.key_rotation == Rotation::kAtTokenPosition) {
      rotate_rows({rotated.data(), case_.num_tokens, width_}, case_.num_kv_heads, rope_, 0);
    }
    const std::int64_t stride = width_ + case_.extra_stride;
    std::int64_t places = case_.num_tokens;
    if (case_.page_size > 0) {
      const std::int64_t pages = (case_.num_tokens + case_.page_size - 1) / case_.page_size;
      page_table_.resize(static_cast<std::size_t>(pages));
      for (std::int64_t i = 0; i < pages; ++i) {  // backwards, every other page foreign
        page_table_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(2 * (pages - 1 - i));
      }
      places = 2 * pages * case_.page_size;
    }
    const T nan = from_f32<T>(std::numeric_limits<float>::quiet_NaN());
    stored_keys_.assign(static_cast<std::size_t>(places * stride), nan);
    stored_values_.assign(stored_keys_.size(), nan);
    for (std::int64_t t = 0; t < case_.num_tokens; ++t) {
      std::int64_t place = t;
      if (case_.page_size > 0) {
        place = page_table_[static_cast<std::size_t>(t / case_.page_size)] * case_.page_size +
                t % case_.page_size;
      }
      for (std::int64_t i = 0; i < width_; ++i) {
        stored_keys_[static_cast<std::size_t>(place * stride + i)] =
            from_f32<T>(rotated[static_cast<std::size_t>(t * width_ + i)]);
        stored_values_[static_cast<std::size_t>(place * stride + i)] =
            from_f32<T>(values_[static_cast<std::size_t>(t * width_ + i)]);
      }
    }
  }

  AttentionCase case_;
  std::int64_t width_;
  std::int64_t first_;
  std::vector<float> q_;
  std::vector<float> rotated_q_;
  std::vector<float> keys_;
  std::vector<float> values_;
  std::vector<T> stored_keys_;
  std::vector<T> stored_values_;
  std::vector<std::int32_t> page_table_;
  GuardedBuffer out_;
  GuardedBuffer lse_;
  RopeFrequencies frequencies_;
  RopeTable rope_;
  std::vector<AttentionTile> tiles_;
};

template <typename T = float>
void expect_equals_oracle(const AttentionCase& c, int threads = 1) {
  AttentionRun<T> run(c);
  run.run(threads);
  run.expect_equals_oracle();
}

/// Odd spans with gaps, some shorter than a key tile, in front of a tail.
inline AttendedSet sparse_set(std::int64_t tail_begin) {
  AttendedSet set;
  set.tail_begin = tail_begin;
  std::int64_t length = 1;
  for (std::int64_t begin = 0; begin + length < tail_begin;) {
    set.spans.push_back({begin, begin + length});
    begin += length + 11;
    length = length * 3 % 67 + 1;
  }
  return set;
}

}  // namespace chunkllm::testing
