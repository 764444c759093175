// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/kernels/chunk_decode_attention.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "cuda/support/decode_problem.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/two_threads.hpp"
#include "support/compare.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::succeeds;
using namespace testing::decode;

template <typename T_, typename Kv_>
struct Types {
  using T = T_;
  using Kv = Kv_;
};
template <typename Param>
class ChunkDecodeAttention : public testing::DeviceTest {
 protected:
  using T = typename Param::T;
  using Kv = typename Param::Kv;
  void run_and_check(const Shape& shape, const std::vector<Sequence>& seqs) {
    Problem<T, Kv> problem(shape, seqs, seed());
    problem.upload();
    problem.check(problem.run(stream_));
  }
};
using AllTypes = ::testing::Types<Types<Bf16, Bf16>, Types<__half, __half>, Types<Bf16, Fp8>>;
TYPED_TEST_SUITE(ChunkDecodeAttention, AllTypes);
#define RUN(...) ASSERT_NO_FATAL_FAILURE(this->run_and_check(__VA_ARGS__))

TYPED_TEST(ChunkDecodeAttention, HeadSizesAndRatiosEqualTheOracle) {
  const std::vector<Sequence> seqs = some_of({1, 15, 16, 17, 0, 63, 64, 65, 150});
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const std::int32_t ratio : {1, 2, 3, 4, 5, 7, 8, 9, 16}) {
      Shape shape;
      shape.num_kv_heads = ratio < 4 ? 3 : 1;
      shape.num_heads = ratio * shape.num_kv_heads;
      shape.head_dim = head_dim;
      RUN(shape, seqs);
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, PagesAndStridesEqualTheOracle) {
  for (const std::int32_t page_size : {0, 1, 16, 48, 64}) {
    for (const bool head_major : {false, true}) {
      Shape shape;
      shape.head_dim = 128;
      shape.page_size = page_size;
      shape.head_major = head_major;
      RUN(shape, some_of({200, 33, 0, 64, 7}));
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, TurnedKeysAndQueriesEqualTheOracle) {
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const std::int32_t num_heads : {8, 20}) {
      for (int kind = 0; kind < 8; ++kind) {
        Shape shape;
        shape.head_dim = head_dim;
        shape.num_heads = num_heads;
        shape.q_rotation = (kind & 1) != 0 ? Rotation::kNone : Rotation::kAtTokenPosition;
        shape.k_rotation = (kind & 2) != 0 ? Rotation::kNone : Rotation::kAtTokenPosition;
        shape.positions = (kind & 4) != 0 ? Positions::kInCache : Positions::kOriginal;
        shape.page_size = kind % 3 == 0 ? 16 : 0;
        RUN(shape, some_of({90, 1, 17}));
      }
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, WindowsHideTheOldest) {
  for (const std::int32_t window : {1, 15, 16, 17, 40, 1000}) {
    for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
      Shape shape;
      shape.window = window;
      shape.positions = positions;
      RUN(shape, some_of({130, 16, 3}));
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, ScalesOfKeysAndValuesCount) {
  Shape shape;
  shape.key_scale = 0.5F;
  shape.value_scale = 2.25F;
  RUN(shape, some_of({100, 5}));
}

TYPED_TEST(ChunkDecodeAttention, ManyRaggedSequencesShareOneLaunch) {
  std::vector<std::int32_t> lengths;
  for (std::int32_t s = 0; s < 100; ++s) lengths.push_back(s % 9 == 4 ? 0 : s * 29 % 83);
  Shape shape;
  shape.num_heads = 4;
  RUN(shape, some_of(lengths));
}

TYPED_TEST(ChunkDecodeAttention, ManyBlocksShareAPair) {
  Shape shape;
  shape.num_heads = 9;
  shape.num_kv_heads = 3;
  shape.head_dim = 128;
  shape.page_size = 64;
  RUN(shape, some_of({3001, 40, 1500}));
}

TYPED_TEST(ChunkDecodeAttention, MoreThan64BlocksShareAPair) {
  Shape shape;  // 12 warps a block, two tiles each: a part for 384 tokens
  shape.num_heads = 7;
  shape.num_kv_heads = 1;
  Sequence dense;
  dense.num_tokens = 27000;
  RUN(shape, {dense});
}

TYPED_TEST(ChunkDecodeAttention, PartsOfMorePiecesThanThreadsAreJoined) {
  Shape shape;  // 16 heads of 32 pieces, at most 256 or 384 threads
  shape.num_heads = 16;
  shape.num_kv_heads = 1;
  shape.head_dim = 128;
  RUN(shape, some_of(std::vector<std::int32_t>{12000}));
}

TYPED_TEST(ChunkDecodeAttention, KvHeadsOfALoneSequenceAreCutByThemselves) {
  for (const std::int32_t num_kv_heads : {1, 3, 8, 40}) {
    for (const std::int32_t num_tokens : {1, 256, 257, 2000}) {
      Shape shape;
      shape.num_heads = 2 * num_kv_heads;
      shape.num_kv_heads = num_kv_heads;
      RUN(shape, some_of(std::vector<std::int32_t>{num_tokens}));
    }
  }
}

TEST(DecodeAttentionPartition, StretchesCoverAllTilesAndKeepToEqualPairs) {
  using decode_attention::Partition;
  for (const std::int32_t pairs : {1, 2, 4, 5, 8, 40, 128, 200}) {
    for (const std::int32_t tiles : {1, 2, 15, 16, 17, 48, 768, 7680}) {
      for (const std::int32_t most : {1, 66, 108, 132, 264}) {
        for (const std::int32_t least : {2, 8, 16, 24}) {
          const Partition cut(pairs * tiles, most, least, pairs);
          const std::string what = std::to_string(pairs) + " pairs of " + std::to_string(tiles) +
                                   ", " + std::to_string(most) + " blocks";
          ASSERT_GE(cut.num_stretches, 1) << what;
          ASSERT_LE(cut.num_stretches, most) << what;
          ASSERT_EQ(cut.begin(0), 0) << what;
          ASSERT_EQ(cut.begin(cut.num_stretches), pairs * tiles) << what;
          const bool keeps = cut.num_tiles == tiles;
          for (std::int32_t s = 0; s < cut.num_stretches; ++s) {
            const std::int32_t first = cut.begin(s);
            const std::int32_t last = cut.begin(s + 1) - 1;
            ASSERT_LE(first, last) << what;
            ASSERT_LE(last - first, cut.short_size) << what;
            ASSERT_EQ(cut.stretch_of(first), s) << what;
            ASSERT_EQ(cut.stretch_of(last), s) << what;
            if (keeps) ASSERT_EQ(first / tiles, last / tiles) << what;
          }
        }
      }
    }
  }
  EXPECT_EQ(Partition(0, 132, 16, 8).num_stretches, 0);
  EXPECT_EQ(Partition(8 * 7680, 132, 16, 8).num_stretches, 128);
  EXPECT_EQ(Partition(4 * 768, 132, 16, 4).num_stretches, 132);
  EXPECT_EQ(Partition(40 * 7680, 132, 16, 40).num_stretches, 132);  // 120 would idle too many
}

TYPED_TEST(ChunkDecodeAttention, UnturnedKeysTakeInCachePositionsFromAnyRankOn) {
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const std::int32_t window : {0, 37, 300}) {
      Shape shape;
      shape.num_heads = head_dim == 96 ? 20 : 8;
      shape.head_dim = head_dim;
      shape.window = window;
      shape.q_rotation = Rotation::kNone;
      shape.k_rotation = Rotation::kNone;
      shape.positions = Positions::kInCache;
      RUN(shape, some_of(std::vector<std::int32_t>{700}));
      RUN(shape, some_of({270, 17, 3}));
      RUN(shape, some_of(std::vector<std::int32_t>{3}));  // the table has four rows
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, DenseHasTheBitsOfEverythingListed) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  Sequence seq;
  seq.num_tokens = 1000;
  Problem<T, Kv> problem(Shape{}, {seq}, this->seed());
  problem.upload();
  const Outputs dense = problem.run(this->stream_);
  for (const std::int32_t tail_begin : {1, 500, 999}) {
    problem.seqs[0].tail_begin = tail_begin;
    problem.seqs[0].span_tokens.resize(static_cast<std::size_t>(tail_begin));
    std::iota(problem.seqs[0].span_tokens.begin(), problem.seqs[0].span_tokens.end(), 0);
    problem.capacity = tail_begin + 3;
    problem.upload();
    EXPECT_TRUE(same_bits(dense, problem.run(this->stream_))) << "tail begins at " << tail_begin;
  }
}

TYPED_TEST(ChunkDecodeAttention, TwoRunsAgreeAndTheWorkspaceIsReadyAgain) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  Problem<T, Kv> problem(Shape{}, some_of({2500, 100, 0, 700}), this->seed());
  problem.upload();
  const Outputs first = problem.run(this->stream_);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(same_bits(first, problem.run(this->stream_)));
  const std::vector<std::uint8_t> bytes = problem.d_workspace->download();
  const std::size_t counters = 4U * 4U * 8U;  // [num_seqs, num_heads] int32 at the end
  for (std::size_t i = bytes.size() - counters; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], 0) << i;
}

