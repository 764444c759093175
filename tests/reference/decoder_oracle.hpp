// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/model/backbone_config.hpp"

/// A decoder of the Llama family written down as plainly as possible, in double precision: the
/// specification that the library's own forward pass is tested against.
namespace chunkllm::oracle {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // rows

/// Hugging Face's tensors by name, row-major.
using Tensors = std::map<std::string, Vector>;

inline Vector multiply(const Vector& weight, const Vector& x) {
  Vector y(weight.size() / x.size(), 0.0);
  for (std::size_t row = 0; row < y.size(); ++row) {
    for (std::size_t i = 0; i < x.size(); ++i) y[row] += weight[row * x.size() + i] * x[i];
  }
  return y;
}

/// W x, plus the bias where the model has one.
inline Vector project(const Tensors& tensors, const std::string& name, const Vector& x) {
  Vector y = multiply(tensors.at(name + ".weight"), x);
  const auto bias = tensors.find(name + ".bias");
  if (bias == tensors.end()) return y;
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias->second[i];
  return y;
}

inline Vector rms_norm(const Vector& x, const Vector& weight, double eps) {
  double sum = 0.0;
  for (const double value : x) sum += value * value;
  const double root = std::sqrt(sum / static_cast<double>(x.size()) + eps);
  Vector y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(weight[i] * x[i] / root);
  return y;
}

/// The `head`-th slice of `head_dim` values.
inline Vector head_of(const Vector& x, std::int64_t head, std::int64_t head_dim) {
  return {x.begin() + head * head_dim, x.begin() + (head + 1) * head_dim};
}

/// Angle that dimensions i and i + head_dim / 2 turn by in one token.
inline double rope_frequency(const BackboneConfig& config, std::int64_t i) {
  const RopeScaling& rope = config.rope_scaling;
  const auto dim = static_cast<double>(config.head_dim);
  const double pi = std::numbers::pi;
  double f = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / dim);
  if (rope.kind == RopeScaling::Kind::kLinear) f /= rope.factor;
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    const double wavelength = 2.0 * pi / f;
    if (wavelength > rope.original_context_length / rope.low_freq_factor) {
      f /= rope.factor;
    } else if (wavelength >= rope.original_context_length / rope.high_freq_factor) {
      const double t = (rope.original_context_length / wavelength - rope.low_freq_factor) /
                       (rope.high_freq_factor - rope.low_freq_factor);
      f = (1.0 - t) * f / rope.factor + t * f;
    }
  }
  if (rope.kind == RopeScaling::Kind::kYarn) {
    const auto bound = [&](double rotations) {
      return dim * std::log(rope.original_context_length / (2.0 * pi * rotations)) /
             (2.0 * std::log(config.rope_theta));
    };
    double low = bound(rope.beta_fast);
    double high = bound(rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::clamp(low, 0.0, dim - 1.0);
    high = std::clamp(high, 0.0, dim - 1.0);
    if (low == high) high += 0.001;
    const double g = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    f = g * f / rope.factor + (1.0 - g) * f;
  }
  if (!config.rope_frequency_divisors.empty()) {
    f /= static_cast<double>(config.rope_frequency_divisors[static_cast<std::size_t>(i)]);
  }
  return f;
}

inline Vector rotate(const Vector& head, std::int64_t position, const BackboneConfig& config) {
  const auto half = static_cast<std::int64_t>(head.size() / 2);
  Vector out = head;
  for (std::int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * rope_frequency(config, i);
    const double c = std::cos(angle) * config.rope_scaling.attention_factor;
    const double s = std::sin(angle) * config.rope_scaling.attention_factor;
    const double a = head[static_cast<std::size_t>(i)];
    const double b = head[static_cast<std::size_t>(i + half)];
    out[static_cast<std::size_t>(i)] = a * c - b * s;
    out[static_cast<std::size_t>(i + half)] = b * c + a * s;
  }
  return out;
}

