// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// Name of a part of layer `layer`, e.g. (3, "self_attn.q_proj.weight") ->
/// "model.layers.3.self_attn.q_proj.weight".
inline std::string layer_tensor_name(std::int64_t layer, std::string_view part) {
  return "model.layers." + std::to_string(layer) + "." + std::string(part);
}

/// A tensor that a model of some configuration must have.
struct ExpectedTensor {
  std::string name;       ///< canonical, i.e. Hugging Face's
  std::int64_t rows = 0;  ///< 1 for a vector
  std::int64_t cols = 0;
};

namespace detail {

using NamePair = std::pair<std::string_view, std::string_view>;

/// Canonical names beside GGUF's, without the layers' prefixes and the ".weight"/".bias" suffix.
inline constexpr std::array<NamePair, 3> kModelTensorNames = {{
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
}};
inline constexpr std::array<NamePair, 11> kLayerTensorNames = {{
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
}};

/// Translates by the tables; an empty string where the name is in neither.
inline std::string translate_tensor_name(std::string_view name, bool to_gguf) {
  constexpr std::string_view kCanonicalPrefix = "model.layers.";
  constexpr std::string_view kGgufPrefix = "blk.";
  const auto from = [to_gguf](const NamePair& pair) { return to_gguf ? pair.first : pair.second; };
  const auto to = [to_gguf](const NamePair& pair) { return to_gguf ? pair.second : pair.first; };

  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {};
  const std::string_view suffix = name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return {};
  std::string_view stem = name.substr(0, dot);
  for (const NamePair& pair : kModelTensorNames) {
    if (from(pair) == stem) return std::string(to(pair)) + std::string(suffix);
  }
  const std::string_view prefix = to_gguf ? kCanonicalPrefix : kGgufPrefix;
  if (!stem.starts_with(prefix)) return {};
  stem.remove_prefix(prefix.size());
  std::uint32_t layer = 0;
  const auto [end, error] = std::from_chars(stem.data(), stem.data() + stem.size(), layer);
  const auto num_digits = static_cast<std::size_t>(end - stem.data());
  if (error != std::errc() || num_digits >= stem.size() || stem[num_digits] != '.') return {};
  const std::string_view part = stem.substr(num_digits + 1);
  for (const NamePair& pair : kLayerTensorNames) {
    if (from(pair) != part) continue;
    std::string result(to_gguf ? kGgufPrefix : kCanonicalPrefix);
    result += stem.substr(0, num_digits + 1);
    result += to(pair);
    return result += suffix;
  }
  return {};
}

}  // namespace detail

/// GGUF's name of a canonical tensor name, e.g. "blk.3.attn_q.weight"; empty where it has none.
inline std::string gguf_tensor_name(std::string_view canonical_name) {
  return detail::translate_tensor_name(canonical_name, /*to_gguf=*/true);
}

/// The canonical name of a GGUF tensor; empty where it has none.
inline std::string canonical_tensor_name(std::string_view gguf_name) {
  return detail::translate_tensor_name(gguf_name, /*to_gguf=*/false);
}

/// Every tensor that a backbone of this configuration reads, with its shape.
inline std::vector<ExpectedTensor> expected_tensors(const BackboneConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  std::vector<ExpectedTensor> result = {{"model.embed_tokens.weight", config.vocab_size, hidden},
                                        {"model.norm.weight", 1, hidden}};
  if (!config.tied_embeddings) result.push_back({"lm_head.weight", config.vocab_size, hidden});
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto add = [&](std::string_view part, std::int64_t rows, std::int64_t cols) {
      result.push_back({layer_tensor_name(layer, part), rows, cols});
    };
    const auto add_matrix = [&](const std::string& part, std::int64_t rows, std::int64_t cols,
                                bool has_bias) {
      add(part + ".weight", rows, cols);
      if (has_bias) add(part + ".bias", 1, rows);
    };
    add("input_layernorm.weight", 1, hidden);
    add_matrix("self_attn.q_proj", config.query_size(), hidden, config.qkv_bias);
    add_matrix("self_attn.k_proj", config.kv_size(), hidden, config.qkv_bias);
    add_matrix("self_attn.v_proj", config.kv_size(), hidden, config.qkv_bias);
    add_matrix("self_attn.o_proj", hidden, config.query_size(), config.output_bias);
    if (config.qk_norm) {
      add("self_attn.q_norm.weight", 1, config.head_dim);
      add("self_attn.k_norm.weight", 1, config.head_dim);
    }
    add("post_attention_layernorm.weight", 1, hidden);
    add_matrix("mlp.gate_proj", inner, hidden, config.mlp_bias);
    add_matrix("mlp.up_proj", inner, hidden, config.mlp_bias);
    add_matrix("mlp.down_proj", hidden, inner, config.mlp_bias);
  }
  return result;
}

}  // namespace chunkllm
