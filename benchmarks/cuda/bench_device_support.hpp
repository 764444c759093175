// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../tests/reference/oracle.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/gemm.hpp"
#include "chunkllm/cuda/views.hpp"

/// What the device benchmarks share: memory filled with random values, event times of captured
/// launches whose inputs are not in the L2 cache, and the two ceilings, measured in the same run.
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

inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  require(cudaGetDevice(&device));
  require(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

/// Runs a case, or says why it cannot.
template <typename Body>
void run_case(benchmark::State& state, const Body& body) {
  if (!has_device()) {
    state.SkipWithError("no CUDA device");
    return;
  }
  try {
    body();
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

/// `main` of a device benchmark.
inline int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cudaDeviceProp properties = {};
  if (has_device() && cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
    benchmark::AddCustomContext("device", properties.name);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
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

class Stream {
 public:
  Stream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }
  void wait() const { require(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { require(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(cudaStream_t stream) const { require(cudaEventRecord(event_, stream)); }
  [[nodiscard]] double seconds_since(const Event& start) const {
    float milliseconds = 0.0F;
    require(cudaEventSynchronize(event_));
    require(cudaEventElapsedTime(&milliseconds, start.event_, event_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Median over samples of the device time of `enqueue()`: 5 samples or more, 25 or as many as take
/// 50 ms. `prepare()` runs in front of each sample, outside of its time.
template <typename Prepare, typename Enqueue>
double median_seconds(const Stream& stream, const Prepare& prepare, const Enqueue& enqueue) {
  constexpr double kWanted = 0.05;
  const Event start;
  const Event end;
  const auto sample = [&] {
    prepare();
    start.record(stream.get());
    enqueue();
    end.record(stream.get());
    return end.seconds_since(start);
  };
  sample();  // warm-up
  const double first = sample();
  const auto count = static_cast<std::size_t>(std::clamp(kWanted / first, 5.0, 25.0));
  std::vector<double> seconds(count);
  for (double& value : seconds) value = sample();
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(count / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

/// Median seconds of one of `num_launches` launches in a row, replayed as one graph.
///
/// \param launch  (i, stream): enqueues launch i. Let i rotate over inputs that together exceed
///                `cold_bytes()`, so that no launch finds its own in the L2 cache
/// \param prepare  in front of each replay, outside of its time
template <typename Launch, typename Prepare>
double launch_seconds(const Stream& stream, int num_launches, const Launch& launch,
                      const Prepare& prepare) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  require(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  std::string failure;
  try {
    for (int i = 0; i < num_launches; ++i) launch(i, stream.get());
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const cudaError_t ended = cudaStreamEndCapture(stream.get(), &graph);
  require(failure.empty(), failure);
  require(ended);
  require(cudaGraphInstantiate(&instance, graph, 0));
  const double seconds =
      median_seconds(stream, prepare, [&] { require(cudaGraphLaunch(instance, stream.get())); });
  require(cudaGraphExecDestroy(instance));
  require(cudaGraphDestroy(graph));
  return seconds / num_launches;
}
template <typename Launch>
double launch_seconds(const Stream& stream, int num_launches, const Launch& launch) {
  return launch_seconds(stream, num_launches, launch, [] {});
}

/// What inputs must exceed together for a launch to find none of its own in the L2 cache.
inline double cold_bytes() {
  return 3.0 * device_attribute(cudaDevAttrL2CacheSize);
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
    const Stream stream;
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
    const Stream stream;
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
inline void report_flops(benchmark::State& state, double seconds, double flops) {
  state.counters["flops"] = flops;
  state.counters["TFLOP/s"] = flops / seconds * 1e-12;
  state.counters["of_gemm"] = flops / seconds / gemm_rate();
  state.counters["gemm_TFLOP/s"] = gemm_rate() * 1e-12;
}

// ---------------------------------------------------------------------------------------------
// Keys, values, chunks and sets.

inline constexpr std::int32_t kTokens = 122880;

/// Ends of chunks of 8 to 40 tokens, 24 in the mean, that lie within `tokens`.
inline std::vector<std::int32_t> random_chunk_ends(std::int32_t tokens, unsigned seed) {
  std::minstd_rand random(seed);
  std::vector<std::int32_t> ends;
  std::int32_t end = 0;
  while (true) {
    end += 8 + static_cast<std::int32_t>(random() % 33);
    if (end > tokens) return ends;
    ends.push_back(end);
  }
}

/// Where the newest chunks with at least 64 tokens in front of `token` begin.
inline std::int32_t local_window_begin(const std::vector<std::int32_t>& ends, std::int32_t token) {
  const auto end = std::upper_bound(ends.begin(), ends.end(), std::max(token - 64, 0));
  return end == ends.begin() ? 0 : *std::prev(end);
}

struct SpanList {
  std::vector<std::int32_t> tokens;
  std::int32_t tail_begin = 0;

  [[nodiscard]] std::int32_t num_attended(std::int32_t position) const {
    return static_cast<std::int32_t>(tokens.size()) + position + 1 - tail_begin;
  }
  /// All of them, for the token at `position`.
  [[nodiscard]] std::vector<std::int32_t> attended(std::int32_t position) const {
    std::vector<std::int32_t> all = tokens;
    for (std::int32_t t = tail_begin; t <= position; ++t) all.push_back(t);
    return all;
  }
};

inline void append_chunk(const std::vector<std::int32_t>& ends, std::int32_t chunk,
                         std::vector<std::int32_t>& tokens) {
  const std::int32_t begin = chunk == 0 ? 0 : ends[static_cast<std::size_t>(chunk - 1)];
  for (std::int32_t t = begin; t < ends[static_cast<std::size_t>(chunk)]; ++t) tokens.push_back(t);
}

/// Sets that share nothing but chunk 0 and the local window, each of about `share` of all tokens in
/// random chunks. A share of 1 or more: dense.
inline std::vector<SpanList> disjoint_sets(const std::vector<std::int32_t>& ends,
                                           std::int32_t num_tokens, double share, int count,
                                           unsigned seed) {
  std::vector<SpanList> sets(static_cast<std::size_t>(count));
  if (share >= 1.0) return sets;
  const std::int32_t tail_begin = local_window_begin(ends, num_tokens);
  std::vector<std::int32_t> candidates;
  for (std::size_t c = 1; c < ends.size() && ends[c] <= tail_begin; ++c) {
    candidates.push_back(static_cast<std::int32_t>(c));
  }
  std::minstd_rand random(seed);
  std::shuffle(candidates.begin(), candidates.end(), random);
  const auto wanted = static_cast<std::int32_t>(share * num_tokens);
  std::size_t next = 0;
  for (SpanList& set : sets) {
    std::vector<std::int32_t> chosen = {0};
    std::int32_t size = num_tokens - tail_begin + ends[0];
    while (size < wanted && next < candidates.size()) {
      const std::int32_t chunk = candidates[next++];
      size += ends[static_cast<std::size_t>(chunk)] - ends[static_cast<std::size_t>(chunk - 1)];
      chosen.push_back(chunk);
    }
    std::sort(chosen.begin(), chosen.end());
    for (const std::int32_t chunk : chosen) append_chunk(ends, chunk, set.tokens);
    set.tail_begin = tail_begin;
  }
  return sets;
}

/// Sets on the device, one a row.
class DeviceSets {
 public:
  explicit DeviceSets(const std::vector<SpanList>& sets) {
    std::size_t capacity = 0;
    for (const SpanList& set : sets) capacity = std::max(capacity, set.tokens.size());
    std::vector<std::int32_t> tokens(capacity * sets.size());
    std::vector<std::int32_t> counts;
    std::vector<std::int32_t> tails;
    for (std::size_t s = 0; s < sets.size(); ++s) {
      std::copy(sets[s].tokens.begin(), sets[s].tokens.end(),
                tokens.begin() + static_cast<std::ptrdiff_t>(s * capacity));
      counts.push_back(static_cast<std::int32_t>(sets[s].tokens.size()));
      tails.push_back(sets[s].tail_begin);
    }
    capacity_ = static_cast<std::int32_t>(capacity);
    span_tokens_ = DeviceArray<std::int32_t>(tokens);
    num_span_tokens_ = DeviceArray<std::int32_t>(counts);
    tail_begin_ = DeviceArray<std::int32_t>(tails);
  }
  [[nodiscard]] cuda::DeviceAttendedSets rows(std::int32_t first, std::int32_t count) const {
    return {span_tokens_.data() + static_cast<std::int64_t>(first) * capacity_,
            num_span_tokens_.data() + first, tail_begin_.data() + first, count, capacity_};
  }

 private:
  std::int32_t capacity_ = 0;
  DeviceArray<std::int32_t> span_tokens_;
  DeviceArray<std::int32_t> num_span_tokens_;
  DeviceArray<std::int32_t> tail_begin_;
};

struct KvShape {
  std::int32_t num_seqs = 1;
  std::int32_t num_tokens = kTokens;
  std::int32_t num_kv_heads = 8;
  std::int32_t head_dim = 128;
  std::int32_t page_size = 0;  ///< 0: contiguous
};

/// Random keys and values of one layer; pages lie in random order.
template <typename Kv>
class KvMemory {
 public:
  explicit KvMemory(const KvShape& shape) : shape_(shape) {
    const std::size_t size = static_cast<std::size_t>(shape.num_seqs) * shape.num_tokens *
                             shape.num_kv_heads * shape.head_dim;
    keys_ = random_array<Kv>(size, 11);
    values_ = random_array<Kv>(size, 12);
    if (shape.page_size == 0) return;
    require(shape.num_tokens % shape.page_size == 0, "pages must divide the tokens");
    page_table_.resize(static_cast<std::size_t>(shape.num_seqs) * max_pages());
    std::iota(page_table_.begin(), page_table_.end(), 0);
    std::minstd_rand random(13);
    std::shuffle(page_table_.begin(), page_table_.end(), random);
    device_page_table_ = DeviceArray<std::int32_t>(page_table_);
  }

  [[nodiscard]] cuda::DeviceKvView<const Kv> view() const {
    cuda::DeviceKvView<const Kv> view;
    view.keys = keys_.data();
    view.values = values_.data();
    view.token_stride = token_stride();
    view.head_stride = shape_.head_dim;
    if (shape_.page_size == 0) {
      view.seq_stride = shape_.num_tokens * token_stride();
      return view;
    }
    view.page_table = device_page_table_.data();
    view.max_pages = max_pages();
    view.page_size = shape_.page_size;
    view.page_stride = shape_.page_size * token_stride();
    return view;
  }

  /// Keys, or values, of the listed tokens, for a reference.
  [[nodiscard]] oracle::Rows read(bool values, std::int32_t seq, std::int32_t kv_head,
                                  const std::vector<std::int32_t>& tokens) const {
    std::vector<std::int64_t> offsets;
    offsets.reserve(tokens.size());
    for (const std::int32_t token : tokens) {
      std::int64_t place = std::int64_t{seq} * shape_.num_tokens + token;
      if (shape_.page_size > 0) {
        const std::int64_t page = place / shape_.page_size;  // whole pages a sequence
        place = std::int64_t{page_table_[static_cast<std::size_t>(page)]} * shape_.page_size +
                token % shape_.page_size;
      }
      offsets.push_back(place * token_stride() + std::int64_t{kv_head} * shape_.head_dim);
    }
    return read_rows(values ? values_.data() : keys_.data(), offsets, shape_.head_dim);
  }

 private:
  [[nodiscard]] std::int32_t max_pages() const { return shape_.num_tokens / shape_.page_size; }
  [[nodiscard]] std::int64_t token_stride() const {
    return std::int64_t{shape_.num_kv_heads} * shape_.head_dim;
  }

  KvShape shape_;
  DeviceArray<Kv> keys_;
  DeviceArray<Kv> values_;
  std::vector<std::int32_t> page_table_;
  DeviceArray<std::int32_t> device_page_table_;
};

/// Attention of one query head over the listed tokens, in double.
///
/// \param angle  of RoPE, positions being ranks in the list; null: nothing is turned
template <typename Kv>
oracle::Row reference_attention(const KvMemory<Kv>& kv, std::int32_t seq, std::int32_t kv_head,
                                const oracle::Row& q, const std::vector<std::int32_t>& tokens,
                                std::function<double(std::int64_t, std::int64_t)> angle = nullptr) {
  oracle::AttentionShape shape;
  shape.head_dim = static_cast<std::int64_t>(q.size());
  shape.scale = 1.0 / std::sqrt(static_cast<double>(q.size()));
  shape.angle = std::move(angle);
  oracle::TokenList ranks(tokens.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return oracle::attend(shape, q, kv.read(/*values=*/false, seq, kv_head, tokens),
                        kv.read(/*values=*/true, seq, kv_head, tokens), ranks)
      .out;
}

}  // namespace chunkllm::bench
