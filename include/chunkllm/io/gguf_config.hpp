// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/gguf.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm {

namespace detail {

/// Metadata keys of one architecture: "<architecture>.<name>".
class GgufArchitectureKeys {
 public:
  GgufArchitectureKeys(const GgufFile& file, std::string_view prefix)
      : file_(&file), prefix_(std::string(prefix) + ".") {}

  [[nodiscard]] std::string key(std::string_view name) const { return prefix_ + std::string(name); }

  /// A count that a file may give once for all layers or as an array with one for each.
  [[nodiscard]] Result<std::optional<std::int64_t>> optional_uniform_int(std::string_view name,
                                                                         std::int64_t max) const {
    const std::string full = key(name);
    const GgufValue* value = file_->find(full);
    if (value == nullptr || value->type != GgufType::kArray) {
      return file_->optional_int(full, 1, max);
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const auto counts, file_->int_array(full, 1, max));
    if (counts.empty() ||
        std::any_of(counts.begin(), counts.end(), [&](auto c) { return c != counts.front(); })) {
      return unsupported(field_error(file_->path(), full, "an array of different values",
                                     "the same value for all layers"));
    }
    return std::optional<std::int64_t>(counts.front());
  }

  [[nodiscard]] Result<std::int64_t> require_uniform_int(std::string_view name,
                                                         std::int64_t max) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto value, optional_uniform_int(name, max));
    if (!value) {
      return invalid_file(field_error(file_->path(), key(name), "missing", "an integer"));
    }
    return *value;
  }

  [[nodiscard]] Result<double> double_or(std::string_view name, double fallback, double min,
                                         double max) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto value, file_->optional_double(key(name), min, max));
    return value.value_or(fallback);
  }

 private:
  const GgufFile* file_;
  std::string prefix_;
};

inline Status read_gguf_shapes(const GgufFile& file, const GgufArchitectureKeys& keys,
                               BackboneConfig& result) {
  using Limits = ConfigLimits;
  CHUNKLLM_ASSIGN_OR_RETURN(result.num_layers,
                            file.require_int(keys.key("block_count"), 1, Limits::kMaxLayers));
  CHUNKLLM_ASSIGN_OR_RETURN(result.hidden_size, file.require_int(keys.key("embedding_length"), 1,
                                                                 Limits::kMaxHiddenSize));
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.intermediate_size,
      keys.require_uniform_int("feed_forward_length", Limits::kMaxIntermediateSize));
  CHUNKLLM_ASSIGN_OR_RETURN(result.num_heads,
                            keys.require_uniform_int("attention.head_count", Limits::kMaxHeads));
  CHUNKLLM_ASSIGN_OR_RETURN(
      const auto num_kv_heads,
      keys.optional_uniform_int("attention.head_count_kv", Limits::kMaxHeads));
  result.num_kv_heads = num_kv_heads.value_or(result.num_heads);
  CHUNKLLM_ASSIGN_OR_RETURN(result.context_length, file.require_int(keys.key("context_length"), 1,
                                                                    Limits::kMaxContextLength));

  CHUNKLLM_ASSIGN_OR_RETURN(
      const auto key_length,
      file.optional_int(keys.key("attention.key_length"), 2, Limits::kMaxHeadDim));
  if (!key_length && result.hidden_size % result.num_heads != 0) {
    return invalid_file(
        field_error(file.path(), keys.key("attention.head_count"), std::to_string(result.num_heads),
                    "a divisor of embedding_length " + std::to_string(result.hidden_size) +
                        " where attention.key_length is not given"));
  }
  result.head_dim = key_length.value_or(result.hidden_size / result.num_heads);
  // Unequal value heads and partly rotated heads belong to architectures not read here.
  for (const std::string_view name : {"attention.value_length", "rope.dimension_count"}) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto length, file.optional_int(keys.key(name), 0, INT32_MAX));
    if (length && *length != result.head_dim) {
      return unsupported(field_error(file.path(), keys.key(name), std::to_string(*length),
                                     "the head dimension " + std::to_string(result.head_dim)));
    }
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto num_experts,
                            file.optional_int(keys.key("expert_count"), 0, INT32_MAX));
  if (num_experts.value_or(0) != 0) {
    return unsupported(field_error(file.path(), keys.key("expert_count"),
                                   std::to_string(*num_experts),
                                   "0 (mixtures of experts are not supported)"));
  }

  const GgufTensorInfo* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) {
    return invalid_file(file.path() + ": there is no tensor 'token_embd.weight'");
  }
  result.vocab_size = embedding->dims[1];
  CHUNKLLM_ASSIGN_OR_RETURN(const auto vocab_size,
                            file.optional_int(keys.key("vocab_size"), 1, Limits::kMaxVocabSize));
  if (vocab_size && *vocab_size != result.vocab_size) {
    return invalid_file(
        field_error(file.path(), keys.key("vocab_size"), std::to_string(*vocab_size),
                    "the " + std::to_string(result.vocab_size) + " rows of token_embd.weight"));
  }
  return {};
}

