// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/gather_kv.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/kernels/gather_kv.cuh"
#include "cuda/support/decode_problem.cuh"
#include "cuda/support/device.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::succeeds;
using namespace testing::decode;

template <typename Out, typename Kv>
Out gathered_value(Kv value, float scale) {
  if constexpr (std::is_same_v<Kv, Out>) {
    return value;
  } else {
    return stored<Out>(static_cast<float>(loaded(value)) * scale);
  }
}

template <typename Kv_, typename Out_>
struct Types {
  using Kv = Kv_;
  using Out = Out_;
};

template <typename Param>
class GatherKv : public testing::DeviceTest {
 protected:
  using Kv = typename Param::Kv;
  using Out = typename Param::Out;
  using Source = Problem<Bf16, Kv>;

  static GatherKvArgs<Kv, Out> args_of(const Source& source, const DeviceBuffer<Out>& keys,
                                       const DeviceBuffer<Out>& values,
                                       const DeviceBuffer<std::int32_t>& num_gathered,
                                       std::int32_t capacity) {
    const auto attention = source.args();
    GatherKvArgs<Kv, Out> args;
    args.kv = attention.kv;
    args.sets = attention.sets;
    args.maybe_num_tokens = attention.num_tokens;
    args.num_seqs = attention.num_seqs;
    args.num_kv_heads = attention.num_kv_heads;
    args.head_dim = attention.head_dim;
    args.keys = keys.data();
    args.values = values.data();
    args.capacity = capacity;
    args.num_gathered = num_gathered.data();
    return args;
  }

  /// Gathers into memory with gaps, or `head_major`, and compares every element, those that must
  /// stay as they were too.
  void run_and_check(const Shape& shape, const std::vector<Sequence>& seqs, std::int32_t capacity,
                     bool head_major = false, bool with_tail = true) {
    Source source(shape, seqs, seed());
    source.upload();
    const std::int64_t dim = shape.head_dim;
    const std::int64_t heads = shape.num_kv_heads;
    const std::int64_t token_stride = head_major ? dim : heads * dim + 16;
    const std::int64_t head_stride = head_major ? dim * capacity + 32 : dim;
    const std::int64_t seq_stride = head_major ? heads * head_stride : capacity * token_stride;
    const auto size = static_cast<std::size_t>(seq_stride) * seqs.size();
    const DeviceBuffer<Out> keys(size);
    const DeviceBuffer<Out> values(size);
    const DeviceBuffer<std::int32_t> num_gathered(seqs.size());
    auto args = args_of(source, keys, values, num_gathered, capacity);
    args.token_stride = token_stride;
    args.head_stride = head_stride;
    args.seq_stride = seq_stride;
    if (!with_tail) args.maybe_num_tokens = nullptr;
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
    ASSERT_TRUE(succeeds(launch_gather_kv(args, stream_)));

    std::vector<Out> want_keys(size);
    std::memset(static_cast<void*>(want_keys.data()), 0xff, size * sizeof(Out));  // the poison
    std::vector<Out> want_values = want_keys;
    std::vector<std::int32_t> want_counts;
    for (std::size_t s = 0; s < seqs.size(); ++s) {
      oracle::TokenList tokens = seqs[s].attended();
      if (!with_tail) tokens.resize(seqs[s].span_tokens.size());
      tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(capacity)));
      want_counts.push_back(static_cast<std::int32_t>(tokens.size()));
      for (std::size_t r = 0; r < tokens.size(); ++r) {
        for (std::int32_t i = 0; i < heads * dim; ++i) {
          const std::size_t from =
              source.place(static_cast<std::int32_t>(s), static_cast<std::int32_t>(tokens[r]), i);
          const auto to = static_cast<std::size_t>(static_cast<std::int64_t>(s) * seq_stride +
                                                   static_cast<std::int64_t>(r) * token_stride +
                                                   i / dim * head_stride + i % dim);
          want_keys[to] = gathered_value<Out>(source.keys[from], shape.key_scale);
          want_values[to] = gathered_value<Out>(source.values[from], shape.value_scale);
        }
      }
    }
    const std::string what = shape.name() + ", room for " + std::to_string(capacity);
    EXPECT_EQ(num_gathered.download(), want_counts) << what;
    expect_bits(keys.download(), want_keys, "keys, " + what);
    expect_bits(values.download(), want_values, "values, " + what);
    EXPECT_TRUE(keys.intact() && values.intact() && num_gathered.intact()) << what;
  }

  static void expect_bits(const std::vector<Out>& got, const std::vector<Out>& want,
                          const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(Out)), 0) << "element " << i << ", " << what;
    }
  }
};
using AllTypes = ::testing::Types<Types<Bf16, Bf16>, Types<__half, __half>, Types<Fp8, Fp8>,
                                  Types<Fp8, Bf16>, Types<Fp8, __half>>;
