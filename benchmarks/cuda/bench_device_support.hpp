// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/cuda/gemm.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "reference/oracle.hpp"

/// What the device benchmarks share: memory filled with random values, event times of captured
/// launches whose inputs are not in the L2 cache, and the ceilings, measured in the same run.
namespace chunkllm::bench {

// ---------------------------------------------------------------------------------------------
// Errors end a case: `run_case` hands the message to Google Benchmark.

inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}
inline void require(const Status& status) {
  require(status.ok(), status.message());
}
inline void require(cudaError_t error) {
  require(error == cudaSuccess, cudaGetErrorString(error));
}
inline void require(cublasStatus_t status) {
  require(status == CUBLAS_STATUS_SUCCESS, cublasGetStatusName(status));
}

template <typename Value>
Value taken(Result<Value> result) {
  require(result.status());
  return std::move(result).value();
}

inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Whether `CHUNKLLM_REQUIRE_GPU=1` makes a missing GPU a failure, as it does for the tests.
inline bool gpu_is_required() {
  const char* value = std::getenv("CHUNKLLM_REQUIRE_GPU");
  return value != nullptr && std::string_view(value) == "1";
}

/// Cases that failed so far: Google Benchmark reports them, but knows no exit status for them.
inline int& num_failed_cases() {
  static int count = 0;
  return count;
}