inline Status read_gguf_rope(const GgufFile& file, const GgufArchitectureKeys& keys,
                             BackboneConfig& result) {
  constexpr double kMaxFactor = ConfigLimits::kMaxRopeFactor;
  CHUNKLLM_ASSIGN_OR_RETURN(result.rope_theta, keys.double_or("rope.freq_base", 10000.0, 1.0,
                                                              ConfigLimits::kMaxRopeTheta));
  RopeScaling& scaling = result.rope_scaling;
  // Old files have `rope.scale_linear` alone. 0 stands for "not scaled".
  CHUNKLLM_ASSIGN_OR_RETURN(double factor,
                            keys.double_or("rope.scale_linear", 0.0, 0.0, kMaxFactor));
  CHUNKLLM_ASSIGN_OR_RETURN(factor, keys.double_or("rope.scaling.factor", factor, 0.0, kMaxFactor));
  const std::string type_key = keys.key("rope.scaling.type");
  CHUNKLLM_ASSIGN_OR_RETURN(const auto type, file.optional_string(type_key));
  const std::string_view kind = type.value_or("linear");
  if (kind == "linear") {
    if (factor != 0.0 && factor != 1.0) {
      scaling.kind = RopeScaling::Kind::kLinear;
      scaling.factor = factor;
    }
  } else if (kind == "yarn") {
    scaling.kind = RopeScaling::Kind::kYarn;
    scaling.factor = factor == 0.0 ? 1.0 : factor;
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.original_context_length,
                              keys.double_or("rope.scaling.original_context_length",
                                             static_cast<double>(result.context_length), 1.0,
                                             static_cast<double>(ConfigLimits::kMaxContextLength)));
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.beta_fast,
                              keys.double_or("rope.scaling.yarn_beta_fast", 32.0, 1e-6, 1e6));
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.beta_slow,
                              keys.double_or("rope.scaling.yarn_beta_slow", 1.0, 1e-6, 1e6));
    for (const std::string_view name :
         {"rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"}) {
      CHUNKLLM_ASSIGN_OR_RETURN(const double value, keys.double_or(name, 1.0, -1e6, 1e6));
      if (value != 1.0) {
        return unsupported(field_error(file.path(), keys.key(name), number_text(value), "1"));
      }
    }
    // This one multiplies yarn's own temperature, it does not replace it as in config.json.
    CHUNKLLM_ASSIGN_OR_RETURN(const double attention_factor,
                              keys.double_or("rope.scaling.attn_factor", 1.0, 1e-3, 1e3));
    scaling.attention_factor =
        attention_factor * (scaling.factor <= 1.0 ? 1.0 : 0.1 * std::log(scaling.factor) + 1.0);
  } else if (kind != "none") {
    return unsupported(
        field_error(file.path(), type_key, "\"" + printable(kind) + "\"", "none, linear or yarn"));
  }

  if (!file.contains("rope_freqs.weight")) return {};
  CHUNKLLM_ASSIGN_OR_RETURN(const TensorBytes divisors, file.tensor("rope_freqs.weight"));
  if (divisors.dtype != DType::kF32 || divisors.rows != 1 || divisors.cols != result.head_dim / 2) {
    return invalid_file(file.path() + ": tensor 'rope_freqs.weight' is not f32 of " +
                        std::to_string(result.head_dim / 2) + " values");
  }
  result.rope_frequency_divisors.resize(static_cast<std::size_t>(divisors.cols));
  std::memcpy(result.rope_frequency_divisors.data(), divisors.bytes.data(), divisors.bytes.size());
  return {};
}

