// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/safetensors.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// The backbone that an adapter file was made for.
struct AdapterModel {
  std::string fingerprint;   ///< of the weights, 1 to 128 printable characters without spaces
  std::string architecture;  ///< `to_string(Architecture)`
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
};

/// Trained parts for one frozen model: a Chunk Adapter, QK Adapters for all layers, or both.
///
/// The file is described in docs/adapter_format.md.
struct AdapterFile {
  AdapterModel model;
  std::shared_ptr<const ChunkAdapter> maybe_chunk_adapter;
  std::shared_ptr<const QkAdapter> maybe_qk_adapter;
  ChunkGuards guards;                   ///< of the chunks that both were trained on
  HeadJoin head_join = HeadJoin::kMax;  ///< with QK Adapters
  float null_threshold = 0.0F;          ///< with QK Adapters; `ChunkOptions::threshold`
};

namespace detail {

inline constexpr std::string_view kAdapterFormat = "chunkllm.adapter";
inline constexpr std::int64_t kAdapterVersion = 1;

/// Bounds of what any adapter may ask for; far above real models, far below overflow.
inline constexpr std::int64_t kMaxAdapterLayers = 4096;
inline constexpr std::int64_t kMaxAdapterWidth = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxAdapterHeads = 4096;
inline constexpr std::int64_t kMaxAdapterKeyDim = 4096;
inline constexpr std::int64_t kMaxAdapterVocab = std::int64_t{1} << 31;
inline constexpr std::int64_t kMaxAdapterMinLen = 4096;
inline constexpr std::int64_t kMaxAdapterMaxLen = 65536;

/// 1 to 128 printable characters without spaces.
inline bool is_fingerprint(std::string_view text) {
  const auto is_plain = [](char c) { return c > ' ' && c <= '~'; };
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), is_plain);
}

inline std::string adapter_layer_name(std::int64_t layer, std::string_view part) {
  return "layers." + std::to_string(layer) + "." + std::string(part);
}

/// Reads typed fields and tensors of one file, and remembers which tensors it has read.
class AdapterReader {
 public:
  explicit AdapterReader(const SafetensorsFile& file) : file_(file) {}

  [[nodiscard]] bool has(const std::string& tensor) const { return file_.contains(tensor); }

  [[nodiscard]] Result<std::string> text(const std::string& key) const {
    const auto entry = file_.metadata().find(key);
    if (entry == file_.metadata().end()) {
      return invalid_file(field_error(file_.path(), key, "missing", "a metadata string"));
    }
    return entry->second;
  }

