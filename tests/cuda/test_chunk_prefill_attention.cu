// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "cuda/support/device.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"

namespace chunkllm::kernels {

void PrintTo(PrefillPath path, std::ostream* out) {
  *out << (path == PrefillPath::kMma ? "mma" : path == PrefillPath::kWgmma ? "wgmma" : "auto");
}

namespace {

using testing::DeviceBuffer;
using testing::DeviceTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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

std::vector<float> normal_values(std::size_t size, std::uint64_t seed, float deviation = 1.0F) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
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
    values_ = testing::widened(
        testing::rounded<T>(normal_values(size(num_tokens_) * kv_width(), seed + 2)));
    if (!turns_given_q()) q_ = testing::widened(testing::rounded<T>(q_));
    if (!turns_given_keys()) keys_ = testing::widened(testing::rounded<T>(keys_));
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
    std::vector<float> spaced(size(num_rows_) * size(stride_), kNan);
    for (std::size_t r = 0; r < size(num_rows_); ++r) {
      std::copy_n(q.begin() + std::ptrdiff_t(r * q_width()), q_width(),
                  spaced.begin() + std::ptrdiff_t(r * size(stride_)));
    }
    device_q_ = std::make_unique<DeviceBuffer<T>>(testing::rounded<T>(spaced), kRowOffset);
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
    return launch_chunk_prefill_attention(args(), stream, path_);
  }

