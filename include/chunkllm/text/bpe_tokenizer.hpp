// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/text/added_tokens.hpp"
#include "chunkllm/text/bpe_merges.hpp"
#include "chunkllm/text/encode_scratch.hpp"
#include "chunkllm/text/nfc.hpp"
#include "chunkllm/text/pre_tokenizer.hpp"
#include "chunkllm/text/token_vocabulary.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// Everything that defines a byte-level BPE tokenizer, free of the file format it came from.
struct BpeTokenizerSpec {
  /// The text of each token in the byte alphabet, by id; "" where an id is unused or belongs to an
  /// added token that merges and `ignore_merges` do not know.
  std::vector<std::string> tokens;
  /// The pairs of token texts that merge, by rank.
  std::vector<std::pair<std::string, std::string>> merges;
  /// A piece that is a token as a whole is taken at once, whatever the merges say.
  bool ignore_merges = false;
  /// Stands for bytes that the vocabulary has no token for; without it they are dropped.
  std::optional<std::int32_t> unknown_id;
  /// A run of such bytes gives one `unknown_id`, not one a byte.
  bool fuse_unknown = false;
  /// Order of insertion: special ones first, each group in file order.
  std::vector<AddedToken> added_tokens;
  bool normalize_nfc = false;
  std::vector<SplitRule> split_rules;
  /// A space is put before each text between added tokens that does not start with one.
  bool add_prefix_space = false;
  /// Ids that `add_special_tokens` puts before and after a text.
  std::vector<std::int32_t> prefix_ids;
  std::vector<std::int32_t> suffix_ids;
  std::optional<std::int32_t> bos_id;
  std::vector<std::int32_t> eos_ids;
};

/// Byte-level BPE as GPT-2, Llama-3, Qwen and SmolLM use it. Immutable; one object may encode and
/// decode in several threads at once, each thread with its own `EncodeScratch`.
class BpeTokenizer {
 public:
  /// Largest token id that is accepted.
  static constexpr std::int32_t kMaxTokenId = (1 << 22) - 1;
  /// Most merges that are accepted: several times those of any vocabulary in use.
  static constexpr std::size_t kMaxMerges = std::size_t{1} << 22;

  /// Errors: kInvalidFile where ids are out of range or repeat a text, or where a merge names a
  ///         token that is not in the vocabulary; kUnsupported for a prefix space with several
  ///         split rules; kResourceExhausted where the added tokens have over 4 MiB of text or
  ///         there are more than `kMaxMerges`
  static Result<BpeTokenizer> create(BpeTokenizerSpec spec) {
    if (spec.add_prefix_space && spec.split_rules.size() > 1) {
      // The reference would put a space before each piece of the first rules.
      return unsupported("a prefix space together with several split rules");
    }
    BpeTokenizer tokenizer;
    std::vector<bool> added_only;
    CHUNKLLM_RETURN_IF_ERROR(place_added_tokens(spec, added_only));
    CHUNKLLM_ASSIGN_OR_RETURN(tokenizer.vocabulary_,
                              detail::TokenVocabulary::create(spec.tokens, added_only));
    CHUNKLLM_RETURN_IF_ERROR(tokenizer.load_merges(spec));
    CHUNKLLM_RETURN_IF_ERROR(tokenizer.check_ids(spec));
    CHUNKLLM_RETURN_IF_ERROR(tokenizer.check_added_tokens(spec));
    for (const auto& token : spec.added_tokens) {
      auto& matcher = token.normalized ? tokenizer.normalized_matcher_ : tokenizer.raw_matcher_;
      matcher.add(token, searched_text(token, spec));
      if (token.special) tokenizer.special_ids_.push_back(token.id);
    }
    std::sort(tokenizer.special_ids_.begin(), tokenizer.special_ids_.end());
    for (unsigned byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      tokenizer.byte_ids_[byte] = tokenizer.vocabulary_.find_bytes({&c, 1});
    }
    spec.tokens = {};
    spec.merges = {};
    tokenizer.spec_ = std::move(spec);
    return tokenizer;
  }

