// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/adapter_file.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/safetensors_writer.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// What `AdapterFile::model` says of a model.
inline AdapterModel describe_adapter_model(const BackboneConfig& config, std::string fingerprint) {
  AdapterModel model;
  model.fingerprint = std::move(fingerprint);
  model.architecture = to_string(config.architecture);
  model.num_layers = config.num_layers;
  model.hidden_size = config.hidden_size;
  model.num_heads = config.num_heads;
  model.num_kv_heads = config.num_kv_heads;
  model.head_dim = config.head_dim;
  model.vocab_size = config.vocab_size;
  return model;
}

namespace detail {

/// Gathers an adapter file's tensors in their element type and its metadata.
class AdapterTensors {
 public:
  explicit AdapterTensors(DType dtype) : dtype_(dtype) {}

  /// Errors: kInvalidArgument where the values do not fill the shape or are not finite, before or
  /// after rounding.
  Status add(std::string name, std::vector<std::int64_t> shape, std::span<const float> values) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    if (count != values.size()) {
      return invalid_argument("adapter tensor '" + name + "' has " + std::to_string(values.size()) +
                              " values, expected " + std::to_string(count));
    }
    std::vector<std::byte>& bytes = memory_.emplace_back();
    bytes.resize(count * dtype_traits(dtype_).block_bytes);
    for (std::size_t i = 0; i < count; ++i) {
      if (!std::isfinite(store(bytes.data(), i, values[i]))) {
        return invalid_argument("adapter tensor '" + name + "' is not finite in " +
                                std::string(dtype_traits(dtype_).name) + " at element " +
                                std::to_string(i));
      }
    }
    tensors_.push_back({std::move(name), dtype_, std::move(shape), bytes});
    return {};
  }

  [[nodiscard]] std::span<const SafetensorsTensor> tensors() const { return tensors_; }

 private:
  /// Writes element i and returns what it became.
  [[nodiscard]] float store(std::byte* bytes, std::size_t i, float value) const {
    switch (dtype_) {
      case DType::kF16: return store_as(bytes, i, to_f16(value));
      case DType::kBF16: return store_as(bytes, i, to_bf16(value));
      default: return store_as(bytes, i, value);
    }
  }
  template <typename T>
  static float store_as(std::byte* bytes, std::size_t i, T value) {
    std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
    return to_f32(value);
  }

  DType dtype_;
  std::deque<std::vector<std::byte>> memory_;
  std::vector<SafetensorsTensor> tensors_;
};

/// Refuses what `load_adapter_file` would not take back.
inline Status check_adapter_numbers(const AdapterFile& file) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t low,
                        std::int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                            std::to_string(low) + " to " + std::to_string(high));
  };
  const auto check_share = [](const char* name, float value) -> Status {
    if (value >= 0.0F && value <= 1.0F) return {};
    return invalid_argument(std::string(name) + " is " + number_text(static_cast<double>(value)) +
                            ", expected 0 to 1");
  };
  const AdapterModel& model = file.model;
  if (!is_fingerprint(model.fingerprint)) {
    return invalid_argument("model.fingerprint is \"" + printable(model.fingerprint) +
                            "\", expected 1 to 128 printable characters without spaces");
  }
  CHUNKLLM_RETURN_IF_ERROR(check("model.num_layers", model.num_layers, 1, kMaxAdapterLayers));
  CHUNKLLM_RETURN_IF_ERROR(check("model.hidden_size", model.hidden_size, 1, kMaxAdapterWidth));
  CHUNKLLM_RETURN_IF_ERROR(check("model.num_heads", model.num_heads, 1, kMaxAdapterHeads));
  CHUNKLLM_RETURN_IF_ERROR(check("model.num_kv_heads", model.num_kv_heads, 1, kMaxAdapterHeads));
  CHUNKLLM_RETURN_IF_ERROR(check("model.head_dim", model.head_dim, 1, kMaxAdapterKeyDim));
  CHUNKLLM_RETURN_IF_ERROR(check("model.vocab_size", model.vocab_size, 1, kMaxAdapterVocab));
  CHUNKLLM_RETURN_IF_ERROR(check("guards.min_len", file.guards.min_len, 1, kMaxAdapterMinLen));
  CHUNKLLM_RETURN_IF_ERROR(
      check("guards.max_len", file.guards.max_len, file.guards.min_len, kMaxAdapterMaxLen));
  if (file.maybe_chunk_adapter != nullptr) {
    CHUNKLLM_RETURN_IF_ERROR(
        check_share("chunk_adapter.threshold", file.maybe_chunk_adapter->threshold));
  }
  if (file.maybe_qk_adapter == nullptr) return {};
  const ScorerShape shape = file.maybe_qk_adapter->shape();
  CHUNKLLM_RETURN_IF_ERROR(validate(shape));
  CHUNKLLM_RETURN_IF_ERROR(check("qk_adapter.num_heads", shape.num_heads, 1, kMaxAdapterHeads));
  CHUNKLLM_RETURN_IF_ERROR(check("qk_adapter.key_dim", shape.key_dim, 1, kMaxAdapterKeyDim));
  return check_share("qk_adapter.null_threshold", file.null_threshold);
}

inline Status add_chunk_adapter(const AdapterFile& file, AdapterTensors& tensors,
                                std::map<std::string, std::string>& metadata) {
  const ChunkAdapter& adapter = *file.maybe_chunk_adapter;
  CHUNKLLM_RETURN_IF_ERROR(
      tensors.add("chunk_adapter.weight", {file.model.hidden_size}, adapter.weight));
  CHUNKLLM_RETURN_IF_ERROR(tensors.add("chunk_adapter.bias", {1}, {&adapter.bias, 1}));
  metadata["chunk_adapter.threshold"] = number_text(static_cast<double>(adapter.threshold));
  return {};
}