template <typename T>
__global__ void keep_and_grow_kernel(const T* out, T* history, std::int32_t size,
                                     std::int32_t* num_tokens, std::int32_t first) {
  const std::int32_t row = *num_tokens - first;
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < size; i += 256) {
    history[row * size + i] = out[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) *num_tokens += 1;
}

TYPED_TEST(ChunkDecodeAttention, ACapturedLaunchServesAGrowingSequence) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  constexpr std::int32_t kFirst = 340;
  constexpr std::int32_t kReplays = 40;
  Problem<T, Kv> problem(Shape{}, {some_of(kFirst + kReplays)}, this->seed());
  problem.seqs[0].num_tokens = kFirst;
  problem.upload();
  const std::size_t size = problem.q.size();
  const DeviceBuffer<T> history(size * kReplays);
  const auto step = [&](cudaStream_t stream) -> Status {
    CHUNKLLM_RETURN_IF_ERROR(launch_chunk_decode_attention(problem.args(), stream));
    keep_and_grow_kernel<<<1, 256, 0, stream>>>(problem.d_out->data(), history.data(),
                                                static_cast<std::int32_t>(size),
                                                problem.d_lengths->data(), kFirst);
    return cuda::launch_status("keep_and_grow_kernel");
  };
  problem.run(this->stream_);                      // loads the kernel before a capture
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  this->replay_as_graph(step, kReplays);
  const std::vector<float> got = testing::widened(history.download());
  for (std::int32_t i = 0; i < kReplays; ++i) {
    problem.seqs[0].num_tokens = kFirst + i;
    problem.d_lengths->upload(std::vector<std::int32_t>{kFirst + i});
    const Outputs want = problem.run(this->stream_);
    ASSERT_EQ(std::memcmp(want.out.data(), got.data() + static_cast<std::size_t>(i) * size,
                          size * sizeof(float)),
              0)
        << "replay " << i;
    if (i % 13 == 0) problem.check(want);
  }
}

