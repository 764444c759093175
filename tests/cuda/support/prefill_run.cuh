// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "cuda/support/device.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::testing {

using kernels::PrefillAttentionArgs;
using kernels::PrefillPath;
using kernels::PrefillTile;

inline constexpr float kNanValue = std::numeric_limits<float>::quiet_NaN();

/// Tiles one behind the other, each with a set of its own.
struct PrefillCase {
  std::int32_t head_dim = 128;
  std::int32_t num_heads = 4;
  std::int32_t num_kv_heads = 2;
  std::int32_t first_token = 300;
  std::vector<std::int32_t> tile_rows = {24};
  std::vector<std::int32_t> listed = {100};  // span tokens of tile i: listed[i % size]
  std::int32_t tail_back = 13;               // tokens of the tail in front of a tile's first row
  std::int32_t window = 0;
  std::int32_t page_size = 0;  // 0: contiguous
  bool heads_first = false;    // HND instead of NHD
  bool rotates = false;
  Positions positions = Positions::kOriginal;
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Rotation key_rotation = Rotation::kAtTokenPosition;
  float query_size = 1.0F;
  std::int32_t row_step = 1;  // rows compared with the oracle: every so many and each tile's ends
};

inline std::vector<float> normal_values(std::size_t size, std::uint64_t seed,
                                        float deviation = 1.0F) {
  std::mt19937_64 random(seed);
  return random_values(random, static_cast<std::int64_t>(size), deviation);
}

template <typename T>
class PrefillRun {
 public:
  PrefillRun(const PrefillCase& c, PrefillPath path, std::uint64_t seed) : case_(c), path_(path) {
    BackboneConfig config;
    config.head_dim = c.head_dim;
    frequencies_ = std::make_unique<RopeFrequencies>(config);
    for (const std::int32_t rows : c.tile_rows) num_rows_ += rows;
    num_tokens_ = c.first_token + num_rows_;
    rope_ = RopeTable(*frequencies_, 0, num_tokens_ + 1);
    q_ = normal_values(size(num_rows_) * q_width(), seed, c.query_size);
    keys_ = normal_values(size(num_tokens_) * kv_width(), seed + 1);
    values_ = widened(rounded<T>(normal_values(size(num_tokens_) * kv_width(), seed + 2)));
    if (!turns_given_q()) q_ = widened(rounded<T>(q_));
    if (!turns_given_keys()) keys_ = widened(rounded<T>(keys_));
    make_sets(seed + 3);
  }

  std::vector<float>& q() { return q_; }
  std::vector<float>& keys() { return keys_; }
  std::vector<float>& values() { return values_; }
  [[nodiscard]] std::int32_t num_rows() const { return num_rows_; }
  [[nodiscard]] std::size_t q_width() const { return size(case_.num_heads * case_.head_dim); }
  [[nodiscard]] std::size_t kv_width() const { return size(case_.num_kv_heads * case_.head_dim); }

  /// Puts everything on the device. `extra` elements stand between rows of queries and outputs.
  void upload(std::int64_t extra = 8) {
    stride_ = static_cast<std::int64_t>(q_width()) + extra;
    std::vector<float> q = q_;
    if (turns_given_q()) {
      rotate_rows({q.data(), num_rows_, static_cast<std::int64_t>(q_width())}, case_.num_heads,
                  RopeTable(*frequencies_, case_.first_token, num_rows_), case_.first_token);
    }
    std::vector<float> spaced(size(num_rows_) * size(stride_), kNanValue);
    for (std::size_t r = 0; r < size(num_rows_); ++r) {
      std::copy_n(q.begin() + std::ptrdiff_t(r * q_width()), q_width(),
                  spaced.begin() + std::ptrdiff_t(r * size(stride_)));
    }
    device_q_ = std::make_unique<DeviceBuffer<T>>(rounded<T>(spaced), kRowOffset);
    out_ = std::make_unique<DeviceBuffer<T>>(spaced.size(), kRowOffset);
    lse_ = std::make_unique<DeviceBuffer<float>>(size(num_rows_ * case_.num_heads), 1);
    place();
    rope_values_ = std::make_unique<DeviceBuffer<float>>(std::vector<float>(
        rope_.row(0), rope_.row(0) + size(num_tokens_ + 1) * size(case_.head_dim)));
    tiles_ = std::make_unique<DeviceBuffer<PrefillTile>>(host_tiles_);
    span_tokens_ = std::make_unique<DeviceBuffer<std::int32_t>>(host_spans_, 1);
    num_span_tokens_ = std::make_unique<DeviceBuffer<std::int32_t>>(host_num_spans_, 3);
    tail_begin_ = std::make_unique<DeviceBuffer<std::int32_t>>(host_tails_, 1);
  }

