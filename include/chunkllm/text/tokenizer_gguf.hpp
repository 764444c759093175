// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/gguf.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

namespace detail {

/// What a value of `tokenizer.ggml.pre` stands for.
struct GgufPreTokenizer {
  std::string_view name;
  std::vector<SplitRule> rules;
  bool normalize_nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  ///< where the file does not say
};

inline std::optional<GgufPreTokenizer> find_gguf_pre_tokenizer(std::string_view name) {
  if (name == "gpt-2") return GgufPreTokenizer{name, {SplitRule::kGpt2}};
  if (name == "smollm") return GgufPreTokenizer{name, {SplitRule::kDigits, SplitRule::kGpt2}};
  // The format has no field for the normaliser; Qwen2's is NFC.
  if (name == "qwen2") return GgufPreTokenizer{name, {SplitRule::kQwen2}, /*normalize_nfc=*/true};
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") {
    return GgufPreTokenizer{name,
                            {SplitRule::kLlama3},
                            false,
                            /*ignore_merges=*/true,
                            /*add_bos=*/true};
  }
  return std::nullopt;
}

/// Values of `tokenizer.ggml.token_type` that are not plain vocabulary.
enum class GgufTokenType : std::int64_t { kControl = 3, kUserDefined = 4 };

inline Status read_gguf_added_tokens(const GgufFile& file, BpeTokenizerSpec& spec) {
  constexpr std::string_view kKey = "tokenizer.ggml.token_type";
  CHUNKLLM_ASSIGN_OR_RETURN(const auto types, file.int_array(kKey, 0, 6));
  if (types.size() != spec.tokens.size()) {
    return invalid_file(field_error(file.path(), kKey, std::to_string(types.size()) + " elements",
                                    std::to_string(spec.tokens.size()) + ", one a token"));
  }
  const auto add_all = [&](GgufTokenType type, bool special) {
    for (std::size_t id = 0; id < types.size(); ++id) {
      if (types[id] != static_cast<std::int64_t>(type)) continue;
      AddedToken token;
      token.id = static_cast<std::int32_t>(id);
      token.content = spec.tokens[id];
      token.special = special;
      spec.added_tokens.push_back(std::move(token));
    }
  };
  add_all(GgufTokenType::kControl, /*special=*/true);
  add_all(GgufTokenType::kUserDefined, /*special=*/false);
  return {};
}

inline Status read_gguf_merges(const GgufFile& file, BpeTokenizerSpec& spec) {
  constexpr std::string_view kKey = "tokenizer.ggml.merges";
  CHUNKLLM_ASSIGN_OR_RETURN(const auto merges, file.string_array(kKey));
  if (merges.size() > BpeTokenizer::kMaxMerges) {  // before each becomes two strings
    return resource_exhausted(field_error(file.path(), kKey,
                                          "an array of " + std::to_string(merges.size()),
                                          "at most " + std::to_string(BpeTokenizer::kMaxMerges)));
  }
  spec.merges.reserve(merges.size());
  for (const std::string_view merge : merges) {
    // From index 1: the first token may itself begin with a space.
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return invalid_file(field_error(file.path(), kKey, "\"" + printable(merge) + "\"",
                                      "two tokens with a space between them"));
    }
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return {};
}

