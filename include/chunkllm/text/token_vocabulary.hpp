// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/text/byte_alphabet.hpp"

namespace chunkllm::detail {

/// Folds the 128-bit product of two words; the mixing step of the hashes below.
inline std::uint64_t mix_words(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}
inline constexpr std::uint64_t kHashMultiplier = 0x9E3779B97F4A7C15u;

inline std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t hash = kHashMultiplier ^ bytes.size();
  std::size_t pos = 0;
  std::uint64_t word = 0;
  for (; bytes.size() - pos >= sizeof(word); pos += sizeof(word)) {
    std::memcpy(&word, bytes.data() + pos, sizeof(word));
    hash = mix_words(hash ^ word, kHashMultiplier);
  }
  word = 0;
  if (pos < bytes.size()) std::memcpy(&word, bytes.data() + pos, bytes.size() - pos);
  return mix_words(hash ^ word, kHashMultiplier);
}

/// Farthest behind its own slot that a key of a hash table may lie. Good tables stay below a
/// hundred; a file whose keys were made to collide is refused instead of costing quadratic time. A
/// search goes no farther than the table's farthest key: a run of occupied slots may be as long as
/// a hostile file likes, with every key in its own slot.
inline constexpr std::size_t kMaxProbes = 512;

/// The bytes of each token id, and the id of each token, for byte-level vocabularies.
class TokenVocabulary {
 public:
  /// \param tokens      the text of each id in the byte alphabet; "" where an id is unused
  /// \param added_only  ids that decode, but that neither merges nor `find_*` know; others: false
  /// Errors: kInvalidFile where two ids have one text; kResourceExhausted past 4 GiB of text
  static Result<TokenVocabulary> create(const std::vector<std::string>& tokens,
                                        const std::vector<bool>& added_only) {
    TokenVocabulary vocabulary;
    std::size_t num_bytes = 0;
    for (const auto& token : tokens) num_bytes += token.size();
    if (num_bytes > std::numeric_limits<std::uint32_t>::max()) {
      return resource_exhausted("vocabulary: the tokens' text exceeds 4 GiB");
    }
    vocabulary.bytes_.reserve(num_bytes);
    vocabulary.ends_.reserve(tokens.size() + 1);
    vocabulary.ends_.push_back(0);
    vocabulary.is_byte_level_.resize(tokens.size());
    vocabulary.slots_.assign(std::bit_ceil(2 * tokens.size() + 2), kEmptySlot);
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      vocabulary.is_byte_level_[id] = append_token_bytes(tokens[id], vocabulary.bytes_);
      vocabulary.ends_.push_back(static_cast<std::uint32_t>(vocabulary.bytes_.size()));
      if (!tokens[id].empty() && !added_only[id])
        CHUNKLLM_RETURN_IF_ERROR(vocabulary.insert(id, tokens[id]));
    }
    return vocabulary;
  }

  [[nodiscard]] std::size_t size() const { return ends_.size() - 1; }

  /// True where the id is below size() and has a token.
  [[nodiscard]] bool contains(std::int64_t id) const {
    return id >= 0 && static_cast<std::uint64_t>(id) < size() &&
           !bytes(static_cast<std::size_t>(id)).empty();
  }

  /// What a token decodes to. \param id  < size()
  [[nodiscard]] std::string_view bytes(std::size_t id) const {
    return std::string_view(bytes_).substr(ends_[id], ends_[id + 1] - ends_[id]);
  }

  /// The id of the token that stands for these raw bytes, or -1.
  [[nodiscard]] std::int32_t find_bytes(std::string_view raw) const { return find(raw, true); }

  /// The id of the token with this text, as files write it, or -1.
  [[nodiscard]] std::int32_t find_text(std::string_view token) const {
    std::string raw;
    const bool byte_level = append_token_bytes(token, raw);
    return find(raw, byte_level);
  }

 private:
  static constexpr std::int32_t kEmptySlot = -1;

  [[nodiscard]] std::int32_t find(std::string_view raw, bool byte_level) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash_bytes(raw) & mask;
    for (std::size_t probes = 0; probes <= farthest_; ++probes, slot = (slot + 1) & mask) {
      const std::int32_t id = slots_[slot];
      if (id == kEmptySlot) break;
      const auto index = static_cast<std::size_t>(id);
      if (bytes(index) == raw && is_byte_level_[index] == byte_level) return id;
    }
    return -1;
  }

  Status insert(std::size_t id, std::string_view text) {
    const std::string_view raw = bytes(id);
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash_bytes(raw) & mask;
    std::size_t probes = 0;
    for (; slots_[slot] != kEmptySlot; slot = (slot + 1) & mask) {
      const auto other = static_cast<std::size_t>(slots_[slot]);
      if (bytes(other) == raw && is_byte_level_[other] == is_byte_level_[id]) {
        return invalid_file("vocabulary: ids " + std::to_string(other) + " and " +
                            std::to_string(id) + " have one text, \"" + printable(text) + "\"");
      }
      if (++probes > kMaxProbes) return invalid_file("vocabulary: too many colliding tokens");
    }
    slots_[slot] = static_cast<std::int32_t>(id);
    farthest_ = std::max(farthest_, probes);
    return {};
  }

  std::string bytes_;
  std::vector<std::uint32_t> ends_;  // [size + 1] offsets into bytes_
  std::vector<bool> is_byte_level_;
  std::vector<std::int32_t> slots_;  // open addressing; a power of two, at most half full
  std::size_t farthest_ = 0;         // most slots that a key lies behind its own
};

}  // namespace chunkllm::detail