  [[nodiscard]] Result<std::int64_t> integer(const std::string& key, std::int64_t low,
                                             std::int64_t high) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string value, text(key));
    std::int64_t number = 0;
    const char* const end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stop != end || number < low || number > high) {
      return invalid_file(
          field_error(file_.path(), key, quoted(value),
                      "an integer from " + std::to_string(low) + " to " + std::to_string(high)));
    }
    return number;
  }

  /// A number in [0, 1].
  [[nodiscard]] Result<float> share(const std::string& key) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string value, text(key));
    float number = 0.0F;
    const char* const end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stop != end || !(number >= 0.0F && number <= 1.0F)) {
      return invalid_file(field_error(file_.path(), key, quoted(value), "a number from 0 to 1"));
    }
    return number;
  }

  /// One of two words; true for the second.
  [[nodiscard]] Result<bool> either(const std::string& key, std::string_view first,
                                    std::string_view second) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string value, text(key));
    if (value != first && value != second) {
      return invalid_file(field_error(file_.path(), key, quoted(value),
                                      std::string(first) + " or " + std::string(second)));
    }
    return value == second;
  }

  /// All values of a tensor of shape [rows, cols] (or [cols] where `rows` is 0), as f32.
  Result<std::vector<float>> tensor(const std::string& name, std::int64_t rows, std::int64_t cols) {
    CHUNKLLM_ASSIGN_OR_RETURN(const TensorBytes bytes, file_.tensor(name));
    const std::vector<std::int64_t> expected =
        rows == 0 ? std::vector<std::int64_t>{cols} : std::vector<std::int64_t>{rows, cols};
    const std::vector<std::int64_t>& shape = file_.find(name)->shape;
    if (shape != expected) {
      return invalid_file(file_.path() + ": tensor '" + name + "' has shape " + shape_text(shape) +
                          ", expected " + shape_text(expected));
    }
    // The bytes are there already, so the file's size bounds this allocation.
    std::vector<float> values(static_cast<std::size_t>(bytes.rows * bytes.cols));
    for (std::int64_t row = 0; row < bytes.rows; ++row) {
      CHUNKLLM_RETURN_IF_ERROR(dequantize_row(
          bytes, row,
          std::span<float>(values).subspan(static_cast<std::size_t>(row * bytes.cols),
                                           static_cast<std::size_t>(bytes.cols))));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) {
        return invalid_file(file_.path() + ": tensor '" + name + "' holds " +
                            number_text(static_cast<double>(values[i])) + " at element " +
                            std::to_string(i) + ", expected finite numbers");
      }
    }
    read_.insert(name);
    return values;
  }

  [[nodiscard]] Status refuse_unread_tensors() const {
    for (const std::string& name : file_.tensor_names()) {
      if (!read_.contains(name)) {
        return invalid_file(file_.path() + ": tensor '" + printable(name) +
                            "' belongs to no part of an adapter file");
      }
    }
    return {};
  }

  [[nodiscard]] const std::string& path() const { return file_.path(); }

 private:
  static std::string quoted(const std::string& value) { return "\"" + printable(value) + "\""; }
  static std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
      text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    }
    return text + "]";
  }

  const SafetensorsFile& file_;
  std::set<std::string, std::less<>> read_;
};

inline Result<AdapterModel> read_adapter_model(const AdapterReader& reader) {
  AdapterModel model;
  CHUNKLLM_ASSIGN_OR_RETURN(model.fingerprint, reader.text("model.fingerprint"));
  if (!is_fingerprint(model.fingerprint)) {
    return invalid_file(field_error(reader.path(), "model.fingerprint",
                                    "\"" + printable(model.fingerprint) + "\"",
                                    "1 to 128 printable characters without spaces"));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(model.architecture, reader.text("model.architecture"));
  const auto read = [&](const char* key, std::int64_t high, std::int64_t& value) -> Status {
    CHUNKLLM_ASSIGN_OR_RETURN(value, reader.integer(key, 1, high));
    return {};
  };
  CHUNKLLM_RETURN_IF_ERROR(read("model.num_layers", kMaxAdapterLayers, model.num_layers));
  CHUNKLLM_RETURN_IF_ERROR(read("model.hidden_size", kMaxAdapterWidth, model.hidden_size));
  CHUNKLLM_RETURN_IF_ERROR(read("model.num_heads", kMaxAdapterHeads, model.num_heads));
  CHUNKLLM_RETURN_IF_ERROR(read("model.num_kv_heads", kMaxAdapterHeads, model.num_kv_heads));
  CHUNKLLM_RETURN_IF_ERROR(read("model.head_dim", kMaxAdapterKeyDim, model.head_dim));
  CHUNKLLM_RETURN_IF_ERROR(read("model.vocab_size", kMaxAdapterVocab, model.vocab_size));
  return model;
}

inline Result<std::shared_ptr<const ChunkAdapter>> read_chunk_adapter(AdapterReader& reader,
                                                                      std::int64_t hidden_size) {
  auto adapter = std::make_shared<ChunkAdapter>();
  CHUNKLLM_ASSIGN_OR_RETURN(adapter->weight,
                            reader.tensor("chunk_adapter.weight", /*rows=*/0, hidden_size));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<float> bias,
                            reader.tensor("chunk_adapter.bias", /*rows=*/0, 1));
  adapter->bias = bias[0];
  CHUNKLLM_ASSIGN_OR_RETURN(adapter->threshold, reader.share("chunk_adapter.threshold"));
  return std::shared_ptr<const ChunkAdapter>(std::move(adapter));
}

