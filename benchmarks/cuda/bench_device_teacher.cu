// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// What collecting the teacher costs: whole calls of `DeviceTeacher::collect` on models of published
// shapes with random weights, by the host's clock, rows handed over included. Chunks of 20 tokens,
// the mean of English text, a trigger at each chunk's end. A sample is one sequence; each case
// reports the median and `spread`, (largest - smallest) / median. Two sequences before the samples
// load the kernels, and must give the same bits; that they are right is the business of the tests.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bench_device_support.hpp"
#include "chunkllm/cuda/backbone_shapes.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_teacher.hpp"

namespace chunkllm::bench {
namespace {

using T = __nv_bfloat16;

constexpr std::int64_t kChunkTokens = 20;
constexpr int kSamples = 15;

void collect(benchmark::State& state, const char* shape, std::int32_t num_tokens) {
  run_case(state, [&] {
    const BackboneConfig config = taken(cuda::backbone_shape(shape));
    const auto backbone = taken(
        cuda::DeviceBackbone<T>::create(taken(cuda::DeviceWeights<T>::random(config, /*seed=*/1))));
    const auto num_chunks = static_cast<std::int32_t>(num_tokens / kChunkTokens);
    auto teacher =
        taken(cuda::DeviceTeacher<T>::create(backbone, {num_tokens, num_chunks, num_chunks}));
    std::vector<std::int32_t> ids;
    for (std::int32_t i = 0; i < num_tokens; ++i) ids.push_back(i % 9600);
    std::vector<std::int64_t> ends;
    std::vector<std::int64_t> triggers;
    for (std::int64_t end = kChunkTokens; end <= num_tokens; end += kChunkTokens) {
      ends.push_back(end);
      triggers.push_back(end - 1);
    }
    const auto rows = [&] {
      return taken(teacher.collect(ids, ends, triggers, ChunkOptions{}, KeyPooling::kMean));
    };
    require(rows().layers.back().mass == rows().layers.back().mass,
            "two readings of a sequence differ");
    std::vector<double> seconds;
    for (int i = 0; i < kSamples; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      benchmark::DoNotOptimize(rows());
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
      seconds.push_back(passed.count());
    }
    const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
    const double middle = median(seconds);
    report_time(state, middle);
    state.counters["spread"] = (*most - *least) / middle;
    state.counters["tokens/s"] = num_tokens / middle;
  });
}

BENCHMARK_CAPTURE(collect, smollm2_135m_4096, "smollm2-135m", 4096)->Apply(device_case);
BENCHMARK_CAPTURE(collect, smollm2_135m_8192, "smollm2-135m", 8192)->Apply(device_case);
BENCHMARK_CAPTURE(collect, llama_1b_4096, "llama-3.2-1b", 4096)->Apply(device_case);

}  // namespace
}  // namespace chunkllm::bench

int main(int argc, char** argv) {
  return chunkllm::bench::run_benchmarks(argc, argv);
}
