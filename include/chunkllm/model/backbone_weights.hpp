// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/linear.hpp"
#include "chunkllm/model/packed_weights.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm {

/// Where a backbone's tensors come from: `ModelFiles`, or an engine's own memory.
///
///   config            shapes and constants, already checked against each other
///   tensor            bytes of the tensor of this Hugging Face name; a vector has one row
///   qk_rows_permuted  do the query and key projections stand in GGUF's order for adjacent-pair
///                     RoPE (arch llama)?
///   drop_pages        optional: called after each layer, gives resident pages back
template <typename S>
concept TensorSource = requires(const S& source, const std::string& name) {
  { source.config() } -> std::convertible_to<const BackboneConfig&>;
  { source.tensor(name) } -> std::same_as<Result<TensorBytes>>;
  { source.qk_rows_permuted() } -> std::convertible_to<bool>;
};

/// Called with (tensors packed, tensors in all) while a model loads; false stops it.
using LoadProgress = std::function<bool(std::int64_t, std::int64_t)>;

/// Weights of one decoder layer. Biases, where a model has them, live in the `Linear`s.
struct LayerWeights {
  std::vector<float> attention_norm;  ///< [hidden_size]
  Linear qkv;                         ///< three parts: queries, keys, values
  std::vector<float> q_norm;          ///< [head_dim], or empty
  std::vector<float> k_norm;          ///< [head_dim], or empty
  Linear output;                      ///< attention's output projection
  std::vector<float> mlp_norm;        ///< [hidden_size]
  Linear gate_up;                     ///< two parts: gate, up
  Linear down;
};

/// All weights of a decoder, checked against its configuration and packed for `Linear`.
struct BackboneWeights {
  BackboneConfig config;
  Linear embedding;  ///< [vocab_size, hidden_size], read row by row
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  ///< [hidden_size]
  Linear untied_head;             ///< [vocab_size, hidden_size]; without outputs where tied

  /// Maps hidden states to logits; with tied embeddings that is the embedding itself.
  [[nodiscard]] const Linear& head() const {
    return config.tied_embeddings ? embedding : untied_head;
  }

  /// Bytes held by matrices and vectors.
  [[nodiscard]] std::int64_t bytes() const;

  /// Reads and packs every tensor that `source.config()` calls for; others are ignored.
  ///
  /// \param format    how matrices are held; vectors are always f32
  /// \param progress  may be empty
  /// Errors: kNotFound for a missing tensor; kInvalidFile for a wrong shape, a vector with NaN or
  ///         infinity, or a configuration that `validate` refuses; kUnsupported for a `format`
  ///         whose block the rows are no multiple of;
  ///         kInterrupted if `progress` returned false. The message names the tensor.
  /// Cost: reads the files once; holds the packed copy besides them.
  template <TensorSource Source>
  static Result<BackboneWeights> load(const Source& source, WeightFormat format, ThreadPool& pool,
                                      const LoadProgress& progress = {});
};

namespace detail {

/// A matrix of a stack, and where it has one, its bias.
struct WeightPart {
  std::string name;  ///< without ".weight"
  std::int64_t rows = 0;
  bool has_bias = false;
  std::int64_t permuted_heads = 0;  ///< 0: rows stand in the file's order
};

/// A stack whose tensors have been found and checked. Move only: `parts` points to what follows it.
struct WeightStack {
  WeightStack() = default;
  WeightStack(WeightStack&&) = default;
  std::vector<LinearPart> parts;
  std::vector<std::vector<std::int64_t>> orders;
  std::vector<std::vector<float>> biases;
};

/// Reads tensors by name, checks their shapes and counts them for the progress report.
template <TensorSource Source>
class TensorReader {
 public:
  TensorReader(const Source& source, const LoadProgress& progress)
      : source_(source),
        progress_(progress),
        num_tensors_(static_cast<std::int64_t>(expected_tensors(source.config()).size())) {}

  /// Counts the biases; the matrices are `count_tensor`'s once they have been taken.
  Result<WeightStack> stack(std::span<const WeightPart> parts, std::int64_t cols) {
    WeightStack stack;
    stack.orders.resize(parts.size());
    stack.biases.resize(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const WeightPart& part = parts[i];
      const std::string name = part.name + ".weight";
      CHUNKLLM_ASSIGN_OR_RETURN(const TensorBytes weight, checked(name, part.rows, cols));
      std::vector<std::int64_t>& order = stack.orders[i];
      std::vector<float>& bias = stack.biases[i];
      if (part.permuted_heads > 0) order = unpermuted_rows(part.rows, part.permuted_heads);
      if (part.has_bias) {
        CHUNKLLM_ASSIGN_OR_RETURN(bias, vector(part.name + ".bias", part.rows));
        if (part.permuted_heads > 0) bias = reordered(bias, order);
      }
      stack.parts.push_back({weight, order, bias});
    }
    return Result<WeightStack>(std::move(stack));
  }