/// Lets the next kernel begin at once, and writes only a while later.
template <typename T>
__global__ void write_late_kernel(const T* values, T* out, std::int64_t size) {
  let_next_start();
  const long long start = clock64();
  while (clock64() - start < 40000) {
  }
  for (std::int64_t i = threadIdx.x; i < size; i += blockDim.x) out[i] = values[i];
}

TYPED_TEST(ChunkDecodeAttention, OverlappingLaunchesWaitForWhatTheKernelInFrontWrites) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  using decode_attention::Overlap;
  Shape shape;
  shape.num_kv_heads = 1;  // so that a token's key is one row
  for (const std::int32_t length : {20, 2500}) {
    Problem<T, Kv> problem(shape, some_of(std::vector<std::int32_t>{length}), this->seed());
    problem.upload();
    const Outputs want = problem.run(this->stream_);
    problem.check(want);
    const DeviceBuffer<T> queries(problem.q);
    const std::size_t newest = problem.place(0, length - 1, 0);
    const auto row = static_cast<std::ptrdiff_t>(newest);
    const DeviceBuffer<Kv> key(
        std::vector<Kv>(problem.keys.begin() + row, problem.keys.begin() + row + 64));
    const DeviceBuffer<Kv> value(
        std::vector<Kv>(problem.values.begin() + row, problem.values.begin() + row + 64));
    enum Written { kQueries, kKey, kValue };
    for (const Overlap overlap : {Overlap::kNone, Overlap::kLaunch, Overlap::kPast}) {
      for (const Written written : {kQueries, kKey, kValue}) {
        auto args = problem.args();
        args.overlap = overlap;
        const auto enqueue = [&](cudaStream_t stream) -> Status {
          void* const place = written == kQueries ? static_cast<void*>(problem.d_q->data())
                              : written == kKey
                                  ? static_cast<void*>(problem.d_keys->data() + newest)
                                  : static_cast<void*>(problem.d_values->data() + newest);
          const std::size_t bytes =
              written == kQueries ? problem.q.size() * sizeof(T) : 64 * sizeof(Kv);
          CHUNKLLM_RETURN_IF_ERROR(
              cuda::cuda_status(cudaMemsetAsync(place, 0xff, bytes, stream), "cudaMemsetAsync"));
          if (written == kQueries) {
            write_late_kernel<<<1, 64, 0, stream>>>(queries.data(), problem.d_q->data(),
                                                    static_cast<std::int64_t>(problem.q.size()));
          } else {
            write_late_kernel<<<1, 64, 0, stream>>>(
                (written == kKey ? key : value).data(),
                (written == kKey ? problem.d_keys : problem.d_values)->data() + newest, 64);
          }
          CHUNKLLM_RETURN_IF_ERROR(cuda::launch_status("write_late_kernel"));
          for (int i = 0; i < 3; ++i) {  // the later ones use the workspace of the first
            CHUNKLLM_RETURN_IF_ERROR(launch_chunk_decode_attention(args, stream));
          }
          return {};
        };
        for (const bool captured : {false, true}) {
          problem.d_out->poison();
          problem.d_lse->poison();
          ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
          if (captured) {
            this->replay_as_graph(enqueue, 5);
          } else {
            ASSERT_TRUE(succeeds(enqueue(this->stream_)));
          }
          ASSERT_TRUE(same_bits(want, problem.outputs()))
              << length << " tokens, overlap " << static_cast<int>(overlap) << ", late "
              << static_cast<int>(written) << (captured ? ", graph" : ", stream");
        }
      }
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, TwoStreamsWithTheirOwnWorkspacesAgree) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  Problem<T, Kv> a(Shape{}, some_of({2000, 300}), this->seed());
  Problem<T, Kv> b(Shape{}, some_of({900, 1700, 40}), this->seed() + 9);
  a.upload();
  b.upload();
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(succeeds(launch_chunk_decode_attention(a.args(), this->stream_)));
    ASSERT_TRUE(succeeds(launch_chunk_decode_attention(b.args(), other)));
  }
  a.check(a.outputs());
  b.check(b.outputs());
  ASSERT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TYPED_TEST(ChunkDecodeAttention, NanReachesWhatAttendsIt) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Shape shape;  // 8 heads, groups of 4, head_dim 64
  enum Where { kQuery, kKey, kValue };
  for (const Where where : {kQuery, kKey, kValue}) {
    Problem<T, Kv> problem(shape, some_of({400, 300}), this->seed());
    const auto token = static_cast<std::int32_t>(problem.seqs[1].attended()[77]);
    if (where == kQuery) problem.q[(8 + 5) * 64 + 9] = stored<T>(kNan);
    if (where == kKey) problem.keys[problem.place(1, token, 64 + 9)] = stored<Kv>(kNan);
    if (where == kValue) problem.values[problem.place(1, token, 64 + 9)] = stored<Kv>(kNan);
    problem.upload();
    const Outputs got = problem.run(this->stream_);
    for (std::size_t i = 0; i < got.out.size(); ++i) {
      const std::size_t head = i / 64;
      const bool wanted = where == kQuery ? head == 8 + 5
                          : where == kKey ? head >= 8 + 4
                                          : head >= 8 + 4 && i % 64 == 9;
      ASSERT_EQ(std::isnan(got.out[i]), wanted)
          << "head " << head << " of both sequences, dimension " << i % 64 << ", NaN in " << where;
    }
  }
}