  /// Uploads, runs and reads back. False where this path does not take the case.
  bool run(cudaStream_t stream) {
    upload();
    const Status status = launch(stream);
    if (path_ == PrefillPath::kWgmma && status.code() == StatusCode::kUnsupported) return false;
    EXPECT_TRUE(testing::succeeds(status));
    read_back(stream);
    return true;
  }
  void read_back(cudaStream_t stream) {
    EXPECT_TRUE(testing::succeeds(cudaStreamSynchronize(stream)));
    const std::vector<float> spaced = testing::widened(out_->download());
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
    const double chain = 4.0 * (case_.head_dim + 8) * testing::kUnitRoundoff;
    if (!case_.rotates) return chain;
    const bool by_difference = case_.positions == Positions::kInCache &&
                               (case_.q_rotation == Rotation::kAtTokenPosition ||
                                case_.key_rotation == Rotation::kAtTokenPosition);
    const double angle = by_difference ? 6.0 * testing::kUnitRoundoff * num_tokens_ : 0.0;
    return 2.0 * (chain + 4.0 * unit_of_type() + angle);
  }
  /// Error of a weighted value over n keys: weights and the output are rounded to T; a weight below
  /// the normal range of __half is off by half of its least value.
  [[nodiscard]] double value_bound(double score, double n, double value_size, double out) const {
    const double weight =
        2.0 * std::expm1(score) + unit_of_type() + 4.0 * (n + 16.0) * testing::kUnitRoundoff;
    const double tiny = std::is_same_v<T, __half> ? n * 0x1p-25 * kLargestValue : 0.0;
    return weight * value_size + 1.01 * unit_of_type() * (std::abs(out) + weight * value_size) +
           tiny + 1e-7;
  }
  [[nodiscard]] double lse_bound(double score, double n, double lse) const {
    return 2.0 * std::expm1(score) + 4.0 * (n + 16.0) * testing::kUnitRoundoff +
           8.0 * testing::kUnitRoundoff * std::abs(lse);
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
        ASSERT_TRUE(testing::all_within(out_row(r), expected.out, bounds))
            << "row " << r << " of tile [" << tile.first_row << ", +" << tile.num_rows << ")";
        ASSERT_TRUE(testing::all_within(
            std::span<const float>(lse_values_)
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
      ASSERT_TRUE(testing::succeeds(chunk_attention(args, std::span<float>(workspace), pool)));
      args.out = {expected.data(), 1, width};
      args.kv.values = values.data();
      ASSERT_TRUE(testing::succeeds(chunk_attention(args, std::span<float>(workspace), pool)));
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
      ASSERT_TRUE(testing::all_within(out_row(r), exact, bounds)) << "row " << r;
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
    std::vector<float> placed_keys(size(2 * pages * page_stride), kNan);
    std::vector<float> placed_values(placed_keys.size(), kNan);
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
    device_keys_ = std::make_unique<DeviceBuffer<T>>(testing::rounded<T>(placed_keys), kRowOffset);
    device_values_ = std::make_unique<DeviceBuffer<T>>(testing::rounded<T>(placed_values));
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

/// Every test runs both versions; wgmma is skipped where the device or the build has none.
class ChunkPrefillAttention : public DeviceTest, public ::testing::WithParamInterface<PrefillPath> {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure() || GetParam() != PrefillPath::kWgmma) return;
    int device = 0;
    int major = 0;
    ASSERT_TRUE(testing::succeeds(cudaGetDevice(&device)));
    ASSERT_TRUE(testing::succeeds(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)));
    PrefillRun<__nv_bfloat16> run(PrefillCase{}, GetParam(), seed());
    if (run.run(stream_)) return;
    if (major == 9) FAIL() << "wgmma is refused on sm_90: is this built for sm_90a?";
    GTEST_SKIP() << "needs compute capability 9.0 and code for sm_90a";
  }

  template <typename T = __nv_bfloat16>
  void expect_equals_oracle(const PrefillCase& c, const std::string& what) {
    SCOPED_TRACE(what);
    PrefillRun<T> run(c, GetParam(), seed());
    if (run.run(stream_)) run.expect_equals_oracle();
  }
};

INSTANTIATE_TEST_SUITE_P(Paths, ChunkPrefillAttention,
                         ::testing::Values(PrefillPath::kMma, PrefillPath::kWgmma),
                         [](const auto& info) {
                           return info.param == PrefillPath::kMma ? "Mma" : "Wgmma";
                         });

TEST_P(ChunkPrefillAttention, OneTileOfAnyLength) {
  for (const std::int32_t rows : {1, 15, 16, 17, 24, 31, 32, 33, 64, 65, 127, 128, 129}) {
    PrefillCase c;
    c.tile_rows = {rows};
    c.row_step = 5;
    expect_equals_oracle(c, std::to_string(rows) + " rows");
  }
}

TEST_P(ChunkPrefillAttention, SetsOfAnySize) {
  for (const std::int32_t listed : {0, 1, 50, 63, 64, 65, 114, 115, 116, 127, 128, 129, 1000}) {
    PrefillCase c;
    c.first_token = 1100;
    c.listed = {listed};
    c.row_step = 7;
    expect_equals_oracle<__half>(c, std::to_string(listed) + " listed tokens");
  }
}

TEST_P(ChunkPrefillAttention, ManyTilesWithTheirOwnSets) {
  PrefillCase c;
  c.tile_rows = {1, 15, 16, 17, 24, 31, 32, 33, 8, 40, 127, 2, 129, 3};
  c.listed = {0, 100, 1, 64, 250, 128, 7};
  c.row_step = 6;
  expect_equals_oracle(c, "tiles of many lengths");
  c.tile_rows = std::vector<std::int32_t>(40, 9);  // none longer than a block: slot i is tile i
  expect_equals_oracle(c, "tiles of one length");
}

TEST_P(ChunkPrefillAttention, DenseFromTheFirstToken) {
  for (const std::int32_t rows : {1, 2, 64, 127, 300}) {
    PrefillCase c;
    c.first_token = 0;
    c.tile_rows = {rows};
    c.listed = {0};
    c.tail_back = 1 << 20;
    c.row_step = 13;
    expect_equals_oracle(c, std::to_string(rows) + " rows");
  }
}

TEST_P(ChunkPrefillAttention, HeadSizesRatiosAndTypes) {
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const std::int32_t ratio : {1, 3, 4, 7, 16}) {
      PrefillCase c;
      c.head_dim = head_dim;
      c.num_kv_heads = 2;
      c.num_heads = 2 * ratio;
      c.tile_rows = {37, 20};
      c.listed = {90, 71};
      c.row_step = 19;
      const std::string what =
          "head_dim " + std::to_string(head_dim) + ", ratio " + std::to_string(ratio);
      expect_equals_oracle<__nv_bfloat16>(c, what + ", bf16");
      expect_equals_oracle<__half>(c, what + ", f16");
    }
  }
}

TEST_P(ChunkPrefillAttention, CacheLayouts) {
  for (const std::int32_t page_size : {0, 1, 16, 64}) {
    for (const bool heads_first : {false, true}) {
      PrefillCase c;
      c.page_size = page_size;
      c.heads_first = heads_first;
      c.tile_rows = {24, 40};
      c.row_step = 9;
      expect_equals_oracle(c, "pages of " + std::to_string(page_size) +
                                  (heads_first ? ", heads first" : ", tokens first"));
    }
  }
}

