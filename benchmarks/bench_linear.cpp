// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Matrix products with packed weights: one row (decoding) over weights that no cache holds, and
// 512 rows (prefill) beside Eigen's f32 product on tiles of the same pool. `bytes_per_second` is
// weight bytes, to be read against BM_ReadBandwidth of the same run.

// GCC 12 takes the deliberately undefined lanes of its own AVX-512 header for a mistake once Eigen
// inlines them.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/model/linear.hpp"

namespace chunkllm {
namespace {

// More than any last-level cache that one machine's worth of work gets.
constexpr std::int64_t kColdBytes = 320'000'000;
constexpr std::int64_t kPrefillRows = 512;

ThreadPool& shared_pool() {
  static ThreadPool pool(static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
  return pool;
}

std::vector<float> random_values(std::int64_t size) {
  std::mt19937 random(1);
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  return values;
}

/// A matrix of that type in file layout.
std::vector<std::byte> stored_as(DType dtype, const std::vector<float>& values) {
  const DTypeTraits traits = dtype_traits(dtype);
  std::vector<std::byte> bytes(values.size() / traits.block_size * traits.block_bytes);
  Status status;
  switch (dtype) {
    case DType::kQ4_1: status = quantize_row_q4_1(values, bytes); break;
    case DType::kQ8_0: status = quantize_row_q8_0(values, bytes); break;
    case DType::kBF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const BF16 value = to_bf16(values[i]);
        std::memcpy(&bytes[i * sizeof(value)], &value, sizeof(value));
      }
      break;
    default: std::memcpy(bytes.data(), values.data(), bytes.size()); break;
  }
  if (!status.ok()) bytes.clear();
  return bytes;
}

Linear make_linear(DType dtype, std::int64_t in, std::int64_t out) {
  const std::vector<std::byte> bytes = stored_as(dtype, random_values(in * out));
  const std::array<LinearPart, 1> parts = {LinearPart{{dtype, bytes, out, in}, {}, {}}};
  Result<Linear> linear = Linear::create(parts, WeightFormat::kKeep, shared_pool());
  return linear.ok() ? std::move(linear).value() : Linear();
}

void set_label(benchmark::State& state, DType dtype) {
  state.SetLabel(std::string(dtype_traits(dtype).name) + ", " + simd::kTargetName + ", " +
                 std::to_string(shared_pool().num_threads()) + " threads");
}

/// Sum over a buffer, each thread its share: what the memory gives.
void BM_ReadBandwidth(benchmark::State& state) {
  const std::vector<float> buffer(static_cast<std::size_t>(kColdBytes / 4), 1.0F);
  ThreadPool& pool = shared_pool();
  constexpr std::int64_t kBlock = 1 << 16;
  const auto num_blocks = static_cast<std::int64_t>(buffer.size()) / kBlock;
  for (auto _ : state) {
    std::atomic<int> num_sums = 0;
    pool.parallel_for(num_blocks, [&](std::int64_t block, int) {
      const float* p = buffer.data() + block * kBlock;
      simd::F32x16 sum[4] = {simd::zero(), simd::zero(), simd::zero(), simd::zero()};
      for (std::int64_t i = 0; i < kBlock; i += 4 * simd::kLanes) {
        for (std::int64_t j = 0; j < 4; ++j) {
          __builtin_prefetch(p + i + j * simd::kLanes + 1024);
          sum[j] = sum[j] + simd::load(p + i + j * simd::kLanes);
        }
      }
      if (simd::horizontal_sum(sum[0] + sum[1] + (sum[2] + sum[3])) > 0.0F) ++num_sums;
    });
    benchmark::DoNotOptimize(num_sums.load());
  }
  state.SetBytesProcessed(state.iterations() * num_blocks * kBlock * 4);
}

/// y = x W^T for one row of x, each time another copy of W.
void BM_OneRowCold(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const std::int64_t in = state.range(1);
  const std::int64_t out = state.range(2);
  const Linear prototype = make_linear(dtype, in, out);
  const std::vector<Linear> copies(
      static_cast<std::size_t>(kColdBytes / std::max<std::int64_t>(1, prototype.weight_bytes()) +
                               1),
      prototype);
  const std::vector<float> x = random_values(in);
  std::vector<float> y(static_cast<std::size_t>(out));
  std::size_t next = 0;
  for (auto _ : state) {
    copies[next].apply({x.data(), 1, in}, {y.data(), 1, out}, shared_pool());
    benchmark::DoNotOptimize(y.data());
    next = (next + 1) % copies.size();
  }
  state.SetBytesProcessed(state.iterations() * prototype.weight_bytes());
  set_label(state, dtype);
}

/// Y = X W^T for 512 rows.
void BM_ManyRows(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const std::int64_t in = state.range(1);
  const std::int64_t out = state.range(2);
  const Linear linear = make_linear(dtype, in, out);
  const std::vector<float> x = random_values(kPrefillRows * in);
  std::vector<float> y(static_cast<std::size_t>(kPrefillRows * out));
  for (auto _ : state) {
    linear.apply({x.data(), kPrefillRows, in}, {y.data(), kPrefillRows, out}, shared_pool());
    benchmark::DoNotOptimize(y.data());
  }
  const auto flops = static_cast<double>(2 * kPrefillRows * in * out);
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  set_label(state, dtype);
}

/// The same product by Eigen: single-threaded on tiles of 128 x 256 outputs of the pool.
void BM_ManyRowsEigenF32(benchmark::State& state) {
  using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const std::int64_t in = state.range(0);
  const std::int64_t out = state.range(1);
  constexpr std::int64_t kTileRows = 128;
  constexpr std::int64_t kTileCols = 256;
  const std::vector<float> weights = random_values(in * out);
  const std::vector<float> x = random_values(kPrefillRows * in);
  const Eigen::Map<const RowMatrix> w_map(weights.data(), out, in);
  const Eigen::Map<const RowMatrix> x_map(x.data(), kPrefillRows, in);
  RowMatrix y(kPrefillRows, out);
  const std::int64_t num_row_tiles = kPrefillRows / kTileRows;
  const std::int64_t num_tiles = num_row_tiles * ((out + kTileCols - 1) / kTileCols);
  for (auto _ : state) {
    shared_pool().parallel_for(num_tiles, [&](std::int64_t tile, int) {
      const std::int64_t row = tile % num_row_tiles * kTileRows;
      const std::int64_t col = tile / num_row_tiles * kTileCols;
      const std::int64_t cols = std::min(kTileCols, out - col);
      y.block(row, col, kTileRows, cols).noalias() =
          x_map.middleRows(row, kTileRows) * w_map.middleRows(col, cols).transpose();
    });
    benchmark::DoNotOptimize(y.data());
  }
  const auto flops = static_cast<double>(2 * kPrefillRows * in * out);
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void decode_shapes(benchmark::internal::Benchmark* bench) {
  for (const DType dtype : {DType::kQ4_1, DType::kQ8_0, DType::kBF16, DType::kF32}) {
    bench->Args({static_cast<std::int64_t>(dtype), 576, 1536});
    bench->Args({static_cast<std::int64_t>(dtype), 576, 49152});
  }
}

void prefill_shapes(benchmark::internal::Benchmark* bench) {
  for (const DType dtype : {DType::kQ4_1, DType::kQ8_0, DType::kBF16, DType::kF32}) {
    bench->Args({static_cast<std::int64_t>(dtype), 576, 1536});
    bench->Args({static_cast<std::int64_t>(dtype), 2048, 2048});
  }
}

BENCHMARK(BM_ReadBandwidth)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_OneRowCold)->Apply(decode_shapes)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_ManyRowsEigenF32)
    ->Args({576, 1536})
    ->Args({2048, 2048})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_ManyRows)->Apply(prefill_shapes)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace chunkllm
