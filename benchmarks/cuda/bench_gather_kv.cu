// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Copying the attended keys and values of one layer side by side: a share of 122,880 tokens in
// chunks of 8 to 40, 8 KV heads of 128. `bytes` are what is read and what is written; `of_copy` is
// the share of the bandwidth of a device-to-device copy in this run. Launches are replayed as a
// graph and rotate over sets that share no chunk and over as many outputs, so that none finds
// either in the L2 cache. Every row of two heads is compared before anything is timed.

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <vector>

#include "bench_device_kv.hpp"
#include "bench_device_support.hpp"
#include "chunkllm/kernels/gather_kv.cuh"

namespace {

using namespace chunkllm::bench;  // NOLINT(google-build-using-namespace): a program
namespace kernels = chunkllm::kernels;

constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kRowSize = kKvHeads * kHeadDim;

struct GatherCase {
  double share;
  int page_size = 0;
};

template <typename Kv, typename Out>
class GatherProblem {
 public:
  explicit GatherProblem(const GatherCase& c)
      : kv_({1, kTokens, kKvHeads, kHeadDim, c.page_size}),
        num_sets_(num_cold_sets(c.share * kTokens * kTokenBytes, static_cast<int>(0.9 / c.share))),
        sets_(disjoint_sets(random_chunk_ends(kTokens, 31), kTokens, c.share, num_sets_, 31)),
        device_sets_(sets_),
        num_tokens_(std::vector<std::int32_t>{kTokens}),
        num_gathered_(1) {
    for (const SpanList& set : sets_) {
      capacity_ = std::max(capacity_, set.num_attended(kTokens - 1));
    }
    const std::size_t size = static_cast<std::size_t>(num_sets_) * capacity_ * kRowSize;
    keys_ = DeviceArray<Out>(size);
    values_ = DeviceArray<Out>(size);
  }

  void launch(int i, cudaStream_t stream) const {
    const int set = i % num_sets_;
    kernels::GatherKvArgs<Kv, Out> args;
    args.kv = kv_.view();
    args.sets = device_sets_.rows(set, 1);
    args.maybe_num_tokens = num_tokens_.data();
    args.num_seqs = 1;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kHeadDim;
    args.keys = keys_.data() + output_at(set);
    args.values = values_.data() + output_at(set);
    args.capacity = capacity_;
    args.num_gathered = num_gathered_.data();
    require(kernels::launch_gather_kv(args, stream));
  }

  void check() const {
    for (int i = 0; i < num_sets_; ++i) launch(i, stream_.get());
    require(stream_.synchronize());
    for (int set = 0; set < num_sets_; ++set) {
      const std::vector<std::int32_t> tokens =
          sets_[static_cast<std::size_t>(set)].attended(kTokens - 1);
      for (const std::int32_t head : {0, kKvHeads - 1}) {
        std::vector<std::int64_t> places;
        for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
          places.push_back(output_at(set) + static_cast<std::int64_t>(rank) * kRowSize +
                           head * kHeadDim);
        }
        const std::string where = "set " + std::to_string(set) + " head " + std::to_string(head);
        require(read_rows(keys_.data(), places, kHeadDim) == kv_.read(false, 0, head, tokens),
                where + ": other keys than in the cache");
        require(read_rows(values_.data(), places, kHeadDim) == kv_.read(true, 0, head, tokens),
                where + ": other values than in the cache");
      }
    }
  }

  [[nodiscard]] double seconds() const {
    return launch_seconds(stream_, num_launches(num_sets_),
                          [&](int i, cudaStream_t stream) { launch(i, stream); });
  }
  [[nodiscard]] double num_attended() const {
    double total = 0.0;
    for (const SpanList& set : sets_) total += set.num_attended(kTokens - 1);
    return total / num_sets_;
  }
  /// Read and written for one set.
  [[nodiscard]] double bytes() const { return num_attended() * kTokenBytes; }

 private:
  static constexpr double kTokenBytes = 2.0 * kRowSize * (sizeof(Kv) + sizeof(Out));

  [[nodiscard]] std::int64_t output_at(int set) const {
    return std::int64_t{set} * capacity_ * kRowSize;
  }

  chunkllm::cuda::Stream stream_ = new_stream();
  KvMemory<Kv> kv_;
  int num_sets_;
  std::vector<SpanList> sets_;
  DeviceSets device_sets_;
  DeviceArray<std::int32_t> num_tokens_;
  DeviceArray<std::int32_t> num_gathered_;
  std::int32_t capacity_ = 0;
  DeviceArray<Out> keys_;
  DeviceArray<Out> values_;
};

template <typename Kv, typename Out>
void gather(benchmark::State& state, const GatherCase& c) {
  run_case(state, [&] {
    const GatherProblem<Kv, Out> problem(c);
    problem.check();
    const double seconds = problem.seconds();
    report_time(state, seconds);
    report_bytes(state, seconds, problem.bytes());
    state.counters["attended"] = problem.num_attended();
  });
}
void gather_bf16(benchmark::State& state, const GatherCase& c) {
  gather<__nv_bfloat16, __nv_bfloat16>(state, c);
}
void gather_fp8(benchmark::State& state, const GatherCase& c) {
  gather<__nv_fp8_e4m3, __nv_fp8_e4m3>(state, c);
}
void gather_fp8_to_bf16(benchmark::State& state, const GatherCase& c) {
  gather<__nv_fp8_e4m3, __nv_bfloat16>(state, c);
}

// Share, page size.
BENCHMARK_CAPTURE(gather_bf16, 10, {0.1})->Apply(device_case);
BENCHMARK_CAPTURE(gather_bf16, 50, {0.5})->Apply(device_case);
BENCHMARK_CAPTURE(gather_bf16, 10_page16, {0.1, 16})->Apply(device_case);
BENCHMARK_CAPTURE(gather_bf16, 10_page64, {0.1, 64})->Apply(device_case);
BENCHMARK_CAPTURE(gather_fp8, 10, {0.1})->Apply(device_case);
BENCHMARK_CAPTURE(gather_fp8_to_bf16, 10, {0.1})->Apply(device_case);

}  // namespace

int main(int argc, char** argv) {
  return run_benchmarks(argc, argv);
}
