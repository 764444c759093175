// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/tensor_names.hpp"

namespace chunkllm::testing {

/// A model in memory, f32, for tests that need no file. Satisfies `TensorSource`.
class MemoryTensorSource {
 public:
  explicit MemoryTensorSource(BackboneConfig config) : config_(std::move(config)) {}

  /// Weights of unit gain, norms near 1 and small biases for every tensor that `config` calls for.
  static MemoryTensorSource random(const BackboneConfig& config, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    MemoryTensorSource source(config);
    for (const ExpectedTensor& expected : expected_tensors(config)) {
      const bool is_norm = expected.name.find("norm") != std::string::npos;
      const float base = is_norm ? 1.0F : 0.0F;
      const float spread =
          expected.rows == 1 ? 0.25F : 1.4F / std::sqrt(static_cast<float>(expected.cols));
      std::vector<float> values;
      for (std::int64_t i = 0; i < expected.rows * expected.cols; ++i) {
        values.push_back(base + spread * normal(random));
      }
      source.set(expected.name, expected.rows, expected.cols, std::move(values));
    }
    return source;
  }

  void set(const std::string& name, std::int64_t rows, std::int64_t cols,
           std::vector<float> values) {
    tensors_[name] = {rows, cols, std::move(values)};
  }
  void erase(const std::string& name) { tensors_.erase(name); }
  [[nodiscard]] std::vector<float>& values(const std::string& name) {
    return tensors_.at(name).values;
  }
  void set_qk_rows_permuted(bool permuted) { permuted_ = permuted; }
  [[nodiscard]] BackboneConfig& mutable_config() { return config_; }

  /// All tensors in double, for the oracle.
  [[nodiscard]] std::map<std::string, std::vector<double>> to_double() const {
    std::map<std::string, std::vector<double>> result;
    for (const auto& [name, tensor] : tensors_) {
      result[name].assign(tensor.values.begin(), tensor.values.end());
    }
    return result;
  }

  [[nodiscard]] const BackboneConfig& config() const { return config_; }
  [[nodiscard]] bool qk_rows_permuted() const { return permuted_; }
  [[nodiscard]] Result<TensorBytes> tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return not_found("memory: there is no tensor '" + name + "'");
    const Tensor& tensor = found->second;
    return TensorBytes{DType::kF32, std::as_bytes(std::span<const float>(tensor.values)),
                       tensor.rows, tensor.cols};
  }

 private:
  struct Tensor {
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::vector<float> values;
  };
  BackboneConfig config_;
  std::map<std::string, Tensor> tensors_;
  bool permuted_ = false;
};

/// A small decoder of odd sizes: 2 layers, 2 query heads a key-value head, no multiple of a panel.
inline BackboneConfig small_config() {
  BackboneConfig config;
  config.num_layers = 2;
  config.hidden_size = 40;
  config.intermediate_size = 56;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 12;
  config.vocab_size = 70;
  config.context_length = 128;
  config.sliding_window = {0, 0};
  return config;
}

}  // namespace chunkllm::testing
