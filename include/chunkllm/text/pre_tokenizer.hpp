// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "chunkllm/text/unicode_classes.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// One splitting step before byte-level BPE. Each cuts a text into pieces that cover it.
enum class SplitRule {
  kGpt2,       ///< GPT-2's pattern, which `ByteLevel` has built in
  kLlama3,     ///< Llama-3's pattern: numbers of up to three digits
  kQwen2,      ///< Qwen2's pattern: as Llama-3's, each number character alone
  kDigits,     ///< each character of category N alone
  kDigitRuns,  ///< each longest run of characters of category N alone
};

/// The regular expressions that the splitters implement, as they stand in tokenizer.json files.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace detail {

/// Reads a piece of valid UTF-8 by code point and class.
class ClassReader {
 public:
  explicit ClassReader(std::string_view text) : data_(text.data()), size_(text.size()) {}

  [[nodiscard]] std::size_t size() const { return size_; }

  struct Character {
    std::uint8_t classes;
    std::uint8_t num_bytes;
    char32_t code_point;

    [[nodiscard]] bool is(unsigned mask) const { return (classes & mask) != 0; }
  };

  /// The character that starts at `pos` < size().
  [[nodiscard]] Character at(std::size_t pos) const {
    const auto byte = static_cast<std::uint8_t>(data_[pos]);
    if (byte < 0x80) return {kAsciiClasses[byte], 1, byte};
    const Utf8Step step = decode_valid_utf8(data_, pos);
    return {unicode_classes(step.code_point), step.num_bytes, step.code_point};
  }

  /// End of the run from `pos` of characters whose classes meet `mask`, or do not (`wanted`).
  template <bool kWanted>
  [[nodiscard]] std::size_t run_end(std::size_t pos, unsigned mask) const {
    while (pos < size_) {
      const Character c = at(pos);
      if (c.is(mask) != kWanted) break;
      pos += c.num_bytes;
    }
    return pos;
  }

  [[nodiscard]] bool is_newline(std::size_t pos) const {
    return data_[pos] == '\n' || data_[pos] == '\r';
  }

 private:
  // The first block of the class table is ASCII.
  static constexpr const std::uint8_t* kAsciiClasses =
      kUnicodeClassBlocks + kUnicodeClassIndex[0] * kUnicodeBlockSize;

  const char* data_;
  std::size_t size_;
};

/// End of `\s+(?!\S)|\s+` at a white space: a run before other text leaves its last character.
inline std::size_t white_space_end(const ClassReader& text, std::size_t pos) {
  std::size_t end = pos;
  std::size_t last = pos;
  while (end < text.size()) {
    const auto c = text.at(end);
    if (!c.is(kUnicodeWhiteSpace)) break;
    last = end;
    end += c.num_bytes;
  }
  return end == text.size() || last == pos ? end : last;
}