/// Reads the begin and end tokens and whether a text gets them.
inline Status read_gguf_special_ids(const GgufFile& file, bool add_bos_default,
                                    BpeTokenizerSpec& spec) {
  const auto max_id = static_cast<std::int64_t>(spec.tokens.size()) - 1;
  const auto read_id = [&](std::string_view key) -> Result<std::optional<std::int32_t>> {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto id, file.optional_int(key, 0, max_id));
    if (!id) return std::optional<std::int32_t>();
    return std::optional(static_cast<std::int32_t>(*id));
  };
  CHUNKLLM_ASSIGN_OR_RETURN(spec.bos_id, read_id("tokenizer.ggml.bos_token_id"));
  for (const std::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                     "tokenizer.ggml.eom_token_id"}) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto id, read_id(key));
    const bool is_new =
        id && std::find(spec.eos_ids.begin(), spec.eos_ids.end(), *id) == spec.eos_ids.end();
    if (is_new) spec.eos_ids.push_back(*id);
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto add_bos, file.optional_bool("tokenizer.ggml.add_bos_token"));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto add_eos, file.optional_bool("tokenizer.ggml.add_eos_token"));
  if (add_bos.value_or(add_bos_default)) {
    if (!spec.bos_id) {
      return invalid_file(field_error(file.path(), "tokenizer.ggml.bos_token_id", "missing",
                                      "a token id, since begin tokens are to be added"));
    }
    spec.prefix_ids.push_back(*spec.bos_id);
  }
  if (add_eos.value_or(false)) {
    if (spec.eos_ids.empty()) {
      return invalid_file(field_error(file.path(), "tokenizer.ggml.eos_token_id", "missing",
                                      "a token id, since end tokens are to be added"));
    }
    spec.suffix_ids.push_back(spec.eos_ids.front());
  }
  return {};
}

}  // namespace detail

/// Loads a byte-level BPE tokenizer from the metadata of a GGUF file.
///
/// The format keeps neither the normaliser nor the flags of added tokens: the normaliser follows
/// from `tokenizer.ggml.pre`, added tokens are searched in the raw text without stripping.
///
/// Errors: kUnsupported for other tokenizer models (SentencePiece) and pre-tokenizers;
///         kInvalidFile for missing or contradictory fields; those of `BpeTokenizer::create`
/// Source: the GGUF specification; ids as of Hugging Face `tokenizers` for the same vocabulary
inline Result<BpeTokenizer> load_tokenizer_gguf(const GgufFile& file) {
  constexpr std::string_view kModelKey = "tokenizer.ggml.model";
  CHUNKLLM_ASSIGN_OR_RETURN(const auto model, file.require_string(kModelKey));
  if (model != "gpt2") {
    return unsupported(detail::field_error(file.path(), kModelKey,
                                           "\"" + detail::printable(model) + "\"",
                                           "\"gpt2\", byte-level BPE; SentencePiece and other "
                                           "models are not supported"));
  }
  constexpr std::string_view kPreKey = "tokenizer.ggml.pre";
  CHUNKLLM_ASSIGN_OR_RETURN(const auto pre, file.require_string(kPreKey));
  auto pre_tokenizer = detail::find_gguf_pre_tokenizer(pre);
  if (!pre_tokenizer) {
    return unsupported(detail::field_error(file.path(), kPreKey,
                                           "\"" + detail::printable(pre) + "\"",
                                           "gpt-2, smollm, qwen2, llama-bpe, llama3 or llama-v3"));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto add_space,
                            file.optional_bool("tokenizer.ggml.add_space_prefix"));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto tokens, file.string_array("tokenizer.ggml.tokens"));
  BpeTokenizerSpec spec;
  spec.tokens.assign(tokens.begin(), tokens.end());
  spec.split_rules = std::move(pre_tokenizer->rules);
  spec.normalize_nfc = pre_tokenizer->normalize_nfc;
  spec.ignore_merges = pre_tokenizer->ignore_merges;
  spec.add_prefix_space = add_space.value_or(false);
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_added_tokens(file, spec));
  if (spec.ignore_merges) {
    // Llama-3 keeps its added tokens apart from the vocabulary: no word becomes one by its
    // spelling.
    for (const AddedToken& token : spec.added_tokens) {
      spec.tokens[static_cast<std::size_t>(token.id)].clear();
    }
  }
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_merges(file, spec));
  CHUNKLLM_RETURN_IF_ERROR(detail::read_gguf_special_ids(file, pre_tokenizer->add_bos, spec));
  auto tokenizer = BpeTokenizer::create(std::move(spec));
  if (!tokenizer.ok()) return tokenizer.status().with_context(file.path());
  return tokenizer;
}

}  // namespace chunkllm