TEST(ChunkDecodeAttentionArgs, WhatIsNotSupportedIsRefused) {
  const auto code = [](const auto& change) {
    DecodeAttentionArgs<Bf16, Bf16> args;
    auto* const place = reinterpret_cast<Bf16*>(std::uintptr_t{4096});
    auto* const ints = reinterpret_cast<std::int32_t*>(std::uintptr_t{4096});
    args.q = args.out = place;
    args.kv.keys = args.kv.values = place;
    args.kv.token_stride = 256;
    args.kv.head_stride = 128;
    args.sets = {ints, ints, ints, 1, 8};
    args.num_tokens = ints;
    args.num_seqs = 1;
    args.num_heads = 8;
    args.num_kv_heads = 2;
    args.head_dim = 128;
    args.workspace = place;
    args.workspace_bytes = std::size_t{1} << 40;
    change(args);
    return launch_chunk_decode_attention(args, nullptr).code();
  };
  using Args = DecodeAttentionArgs<Bf16, Bf16>;
  constexpr auto kUnsupported = StatusCode::kUnsupported;
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](Args& a) { a.head_dim = 80; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_heads = 34; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_heads = 7; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_kv_heads = 0; }), kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_seqs = -1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.window = -1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_seqs = 2; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.q = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_tokens = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.q += 1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.out += 4; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.keys += 7; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.token_stride = 132; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.rotation = Rotation::kNone; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.positions = Positions::kInCache; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.workspace = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) {
              a.kv.page_table = a.num_tokens;
              a.kv.page_size = 0;
            }),
            kInvalid);
  for (const std::int64_t stride : {std::int64_t{8}, std::int64_t{8 * 128 - 8}}) {
    const auto overlap = [stride](Args& a, bool in_queries) {
      a.sets.num_sets = a.num_seqs = 2;
      (in_queries ? a.q_stride : a.out_stride) = stride;
    };
    EXPECT_EQ(code([&](Args& a) { overlap(a, true); }), kInvalid) << stride;
    EXPECT_EQ(code([&](Args& a) { overlap(a, false); }), kInvalid) << stride;
  }
  EXPECT_EQ(code([](Args& a) { a.num_seqs = 0; }), StatusCode::kOk);
}

