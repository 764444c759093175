// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/text/unicode_classes_generated.hpp"

namespace chunkllm {

/// Bits of a code point's class byte. The generator script writes the same values.
enum UnicodeClass : std::uint8_t {
  kUnicodeLetter = 1,      ///< general category L: \p{L}
  kUnicodeNumber = 2,      ///< general category N (Nd, Nl, No): \p{N}
  kUnicodeWhiteSpace = 4,  ///< property White_Space: \s
  kUnicodeWord = 8,        ///< Alphabetic, M, Nd, Pc or Join_Control: \w of UTS 18
  kUnicodeMark = 16,       ///< general category M: \p{M}
  kUnicodeNfcInert = 32    ///< combining class 0 and NFC_Quick_Check=Yes
};

/// All class bits of a code point; 0 above U+10FFFF. Two table reads.
///
/// Source: Unicode Character Database, version `detail::kUnicodeVersion`.
constexpr std::uint8_t unicode_classes(char32_t code_point) {
  if (code_point > 0x10FFFF) return 0;
  const std::uint32_t block = detail::kUnicodeClassIndex[code_point / detail::kUnicodeBlockSize];
  return detail::kUnicodeClassBlocks[block * detail::kUnicodeBlockSize +
                                     code_point % detail::kUnicodeBlockSize];
}

/// Canonical combining class, 0 to 240; 0 above U+10FFFF.
constexpr std::uint8_t canonical_combining_class(char32_t code_point) {
  if (code_point > 0x10FFFF) return 0;
  const std::uint32_t block = detail::kCombiningClassIndex[code_point / detail::kUnicodeBlockSize];
  return detail::kCombiningClassBlocks[block * detail::kUnicodeBlockSize +
                                       code_point % detail::kUnicodeBlockSize];
}

constexpr bool is_letter(char32_t code_point) {
  return (unicode_classes(code_point) & kUnicodeLetter) != 0;
}
constexpr bool is_number(char32_t code_point) {
  return (unicode_classes(code_point) & kUnicodeNumber) != 0;
}
constexpr bool is_white_space(char32_t code_point) {
  return (unicode_classes(code_point) & kUnicodeWhiteSpace) != 0;
}
constexpr bool is_word_character(char32_t code_point) {
  return (unicode_classes(code_point) & kUnicodeWord) != 0;
}
constexpr bool is_mark(char32_t code_point) {
  return (unicode_classes(code_point) & kUnicodeMark) != 0;
}

}  // namespace chunkllm