TEST_P(ChunkPrefillAttention, Windows) {
  for (const std::int32_t window : {1, 2, 63, 64, 65, 128, 200, 1000}) {
    PrefillCase c;
    c.window = window;
    c.tile_rows = {40, 100};
    c.listed = {200, 33};
    c.row_step = 11;
    expect_equals_oracle(c, "window " + std::to_string(window));
  }
}

TEST_P(ChunkPrefillAttention, TurnsQueriesAndKeys) {
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
      for (const Rotation q_rotation : {Rotation::kNone, Rotation::kAtTokenPosition}) {
        for (const Rotation key_rotation : {Rotation::kNone, Rotation::kAtTokenPosition}) {
          PrefillCase c;
          c.head_dim = head_dim;
          c.num_heads = 3;
          c.num_kv_heads = 1;
          c.rotates = true;
          c.positions = positions;
          c.q_rotation = q_rotation;
          c.key_rotation = key_rotation;
          c.tile_rows = {24, 50};
          c.row_step = 17;
          const std::string what =
              std::string(positions == Positions::kInCache ? "in-cache" : "original") +
              (q_rotation == Rotation::kNone ? ", plain q" : ", turned q") +
              (key_rotation == Rotation::kNone ? ", plain k" : ", turned k") + ", head_dim " +
              std::to_string(head_dim);
          expect_equals_oracle<__half>(c, what);
        }
      }
    }
  }
}

TEST_P(ChunkPrefillAttention, SharpScoresKeepTheirMaximum) {
  PrefillCase c;
  c.query_size = 8.0F;
  c.tile_rows = {40};
  c.listed = {280};
  expect_equals_oracle<__half>(c, "f16");
  expect_equals_oracle<__nv_bfloat16>(c, "bf16");
}

TEST_P(ChunkPrefillAttention, LongTextEqualsTheCpu) {
  PrefillCase c;
  c.first_token = 16384 - 300;
  c.tile_rows = {24, 8, 40, 128, 100};
  c.listed = {1600, 3000, 0, 777, 16000};
  c.tail_back = 70;
  c.page_size = 64;
  PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
  ASSERT_TRUE(run.run(stream_));
  run.expect_equals_cpu({0, 23, 24, 31, 32, 71, 72, 150, 199, 200, 299});
}

TEST_P(ChunkPrefillAttention, LongDenseTextEqualsTheCpu) {
  PrefillCase c;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.first_token = 0;
  c.tile_rows = {16384};
  c.listed = {0};
  c.tail_back = 1 << 20;
  PrefillRun<__half> run(c, GetParam(), seed());
  ASSERT_TRUE(run.run(stream_));
  for (const float value : run.out()) ASSERT_TRUE(std::isfinite(value));
  run.expect_equals_cpu({0, 63, 64, 8191, 8192, 16383});
}

// A row's result depends on its own query, its set and the cache: not on where its tile, its block
// of rows or its prefill block ends.
TEST_P(ChunkPrefillAttention, ARowIsTheSameWhateverStandsBesideIt) {
  PrefillCase whole;
  whole.num_heads = 6;
  whole.first_token = 0;
  whole.tile_rows = {200};
  whole.listed = {0};
  whole.tail_back = 1 << 20;
  for (const std::int32_t window : {0, 90}) {
    whole.window = window;
    PrefillRun<__nv_bfloat16> all(whole, GetParam(), seed());
    ASSERT_TRUE(all.run(stream_));
    for (const std::vector<std::int32_t>& tiles :
         {std::vector<std::int32_t>(200, 1), {64, 64, 72}, {17, 50, 1, 132}}) {
      PrefillCase cut = whole;
      cut.tile_rows = tiles;
      PrefillRun<__nv_bfloat16> parts(cut, GetParam(), seed());
      ASSERT_TRUE(parts.run(stream_));
      EXPECT_EQ(parts.out(), all.out()) << tiles.size() << " tiles, window " << window;
      EXPECT_EQ(parts.lse(), all.lse()) << tiles.size() << " tiles, window " << window;
    }
    PrefillCase last = whole;  // the rows from 130 on, as a later block of the prompt
    last.first_token = 130;
    last.tile_rows = {33, 37};
    PrefillRun<__nv_bfloat16> later(last, GetParam(), seed());
    later.keys() = all.keys();
    later.values() = all.values();
    std::copy(all.q().begin() + std::ptrdiff_t(130 * all.q_width()), all.q().end(),
              later.q().begin());
    ASSERT_TRUE(later.run(stream_));
    for (std::int32_t r = 0; r < 70; ++r) {
      const auto a = later.out_row(r);
      const auto b = all.out_row(130 + r);
      ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin()))
          << "row " << r << ", window " << window;
    }
  }
}

