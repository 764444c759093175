// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "reference/oracle.hpp"
#include "support/compare.hpp"
#include "support/guarded_buffer.hpp"

namespace chunkllm {
namespace {

using testing::GuardedBuffer;
using testing::kUnitRoundoff;

/// One attention problem with its operands in f32, before any rotation.
struct Case {
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

std::vector<float> random_values(std::size_t size, std::uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

RopeFrequencies frequencies(std::int64_t head_dim) {
  BackboneConfig config;
  config.head_dim = head_dim;
  return RopeFrequencies(config);
}

template <typename T>
class AttentionRun {
 public:
  explicit AttentionRun(const Case& c)
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
        ASSERT_TRUE(testing::all_within(
            std::span<const float>(out_.span())
                .subspan(static_cast<std::size_t>(r * size), static_cast<std::size_t>(size)),
            expected.out, bounds))
            << "row " << r;
        ASSERT_TRUE(testing::all_within(std::span<const float>(lse_.span())
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

  Case case_;
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
void expect_equals_oracle(const Case& c, int threads = 1) {
  AttentionRun<T> run(c);
  run.run(threads);
  run.expect_equals_oracle();
}

/// Odd spans with gaps, some shorter than a key tile, in front of a tail.
AttendedSet sparse_set(std::int64_t tail_begin) {
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

TEST(ChunkAttention, KeyCountsAroundTilesAndSplits) {
  for (const std::int64_t tokens :
       {1, 2, 31, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1025}) {
    SCOPED_TRACE(tokens);
    Case c;
    c.num_tokens = tokens;
    expect_equals_oracle(c);
    c.num_rows = std::min<std::int64_t>(tokens, 3);
    expect_equals_oracle(c);
  }
}

TEST(ChunkAttention, ThousandsOfKeys) {
  Case c;
  c.num_tokens = 5000;
  c.head_dim = 64;
  c.query_size = 3.0F;
  expect_equals_oracle(c, /*threads=*/2);
  c.sets = {sparse_set(4800)};
  expect_equals_oracle(c, /*threads=*/2);
}

TEST(ChunkAttention, HeadSizes) {
  for (const std::int64_t head_dim : {2, 6, 16, 18, 64, 80, 128, 256, 512}) {
    SCOPED_TRACE(head_dim);
    Case c;
    c.head_dim = head_dim;
    c.num_tokens = 130;
    expect_equals_oracle(c);
    c.num_rows = 40;
    expect_equals_oracle(c);
    expect_equals_oracle<F16>(c);
  }
}

TEST(ChunkAttention, HeadRatios) {
  for (const std::int64_t ratio : {1, 3, 4, 7, 16, 33, 128}) {
    SCOPED_TRACE(ratio);
    Case c;
    c.num_kv_heads = ratio == 128 ? 1 : 2;
    c.num_heads = ratio * c.num_kv_heads;
    c.num_tokens = 150;
    expect_equals_oracle(c);
    c.num_rows = 70;
    c.sets = {sparse_set(60), sparse_set(100)};
    expect_equals_oracle(c);
  }
}

TEST(ChunkAttention, StorageTypesAndLayouts) {
  for (const std::int64_t page_size : {0, 1, 16, 64}) {
    for (const std::int64_t extra : {0, 5}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(extra));
      Case c;
      c.num_tokens = 333;
      c.head_dim = 24;
      c.page_size = page_size;
      c.extra_stride = extra;
      for (const std::int64_t rows : {1, 50}) {
        c.num_rows = rows;
        c.sets = {sparse_set(250)};
        expect_equals_oracle<float>(c);
        expect_equals_oracle<F16>(c);
        expect_equals_oracle<BF16>(c);
      }
    }
  }
}

TEST(ChunkAttention, RotationsAndPositions) {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    for (const Rotation q : {Rotation::kNone, Rotation::kAtTokenPosition}) {
      for (const Rotation k : {Rotation::kNone, Rotation::kAtTokenPosition}) {
        for (const std::int64_t rows : {1, 33}) {
          SCOPED_TRACE(std::to_string(static_cast<int>(positions)) +
                       std::to_string(static_cast<int>(q)) + std::to_string(static_cast<int>(k)));
          Case c;
          c.num_tokens = 400;
          c.num_rows = rows;
          c.rotates = true;
          c.positions = positions;
          c.q_rotation = q;
          c.key_rotation = k;
          c.sets = {sparse_set(300), sparse_set(365)};
          expect_equals_oracle<float>(c);
          expect_equals_oracle<F16>(c);
        }
      }
    }
  }
}

TEST(ChunkAttention, Windows) {
  for (const std::int64_t window : {1, 2, 63, 64, 65, 150, 1000}) {
    for (const std::int64_t rows : {1, 90}) {
      SCOPED_TRACE(std::to_string(window) + " " + std::to_string(rows));
      Case c;
      c.num_tokens = 300;
      c.num_rows = rows;
      c.window = window;
      expect_equals_oracle(c);
      c.sets = {sparse_set(200)};
      expect_equals_oracle(c);
    }
  }
}

TEST(ChunkAttention, SetsOfOneRowAndSetsWithoutSpans) {
  Case c;
  c.num_tokens = 90;
  c.num_rows = 5;
  c.sets = {{{}, 85}, {{}, 86}, {{}, 0}, {{{0, 1}}, 88}, {{{3, 4}, {50, 70}}, 89}};
  expect_equals_oracle(c);
}

TEST(ChunkAttention, RowsDoNotDependOnRowsThreadsTilesOrSplits) {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    Case c;
    c.num_heads = 6;
    c.num_kv_heads = 2;
    c.head_dim = 20;
    c.num_tokens = 1300;
    c.num_rows = 250;
    c.rotates = true;
    c.positions = positions;
    c.sets = {sparse_set(900), {}, sparse_set(1000)};
    AttentionRun<float> whole(c);
    whole.run();
    const std::vector<float> expected = whole.out();
    const std::vector<float> expected_lse = whole.lse();
    for (int threads = 2; threads <= 4; ++threads) {
      AttentionRun<float> again(c);
      again.run(threads);
      EXPECT_EQ(expected, again.out());
      EXPECT_EQ(expected_lse, again.lse());
    }
    // The same rows under any other tiling.
    AttentionRun<float> cut(c);
    std::vector<AttentionTile> pieces;
    for (const AttentionTile& tile : whole.tiles()) {
      for (std::int64_t done = 0; done < tile.num_rows;) {
        const std::int64_t rows =
            std::min<std::int64_t>(1 + (tile.first_row + done) % 37, tile.num_rows - done);
        pieces.push_back({tile.first_row + done, rows, tile.set});
        done += rows;
      }
    }
    cut.tiles() = pieces;
    cut.run(2);
    EXPECT_EQ(expected, cut.out());
    EXPECT_EQ(expected_lse, cut.lse());
    // Each row alone, as decoding computes it.
    const std::size_t width = 120;
    for (const AttentionTile& tile : whole.tiles()) {
      for (std::int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; r += 9) {
        AttentionRun<float> all(c);
        ChunkAttentionArgs<float> args = all.args();
        args.q = args.q.middle_rows(r, 1);
        args.out = args.out.middle_rows(r, 1);
        args.first_token += r;
        args.maybe_lse = nullptr;
        const AttentionTile one{0, 1, tile.set};
        args.tiles = {&one, 1};
        ThreadPool pool(1 + static_cast<int>(r % 3));
        std::vector<float> workspace(static_cast<std::size_t>(chunk_attention_workspace_floats(
            c.num_heads, c.num_kv_heads, c.head_dim, c.num_tokens, pool.num_threads())));
        ASSERT_TRUE(chunk_attention(args, std::span<float>(workspace), pool).ok());
        ASSERT_TRUE(std::equal(args.out.data, args.out.data + width,
                               expected.begin() + r * static_cast<std::int64_t>(width)))
            << "row " << r;
      }
    }
  }
}

TEST(ChunkAttention, NanReachesExactlyTheRowsThatSeeIt) {
  for (const std::int64_t rows : {1, 3}) {
    Case c;
    c.num_tokens = 100;
    c.num_rows = rows;
    c.sets = {{{{0, 10}}, 60}};
    const std::size_t width = 64;
    {
      AttentionRun<float> run(c);  // a value of the first head group that all rows attend
      run.stored_values()[70 * 32] = std::numeric_limits<float>::quiet_NaN();
      run.run();
      const std::vector<float> out = run.out();
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        EXPECT_TRUE(std::isnan(out[r * width]));
        EXPECT_FALSE(std::isnan(out[r * width + 1]));
        EXPECT_FALSE(std::isnan(out[r * width + 32]));
      }
    }
    {
      AttentionRun<float> run(c);  // nobody attends token 30
      for (std::size_t i = 0; i < 32; ++i) {
        run.stored_values()[30 * 32 + i] = std::numeric_limits<float>::quiet_NaN();
      }
      run.run();
      run.expect_equals_oracle();
    }
    {
      AttentionRun<float> run(c);
      run.q()[17] = std::numeric_limits<float>::quiet_NaN();  // head 1 of the first row
      run.run();
      const std::vector<float> out = run.out();
      for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 16 == 1) << i;
      EXPECT_TRUE(std::isnan(run.lse()[1]));
    }
  }
}

TEST(ChunkAttention, LargeScoresStayFinite) {
  Case c;
  c.num_tokens = 200;
  c.num_rows = 20;
  c.query_size = 1e4F;
  AttentionRun<float> run(c);
  run.run();
  for (const float value : run.out()) EXPECT_TRUE(std::isfinite(value));
}

template <typename Change>
Status status_of(Change&& change) {
  Case c;
  c.num_rows = 3;
  c.sets = {{{{0, 10}, {20, 30}}, 150}};
  AttentionRun<float> run(c);
  ChunkAttentionArgs<float> args = run.args();
  ThreadPool pool(2);
  std::vector<float> workspace(
      static_cast<std::size_t>(chunk_attention_workspace_floats(4, 2, 16, 200, 2)));
  std::span<float> space(workspace);
  change(args, space);
  return chunk_attention(args, space, pool);
}

TEST(ChunkAttention, RefusesContradictions) {
  using Args = ChunkAttentionArgs<float>;
  using Space = std::span<float>;
  EXPECT_TRUE(status_of([](Args&, Space&) {}).ok());
  const auto code = [](auto change) { return status_of(change).code(); };
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 15; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 514; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 5; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_kv_heads = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 258; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.q.cols = 60; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.out.rows = 2; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.kv.num_tokens = 199; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.first_token = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.tiles = {}; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.q_rotation = Rotation::kNone; }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.positions = Positions::kInCache; }),
            StatusCode::kInvalidArgument);
  const Status small = status_of([](Args&, Space& space) { space = space.first(100); });
  EXPECT_EQ(small.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(small.message().find("workspace of 100 floats"), std::string::npos);
}

