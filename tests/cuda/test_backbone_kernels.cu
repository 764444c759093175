// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/next_token.cuh"
#include "chunkllm/kernels/random_weights.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/kernels/silu_gate.cuh"
#include "chunkllm/model/rope.hpp"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"

namespace chunkllm::kernels {
namespace {

using testing::all_within;
using testing::DeviceBuffer;
using testing::kUnitRoundoff;
using testing::rounded;
using testing::succeeds;
using testing::widened;

using BackboneKernels = testing::DeviceTest;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
constexpr double kRoundoff = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;

std::vector<float> random_floats(std::size_t count, std::uint64_t seed, float spread = 1.0F) {
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  std::vector<float> values(count);
  for (float& value : values) {
    value = spread * (static_cast<float>(random() >> 8) * 0x1p-23F - 1.0F);
  }
  return values;
}
std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

/// A row normed in double.
std::vector<double> normed_in_double(const float* x, const std::vector<float>& weight, double eps) {
  double sum = 0.0;
  for (std::size_t i = 0; i < weight.size(); ++i) sum += static_cast<double>(x[i]) * x[i];
  const double root = std::sqrt(sum / static_cast<double>(weight.size()) + eps);
  std::vector<double> out;
  for (std::size_t i = 0; i < weight.size(); ++i) out.push_back(weight[i] * x[i] / root);
  return out;
}

// ---------------------------------------------------------------------------------- rms_norm

template <typename T>
void check_norm(cudaStream_t stream, std::int32_t size, std::int32_t rows, bool has_update) {
  const std::int64_t stride = size + 8;
  const auto count = static_cast<std::size_t>(rows * stride);
  std::vector<float> x = random_floats(count, 1, 5.0F);
  const std::vector<float> weight = random_floats(static_cast<std::size_t>(size), 2);
  const std::vector<T> update = rounded<T>(random_floats(count, 3));
  const DeviceBuffer<float> residual(x);
  const DeviceBuffer<float> d_weight(weight);
  const DeviceBuffer<T> d_update(update);
  const DeviceBuffer<T> normed(static_cast<std::size_t>(rows) * static_cast<std::size_t>(size));
  RmsNormArgs<T> args;
  args.residual = residual.data();
  args.residual_stride = stride;
  args.maybe_update = has_update ? d_update.data() : nullptr;
  args.update_stride = stride;
  args.weight = d_weight.data();
  args.eps = 1e-3F;
  args.normed = normed.data();
  args.normed_stride = size;
  args.num_rows = rows;
  args.size = size;
  ASSERT_TRUE(succeeds(launch_rms_norm(args, stream)));
  std::vector<double> expected;
  std::vector<double> bounds;
  for (std::int32_t r = 0; r < rows; ++r) {
    float* row = x.data() + r * stride;
    if (has_update) {
      for (std::int32_t i = 0; i < size; ++i) {
        row[i] += widened(update[static_cast<std::size_t>(r * stride + i)]);
      }
    }
    for (const double value : normed_in_double(row, weight, static_cast<double>(1e-3F))) {
      expected.push_back(value);
      // A chain of at most 4 (size / 1024 + 1) terms of one sign, two trees, five operations more.
      bounds.push_back(std::abs(value) * (kRoundoff<T> + (size / 256.0 + 30.0) * kUnitRoundoff) +
                       0x1p-25);
    }
  }
  EXPECT_TRUE(all_within(widened(normed.download()), expected, bounds)) << rows << " x " << size;
  EXPECT_EQ(residual.download(), x) << "the residual is the sum, exactly";
  EXPECT_TRUE(normed.intact());
  EXPECT_TRUE(residual.intact());
}

TEST_F(BackboneKernels, RmsNormEqualsDoubles) {
  for (const std::int32_t size : {8, 64, 576, 1016, 1024, 1032, 4096, 8200}) {
    for (const std::int32_t rows : {1, 3, 65}) {
      check_norm<__nv_bfloat16>(stream_, size, rows, /*has_update=*/false);
      check_norm<__half>(stream_, size, rows, /*has_update=*/true);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(BackboneKernels, RmsNormKeepsNaNInItsRow) {
  constexpr std::int32_t kSize = 64;
  std::vector<float> x = random_floats(3 * kSize, 1);
  x[kSize + 5] = kNaN;
  x[2 * kSize + 63] = kInfinity;
  const DeviceBuffer<float> residual(x);
  const DeviceBuffer<float> weight(std::vector<float>(kSize, 1.0F));
  const DeviceBuffer<__nv_bfloat16> normed(3 * kSize);
  RmsNormArgs<__nv_bfloat16> args;
  args.residual = residual.data();
  args.residual_stride = kSize;
  args.weight = weight.data();
  args.normed = normed.data();
  args.normed_stride = kSize;
  args.num_rows = 3;
  args.size = kSize;
  replay_as_graph([&](cudaStream_t stream) { return launch_rms_norm(args, stream); });
  const std::vector<float> got = widened(normed.download());
  for (std::size_t i = 0; i < kSize; ++i) {
    EXPECT_TRUE(std::isfinite(got[i])) << i;
    EXPECT_TRUE(std::isnan(got[kSize + i])) << i;
  }
  EXPECT_TRUE(std::isnan(got[3 * kSize - 1])) << "infinity times 1 / infinity";
}

// --------------------------------------------------------------------------------- silu_gate

TEST_F(BackboneKernels, SiluGateEqualsDoubles) {
  for (const std::int32_t inner : {8, 48, 1536, 2048, 2056}) {
    for (const std::int32_t rows : {1, 9}) {
      const std::int64_t stride = 2 * inner + 8;
      const std::vector<__half> gate_up =
          rounded<__half>(random_floats(static_cast<std::size_t>(rows * stride), 4, 20.0F));
      const std::vector<float> bias = random_floats(static_cast<std::size_t>(2 * inner), 5);
      const DeviceBuffer<__half> d_gate_up(gate_up);
      const DeviceBuffer<float> d_bias(bias);
      const DeviceBuffer<__half> out(static_cast<std::size_t>(rows * inner));
      for (const bool has_bias : {false, true}) {
        SiluGateArgs<__half> args{d_gate_up.data(),
                                  stride,
                                  has_bias ? d_bias.data() : nullptr,
                                  out.data(),
                                  inner,
                                  rows,
                                  inner};
        ASSERT_TRUE(succeeds(launch_silu_gate(args, stream_)));
        std::vector<double> expected;
        std::vector<double> bounds;
        for (std::int32_t r = 0; r < rows; ++r) {
          for (std::int32_t i = 0; i < inner; ++i) {
            const auto at = [&](std::int64_t c) {
              const double value = widened(gate_up[static_cast<std::size_t>(r * stride + c)]);
              return has_bias ? value + bias[static_cast<std::size_t>(c)] : value;
            };
            const double gate = at(i);
            const double up = at(inner + i);
            const double value = gate / (1.0 + std::exp(-gate)) * up;
            expected.push_back(value);
            // A relative error of exp's argument grows with its size: |gate| <= 21.
            bounds.push_back(std::abs(value) * (0x1p-11 + 40.0 * kUnitRoundoff) +
                             4.0 * kUnitRoundoff * (std::abs(up) + 1.0) + 0x1p-24);
          }
        }
        EXPECT_TRUE(all_within(widened(out.download()), expected, bounds))
            << rows << " x " << inner << (has_bias ? " with bias" : "");
        EXPECT_TRUE(out.intact());
      }
    }
  }
}

TEST_F(BackboneKernels, SiluGateOfExtremes) {
  //                                gates                                up: all 2
  const std::vector<float> row = {kNaN, kInfinity, -kInfinity, -300.0F, 0.0F, 300.0F, -88.5F, 1.0F,
                                  2.0F, 2.0F,      2.0F,       2.0F,    2.0F, 2.0F,   2.0F,   kNaN};
  const DeviceBuffer<__nv_bfloat16> gate_up(rounded<__nv_bfloat16>(row));
  const DeviceBuffer<__nv_bfloat16> out(8);
  const SiluGateArgs<__nv_bfloat16> args{gate_up.data(), 16, nullptr, out.data(), 8, 1, 8};
  ASSERT_TRUE(succeeds(launch_silu_gate(args, stream_)));
  const std::vector<float> got = widened(out.download());
  EXPECT_TRUE(std::isnan(got[0]));
  EXPECT_EQ(got[1], kInfinity);
  EXPECT_EQ(got[2], -kInfinity);
  EXPECT_NEAR(got[3], 0.0F, 1e-30F);
  EXPECT_EQ(got[4], 0.0F);
  EXPECT_EQ(got[5], 600.0F);
  EXPECT_NEAR(got[6], 0.0F, 1e-30F);
  EXPECT_TRUE(std::isnan(got[7]));
}

// ------------------------------------------------------------------------- embed and fill_rows

TEST_F(BackboneKernels, EmbeddingsAreExactAndIdsAreClamped) {
  constexpr std::int32_t kVocab = 50;
  constexpr std::int32_t kSize = 1032;
  const std::vector<__half> table = rounded<__half>(random_floats(kVocab * kSize, 6));
  const DeviceBuffer<__half> embedding(table);
  const DeviceBuffer<std::int32_t> tokens(std::vector<std::int32_t>{0, 49, 7, -1, 50, 2147483647});
  const DeviceBuffer<float> hidden(6 * kSize);
  EmbedTokensArgs<__half> args;
  args.embedding = embedding.data();
  args.vocab_size = kVocab;
  args.hidden_size = kSize;
  args.tokens = tokens.data();
  args.num_rows = 6;
  args.hidden = hidden.data();
  args.hidden_stride = kSize;
  ASSERT_TRUE(succeeds(launch_embed_tokens(args, stream_)));
  const std::vector<float> got = hidden.download();
  const std::size_t ids[] = {0, 49, 7, 0, 49, 49};
  for (std::size_t r = 0; r < 6; ++r) {
    for (std::size_t i = 0; i < kSize; ++i) {
      ASSERT_EQ(got[r * kSize + i], widened(table[ids[r] * kSize + i])) << r << ", " << i;
    }
  }
  EXPECT_TRUE(hidden.intact());
}

TEST_F(BackboneKernels, FillRowsSetsAndAdds) {
  constexpr std::int32_t kSize = 131;
  const std::vector<float> values = random_floats(kSize, 7);
  const DeviceBuffer<float> d_values(values);
  const DeviceBuffer<__nv_bfloat16> set(3 * kSize);
  ASSERT_TRUE(succeeds(launch_fill_rows<__nv_bfloat16>(
      {d_values.data(), set.data(), 3, kSize, /*accumulate=*/false}, stream_)));
  const std::vector<float> before = random_floats(3 * kSize, 8);
  const DeviceBuffer<float> added(before);
  ASSERT_TRUE(succeeds(launch_fill_rows<float>(
      {d_values.data(), added.data(), 3, kSize, /*accumulate=*/true}, stream_)));
  const std::vector<float> got_set = widened(set.download());
  const std::vector<float> got_added = added.download();
  const std::vector<float> rounded_values = widened(rounded<__nv_bfloat16>(values));
  for (std::size_t i = 0; i < got_added.size(); ++i) {
    EXPECT_EQ(got_set[i], rounded_values[i % kSize]);
    EXPECT_EQ(got_added[i], before[i] + values[i % kSize]);
  }
  EXPECT_TRUE(set.intact());
  EXPECT_TRUE(added.intact());
}

// -------------------------------------------------------------------------------- rope_store

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
        rounded<T>(random_floats(static_cast<std::size_t>(rows * stride), 9, 2.0F));
    const std::vector<float> q_norm = random_floats(static_cast<std::size_t>(head_dim), 10);
    const std::vector<float> k_norm = random_floats(static_cast<std::size_t>(head_dim), 11);
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
        std::vector<double> head = doubles(raw);
        if (has_norms && (is_query || is_key)) {
          head = normed_in_double(raw.data(), is_query ? q_norm : k_norm, double{kEps});
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

TEST_F(BackboneKernels, RopeStoreEqualsDoubles) {
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

TEST_F(BackboneKernels, RopeStoreOfHalfsLeavesInCacheKeysUnrotated) {
  RopeCase<__half> test;
  test.positions = {5, 6, 7};
  test.key_rotation = Rotation::kNone;
  test.query_rotation = Rotation::kNone;
  test.run<__half>(stream_, 1.0F, 1.0F);
  test.query_rotation = Rotation::kAtTokenPosition;
  test.run<__half>(stream_, 1.0F, 1.0F);
}

TEST_F(BackboneKernels, RopeStoreMakesFp8OverItsScale) {
  RopeCase<__nv_bfloat16> test;
  test.head_dim = 128;
  test.positions = {0, 33, 63};
  test.paged = true;
  test.run<__nv_fp8_e4m3>(stream_, 0.5F, 0.25F);
}

TEST_F(BackboneKernels, RopeStoreOutsideItsRoomIsNaNAndNotCached) {
  constexpr std::int32_t kDim = 64;
  const DeviceBuffer<__half> qkv(rounded<__half>(random_floats(3 * 3 * kDim, 12)));
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

// -------------------------------------------------------------------------------- next_token

std::int32_t argmax_in_order(const float* row, std::int32_t size) {
  std::int32_t best = -1;
  for (std::int32_t i = 0; i < size; ++i) {
    if (!std::isnan(row[i]) && (best < 0 || row[i] > row[best])) best = i;
  }
  return std::max(best, 0);
}

template <typename L>
void check_next_token(cudaStream_t stream, std::int32_t vocab, std::int32_t rows, bool ties) {
  std::vector<float> raw =
      random_floats(static_cast<std::size_t>(vocab) * static_cast<std::size_t>(rows), 13, 8.0F);
  if (ties) {
    for (float& value : raw) value = std::floor(value / 4.0F);
  }
  const std::vector<L> logits = rounded<L>(raw);
  const std::vector<float> row_values = widened(logits);
  std::vector<std::int32_t> targets;
  for (std::int32_t r = 0; r < rows; ++r) targets.push_back((r * 7919) % vocab);
  const DeviceBuffer<L> d_logits(logits);
  const DeviceBuffer<std::int32_t> d_targets(targets);
  const DeviceBuffer<std::int32_t> tokens(static_cast<std::size_t>(rows));
  const DeviceBuffer<float> likelihoods(static_cast<std::size_t>(rows));
  const NextTokenArgs<L> args{
      d_logits.data(), vocab, rows, vocab, tokens.data(), d_targets.data(), likelihoods.data()};
  ASSERT_TRUE(succeeds(launch_next_token(args, stream)));
  const std::vector<std::int32_t> got = tokens.download();
  std::vector<double> expected;
  for (std::int32_t r = 0; r < rows; ++r) {
    const float* row = row_values.data() + static_cast<std::int64_t>(r) * vocab;
    ASSERT_EQ(got[static_cast<std::size_t>(r)], argmax_in_order(row, vocab))
        << "row " << r << " of " << rows << ", vocabulary " << vocab;
    const double largest = row[got[static_cast<std::size_t>(r)]];
    double sum = 0.0;
    for (std::int32_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - largest);
    expected.push_back(row[targets[static_cast<std::size_t>(r)]] - largest - std::log(sum));
  }
  // The sum's relative error is its logarithm's absolute one: a thread's chain, 16 for exp, 60 for
  // trees and differences of values up to 16.
  const double bound = (vocab / 1024.0 + 16.0 + 60.0 + 64.0) * kUnitRoundoff;
  EXPECT_TRUE(all_within(likelihoods.download(), expected, bound)) << vocab << ", " << rows;
  EXPECT_TRUE(tokens.intact() && likelihoods.intact());
}

TEST_F(BackboneKernels, NextTokenIsTheFirstLargest) {
  for (const std::int32_t vocab : {1, 31, 1023, 1024, 1025, 8192, 8193, 49152, 128256}) {
    for (const bool ties : {false, true}) {
      check_next_token<float>(stream_, vocab, 3, ties);
      check_next_token<__nv_bfloat16>(stream_, vocab, 1, ties);
      if (HasFatalFailure()) return;
    }
  }
  check_next_token<__half>(stream_, 70, 600, /*ties=*/true);
}

TEST_F(BackboneKernels, NextTokenPutsNaNLast) {
  const std::vector<float> logits = {kNaN,       -kInfinity, kNaN, -kInfinity,  // the first -inf
                                     kNaN,       kNaN,       kNaN, kNaN,        // none: 0
                                     -1.0F,      kInfinity,  kNaN, kInfinity,   // the first inf
                                     -kInfinity, -0.0F,      0.0F, -0.0F};      // equal zeros
  const DeviceBuffer<float> d_logits(logits);
  const DeviceBuffer<std::int32_t> targets(std::vector<std::int32_t>{0, 0, 0, 4});
  const DeviceBuffer<std::int32_t> tokens(4);
  const DeviceBuffer<float> likelihoods(4);
  const NextTokenArgs<float> args{d_logits.data(),   4, 4, 4, tokens.data(), targets.data(),
                                  likelihoods.data()};
  replay_as_graph([&](cudaStream_t stream) { return launch_next_token(args, stream); }, 2);
  EXPECT_EQ(tokens.download(), (std::vector<std::int32_t>{1, 0, 1, 1}));
  for (const float value : likelihoods.download()) EXPECT_TRUE(std::isnan(value)) << value;
}

// ---------------------------------------------------------------------------- random_weights

TEST_F(BackboneKernels, RandomWeightsAreAboutNormalAndRepeat) {
  constexpr std::int64_t kCount = 3000000;  // more than one value a thread
  const DeviceBuffer<float> values(kCount);
  const RandomWeightsArgs<float> args{values.data(), kCount, 42, 0.5F, 2.0F};
  ASSERT_TRUE(succeeds(launch_random_weights(args, stream_)));
  const std::vector<float> got = values.download();
  double sum = 0.0;
  double squares = 0.0;
  for (const float value : got) {
    ASSERT_LE(std::abs(value - 0.5F), 7.0F);
    sum += value - 0.5;
    squares += (value - 0.5) * (value - 0.5);
  }
  EXPECT_NEAR(sum / kCount, 0.0, 5.0 * 2.0 / std::sqrt(kCount));
  EXPECT_NEAR(squares / kCount, 4.0, 0.02);
  ASSERT_TRUE(succeeds(launch_random_weights(args, stream_)));
  EXPECT_EQ(values.download(), got);
  EXPECT_TRUE(values.intact());
}

// --------------------------------------------------------------------------------- refusals

TEST(BackboneKernelRefusals, SayWhatIsSupported) {
  const auto at = [](auto* type, std::uintptr_t address) {
    return reinterpret_cast<decltype(type)>(address);
  };
  __half* const half = at(static_cast<__half*>(nullptr), 4096);
  float* const single = at(static_cast<float*>(nullptr), 4096);
  RmsNormArgs<__half> norm{single, 64, nullptr, 0, single, 1e-5F, half, 64, 0, 64};
  EXPECT_TRUE(launch_rms_norm(norm, nullptr).ok()) << "no rows, no launch";
  norm.num_rows = 1;
  norm.size = 60;
  EXPECT_EQ(launch_rms_norm(norm, nullptr).code(), StatusCode::kInvalidArgument);
  norm.size = 64;
  norm.residual_stride = 65;
  EXPECT_EQ(launch_rms_norm(norm, nullptr).code(), StatusCode::kInvalidArgument);

  SiluGateArgs<__half> silu{half, 16, nullptr, half, 8, 1, 4};
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);
  silu.inner = 8;
  silu.gate_up += 1;
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);

  EmbedTokensArgs<__half> embed;
  EXPECT_TRUE(launch_embed_tokens(embed, nullptr).ok());
  embed.num_rows = 1;
  EXPECT_EQ(launch_embed_tokens(embed, nullptr).code(), StatusCode::kInvalidArgument);

  RopeStoreArgs<__half> rope;
  rope.num_rows = 1;
  rope.head_dim = 12;
  EXPECT_EQ(launch_rope_store(rope, nullptr).code(), StatusCode::kUnsupported);
  rope.head_dim = 264;
  const Status refused = launch_rope_store(rope, nullptr);
  EXPECT_EQ(refused.message(), "rope_store: head_dim 264, supported are multiples of 8 up to 256");
  rope.head_dim = 64;
  EXPECT_EQ(launch_rope_store(rope, nullptr).code(), StatusCode::kInvalidArgument);

  NextTokenArgs<float> next;
  EXPECT_TRUE(launch_next_token(next, nullptr).ok());
  next.num_rows = 1;
  EXPECT_EQ(launch_next_token(next, nullptr).code(), StatusCode::kInvalidArgument);
  next.logits = single;
  next.vocab_size = 10;
  EXPECT_EQ(launch_next_token(next, nullptr).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm::kernels