TYPED_TEST_SUITE(GatherKv, AllTypes);
#define RUN(...) ASSERT_NO_FATAL_FAILURE(this->run_and_check(__VA_ARGS__))

TYPED_TEST(GatherKv, EveryAttendedTokenIsCopied) {
  for (const std::int32_t page_size : {0, 1, 16, 48, 64}) {
    for (const bool head_major : {false, true}) {
      for (const std::int32_t head_dim : {64, 96, 128, 256}) {
        Shape shape;
        shape.head_dim = head_dim;
        shape.page_size = page_size;
        shape.head_major = head_major;
        shape.key_scale = 0.375F;
        shape.value_scale = 3.0F;
        RUN(shape, some_of({70, 0, 1, 33}), /*capacity=*/80, /*head_major=*/page_size == 16);
      }
    }
  }
}

TYPED_TEST(GatherKv, TilesOfAnyFill) {
  for (const std::int32_t num_kv_heads : {1, 3, 8, 40}) {  // 40: a row is more than a tile
    Shape shape;
    shape.num_kv_heads = num_kv_heads;
    shape.num_heads = num_kv_heads;
    shape.head_dim = 256;
    RUN(shape, some_of({1, 7, 8, 9, 12, 41}), /*capacity=*/41);
  }
}

TYPED_TEST(GatherKv, NothingIsWrittenBehindTheRoom) {
  for (const std::int32_t capacity : {0, 1, 7, 8, 30}) RUN(Shape{}, some_of({50, 9, 0}), capacity);
}

TYPED_TEST(GatherKv, WithoutLengthsTheTailIsLeftOut) {
  RUN(Shape{}, some_of({100, 5, 64}), /*capacity=*/100, /*head_major=*/false, /*with_tail=*/false);
}

TYPED_TEST(GatherKv, GraphsStreamsAndRunsAgree) {
  using Kv = typename TypeParam::Kv;
  using Out = typename TypeParam::Out;
  Problem<Bf16, Kv> source(Shape{}, some_of({3000, 500, 0, 77}), this->seed());
  source.upload();
  constexpr std::int32_t kCapacity = 2800;
  constexpr std::size_t kSize = std::size_t{4} * kCapacity * 2 * 64;
  std::vector<std::vector<Out>> results;
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  const DeviceBuffer<Out> keys_a(kSize), values_a(kSize), keys_b(kSize), values_b(kSize);
  const DeviceBuffer<std::int32_t> counts_a(4), counts_b(4);
  const auto a = this->args_of(source, keys_a, values_a, counts_a, kCapacity);
  const auto b = this->args_of(source, keys_b, values_b, counts_b, kCapacity);
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  ASSERT_TRUE(succeeds(launch_gather_kv(a, this->stream_)));
  ASSERT_TRUE(succeeds(launch_gather_kv(b, other)));
  this->expect_bits(keys_a.download(), keys_b.download(), "keys of two streams");
  this->expect_bits(values_a.download(), values_b.download(), "values of two streams");
  ASSERT_TRUE(succeeds(cudaMemset(keys_b.data(), 0xff, kSize * sizeof(Out))));
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  this->replay_as_graph([&](cudaStream_t stream) { return launch_gather_kv(b, stream); }, 3);
  this->expect_bits(keys_a.download(), keys_b.download(), "keys of a graph");
  EXPECT_EQ(counts_a.download(), counts_b.download());
  ASSERT_TRUE(succeeds(cudaStreamDestroy(other)));
}