TEST(ChunkAttention, RefusesBadTilesAndSets) {
  AttendedSet late{{}, 198};
  AttendedSet overlapping{{{0, 10}, {5, 20}}, 150};
  AttendedSet backwards{{{30, 10}}, 150};
  AttendedSet into_tail{{{0, 151}}, 150};
  AttendedSet negative{{}, -1};
  const AttendedSet good{};
  const auto refused = [](std::vector<AttentionTile> tiles) {
    return status_of([&](ChunkAttentionArgs<float>& a, std::span<float>&) {
             a.tiles = tiles;
           }).code() == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused({{0, 3, &good}}));
  EXPECT_TRUE(refused({{0, 3, nullptr}}));
  EXPECT_TRUE(refused({{0, 2, &good}}));
  EXPECT_TRUE(refused({{0, 4, &good}}));
  EXPECT_TRUE(refused({{1, 2, &good}}));
  EXPECT_TRUE(refused({{0, 1, &good}, {2, 1, &good}}));
  EXPECT_TRUE(refused({{0, 0, &good}, {0, 3, &good}}));
  for (const AttendedSet* set : {&late, &overlapping, &backwards, &into_tail, &negative}) {
    EXPECT_TRUE(refused({{0, 3, set}}));
  }
}

TEST(ChunkAttention, RopeTableMustReachTheLargestTurn) {
  Case c;
  c.num_tokens = 100;
  c.num_rows = 2;
  c.rotates = true;
  c.sets = {{{{0, 10}}, 70}};
  ThreadPool pool(1);
  std::vector<float> workspace(
      static_cast<std::size_t>(chunk_attention_workspace_floats(4, 2, 16, 100, 1)));
  const auto accepts = [&](std::int64_t positions, bool in_cache, Rotation stored) {
    c.positions = in_cache ? Positions::kInCache : Positions::kOriginal;
    c.q_rotation = stored;
    c.key_rotation = stored;
    AttentionRun<float> run(c);
    ChunkAttentionArgs<float> args = run.args();
    const RopeTable rope(frequencies(16), 0, positions);
    args.rope = &rope;
    return chunk_attention(args, std::span<float>(workspace), pool).ok();
  };
  EXPECT_TRUE(accepts(100, false, Rotation::kNone));
  EXPECT_FALSE(accepts(99, false, Rotation::kNone));
  EXPECT_TRUE(accepts(40, true, Rotation::kNone));  // 10 + 30 attended
  EXPECT_FALSE(accepts(39, true, Rotation::kNone));
  EXPECT_TRUE(accepts(61, true, Rotation::kAtTokenPosition));  // the tail moves 60 back
  EXPECT_FALSE(accepts(60, true, Rotation::kAtTokenPosition));
}

TEST(ChunkAttention, NoRowsDoNothing) {
  ThreadPool pool(1);
  ChunkAttentionArgs<float> args;
  args.num_heads = 2;
  args.num_kv_heads = 1;
  args.head_dim = 4;
  args.q = {nullptr, 0, 8};
  args.out = {nullptr, 0, 8};
  EXPECT_TRUE(chunk_attention(args, std::span<float>(), pool).ok());
}

}  // namespace
}  // namespace chunkllm