/// Length of "s", "t", "m", "d", "re", "ve" or "ll" after an apostrophe, or 0.
inline std::size_t contraction_length(std::string_view rest, bool ignore_case) {
  if (rest.empty()) return 0;
  // Case folding also maps U+017F, the long s, to "s".
  if (ignore_case && rest.substr(0, 2) == "\xC5\xBF") return 2;
  const auto lower = [&](char c) {
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  };
  const char first = lower(rest[0]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 1;
  if (rest.size() < 2) return 0;
  const char second = lower(rest[1]);
  if ((first == 'r' || first == 'v') && second == 'e') return 2;
  return first == 'l' && second == 'l' ? 2 : 0;
}

inline constexpr unsigned kLetterNumberSpace = kUnicodeLetter | kUnicodeNumber | kUnicodeWhiteSpace;

inline std::size_t gpt2_piece_end(std::string_view bytes, const ClassReader& text,
                                  std::size_t pos) {
  if (bytes[pos] == '\'') {
    const std::size_t length = contraction_length(bytes.substr(pos + 1), /*ignore_case=*/false);
    if (length != 0) return pos + 1 + length;
  }
  std::size_t start = pos;
  auto c = text.at(pos);
  if (bytes[pos] == ' ' && pos + 1 < bytes.size()) {
    c = text.at(pos + 1);
    ++start;
  }
  if (c.is(kUnicodeLetter)) return text.run_end<true>(start, kUnicodeLetter);
  if (c.is(kUnicodeNumber)) return text.run_end<true>(start, kUnicodeNumber);
  if (!c.is(kUnicodeWhiteSpace)) return text.run_end<false>(start, kLetterNumberSpace);
  return white_space_end(text, pos);
}

template <int kMaxDigits>
std::size_t llama3_piece_end(std::string_view bytes, const ClassReader& text, std::size_t pos) {
  if (bytes[pos] == '\'') {
    const std::size_t length = contraction_length(bytes.substr(pos + 1), /*ignore_case=*/true);
    if (length != 0) return pos + 1 + length;
  }
  const auto first = text.at(pos);
  const std::size_t second_pos = pos + first.num_bytes;
  if (first.is(kUnicodeLetter)) return text.run_end<true>(second_pos, kUnicodeLetter);
  if (first.is(kUnicodeNumber)) {
    std::size_t end = second_pos;
    for (int i = 1; i < kMaxDigits && end < text.size(); ++i) {
      const auto digit = text.at(end);
      if (!digit.is(kUnicodeNumber)) break;
      end += digit.num_bytes;
    }
    return end;
  }
  const bool has_second = second_pos < text.size();
  if (has_second && !text.is_newline(pos) && text.at(second_pos).is(kUnicodeLetter)) {
    return text.run_end<true>(second_pos, kUnicodeLetter);
  }
  const bool skips_space =
      bytes[pos] == ' ' && has_second && !text.at(second_pos).is(kLetterNumberSpace);
  if (skips_space || !first.is(kUnicodeWhiteSpace)) {
    std::size_t end = text.run_end<false>(skips_space ? second_pos : pos, kLetterNumberSpace);
    while (end < text.size() && text.is_newline(end)) ++end;
    return end;
  }
  // `\s*[\r\n]+` reaches to the last newline of the run.
  const std::size_t run_end = text.run_end<true>(pos, kUnicodeWhiteSpace);
  for (std::size_t end = run_end; end > pos; --end) {
    if (text.is_newline(end - 1)) return end;
  }
  return white_space_end(text, pos);
}

/// End of the piece of `bytes` that starts at `pos` < bytes.size().
inline std::size_t piece_end(SplitRule rule, std::string_view bytes, const ClassReader& text,
                             std::size_t pos) {
  switch (rule) {
    case SplitRule::kGpt2: return gpt2_piece_end(bytes, text, pos);
    case SplitRule::kLlama3: return llama3_piece_end<3>(bytes, text, pos);
    case SplitRule::kQwen2: return llama3_piece_end<1>(bytes, text, pos);
    case SplitRule::kDigits:
    case SplitRule::kDigitRuns: break;
  }
  const auto c = text.at(pos);
  if (!c.is(kUnicodeNumber)) return text.run_end<false>(pos, kUnicodeNumber);
  if (rule == SplitRule::kDigits) return pos + c.num_bytes;
  return text.run_end<true>(pos, kUnicodeNumber);
}

}  // namespace detail

/// Cuts a text by rules applied in order, each to the pieces of the one before, and calls
/// `on_piece(std::string_view)` for each piece, in text order.
///
/// \param rules  recursion is as deep as there are rules; none leaves the text whole
/// \param text   valid UTF-8
/// Cost:   a few table reads a character and rule; linear in the text
/// Source: the patterns above, by hand; white space is the Unicode property White_Space
template <typename OnPiece>
void split_text(std::span<const SplitRule> rules, std::string_view text, OnPiece&& on_piece) {
  if (text.empty()) return;
  if (rules.empty()) {
    on_piece(text);
    return;
  }
  const SplitRule rule = rules.front();
  const detail::ClassReader reader(text);
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t end = detail::piece_end(rule, text, reader, pos);
    const std::string_view piece = text.substr(pos, end - pos);
    if (rules.size() == 1) {
      on_piece(piece);
    } else {
      split_text(rules.subspan(1), piece, on_piece);
    }
    pos = end;
  }
}

}  // namespace chunkllm
