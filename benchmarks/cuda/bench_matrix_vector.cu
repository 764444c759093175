// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// The products of a decode step at the shapes of Llama-3.1-8B for 1, 4, 8 and 16 sequences, with
// cuBLAS beside. `bytes` are the weights, read once; `of_copy` and `of_read` are the shares of the
// bandwidths of a device-to-device copy and of a pure read in this run. Launches are replayed as a
// graph and rotate over copies of the weights, so that none finds its own in the L2 cache. 256
// outputs of each row are checked against sums in double before anything is timed.

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "bench_device_support.hpp"
#include "chunkllm/kernels/matrix_vector.cuh"

namespace {

using namespace chunkllm::bench;  // NOLINT(google-build-using-namespace): a program
namespace kernels = chunkllm::kernels;
using T = __nv_bfloat16;

struct Product {
  std::int32_t num_outputs;
  std::int32_t k;
  bool is_gated = false;
};
constexpr Product kQkv{6144, 4096};
constexpr Product kOutput{4096, 4096};
constexpr Product kGateUp{28672, 4096, true};
constexpr Product kDown{4096, 14336};
constexpr Product kHead{128256, 4096};

class ProductProblem {
 public:
  ProductProblem(const Product& product, std::int32_t num_rows, bool with_cublas)
      : product_(product),
        num_rows_(num_rows),
        with_cublas_(with_cublas),
        handle_(stream_.get()),
        num_sets_(num_cold_sets(bytes(), /*most=*/16)),
        weights_(random_array<T>(static_cast<std::size_t>(num_sets_) * weight_size(), 41,
                                 1.0F / std::sqrt(static_cast<float>(product.k)))),
        x_(random_array<T>(static_cast<std::size_t>(num_rows) * product.k, 42)),
        y_(static_cast<std::size_t>(num_rows) * product.num_outputs) {}

  void launch(int i, cudaStream_t stream) const {
    const T* weight = weights_.data() + static_cast<std::size_t>(i % num_sets_) * weight_size();
    if (with_cublas_) {
      chunkllm::cuda::GemmArgs<T, T> args;
      args.inputs = x_.data();
      args.weights = weight;
      args.outputs = y_.data();
      args.input_stride = args.weight_stride = product_.k;
      args.output_stride = product_.num_outputs;
      args.num_rows = num_rows_;
      args.in_features = product_.k;
      args.out_features = product_.num_outputs;
      require(chunkllm::cuda::gemm(handle_.get(), args));
      return;
    }
    kernels::MatrixVectorArgs<T> args;
    args.weight = weight;
    args.num_outputs = product_.num_outputs;
    args.k = product_.k;
    args.num_rows = num_rows_;
    args.x = x_.data();
    args.x_stride = product_.k;
    args.epilogue = product_.is_gated ? kernels::Epilogue::kSiluGate : kernels::Epilogue::kStore;
    args.y = y_.data();
    args.y_stride = num_results();
    require(kernels::launch_matrix_vector(args, stream));
  }

  void check() const {
    launch(0, stream_.get());
    require(stream_.synchronize());
    constexpr int kSampled = 256;
    for (std::int32_t row = 0; row < num_rows_; ++row) {
      const chunkllm::oracle::Row x =
          read_rows(x_.data(), {std::int64_t{row} * product_.k}, product_.k)[0];
      std::vector<std::int64_t> places;
      std::vector<std::int64_t> results;
      for (int i = 0; i < kSampled; ++i) {
        const std::int64_t output = std::int64_t{i} * (num_results() - 1) / (kSampled - 1);
        results.push_back(row * num_results() + output);
        places.push_back(output * product_.k);
        if (gates()) places.push_back((output + num_results()) * product_.k);
      }
      const chunkllm::oracle::Rows weights = read_rows(weights_.data(), places, product_.k);
      const chunkllm::oracle::Rows actual = read_rows(y_.data(), results, 1);
      chunkllm::oracle::Row expected;
      chunkllm::oracle::Row got;
      for (std::size_t i = 0; i < results.size(); ++i) {
        const auto dot = [&](const chunkllm::oracle::Row& w) {
          double sum = 0.0;
          for (std::size_t d = 0; d < x.size(); ++d) sum += w[d] * x[d];
          return sum;
        };
        if (gates()) {
          const double gate = dot(weights[2 * i]);
          expected.push_back(gate / (1.0 + std::exp(-gate)) * dot(weights[2 * i + 1]));
        } else {
          expected.push_back(dot(weights[i]));
        }
        got.push_back(actual[i][0]);
      }
      const double error = relative_error(got, expected);
      require(error <= kTolerance16Bit, "row " + std::to_string(row) +
                                            " differs from sums in double by " +
                                            std::to_string(error));
    }
  }