inline Result<std::shared_ptr<const QkAdapter>> read_qk_adapter(AdapterReader& reader,
                                                                const AdapterModel& model) {
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t num_heads,
                            reader.integer("qk_adapter.num_heads", 1, kMaxAdapterHeads));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t num_key_heads,
                            reader.integer("qk_adapter.num_key_heads", 1, num_heads));
  if (num_heads % num_key_heads != 0) {
    return invalid_file(field_error(reader.path(), "qk_adapter.num_key_heads",
                                    std::to_string(num_key_heads),
                                    "a divisor of the " + std::to_string(num_heads) + " heads"));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t key_dim,
                            reader.integer("qk_adapter.key_dim", 1, kMaxAdapterKeyDim));
  CHUNKLLM_ASSIGN_OR_RETURN(const bool takes_end,
                            reader.either("qk_adapter.pooling", "mean", "end"));
  CHUNKLLM_ASSIGN_OR_RETURN(const bool adds_log_length,
                            reader.either("qk_adapter.log_length", "false", "true"));
  // What the first layer has, all layers must have.
  const bool has_bias = reader.has(adapter_layer_name(0, "distance_bias"));
  const bool has_null = reader.has(adapter_layer_name(0, "null.weight"));
  std::vector<QkAdapterLayer> layers;
  for (std::int64_t l = 0; l < model.num_layers; ++l) {
    QkAdapterLayer& layer = layers.emplace_back();
    CHUNKLLM_ASSIGN_OR_RETURN(layer.query_weight,
                              reader.tensor(adapter_layer_name(l, "query.weight"),
                                            num_heads * key_dim, model.hidden_size));
    CHUNKLLM_ASSIGN_OR_RETURN(layer.key_weight,
                              reader.tensor(adapter_layer_name(l, "key.weight"),
                                            num_key_heads * key_dim, model.hidden_size));
    if (has_bias) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          layer.distance_bias,
          reader.tensor(adapter_layer_name(l, "distance_bias"), num_heads, kNumDistanceBins));
    }
    if (has_null) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          layer.null_weight,
          reader.tensor(adapter_layer_name(l, "null.weight"), num_heads, model.hidden_size));
      CHUNKLLM_ASSIGN_OR_RETURN(layer.null_bias,
                                reader.tensor(adapter_layer_name(l, "null.bias"), 0, num_heads));
    }
  }
  return std::make_shared<const QkAdapter>(
      std::move(layers), model.hidden_size, num_heads, num_key_heads, key_dim,
      takes_end ? KeyPooling::kEndToken : KeyPooling::kMean, adds_log_length);
}