/// Runs a case, or says why it cannot. Every reason but a missing GPU that nobody requires makes
/// `run_benchmarks` fail.
template <typename Body>
void run_case(benchmark::State& state, const Body& body) {
  const auto fail = [&](const char* what) {
    ++num_failed_cases();
    state.SkipWithError(what);
  };
  if (!has_device()) {
    // ctest takes the second message for a skipped test, whatever the exit status.
    if (gpu_is_required()) return fail("CHUNKLLM_REQUIRE_GPU is 1, but no GPU was found");
    return state.SkipWithError("no CUDA device");
  }
  try {
    body();
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

/// `main` of a device benchmark: 1 where a case failed.
inline int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cudaDeviceProp properties = {};
  if (has_device() && cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
    benchmark::AddCustomContext("device", properties.name);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return num_failed_cases() == 0 ? 0 : 1;
}

/// Cases measure medians themselves, once.
inline void device_case(benchmark::internal::Benchmark* benchmark) {
  benchmark->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}

// ---------------------------------------------------------------------------------------------
// Memory.

template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size) : size_(size) {
    require(cudaMalloc(&data_, std::max<std::size_t>(size, 1) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (size_ > 0) {
      require(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
      require(cudaDeviceSynchronize());  // the streams of the cases do not wait for this one
    }
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t bytes() const { return size_ * sizeof(T); }
  [[nodiscard]] std::vector<T> download() const { return download(0, size_); }
  [[nodiscard]] std::vector<T> download(std::size_t first, std::size_t count) const {
    std::vector<T> values(count);
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(values.data(), data_ + first, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A uniform number of variance 1 that depends on seed and index alone.
__host__ __device__ inline float random_value(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + index;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  x ^= x >> 31;
  const auto bits = static_cast<std::uint32_t>(x >> 40);  // 24 of them
  return (static_cast<float>(bits) * 0x1p-23F - 1.0F) * 1.7320508F;
}

template <typename T>
__global__ void fill_random_kernel(T* out, std::size_t size, std::uint64_t seed, float deviation) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    out[i] = static_cast<T>(deviation * random_value(seed, i));
  }
}

template <typename T>
DeviceArray<T> random_array(std::size_t size, std::uint64_t seed, float deviation = 1.0F) {
  DeviceArray<T> array(size);
  fill_random_kernel<<<2048, 256>>>(array.data(), size, seed, deviation);
  require(cudaGetLastError());
  require(cudaDeviceSynchronize());
  return array;
}

template <typename T>
__global__ void widen_rows_kernel(const T* base, const std::int64_t* offsets, int dim, float* out) {
  const std::int64_t row = blockIdx.x;
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += static_cast<int>(blockDim.x)) {
    out[row * dim + d] = static_cast<float>(base[offsets[row] + d]);
  }
}

/// Rows of `dim` values that begin at `offsets`, in double, on the host.
template <typename T>
oracle::Rows read_rows(const T* base, const std::vector<std::int64_t>& offsets, int dim) {
  if (offsets.empty()) return {};
  const DeviceArray<std::int64_t> places(offsets);
  const DeviceArray<float> out(offsets.size() * static_cast<std::size_t>(dim));
  widen_rows_kernel<<<static_cast<unsigned>(offsets.size()), 128>>>(base, places.data(), dim,
                                                                    out.data());
  require(cudaGetLastError());
  const std::vector<float> values = out.download();
  oracle::Rows rows;
  rows.reserve(offsets.size());
  for (auto row = values.begin(); row != values.end(); row += dim) {
    rows.emplace_back(row, row + dim);
  }
  return rows;
}

/// |actual - expected| / |expected|; NaN where either is.
inline double relative_error(const oracle::Row& actual, const oracle::Row& expected) {
  double error = 0.0;
  double size = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

/// 16 bit operands leave 1e-3 to 1e-2 of relative error; a wrong key or row leaves about 1.
inline constexpr double kTolerance16Bit = 2e-2;

// ---------------------------------------------------------------------------------------------
// Time.

inline cuda::Stream new_stream() {
  return taken(cuda::Stream::create());
}
inline cuda::Event new_timed_event() {
  return taken(cuda::Event::create(cuda::Event::Timing::kOn));
}

/// From one event to another, for which this waits.
inline double seconds_between(const cuda::Event& start, const cuda::Event& end) {
  require(end.synchronize());
  float milliseconds = 0.0F;
  require(cudaEventElapsedTime(&milliseconds, start.get(), end.get()));
  return static_cast<double>(milliseconds) * 1e-3;
}

/// The middle one, of an even number the larger of the two.
inline double median(std::vector<double> values) {
  require(!values.empty(), "a median of nothing");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Median over samples of the device time of `enqueue()`: 5 samples or more, 25 or as many as take
/// 50 ms. `prepare()` runs in front of each sample, outside of its time.
template <typename Prepare, typename Enqueue>
double median_seconds(const cuda::Stream& stream, const Prepare& prepare, const Enqueue& enqueue) {
  constexpr double kWanted = 0.05;
  const cuda::Event start = new_timed_event();
  const cuda::Event end = new_timed_event();
  const auto sample = [&] {
    prepare();
    require(start.record(stream.get()));
    enqueue();
    require(end.record(stream.get()));
    return seconds_between(start, end);
  };
  sample();  // warm-up
  const double first = sample();
  const auto count = static_cast<std::size_t>(std::clamp(kWanted / first, 5.0, 25.0));
  std::vector<double> seconds(count);
  for (double& value : seconds) value = sample();
  return median(std::move(seconds));
}

/// Frees a graph, as captured or as it is launched, also where a case ends with an error.
struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
template <typename Handle>
using OwnedGraph = std::unique_ptr<std::remove_pointer_t<Handle>, GraphDeleter>;

/// Median seconds of one of `num_launches` launches in a row, replayed as one graph.
///
/// \param launch  (i, stream): enqueues launch i. Let i rotate over inputs that together exceed
///                `cold_bytes()`, so that no launch finds its own in the L2 cache
/// \param prepare  in front of each replay, outside of its time
template <typename Launch, typename Prepare>
double launch_seconds(const cuda::Stream& stream, int num_launches, const Launch& launch,
                      const Prepare& prepare) {
  require(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  std::string failure;
  try {
    for (int i = 0; i < num_launches; ++i) launch(i, stream.get());
  } catch (const std::exception& error) {
    failure = error.what();
  }
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream.get(), &captured);
  const OwnedGraph<cudaGraph_t> graph(captured);
  require(failure.empty(), failure);
  require(ended);
  cudaGraphExec_t launchable = nullptr;
  require(cudaGraphInstantiate(&launchable, graph.get(), 0));
  const OwnedGraph<cudaGraphExec_t> instance(launchable);
  const auto replay = [&] { require(cudaGraphLaunch(instance.get(), stream.get())); };
  return median_seconds(stream, prepare, replay) / num_launches;
}
template <typename Launch>
double launch_seconds(const cuda::Stream& stream, int num_launches, const Launch& launch) {
  return launch_seconds(stream, num_launches, launch, [] {});
}

/// What inputs must exceed together for a launch to find none of its own in the L2 cache.
inline double cold_bytes() {
  return 3.0 * taken(cuda::device_attribute(cudaDevAttrL2CacheSize));
}

/// Sets of inputs to rotate over, each of which a launch reads `bytes` of; at most `most`.
inline int num_cold_sets(double bytes, int most) {
  return std::clamp(static_cast<int>(std::ceil(cold_bytes() / bytes)), 1, most);
}

/// Launches of a graph: whole rounds of the sets, about 16.
inline int num_launches(int num_sets) {
  return num_sets * std::max(1, 16 / num_sets);
}

// ---------------------------------------------------------------------------------------------
// Ceilings, measured once a program.

/// Bytes a second of a device-to-device copy of 2 GB, read and written.
inline double copy_bandwidth() {
  static const double bandwidth = [] {
    constexpr std::size_t kBytes = std::size_t{2} << 30;
    const DeviceArray<unsigned char> source(kBytes);
    const DeviceArray<unsigned char> target(kBytes);
    const cuda::Stream stream = new_stream();
    require(cudaMemsetAsync(source.data(), 1, kBytes, stream.get()));
    const double seconds = median_seconds(
        stream, [] {},
        [&] {
          require(cudaMemcpyAsync(target.data(), source.data(), kBytes, cudaMemcpyDeviceToDevice,
                                  stream.get()));
        });
    return 2.0 * static_cast<double>(kBytes) / seconds;
  }();
  return bandwidth;
}

/// Reads kAhead * rounds vectors a thread and keeps their xor, so that no load can be left out.
///
/// \param out  written where the xor is a value that memory of equal bytes never gives
template <int kThreads, int kAhead>
__global__ void __launch_bounds__(kThreads)
    read_all_kernel(const uint4* values, std::int64_t rounds, uint4* out) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  values += std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint4 sum = {};
  for (std::int64_t round = 0; round < rounds; ++round) {
    uint4 got[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) got[i] = __ldcs(values + i * step);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      sum.x ^= got[i].x;
      sum.y ^= got[i].y;
      sum.z ^= got[i].z;
      sum.w ^= got[i].w;
    }
    values += kAhead * step;
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 1U) *out = sum;
}

/// Bytes a second of reading 2 GB. A copy is no ceiling of an operation that only reads: memory
/// that turns from reads to writes loses time, so reads alone may be faster.
inline double read_bandwidth() {
  static const double bandwidth = [] {
    // 128 KB on their way an SM, far more than latency needs.
    constexpr int kThreads = 256;
    constexpr int kAhead = 8;
    constexpr int kBlocksPerSm = 4;
    constexpr std::int64_t kVectors = (std::int64_t{2} << 30) / sizeof(uint4);
    const int blocks = kBlocksPerSm * taken(cuda::device_attribute(cudaDevAttrMultiProcessorCount));
    const std::int64_t a_round = std::int64_t{blocks} * kThreads * kAhead;
    const std::int64_t rounds = kVectors / a_round;
    const DeviceArray<uint4> values(static_cast<std::size_t>(rounds * a_round));
    const DeviceArray<uint4> out(1);
    const cuda::Stream stream = new_stream();
    require(cudaMemsetAsync(values.data(), 1, values.bytes(), stream.get()));
    const double seconds = median_seconds(
        stream, [] {},
        [&] {
          read_all_kernel<kThreads, kAhead>
              <<<blocks, kThreads, 0, stream.get()>>>(values.data(), rounds, out.data());
          require(cudaGetLastError());
        });
    return static_cast<double>(values.bytes()) / seconds;
  }();
  return bandwidth;
}

/// cuBLAS with the math mode that it has by itself; `cuda::CublasHandle` restricts it.
class CublasHandle {
 public:
  explicit CublasHandle(cudaStream_t stream) : workspace_(std::size_t{32} << 20) {
    require(cublasCreate(&handle_));
    require(cublasSetStream(handle_, stream));
    require(cublasSetWorkspace(handle_, workspace_.data(), workspace_.bytes()));
  }
  CublasHandle(const CublasHandle&) = delete;
  CublasHandle& operator=(const CublasHandle&) = delete;
  ~CublasHandle() { cublasDestroy(handle_); }
  [[nodiscard]] cublasHandle_t get() const { return handle_; }

 private:
  DeviceArray<unsigned char> workspace_;
  cublasHandle_t handle_ = nullptr;
};

/// Operations a second of cuBLAS's bf16 product of 8192 x 8192 x 8192, random operands.
inline double gemm_rate() {
  static const double rate = [] {
    constexpr std::int64_t kSize = 8192;
    const auto a = random_array<__nv_bfloat16>(kSize * kSize, 1);
    const auto b = random_array<__nv_bfloat16>(kSize * kSize, 2);
    const DeviceArray<__nv_bfloat16> c(kSize * kSize);
    const cuda::Stream stream = new_stream();
    const CublasHandle handle(stream.get());
    cuda::GemmArgs<__nv_bfloat16, __nv_bfloat16> args;
    args.inputs = a.data();
    args.weights = b.data();
    args.outputs = c.data();
    args.input_stride = args.weight_stride = args.output_stride = kSize;
    args.num_rows = args.in_features = args.out_features = kSize;
    const double seconds = median_seconds(
        stream, [] {}, [&] { require(cuda::gemm(handle.get(), args)); });
    return 2.0 * kSize * kSize * kSize / seconds;
  }();
  return rate;
}

/// Hands a case's median to Google Benchmark.
inline void report_time(benchmark::State& state, double seconds) {
  for (auto _ : state) state.SetIterationTime(seconds);
}
/// \param bytes  that the operation must move at least: each input read, each output written once
inline void report_bytes(benchmark::State& state, double seconds, double bytes) {
  state.counters["bytes"] = bytes;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_copy"] = bytes / seconds / copy_bandwidth();
  state.counters["copy_GB/s"] = copy_bandwidth() * 1e-9;
}
/// The same for an operation that writes next to nothing.
inline void report_reads(benchmark::State& state, double seconds, double bytes) {
  report_bytes(state, seconds, bytes);
  state.counters["of_read"] = bytes / seconds / read_bandwidth();
  state.counters["read_GB/s"] = read_bandwidth() * 1e-9;
}
inline void report_flops(benchmark::State& state, double seconds, double flops) {
  state.counters["flops"] = flops;
  state.counters["TFLOP/s"] = flops / seconds * 1e-12;
  state.counters["of_gemm"] = flops / seconds / gemm_rate();
  state.counters["gemm_TFLOP/s"] = gemm_rate() * 1e-12;
}

}  // namespace chunkllm::bench
