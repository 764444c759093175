// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// Bounds far above any model in use and low enough that products of two of them, in bytes, fit
/// 64 bits.
struct ConfigLimits {
  static constexpr std::int64_t kMaxLayers = 1024;
  static constexpr std::int64_t kMaxHiddenSize = 1 << 17;
  static constexpr std::int64_t kMaxIntermediateSize = 1 << 20;
  static constexpr std::int64_t kMaxHeads = 4096;
  static constexpr std::int64_t kMaxHeadDim = 512;
  static constexpr std::int64_t kMaxHeadRatio = 128;  ///< query heads a key-value head
  static constexpr std::int64_t kMaxVocabSize = 1 << 24;
  static constexpr std::int64_t kMaxContextLength = (std::int64_t{1} << 31) - 1;
  static constexpr double kMaxRopeTheta = 1e15;
  static constexpr double kMaxRopeFactor = 1e6;
};

namespace detail {

inline Status check_int(std::string_view origin, std::string_view field, std::int64_t value,
                        std::int64_t min, std::int64_t max) {
  if (value >= min && value <= max) return {};
  return invalid_file(
      field_error(origin, field, std::to_string(value),
                  "an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]"));
}

/// NaN fails: the comparison is written so that only a value inside passes.
inline Status check_double(std::string_view origin, std::string_view field, double value,
                           double min, double max) {
  if (value >= min && value <= max) return {};
  return invalid_file(
      field_error(origin, field, number_text(value),
                  "a number in [" + number_text(min) + ", " + number_text(max) + "]"));
}

inline Status validate_shapes(const BackboneConfig& config, std::string_view origin) {
  using Limits = ConfigLimits;
  CHUNKLLM_RETURN_IF_ERROR(
      check_int(origin, "num_layers", config.num_layers, 1, Limits::kMaxLayers));
  CHUNKLLM_RETURN_IF_ERROR(
      check_int(origin, "hidden_size", config.hidden_size, 1, Limits::kMaxHiddenSize));
  CHUNKLLM_RETURN_IF_ERROR(check_int(origin, "intermediate_size", config.intermediate_size, 1,
                                     Limits::kMaxIntermediateSize));
  CHUNKLLM_RETURN_IF_ERROR(check_int(origin, "num_heads", config.num_heads, 1, Limits::kMaxHeads));
  CHUNKLLM_RETURN_IF_ERROR(
      check_int(origin, "num_kv_heads", config.num_kv_heads, 1, config.num_heads));
  if (config.num_heads % config.num_kv_heads != 0) {
    return invalid_file(
        field_error(origin, "num_kv_heads", std::to_string(config.num_kv_heads),
                    "a divisor of the " + std::to_string(config.num_heads) + " query heads"));
  }
  if (config.num_heads / config.num_kv_heads > Limits::kMaxHeadRatio) {
    return invalid_file(field_error(origin, "num_kv_heads", std::to_string(config.num_kv_heads),
                                    "at least one for every " +
                                        std::to_string(Limits::kMaxHeadRatio) + " of the " +
                                        std::to_string(config.num_heads) + " query heads"));
  }
  CHUNKLLM_RETURN_IF_ERROR(check_int(origin, "head_dim", config.head_dim, 2, Limits::kMaxHeadDim));
  if (config.head_dim % 2 != 0) {
    return invalid_file(field_error(origin, "head_dim", std::to_string(config.head_dim),
                                    "an even number (rotary embeddings turn pairs)"));
  }
  CHUNKLLM_RETURN_IF_ERROR(
      check_int(origin, "vocab_size", config.vocab_size, 1, Limits::kMaxVocabSize));
  return check_int(origin, "context_length", config.context_length, 1, Limits::kMaxContextLength);
}

inline Status validate_rope(const BackboneConfig& config, std::string_view origin) {
  using Limits = ConfigLimits;
  const RopeScaling& rope = config.rope_scaling;
  // yarn divides by log(theta).
  CHUNKLLM_RETURN_IF_ERROR(
      check_double(origin, "rope_theta", config.rope_theta, 1.0 + 1e-6, Limits::kMaxRopeTheta));
  CHUNKLLM_RETURN_IF_ERROR(check_double(origin, "rope_scaling.factor", rope.factor,
                                        1.0 / Limits::kMaxRopeFactor, Limits::kMaxRopeFactor));
  CHUNKLLM_RETURN_IF_ERROR(
      check_double(origin, "rope_scaling.attention_factor", rope.attention_factor, 1e-3, 1e3));
  if (rope.kind == RopeScaling::Kind::kLlama3 || rope.kind == RopeScaling::Kind::kYarn) {
    CHUNKLLM_RETURN_IF_ERROR(check_double(origin, "rope_scaling.original_max_position_embeddings",
                                          rope.original_context_length, 1.0,
                                          static_cast<double>(Limits::kMaxContextLength)));
  }
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    CHUNKLLM_RETURN_IF_ERROR(
        check_double(origin, "rope_scaling.low_freq_factor", rope.low_freq_factor, 1e-6, 1e6));
    CHUNKLLM_RETURN_IF_ERROR(
        check_double(origin, "rope_scaling.high_freq_factor", rope.high_freq_factor, 1e-6, 1e6));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return invalid_file(
          field_error(origin, "rope_scaling.high_freq_factor", number_text(rope.high_freq_factor),
                      "more than low_freq_factor " + number_text(rope.low_freq_factor)));
    }
  }
  if (rope.kind == RopeScaling::Kind::kYarn) {
    CHUNKLLM_RETURN_IF_ERROR(
        check_double(origin, "rope_scaling.beta_fast", rope.beta_fast, 1e-6, 1e6));
    CHUNKLLM_RETURN_IF_ERROR(
        check_double(origin, "rope_scaling.beta_slow", rope.beta_slow, 1e-6, 1e6));
    if (rope.beta_fast <= rope.beta_slow) {
      return invalid_file(field_error(origin, "rope_scaling.beta_fast", number_text(rope.beta_fast),
                                      "more than beta_slow " + number_text(rope.beta_slow)));
    }
  }
  const std::size_t num_divisors = config.rope_frequency_divisors.size();
  if (num_divisors != 0 && num_divisors != static_cast<std::size_t>(config.head_dim / 2)) {
    return invalid_file(field_error(origin, "rope_frequency_divisors",
                                    std::to_string(num_divisors) + " values",
                                    std::to_string(config.head_dim / 2) + " (head_dim / 2)"));
  }
  for (const float divisor : config.rope_frequency_divisors) {
    CHUNKLLM_RETURN_IF_ERROR(
        check_double(origin, "rope_frequency_divisors", static_cast<double>(divisor), 1e-6, 1e6));
  }
  return {};
}

}  // namespace detail