  Result<std::vector<float>> vector(const std::string& name, std::int64_t size) {
    CHUNKLLM_ASSIGN_OR_RETURN(const TensorBytes tensor, checked(name, 1, size));
    std::vector<float> values(static_cast<std::size_t>(size));
    CHUNKLLM_RETURN_IF_ERROR(
        dequantize_row(tensor, 0, values).with_context("tensor '" + name + "'"));
    const auto wrong = std::find_if(values.begin(), values.end(),
                                    [](float value) { return !std::isfinite(value); });
    if (wrong != values.end()) {
      return invalid_file("tensor '" + name + "' holds NaN or infinity at index " +
                          std::to_string(wrong - values.begin()));
    }
    CHUNKLLM_RETURN_IF_ERROR(count_tensor());
    return values;
  }

  Status count_tensor() {
    ++num_read_;
    if (progress_ && !progress_(num_read_, num_tensors_)) {
      return {StatusCode::kInterrupted, "loading the model was interrupted"};
    }
    return {};
  }

 private:
  Result<TensorBytes> checked(const std::string& name, std::int64_t rows, std::int64_t cols) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const TensorBytes tensor, source_.tensor(name));
    if (tensor.rows != rows || tensor.cols != cols) {
      return invalid_file("tensor '" + name + "' is " + std::to_string(tensor.rows) + " x " +
                          std::to_string(tensor.cols) + ", expected " + std::to_string(rows) +
                          " x " + std::to_string(cols) + " by the model's configuration");
    }
    return tensor;
  }

  // GGUF's rows 2i and 2i + 1 of a head are the original rows i and i + head_dim / 2.
  static std::vector<std::int64_t> unpermuted_rows(std::int64_t rows, std::int64_t num_heads) {
    const std::int64_t head_dim = rows / num_heads;
    std::vector<std::int64_t> order;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t i = row % head_dim;
      const std::int64_t half = head_dim / 2;
      order.push_back(row - i + (i < half ? 2 * i : 2 * (i - half) + 1));
    }
    return order;
  }

  static std::vector<float> reordered(const std::vector<float>& values,
                                      const std::vector<std::int64_t>& order) {
    std::vector<float> out;
    out.reserve(order.size());
    for (const std::int64_t i : order) out.push_back(values[static_cast<std::size_t>(i)]);
    return out;
  }

  const Source& source_;
  const LoadProgress& progress_;
  std::int64_t num_tensors_ = 0;
  std::int64_t num_read_ = 0;
};

/// Packs what it reads for the CPU.
template <TensorSource Source>
class WeightReader {
 public:
  WeightReader(const Source& source, WeightFormat format, ThreadPool& pool,
               const LoadProgress& progress)
      : tensors_(source, progress), format_(format), pool_(pool) {}

  Result<Linear> matrix(std::span<const WeightPart> parts, std::int64_t cols) {
    CHUNKLLM_ASSIGN_OR_RETURN(const WeightStack stack, tensors_.stack(parts, cols));
    Result<Linear> linear = Linear::create(stack.parts, format_, pool_);
    if (!linear.ok()) return linear.status().with_context("tensor '" + parts[0].name + ".weight'");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      CHUNKLLM_RETURN_IF_ERROR(tensors_.count_tensor());
    }
    return linear;
  }

  Result<std::vector<float>> vector(const std::string& name, std::int64_t size) {
    return tensors_.vector(name, size);
  }

 private:
  TensorReader<Source> tensors_;
  WeightFormat format_;
  ThreadPool& pool_;
};

