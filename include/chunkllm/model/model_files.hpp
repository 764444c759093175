// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/io/config_json.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/gguf.hpp"
#include "chunkllm/io/gguf_config.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/safetensors.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/tensor_names.hpp"

namespace chunkllm {

/// A line of a model's table of contents.
struct ModelTensorInfo {
  std::string name;                 ///< canonical where there is such a name, else the file's
  std::string dtype;                ///< as the file's format spells it, e.g. "Q4_1" or "BF16"
  std::vector<std::int64_t> shape;  ///< contiguous axis last
  std::size_t num_bytes = 0;
};

namespace detail {

/// FNV-1a, 64 bits (Fowler, Noll, Vo): stable across machines and versions, not cryptographic.
class Fnv1a {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      state_ = (state_ ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3ULL;
    }
  }
  template <typename T>
  void add_number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    add(std::as_bytes(std::span<const T>(&value, 1)));
  }
  [[nodiscard]] std::string hex() const {
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[(state_ >> shift) & 15];
    return text;
  }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325ULL;
};

}  // namespace detail

/// The files of one model, behind one interface: a `.gguf` file, or a folder with `config.json`,
/// `model.safetensors` (or shards and their index) and optionally `generation_config.json`,
/// `tokenizer.json` and `tokenizer_config.json`.
///
/// Tensors are asked for by their canonical, i.e. Hugging Face, names.
class ModelFiles {
 public:
  /// Opens `path`, reads its configuration and checks that every tensor which the configuration
  /// calls for is there, readable, and of the right shape.
  ///
  /// Errors: kNotFound for a missing file; kInvalidFile and kUnsupported as the readers of the
  /// formats say, and for a tensor that is missing or of another shape.
  static Result<ModelFiles> open(const std::string& path) {
    struct stat info {};
    ModelFiles files;
    files.path_ = path;
    if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
      CHUNKLLM_RETURN_IF_ERROR(files.open_folder());
    } else {
      CHUNKLLM_RETURN_IF_ERROR(files.open_gguf());
    }
    CHUNKLLM_RETURN_IF_ERROR(files.check_tensors());
    return Result<ModelFiles>(std::move(files));
  }

  [[nodiscard]] const BackboneConfig& config() const { return config_; }

  /// A view of a tensor; errors as of `GgufFile::tensor` and `SafetensorsFile::tensor`.
  ///
  /// Rows of `q_proj` and `k_proj` (weights and biases) are as in the file: see
  /// `qk_rows_permuted`. With tied embeddings there is no "lm_head.weight": use the embedding.
  [[nodiscard]] Result<TensorBytes> tensor(std::string_view canonical_name) const {
    if (safetensors_) return safetensors_->tensor(canonical_name);
    const std::string name = gguf_tensor_name(canonical_name);
    if (name.empty()) {
      return not_found(path_ + ": GGUF has no tensor for '" + detail::printable(canonical_name) +
                       "'");
    }
    return gguf_->tensor(name);
  }

  [[nodiscard]] bool has_tensor(std::string_view canonical_name) const {
    if (safetensors_) return safetensors_->contains(canonical_name);
    return gguf_->contains(gguf_tensor_name(canonical_name));
  }

  /// True where, within each head, the rows of q_proj and k_proj are stored for interleaved RoPE:
  /// stored row 2i is row i and stored row 2i + 1 is row i + head_dim / 2 of the Hugging Face
  /// order. GGUF files of architecture "llama" (Llama and Mistral) are, no others.
  [[nodiscard]] bool qk_rows_permuted() const {
    return gguf_.has_value() && (config_.architecture == Architecture::kLlama ||
                                 config_.architecture == Architecture::kMistral);
  }

  [[nodiscard]] bool is_gguf() const { return gguf_.has_value(); }
  /// The GGUF file (its metadata hold the tokenizer); null for a folder.
  [[nodiscard]] const GgufFile* gguf() const { return gguf_ ? &*gguf_ : nullptr; }
  /// The path given to `open`.
  [[nodiscard]] const std::string& path() const { return path_; }
  /// The model's folder: `path()` itself, or the one that the .gguf file is in.
  [[nodiscard]] std::string folder() const {
    if (!is_gguf()) return path_;
    const std::size_t slash = path_.rfind('/');
    return slash == std::string::npos ? "." : path_.substr(0, std::max<std::size_t>(slash, 1));
  }
  /// Paths in `folder()`; the files need not exist.
  [[nodiscard]] std::string tokenizer_json_path() const { return folder() + "/tokenizer.json"; }
  [[nodiscard]] std::string tokenizer_config_path() const {
    return folder() + "/tokenizer_config.json";
  }

  /// Gives the resident pages of the weights back, e.g. after they were repacked; views stay valid.
  void drop_pages() const {
    if (gguf_) gguf_->drop_pages();
    if (safetensors_) safetensors_->drop_pages();
  }

  /// All tensors, also those that no backbone reads; in file order for GGUF, else by name.
  [[nodiscard]] std::vector<ModelTensorInfo> tensor_infos() const {
    std::vector<ModelTensorInfo> infos;
    if (safetensors_) {
      for (const std::string& name : safetensors_->tensor_names()) {
        const SafetensorsEntry& entry = *safetensors_->find(name);
        infos.push_back({name, entry.dtype, entry.shape, entry.bytes.size()});
      }
      return infos;
    }
    for (const GgufTensorInfo& info : gguf_->tensor_infos()) {
      const std::string canonical = canonical_tensor_name(info.name);
      std::vector<std::int64_t> shape(info.dims.begin(), info.dims.begin() + info.num_dims);
      std::reverse(shape.begin(), shape.end());
      infos.push_back({canonical.empty() ? std::string(info.name) : canonical,
                       std::string(info.type->name), std::move(shape), info.bytes.size()});
    }
    return infos;
  }

  /// 16 hex digits that tell models apart: adapter files carry those of the model they were made
  /// for.
  ///
  /// FNV-1a over the architecture's name; the sizes (layers, hidden, intermediate, heads, key-value
  /// heads, head_dim, vocabulary) as int64 and eps and theta as double, all little-endian; the
  /// bytes of the final norm and of the first layer's norm; and the bytes of embedding rows 0, V/4,
  /// V/2, 3V/4 and V-1. The same model stored in another type has another fingerprint: adapters are
  /// fitted to the weights as they are computed with. Token ids and the context length, which users
  /// edit, are left out.
  ///
  /// Cost: a few KB are read.
  [[nodiscard]] std::string fingerprint() const {
    detail::Fnv1a hash;
    const std::string_view architecture = to_string(config_.architecture);
    hash.add(std::as_bytes(std::span<const char>(architecture)));
    for (const std::int64_t size :
         {config_.num_layers, config_.hidden_size, config_.intermediate_size, config_.num_heads,
          config_.num_kv_heads, config_.head_dim, config_.vocab_size}) {
      hash.add_number(size);
    }
    hash.add_number(config_.rms_norm_eps);
    hash.add_number(config_.rope_theta);
    for (const std::string& name :
         {std::string("model.norm.weight"), layer_tensor_name(0, "input_layernorm.weight")}) {
      if (const Result<TensorBytes> norm = tensor(name); norm.ok()) hash.add(norm->bytes);
    }
    // open() made sure that the tensors are there.
    if (const Result<TensorBytes> embedding = tensor("model.embed_tokens.weight"); embedding.ok()) {
      const auto num_rows = static_cast<std::size_t>(embedding->rows);
      const std::size_t row_bytes = embedding->bytes.size() / num_rows;
      for (const std::size_t row :
           {std::size_t{0}, num_rows / 4, num_rows / 2, num_rows * 3 / 4, num_rows - 1}) {
        hash.add(embedding->bytes.subspan(row * row_bytes, row_bytes));
      }
    }
    return hash.hex();
  }

 private:
  ModelFiles() = default;

  Status open_gguf() {
    CHUNKLLM_ASSIGN_OR_RETURN(gguf_, GgufFile::open(path_));
    CHUNKLLM_ASSIGN_OR_RETURN(config_, backbone_config_from_gguf(*gguf_));
    return {};
  }

  Status open_folder() {
    const JsonLimits limits{.max_bytes = std::size_t{1} << 24, .max_values = std::size_t{1} << 20};
    const std::string config_path = path_ + "/config.json";
    const std::string generation_path = path_ + "/generation_config.json";
    CHUNKLLM_ASSIGN_OR_RETURN(const Json config, read_json_file(config_path, limits));
    std::optional<Json> generation;
    if (::access(generation_path.c_str(), F_OK) == 0) {
      CHUNKLLM_ASSIGN_OR_RETURN(generation, read_json_file(generation_path, limits));
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        config_,
        backbone_config_from_json(config, generation ? &*generation : nullptr, config_path));
    CHUNKLLM_ASSIGN_OR_RETURN(safetensors_, SafetensorsModel::open(path_));
    return {};
  }

  [[nodiscard]] Status check_tensors() const {
    for (const ExpectedTensor& expected : expected_tensors(config_)) {
      const Result<TensorBytes> found = tensor(expected.name);
      if (!found.ok()) {
        const Status& status = found.status();
        return status.code() == StatusCode::kNotFound ? invalid_file(status.message()) : status;
      }
      if (found->rows != expected.rows || found->cols != expected.cols) {
        return invalid_file(path_ + ": tensor '" + expected.name + "' is " +
                            std::to_string(found->rows) + " x " + std::to_string(found->cols) +
                            ", expected " + std::to_string(expected.rows) + " x " +
                            std::to_string(expected.cols));
      }
    }
    return {};
  }

  std::string path_;
  BackboneConfig config_;
  std::optional<GgufFile> gguf_;
  std::optional<SafetensorsModel> safetensors_;
};

}  // namespace chunkllm