TEST_P(ChunkPrefillAttention, HiddenKeysWeighNothing) {
  PrefillCase c;
  c.tile_rows = {40};
  PrefillRun<__half> plain(c, GetParam(), seed());
  ASSERT_TRUE(plain.run(stream_));
  // The last token is hidden from all rows but its own.
  for (const float key : {kNan, 6e4F}) {
    PrefillRun<__half> odd(c, GetParam(), seed());
    std::fill(odd.keys().end() - std::ptrdiff_t(odd.kv_width()), odd.keys().end(), key);
    std::fill(odd.values().end() - std::ptrdiff_t(odd.kv_width()), odd.values().end(), 6e4F);
    ASSERT_TRUE(odd.run(stream_));
    for (std::int32_t r = 0; r < 39; ++r) {
      const auto a = plain.out_row(r);
      const auto b = odd.out_row(r);
      ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin())) << "row " << r << ", key " << key;
    }
    if (std::isnan(key)) {
      for (const float value : odd.out_row(39)) EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST_P(ChunkPrefillAttention, NanReachesTheOutput) {
  PrefillCase c;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.tile_rows = {24};
  c.listed = {300};
  {
    PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
    run.q()[7 * run.q_width() + 130] = kNan;  // row 7, head 1
    ASSERT_TRUE(run.run(stream_));
    for (std::int32_t r = 0; r < 24; ++r) {
      for (std::size_t i = 0; i < run.q_width(); ++i) {
        ASSERT_EQ(std::isnan(run.out_row(r)[i]), r == 7 && i / 128 == 1) << r << ", " << i;
      }
    }
    EXPECT_TRUE(std::isnan(run.lse()[7 * 4 + 1]));
  }
  {
    PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
    run.keys()[5 * run.kv_width() + 3] = kNan;  // a listed token, KV head 0
    ASSERT_TRUE(run.run(stream_));
    for (std::size_t i = 0; i < run.q_width(); ++i) {
      ASSERT_EQ(std::isnan(run.out_row(11)[i]), i / 128 < 2) << i;
    }
  }
  {
    PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
    run.values()[5 * run.kv_width() + 128 + 3] = kNan;  // KV head 1, dimension 3
    ASSERT_TRUE(run.run(stream_));
    for (std::size_t i = 0; i < run.q_width(); ++i) {
      ASSERT_EQ(std::isnan(run.out_row(11)[i]), i / 128 >= 2 && i % 128 == 3) << i;
    }
  }
}

TEST_P(ChunkPrefillAttention, EqualKeysShareTheWeight) {
  PrefillCase c;
  c.tile_rows = {33};
  PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
  std::fill(run.keys().begin(), run.keys().end(), 0.5F);
  ASSERT_TRUE(run.run(stream_));
  run.expect_equals_oracle();
}

TEST_P(ChunkPrefillAttention, RunsAreBitEqualInGraphsAndOnTwoStreams) {
  PrefillCase c;
  c.tile_rows = {24, 40, 129, 7};
  PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
  PrefillRun<__nv_bfloat16> other(c, GetParam(), seed());
  ASSERT_TRUE(run.run(stream_));
  const std::vector<float> expected = run.out();
  const std::vector<float> expected_lse = run.lse();
  run.poison_outputs();
  ASSERT_TRUE(testing::succeeds(run.launch(stream_)));
  run.read_back(stream_);
  EXPECT_EQ(run.out(), expected) << "second run";
  run.poison_outputs();
  replay_as_graph([&](cudaStream_t stream) { return run.launch(stream); }, 3);
  run.read_back(stream_);
  EXPECT_EQ(run.out(), expected) << "graph";
  EXPECT_EQ(run.lse(), expected_lse) << "graph";

  cudaStream_t second = nullptr;
  ASSERT_TRUE(testing::succeeds(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking)));
  other.upload();
  run.poison_outputs();
  ASSERT_TRUE(testing::succeeds(cudaDeviceSynchronize()));
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(testing::succeeds(run.launch(stream_)));
    EXPECT_TRUE(testing::succeeds(other.launch(second)));
  }
  run.read_back(stream_);
  other.read_back(second);
  EXPECT_EQ(run.out(), expected) << "first of two streams";
  EXPECT_EQ(other.out(), expected) << "second of two streams";
  EXPECT_TRUE(testing::succeeds(cudaStreamDestroy(second)));
}

