// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <ostream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/prefill_run.cuh"

namespace chunkllm::kernels {

void PrintTo(PrefillPath path, std::ostream* out) {
  *out << (path == PrefillPath::kMma ? "mma" : path == PrefillPath::kWgmma ? "wgmma" : "auto");
}

namespace {

using testing::DeviceTest;
using testing::PrefillCase;
using testing::PrefillRun;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Nothing where all values are equal; else how many differ, in which rows, and by how much.
std::string difference(std::span<const float> a, std::span<const float> b, std::size_t row_size) {
  if (a.size() != b.size()) return "sizes differ";
  std::size_t count = 0;
  std::size_t first = 0;
  std::size_t last = 0;
  float largest = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    if (count++ == 0) first = i;
    last = i;
    const float apart = std::abs(a[i] - b[i]);
    if (!(apart <= largest)) largest = apart;  // NaN stays
  }
  if (count == 0) return {};
  std::ostringstream text;
  text.precision(9);
  text << count << " of " << a.size() << " values differ, from row " << first / row_size
       << " value " << first % row_size << " (" << a[first] << " for " << b[first] << ") to row "
       << last / row_size << " value " << last % row_size << " (" << a[last] << " for " << b[last]
       << "), at most by " << largest;
  return text.str();
}

/// Every test runs both versions; wgmma is skipped where the device or the build has none.
class ChunkPrefillAttention : public DeviceTest, public ::testing::WithParamInterface<PrefillPath> {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure() || GetParam() != PrefillPath::kWgmma) return;
    const Result<int> major = cuda::device_attribute(cudaDevAttrComputeCapabilityMajor);
    ASSERT_TRUE(testing::succeeds(major.status()));
    PrefillRun<__nv_bfloat16> run(PrefillCase{}, GetParam(), seed());
    if (run.run(stream_)) return;
    if (major.value() == 9) FAIL() << "wgmma is refused on sm_90: is this built for sm_90a?";
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
/// The largest difference relative to the value, or to 1 below it; NaN counts as infinite.
float largest_apart(std::span<const float> a, std::span<const float> b) {
  float largest = a.size() == b.size() ? 0.0F : std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float apart = std::abs(a[i] - b[i]) / std::max(1.0F, std::abs(a[i]));
    if (!(apart <= largest)) largest = apart == apart ? apart : HUGE_VALF;
  }
  return largest;
}

TEST_P(ChunkPrefillAttention, ARowIsTheSameWhateverStandsBesideIt) {
  PrefillCase whole;
  whole.num_heads = 6;
  whole.first_token = 0;
  whole.tile_rows = {200};
  whole.listed = {0};
  whole.tail_back = 1 << 20;
  // On wgmma a score's last bit depends on the row's place among sixteen: these tiles keep it.
  const std::vector<std::int32_t> same_places = {64, 64, 72};
  for (const std::int32_t window : {0, 90}) {
    whole.window = window;
    PrefillRun<__nv_bfloat16> all(whole, GetParam(), seed());
    ASSERT_TRUE(all.run(stream_));
    PrefillRun<__nv_bfloat16> again(whole, GetParam(), seed());
    ASSERT_TRUE(again.run(stream_));
    EXPECT_EQ(difference(again.out(), all.out(), all.q_width()), "")
        << "the same once more, window " << window;
    for (const std::vector<std::int32_t>& tiles :
         {same_places, std::vector<std::int32_t>(200, 1), {17, 50, 1, 132}}) {
      PrefillCase cut = whole;
      cut.tile_rows = tiles;
      PrefillRun<__nv_bfloat16> parts(cut, GetParam(), seed());
      ASSERT_TRUE(parts.run(stream_));
      const std::string what =
          std::to_string(tiles.size()) + " tiles, window " + std::to_string(window);
      if (GetParam() == PrefillPath::kMma || tiles == same_places) {
        EXPECT_EQ(difference(parts.lse(), all.lse(), 6), "") << "lse, " << what;
        EXPECT_EQ(difference(parts.out(), all.out(), all.q_width()), "") << what;
      } else {
        EXPECT_LE(largest_apart(parts.lse(), all.lse()), 0x1p-20F) << "lse, " << what;
        EXPECT_LE(largest_apart(parts.out(), all.out()), 0x1p-7F) << what;
      }
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
    const std::span<const float> same_rows =
        std::span<const float>(all.out()).subspan(130 * all.q_width());
    if (GetParam() == PrefillPath::kMma) {
      EXPECT_EQ(difference(later.out(), same_rows, all.q_width()), "")
          << "rows from 130 on, window " << window;
    } else {
      EXPECT_LE(largest_apart(later.out(), same_rows), 0x1p-7F) << "window " << window;
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
  expect_refused(StatusCode::kInvalidArgument, "out_stride");
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