using GatherKvTest = testing::DeviceTest;

TEST_F(GatherKvTest, EqualsTheHostPath) {
  Shape shape;
  shape.num_kv_heads = 8;
  shape.head_dim = 128;
  shape.page_size = 16;
  Problem<Bf16, Bf16> source(shape, some_of(std::vector<std::int32_t>{700}), seed());
  source.upload();
  const Sequence& seq = source.seqs[0];
  const std::size_t size = seq.attended().size() * 8 * 128;
  std::vector<BF16> want_keys(size);
  std::vector<BF16> want_values(size);
  ThreadPool pool(1);
  ASSERT_TRUE(succeeds(gather_kv<BF16>(source.host_view<BF16>(), spans_of(seq.attended()), 8, 128,
                                       want_keys, want_values, pool)));

  const DeviceBuffer<Bf16> keys(size);
  const DeviceBuffer<Bf16> values(size);
  const DeviceBuffer<std::int32_t> count(1);
  GatherKvArgs<Bf16> args;
  args.kv = source.args().kv;
  args.sets = source.args().sets;
  args.maybe_num_tokens = source.args().num_tokens;
  args.num_seqs = 1;
  args.num_kv_heads = 8;
  args.head_dim = 128;
  args.keys = keys.data();
  args.values = values.data();
  args.capacity = static_cast<std::int32_t>(seq.attended().size());
  args.num_gathered = count.data();
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  ASSERT_TRUE(succeeds(launch_gather_kv(args, stream_)));
  const std::vector<Bf16> got_keys = keys.download();
  const std::vector<Bf16> got_values = values.download();
  EXPECT_EQ(std::memcmp(got_keys.data(), want_keys.data(), size * 2), 0);
  EXPECT_EQ(std::memcmp(got_values.data(), want_values.data(), size * 2), 0);
  EXPECT_EQ(count.download()[0], args.capacity);
}

__global__ void fill_index_kernel(std::uint32_t* out, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    out[i] = static_cast<std::uint32_t>(i);
  }
}

TEST_F(GatherKvTest, HalfOf120KTokensLandInOrder) {
  constexpr std::int32_t kTokens = 122880;
  constexpr std::int64_t kWords = 8 * 128 / 2;  // of a token's keys: pairs of elements
  const DeviceBuffer<Bf16> keys(static_cast<std::size_t>(kTokens * kWords * 2));
  const DeviceBuffer<Bf16> values(keys.size());
  auto* const key_words = reinterpret_cast<std::uint32_t*>(keys.data());
  auto* const value_words = reinterpret_cast<std::uint32_t*>(values.data());
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  fill_index_kernel<<<512, 256, 0, stream_>>>(key_words, kTokens * kWords);
  fill_index_kernel<<<512, 256, 0, stream_>>>(value_words, kTokens * kWords);
  const std::vector<std::int32_t> listed =
      tokens_of_some_chunks(kTokens - 64, /*one_of=*/2, seed());
  const auto num_attended = static_cast<std::int32_t>(listed.size()) + 64;
  const DeviceBuffer<std::int32_t> list(listed);
  const DeviceBuffer<std::int32_t> num_span(std::vector<std::int32_t>{num_attended - 64});
  const DeviceBuffer<std::int32_t> tail(std::vector<std::int32_t>{kTokens - 64});
  const DeviceBuffer<std::int32_t> length(std::vector<std::int32_t>{kTokens});
  const DeviceBuffer<std::int32_t> count(1);
  const DeviceBuffer<Bf16> out_keys(static_cast<std::size_t>(num_attended * kWords * 2));
  const DeviceBuffer<Bf16> out_values(out_keys.size());
  GatherKvArgs<Bf16> args;
  args.kv.keys = keys.data();
  args.kv.values = values.data();
  args.kv.token_stride = 2 * kWords;
  args.kv.head_stride = 128;
  args.sets = {list.data(), num_span.data(), tail.data(), 1, num_attended - 64};
  args.maybe_num_tokens = length.data();
  args.num_seqs = 1;
  args.num_kv_heads = 8;
  args.head_dim = 128;
  args.keys = out_keys.data();
  args.values = out_values.data();
  args.capacity = num_attended;
  args.num_gathered = count.data();
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  ASSERT_TRUE(succeeds(launch_gather_kv(args, stream_)));
  EXPECT_EQ(count.download()[0], num_attended);
  EXPECT_TRUE(out_keys.intact() && out_values.intact());
  for (const DeviceBuffer<Bf16>* out : {&out_keys, &out_values}) {
    const std::vector<Bf16> got = out->download();
    for (std::int32_t r = 0; r < num_attended; ++r) {
      const std::int32_t token =
          r < num_attended - 64 ? listed[static_cast<std::size_t>(r)] : kTokens - num_attended + r;
      for (const std::int64_t word : {std::int64_t{0}, r % kWords, kWords - 1}) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &got[static_cast<std::size_t>((r * kWords + word) * 2)], sizeof(bits));
        ASSERT_EQ(bits, static_cast<std::uint32_t>(token * kWords + word)) << "rank " << r;
      }
    }
  }
}

