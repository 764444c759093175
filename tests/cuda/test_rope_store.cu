// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/model/rope.hpp"
#include "cuda/support/device.hpp"
#include "reference/decoder_oracle.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::all_within;
using testing::DeviceBuffer;
using testing::kRoundoff;
using testing::kUnitRoundoff;
using testing::rounded;
using testing::succeeds;
using testing::uniform_values;
using testing::widened;

using RopeStore = testing::DeviceTest;

BackboneConfig rope_config(std::int64_t head_dim) {
  BackboneConfig config;
  config.head_dim = head_dim;
  return config;
}

/// One call and what it should do, in double.
template <typename T>
struct RopeCase {
  std::int32_t num_heads = 3;
  std::int32_t num_kv_heads = 1;
  std::int32_t head_dim = 64;
  bool has_norms = false;
  bool paged = false;
  Rotation query_rotation = Rotation::kAtTokenPosition;
  Rotation key_rotation = Rotation::kAtTokenPosition;
  std::vector<std::int32_t> positions;
  bool decode = false;  ///< row r is of sequence r, at num_tokens - 1; else all are of sequence 1

  static constexpr std::int32_t kCapacity = 64;
  static constexpr std::int32_t kPage = 16;
  static constexpr float kEps = 1e-2F;

  [[nodiscard]] std::int32_t seq(std::size_t row) const {
    return decode ? static_cast<std::int32_t>(row) : 1;
  }