TYPED_TEST(ChunkDecodeAttention, RowsMayLieInsideLargerOnes) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  Problem<T, Kv> problem(Shape{}, some_of({70, 0, 33}), this->seed());
  problem.upload();
  const Outputs dense = problem.run(this->stream_);
  constexpr std::size_t kWidth = 8 * 64;
  constexpr std::size_t kInRow = 3 * kWidth;
  constexpr std::size_t kOutRow = kWidth + 8;
  std::vector<T> rows(3 * kInRow, stored<T>(std::numeric_limits<float>::quiet_NaN()));
  for (std::size_t s = 0; s < 3; ++s) {
    std::copy_n(problem.q.begin() + static_cast<std::ptrdiff_t>(s * kWidth), kWidth,
                rows.begin() + static_cast<std::ptrdiff_t>(s * kInRow));
  }
  const DeviceBuffer<T> q(rows);
  const DeviceBuffer<T> out(2 * kOutRow + kWidth);
  auto args = problem.args();
  args.q = q.data();
  args.q_stride = kInRow;
  args.out = out.data();
  args.out_stride = kOutRow;
  args.maybe_lse = nullptr;
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  ASSERT_TRUE(succeeds(launch_chunk_decode_attention(args, this->stream_)));
  const std::vector<float> got = testing::widened(out.download());
  EXPECT_TRUE(out.intact());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const std::size_t s = i / kOutRow;
    const std::size_t column = i % kOutRow;
    if (s == 1 || column >= kWidth) {
      ASSERT_TRUE(std::isnan(got[i])) << "sequence " << s << ", column " << column;
    } else {
      ASSERT_EQ(got[i], dense.out[s * kWidth + column]) << "sequence " << s << ", " << column;
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, InfiniteScoresGiveNanAndOtherHeadsStayFinite) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  Problem<T, Kv> problem(Shape{}, {some_of(200)}, this->seed());
  problem.q[3 * 64 + 1] = stored<T>(std::numeric_limits<float>::infinity());
  problem.upload();
  const Outputs got = problem.run(this->stream_);
  for (std::size_t i = 0; i < got.out.size(); ++i) {
    ASSERT_EQ(std::isnan(got.out[i]), i / 64 == 3) << "head " << i / 64;
  }
}