  [[nodiscard]] double seconds() const {
    return launch_seconds(stream_, num_launches(num_sets_),
                          [&](int i, cudaStream_t stream) { launch(i, stream); });
  }
  [[nodiscard]] double bytes() const { return static_cast<double>(weight_size()) * sizeof(T); }
  [[nodiscard]] int num_sets() const { return num_sets_; }

 private:
  [[nodiscard]] std::size_t weight_size() const {
    return static_cast<std::size_t>(product_.num_outputs) * static_cast<std::size_t>(product_.k);
  }
  [[nodiscard]] bool gates() const { return product_.is_gated && !with_cublas_; }
  [[nodiscard]] std::int64_t num_results() const {
    return gates() ? product_.num_outputs / 2 : product_.num_outputs;
  }

  Product product_;
  std::int32_t num_rows_;
  bool with_cublas_;
  chunkllm::cuda::Stream stream_ = new_stream();
  CublasHandle handle_;
  int num_sets_;
  DeviceArray<T> weights_;
  DeviceArray<T> x_;
  DeviceArray<T> y_;
};

void time_product(benchmark::State& state, const Product& product, bool with_cublas) {
  run_case(state, [&] {
    const ProductProblem problem(product, static_cast<std::int32_t>(state.range(0)), with_cublas);
    problem.check();
    const double seconds = problem.seconds();
    report_time(state, seconds);
    report_reads(state, seconds, problem.bytes());
    state.counters["sets"] = problem.num_sets();
  });
}
void matrix_vector(benchmark::State& state, const Product& product) {
  time_product(state, product, /*with_cublas=*/false);
}
/// The gate's product without the gate.
void cublas(benchmark::State& state, const Product& product) {
  time_product(state, product, /*with_cublas=*/true);
}

/// Sequences.
void rows_case(benchmark::internal::Benchmark* benchmark) {
  device_case(benchmark);
  benchmark->Arg(1)->Arg(4)->Arg(8)->Arg(16);
}
BENCHMARK_CAPTURE(matrix_vector, qkv, kQkv)->Apply(rows_case);
BENCHMARK_CAPTURE(cublas, qkv, kQkv)->Apply(rows_case);
BENCHMARK_CAPTURE(matrix_vector, output, kOutput)->Apply(rows_case);
BENCHMARK_CAPTURE(cublas, output, kOutput)->Apply(rows_case);
BENCHMARK_CAPTURE(matrix_vector, gate_up, kGateUp)->Apply(rows_case);
BENCHMARK_CAPTURE(cublas, gate_up, kGateUp)->Apply(rows_case);
BENCHMARK_CAPTURE(matrix_vector, down, kDown)->Apply(rows_case);
BENCHMARK_CAPTURE(cublas, down, kDown)->Apply(rows_case);
BENCHMARK_CAPTURE(matrix_vector, head, kHead)->Apply(rows_case);
BENCHMARK_CAPTURE(cublas, head, kHead)->Apply(rows_case);

}  // namespace

int main(int argc, char** argv) {
  return run_benchmarks(argc, argv);
}