TEST_P(ChunkPrefillAttention, LseAndPaddedBoundsAreOptional) {
  PrefillCase c;
  c.tile_rows = {24, 5};
  PrefillRun<__nv_bfloat16> run(c, GetParam(), seed());
  ASSERT_TRUE(run.run(stream_));
  const std::vector<float> expected = run.out();
  run.poison_outputs();
  PrefillAttentionArgs<__nv_bfloat16> args = run.args();
  args.maybe_lse = nullptr;
  args.max_tile_rows = 5000;  // more slots than tiles need
  ASSERT_TRUE(testing::succeeds(launch_chunk_prefill_attention(args, stream_, GetParam())));
  run.read_back(stream_);
  EXPECT_EQ(run.out(), expected);
}

// What is refused is refused before anything touches a device.
class Refusals : public ::testing::Test {
 protected:
  Refusals() {
    auto* place = reinterpret_cast<__half*>(std::uintptr_t{4096});
    args_.q = place;
    args_.out = place;
    args_.q_stride = args_.out_stride = 4 * 128;
    args_.kv.keys = args_.kv.values = place;
    args_.kv.token_stride = 128;
    args_.kv.head_stride = 128;
    args_.sets.num_span_tokens = args_.sets.tail_begin = reinterpret_cast<std::int32_t*>(place);
    args_.sets.num_sets = 1;
    args_.tiles = reinterpret_cast<const PrefillTile*>(place);
    args_.num_tiles = 1;
    args_.max_tile_rows = args_.num_rows = 3;
    args_.num_heads = 4;
    args_.num_kv_heads = 1;
    args_.head_dim = 128;
  }
  void expect_refused(StatusCode code, const std::string& word) const {
    const Status status = launch_chunk_prefill_attention(args_, nullptr);
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  }
  PrefillAttentionArgs<__half> args_;
};

TEST_F(Refusals, HeadSize) {
  args_.head_dim = 80;
  expect_refused(StatusCode::kUnsupported, "64, 96, 128 and 256");
}
TEST_F(Refusals, HeadRatio) {
  args_.num_heads = 17;
  expect_refused(StatusCode::kUnsupported, "ratios from 1 to 16");
}
TEST_F(Refusals, MisalignedQueries) {
  ++args_.q;
  expect_refused(StatusCode::kInvalidArgument, "16 bytes");
}
TEST_F(Refusals, MisalignedCacheRows) {
  args_.kv.token_stride = 132;
  expect_refused(StatusCode::kInvalidArgument, "16 bytes");
}
TEST_F(Refusals, RowsThatOverlap) {
  args_.out_stride = 3 * 128;
  expect_refused(StatusCode::kInvalidArgument, "strides");
}
TEST_F(Refusals, MissingTiles) {
  args_.num_tiles = 0;
  expect_refused(StatusCode::kInvalidArgument, "tiles");
}
TEST_F(Refusals, MissingSets) {
  args_.sets.tail_begin = nullptr;
  expect_refused(StatusCode::kInvalidArgument, "sets");
}
TEST_F(Refusals, PagesWithoutASize) {
  args_.kv.page_table = args_.sets.tail_begin;
  args_.kv.page_size = 0;
  expect_refused(StatusCode::kInvalidArgument, "page_size");
}
TEST_F(Refusals, RotationWithoutATable) {
  args_.kv.rotation = Rotation::kNone;
  expect_refused(StatusCode::kInvalidArgument, "RoPE");
}
TEST_F(Refusals, ScaleThatTurnsTheOrder) {
  args_.scale = -1.0F;
  expect_refused(StatusCode::kInvalidArgument, "scale");
}
TEST_F(Refusals, NoRowsNeedNothing) {
  args_ = {};
  args_.num_heads = args_.num_kv_heads = 1;
  args_.head_dim = 64;
  EXPECT_TRUE(testing::succeeds(launch_chunk_prefill_attention(args_, nullptr)));
  EXPECT_EQ(chunk_prefill_attention_workspace_bytes(args_), 0U);
}

}  // namespace
}  // namespace chunkllm::kernels
