// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace chunkllm {

/// U+FFFD, which stands for bytes that are not UTF-8.
inline constexpr char32_t kReplacementCharacter = 0xFFFD;

/// What stands at one position of a byte string.
struct Utf8Step {
  /// The code point, or `kReplacementCharacter` where the bytes are not UTF-8.
  char32_t code_point = kReplacementCharacter;
  /// Bytes consumed, 1 to 4: a whole sequence, or the maximal subpart of an ill-formed one.
  std::uint8_t num_bytes = 1;
  /// False where the bytes are not UTF-8.
  bool valid = false;
  /// True where the input ends inside a sequence that is well formed so far.
  bool incomplete = false;
};

/// Decodes the sequence that starts at `text[pos]`.
///
/// Overlong forms, surrogates and code points above U+10FFFF are ill formed. An ill-formed sequence
/// is consumed up to its maximal subpart, so that a decoder which writes one U+FFFD a step follows
/// the Unicode standard (section 3.9, "substitution of maximal subparts"), as Python and the WHATWG
/// Encoding standard do.
///
/// \param text  any bytes
/// \param pos   < text.size()
inline Utf8Step decode_utf8_step(std::string_view text, std::size_t pos) {
  const auto byte_at = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte_at(pos);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const unsigned length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The first continuation byte has a narrower range after E0, ED, F0 and F4 (table 3-7).
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  char32_t code_point = lead & (0x7Fu >> length);
  for (unsigned i = 1; i < length; ++i) {
    if (pos + i >= text.size()) {
      return {kReplacementCharacter, static_cast<std::uint8_t>(i), false, true};
    }
    const std::uint8_t byte = byte_at(pos + i);
    if (byte < low || byte > high) {
      return {kReplacementCharacter, static_cast<std::uint8_t>(i), false, false};
    }
    code_point = (code_point << 6) | (byte & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, static_cast<std::uint8_t>(length), true, false};
}

/// True where the eight bytes at `bytes` are all ASCII.
inline bool is_ascii_word(const char* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof(word));
  return (word & 0x8080808080808080u) == 0;
}

/// Offset of the first byte that is not part of valid UTF-8, or `text.size()` where all of it is.
inline std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t pos = 0;
  while (pos < text.size()) {
    if (text.size() - pos >= 8 && is_ascii_word(text.data() + pos)) {
      pos += 8;
      continue;
    }
    const Utf8Step step = decode_utf8_step(text, pos);
    if (!step.valid) return pos;
    pos += step.num_bytes;
  }
  return pos;
}

/// True where all of `text` is well-formed UTF-8.
inline bool is_valid_utf8(std::string_view text) {
  return find_invalid_utf8(text) == text.size();
}

}  // namespace chunkllm