/// softmax(q k / sqrt(d)) v over the given keys.
inline Vector attend(const Vector& q, const Matrix& keys, const Matrix& values) {
  Vector scores;
  for (const Vector& key : keys) {
    double dot = 0.0;
    for (std::size_t i = 0; i < q.size(); ++i) dot += q[i] * key[i];
    scores.push_back(dot / std::sqrt(static_cast<double>(q.size())));
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (double& score : scores) sum += score = std::exp(score - largest);
  Vector out(values[0].size(), 0.0);
  for (std::size_t t = 0; t < values.size(); ++t) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += scores[t] / sum * values[t][i];
  }
  return out;
}

/// One layer's attention for all tokens at once; `normed` holds its inputs.
inline Matrix attention(const BackboneConfig& config, const Tensors& tensors, std::int64_t layer,
                        const Matrix& normed) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
  const auto rotated_head = [&](const Vector& x, std::int64_t head, std::int64_t position,
                                const std::string& norm) {
    Vector values = head_of(x, head, config.head_dim);
    if (config.qk_norm) {
      values = rms_norm(values, tensors.at(prefix + norm), config.rms_norm_eps);
    }
    return rotate(values, position, config);
  };
  const auto num_tokens = static_cast<std::int64_t>(normed.size());
  const std::int64_t window = config.sliding_window[static_cast<std::size_t>(layer)];
  Matrix attended(normed.size());
  for (std::int64_t head = 0; head < config.num_heads; ++head) {
    const std::int64_t kv_head = head * config.num_kv_heads / config.num_heads;
    Matrix keys;
    Matrix values;
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const Vector& x = normed[static_cast<std::size_t>(t)];
      keys.push_back(
          rotated_head(project(tensors, prefix + "k_proj", x), kv_head, t, "k_norm.weight"));
      values.push_back(head_of(project(tensors, prefix + "v_proj", x), kv_head, config.head_dim));
      const Vector q =
          rotated_head(project(tensors, prefix + "q_proj", x), head, t, "q_norm.weight");
      const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, t + 1 - window) : 0;
      const Vector out = attend(q, Matrix(keys.begin() + first, keys.end()),
                                Matrix(values.begin() + first, values.end()));
      Vector& row = attended[static_cast<std::size_t>(t)];
      row.insert(row.end(), out.begin(), out.end());
    }
  }
  return attended;
}

inline void add(Vector& x, const Vector& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

inline Vector gated_mlp(const Tensors& tensors, const std::string& prefix, const Vector& x) {
  Vector inner = project(tensors, prefix + "gate_proj", x);
  const Vector up = project(tensors, prefix + "up_proj", x);
  for (std::size_t i = 0; i < inner.size(); ++i) {
    inner[i] = inner[i] / (1.0 + std::exp(-inner[i])) * up[i];
  }
  return project(tensors, prefix + "down_proj", inner);
}

/// Logits of every token of a text.
inline Matrix decoder_logits(const BackboneConfig& config, const Tensors& tensors,
                             std::span<const std::int32_t> ids) {
  const Vector& embedding = tensors.at("model.embed_tokens.weight");
  Matrix hidden;
  for (const std::int32_t id : ids) {
    hidden.emplace_back(embedding.begin() + id * config.hidden_size,
                        embedding.begin() + (id + 1) * config.hidden_size);
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto norm = [&](const Vector& x, const std::string& name) {
      return rms_norm(x, tensors.at(prefix + name), config.rms_norm_eps);
    };
    Matrix normed;
    for (const Vector& x : hidden) normed.push_back(norm(x, "input_layernorm.weight"));
    const Matrix attended = attention(config, tensors, layer, normed);
    for (std::size_t t = 0; t < hidden.size(); ++t) {
      add(hidden[t], project(tensors, prefix + "self_attn.o_proj", attended[t]));
      add(hidden[t],
          gated_mlp(tensors, prefix + "mlp.", norm(hidden[t], "post_attention_layernorm.weight")));
    }
  }
  const Vector& head = config.tied_embeddings ? embedding : tensors.at("lm_head.weight");
  Matrix logits;
  for (const Vector& x : hidden) {
    logits.push_back(
        multiply(head, rms_norm(x, tensors.at("model.norm.weight"), config.rms_norm_eps)));
  }
  return logits;
}

}  // namespace chunkllm::oracle