  template <typename Kv>
  void run(cudaStream_t stream, float key_scale, float value_scale) const {
    const auto rows = static_cast<std::int32_t>(positions.size());
    const std::int32_t num_seqs = decode ? rows : 2;
    const std::int64_t slots = num_heads + 2 * num_kv_heads;
    const std::int64_t stride = slots * head_dim + 2;  // rows need 4 byte alignment alone
    const std::vector<T> qkv =
        rounded<T>(uniform_values(static_cast<std::size_t>(rows * stride), 9, 2.0F));
    const std::vector<float> q_norm = uniform_values(static_cast<std::size_t>(head_dim), 10);
    const std::vector<float> k_norm = uniform_values(static_cast<std::size_t>(head_dim), 11);
    const RopeTable table(RopeFrequencies(rope_config(head_dim)), 0, kCapacity);
    const DeviceBuffer<float> d_table(std::vector<float>(
        table.row(0), table.row(0) + static_cast<std::size_t>(kCapacity * head_dim)));
    const DeviceBuffer<T> d_qkv(qkv);
    const DeviceBuffer<float> d_q_norm(q_norm);
    const DeviceBuffer<float> d_k_norm(k_norm);
    std::vector<std::int32_t> counts(positions);
    for (std::int32_t& count : counts) count += decode ? 1 : 0;
    const DeviceBuffer<std::int32_t> d_positions(counts);

    // Pages in descending order; a contiguous cache is one stretch a sequence.
    const std::int64_t token_size = static_cast<std::int64_t>(num_kv_heads) * head_dim;
    const std::int32_t max_pages = kCapacity / kPage;
    std::vector<std::int32_t> pages;
    for (std::int32_t p = num_seqs * max_pages; p > 0; --p) pages.push_back(p - 1);
    const DeviceBuffer<std::int32_t> page_table(pages);
    const auto cache_size = static_cast<std::size_t>(num_seqs * kCapacity * token_size);
    const DeviceBuffer<Kv> keys(cache_size);
    const DeviceBuffer<Kv> values(cache_size);
    const DeviceBuffer<T> queries(static_cast<std::size_t>(rows) * num_heads * head_dim);
    const DeviceBuffer<T> cached_keys(static_cast<std::size_t>(rows * token_size));

    RopeStoreArgs<T, Kv> args;
    args.qkv = d_qkv.data();
    args.qkv_stride = stride;
    args.num_rows = rows;
    args.num_heads = num_heads;
    args.num_kv_heads = num_kv_heads;
    args.head_dim = head_dim;
    args.maybe_q_norm = has_norms ? d_q_norm.data() : nullptr;
    args.maybe_k_norm = has_norms ? d_k_norm.data() : nullptr;
    args.eps = kEps;
    (decode ? args.num_tokens : args.positions) = d_positions.data();
    args.one_seq = !decode;
    args.first_seq = decode ? 0 : 1;
    args.rope = {d_table.data(), kCapacity};
    args.query_rotation = query_rotation;
    args.queries = queries.data();
    args.kv.keys = keys.data();
    args.kv.values = values.data();
    args.kv.token_stride = token_size;
    args.kv.head_stride = head_dim;
    args.kv.seq_stride = kCapacity * token_size;
    if (paged) {
      args.kv.page_table = page_table.data();
      args.kv.max_pages = max_pages;
      args.kv.page_size = kPage;
      args.kv.page_stride = kPage * token_size;
    }
    args.kv.rotation = key_rotation;
    args.kv.key_scale = key_scale;
    args.kv.value_scale = value_scale;
    args.kv_capacity = kCapacity;
    args.maybe_cached_keys = cached_keys.data();
    ASSERT_TRUE(succeeds(launch_rope_store(args, stream)));

    const std::vector<float> got_queries = widened(queries.download());
    const std::vector<float> got_cached = widened(cached_keys.download());
    const std::vector<float> got_keys = cache_values(keys, key_scale);
    const std::vector<float> got_values = cache_values(values, value_scale);
    std::vector<bool> touched(cache_size, false);
    const double cache_roundoff = std::is_same_v<Kv, T> ? kRoundoff<T> : 0x1p-4;
    const double cache_least = std::is_same_v<Kv, T> ? 0x1p-24 : 0x1p-10 * key_scale;
    for (std::size_t r = 0; r < positions.size(); ++r) {
      const std::int32_t position = positions[r];
      for (std::int32_t slot = 0; slot < slots; ++slot) {
        const bool is_query = slot < num_heads;
        const bool is_key = !is_query && slot < num_heads + num_kv_heads;
        const std::vector<float> raw = widened(std::vector<T>(
            qkv.begin() + static_cast<std::int64_t>(r) * stride + slot * head_dim,
            qkv.begin() + static_cast<std::int64_t>(r) * stride + (slot + 1) * head_dim));
        std::vector<double> head(raw.begin(), raw.end());
        if (has_norms && (is_query || is_key)) {
          const std::vector<float>& weight = is_query ? q_norm : k_norm;
          head = oracle::rms_norm(head, {weight.begin(), weight.end()}, double{kEps});
        }
        const Rotation rotation = is_query ? query_rotation : key_rotation;
        double largest = 0.0;
        for (const double value : head) largest = std::max(largest, std::abs(value));
        if ((is_query || is_key) && rotation == Rotation::kAtTokenPosition) {
          rotate(head, table, position);
        }
        // Norm and rotation in f32: some 30 roundings of values up to `largest`.
        const auto check = [&](const std::vector<float>& got, std::int64_t first, double roundoff,
                               double least, const char* what) {
          const std::vector<float> part(got.begin() + first, got.begin() + first + head_dim);
          std::vector<double> bounds;
          for (const double value : head) {
            bounds.push_back(std::abs(value) * roundoff + 60.0 * kUnitRoundoff * largest + least);
          }
          EXPECT_TRUE(all_within(part, head, bounds))
              << what << " of row " << r << ", slot " << slot << ", position " << position;
        };
        if (is_query) {
          check(got_queries, (static_cast<std::int64_t>(r) * num_heads + slot) * head_dim,
                kRoundoff<T>, 0x1p-24, "query");
          continue;
        }
        const std::int32_t kv_head = slot - num_heads - (is_key ? 0 : num_kv_heads);
        if (is_key) {
          check(got_cached, static_cast<std::int64_t>(r) * token_size + kv_head * head_dim,
                kRoundoff<T>, 0x1p-24, "cached key's copy");
        }
        std::int64_t first =
            (static_cast<std::int64_t>(seq(r)) * kCapacity + position) * token_size;
        if (paged) {
          const std::int32_t page =
              pages[static_cast<std::size_t>(seq(r) * max_pages + position / kPage)];
          first = (static_cast<std::int64_t>(page) * kPage + position % kPage) * token_size;
        }
        first += kv_head * head_dim;
        check(is_key ? got_keys : got_values, first, cache_roundoff, cache_least,
              is_key ? "key" : "value");
        std::fill_n(touched.begin() + first, head_dim, true);
      }
    }
    for (std::size_t i = 0; i < cache_size; ++i) {
      if (touched[i]) continue;
      ASSERT_TRUE(std::isnan(got_keys[i]) && std::isnan(got_values[i])) << "written at " << i;
    }
    EXPECT_TRUE(queries.intact() && keys.intact() && values.intact() && cached_keys.intact());
  }

  template <typename Kv>
  static std::vector<float> cache_values(const DeviceBuffer<Kv>& cache, float scale) {
    std::vector<float> out;
    for (const Kv value : cache.download()) {
      if constexpr (std::is_same_v<Kv, __nv_fp8_e4m3>) {
        out.push_back(static_cast<float>(value) * scale);
      } else {
        out.push_back(widened(value));
      }
    }
    return out;
  }
  static void rotate(std::vector<double>& head, const RopeTable& table, std::int32_t position) {
    const std::size_t half = head.size() / 2;
    const float* row = table.row(position);
    for (std::size_t i = 0; i < half; ++i) {
      const double a = head[i];
      const double b = head[i + half];
      head[i] = a * row[i] - b * row[half + i];
      head[i + half] = b * row[i] + a * row[half + i];
    }
  }
};