TYPED_TEST(ChunkDecodeAttention, TurnsBeyondTheTableGiveNanInTheirSequence) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  struct Turning {
    Rotation q, k;
    Positions positions;
  };
  constexpr Rotation kStored = Rotation::kAtTokenPosition;
  for (const Turning& turning :
       {Turning{Rotation::kNone, kStored, Positions::kOriginal},          // queries
        Turning{kStored, Rotation::kNone, Positions::kOriginal},          // keys
        Turning{Rotation::kNone, Rotation::kNone, Positions::kInCache}})  // both, tile by tile
  {
    Shape shape;
    shape.q_rotation = turning.q;
    shape.k_rotation = turning.k;
    shape.positions = turning.positions;
    Problem<T, Kv> problem(shape, {some_of(30), some_of(200)}, this->seed());
    problem.upload();
    const Outputs whole = problem.run(this->stream_);
    auto args = problem.args();
    args.rope.count = 40;  // what lies behind them is finite, and must not be taken
    problem.d_out->poison();
    ASSERT_TRUE(succeeds(launch_chunk_decode_attention(args, this->stream_)));
    const Outputs cut = problem.outputs();
    const std::size_t width = cut.out.size() / 2;
    for (std::size_t i = 0; i < width; ++i) {
      ASSERT_EQ(cut.out[i], whole.out[i]) << shape.name() << ", " << i;
      ASSERT_TRUE(std::isfinite(whole.out[width + i])) << shape.name() << ", " << i;
      ASSERT_TRUE(std::isnan(cut.out[width + i])) << shape.name() << ", " << i;
    }
  }
}

TYPED_TEST(ChunkDecodeAttention, TwoThreadsLaunchBatchesOfTheirOwn) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  // A lone sequence takes more shared memory a block than a batch does, with the same kernel.
  Problem<T, Kv> alone(Shape{}, {some_of(300)}, this->seed());
  Problem<T, Kv> batch(Shape{}, some_of({70, 200, 33, 129}), this->seed() + 1);
  alone.upload();
  batch.upload();
  const Outputs alone_before = alone.run(this->stream_);
  const Outputs batch_before = batch.run(this->stream_);
  testing::launch_from_two_threads(
      [&](std::size_t i, cudaStream_t stream) {
        return launch_chunk_decode_attention(i == 0 ? alone.args() : batch.args(), stream);
      },
      2000);
  EXPECT_EQ(alone.outputs().out, alone_before.out);
  EXPECT_EQ(batch.outputs().out, batch_before.out);
}

