// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

namespace detail {

/// Turns a parsed tokenizer.json into a spec; what is not implemented is refused, never ignored.
class TokenizerJsonReader {
 public:
  TokenizerJsonReader(const Json& root, std::string_view origin) : root_(root), origin_(origin) {}

  Result<BpeTokenizerSpec> read() {
    if (!root_.is_object()) {
      return invalid_file(std::string(origin_) + ": is " + chunkllm::describe(root_) +
                          ", expected an object");
    }
    for (const std::string_view key : {"truncation", "padding"}) {
      if (const Json* value = find_json(root_, key)) {
        return unsupported(field_error(origin_, key, chunkllm::describe(*value), "null"));
      }
    }
    CHUNKLLM_RETURN_IF_ERROR(read_model());
    CHUNKLLM_RETURN_IF_ERROR(read_added_tokens());
    CHUNKLLM_RETURN_IF_ERROR(read_normalizer(find_json(root_, "normalizer")));
    CHUNKLLM_RETURN_IF_ERROR(read_pre_tokenizer(find_json(root_, "pre_tokenizer")));
    if (!byte_level_) {
      return unsupported(field_error(origin_, "pre_tokenizer", "without ByteLevel",
                                     "one that ends with ByteLevel"));
    }
    CHUNKLLM_RETURN_IF_ERROR(read_post_processor(find_json(root_, "post_processor")));
    CHUNKLLM_RETURN_IF_ERROR(check_decoder(find_json(root_, "decoder")));
    return std::move(spec_);
  }

 private:
  [[nodiscard]] Status wrong(std::string_view key, std::string_view actual,
                             std::string_view expected) const {
    return invalid_file(field_error(origin_, key, actual, expected));
  }
  [[nodiscard]] Status not_implemented(std::string_view key, std::string_view actual,
                                       std::string_view supported) const {
    return unsupported(field_error(origin_, key, actual, supported));
  }