TEST_F(RopeStore, EqualsDoubles) {
  for (const std::int32_t head_dim : {8, 16, 64, 96, 128, 136, 256}) {
    for (const bool has_norms : {false, true}) {
      for (const bool paged : {false, true}) {
        RopeCase<__nv_bfloat16> test;
        test.head_dim = head_dim;
        test.num_kv_heads = 2;
        test.num_heads = 6;
        test.has_norms = has_norms;
        test.paged = paged;
        test.positions = {0, 1, 15, 16, 17, 63, 40};
        test.run<__nv_bfloat16>(stream_, 1.0F, 1.0F);
        test.decode = true;
        test.run<__nv_bfloat16>(stream_, 1.0F, 1.0F);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(RopeStore, OfHalfsLeavesInCacheKeysUnrotated) {
  RopeCase<__half> test;
  test.positions = {5, 6, 7};
  test.key_rotation = Rotation::kNone;
  test.query_rotation = Rotation::kNone;
  test.run<__half>(stream_, 1.0F, 1.0F);
  test.query_rotation = Rotation::kAtTokenPosition;
  test.run<__half>(stream_, 1.0F, 1.0F);
}

TEST_F(RopeStore, MakesFp8OverItsScale) {
  RopeCase<__nv_bfloat16> test;
  test.head_dim = 128;
  test.positions = {0, 33, 63};
  test.paged = true;
  test.run<__nv_fp8_e4m3>(stream_, 0.5F, 0.25F);
}

TEST_F(RopeStore, OutsideItsRoomIsNaNAndNotCached) {
  constexpr std::int32_t kDim = 64;
  const DeviceBuffer<__half> qkv(rounded<__half>(uniform_values(3 * 3 * kDim, 12)));
  const DeviceBuffer<std::int32_t> positions(std::vector<std::int32_t>{-1, 4, 2});
  const DeviceBuffer<float> table(std::vector<float>(4 * kDim, 0.5F));
  const DeviceBuffer<__half> queries(3 * kDim);
  const DeviceBuffer<__half> keys(4 * kDim);
  const DeviceBuffer<__half> values(4 * kDim);
  RopeStoreArgs<__half> args;
  args.qkv = qkv.data();
  args.qkv_stride = 3 * kDim;
  args.num_rows = 3;
  args.num_heads = 1;
  args.num_kv_heads = 1;
  args.head_dim = kDim;
  args.positions = positions.data();
  args.one_seq = true;
  args.rope = {table.data(), 4};
  args.queries = queries.data();
  args.kv.keys = keys.data();
  args.kv.values = values.data();
  args.kv.token_stride = kDim;
  args.kv.head_stride = kDim;
  args.kv_capacity = 4;
  replay_as_graph([&](cudaStream_t stream) { return launch_rope_store(args, stream); });
  const std::vector<float> got = widened(queries.download());
  const std::vector<float> cached = widened(keys.download());
  for (std::size_t i = 0; i < kDim; ++i) {
    EXPECT_TRUE(std::isnan(got[i]) && std::isnan(got[kDim + i])) << i;
    EXPECT_TRUE(std::isfinite(got[2 * kDim + i])) << i;
    for (const std::size_t t : {0, 1, 3}) EXPECT_TRUE(std::isnan(cached[t * kDim + i])) << t;
    EXPECT_TRUE(std::isfinite(cached[2 * kDim + i])) << i;
  }
  EXPECT_TRUE(keys.intact() && values.intact() && queries.intact());
}

TEST(RopeStoreRefusals, PagesMustHoldTheCapacity) {
  const auto code = [](const auto& change) {
    auto* const place = reinterpret_cast<__half*>(std::uintptr_t{4096});
    const auto* const ints = reinterpret_cast<const std::int32_t*>(place);
    RopeStoreArgs<__half> args;
    args.qkv = args.queries = args.kv.keys = args.kv.values = place;
    args.num_rows = 2;
    args.num_heads = 2;
    args.num_kv_heads = 1;
    args.head_dim = 64;
    args.positions = ints;
    args.rope = {reinterpret_cast<const float*>(place), 8};
    args.kv.page_table = ints;
    args.kv.max_pages = 4;
    args.kv.page_size = 16;
    args.kv_capacity = 64;
    change(args);
    return launch_rope_store(args, nullptr).code();
  };
  using Args = RopeStoreArgs<__half>;
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](Args& a) { a.kv_capacity = 65; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.page_size = 0; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.max_pages = 0; }), kInvalid);
  EXPECT_EQ(code([](Args& a) {
              a.kv.max_pages = a.kv.page_size = -8;
              a.kv_capacity = 8;
            }),
            kInvalid);
  EXPECT_EQ(code([](Args& a) { a.qkv_stride = 4 * 64 - 2; }), kInvalid);
}

}  // namespace
}  // namespace chunkllm::kernels
