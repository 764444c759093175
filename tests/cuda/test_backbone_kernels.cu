// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "chunkllm/kernels/batch_state.cuh"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/next_token.cuh"
#include "chunkllm/kernels/random_weights.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/kernels/silu_gate.cuh"
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

using BackboneKernels = testing::DeviceTest;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---------------------------------------------------------------------------------- rms_norm

template <typename T>
void check_norm(cudaStream_t stream, std::int32_t size, std::int32_t rows, bool has_update) {
  const std::int64_t stride = size + 8;
  const auto count = static_cast<std::size_t>(rows * stride);
  std::vector<float> x = uniform_values(count, 1, 5.0F);
  const std::vector<float> weight = uniform_values(static_cast<std::size_t>(size), 2);
  const std::vector<T> update = rounded<T>(uniform_values(count, 3));
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
    for (const double value : oracle::rms_norm({row, row + size}, {weight.begin(), weight.end()},
                                               static_cast<double>(1e-3F))) {
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
  std::vector<float> x = uniform_values(3 * kSize, 1);
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
          rounded<__half>(uniform_values(static_cast<std::size_t>(rows * stride), 4, 20.0F));
      const std::vector<float> bias = uniform_values(static_cast<std::size_t>(2 * inner), 5);
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
  const std::vector<__half> table = rounded<__half>(uniform_values(kVocab * kSize, 6));
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
  constexpr std::int32_t kStride = 140;
  const std::vector<float> values = uniform_values(kSize, 7);
  const DeviceBuffer<float> d_values(values);
  const DeviceBuffer<__nv_bfloat16> set(3 * kSize);
  ASSERT_TRUE(succeeds(launch_fill_rows<__nv_bfloat16>(
      {d_values.data(), set.data(), kSize, 3, kSize, /*accumulate=*/false}, stream_)));
  const std::vector<float> before = uniform_values(3 * kStride, 8);
  const DeviceBuffer<float> added(before);
  ASSERT_TRUE(succeeds(launch_fill_rows<float>(
      {d_values.data(), added.data(), kStride, 3, kSize, /*accumulate=*/true}, stream_)));
  const std::vector<float> got_set = widened(set.download());
  const std::vector<float> got_added = added.download();
  const std::vector<float> rounded_values = widened(rounded<__nv_bfloat16>(values));
  for (std::size_t i = 0; i < got_set.size(); ++i) EXPECT_EQ(got_set[i], rounded_values[i % kSize]);
  for (std::size_t i = 0; i < got_added.size(); ++i) {
    const std::size_t column = i % kStride;
    EXPECT_EQ(got_added[i], column < kSize ? before[i] + values[column] : before[i]) << i;
  }
  EXPECT_TRUE(set.intact());
  EXPECT_TRUE(added.intact());
}

TEST(FillRowsRefusals, RowsMustNotOverlap) {
  const float values[4] = {};
  float rows[8] = {};
  FillRowsArgs<float> args{values, rows, 3, 2, 4, /*accumulate=*/false};
  EXPECT_EQ(launch_fill_rows(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.out_stride = 4;
  args.size = 0;
  EXPECT_EQ(launch_fill_rows(args, nullptr).code(), StatusCode::kInvalidArgument);
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
      uniform_values(static_cast<std::size_t>(vocab) * static_cast<std::size_t>(rows), 13, 8.0F);
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

  norm.residual_stride = 64;
  norm.num_rows = 2;
  for (std::int64_t* stride : {&norm.residual_stride, &norm.update_stride, &norm.normed_stride}) {
    *stride = 56;
    EXPECT_EQ(launch_rms_norm(norm, nullptr).code(), StatusCode::kInvalidArgument);
    *stride = 0;
  }

  SiluGateArgs<__half> silu{half, 16, nullptr, half, 8, 1, 4};
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);
  silu.inner = 8;
  silu.gate_up += 1;
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);
  silu.gate_up -= 1;
  silu.num_rows = 2;
  silu.gate_up_stride = 8;
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);
  silu.gate_up_stride = 16;
  silu.inner = 8;
  silu.out_stride = -8;
  EXPECT_EQ(launch_silu_gate(silu, nullptr).code(), StatusCode::kInvalidArgument);

  EmbedTokensArgs<__half> embed;
  EXPECT_TRUE(launch_embed_tokens(embed, nullptr).ok());
  embed.num_rows = 1;
  EXPECT_EQ(launch_embed_tokens(embed, nullptr).code(), StatusCode::kInvalidArgument);

  embed = {half, 10, 16, reinterpret_cast<const std::int32_t*>(half), 2, single, 8};
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
  next.maybe_tokens = reinterpret_cast<std::int32_t*>(half);
  next.num_rows = 2;
  next.logits_stride = 9;
  EXPECT_EQ(launch_next_token(next, nullptr).code(), StatusCode::kInvalidArgument);
}

