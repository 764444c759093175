// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/cuda/device_weights.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/model/backbone_weights.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "cuda/support/device.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm::cuda {
namespace {

using testing::MemoryTensorSource;
using testing::succeeds;
using testing::widened;

BackboneConfig config_with_everything() {
  BackboneConfig config = testing::tiny_config(70);
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
  return config;
}

class DeviceWeightsTest : public testing::DeviceTest {
 protected:
  template <typename T>
  std::vector<T> download(const DeviceBuffer<T>& buffer) {
    std::vector<T> values(buffer.size());
    EXPECT_TRUE(succeeds(buffer.download(values, stream_)));
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
    return values;
  }
};

TEST_F(DeviceWeightsTest, MatricesAreStackedAndReorderedAsOnTheCpu) {
  ThreadPool pool(2);
  for (const bool permuted : {false, true}) {
    MemoryTensorSource source = MemoryTensorSource::random(config_with_everything(), 5);
    source.set_qk_rows_permuted(permuted);
    const auto cpu = BackboneWeights::load(source, WeightFormat::kF32, pool);
    const auto gpu = DeviceWeights<__nv_bfloat16>::load(source, pool);
    ASSERT_TRUE(cpu.ok() && gpu.ok()) << gpu.status().message();
    ASSERT_EQ(gpu->layers.size(), cpu->layers.size());
    const auto same = [&](const Linear& linear, const DeviceMatrix<__nv_bfloat16>& matrix) {
      ASSERT_EQ(matrix.rows, linear.out_features());
      ASSERT_EQ(matrix.cols, linear.in_features());
      std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.cols));
      for (std::int64_t r = 0; r < matrix.rows; ++r) {
        linear.unpack_row(r, values.data() + r * matrix.cols);
      }
      EXPECT_EQ(widened(download(matrix.weight)), widened(testing::rounded<__nv_bfloat16>(values)));
      // What the CPU adds to zero is its bias.
      std::vector<float> bias(static_cast<std::size_t>(matrix.rows), 0.0F);
      const std::vector<float> zeros(static_cast<std::size_t>(matrix.cols), 0.0F);
      linear.apply({zeros.data(), 1, matrix.cols}, {bias.data(), 1, matrix.rows}, pool);
      std::vector<float> device_bias = download(matrix.bias);
      device_bias.resize(bias.size(), 0.0F);
      EXPECT_EQ(device_bias, bias);
    };
    same(cpu->embedding, gpu->embedding);
    same(cpu->head(), gpu->head());
    EXPECT_EQ(download(gpu->final_norm), cpu->final_norm);
    for (std::size_t i = 0; i < cpu->layers.size(); ++i) {
      same(cpu->layers[i].qkv, gpu->layers[i].qkv);
      same(cpu->layers[i].output, gpu->layers[i].output);
      same(cpu->layers[i].gate_up, gpu->layers[i].gate_up);
      same(cpu->layers[i].down, gpu->layers[i].down);
      EXPECT_EQ(download(gpu->layers[i].attention_norm), cpu->layers[i].attention_norm);
      EXPECT_EQ(download(gpu->layers[i].mlp_norm), cpu->layers[i].mlp_norm);
      EXPECT_EQ(download(gpu->layers[i].q_norm), cpu->layers[i].q_norm);
      EXPECT_EQ(download(gpu->layers[i].k_norm), cpu->layers[i].k_norm);
    }
  }
}

TEST_F(DeviceWeightsTest, ErrorsAreThoseOfTheCpu) {
  ThreadPool pool(1);
  const auto same_error = [&](const auto& change) {
    MemoryTensorSource source = MemoryTensorSource::random(testing::tiny_config(), 5);
    change(source);
    const auto cpu = BackboneWeights::load(source, WeightFormat::kF32, pool);
    const auto gpu = DeviceWeights<__half>::load(source, pool);
    ASSERT_FALSE(cpu.ok());
    ASSERT_FALSE(gpu.ok());
    EXPECT_EQ(gpu.status().code(), cpu.status().code());
    EXPECT_EQ(gpu.status().message(), cpu.status().message());
  };
  using Source = MemoryTensorSource;
  same_error([](Source& s) { s.erase("model.layers.1.mlp.up_proj.weight"); });
  same_error([](Source& s) { s.set("model.norm.weight", 1, 31, std::vector<float>(31)); });
  same_error([](Source& s) {
    s.values("model.layers.0.input_layernorm.weight")[3] = std::numeric_limits<float>::infinity();
  });
  same_error([](Source& s) { s.mutable_config().num_layers = 0; });
}

TEST_F(DeviceWeightsTest, HalfRefusesWhatItCannotHold) {
  ThreadPool pool(1);
  MemoryTensorSource source = MemoryTensorSource::random(testing::tiny_config(), 5);
  source.values("model.layers.1.mlp.down_proj.weight")[50] = 70000.0F;
  EXPECT_TRUE(DeviceWeights<__nv_bfloat16>::load(source, pool).ok());
  const auto gpu = DeviceWeights<__half>::load(source, pool);
  ASSERT_FALSE(gpu.ok());
  EXPECT_EQ(gpu.status().message(),
            "tensor 'model.layers.1.mlp.down_proj.weight': row 1 holds a value beyond the range of "
            "f16; bf16 holds it");
}

TEST_F(DeviceWeightsTest, ProgressCountsEveryTensorAndMayStop) {
  ThreadPool pool(1);
  const MemoryTensorSource source = MemoryTensorSource::random(config_with_everything(), 5);
  const auto expected =
      static_cast<std::int64_t>(expected_tensors(config_with_everything()).size());
  std::int64_t last = 0;
  const auto loaded =
      DeviceWeights<__half>::load(source, pool, [&](std::int64_t read, std::int64_t all) {
        EXPECT_EQ(read, last + 1);
        EXPECT_EQ(all, expected);
        last = read;
        return true;
      });
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(last, expected);
  const auto stopped = DeviceWeights<__half>::load(
      source, pool, [](std::int64_t read, std::int64_t) { return read < 4; });
  EXPECT_EQ(stopped.status().code(), StatusCode::kInterrupted);
}

TEST_F(DeviceWeightsTest, RandomOnesRepeatAndHaveTheModelsShapes) {
  const auto weights = DeviceWeights<__half>::random(config_with_everything(), 3);
  const auto again = DeviceWeights<__half>::random(config_with_everything(), 3);
  ASSERT_TRUE(weights.ok() && again.ok()) << weights.status().message();
  const std::vector<float> down = widened(download(weights->layers[2].down.weight));
  EXPECT_EQ(widened(download(again->layers[2].down.weight)), down);
  EXPECT_NE(widened(download(weights->layers[1].down.weight)), down);
  EXPECT_EQ(weights->layers[2].down.rows, 32);
  EXPECT_EQ(weights->layers[2].down.cols, 48);
  double squares = 0.0;
  for (const float value : down) squares += static_cast<double>(value) * value;
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(down.size())), 0.02, 0.002);
  EXPECT_EQ(download(weights->final_norm), std::vector<float>(32, 1.0F));
  EXPECT_EQ(download(weights->layers[0].qkv.bias), std::vector<float>(64, 0.0F));
  EXPECT_EQ(weights->bytes(), again->bytes());
}

}  // namespace
}  // namespace chunkllm::cuda