/// \tparam Layer   has the members of `LayerWeights`, of the types that
/// \tparam Reader  makes: `matrix(parts, cols)` and `vector(name, size)`
template <typename Layer, typename Reader, TensorSource Source>
inline Result<Layer> load_layer(Reader& reader, const Source& source, std::int64_t layer) {
  const BackboneConfig& config = source.config();
  const std::string prefix = layer_tensor_name(layer, "");
  const std::string attention = prefix + "self_attn.";
  const std::int64_t hidden = config.hidden_size;
  const bool permuted = source.qk_rows_permuted();
  Layer weights;
  CHUNKLLM_ASSIGN_OR_RETURN(weights.attention_norm,
                            reader.vector(prefix + "input_layernorm.weight", hidden));
  const std::array<WeightPart, 3> qkv = {
      {{attention + "q_proj", config.query_size(), config.qkv_bias,
        permuted ? config.num_heads : 0},
       {attention + "k_proj", config.kv_size(), config.qkv_bias,
        permuted ? config.num_kv_heads : 0},
       {attention + "v_proj", config.kv_size(), config.qkv_bias, 0}}};
  CHUNKLLM_ASSIGN_OR_RETURN(weights.qkv, reader.matrix(qkv, hidden));
  if (config.qk_norm) {
    CHUNKLLM_ASSIGN_OR_RETURN(weights.q_norm,
                              reader.vector(attention + "q_norm.weight", config.head_dim));
    CHUNKLLM_ASSIGN_OR_RETURN(weights.k_norm,
                              reader.vector(attention + "k_norm.weight", config.head_dim));
  }
  const std::array<WeightPart, 1> output = {
      {{attention + "o_proj", hidden, config.output_bias, 0}}};
  CHUNKLLM_ASSIGN_OR_RETURN(weights.output, reader.matrix(output, config.query_size()));
  CHUNKLLM_ASSIGN_OR_RETURN(weights.mlp_norm,
                            reader.vector(prefix + "post_attention_layernorm.weight", hidden));
  const std::array<WeightPart, 2> gate_up = {
      {{prefix + "mlp.gate_proj", config.intermediate_size, config.mlp_bias, 0},
       {prefix + "mlp.up_proj", config.intermediate_size, config.mlp_bias, 0}}};
  CHUNKLLM_ASSIGN_OR_RETURN(weights.gate_up, reader.matrix(gate_up, hidden));
  const std::array<WeightPart, 1> down = {{{prefix + "mlp.down_proj", hidden, config.mlp_bias, 0}}};
  CHUNKLLM_ASSIGN_OR_RETURN(weights.down, reader.matrix(down, config.intermediate_size));
  return Result<Layer>(std::move(weights));
}

/// Fills `weights`, which has the members of `BackboneWeights`; `Reader` as for `load_layer`. The
/// source's configuration has passed `validate`.
template <typename Weights, typename Reader, TensorSource Source>
inline Status load_weights(Weights& weights, Reader& reader, const Source& source) {
  weights.config = source.config();
  const BackboneConfig& config = weights.config;
  using Layer = typename decltype(weights.layers)::value_type;
  const std::array<WeightPart, 1> embedding = {
      {{"model.embed_tokens", config.vocab_size, false, 0}}};
  CHUNKLLM_ASSIGN_OR_RETURN(weights.embedding, reader.matrix(embedding, config.hidden_size));
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    CHUNKLLM_ASSIGN_OR_RETURN(Layer loaded, load_layer<Layer>(reader, source, layer));
    weights.layers.push_back(std::move(loaded));
    // The copy just made replaces the file's pages: without this both would be resident at the end.
    if constexpr (requires { source.drop_pages(); }) source.drop_pages();
  }
  CHUNKLLM_ASSIGN_OR_RETURN(weights.final_norm,
                            reader.vector("model.norm.weight", config.hidden_size));
  if (!config.tied_embeddings) {
    const std::array<WeightPart, 1> head = {{{"lm_head", config.vocab_size, false, 0}}};
    CHUNKLLM_ASSIGN_OR_RETURN(weights.untied_head, reader.matrix(head, config.hidden_size));
  }
  return {};
}

}  // namespace detail

template <TensorSource Source>
inline Result<BackboneWeights> BackboneWeights::load(const Source& source, WeightFormat format,
                                                     ThreadPool& pool,
                                                     const LoadProgress& progress) {
  CHUNKLLM_RETURN_IF_ERROR(validate(source.config(), "model configuration"));
  BackboneWeights weights;
  detail::WeightReader<Source> reader(source, format, pool, progress);
  CHUNKLLM_RETURN_IF_ERROR(detail::load_weights(weights, reader, source));
  return weights;
}

inline std::int64_t BackboneWeights::bytes() const {
  std::int64_t matrices = embedding.weight_bytes() + untied_head.weight_bytes();
  std::size_t values = final_norm.size();
  for (const LayerWeights& layer : layers) {
    for (const Linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      matrices += linear->weight_bytes();
    }
    values += layer.attention_norm.size() + layer.mlp_norm.size() + layer.q_norm.size() +
              layer.k_norm.size();
  }
  return matrices + static_cast<std::int64_t>(values * sizeof(float));
}

}  // namespace chunkllm