inline Status add_qk_adapter(const AdapterFile& file, AdapterTensors& tensors,
                             std::map<std::string, std::string>& metadata) {
  const QkAdapter& adapter = *file.maybe_qk_adapter;
  const ScorerShape shape = adapter.shape();
  if (static_cast<std::int64_t>(adapter.layers().size()) != file.model.num_layers) {
    return invalid_argument("QK Adapters of " + std::to_string(adapter.layers().size()) +
                            " layers for a model of " + std::to_string(file.model.num_layers));
  }
  for (std::int64_t l = 0; l < file.model.num_layers; ++l) {
    const QkAdapterLayer& layer = adapter.layers()[static_cast<std::size_t>(l)];
    const QkAdapterLayer& first = adapter.layers().front();
    if (layer.distance_bias.empty() != first.distance_bias.empty() ||
        layer.null_weight.empty() != first.null_weight.empty() ||
        layer.null_bias.empty() != first.null_bias.empty()) {
      return invalid_argument("the QK Adapter of layer " + std::to_string(l) +
                              " has other parts than that of layer 0");
    }
    const auto add = [&](std::string_view part, std::vector<std::int64_t> sizes,
                         const std::vector<float>& values) {
      return tensors.add(adapter_layer_name(l, part), std::move(sizes), values);
    };
    const std::int64_t hidden = file.model.hidden_size;
    CHUNKLLM_RETURN_IF_ERROR(
        add("query.weight", {shape.num_heads * shape.key_dim, hidden}, layer.query_weight));
    CHUNKLLM_RETURN_IF_ERROR(add("key.weight", {shape.key_size(), hidden}, layer.key_weight));
    if (!layer.distance_bias.empty()) {
      CHUNKLLM_RETURN_IF_ERROR(
          add("distance_bias", {shape.num_heads, kNumDistanceBins}, layer.distance_bias));
    }
    if (!layer.null_weight.empty()) {
      CHUNKLLM_RETURN_IF_ERROR(add("null.weight", {shape.num_heads, hidden}, layer.null_weight));
      CHUNKLLM_RETURN_IF_ERROR(add("null.bias", {shape.num_heads}, layer.null_bias));
    }
  }
  metadata["qk_adapter.num_heads"] = std::to_string(shape.num_heads);
  metadata["qk_adapter.num_key_heads"] = std::to_string(shape.num_key_heads);
  metadata["qk_adapter.key_dim"] = std::to_string(shape.key_dim);
  metadata["qk_adapter.pooling"] = adapter.pooling() == KeyPooling::kMean ? "mean" : "end";
  metadata["qk_adapter.log_length"] = shape.adds_log_length ? "true" : "false";
  metadata["qk_adapter.head_join"] = file.head_join == HeadJoin::kMax ? "max" : "mean";
  metadata["qk_adapter.null_threshold"] = number_text(static_cast<double>(file.null_threshold));
  return {};
}

}  // namespace detail

/// Writes an adapter file atomically. Equal arguments give equal bytes.
///
/// \param dtype  kF32, kF16 or kBF16, of all tensors
/// \param notes  further metadata, such as how the adapters were trained; no key may be one of the
///               format's
/// Errors: kUnsupported for another `dtype`; kInvalidArgument where a tensor does not fill its
///         shape, a value is not finite in `dtype` or a number lies outside what a reader takes,
///         where layers differ in what they have, there is nothing to write, or a note takes a key
///         of the format; those of `write_safetensors`. Nothing is written then.
inline Status write_adapter_file(const std::string& path, const AdapterFile& file, DType dtype,
                                 const std::map<std::string, std::string>& notes = {}) {
  if (file.maybe_chunk_adapter == nullptr && file.maybe_qk_adapter == nullptr) {
    return invalid_argument(path + ": there is no adapter to write");
  }
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
    return unsupported(path + ": adapters are written as f32, f16 or bf16");
  }
  CHUNKLLM_RETURN_IF_ERROR(detail::check_adapter_numbers(file).with_context(path));
  std::map<std::string, std::string> metadata = {
      {"format", std::string(detail::kAdapterFormat)},
      {"format_version", std::to_string(detail::kAdapterVersion)},
      {"model.fingerprint", file.model.fingerprint},
      {"model.architecture", file.model.architecture},
      {"model.num_layers", std::to_string(file.model.num_layers)},
      {"model.hidden_size", std::to_string(file.model.hidden_size)},
      {"model.num_heads", std::to_string(file.model.num_heads)},
      {"model.num_kv_heads", std::to_string(file.model.num_kv_heads)},
      {"model.head_dim", std::to_string(file.model.head_dim)},
      {"model.vocab_size", std::to_string(file.model.vocab_size)},
      {"guards.min_len", std::to_string(file.guards.min_len)},
      {"guards.max_len", std::to_string(file.guards.max_len)}};
  detail::AdapterTensors tensors(dtype);
  if (file.maybe_chunk_adapter != nullptr) {
    CHUNKLLM_RETURN_IF_ERROR(detail::add_chunk_adapter(file, tensors, metadata).with_context(path));
  }
  if (file.maybe_qk_adapter != nullptr) {
    CHUNKLLM_RETURN_IF_ERROR(detail::add_qk_adapter(file, tensors, metadata).with_context(path));
  }
  for (const auto& [key, value] : notes) {
    if (!metadata.emplace(key, value).second) {
      return invalid_argument(path + ": note '" + detail::printable(key) +
                              "' is a field of the format");
    }
  }
  return write_safetensors(path, tensors.tensors(), metadata);
}

}  // namespace chunkllm