  PrefillAttentionArgs<T> args() {
    PrefillAttentionArgs<T> args;
    args.q = device_q_->data();
    args.out = out_->data();
    args.q_stride = args.out_stride = stride_;
    args.kv = kv_;
    args.seq = kSeq;
    args.sets.span_tokens = span_tokens_->data();
    args.sets.num_span_tokens = num_span_tokens_->data();
    args.sets.tail_begin = tail_begin_->data();
    args.sets.num_sets = static_cast<std::int32_t>(host_tails_.size());
    args.sets.span_capacity = span_capacity_;
    args.tiles = tiles_->data();
    args.num_tiles = static_cast<std::int32_t>(host_tiles_.size());
    args.max_tile_rows = *std::max_element(case_.tile_rows.begin(), case_.tile_rows.end());
    args.first_token = case_.first_token;
    args.num_rows = num_rows_;
    args.num_heads = case_.num_heads;
    args.num_kv_heads = case_.num_kv_heads;
    args.head_dim = case_.head_dim;
    args.scale = scale();
    args.q_rotation = case_.rotates ? case_.q_rotation : Rotation::kAtTokenPosition;
    args.positions = case_.positions;
    args.rope = {rope_values_->data(), num_tokens_ + 1};
    args.window = case_.window;
    args.maybe_lse = lse_->data();
    return args;
  }

  Status launch(cudaStream_t stream) {
    return kernels::launch_chunk_prefill_attention(args(), stream, path_);
  }