TEST(GatherKvArguments, StridesOfZeroLeaveNoGaps) {
  GatherKvArgs<Bf16, Bf16> args;
  args.num_seqs = 3;
  args.num_kv_heads = 2;
  args.head_dim = 64;
  args.capacity = 10;
  ASSERT_TRUE(succeeds(gather::take_strides(args)));
  EXPECT_EQ(args.head_stride, 64);
  EXPECT_EQ(args.token_stride, 2 * 64);
  EXPECT_EQ(args.seq_stride, 10 * 2 * 64);
  args.seq_stride = 0;
  args.token_stride = 160;
  ASSERT_TRUE(succeeds(gather::take_strides(args)));
  EXPECT_EQ(args.seq_stride, 10 * 160);
  args.seq_stride = 0;
  args.token_stride = 64;  // a head's tokens side by side
  args.head_stride = 10 * 64;
  ASSERT_TRUE(succeeds(gather::take_strides(args)));
  EXPECT_EQ(args.seq_stride, 2 * 10 * 64);
}

TEST(GatherKvArguments, WhatIsNotSupportedIsRefused) {
  const auto code = [](const auto& change) {
    GatherKvArgs<Fp8, Bf16> args;
    auto* const ints = reinterpret_cast<std::int32_t*>(std::uintptr_t{4096});
    args.kv.keys = args.kv.values = reinterpret_cast<Fp8*>(std::uintptr_t{4096});
    args.keys = args.values = reinterpret_cast<Bf16*>(std::uintptr_t{4096});
    args.kv.token_stride = 256;
    args.kv.head_stride = 128;
    args.sets = {ints, ints, ints, 1, 8};
    args.num_seqs = 1;
    args.num_kv_heads = 2;
    args.head_dim = 128;
    args.capacity = 8;
    args.num_gathered = ints;
    change(args);
    return launch_gather_kv(args, nullptr).code();
  };
  using Args = GatherKvArgs<Fp8, Bf16>;
  constexpr auto kUnsupported = StatusCode::kUnsupported;
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](Args& a) { a.head_dim = 72; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.head_dim = 0; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_kv_heads = 1 << 20; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.kv.keys += 8; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.keys += 1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.token_stride = 257; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.token_stride = 260; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.token_stride = 120; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.head_stride = 64; }), kInvalid);
  EXPECT_EQ(code([](Args& a) {
              a.num_seqs = a.sets.num_sets = 2;
              a.seq_stride = 8;
            }),
            kInvalid);
  EXPECT_EQ(code([](Args& a) { a.capacity = -1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_seqs = 3; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.values = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_gathered = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) {
              a.kv.page_table = a.num_gathered;
              a.kv.max_pages = 0;
            }),
            kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_seqs = 0; }), StatusCode::kOk);
}

}  // namespace
}  // namespace chunkllm::kernels
