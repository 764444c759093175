// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/text/unicode_classes.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// A token that is cut out of the text before it is split into words.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< not where a word character stands beside it
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< takes the white space after it along
  bool normalized = false;   ///< searched in the normalised text, not in the raw one
  bool special = false;      ///< a control token; decodes to its text all the same
};

namespace detail {

/// Longest text of an added token, which bounds the cost of a search at each byte.
inline constexpr std::size_t kMaxAddedTokenBytes = 1024;

/// Most text of all added tokens together, which bounds the search tree: about 80 bytes a byte.
inline constexpr std::size_t kMaxAddedTextBytes = std::size_t{1} << 22;

/// Finds added tokens in a text: leftmost, then longest, then first added.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;

  /// Adds a token that is searched for by `pattern`, its text or its normalised text.
  void add(const AddedToken& token, std::string_view pattern) {
    if (pattern.empty()) return;
    if (nodes_.empty()) nodes_.emplace_back();
    std::size_t node = 0;
    for (const char c : pattern) node = child_or_new(node, static_cast<std::uint8_t>(c));
    if (nodes_[node].token >= 0) return;
    nodes_[node].token = static_cast<std::int32_t>(tokens_.size());
    tokens_.push_back(token);
    starts_[static_cast<std::uint8_t>(pattern.front())] = true;
  }

  [[nodiscard]] bool empty() const { return tokens_.empty(); }

  /// Calls `on_text(std::string_view)` for what lies between tokens and `on_token(id)` for them.
  ///
  /// \param text  valid UTF-8
  template <typename OnText, typename OnToken>
  void split(std::string_view text, OnText&& on_text, OnToken&& on_token) const {
    std::size_t done = 0;
    std::size_t space_stop = 0;  // end of the last white space that was walked over
    for (std::size_t pos = find_start(text, 0); pos < text.size();) {
      const auto [index, length] = longest_match(text, pos);
      if (length == 0) {
        pos = find_start(text, pos + 1);
        continue;
      }
      std::size_t start = pos;
      std::size_t stop = pos + length;
      // A refused match still consumes its bytes: the search goes on behind it.
      pos = find_start(text, stop);
      const AddedToken& token = tokens_[index];
      if (token.single_word &&
          (ends_with_word(text.substr(0, start)) || starts_with_word(text.substr(stop)))) {
        continue;
      }
      if (token.lstrip) start = std::max(done, white_space_start(text, start, done));
      if (token.rstrip) {
        // A token that is white space itself is found again inside what it has taken.
        if (stop >= space_stop) space_stop = white_space_stop(text, stop);
        stop = space_stop;
      }
      if (done < start) on_text(text.substr(done, start - done));
      on_token(token.id);
      done = stop;
    }
    if (done < text.size()) on_text(text.substr(done));
  }

 private:
  struct Node {
    std::vector<std::pair<std::uint8_t, std::uint32_t>> children;  // ascending
    std::int32_t token = -1;                                       // index into tokens_
  };

  struct Match {
    std::size_t token = 0;
    std::size_t length = 0;  // 0: no match
  };

  std::size_t child_or_new(std::size_t node, std::uint8_t byte) {
    auto& children = nodes_[node].children;
    const auto found = std::lower_bound(children.begin(), children.end(),
                                        std::pair<std::uint8_t, std::uint32_t>{byte, 0});
    if (found != children.end() && found->first == byte) return found->second;
    const auto created = static_cast<std::uint32_t>(nodes_.size());
    children.insert(found, {byte, created});
    nodes_.emplace_back();
    return created;
  }

  [[nodiscard]] std::size_t find_start(std::string_view text, std::size_t pos) const {
    while (pos < text.size() && !starts_[static_cast<std::uint8_t>(text[pos])]) ++pos;
    return pos;
  }

  [[nodiscard]] Match longest_match(std::string_view text, std::size_t pos) const {
    Match best;
    std::size_t node = 0;
    for (std::size_t i = pos; i < text.size(); ++i) {
      const auto byte = static_cast<std::uint8_t>(text[i]);
      const auto& children = nodes_[node].children;
      const auto found = std::lower_bound(children.begin(), children.end(),
                                          std::pair<std::uint8_t, std::uint32_t>{byte, 0});
      if (found == children.end() || found->first != byte) break;
      node = found->second;
      if (nodes_[node].token >= 0) {
        best = {static_cast<std::size_t>(nodes_[node].token), i + 1 - pos};
      }
    }
    return best;
  }

  static std::size_t last_character(std::string_view text) {
    std::size_t pos = text.size() - 1;
    while (pos > 0 && (static_cast<std::uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
    return pos;
  }
  static bool ends_with_word(std::string_view text) {
    return !text.empty() &&
           is_word_character(decode_valid_utf8(text.data(), last_character(text)).code_point);
  }
  static bool starts_with_word(std::string_view text) {
    return !text.empty() && is_word_character(decode_valid_utf8(text.data(), 0).code_point);
  }

  /// Start of the white space that ends at `end`, looking back no further than `limit`.
  static std::size_t white_space_start(std::string_view text, std::size_t end, std::size_t limit) {
    while (end > limit) {
      const std::size_t start = last_character(text.substr(0, end));
      if (!is_white_space(decode_valid_utf8(text.data(), start).code_point)) break;
      end = start;
    }
    return end;
  }
  static std::size_t white_space_stop(std::string_view text, std::size_t pos) {
    while (pos < text.size()) {
      const Utf8Step step = decode_valid_utf8(text.data(), pos);
      if (!is_white_space(step.code_point)) break;
      pos += step.num_bytes;
    }
    return pos;
  }

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};
};

}  // namespace detail
}  // namespace chunkllm