  /// Uploads, runs and reads back. False where this path does not take the case.
  bool run(cudaStream_t stream) {
    upload();
    const Status status = launch(stream);
    if (path_ == PrefillPath::kWgmma && status.code() == StatusCode::kUnsupported) return false;
    EXPECT_TRUE(succeeds(status));
    read_back(stream);
    return true;
  }
  void read_back(cudaStream_t stream) {
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(stream)));
    const std::vector<float> spaced = widened(out_->download());
    out_values_.clear();
    for (std::size_t r = 0; r < size(num_rows_); ++r) {
      const auto row = spaced.begin() + std::ptrdiff_t(r * size(stride_));
      out_values_.insert(out_values_.end(), row, row + std::ptrdiff_t(q_width()));
      for (auto gap = row + std::ptrdiff_t(q_width()); gap != row + stride_; ++gap) {
        EXPECT_TRUE(std::isnan(*gap)) << "gap behind row " << r << " was written";
      }
    }
    lse_values_ = lse_->download();
    EXPECT_TRUE(out_->intact());
    EXPECT_TRUE(lse_->intact());
  }
  void poison_outputs() {
    out_->poison();
    lse_->poison();
  }
  [[nodiscard]] const std::vector<float>& out() const { return out_values_; }
  [[nodiscard]] const std::vector<float>& lse() const { return lse_values_; }
  [[nodiscard]] std::span<const float> out_row(std::int32_t r) const {
    return std::span<const float>(out_values_).subspan(size(r) * q_width(), q_width());
  }

  [[nodiscard]] oracle::TokenList attended(std::int32_t row) const {
    std::size_t tile = 0;
    while (row >= host_tiles_[tile].first_row + host_tiles_[tile].num_rows) ++tile;
    oracle::TokenList tokens;
    for (std::int32_t i = 0; i < host_num_spans_[tile]; ++i) {
      tokens.push_back(host_spans_[tile * size(span_capacity_) + size(i)]);
    }
    for (std::int32_t t = host_tails_[tile]; t <= case_.first_token + row; ++t) tokens.push_back(t);
    return tokens;
  }

  /// Relative error of one score, in units of the largest sum of its products' sizes.
  ///
  /// The matrix units add products in f32, truncating: at most two unit roundoffs an addition.
  /// Operands that are turned here or before they were stored were rounded once more each, or twice
  /// where both happened; a rotation mixes two dimensions, so sizes may grow twofold. A turn to a
  /// position has an angle that is exact by definition of the table; a turn by a difference of
  /// positions is off by up to six roundoffs of the position in radians.
  [[nodiscard]] double score_error() const {
    const double chain = 4.0 * (case_.head_dim + 8) * kUnitRoundoff;
    if (!case_.rotates) return chain;
    const bool by_difference = case_.positions == Positions::kInCache &&
                               (case_.q_rotation == Rotation::kAtTokenPosition ||
                                case_.key_rotation == Rotation::kAtTokenPosition);
    const double angle = by_difference ? 6.0 * kUnitRoundoff * num_tokens_ : 0.0;
    return 2.0 * (chain + 4.0 * unit_of_type() + angle);
  }
  /// Error of a weighted value over n keys: weights and the output are rounded to T; a weight below
  /// the normal range of __half is off by half of its least value.
  [[nodiscard]] double value_bound(double score, double n, double value_size, double out) const {
    const double weight =
        2.0 * std::expm1(score) + unit_of_type() + 4.0 * (n + 16.0) * kUnitRoundoff;
    const double tiny = std::is_same_v<T, __half> ? n * 0x1p-25 * kLargestValue : 0.0;
    return weight * value_size + 1.01 * unit_of_type() * (std::abs(out) + weight * value_size) +
           tiny + 1e-7;
  }
  [[nodiscard]] double lse_bound(double score, double n, double lse) const {
    return 2.0 * std::expm1(score) + 4.0 * (n + 16.0) * kUnitRoundoff +
           8.0 * kUnitRoundoff * std::abs(lse);
  }

  void expect_equals_oracle() const {
    oracle::AttentionShape shape;
    shape.num_heads = case_.num_heads;
    shape.num_kv_heads = case_.num_kv_heads;
    shape.head_dim = case_.head_dim;
    shape.scale = static_cast<double>(scale());
    shape.window = case_.window;
    shape.in_cache = case_.positions == Positions::kInCache;
    if (case_.rotates) {
      shape.angle = [&](std::int64_t position, std::int64_t i) {
        return static_cast<double>(static_cast<float>(position) *
                                   frequencies_->inverse_wavelength[static_cast<std::size_t>(i)]);
      };
    }
    const oracle::Rows keys = rows_of(keys_);
    const oracle::Rows values = rows_of(values_);
    for (const PrefillTile& tile : host_tiles_) {
      for (std::int32_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
        const bool is_end = r == tile.first_row || r == tile.first_row + tile.num_rows - 1;
        if (r % case_.row_step != 0 && !is_end) continue;
        const oracle::TokenList tokens = attended(r);
        const auto first = q_.begin() + std::ptrdiff_t(size(r) * q_width());
        const oracle::Row q(first, first + std::ptrdiff_t(q_width()));
        const oracle::AttentionRow expected = oracle::attend(shape, q, keys, values, tokens);
        std::vector<double> bounds;
        std::vector<double> lse_bounds;
        const auto n = static_cast<double>(tokens.size());
        for (std::size_t i = 0; i < q_width(); ++i) {
          const double score = score_error() * expected.score_sizes[i / size(case_.head_dim)];
          bounds.push_back(value_bound(score, n, expected.value_sizes[i], expected.out[i]));
        }
        for (std::size_t h = 0; h < size(case_.num_heads); ++h) {
          const double score = score_error() * expected.score_sizes[h];
          lse_bounds.push_back(lse_bound(score, n, expected.lse[h]));
        }
        ASSERT_TRUE(all_within(out_row(r), expected.out, bounds))
            << "row " << r << " of tile [" << tile.first_row << ", +" << tile.num_rows << ")";
        ASSERT_TRUE(all_within(std::span<const float>(lse_values_)
                                   .subspan(size(r) * size(case_.num_heads), size(case_.num_heads)),
                               expected.lse, lse_bounds))
            << "lse of row " << r << " of tile [" << tile.first_row << ", +" << tile.num_rows
            << ")";
      }
    }
  }

  /// Compares the rows with `chunk_attention`, whose second run over the values' sizes gives what
  /// the bounds need.
  void expect_equals_cpu(const std::vector<std::int32_t>& rows) const {
    using Stored = std::conditional_t<std::is_same_v<T, __half>, F16, BF16>;
    const auto store = [](const std::vector<float>& values) {
      std::vector<Stored> stored;
      for (const float value : values) stored.push_back(from_f32<Stored>(value));
      return stored;
    };
    std::vector<float> sizes = values_;
    for (float& value : sizes) value = std::abs(value);
    const std::vector<Stored> keys = store(keys_);
    const std::vector<Stored> values = store(values_);
    const std::vector<Stored> value_sizes = store(sizes);
    ThreadPool pool(2);
    const auto width = static_cast<std::int64_t>(q_width());
    for (const std::int32_t r : rows) {
      const oracle::TokenList tokens = attended(r);
      AttendedSet set;
      set.tail_begin = case_.first_token + r;
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        if (!set.spans.empty() && set.spans.back().end == tokens[i]) {
          ++set.spans.back().end;
        } else {
          set.spans.push_back({tokens[i], tokens[i] + 1});
        }
      }
      const AttentionTile tile{0, 1, &set};
      std::vector<float> expected(q_width());
      std::vector<float> lse(size(case_.num_heads));
      std::vector<float> expected_sizes(q_width());
      std::vector<float> workspace(static_cast<std::size_t>(chunk_attention_workspace_floats(
          case_.num_heads, case_.num_kv_heads, case_.head_dim,
          static_cast<std::int64_t>(tokens.size()), pool.num_threads())));
      ChunkAttentionArgs<Stored> args;
      args.q = {q_.data() + size(r) * q_width(), 1, width};
      args.tiles = std::span<const AttentionTile>(&tile, 1);
      args.first_token = case_.first_token + r;
      args.num_heads = case_.num_heads;
      args.num_kv_heads = case_.num_kv_heads;
      args.head_dim = case_.head_dim;
      args.scale = scale();
      args.window = case_.window;
      args.maybe_lse = lse.data();
      args.out = {expected_sizes.data(), 1, width};
      args.kv = contiguous_kv<Stored>(keys.data(), value_sizes.data(), num_tokens_,
                                      case_.num_kv_heads, case_.head_dim);
      ASSERT_TRUE(succeeds(chunk_attention(args, std::span<float>(workspace), pool)));
      args.out = {expected.data(), 1, width};
      args.kv.values = values.data();
      ASSERT_TRUE(succeeds(chunk_attention(args, std::span<float>(workspace), pool)));
      std::vector<double> bounds;
      std::vector<double> exact(expected.begin(), expected.end());
      const auto n = static_cast<double>(tokens.size());
      // No score's products exceed this in sum: Cauchy, with room for 5 deviations in the norms.
      const double score = 1.5 * score_error() * static_cast<double>(scale()) *
                           static_cast<double>(case_.query_size) *
                           (case_.head_dim + 5.0 * std::sqrt(2.0 * case_.head_dim));
      for (std::size_t i = 0; i < q_width(); ++i) {
        bounds.push_back(1.5 *
                         value_bound(score, n, static_cast<double>(expected_sizes[i]), exact[i]));
      }
      ASSERT_TRUE(all_within(out_row(r), exact, bounds)) << "row " << r;
    }
  }

 private:
  static constexpr std::int32_t kSeq = 1;       // sequence 0 is foreign
  static constexpr std::size_t kRowOffset = 8;  // rows start 16 bytes behind a 256 byte boundary
  static constexpr double kLargestValue = 7.0;  // of the normal values drawn

  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(case_.head_dim)); }
  static double unit_of_type() { return std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8; }
  [[nodiscard]] bool turns_given_q() const {
    return case_.rotates && case_.q_rotation == Rotation::kAtTokenPosition;
  }
  [[nodiscard]] bool turns_given_keys() const {
    return case_.rotates && case_.key_rotation == Rotation::kAtTokenPosition;
  }
  [[nodiscard]] oracle::Rows rows_of(const std::vector<float>& values) const {
    oracle::Rows rows;
    for (std::size_t t = 0; t < size(num_tokens_); ++t) {
      const auto first = values.begin() + std::ptrdiff_t(t * kv_width());
      rows.emplace_back(first, first + std::ptrdiff_t(kv_width()));
    }
    return rows;
  }

  void make_sets(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::vector<std::int32_t>> lists;
    std::int32_t row = 0;
    for (std::size_t i = 0; i < case_.tile_rows.size(); ++i) {
      const std::int32_t token = case_.first_token + row;
      const std::int32_t tail = std::max(0, token - case_.tail_back);
      const std::int32_t wanted = std::min(case_.listed[i % case_.listed.size()], tail);
      std::vector<std::int32_t> list;
      for (std::int32_t t = 0; t < tail; ++t) {  // a draw without return, in order
        const auto left = static_cast<std::uint64_t>(tail - t);
        const auto missing = static_cast<std::uint64_t>(wanted) - list.size();
        if (random() % left < missing) list.push_back(t);
      }
      span_capacity_ = std::max(span_capacity_, wanted);
      host_tiles_.push_back({row, case_.tile_rows[i], static_cast<std::int32_t>(i)});
      host_num_spans_.push_back(wanted);
      host_tails_.push_back(tail);
      lists.push_back(list);
      row += case_.tile_rows[i];
    }
    span_capacity_ += 3;  // rows of the list are not full
    host_spans_.assign(lists.size() * size(span_capacity_), -1);
    for (std::size_t i = 0; i < lists.size(); ++i) {
      std::copy(lists[i].begin(), lists[i].end(),
                host_spans_.begin() + std::ptrdiff_t(i * size(span_capacity_)));
    }
  }

  /// Lays keys and values out as the case asks for; gaps, foreign pages and sequences hold NaN.
  void place() {
    std::vector<float> keys = keys_;
    if (turns_given_keys()) {
      rotate_rows({keys.data(), num_tokens_, static_cast<std::int64_t>(kv_width())},
                  case_.num_kv_heads, rope_, 0);
    }
    const std::int64_t page = case_.page_size > 0 ? case_.page_size : num_tokens_;
    const std::int64_t pages = (num_tokens_ + page - 1) / page;
    kv_ = {};
    kv_.token_stride =
        case_.heads_first ? case_.head_dim : static_cast<std::int64_t>(kv_width()) + 16;
    kv_.head_stride = case_.heads_first ? page * case_.head_dim : case_.head_dim;
    const std::int64_t page_stride =
        case_.heads_first ? case_.num_kv_heads * page * case_.head_dim : page * kv_.token_stride;
    std::vector<std::int32_t> table;
    if (case_.page_size > 0) {
      table.assign(size(2 * (pages + 2)), -1);
      for (std::int64_t i = 0; i < pages; ++i) {  // backwards, every other page foreign
        table[size(kSeq * (pages + 2) + i)] = static_cast<std::int32_t>(2 * (pages - 1 - i) + 1);
      }
      kv_.max_pages = static_cast<std::int32_t>(pages + 2);
      kv_.page_size = case_.page_size;
      kv_.page_stride = page_stride;
    } else {
      kv_.seq_stride = page_stride;
    }
    std::vector<float> placed_keys(size(2 * pages * page_stride), kNanValue);
    std::vector<float> placed_values(placed_keys.size(), kNanValue);
    for (std::int64_t t = 0; t < num_tokens_; ++t) {
      const std::int64_t start = case_.page_size > 0
                                     ? table[size(kSeq * (pages + 2) + t / page)] * page_stride +
                                           t % page * kv_.token_stride
                                     : kSeq * page_stride + t * kv_.token_stride;
      for (std::int64_t h = 0; h < case_.num_kv_heads; ++h) {
        const std::size_t to = size(start + h * kv_.head_stride);
        const std::size_t from = size(t) * kv_width() + size(h * case_.head_dim);
        for (std::size_t d = 0; d < size(case_.head_dim); ++d) {
          placed_keys[to + d] = keys[from + d];
          placed_values[to + d] = values_[from + d];
        }
      }
    }
    device_keys_ = std::make_unique<DeviceBuffer<T>>(rounded<T>(placed_keys), kRowOffset);
    device_values_ = std::make_unique<DeviceBuffer<T>>(rounded<T>(placed_values));
    kv_.keys = device_keys_->data();
    kv_.values = device_values_->data();
    if (case_.page_size > 0) {
      page_table_ = std::make_unique<DeviceBuffer<std::int32_t>>(table, 1);
      kv_.page_table = page_table_->data();
    }
    kv_.rotation = case_.rotates ? case_.key_rotation : Rotation::kAtTokenPosition;
  }

  PrefillCase case_;
  PrefillPath path_;
  std::unique_ptr<RopeFrequencies> frequencies_;
  std::int32_t num_rows_ = 0;
  std::int32_t num_tokens_ = 0;
  RopeTable rope_;
  std::vector<float> q_;
  std::vector<float> keys_;
  std::vector<float> values_;
  std::vector<PrefillTile> host_tiles_;
  std::vector<std::int32_t> host_spans_;
  std::vector<std::int32_t> host_num_spans_;
  std::vector<std::int32_t> host_tails_;
  std::int32_t span_capacity_ = 0;
  std::int64_t stride_ = 0;
  cuda::DeviceKvView<const T> kv_;
  std::unique_ptr<DeviceBuffer<T>> device_q_;
  std::unique_ptr<DeviceBuffer<T>> out_;
  std::unique_ptr<DeviceBuffer<T>> device_keys_;
  std::unique_ptr<DeviceBuffer<T>> device_values_;
  std::unique_ptr<DeviceBuffer<float>> lse_;
  std::unique_ptr<DeviceBuffer<float>> rope_values_;
  std::unique_ptr<DeviceBuffer<PrefillTile>> tiles_;
  std::unique_ptr<DeviceBuffer<std::int32_t>> span_tokens_;
  std::unique_ptr<DeviceBuffer<std::int32_t>> num_span_tokens_;
  std::unique_ptr<DeviceBuffer<std::int32_t>> tail_begin_;
  std::unique_ptr<DeviceBuffer<std::int32_t>> page_table_;
  std::vector<float> out_values_;
  std::vector<float> lse_values_;
};

}  // namespace chunkllm::testing
