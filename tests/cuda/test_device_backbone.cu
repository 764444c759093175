// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_weights.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/random_values.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm::cuda {
namespace {

using testing::all_within;
using testing::kRoundoff;
using testing::MemoryTensorSource;
using testing::random_values;
using testing::succeeds;
using testing::widened;

/// What f32 sums in another order, and tensor cores that cut them, may differ by, relative to the
/// magnitudes summed: some 10 steps of 2^-22.
constexpr double kSumRoundoff = 0x1p-18;

/// A tiny model whose tensors T holds exactly, so that CPU and GPU have the same weights.
template <typename T>
MemoryTensorSource exact_source(const BackboneConfig& config, std::uint32_t seed) {
  MemoryTensorSource source = MemoryTensorSource::random(config, seed);
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    for (float& value : source.values(tensor.name)) {
      value = widened(rounded<T>(value));
    }
  }
  return source;
}

BackboneConfig config_with_everything() {
  BackboneConfig config = testing::tiny_config(70);
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
  return config;
}

/// Magnitudes: out[r, i] = sum over j of |weight[i, j]| x[r, j].
std::vector<double> magnitude_product(const std::vector<float>& weight,
                                      const std::vector<double>& x, std::size_t cols) {
  std::vector<double> out;
  for (std::size_t r = 0; r < x.size() / cols; ++r) {
    for (std::size_t i = 0; i < weight.size() / cols; ++i) {
      double sum = 0.0;
      for (std::size_t j = 0; j < cols; ++j) {
        sum += std::abs(static_cast<double>(weight[i * cols + j])) * x[r * cols + j];
      }
      out.push_back(sum);
    }
  }
  return out;
}
std::vector<double> magnitudes(const std::vector<float>& values) {
  std::vector<double> out;
  for (const float value : values) out.push_back(std::abs(static_cast<double>(value)));
  return out;
}

/// The same model on both sides, and what a run of it needs.
template <typename T>
struct Pair {
  MemoryTensorSource source;
  ThreadPool pool{1};
  DecoderBackbone cpu;
  DeviceBackbone<T> gpu;
  CublasHandle cublas;
  DeviceBuffer<std::byte> scratch;
  DeviceRun run;

  static constexpr std::int32_t kMaxRows = 64;