inline Status read_gguf_windows(const GgufFile& file, const GgufArchitectureKeys& keys,
                                BackboneConfig& result) {
  const std::string key = keys.key("attention.sliding_window");
  CHUNKLLM_ASSIGN_OR_RETURN(const auto window,
                            file.optional_int(key, 0, ConfigLimits::kMaxContextLength));
  if (window.value_or(0) != 0 && result.architecture != Architecture::kLlama) {
    return unsupported(field_error(file.path(), key, std::to_string(*window),
                                   "none (the file cannot say which layers it is for)"));
  }
  result.sliding_window.assign(static_cast<std::size_t>(result.num_layers), window.value_or(0));
  return {};
}

inline Status read_gguf_token_ids(const GgufFile& file, BackboneConfig& result) {
  const std::int64_t max_id = result.vocab_size - 1;
  CHUNKLLM_ASSIGN_OR_RETURN(const auto bos,
                            file.optional_int("tokenizer.ggml.bos_token_id", 0, max_id));
  result.bos_token_id = bos.value_or(-1);
  // End of turn and end of message stop generation as the end of text does.
  for (const std::string_view name : {"eos", "eot", "eom"}) {
    const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
    CHUNKLLM_ASSIGN_OR_RETURN(const auto id, file.optional_int(key, 0, max_id));
    auto& ids = result.eos_token_ids;
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
  }
  return {};
}

}  // namespace detail

/// Reads the configuration from a GGUF file's metadata and, where the format has no key for a
/// property (tied embeddings, biases, q/k norms), from the names of its tensors.
///
/// Mistral models are files of architecture "llama", with a sliding window where the key is set.
///
/// Errors: kUnsupported for another architecture (llama, qwen2 and qwen3 are read), RoPE scaling
/// type, partly rotated heads or sizes that differ by layer; kInvalidFile for a missing, mistyped
/// or impossible value. The result has passed `validate`.
inline Result<BackboneConfig> backbone_config_from_gguf(const GgufFile& file) {
  BackboneConfig result;
  CHUNKLLM_ASSIGN_OR_RETURN(const std::string_view name,
                            file.require_string("general.architecture"));
  if (name == "llama") {
    result.architecture = Architecture::kLlama;
  } else if (name == "qwen2") {
    result.architecture = Architecture::kQwen2;
  } else if (name == "qwen3") {
    result.architecture = Architecture::kQwen3;
  } else {
    return unsupported(detail::field_error(file.path(), "general.architecture",
                                           "\"" + detail::printable(name) + "\"",
                                           "llama, qwen2 or qwen3"));
  }
  const detail::GgufArchitectureKeys keys(file, name);
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_shapes(file, keys, result));
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.rms_norm_eps,
      file.require_double(keys.key("attention.layer_norm_rms_epsilon"), 1e-30, 1.0));
  result.tied_embeddings = !file.contains("output.weight");
  result.qkv_bias = file.contains("blk.0.attn_q.bias");
  result.output_bias = file.contains("blk.0.attn_output.bias");
  result.mlp_bias = file.contains("blk.0.ffn_gate.bias");
  result.qk_norm = file.contains("blk.0.attn_q_norm.weight");
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_rope(file, keys, result));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_windows(file, keys, result));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_token_ids(file, result));
  CHUNKLLM_RETURN_IF_ERROR(validate(result, file.path()));
  return result;
}

}  // namespace chunkllm