inline Result<AdapterFile> read_adapter_file(const SafetensorsFile& file) {
  AdapterReader reader(file);
  CHUNKLLM_ASSIGN_OR_RETURN(const std::string format, reader.text("format"));
  if (format != kAdapterFormat) {
    return invalid_file(field_error(file.path(), "format", "\"" + printable(format) + "\"",
                                    "\"" + std::string(kAdapterFormat) + "\""));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t version,
                            reader.integer("format_version", 1, INT32_MAX));
  if (version != kAdapterVersion) {
    return unsupported(file.path() + ": adapter format version " + std::to_string(version) +
                       ", supported is " + std::to_string(kAdapterVersion));
  }
  AdapterFile result;
  CHUNKLLM_ASSIGN_OR_RETURN(result.model, read_adapter_model(reader));
  CHUNKLLM_ASSIGN_OR_RETURN(result.guards.min_len,
                            reader.integer("guards.min_len", 1, kMaxAdapterMinLen));
  CHUNKLLM_ASSIGN_OR_RETURN(
      result.guards.max_len,
      reader.integer("guards.max_len", result.guards.min_len, kMaxAdapterMaxLen));
  if (reader.has("chunk_adapter.weight")) {
    CHUNKLLM_ASSIGN_OR_RETURN(result.maybe_chunk_adapter,
                              read_chunk_adapter(reader, result.model.hidden_size));
  }
  if (reader.has(adapter_layer_name(0, "query.weight"))) {
    CHUNKLLM_ASSIGN_OR_RETURN(const bool takes_mean,
                              reader.either("qk_adapter.head_join", "max", "mean"));
    result.head_join = takes_mean ? HeadJoin::kMean : HeadJoin::kMax;
    CHUNKLLM_ASSIGN_OR_RETURN(result.null_threshold, reader.share("qk_adapter.null_threshold"));
    CHUNKLLM_ASSIGN_OR_RETURN(result.maybe_qk_adapter, read_qk_adapter(reader, result.model));
  }
  if (result.maybe_chunk_adapter == nullptr && result.maybe_qk_adapter == nullptr) {
    return invalid_file(file.path() + ": holds neither 'chunk_adapter.weight' nor '" +
                        adapter_layer_name(0, "query.weight") + "'");
  }
  CHUNKLLM_RETURN_IF_ERROR(reader.refuse_unread_tensors());
  return result;
}

}  // namespace detail

/// Reads an adapter file's bytes.
///
/// \param origin  the file's name, for messages
/// Errors: kInvalidFile or kNotFound naming the field or tensor that is missing, unknown, of a
///         wrong shape, outside its range or not finite; kUnsupported for another version or
///         element type; those of `SafetensorsFile::parse`.
/// Cost: memory of the weights in f32, at most twice the file's size.
inline Result<AdapterFile> parse_adapter_bytes(std::span<const std::byte> bytes,
                                               std::string origin) {
  CHUNKLLM_ASSIGN_OR_RETURN(const SafetensorsFile file,
                            SafetensorsFile::parse(bytes, std::move(origin)));
  return detail::read_adapter_file(file);
}

/// Maps and reads an adapter file. Errors: as above, and those of `MappedFile::open`.
inline Result<AdapterFile> load_adapter_file(const std::string& path) {
  CHUNKLLM_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::open(path));
  return detail::read_adapter_file(file);
}

/// Whether adapters were made for a model: its shapes first, which no use of them survives, then
/// its weights.
///
/// \param fingerprint  the model's, as of `ModelFiles::fingerprint`
/// Errors: kInvalidFile naming the first number that differs.
inline Status check_fits(const AdapterFile& file, const BackboneConfig& config,
                         std::string_view fingerprint) {
  const auto differs = [](std::string_view what, const std::string& theirs,
                          const std::string& ours) {
    return invalid_file("the adapters were made for a model with " + std::string(what) + " " +
                        detail::printable(theirs) + ", this one has " + detail::printable(ours));
  };
  if (file.model.architecture != to_string(config.architecture)) {
    return differs("architecture", file.model.architecture,
                   std::string(to_string(config.architecture)));
  }
  const struct {
    std::string_view name;
    std::int64_t theirs;
    std::int64_t ours;
  } sizes[] = {{"num_layers", file.model.num_layers, config.num_layers},
               {"hidden_size", file.model.hidden_size, config.hidden_size},
               {"num_heads", file.model.num_heads, config.num_heads},
               {"num_kv_heads", file.model.num_kv_heads, config.num_kv_heads},
               {"head_dim", file.model.head_dim, config.head_dim},
               {"vocab_size", file.model.vocab_size, config.vocab_size}};
  for (const auto& size : sizes) {
    if (size.theirs != size.ours) {
      return differs(size.name, std::to_string(size.theirs), std::to_string(size.ours));
    }
  }
  if (file.model.fingerprint != fingerprint) {
    return differs("fingerprint", file.model.fingerprint, std::string(fingerprint));
  }
  return {};
}

}  // namespace chunkllm