  static std::unique_ptr<Pair> make(const BackboneConfig& config, cudaStream_t stream) {
    ThreadPool pool(2);
    MemoryTensorSource source = exact_source<T>(config, 31);
    auto cpu = DecoderBackbone::load(source, WeightFormat::kF32, pool);
    auto gpu = DeviceBackbone<T>::load(source, pool);
    auto cublas = CublasHandle::create(stream);
    EXPECT_TRUE(succeeds(cpu.status()));
    EXPECT_TRUE(succeeds(gpu.status()));
    EXPECT_TRUE(succeeds(cublas.status()));
    if (!cpu.ok() || !gpu.ok() || !cublas.ok()) return nullptr;
    auto scratch = DeviceBuffer<std::byte>::create(gpu->scratch_bytes(kMaxRows));
    EXPECT_TRUE(succeeds(scratch.status()));
    if (!scratch.ok()) return nullptr;
    auto pair = std::unique_ptr<Pair>(
        new Pair{std::move(source), ThreadPool(1), std::move(cpu).value(), std::move(gpu).value(),
                 std::move(cublas).value(), std::move(scratch).value(), DeviceRun{}});
    pair->run = {stream, pair->cublas.get(), pair->scratch.data(), pair->scratch.bytes()};
    return pair;
  }
  [[nodiscard]] const std::vector<float>& tensor(std::int64_t layer, const std::string& part) {
    return source.values(layer_tensor_name(layer, part));
  }
  /// Two stacked tensors' values.
  [[nodiscard]] std::vector<float> stacked(std::int64_t layer,
                                           const std::vector<std::string>& parts) {
    std::vector<float> all;
    for (const std::string& part : parts) {
      const std::vector<float>& values = tensor(layer, part);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
};

class DeviceBackboneTest : public testing::DeviceTest {
 protected:
  template <typename T>
  void check_qkv(const BackboneConfig& config);
  template <typename T>
  void check_finish_layer(const BackboneConfig& config);
  template <typename T>
  void check_logits(const BackboneConfig& config);

  static constexpr std::int32_t kRowCounts[] = {1, 2, 3, 8, 9, 16, 17, 33};
  static constexpr std::int64_t kLayer = 1;
};

template <typename T>
void DeviceBackboneTest::check_qkv(const BackboneConfig& config) {
  const auto pair = Pair<T>::make(config, stream_);
  ASSERT_NE(pair, nullptr);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = config.query_size();
  const std::int64_t kv_size = config.kv_size();
  const std::int64_t size = pair->gpu.qkv_size();
  const std::vector<float> weight = pair->stacked(
      kLayer, {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"});
  for (const std::int32_t rows : kRowCounts) {
    std::vector<float> x = random_values(rows * hidden, seed());
    std::vector<float> normed(x.size());
    std::vector<float> qkv(static_cast<std::size_t>(rows * size));
    pair->cpu.attention_input(kLayer, {x.data(), rows, hidden}, {normed.data(), rows, hidden});
    pair->cpu.project_qkv(kLayer, {normed.data(), rows, hidden}, {qkv.data(), rows, q_size, size},
                          {qkv.data() + q_size, rows, kv_size, size},
                          {qkv.data() + q_size + kv_size, rows, kv_size, size}, pair->pool);
    const testing::DeviceBuffer<float> d_x(x);
    const testing::DeviceBuffer<T> d_normed(normed.size());
    const testing::DeviceBuffer<T> d_qkv(qkv.size());
    ASSERT_TRUE(succeeds(
        pair->gpu.project_qkv(pair->run, kLayer, d_x.data(), rows, d_normed.data(), d_qkv.data())));
    std::vector<double> expected(normed.begin(), normed.end());
    std::vector<double> bounds;
    for (const double value : expected) {
      bounds.push_back(std::abs(value) * (kRoundoff<T> + kSumRoundoff) + 0x1p-24);
    }
    EXPECT_TRUE(all_within(widened(d_normed.download()), expected, bounds)) << rows << " rows";

    // Normed values are rounded to T before the product, its result after it.
    const std::vector<double> products =
        magnitude_product(weight, magnitudes(normed), static_cast<std::size_t>(hidden));
    expected.assign(qkv.begin(), qkv.end());
    bounds.clear();
    for (std::size_t i = 0; i < qkv.size(); ++i) {
      const double error = products[i] * (kRoundoff<T> + kSumRoundoff);
      bounds.push_back(error + (std::abs(expected[i]) + error) * kRoundoff<T> + 1e-6);
    }
    EXPECT_TRUE(all_within(widened(d_qkv.download()), expected, bounds)) << rows << " rows";
    EXPECT_TRUE(d_x.intact() && d_normed.intact() && d_qkv.intact());

    // Without the normed rows the products are the same.
    const testing::DeviceBuffer<T> again(qkv.size());
    ASSERT_TRUE(succeeds(
        pair->gpu.project_qkv(pair->run, kLayer, d_x.data(), rows, nullptr, again.data())));
    EXPECT_EQ(widened(again.download()), widened(d_qkv.download())) << rows << " rows";
  }
}

template <typename T>
void DeviceBackboneTest::check_finish_layer(const BackboneConfig& config) {
  const auto pair = Pair<T>::make(config, stream_);
  ASSERT_NE(pair, nullptr);
  const auto hidden = static_cast<std::size_t>(config.hidden_size);
  const auto inner = static_cast<std::size_t>(config.intermediate_size);
  const std::vector<float> gate_weight = pair->tensor(kLayer, "mlp.gate_proj.weight");
  const std::vector<float> up_weight = pair->tensor(kLayer, "mlp.up_proj.weight");
  for (const std::int32_t rows : kRowCounts) {
    const auto num_rows = static_cast<std::size_t>(rows);
    const std::vector<T> attended = rounded<T>(
        random_values(num_rows * static_cast<std::size_t>(config.query_size()), seed() + 1));
    const std::vector<float> attended_values = widened(attended);
    const std::vector<float> before = random_values(num_rows * hidden, seed());
    std::vector<float> after = before;
    pair->cpu.finish_layer(kLayer, {attended_values.data(), rows, config.query_size()},
                           {after.data(), rows, config.hidden_size}, pair->pool);

    // The error in double: the output projection is exact up to sums; then the normed row, (with
    // cuBLAS) gate and up, and their product are rounded to T.
    const std::vector<double> output_sums = magnitude_product(
        pair->tensor(kLayer, "self_attn.o_proj.weight"), magnitudes(attended_values),
        static_cast<std::size_t>(config.query_size()));
    const std::vector<float>& norm_weight = pair->tensor(kLayer, "post_attention_layernorm.weight");
    std::vector<double> normed(num_rows * hidden);
    for (std::size_t r = 0; r < num_rows; ++r) {
      std::vector<double> row(hidden);
      double squares = 0.0;
      for (std::size_t i = 0; i < hidden; ++i) {
        double value = before[r * hidden + i];
        for (std::int64_t j = 0; j < config.query_size(); ++j) {
          const auto k = static_cast<std::size_t>(j);
          const auto q = static_cast<std::size_t>(config.query_size());
          value += static_cast<double>(pair->tensor(kLayer, "self_attn.o_proj.weight")[i * q + k]) *
                   attended_values[r * q + k];
        }
        if (config.output_bias) value += pair->tensor(kLayer, "self_attn.o_proj.bias")[i];
        row[i] = value;
        squares += value * value;
      }
      const double root = std::sqrt(squares / static_cast<double>(hidden) + config.rms_norm_eps);
      for (std::size_t i = 0; i < hidden; ++i) {
        normed[r * hidden + i] = norm_weight[i] * row[i] / root;
      }
    }
    std::vector<double> normed_sizes;
    for (const double value : normed) normed_sizes.push_back(std::abs(value));
    const std::vector<double> gate_sums = magnitude_product(gate_weight, normed_sizes, hidden);
    const std::vector<double> up_sums = magnitude_product(up_weight, normed_sizes, hidden);
    std::vector<double> activated_errors(num_rows * inner);
    for (std::size_t r = 0; r < num_rows; ++r) {
      for (std::size_t i = 0; i < inner; ++i) {
        double gate = config.mlp_bias ? pair->tensor(kLayer, "mlp.gate_proj.bias")[i] : 0.0;
        double up = config.mlp_bias ? pair->tensor(kLayer, "mlp.up_proj.bias")[i] : 0.0;
        for (std::size_t j = 0; j < hidden; ++j) {
          gate += gate_weight[i * hidden + j] * normed[r * hidden + j];
          up += up_weight[i * hidden + j] * normed[r * hidden + j];
        }
        const double u = kRoundoff<T>;
        const double gate_error =
            gate_sums[r * inner + i] * (2.0 * u + kSumRoundoff) + u * std::abs(gate);
        const double up_error =
            up_sums[r * inner + i] * (2.0 * u + kSumRoundoff) + u * std::abs(up);
        const double silu = gate / (1.0 + std::exp(-gate));
        const double error =
            1.1 * gate_error * (std::abs(up) + up_error) + std::abs(silu) * up_error;
        activated_errors[r * inner + i] =
            error + u * (std::abs(silu * up) + error) + kSumRoundoff * std::abs(silu * up);
      }
    }
    const std::vector<double> errors =
        magnitude_product(pair->tensor(kLayer, "mlp.down_proj.weight"), activated_errors, inner);
    std::vector<double> expected(after.begin(), after.end());
    std::vector<double> bounds;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      bounds.push_back(errors[i] + kSumRoundoff * (output_sums[i] + std::abs(expected[i]) +
                                                   std::abs(before[i]) + errors[i] / kRoundoff<T>));
    }
    const testing::DeviceBuffer<T> d_attended(attended);
    const testing::DeviceBuffer<float> d_hidden(before);
    ASSERT_TRUE(succeeds(
        pair->gpu.finish_layer(pair->run, kLayer, d_attended.data(), rows, d_hidden.data())));
    EXPECT_TRUE(all_within(d_hidden.download(), expected, bounds)) << rows << " rows";
    EXPECT_TRUE(d_hidden.intact());
  }
}

template <typename T>
void DeviceBackboneTest::check_logits(const BackboneConfig& config) {
  const auto pair = Pair<T>::make(config, stream_);
  ASSERT_NE(pair, nullptr);
  const std::int64_t hidden = config.hidden_size;
  for (const std::int32_t rows : kRowCounts) {
    std::vector<float> x = random_values(rows * hidden, seed());
    std::vector<float> logits(static_cast<std::size_t>(rows * config.vocab_size));
    pair->cpu.logits({x.data(), rows, hidden}, {logits.data(), rows, config.vocab_size},
                     pair->pool);
    const testing::DeviceBuffer<float> d_x(x);
    const testing::DeviceBuffer<float> d_logits(logits.size());
    const testing::DeviceBuffer<T> d_rounded(logits.size());
    ASSERT_TRUE(succeeds(pair->gpu.logits(pair->run, d_x.data(), rows, d_logits.data())));
    ASSERT_TRUE(succeeds(pair->gpu.logits(pair->run, d_x.data(), rows, d_rounded.data())));
    const std::vector<float>& weight = pair->source.values(
        config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
    std::vector<double> sizes;
    for (std::int64_t r = 0; r < rows; ++r) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < hidden; ++i) {
        const double value = x[static_cast<std::size_t>(r * hidden + i)];
        squares += value * value;
      }
      const double root = std::sqrt(squares / static_cast<double>(hidden) + config.rms_norm_eps);
      for (std::int64_t i = 0; i < hidden; ++i) {
        sizes.push_back(std::abs(static_cast<double>(pair->source.values(
                                     "model.norm.weight")[static_cast<std::size_t>(i)]) *
                                 x[static_cast<std::size_t>(r * hidden + i)] / root));
      }
    }
    const std::vector<double> sums =
        magnitude_product(weight, sizes, static_cast<std::size_t>(hidden));
    const std::vector<double> expected(logits.begin(), logits.end());
    std::vector<double> bounds;
    std::vector<double> rounded_bounds;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const double error = sums[i] * (kRoundoff<T> + kSumRoundoff);
      bounds.push_back(error);
      rounded_bounds.push_back(error + (std::abs(expected[i]) + error) * kRoundoff<T>);
    }
    EXPECT_TRUE(all_within(d_logits.download(), expected, bounds)) << rows << " rows";
    EXPECT_TRUE(all_within(widened(d_rounded.download()), expected, rounded_bounds)) << rows;
    EXPECT_TRUE(d_logits.intact() && d_rounded.intact());
  }
}

TEST_F(DeviceBackboneTest, ProjectionsEqualTheCpu) {
  BackboneConfig config = config_with_everything();
  config.qk_norm = false;  // on the GPU it is part of rope_store
  check_qkv<__nv_bfloat16>(config);
  check_qkv<__half>(config);
  check_qkv<__half>(testing::tiny_config());
}

TEST_F(DeviceBackboneTest, FinishedLayersEqualTheCpu) {
  check_finish_layer<__nv_bfloat16>(testing::tiny_config());
  check_finish_layer<__nv_bfloat16>(config_with_everything());
  check_finish_layer<__half>(config_with_everything());
}

TEST_F(DeviceBackboneTest, LogitsEqualTheCpu) {
  BackboneConfig tied = testing::tiny_config(70);
  tied.tied_embeddings = true;
  check_logits<__nv_bfloat16>(tied);
  check_logits<__half>(testing::tiny_config(70));
}

TEST_F(DeviceBackboneTest, EmbeddingsEqualTheCpu) {
  const auto pair = Pair<__nv_bfloat16>::make(testing::tiny_config(), stream_);
  ASSERT_NE(pair, nullptr);
  const std::vector<std::int32_t> tokens = {0, 63, 17};
  std::vector<float> expected(3 * 32);
  pair->cpu.embed(tokens, {expected.data(), 3, 32});
  const testing::DeviceBuffer<std::int32_t> d_tokens(tokens);
  const testing::DeviceBuffer<float> hidden(3 * 32);
  ASSERT_TRUE(succeeds(pair->gpu.embed(pair->run, d_tokens.data(), 3, hidden.data())));
  EXPECT_EQ(hidden.download(), expected);
}

TEST_F(DeviceBackboneTest, AFewRowsHaveTheBitsOfOneRow) {
  const auto pair = Pair<__nv_bfloat16>::make(config_with_everything(), stream_);
  ASSERT_NE(pair, nullptr);
  constexpr std::int32_t kRows = DeviceBackbone<__nv_bfloat16>::kMaxVectorRows;
  const std::vector<float> before = random_values(kRows * 32, seed());
  const std::vector<__nv_bfloat16> attended =
      rounded<__nv_bfloat16>(random_values(kRows * 32, seed() + 1));
  const testing::DeviceBuffer<__nv_bfloat16> d_attended(attended);
  const auto finished = [&](std::int32_t first, std::int32_t rows) {
    const testing::DeviceBuffer<float> hidden(
        std::vector<float>(before.begin() + first * 32, before.begin() + (first + rows) * 32));
    EXPECT_TRUE(succeeds(pair->gpu.finish_layer(pair->run, kLayer, d_attended.data() + first * 32,
                                                rows, hidden.data())));
    return hidden.download();
  };
  for (std::int32_t rows = 1; rows <= kRows; ++rows) {
    const std::vector<float> all = finished(0, rows);
    for (std::int32_t r = 0; r < rows; ++r) {
      EXPECT_EQ(std::vector<float>(all.begin() + r * 32, all.begin() + (r + 1) * 32),
                finished(r, 1))
          << "row " << r << " of " << rows;
    }
  }
}

TEST_F(DeviceBackboneTest, GraphsReplayALayer) {
  const auto pair = Pair<__nv_bfloat16>::make(config_with_everything(), stream_);
  ASSERT_NE(pair, nullptr);
  for (const std::int32_t rows : {2, 5, 16, 33}) {
    const auto size = static_cast<std::size_t>(rows) * 32;
    const std::vector<float> before = random_values(size, seed());
    const testing::DeviceBuffer<__nv_bfloat16> attended(
        rounded<__nv_bfloat16>(random_values(size, seed() + 1)));
    testing::DeviceBuffer<float> hidden(before);
    const testing::DeviceBuffer<__nv_bfloat16> qkv(
        static_cast<std::size_t>(rows * pair->gpu.qkv_size()));
    const testing::DeviceBuffer<float> logits(static_cast<std::size_t>(rows) * 70);
    const auto layer = [&](cudaStream_t) -> Status {
      CHUNKLLM_RETURN_IF_ERROR(
          pair->gpu.project_qkv(pair->run, 0, hidden.data(), rows, nullptr, qkv.data()));
      CHUNKLLM_RETURN_IF_ERROR(
          pair->gpu.finish_layer(pair->run, 0, attended.data(), rows, hidden.data()));
      return pair->gpu.logits(pair->run, hidden.data(), rows, logits.data());
    };
    ASSERT_TRUE(succeeds(layer(stream_)));
    const std::vector<float> expected_hidden = hidden.download();
    const std::vector<float> expected_qkv = widened(qkv.download());
    const std::vector<float> expected_logits = logits.download();
    hidden.upload(before);
    replay_as_graph(layer);
    EXPECT_EQ(hidden.download(), expected_hidden) << rows << " rows";
    EXPECT_EQ(widened(qkv.download()), expected_qkv) << rows << " rows";
    EXPECT_EQ(logits.download(), expected_logits) << rows << " rows";
  }
}

TEST_F(DeviceBackboneTest, NaNStaysInItsRow) {
  const auto pair = Pair<__half>::make(config_with_everything(), stream_);
  ASSERT_NE(pair, nullptr);
  for (const std::int32_t rows : {3, 12, 20}) {
    std::vector<float> before = random_values(std::int64_t{rows} * 32, seed());
    before[32 + 4] = std::numeric_limits<float>::quiet_NaN();
    const testing::DeviceBuffer<float> hidden(before);
    const testing::DeviceBuffer<__half> attended(
        rounded<__half>(random_values(before.size(), seed() + 1)));
    ASSERT_TRUE(
        succeeds(pair->gpu.finish_layer(pair->run, kLayer, attended.data(), rows, hidden.data())));
    const std::vector<float> after = hidden.download();
    for (std::size_t i = 0; i < after.size(); ++i) {
      EXPECT_EQ(std::isnan(after[i]), i / 32 == 1) << i << " of " << rows << " rows";
    }
  }
}

TEST_F(DeviceBackboneTest, RopeStoreArgumentsAreTheModels) {
  const auto pair = Pair<__half>::make(config_with_everything(), stream_);
  ASSERT_NE(pair, nullptr);
  const auto args = pair->gpu.rope_store_args<__nv_fp8_e4m3>(2, nullptr, 7);
  EXPECT_EQ(args.qkv_stride, 64);
  EXPECT_EQ(args.num_rows, 7);
  EXPECT_EQ(args.num_heads, 4);
  EXPECT_EQ(args.num_kv_heads, 2);
  EXPECT_EQ(args.head_dim, 8);
  EXPECT_EQ(args.eps, 1e-6F);
  EXPECT_EQ(args.maybe_q_norm, pair->gpu.weights().layers[2].q_norm.data());
  EXPECT_EQ(args.maybe_k_norm, pair->gpu.weights().layers[2].k_norm.data());
  EXPECT_NE(args.maybe_q_norm, nullptr);
}

TEST_F(DeviceBackboneTest, ScratchAndLayersAreChecked) {
  const auto pair = Pair<__half>::make(testing::tiny_config(), stream_);
  ASSERT_NE(pair, nullptr);
  const testing::DeviceBuffer<float> hidden(65 * 32);
  const testing::DeviceBuffer<__half> qkv(65 * 64);
  EXPECT_EQ(pair->gpu.project_qkv(pair->run, 3, hidden.data(), 1, nullptr, qkv.data()).code(),
            StatusCode::kOutOfRange);
  DeviceRun run = pair->run;
  run.scratch_bytes = pair->gpu.scratch_bytes(8) - 1;
  EXPECT_EQ(pair->gpu.project_qkv(run, 0, hidden.data(), 8, nullptr, qkv.data()).code(),
            StatusCode::kInvalidArgument);
  EXPECT_TRUE(succeeds(pair->gpu.project_qkv(run, 0, hidden.data(), 0, nullptr, qkv.data())));
}

TEST(DeviceBackboneRefusals, ListWhatIsSupported) {
  DeviceWeights<__half> weights;
  weights.config = testing::tiny_config();
  weights.config.hidden_size = 36;
  const auto backbone = DeviceBackbone<__half>::create(std::move(weights));
  ASSERT_FALSE(backbone.ok());
  EXPECT_EQ(backbone.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(backbone.status().message(),
            "device backbone: hidden_size 36, intermediate_size 48, head_dim 8; supported are "
            "multiples of 8, head_dim up to 256");
}

}  // namespace
}  // namespace chunkllm::cuda
