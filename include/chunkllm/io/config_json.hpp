// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm {

namespace detail {

inline constexpr std::string_view kSupportedRopeTypes = "default, linear, llama3 or yarn";

inline Result<Architecture> architecture_from_json(const Json& config, std::string_view origin) {
  const Json* list = find_json(config, "architectures");
  const auto* names = list == nullptr ? nullptr : list->get_ptr<const Json::array_t*>();
  const std::string* name = names == nullptr || names->empty()
                                ? nullptr
                                : names->front().get_ptr<const Json::string_t*>();
  if (name == nullptr) {
    return invalid_file(field_error(origin, "architectures",
                                    list == nullptr ? "missing" : describe(*list),
                                    "a list of class names"));
  }
  if (*name == "LlamaForCausalLM") return Architecture::kLlama;
  if (*name == "Qwen2ForCausalLM") return Architecture::kQwen2;
  if (*name == "Qwen3ForCausalLM") return Architecture::kQwen3;
  if (*name == "MistralForCausalLM") return Architecture::kMistral;
  return unsupported(
      field_error(origin, "architectures", "\"" + printable(*name) + "\"",
                  "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or MistralForCausalLM"));
}

inline Status read_shapes(const Json& config, std::string_view origin, BackboneConfig& result) {
  using Limits = ConfigLimits;
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.num_layers, require_int(config, "num_hidden_layers", 1, Limits::kMaxLayers, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(result.hidden_size,
                            require_int(config, "hidden_size", 1, Limits::kMaxHiddenSize, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.intermediate_size,
      require_int(config, "intermediate_size", 1, Limits::kMaxIntermediateSize, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.num_heads, require_int(config, "num_attention_heads", 1, Limits::kMaxHeads, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto num_kv_heads, optional_int(config, "num_key_value_heads", 1,
                                                                  Limits::kMaxHeads, origin));
  // The reference's defaults for absent keys (8 or 32 heads, 128 for Qwen3's head_dim) fit one
  // size of model only: asking is safer than guessing. Null means "as usual" everywhere.
  const bool is_llama = result.architecture == Architecture::kLlama;
  if (!is_llama && !config.contains("num_key_value_heads")) {
    return invalid_file(
        field_error(origin, "num_key_value_heads", "missing", "an integer or null"));
  }
  result.num_kv_heads = num_kv_heads.value_or(result.num_heads);
  CHUNKLLM_ASSIGN_OR_RETURN(const auto head_dim,
                            optional_int(config, "head_dim", 2, Limits::kMaxHeadDim, origin));
  if (!head_dim && result.architecture == Architecture::kQwen3) {
    return invalid_file(field_error(origin, "head_dim", "missing", "an integer"));
  }
  if (!head_dim && result.hidden_size % result.num_heads != 0) {
    return invalid_file(field_error(origin, "num_attention_heads", std::to_string(result.num_heads),
                                    "a divisor of hidden_size " +
                                        std::to_string(result.hidden_size) +
                                        " where head_dim is not given"));
  }
  result.head_dim = head_dim.value_or(result.hidden_size / result.num_heads);
  CHUNKLLM_ASSIGN_OR_RETURN(result.vocab_size,
                            require_int(config, "vocab_size", 1, Limits::kMaxVocabSize, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(result.context_length, require_int(config, "max_position_embeddings", 1,
                                                               Limits::kMaxContextLength, origin));
  return {};
}

/// Biases, norms, activation: what the architecture fixes and what the file chooses.
inline Status read_layer_options(const Json& config, std::string_view origin,
                                 BackboneConfig& result) {
  CHUNKLLM_ASSIGN_OR_RETURN(const auto activation, optional_string(config, "hidden_act", origin));
  if (activation && *activation != "silu") {
    return unsupported(
        field_error(origin, "hidden_act", "\"" + printable(*activation) + "\"", "\"silu\""));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto eps,
                            optional_double(config, "rms_norm_eps", 1e-30, 1.0, origin));
  result.rms_norm_eps = eps.value_or(1e-6);
  CHUNKLLM_ASSIGN_OR_RETURN(const auto tied, optional_bool(config, "tie_word_embeddings", origin));
  result.tied_embeddings = tied.value_or(false);
  CHUNKLLM_ASSIGN_OR_RETURN(const auto attention_bias,
                            optional_bool(config, "attention_bias", origin));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto mlp_bias, optional_bool(config, "mlp_bias", origin));
  switch (result.architecture) {
    case Architecture::kLlama:
      result.qkv_bias = result.output_bias = attention_bias.value_or(false);
      result.mlp_bias = mlp_bias.value_or(false);
      break;
    case Architecture::kQwen2: result.qkv_bias = true; break;
    case Architecture::kQwen3:
      result.qkv_bias = result.output_bias = attention_bias.value_or(false);
      result.qk_norm = true;
      break;
    case Architecture::kMistral: break;
  }
  return {};
}

/// m(z) of yarn: how much the logits' temperature grows with the stretch.
inline double yarn_mscale(double factor, double scale) {
  return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

inline Status read_yarn(const Json& rope, std::string_view origin, RopeScaling& result) {
  CHUNKLLM_ASSIGN_OR_RETURN(const auto beta_fast,
                            optional_double(rope, "beta_fast", 0.0, 1e6, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto beta_slow,
                            optional_double(rope, "beta_slow", 0.0, 1e6, origin));
  // The reference takes 0 for "not set" too.
  if (beta_fast.value_or(0.0) != 0.0) result.beta_fast = *beta_fast;
  if (beta_slow.value_or(0.0) != 0.0) result.beta_slow = *beta_slow;
  CHUNKLLM_ASSIGN_OR_RETURN(const auto truncate, optional_bool(rope, "truncate", origin));
  result.truncate = truncate.value_or(true);
  CHUNKLLM_ASSIGN_OR_RETURN(const auto attention_factor,
                            optional_double(rope, "attention_factor", 1e-3, 1e3, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto mscale, optional_double(rope, "mscale", 0.0, 1e3, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto mscale_all_dim,
                            optional_double(rope, "mscale_all_dim", 0.0, 1e3, origin));
  if (attention_factor) {
    result.attention_factor = *attention_factor;
  } else if (mscale.value_or(0.0) != 0.0 && mscale_all_dim.value_or(0.0) != 0.0) {
    result.attention_factor =
        yarn_mscale(result.factor, *mscale) / yarn_mscale(result.factor, *mscale_all_dim);
  } else {
    result.attention_factor = yarn_mscale(result.factor, 1.0);
  }
  return {};
}

/// Reads `rope_parameters` (newer files, with rope_theta inside) or `rope_theta` + `rope_scaling`.
inline Status read_rope(const Json& config, std::string_view origin, BackboneConfig& result) {
  const Json* parameters = find_json(config, "rope_parameters");
  const std::string_view field = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Json* rope = parameters != nullptr ? parameters : find_json(config, "rope_scaling");
  const Json empty = Json::object();
  if (rope == nullptr) rope = &empty;
  if (!rope->is_object()) {
    return invalid_file(field_error(origin, field, describe(*rope), "an object or null"));
  }
  const std::string where = std::string(origin) + ": " + std::string(field);

  constexpr double kMaxTheta = ConfigLimits::kMaxRopeTheta;
  constexpr double kMaxFactor = ConfigLimits::kMaxRopeFactor;
  CHUNKLLM_ASSIGN_OR_RETURN(auto theta,
                            optional_double(*rope, "rope_theta", 1.0, kMaxTheta, where));
  if (!theta) {
    CHUNKLLM_ASSIGN_OR_RETURN(theta, optional_double(config, "rope_theta", 1.0, kMaxTheta, origin));
  }
  result.rope_theta = theta.value_or(10000.0);
  for (const Json* json : {&config, rope}) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto share,
                              optional_double(*json, "partial_rotary_factor", 0.0, 1.0, origin));
    if (share.value_or(1.0) != 1.0) {
      return unsupported(
          field_error(origin, "partial_rotary_factor", number_text(*share), "1 or none"));
    }
  }

  CHUNKLLM_ASSIGN_OR_RETURN(auto type, optional_string(*rope, "rope_type", where));
  if (!type) {
    CHUNKLLM_ASSIGN_OR_RETURN(type, optional_string(*rope, "type", where));
  }
  RopeScaling& scaling = result.rope_scaling;
  if (!type) {
    for (const auto& item : rope->items()) {
      if (item.value().is_object()) {
        return unsupported(where + ": has settings by layer type ('" + printable(item.key()) +
                           "'), supported is one set for all layers");
      }
      if (item.key() != "rope_theta" && item.key() != "partial_rotary_factor") {
        return invalid_file(field_error(where, "rope_type", "missing", kSupportedRopeTypes));
      }
    }
    return {};
  }
  if (*type == "default") return {};
  if (*type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
  } else if (*type == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
  } else if (*type == "yarn") {
    scaling.kind = RopeScaling::Kind::kYarn;
  } else {
    return unsupported(
        field_error(where, "rope_type", "\"" + printable(*type) + "\"", kSupportedRopeTypes));
  }

  // As the reference: beside rope_parameters, else inside, else the model's own window.
  constexpr auto kMaxContext = static_cast<double>(ConfigLimits::kMaxContextLength);
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  CHUNKLLM_ASSIGN_OR_RETURN(auto original,
                            optional_double(config, kOriginal, 1, kMaxContext, origin));
  if (!original) {
    CHUNKLLM_ASSIGN_OR_RETURN(original, optional_double(*rope, kOriginal, 1, kMaxContext, where));
  }
  const auto context_length = static_cast<double>(result.context_length);
  scaling.original_context_length = original.value_or(context_length);
  if (scaling.kind == RopeScaling::Kind::kYarn && find_json(*rope, "factor") == nullptr &&
      original) {
    scaling.factor = context_length / *original;
  } else {
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.factor,
                              require_double(*rope, "factor", 1.0 / kMaxFactor, kMaxFactor, where));
  }
  if (scaling.kind == RopeScaling::Kind::kLlama3) {
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.low_freq_factor,
                              require_double(*rope, "low_freq_factor", 1e-6, 1e6, where));
    CHUNKLLM_ASSIGN_OR_RETURN(scaling.high_freq_factor,
                              require_double(*rope, "high_freq_factor", 1e-6, 1e6, where));
  }
  return scaling.kind == RopeScaling::Kind::kYarn ? read_yarn(*rope, where, scaling) : Status();
}

/// Which layers see a window only, by the rules of each architecture's reference configuration.
inline Status read_windows(const Json& config, std::string_view origin, BackboneConfig& result) {
  constexpr std::int64_t kDefaultWindow = 4096;
  const auto num_layers = static_cast<std::size_t>(result.num_layers);
  result.sliding_window.assign(num_layers, 0);
  if (result.architecture == Architecture::kLlama) return {};
  CHUNKLLM_ASSIGN_OR_RETURN(
      const auto given,
      optional_int(config, "sliding_window", 1, ConfigLimits::kMaxContextLength, origin));
  // An explicit null means no window; a missing key means the reference's default.
  std::int64_t window = given.value_or(config.contains("sliding_window") ? 0 : kDefaultWindow);
  if (result.architecture == Architecture::kMistral) {
    result.sliding_window.assign(num_layers, window);
    return {};
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto use, optional_bool(config, "use_sliding_window", origin));
  if (!use.value_or(false)) window = 0;
  if (const Json* types = find_json(config, "layer_types")) {
    const auto* list = types->get_ptr<const Json::array_t*>();
    if (list == nullptr || list->size() != num_layers) {
      return invalid_file(field_error(origin, "layer_types", describe(*types),
                                      "a list of " + std::to_string(num_layers) + " names"));
    }
    for (std::size_t i = 0; i < num_layers; ++i) {
      const std::string* type = (*list)[i].get_ptr<const Json::string_t*>();
      const bool is_sliding = type != nullptr && *type == "sliding_attention";
      if (!is_sliding && (type == nullptr || *type != "full_attention")) {
        return unsupported(field_error(origin, "layer_types", describe((*list)[i]),
                                       "\"full_attention\" or \"sliding_attention\""));
      }
      if (is_sliding && window == 0) {
        return invalid_file(field_error(origin, "layer_types", describe((*list)[i]),
                                        "\"full_attention\", as sliding_window is off"));
      }
      if (is_sliding) result.sliding_window[i] = window;
    }
    return {};
  }
  constexpr std::int64_t kDefaultMaxWindowLayers = 28;
  CHUNKLLM_ASSIGN_OR_RETURN(
      const auto max_window_layers,
      optional_int(config, "max_window_layers", 0, ConfigLimits::kMaxLayers, origin));
  for (std::size_t i = 0; i < num_layers; ++i) {
    // The name misleads: the layers from this one on have the window.
    if (static_cast<std::int64_t>(i) >= max_window_layers.value_or(kDefaultMaxWindowLayers)) {
      result.sliding_window[i] = window;
    }
  }
  return {};
}

/// One id, a list of ids, or null.
inline Result<std::vector<std::int64_t>> token_ids(const Json& config, std::string_view key,
                                                   std::int64_t vocab_size,
                                                   std::string_view origin) {
  constexpr std::size_t kMaxIds = 1024;
  std::vector<std::int64_t> ids;
  const Json* value = find_json(config, key);
  const auto* list = value == nullptr ? nullptr : value->get_ptr<const Json::array_t*>();
  if (list == nullptr) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto id, optional_int(config, key, 0, vocab_size - 1, origin));
    if (id) ids.push_back(*id);
    return ids;
  }
  for (const Json& element : *list) {
    const auto* id = element.get_ptr<const Json::number_unsigned_t*>();
    if (id == nullptr || *id >= static_cast<std::uint64_t>(vocab_size) || ids.size() == kMaxIds) {
      return invalid_file(field_error(origin, key, describe(element) + " in a list",
                                      "at most " + std::to_string(kMaxIds) + " ids in [0, " +
                                          std::to_string(vocab_size - 1) + "]"));
    }
    ids.push_back(static_cast<std::int64_t>(*id));
  }
  return ids;
}

}  // namespace detail

/// Reads a Hugging Face `config.json` of a Llama, Qwen2, Qwen3 or Mistral model.
///
/// Defaults of absent keys are those of the transformers library. RoPE settings are read in the
/// old spelling (`rope_theta` + `rope_scaling` with `type` or `rope_type`) and the new one
/// (`rope_parameters`); yarn's attention factor is resolved to a number.
///
/// \param maybe_generation_config  `generation_config.json`, or null; its begin and end tokens win
/// \param origin                   the file's name, for messages
/// Errors: kUnsupported for another architecture, activation, or RoPE type, naming those that are
/// supported; kInvalidFile for a missing, mistyped or impossible field. The result has passed
/// `validate`.
inline Result<BackboneConfig> backbone_config_from_json(const Json& config,
                                                        const Json* maybe_generation_config,
                                                        std::string_view origin) {
  if (!config.is_object()) {
    return invalid_file(std::string(origin) + ": is " + describe(config) +
                        ", expected a JSON object");
  }
  BackboneConfig result;
  CHUNKLLM_ASSIGN_OR_RETURN(result.architecture, detail::architecture_from_json(config, origin));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_shapes(config, origin, result));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_layer_options(config, origin, result));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_rope(config, origin, result));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_windows(config, origin, result));
  const auto ids_of = [&](std::string_view key) {
    const bool overridden =
        maybe_generation_config != nullptr && find_json(*maybe_generation_config, key) != nullptr;
    if (!overridden) return detail::token_ids(config, key, result.vocab_size, origin);
    return detail::token_ids(*maybe_generation_config, key, result.vocab_size,
                             std::string(origin) + " (generation_config.json)");
  };
  CHUNKLLM_ASSIGN_OR_RETURN(result.eos_token_ids, ids_of("eos_token_id"));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int64_t> bos, ids_of("bos_token_id"));
  if (!bos.empty()) result.bos_token_id = bos.front();
  CHUNKLLM_RETURN_IF_ERROR(validate(result, origin));
  return result;
}

}  // namespace chunkllm