TYPED_TEST(ChunkDecodeAttention, EqualsTheHostPath) {
  using T = typename TypeParam::T;
  using Kv = typename TypeParam::Kv;
  if constexpr (sizeof(Kv) == 2) {
    using Host = std::conditional_t<std::is_same_v<Kv, __half>, F16, BF16>;
    ThreadPool pool(1);
    for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
      Shape shape;
      shape.head_dim = 128;
      shape.page_size = 16;
      shape.window = 300;
      shape.positions = positions;
      shape.k_rotation =
          positions == Positions::kInCache ? Rotation::kNone : Rotation::kAtTokenPosition;
      Problem<T, Kv> problem(shape, {some_of(600)}, this->seed());
      problem.upload();
      const Outputs got = problem.run(this->stream_);

      const Sequence& seq = problem.seqs[0];
      AttendedSet set;
      set.tail_begin = seq.tail_begin;
      set.spans = spans_of(seq.span_tokens);
      BackboneConfig config;
      config.head_dim = shape.head_dim;
      RopeFrequencies frequencies(config);
      for (std::size_t i = 0; i < frequencies.inverse_wavelength.size(); ++i) {
        frequencies.inverse_wavelength[i] =
            static_cast<float>(frequency(static_cast<std::int64_t>(i)));
      }
      const RopeTable rope(frequencies, 0, problem.rope_count);
      const AttentionTile tile{0, 1, &set};
      const std::vector<float> q = testing::widened(problem.q);
      std::vector<float> out(q.size());
      std::vector<float> lse(static_cast<std::size_t>(shape.num_heads));
      const auto width = static_cast<std::int64_t>(q.size());
      ChunkAttentionArgs<Host> args;
      args.q = {q.data(), 1, width, width};
      args.out = {out.data(), 1, width, width};
      args.kv = problem.template host_view<Host>();
      args.tiles = {&tile, 1};
      args.first_token = seq.num_tokens - 1;
      args.num_heads = shape.num_heads;
      args.num_kv_heads = shape.num_kv_heads;
      args.head_dim = shape.head_dim;
      args.scale = problem.scale();
      args.window = shape.window;
      args.positions = positions;
      args.rope = &rope;
      args.maybe_lse = lse.data();
      std::vector<float> workspace(static_cast<std::size_t>(
          chunk_attention_workspace_floats(shape.num_heads, shape.num_kv_heads, shape.head_dim,
                                           seq.num_tokens, pool.num_threads())));
      ASSERT_TRUE(succeeds(chunk_attention(args, workspace, pool)));

      // The host's own error, f32 throughout, is a small part of the kernel's bound.
      const auto want = problem.expected(0);
      const std::vector<double> host(out.begin(), out.end());
      const std::vector<double> host_lse(lse.begin(), lse.end());
      EXPECT_TRUE(testing::all_within(got.out, host, want.out_bounds)) << shape.name();
      EXPECT_TRUE(testing::all_within(got.lse, host_lse, want.lse_bounds)) << shape.name();
    }
  } else {
    GTEST_SKIP() << "the host path has no fp8 keys";
  }
}

__global__ void fill_noise_kernel(Bf16* out, std::int64_t size, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    out[i] = __float2bfloat16_rn(noise(seed, static_cast<std::uint64_t>(i)));
  }
}

using LongContext = testing::DeviceTest;