/// Checks that a backbone of this configuration can be built: sizes positive and within
/// `ConfigLimits`, heads that divide and are not too many a key-value head, an even head_dim,
/// finite constants, token ids in the vocabulary.
///
/// \param origin  the file the configuration came from, for messages
/// Errors: kInvalidFile, naming the field, its value and what was expected.
inline Status validate(const BackboneConfig& config, std::string_view origin) {
  CHUNKLLM_RETURN_IF_ERROR(detail::validate_shapes(config, origin));
  CHUNKLLM_RETURN_IF_ERROR(detail::validate_rope(config, origin));
  CHUNKLLM_RETURN_IF_ERROR(
      detail::check_double(origin, "rms_norm_eps", config.rms_norm_eps, 1e-30, 1.0));
  if (config.sliding_window.size() != static_cast<std::size_t>(config.num_layers)) {
    return invalid_file(detail::field_error(
        origin, "sliding_window", std::to_string(config.sliding_window.size()) + " values",
        std::to_string(config.num_layers) + ", one for each layer"));
  }
  for (const std::int64_t window : config.sliding_window) {
    CHUNKLLM_RETURN_IF_ERROR(
        detail::check_int(origin, "sliding_window", window, 0, ConfigLimits::kMaxContextLength));
  }
  CHUNKLLM_RETURN_IF_ERROR(
      detail::check_int(origin, "bos_token_id", config.bos_token_id, -1, config.vocab_size - 1));
  for (const std::int64_t id : config.eos_token_ids) {
    CHUNKLLM_RETURN_IF_ERROR(
        detail::check_int(origin, "eos_token_id", id, 0, config.vocab_size - 1));
  }
  return {};
}

}  // namespace chunkllm