TEST(BatchStateRefusals, SayWhatIsExpected) {
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  std::int32_t ints[8] = {};
  std::uint8_t active[2] = {};
  EXPECT_TRUE(launch_advance_tokens(nullptr, nullptr, 0, nullptr, 0, nullptr).ok());
  EXPECT_EQ(launch_advance_tokens(ints, active, 4, ints, -1, nullptr).code(), kInvalid);
  EXPECT_EQ(launch_advance_tokens(ints, active, -4, ints, 1, nullptr).code(), kInvalid);
  EXPECT_EQ(launch_advance_tokens(ints, nullptr, 4, ints, 1, nullptr).code(), kInvalid);
  EXPECT_TRUE(launch_take_tokens(nullptr, nullptr, nullptr, 0, nullptr).ok());
  EXPECT_EQ(launch_take_tokens(ints, ints, ints, -1, nullptr).code(), kInvalid);
  EXPECT_EQ(launch_take_tokens(ints, ints, nullptr, 1, nullptr).code(), kInvalid);

  const cuda::DeviceAttendedSets sets{ints, ints, ints, 2, 2};
  EXPECT_EQ(launch_copy_set(sets, 2, sets, 0, nullptr).code(), kInvalid);
  EXPECT_EQ(launch_copy_set(sets, 0, sets, -1, nullptr).code(), kInvalid);
  cuda::DeviceAttendedSets listless = sets;
  listless.span_tokens = nullptr;
  EXPECT_EQ(launch_copy_set(sets, 0, listless, 0, nullptr).code(), kInvalid);

  EXPECT_TRUE(launch_spread_sets({}, nullptr, 1, 1, nullptr).ok());
  EXPECT_EQ(launch_spread_sets(sets, ints, 2, -1, nullptr).code(), kInvalid);
  EXPECT_EQ(launch_spread_sets(sets, ints, 2, 2, nullptr).code(), kInvalid) << "four sets";
  EXPECT_EQ(launch_spread_sets(sets, nullptr, 2, 1, nullptr).code(), kInvalid);
  cuda::DeviceAttendedSets many = sets;
  many.num_sets = 2 * 65536;
  EXPECT_EQ(launch_spread_sets(many, ints, 2, 65536, nullptr).code(), StatusCode::kUnsupported);

  alignas(16) float floats[16] = {};
  EXPECT_TRUE(launch_boundary_probabilities(nullptr, 0, 0, nullptr, 0.0F, nullptr, nullptr).ok());
  const auto probabilities = [&](const float* hidden, std::int32_t rows, std::int32_t size) {
    return launch_boundary_probabilities(hidden, rows, size, floats, 0.0F, floats, nullptr).code();
  };
  EXPECT_EQ(probabilities(floats, -1, 8), kInvalid);
  EXPECT_EQ(probabilities(floats, 1, 0), kInvalid);
  EXPECT_EQ(probabilities(nullptr, 1, 8), kInvalid);
  EXPECT_EQ(probabilities(floats + 1, 1, 8), kInvalid);
}

}  // namespace
}  // namespace chunkllm::kernels
