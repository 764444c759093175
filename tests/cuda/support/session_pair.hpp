// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/boundary_journal.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_session.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "cuda/support/device.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/tiny_backbone.hpp"

/// The same tiny model and scorers on the CPU and on the device.
namespace chunkllm::testing {

/// As `tiny_config`, with heads that the attention kernels know.
inline BackboneConfig session_config() {
  BackboneConfig config = tiny_config();
  config.hidden_size = 128;
  config.intermediate_size = 192;
  config.head_dim = 64;
  return config;
}
inline BackboneConfig windowed_config() {
  BackboneConfig config = session_config();
  config.architecture = Architecture::kMistral;
  config.sliding_window = {40, 0, 40};  // the first layer, which finds boundaries, among them
  return config;
}

template <typename T>
float as_held(float value) {
  return widened(rounded<T>(value));
}

/// A model whose tensors T holds exactly, so that both sides have the same weights.
template <typename T>
struct ModelPair {
  DecoderBackbone cpu;
  cuda::DeviceBackbone<T> gpu;

  static std::unique_ptr<ModelPair> make(const BackboneConfig& config, std::uint32_t seed) {
    ThreadPool pool(2);
    MemoryTensorSource source = MemoryTensorSource::random(config, seed);
    for (const ExpectedTensor& tensor : expected_tensors(config)) {
      for (float& value : source.values(tensor.name)) value = as_held<T>(value);
    }
    auto cpu = DecoderBackbone::load(source, WeightFormat::kF32, pool);
    auto gpu = cuda::DeviceBackbone<T>::load(source, pool);
    EXPECT_TRUE(succeeds(cpu.status()));
    EXPECT_TRUE(succeeds(gpu.status()));
    if (!cpu.ok() || !gpu.ok()) return nullptr;
    return std::unique_ptr<ModelPair>(
        new ModelPair{std::move(cpu).value(), std::move(gpu).value()});
  }
};

struct AdapterKind {
  KeyPooling pooling = KeyPooling::kMean;
  bool has_null = true;
  bool has_bias = true;
  std::int64_t num_heads = 4;
  std::int64_t num_key_heads = 2;
  std::int64_t key_dim = 16;
};

/// QK Adapters, exact in T.
template <typename T>
QkAdapter qk_adapter(const BackboneConfig& config, std::uint32_t seed, const AdapterKind& kind) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.2F);
  const auto fill = [&](std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = as_held<T>(normal(random));
    return values;
  };
  std::vector<QkAdapterLayer> layers(static_cast<std::size_t>(config.num_layers));
  for (QkAdapterLayer& layer : layers) {
    layer.query_weight = fill(kind.num_heads * kind.key_dim * config.hidden_size);
    layer.key_weight = fill(kind.num_key_heads * kind.key_dim * config.hidden_size);
    if (kind.has_bias) layer.distance_bias = fill(kind.num_heads * kNumDistanceBins);
    if (kind.has_null) {
      layer.null_weight = fill(kind.num_heads * config.hidden_size);
      layer.null_bias = fill(kind.num_heads);
    }
  }
  return QkAdapter(std::move(layers), config.hidden_size, kind.num_heads, kind.num_key_heads,
                   kind.key_dim, kind.pooling, /*adds_log_length=*/true);
}

/// Ends a chunk at some of the tokens of the tiny model.
inline ChunkAdapter chunk_adapter(const BackboneConfig& config, float bias = -2.0F) {
  ChunkAdapter adapter;
  std::mt19937 random(21);
  std::normal_distribution<float> normal(0.0F, 0.5F);
  adapter.weight.resize(static_cast<std::size_t>(config.hidden_size));
  for (float& weight : adapter.weight) weight = normal(random);
  adapter.bias = bias;
  adapter.threshold = 0.9F;
  return adapter;
}

}  // namespace chunkllm::testing