  /// Token ids of a text.
  ///
  /// Added tokens in the text are recognised, as the reference tokenizers do.
  ///
  /// \param text                valid UTF-8
  /// \param add_special_tokens  puts the tokenizer's begin and end tokens around the ids
  /// \param scratch             of the calling thread; keeps its words for the next call
  /// Errors: kInvalidArgument, with the offset of the first bad byte, where the text is not UTF-8;
  ///         kResourceExhausted where it has 2^32 - 1 bytes or more
  /// Cost:   linear in the text; n log n in the length of a word
  Result<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens,
                                           EncodeScratch& scratch) const {
    const std::size_t invalid = find_invalid_utf8(text);
    if (invalid != text.size()) {
      return invalid_argument("text is not UTF-8 at byte " + std::to_string(invalid));
    }
    if (text.size() >= std::numeric_limits<std::uint32_t>::max()) {
      return resource_exhausted("text has " + std::to_string(text.size()) +
                                " bytes, expected fewer than 2^32 - 1");
    }
    scratch.bind(fingerprint_);
    std::vector<std::int32_t> ids;
    ids.reserve(text.size() / 4 + spec_.prefix_ids.size() + spec_.suffix_ids.size());
    if (add_special_tokens) ids = spec_.prefix_ids;
    const auto on_token = [&](std::int32_t id) { ids.push_back(id); };
    const auto on_normalized = [&](std::string_view part) { encode_words(part, ids, scratch); };
    const auto on_raw = [&](std::string_view part) {
      if (!spec_.normalize_nfc) {
        normalized_matcher_.split(part, on_normalized, on_token);
        return;
      }
      const std::string normalized = to_nfc(part);
      normalized_matcher_.split(normalized, on_normalized, on_token);
    };
    raw_matcher_.split(text, on_raw, on_token);
    if (add_special_tokens) {
      ids.insert(ids.end(), spec_.suffix_ids.begin(), spec_.suffix_ids.end());
    }
    return ids;
  }

  /// The same with a scratch of its own; for a single text.
  Result<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens) const {
    // Words that a short text cannot hold need no room in the cache.
    EncodeScratch scratch(text.size() / 8);
    return encode(text, add_special_tokens, scratch);
  }

  /// Text of a list of ids: the tokens' bytes joined, then bytes that are not UTF-8 as U+FFFD.
  ///
  /// Errors: kOutOfRange where an id has no token
  Result<std::string> decode(std::span<const std::int32_t> ids) const {
    std::string bytes;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      CHUNKLLM_RETURN_IF_ERROR(check_id(ids[i]).with_context("id " + std::to_string(i)));
      bytes.append(token_bytes(ids[i]));
    }
    return replace_invalid_utf8(bytes);
  }

  /// The bytes one token stands for, perhaps part of a character; empty where the id has no token.
  [[nodiscard]] std::string_view token_bytes(std::int32_t id) const {
    return vocabulary_.contains(id) ? vocabulary_.bytes(static_cast<std::size_t>(id))
                                    : std::string_view{};
  }

  /// One past the largest id, added tokens included. A model's embedding may have more rows.
  [[nodiscard]] std::int32_t vocab_size() const {
    return static_cast<std::int32_t>(vocabulary_.size());
  }
  /// The begin-of-text token, where the tokenizer's files name one.
  [[nodiscard]] std::optional<std::int32_t> bos_id() const { return spec_.bos_id; }
  /// The tokens that end a text or a turn, the main one first; may be empty.
  [[nodiscard]] std::span<const std::int32_t> eos_ids() const { return spec_.eos_ids; }
  /// The ids that `add_special_tokens` puts before a text.
  [[nodiscard]] std::span<const std::int32_t> prefix_ids() const { return spec_.prefix_ids; }

  /// The id of a token by its text as the files write it ("<|im_end|>", "\u0120the").
  [[nodiscard]] std::optional<std::int32_t> token_to_id(std::string_view token) const {
    for (const auto& added : spec_.added_tokens) {
      if (added.content == token) return added.id;
    }
    const std::int32_t id = vocabulary_.find_text(token);
    return id < 0 ? std::nullopt : std::optional(id);
  }
  /// True for added tokens that are marked as special.
  [[nodiscard]] bool is_special(std::int32_t id) const {
    return std::binary_search(special_ids_.begin(), special_ids_.end(), id);
  }

  /// Ok where the id has a token, else kOutOfRange.
  [[nodiscard]] Status check_id(std::int32_t id) const {
    if (vocabulary_.contains(id)) return {};
    return out_of_range("token id " + std::to_string(id) + " is not in the vocabulary of " +
                        std::to_string(vocab_size()));
  }

 private:
  BpeTokenizer() = default;

  /// What an added token is searched for in the text, which is also what it decodes to.
  static std::string searched_text(const AddedToken& token, const BpeTokenizerSpec& spec) {
    return token.normalized && spec.normalize_nfc ? to_nfc(token.content) : token.content;
  }

  /// Gives added tokens that the vocabulary lacks their place in it, and marks those.
  static Status place_added_tokens(BpeTokenizerSpec& spec, std::vector<bool>& added_only) {
    if (spec.tokens.size() > static_cast<std::size_t>(kMaxTokenId) + 1) {
      return invalid_file("vocabulary: " + std::to_string(spec.tokens.size()) +
                          " tokens, expected at most " + std::to_string(kMaxTokenId + 1));
    }
    added_only.resize(spec.tokens.size());
    std::size_t num_bytes = 0;
    for (const auto& token : spec.added_tokens) {
      const std::string where = "added token \"" + detail::printable(token.content) + "\": ";
      if (token.content.empty() || token.content.size() > detail::kMaxAddedTokenBytes) {
        return invalid_file(where + std::to_string(token.content.size()) +
                            " bytes, expected 1 to " + std::to_string(detail::kMaxAddedTokenBytes));
      }
      num_bytes += token.content.size();
      if (num_bytes > detail::kMaxAddedTextBytes) {
        return resource_exhausted("added tokens: more than " +
                                  std::to_string(detail::kMaxAddedTextBytes) + " bytes of text");
      }
      if (!is_valid_utf8(token.content)) {
        return invalid_file(where + "its text is not UTF-8");
      }
      if (token.id < 0 || token.id > kMaxTokenId) {
        return invalid_file(where + "id " + std::to_string(token.id) + ", expected 0 to " +
                            std::to_string(kMaxTokenId));
      }
      const auto id = static_cast<std::size_t>(token.id);
      if (id >= spec.tokens.size()) {
        spec.tokens.resize(id + 1);
        added_only.resize(id + 1);
      }
      if (spec.tokens[id].empty()) {
        spec.tokens[id] = searched_text(token, spec);
        added_only[id] = true;
      } else if (spec.tokens[id] != token.content) {
        return invalid_file(where + "id " + std::to_string(id) + " is \"" +
                            detail::printable(spec.tokens[id]) + "\" in the vocabulary");
      }
    }
    return {};
  }

  /// Each text must stand for one id, as a token of the vocabulary or as an added one.
  [[nodiscard]] Status check_added_tokens(const BpeTokenizerSpec& spec) const {
    std::vector<std::string_view> contents;
    for (const auto& token : spec.added_tokens) {
      contents.push_back(token.content);
      const std::int32_t id = vocabulary_.find_text(token.content);
      if (id >= 0 && id != token.id) {
        return invalid_file("added token \"" + detail::printable(token.content) + "\": id " +
                            std::to_string(token.id) + ", but " + std::to_string(id) +
                            " in the vocabulary");
      }
    }
    std::sort(contents.begin(), contents.end());
    const auto twice = std::adjacent_find(contents.begin(), contents.end());
    if (twice == contents.end()) return {};
    return invalid_file("added token \"" + detail::printable(*twice) + "\" stands twice");
  }

  Status load_merges(const BpeTokenizerSpec& spec) {
    if (spec.merges.size() > kMaxMerges) {
      return resource_exhausted(std::to_string(spec.merges.size()) + " merges, expected at most " +
                                std::to_string(kMaxMerges));
    }
    merges_ = detail::MergeTable(spec.merges.size());
    std::string merged;
    std::uint64_t hash = 0;
    for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
      const auto& [left, right] = spec.merges[rank];
      merged.assign(left).append(right);
      const std::int32_t left_id = vocabulary_.find_text(left);
      const std::int32_t right_id = vocabulary_.find_text(right);
      const std::int32_t merged_id = vocabulary_.find_text(merged);
      if (left_id < 0 || right_id < 0 || merged_id < 0) {
        const std::string& missing = left_id < 0 ? left : right_id < 0 ? right : merged;
        return invalid_file("merge " + std::to_string(rank) + ": token \"" +
                            detail::printable(missing) + "\" is not in the vocabulary");
      }
      CHUNKLLM_RETURN_IF_ERROR(merges_.add({left_id, right_id, merged_id}));
      hash = detail::mix_words(hash ^ static_cast<std::uint32_t>(merged_id),
                               detail::kHashMultiplier + static_cast<std::uint32_t>(left_id));
    }
    for (std::size_t id = 0; id < vocabulary_.size(); ++id) {
      const std::string_view bytes = vocabulary_.bytes(id);
      // The same bytes may be a word to one vocabulary and an added token to another.
      const bool is_word = vocabulary_.find_bytes(bytes) == static_cast<std::int32_t>(id);
      hash = detail::mix_words(hash ^ detail::hash_bytes(bytes),
                               detail::kHashMultiplier + (is_word ? 1 : 0));
    }
    fingerprint_ = hash ^ (spec.ignore_merges ? 1 : 0) ^ (spec.fuse_unknown ? 2 : 0) ^
                   (static_cast<std::uint64_t>(spec.unknown_id.value_or(-1)) << 32);
    return {};
  }

  [[nodiscard]] Status check_ids(const BpeTokenizerSpec& spec) const {
    const auto check = [&](std::string_view field, std::span<const std::int32_t> ids) -> Status {
      for (const std::int32_t id : ids) {
        if (!vocabulary_.contains(id)) {
          return invalid_file(std::string(field) + ": token id " + std::to_string(id) +
                              ", expected one of the vocabulary's " + std::to_string(vocab_size()));
        }
      }
      return {};
    };
    CHUNKLLM_RETURN_IF_ERROR(check("begin and prefix tokens", spec.prefix_ids));
    CHUNKLLM_RETURN_IF_ERROR(check("suffix tokens", spec.suffix_ids));
    CHUNKLLM_RETURN_IF_ERROR(check("end tokens", spec.eos_ids));
    if (spec.bos_id) CHUNKLLM_RETURN_IF_ERROR(check("begin token", {&*spec.bos_id, 1}));
    if (spec.unknown_id) CHUNKLLM_RETURN_IF_ERROR(check("unknown token", {&*spec.unknown_id, 1}));
    return {};
  }

  void encode_words(std::string_view text, std::vector<std::int32_t>& ids,
                    EncodeScratch& scratch) const {
    std::string prefixed;
    if (spec_.add_prefix_space && text.front() != ' ') {
      prefixed.reserve(text.size() + 1);
      prefixed.append(" ").append(text);
      text = prefixed;
    }
    const char* const end = text.data() + text.size();
    split_text(spec_.split_rules, text,
               [&](std::string_view word) { encode_word(word, end, ids, scratch); });
  }

  /// \param readable_end  end of the buffer that `word` lies in
  void encode_word(std::string_view word, const char* readable_end, std::vector<std::int32_t>& ids,
                   EncodeScratch& scratch) const {
    using Entry = EncodeScratch::Entry;
    if (word.size() > Entry::kMaxKeyBytes) {
      merge_word(word, scratch);
      const auto& symbols = scratch.merge_.symbols;
      ids.insert(ids.end(), symbols.begin(), symbols.end());
      return;
    }
    const EncodeScratch::Key key = EncodeScratch::make_key(word, readable_end);
    Entry& entry = scratch.entry(key);
    if (entry.key != key) {
      merge_word(word, scratch);
      const auto& symbols = scratch.merge_.symbols;
      if (symbols.size() > Entry::kMaxIds) {
        ids.insert(ids.end(), symbols.begin(), symbols.end());
        return;
      }
      entry.key = key;
      entry.num_ids = static_cast<std::uint32_t>(symbols.size());
      std::copy(symbols.begin(), symbols.end(), entry.ids.begin());
    }
    if (entry.num_ids == 1) {
      ids.push_back(entry.ids[0]);
    } else {
      ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.num_ids);
    }
  }

  /// Leaves the word's ids in `scratch.merge_.symbols`.
  void merge_word(std::string_view word, EncodeScratch& scratch) const {
    auto& symbols = scratch.merge_.symbols;
    symbols.clear();
    if (spec_.ignore_merges) {
      const std::int32_t id = vocabulary_.find_bytes(word);
      if (id >= 0) {
        symbols.push_back(id);
        return;
      }
    }
    symbols.reserve(word.size());
    bool after_unknown = false;
    for (const char c : word) {
      const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(c)];
      if (id >= 0) {
        symbols.push_back(id);
      } else if (spec_.unknown_id && !(after_unknown && spec_.fuse_unknown)) {
        symbols.push_back(*spec_.unknown_id);
      }
      after_unknown = id < 0;
    }
    detail::merge_symbols(merges_, scratch.merge_);
  }

  BpeTokenizerSpec spec_;  // without tokens and merges
  detail::TokenVocabulary vocabulary_;
  detail::MergeTable merges_;
  detail::AddedTokenMatcher raw_matcher_;
  detail::AddedTokenMatcher normalized_matcher_;
  std::vector<std::int32_t> special_ids_;  // ascending
  std::array<std::int32_t, 256> byte_ids_{};
  std::uint64_t fingerprint_ = 0;
};

}  // namespace chunkllm