TEST_F(LongContext, SampledHeadsOf120KTokensEqualDoubles) {
  constexpr std::int32_t kTokens = 122880;
  constexpr std::int32_t kHeads = 32;
  constexpr std::int32_t kKvHeads = 8;
  constexpr std::int32_t kDim = 128;
  constexpr std::int64_t kSize = static_cast<std::int64_t>(kTokens) * kKvHeads * kDim;
  // One chunk of ten is attended, and the last 64 tokens.
  const std::vector<std::int32_t> listed =
      tokens_of_some_chunks(kTokens - 64, /*one_of=*/10, seed());
  std::vector<Bf16> q;
  for (std::int32_t i = 0; i < kHeads * kDim; ++i) {
    q.push_back(stored<Bf16>(noise(seed() + 2, static_cast<std::uint64_t>(i))));
  }
  const DeviceBuffer<Bf16> keys(kSize);
  const DeviceBuffer<Bf16> values(kSize);
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
  fill_noise_kernel<<<512, 256, 0, stream_>>>(keys.data(), kSize, seed());
  fill_noise_kernel<<<512, 256, 0, stream_>>>(values.data(), kSize, seed() + 1);
  const DeviceBuffer<Bf16> d_q(q);
  const DeviceBuffer<Bf16> out(q.size());
  const DeviceBuffer<float> lse(kHeads);
  const DeviceBuffer<std::int32_t> list(listed);
  const std::size_t bytes = chunk_decode_attention_workspace_bytes(1, kHeads, kDim);
  const DeviceBuffer<std::uint8_t> workspace(bytes);
  ASSERT_TRUE(succeeds(init_decode_attention_workspace(workspace.data(), bytes, stream_)));
  const DeviceBuffer<std::int32_t> length(std::vector<std::int32_t>{kTokens});

  for (const bool dense : {false, true}) {
    const std::int32_t num_listed = dense ? 0 : static_cast<std::int32_t>(listed.size());
    const std::int32_t tail_begin = dense ? 0 : kTokens - 64;
    const DeviceBuffer<std::int32_t> num_span(std::vector<std::int32_t>{num_listed});
    const DeviceBuffer<std::int32_t> tail(std::vector<std::int32_t>{tail_begin});
    DecodeAttentionArgs<Bf16, Bf16> args;
    args.q = d_q.data();
    args.out = out.data();
    args.kv.keys = keys.data();
    args.kv.values = values.data();
    args.kv.token_stride = kKvHeads * kDim;
    args.kv.head_stride = kDim;
    args.sets = {list.data(), num_span.data(), tail.data(), 1,
                 static_cast<std::int32_t>(listed.size())};
    args.num_tokens = length.data();
    args.num_seqs = 1;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kDim;
    args.scale = 0.125F;  // larger than usual, so that few keys weigh most
    args.maybe_lse = lse.data();
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // buffers are poisoned on another stream
    ASSERT_TRUE(succeeds(launch_chunk_decode_attention(args, stream_)));
    const std::vector<float> got = testing::widened(out.download());
    const std::vector<float> got_lse = lse.download();
    EXPECT_TRUE(out.intact() && lse.intact() && workspace.intact());

    std::vector<std::int32_t> tokens(listed.begin(), listed.begin() + num_listed);
    for (std::int32_t t = tail_begin; t < kTokens; ++t) tokens.push_back(t);
    for (const std::int32_t head :
         dense ? std::vector<std::int32_t>{30} : std::vector<std::int32_t>{0, 13, 31}) {
      const auto at = [&](std::int32_t token, std::int32_t d) {
        return static_cast<std::uint64_t>(
            (static_cast<std::int64_t>(token) * kKvHeads + head / 4) * kDim + d);
      };
      std::vector<double> scores;
      double size = 0.0;
      for (const std::int32_t token : tokens) {
        double score = 0.0;
        double total = 0.0;
        for (std::int32_t d = 0; d < kDim; ++d) {
          const double product = loaded(q[static_cast<std::size_t>(head * kDim + d)]) *
                                 static_cast<double>(to_f32(to_bf16(noise(seed(), at(token, d)))));
          score += product;
          total += std::abs(product);
        }
        scores.push_back(score * 0.125);
        size = std::max(size, total * 0.125);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      std::vector<double> want(kDim);
      std::vector<double> sizes(kDim);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const double weight = std::exp(scores[i] - largest);
        sum += weight;
        for (std::int32_t d = 0; d < kDim; ++d) {
          const auto value =
              static_cast<double>(to_f32(to_bf16(noise(seed() + 1, at(tokens[i], d)))));
          want[static_cast<std::size_t>(d)] += weight * value;
          sizes[static_cast<std::size_t>(d)] += weight * std::abs(value);
        }
      }
      // As `Problem::expected`; a chain of sums is as long as the tokens of one warp: at most 2,048
      // on a device of 64 SMs or more.
      const double error = size * (2.0 * kDim + 16.0) * 0x1p-24;
      std::vector<double> bounds(kDim);
      for (std::size_t d = 0; d < kDim; ++d) {
        want[d] /= sum;
        bounds[d] =
            0x1p-8 * std::abs(want[d]) +
            (0x1p-8 + std::expm1(2.0 * error) + 4096.0 * 0x1p-24 + 0x1p-21) * sizes[d] / sum;
      }
      const auto first = static_cast<std::size_t>(head * kDim);
      EXPECT_TRUE(
          testing::all_within(std::span<const float>(got).subspan(first, kDim), want, bounds))
          << "head " << head << (dense ? ", dense" : ", chosen");
      EXPECT_NEAR(got_lse[static_cast<std::size_t>(head)], largest + std::log(sum),
                  error + 4096.0 * 0x1p-24 + 0x1p-20)
          << "head " << head;
    }
  }
}

}  // namespace
}  // namespace chunkllm::kernels
