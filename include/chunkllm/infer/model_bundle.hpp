// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "chunkllm/model/model_files.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/chat_template.hpp"
#include "chunkllm/text/tokenizer_gguf.hpp"
#include "chunkllm/text/tokenizer_json.hpp"

namespace chunkllm {

namespace detail {

/// Larger than any tokenizer.json in use (a vocabulary of 256K tokens takes 35 MB).
inline constexpr std::size_t kMaxTokenizerBytes = std::size_t{1} << 28;

/// The text of a file that a model's folder need not have; "" where it has not.
inline Result<std::string> read_optional_file(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return std::string();
  return read_text_file(path, kMaxTokenizerBytes);
}

/// The template in tokenizer_config.json: a string, or a list of named ones with a default.
inline Result<std::string> chat_template_from_json(const Json& config, const std::string& path) {
  const Json* value = find_json(config, "chat_template");
  if (value == nullptr) return std::string();
  if (const auto* text = value->get_ptr<const Json::string_t*>()) return *text;
  if (value->is_array()) {
    for (const Json& entry : *value) {
      CHUNKLLM_ASSIGN_OR_RETURN(const auto name, optional_string(entry, "name", path));
      if (name == "default") return require_string(entry, "template", path);
    }
  }
  return invalid_file(field_error(path, "chat_template", chunkllm::describe(*value),
                                  "a string, or a list with a template named \"default\""));
}

}  // namespace detail

/// The tokenizer of a model, checked against it.
///
/// Errors: those of the format's reader; kNotFound for a folder without tokenizer.json;
///         kInvalidFile where the tokenizer has ids that the model's embedding has no row for.
inline Result<BpeTokenizer> load_tokenizer(const ModelFiles& files) {
  const auto load = [&]() -> Result<BpeTokenizer> {
    if (files.is_gguf()) return load_tokenizer_gguf(*files.gguf());
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, read_text_file(files.tokenizer_json_path(),
                                                                     detail::kMaxTokenizerBytes));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string config,
                              detail::read_optional_file(files.tokenizer_config_path()));
    return load_tokenizer_json(text, config, files.tokenizer_json_path());
  };
  CHUNKLLM_ASSIGN_OR_RETURN(BpeTokenizer tokenizer, load());
  if (tokenizer.vocab_size() > files.config().vocab_size) {
    return invalid_file(files.path() + ": the tokenizer has ids up to " +
                        std::to_string(tokenizer.vocab_size() - 1) + ", expected below the " +
                        std::to_string(files.config().vocab_size) +
                        " rows of the model's embedding");
  }
  return tokenizer;
}

/// The ids that end a generation, ascending: those of the model's configuration, and those of the
/// tokenizer where a folder's configuration has none. A GGUF file keeps both in one place, and its
/// end-of-turn tokens with the tokenizer, so there they are joined.
inline std::vector<std::int32_t> end_token_ids(const ModelFiles& files,
                                               const BpeTokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : files.config().eos_token_ids) {
    ids.push_back(static_cast<std::int32_t>(id));
  }
  if (ids.empty() || files.is_gguf()) {
    ids.insert(ids.end(), tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

/// The chat template of a model: of the GGUF metadata, or of the folder's chat_template.jinja or
/// tokenizer_config.json.
///
/// Errors: kNotFound where the model has none; kUnsupported as of `ChatTemplate::from_source`.
inline Result<ChatTemplate> load_chat_template(const ModelFiles& files,
                                               const BpeTokenizer& tokenizer) {
  std::string source;
  if (files.is_gguf()) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto text,
                              files.gguf()->optional_string("tokenizer.chat_template"));
    if (text) source = *text;
  } else {
    CHUNKLLM_ASSIGN_OR_RETURN(source,
                              detail::read_optional_file(files.folder() + "/chat_template.jinja"));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string config_text,
                              detail::read_optional_file(files.tokenizer_config_path()));
    if (source.empty() && !config_text.empty()) {
      CHUNKLLM_ASSIGN_OR_RETURN(const Json config,
                                parse_json(config_text, files.tokenizer_config_path()));
      CHUNKLLM_ASSIGN_OR_RETURN(
          source, detail::chat_template_from_json(config, files.tokenizer_config_path()));
    }
  }
  if (source.empty()) return not_found(files.path() + ": the model has no chat template");
  const std::string bos(tokenizer.bos_id() ? tokenizer.token_bytes(*tokenizer.bos_id()) : "");
  Result<ChatTemplate> result = ChatTemplate::from_source(source, bos);
  if (!result.ok()) return result.status().with_context(files.path());
  return result;
}

/// A model that is ready to run: its files, its weights in memory and its tokenizer.
struct ModelBundle {
  ModelFiles files;
  DecoderBackbone backbone;
  BpeTokenizer tokenizer;
  std::vector<std::int32_t> end_ids;  ///< that end a generation, ascending

  /// Opens a `.gguf` file, or a folder with config.json, weights and tokenizer.json.
  ///
  /// \param progress  called with (tensors packed, tensors in all); may be empty
  /// Errors: those of `ModelFiles::open`, `load_tokenizer` and `DecoderBackbone::load`;
  ///         kInterrupted where `progress` returned false. Messages name the file.
  /// Cost: reads the weights once; afterwards only their packed copy is resident.
  static Result<ModelBundle> open(const std::string& path, WeightFormat format, ThreadPool& pool,
                                  const LoadProgress& progress = {}) {
    CHUNKLLM_ASSIGN_OR_RETURN(ModelFiles files, ModelFiles::open(path));
    CHUNKLLM_ASSIGN_OR_RETURN(BpeTokenizer tokenizer, load_tokenizer(files));
    Result<DecoderBackbone> backbone = DecoderBackbone::load(files, format, pool, progress);
    if (!backbone.ok()) {
      return backbone.status().code() == StatusCode::kInterrupted
                 ? backbone.status()
                 : backbone.status().with_context(path);
    }
    files.drop_pages();
    std::vector<std::int32_t> end_ids = end_token_ids(files, tokenizer);
    return ModelBundle{std::move(files), std::move(backbone).value(), std::move(tokenizer),
                       std::move(end_ids)};
  }
};

}  // namespace chunkllm
