// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace chunkllm {

enum class Architecture : std::uint8_t { kLlama, kQwen2, kQwen3, kMistral };

constexpr std::string_view to_string(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama: return "llama";
    case Architecture::kQwen2: return "qwen2";
    case Architecture::kQwen3: return "qwen3";
    case Architecture::kMistral: return "mistral";
  }
  return "?";
}

/// How rotary frequencies are stretched past the length a model was pre-trained on.
struct RopeScaling {
  enum class Kind : std::uint8_t { kNone, kLinear, kLlama3, kYarn };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double original_context_length = 0.0;  ///< tokens; llama3 and yarn
  double low_freq_factor = 1.0;          ///< llama3
  double high_freq_factor = 4.0;         ///< llama3
  double beta_fast = 32.0;               ///< yarn
  double beta_slow = 1.0;                ///< yarn
  bool truncate = true;                  ///< yarn: round the correction range to whole dimensions
  /// cos and sin are multiplied by it, so logits grow by its square; 1 but for yarn.
  double attention_factor = 1.0;
};

/// Shapes and constants of a frozen decoder, read from config.json or GGUF metadata.
struct BackboneConfig {
  Architecture architecture = Architecture::kLlama;
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_heads = 0;     ///< query heads
  std::int64_t num_kv_heads = 0;  ///< divides num_heads
  std::int64_t head_dim = 0;      ///< even; num_heads * head_dim need not equal hidden_size
  std::int64_t vocab_size = 0;
  std::int64_t context_length = 0;  ///< trained window, tokens
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  /// [head_dim / 2] or empty: frequency i is divided by element i (GGUF's `rope_freqs.weight`).
  std::vector<float> rope_frequency_divisors;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  ///< bias on the attention's output projection
  bool mlp_bias = false;
  bool qk_norm = false;  ///< RMSNorm over head_dim on queries and keys, before RoPE
  /// [num_layers] tokens a layer sees, itself included; 0 = all of the past.
  std::vector<std::int64_t> sliding_window;
  std::int64_t bos_token_id = -1;  ///< -1: none
  std::vector<std::int64_t> eos_token_ids;

  [[nodiscard]] std::int64_t query_size() const { return num_heads * head_dim; }
  [[nodiscard]] std::int64_t kv_size() const { return num_kv_heads * head_dim; }
};

}  // namespace chunkllm