  [[nodiscard]] Result<bool> flag(const Json& json, std::string_view key, bool otherwise) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto value, optional_bool(json, key, origin_));
    return value.value_or(otherwise);
  }

  Status read_model() {
    const Json* model = find_json(root_, "model");
    if (model == nullptr || !model->is_object()) {
      return wrong("model", model == nullptr ? "missing" : chunkllm::describe(*model), "an object");
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const auto type, optional_string(*model, "type", origin_));
    if (type.value_or("BPE") != "BPE") {
      return not_implemented("model.type", "\"" + printable(*type) + "\"", "\"BPE\"");
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const auto dropout,
                              optional_double(*model, "dropout", 0.0, 1.0, origin_));
    if (dropout.value_or(0.0) != 0.0) {
      return not_implemented("model.dropout", number_text(*dropout), "null or 0");
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const bool byte_fallback, flag(*model, "byte_fallback", false));
    if (byte_fallback) return not_implemented("model.byte_fallback", "true", "false");
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      CHUNKLLM_ASSIGN_OR_RETURN(const auto affix, optional_string(*model, key, origin_));
      if (!affix.value_or("").empty()) {
        return not_implemented(key, "\"" + printable(*affix) + "\"", "null or \"\"");
      }
    }
    CHUNKLLM_ASSIGN_OR_RETURN(spec_.ignore_merges, flag(*model, "ignore_merges", false));
    CHUNKLLM_ASSIGN_OR_RETURN(spec_.fuse_unknown, flag(*model, "fuse_unk", false));
    CHUNKLLM_RETURN_IF_ERROR(read_vocabulary(*model));
    CHUNKLLM_RETURN_IF_ERROR(read_merges(*model));
    CHUNKLLM_ASSIGN_OR_RETURN(const auto unknown, optional_string(*model, "unk_token", origin_));
    if (unknown) {
      const Json* id = find_json(*find_json(*model, "vocab"), *unknown);
      if (id == nullptr) {
        return wrong("model.unk_token", "\"" + printable(*unknown) + "\"",
                     "a token of the vocabulary");
      }
      spec_.unknown_id = id->get<std::int32_t>();  // read_vocabulary has checked it
    }
    return {};
  }

  Status read_vocabulary(const Json& model) {
    const Json* vocab = find_json(model, "vocab");
    const auto* entries = vocab == nullptr ? nullptr : vocab->get_ptr<const Json::object_t*>();
    if (entries == nullptr) {
      return wrong("model.vocab", vocab == nullptr ? "missing" : chunkllm::describe(*vocab),
                   "an object");
    }
    constexpr auto kMaxId = static_cast<std::uint64_t>(BpeTokenizer::kMaxTokenId);
    spec_.tokens.resize(std::min<std::size_t>(entries->size(), kMaxId + 1));
    for (const auto& [token, value] : *entries) {
      const auto* id = value.get_ptr<const Json::number_unsigned_t*>();
      if (id == nullptr || *id > kMaxId) {
        return wrong("model.vocab." + printable(token), chunkllm::describe(value),
                     "an id of 0 to " + std::to_string(kMaxId));
      }
      if (token.empty()) return wrong("model.vocab", "with an empty token", "none");
      if (*id >= spec_.tokens.size()) spec_.tokens.resize(*id + 1);
      if (!spec_.tokens[*id].empty()) {
        return wrong("model.vocab." + printable(token), std::to_string(*id),
                     "an id that no other token has");
      }
      spec_.tokens[*id] = token;
    }
    return {};
  }

  Status read_merges(const Json& model) {
    const Json* merges = find_json(model, "merges");
    const auto* entries = merges == nullptr ? nullptr : merges->get_ptr<const Json::array_t*>();
    if (entries == nullptr) {
      return wrong("model.merges", merges == nullptr ? "missing" : chunkllm::describe(*merges),
                   "a list");
    }
    spec_.merges.reserve(entries->size());
    for (const Json& entry : *entries) {
      if (const auto* text = entry.get_ptr<const Json::string_t*>()) {
        const std::size_t space = text->find(' ');
        if (space != std::string::npos && text->find(' ', space + 1) == std::string::npos) {
          spec_.merges.emplace_back(text->substr(0, space), text->substr(space + 1));
          continue;
        }
      } else if (entry.is_array() && entry.size() == 2) {
        const auto* left = entry[0].get_ptr<const Json::string_t*>();
        const auto* right = entry[1].get_ptr<const Json::string_t*>();
        if (left != nullptr && right != nullptr) {
          spec_.merges.emplace_back(*left, *right);
          continue;
        }
      }
      return wrong("model.merges[" + std::to_string(spec_.merges.size()) + "]",
                   chunkllm::describe(entry), "\"left right\" or [\"left\", \"right\"]");
    }
    return {};
  }

  Status read_added_tokens() {
    const Json* list = find_json(root_, "added_tokens");
    if (list == nullptr) return {};
    const auto* entries = list->get_ptr<const Json::array_t*>();
    if (entries == nullptr) return wrong("added_tokens", chunkllm::describe(*list), "a list");
    std::vector<AddedToken> plain;
    std::set<std::int32_t> ids;
    for (const Json& entry : *entries) {
      AddedToken token;
      CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t id,
                                require_int(entry, "id", 0, BpeTokenizer::kMaxTokenId, origin_));
      token.id = static_cast<std::int32_t>(id);
      if (!ids.insert(token.id).second) {
        return wrong("added_tokens", "with id " + std::to_string(id) + " twice", "each id once");
      }
      CHUNKLLM_ASSIGN_OR_RETURN(token.content, require_string(entry, "content", origin_));
      CHUNKLLM_ASSIGN_OR_RETURN(token.single_word, flag(entry, "single_word", false));
      CHUNKLLM_ASSIGN_OR_RETURN(token.lstrip, flag(entry, "lstrip", false));
      CHUNKLLM_ASSIGN_OR_RETURN(token.rstrip, flag(entry, "rstrip", false));
      CHUNKLLM_ASSIGN_OR_RETURN(token.special, flag(entry, "special", false));
      CHUNKLLM_ASSIGN_OR_RETURN(token.normalized, flag(entry, "normalized", !token.special));
      (token.special ? spec_.added_tokens : plain).push_back(std::move(token));
    }
    std::move(plain.begin(), plain.end(), std::back_inserter(spec_.added_tokens));
    return {};
  }

  /// Calls `on_step` for a component, or for each of the list `key` of a Sequence. The parser's
  /// depth limit bounds the recursion.
  template <typename OnStep>
  Status for_each_step(const Json& component, std::string_view field, std::string_view list_key,
                       OnStep&& on_step) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string type, require_string(component, "type", origin_));
    if (type != "Sequence") return on_step(type, component);
    const Json* list = find_json(component, list_key);
    const auto* steps = list == nullptr ? nullptr : list->get_ptr<const Json::array_t*>();
    if (steps == nullptr) {
      return wrong(std::string(field) + "." + std::string(list_key),
                   list == nullptr ? "missing" : chunkllm::describe(*list), "a list");
    }
    for (const Json& step : *steps) {
      CHUNKLLM_RETURN_IF_ERROR(for_each_step(step, field, list_key, on_step));
    }
    return {};
  }

  Status read_normalizer(const Json* component) {
    if (component == nullptr) return {};
    return for_each_step(*component, "normalizer", "normalizers",
                         [&](const std::string& type, const Json&) -> Status {
                           if (type != "NFC") {
                             return not_implemented("normalizer", "\"" + printable(type) + "\"",
                                                    "null, NFC or a Sequence of them");
                           }
                           spec_.normalize_nfc = true;
                           return {};
                         });
  }

  Status read_pre_tokenizer(const Json* component) {
    if (component == nullptr) return {};
    return for_each_step(*component, "pre_tokenizer", "pretokenizers",
                         [&](const std::string& type, const Json& step) -> Status {
                           if (byte_level_) {
                             return not_implemented("pre_tokenizer",
                                                    "\"" + printable(type) + "\" after ByteLevel",
                                                    "ByteLevel as the last step");
                           }
                           // split_text recurses once a rule.
                           if (spec_.split_rules.size() >= 8) {
                             return not_implemented("pre_tokenizer", "longer", "at most 8 steps");
                           }
                           if (type == "Digits") return read_digits(step);
                           if (type == "Split") return read_split(step);
                           if (type == "ByteLevel") return read_byte_level(step);
                           return not_implemented("pre_tokenizer", "\"" + printable(type) + "\"",
                                                  "Split, Digits or ByteLevel");
                         });
  }

  Status read_digits(const Json& step) {
    CHUNKLLM_ASSIGN_OR_RETURN(const bool individual, flag(step, "individual_digits", false));
    spec_.split_rules.push_back(individual ? SplitRule::kDigits : SplitRule::kDigitRuns);
    return {};
  }

  Status read_split(const Json& step) {
    const Json* pattern = find_json(step, "pattern");
    const Json* regex = pattern == nullptr ? nullptr : find_json(*pattern, "Regex");
    const auto* text = regex == nullptr ? nullptr : regex->get_ptr<const Json::string_t*>();
    if (text == nullptr) {
      return not_implemented("pre_tokenizer.pattern",
                             pattern == nullptr ? "missing" : chunkllm::describe(*pattern),
                             "{\"Regex\": ...}");
    }
    // The patterns match every character, so that what lies between matches is empty: isolating
    // them and removing all but them are the same.
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string behavior,
                              require_string(step, "behavior", origin_));
    CHUNKLLM_ASSIGN_OR_RETURN(const bool invert, flag(step, "invert", false));
    if (behavior != "Isolated" && !(behavior == "Removed" && invert)) {
      return not_implemented("pre_tokenizer.behavior", "\"" + printable(behavior) + "\"",
                             "\"Isolated\", or \"Removed\" with invert");
    }
    if (*text == kGpt2Pattern) {
      spec_.split_rules.push_back(SplitRule::kGpt2);
    } else if (*text == kLlama3Pattern) {
      spec_.split_rules.push_back(SplitRule::kLlama3);
    } else if (*text == kQwen2Pattern) {
      spec_.split_rules.push_back(SplitRule::kQwen2);
    } else {
      return not_implemented("pre_tokenizer.pattern", "\"" + printable(*text, 160) + "\"",
                             "the pattern of GPT-2, Llama-3 or Qwen2");
    }
    return {};
  }

  Status read_byte_level(const Json& step) {
    byte_level_ = true;
    CHUNKLLM_ASSIGN_OR_RETURN(spec_.add_prefix_space, flag(step, "add_prefix_space", true));
    CHUNKLLM_ASSIGN_OR_RETURN(const bool use_regex, flag(step, "use_regex", true));
    if (spec_.add_prefix_space && !spec_.split_rules.empty()) {
      return not_implemented("pre_tokenizer.add_prefix_space", "true after another step", "false");
    }
    if (use_regex) spec_.split_rules.push_back(SplitRule::kGpt2);
    return {};
  }

  Status read_post_processor(const Json* component) {
    if (component == nullptr) return {};
    return for_each_step(*component, "post_processor", "processors",
                         [&](const std::string& type, const Json& step) -> Status {
                           if (type == "ByteLevel") return {};
                           if (type == "TemplateProcessing") return read_template(step);
                           return not_implemented("post_processor", "\"" + printable(type) + "\"",
                                                  "ByteLevel or TemplateProcessing");
                         });
  }

  /// Reads `single`: special tokens, the text once, special tokens.
  Status read_template(const Json& step) {
    constexpr std::string_view kField = "post_processor.single";
    const Json* single = find_json(step, "single");
    const auto* pieces = single == nullptr ? nullptr : single->get_ptr<const Json::array_t*>();
    if (pieces == nullptr) {
      return wrong(kField, single == nullptr ? "missing" : chunkllm::describe(*single), "a list");
    }
    std::vector<std::int32_t> before;
    std::vector<std::int32_t> after;
    int num_sequences = 0;
    for (const Json& piece : *pieces) {
      if (const Json* sequence = find_json(piece, "Sequence")) {
        CHUNKLLM_ASSIGN_OR_RETURN(const std::string id, require_string(*sequence, "id", origin_));
        if (id != "A") return wrong(kField, "with sequence \"" + printable(id) + "\"", "\"A\"");
        ++num_sequences;
        continue;
      }
      const Json* special = find_json(piece, "SpecialToken");
      if (special == nullptr)
        return wrong(kField, "with " + chunkllm::describe(piece), "SpecialToken");
      CHUNKLLM_ASSIGN_OR_RETURN(const std::string name, require_string(*special, "id", origin_));
      CHUNKLLM_RETURN_IF_ERROR(
          append_template_ids(step, name, num_sequences == 0 ? before : after));
    }
    if (num_sequences != 1) {
      return wrong(kField, "with " + std::to_string(num_sequences) + " sequences", "one");
    }
    // A later processor puts its tokens around those of an earlier one.
    constexpr std::size_t kMaxIds = 64;
    if (spec_.prefix_ids.size() + before.size() > kMaxIds ||
        spec_.suffix_ids.size() + after.size() > kMaxIds) {
      return wrong(kField, "with more tokens", "at most " + std::to_string(kMaxIds) + " a side");
    }
    spec_.prefix_ids.insert(spec_.prefix_ids.begin(), before.begin(), before.end());
    spec_.suffix_ids.insert(spec_.suffix_ids.end(), after.begin(), after.end());
    return {};
  }

  Status append_template_ids(const Json& step, const std::string& name,
                             std::vector<std::int32_t>& out) {
    const std::string field = "post_processor.special_tokens." + printable(name);
    const Json* tokens = find_json(step, "special_tokens");
    const Json* token = tokens == nullptr ? nullptr : find_json(*tokens, name);
    const Json* ids = token == nullptr ? nullptr : find_json(*token, "ids");
    const auto* list = ids == nullptr ? nullptr : ids->get_ptr<const Json::array_t*>();
    if (list == nullptr) return wrong(field + ".ids", "missing or no list", "a list of ids");
    for (const Json& id : *list) {
      const auto* value = id.get_ptr<const Json::number_unsigned_t*>();
      if (value == nullptr || *value > static_cast<std::uint64_t>(BpeTokenizer::kMaxTokenId)) {
        return wrong(field + ".ids", chunkllm::describe(id), "an id of the vocabulary");
      }
      out.push_back(static_cast<std::int32_t>(*value));
    }
    return {};
  }

  Status check_decoder(const Json* component) {
    if (component == nullptr) return not_implemented("decoder", "missing", "ByteLevel");
    int num_steps = 0;
    CHUNKLLM_RETURN_IF_ERROR(for_each_step(
        *component, "decoder", "decoders", [&](const std::string& type, const Json&) -> Status {
          ++num_steps;
          if (type == "ByteLevel") return {};
          return not_implemented("decoder", "\"" + printable(type) + "\"", "ByteLevel");
        }));
    if (num_steps == 1) return {};
    return not_implemented("decoder", std::to_string(num_steps) + " steps", "one ByteLevel");
  }

  const Json& root_;
  std::string_view origin_;
  BpeTokenizerSpec spec_;
  bool byte_level_ = false;
};

