// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm::cuda {

namespace detail {

/// What differs between the shapes of published models.
struct BackboneShape {
  std::string_view name;
  Architecture architecture;
  std::int64_t num_layers;
  std::int64_t hidden_size;
  std::int64_t intermediate_size;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  std::int64_t vocab_size;
  std::int64_t context_length;
  double rms_norm_eps;
  double rope_theta;
  double llama3_factor;  ///< 0: frequencies are not scaled
  bool tied_embeddings;
  std::int64_t bos_token_id;
  std::int64_t eos_token_id;
};

inline constexpr std::array<BackboneShape, 6> kBackboneShapes = {{
    {"llama-3.1-8b", Architecture::kLlama, 32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5, 5e5,
     8.0, false, 128000, 128001},
    {"qwen2.5-7b", Architecture::kQwen2, 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6, 1e6,
     0.0, false, 151643, 151643},
    {"llama-3.2-1b", Architecture::kLlama, 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5,
     32.0, true, 128000, 128001},
    {"qwen3-8b", Architecture::kQwen3, 36, 4096, 12288, 32, 8, 128, 151936, 40960, 1e-6, 1e6, 0.0,
     false, 151643, 151645},
    {"mistral-7b", Architecture::kMistral, 32, 4096, 14336, 32, 8, 128, 32768, 32768, 1e-5, 1e6,
     0.0, false, 1, 2},
    {"smollm2-135m", Architecture::kLlama, 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5, 1e5, 0.0,
     true, 0, 0},
}};

}  // namespace detail

/// Shapes and constants of a published model, for work on speed without its weights.
///
/// \param name  llama-3.1-8b, qwen2.5-7b, llama-3.2-1b, qwen3-8b, mistral-7b (v0.3) or smollm2-135m
/// Errors: kNotFound, listing the names.
inline Result<BackboneConfig> backbone_shape(std::string_view name) {
  std::string names;
  for (const detail::BackboneShape& shape : detail::kBackboneShapes) {
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
    if (shape.name != name) continue;
    BackboneConfig config;
    config.architecture = shape.architecture;
    config.num_layers = shape.num_layers;
    config.hidden_size = shape.hidden_size;
    config.intermediate_size = shape.intermediate_size;
    config.num_heads = shape.num_heads;
    config.num_kv_heads = shape.num_kv_heads;
    config.head_dim = shape.head_dim;
    config.vocab_size = shape.vocab_size;
    config.context_length = shape.context_length;
    config.rms_norm_eps = shape.rms_norm_eps;
    config.rope_theta = shape.rope_theta;
    if (shape.llama3_factor > 0.0) {
      config.rope_scaling.kind = RopeScaling::Kind::kLlama3;
      config.rope_scaling.factor = shape.llama3_factor;
      config.rope_scaling.original_context_length = 8192.0;
    }
    config.tied_embeddings = shape.tied_embeddings;
    config.qkv_bias = shape.architecture == Architecture::kQwen2;
    config.qk_norm = shape.architecture == Architecture::kQwen3;
    config.sliding_window.assign(static_cast<std::size_t>(shape.num_layers), 0);
    config.bos_token_id = shape.bos_token_id;
    config.eos_token_ids = {shape.eos_token_id};
    return config;
  }
  return not_found("backbone shape '" + std::string(name) + "', known are " + names);
}

}  // namespace chunkllm::cuda