/// The text of a token in tokenizer_config.json: a string, or an object with `content`.
inline Result<std::optional<std::string>> config_token(const Json& config, std::string_view key,
                                                       std::string_view origin) {
  const Json* value = find_json(config, key);
  if (value != nullptr && value->is_object()) return optional_string(*value, "content", origin);
  return optional_string(config, key, origin);
}

/// Lets tokenizer_config.json name the begin and end tokens and whether a text gets them.
inline Status apply_tokenizer_config(const Json& config, std::string_view origin,
                                     BpeTokenizerSpec& spec) {
  if (!config.is_object()) {
    return invalid_file(std::string(origin) + ": is " + chunkllm::describe(config) +
                        ", expected an object");
  }
  const auto find_id = [&](std::string_view key) -> Result<std::optional<std::int32_t>> {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto token, config_token(config, key, origin));
    if (!token) return std::optional<std::int32_t>();
    for (const AddedToken& added : spec.added_tokens) {
      if (added.content == *token) return std::optional(added.id);
    }
    const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), *token);
    if (found == spec.tokens.end() || token->empty()) {
      return invalid_file(
          field_error(origin, key, "\"" + printable(*token) + "\"", "a token of the vocabulary"));
    }
    return std::optional(static_cast<std::int32_t>(found - spec.tokens.begin()));
  };
  CHUNKLLM_ASSIGN_OR_RETURN(spec.bos_id, find_id("bos_token"));
  CHUNKLLM_ASSIGN_OR_RETURN(const auto eos_id, find_id("eos_token"));
  if (eos_id) spec.eos_ids.push_back(*eos_id);

  const auto apply = [&](std::string_view key, std::optional<std::int32_t> id, bool in_front,
                         std::vector<std::int32_t>& ids) -> Status {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto add, optional_bool(config, key, origin));
    if (!add) return {};
    if (*add && !id) {
      return invalid_file(field_error(origin, key, "true", "false, since the token is not named"));
    }
    if (!id) return {};
    const bool present = !ids.empty() && (in_front ? ids.front() : ids.back()) == *id;
    const auto place = in_front ? ids.begin() : ids.end();
    if (*add && !present) ids.insert(place, *id);
    if (!*add && present) ids.erase(in_front ? place : place - 1);
    return {};
  };
  CHUNKLLM_RETURN_IF_ERROR(apply("add_bos_token", spec.bos_id, true, spec.prefix_ids));
  return apply("add_eos_token", eos_id, false, spec.suffix_ids);
}

}  // namespace detail

/// Loads a byte-level BPE tokenizer from the text of a tokenizer.json.
///
/// \param json_text    the file's text
/// \param config_text  the text of tokenizer_config.json, or empty: it may name the begin and end
///                     tokens (`bos_token`, `eos_token`) and override whether texts get them
///                     (`add_bos_token`, `add_eos_token`)
/// \param origin       the file's name, for messages
/// Errors: kInvalidFile for broken or contradictory fields; kUnsupported for components that are
///         not implemented (with a list of those that are); kResourceExhausted as of `parse_json`
inline Result<BpeTokenizer> load_tokenizer_json(std::string_view json_text,
                                                std::string_view config_text,
                                                std::string_view origin) {
  CHUNKLLM_ASSIGN_OR_RETURN(const Json root, parse_json(json_text, origin));
  CHUNKLLM_ASSIGN_OR_RETURN(BpeTokenizerSpec spec,
                            detail::TokenizerJsonReader(root, origin).read());
  if (!config_text.empty()) {
    const std::string config_origin = std::string(origin) + " (tokenizer_config.json)";
    CHUNKLLM_ASSIGN_OR_RETURN(const Json config, parse_json(config_text, config_origin));
    CHUNKLLM_RETURN_IF_ERROR(detail::apply_tokenizer_config(config, config_origin, spec));
  }
  auto tokenizer = BpeTokenizer::create(std::move(spec));
  if (!tokenizer.ok()) return tokenizer.status().with_context(origin);
  return tokenizer;
}

}  // namespace chunkllm
