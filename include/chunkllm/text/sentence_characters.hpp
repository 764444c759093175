// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

/// Character classes shared by the two sentence splitters. Not API.
namespace chunkllm::detail {

/// What a character means to a sentence splitter.
enum class SentenceChar : std::uint8_t {
  kOther,        ///< symbols and controls
  kLower,        ///< a small letter
  kUpper,        ///< a capital letter
  kUncased,      ///< a letter of a script without case
  kDigit,        ///< 0 to 9
  kSpace,        ///< horizontal white space and carriage return
  kNewline,      ///< line feed and U+2028; U+2029 counts as one line feed
  kFullStop,     ///< '.'
  kStrongStop,   ///< '!', '?' and their like: end a sentence before a space
  kFinalStop,    ///< U+3002 and its like: end a sentence whatever follows
  kEllipsis,     ///< U+2026
  kQuote,        ///< the straight double quote
  kApostrophe,   ///< ' and U+2019, which may also close a quotation
  kOpenQuote,    ///< a directed opening quote
  kCloseQuote,   ///< a directed closing quote
  kOpenBracket,  ///< ( [ and full-width forms
  kCloseBracket,
  kBrace,     ///< { }
  kEmphasis,  ///< '_' and '*', which wrap words in plain text and Markdown
  kDash,      ///< hyphen and dashes
  kClause     ///< ; and :
};

inline constexpr std::array<SentenceChar, 128> make_ascii_sentence_chars() {
  std::array<SentenceChar, 128> table{};
  for (std::size_t c = 'a'; c <= 'z'; ++c) table[c] = SentenceChar::kLower;
  for (std::size_t c = 'A'; c <= 'Z'; ++c) table[c] = SentenceChar::kUpper;
  for (std::size_t c = '0'; c <= '9'; ++c) table[c] = SentenceChar::kDigit;
  table[' '] = table['\t'] = table['\r'] = table['\f'] = table['\v'] = SentenceChar::kSpace;
  table['\n'] = SentenceChar::kNewline;
  table['.'] = SentenceChar::kFullStop;
  table['!'] = table['?'] = SentenceChar::kStrongStop;
  table['"'] = SentenceChar::kQuote;
  table['\''] = SentenceChar::kApostrophe;
  table['('] = table['['] = SentenceChar::kOpenBracket;
  table[')'] = table[']'] = SentenceChar::kCloseBracket;
  table['{'] = table['}'] = SentenceChar::kBrace;
  table['-'] = SentenceChar::kDash;
  table['_'] = table['*'] = SentenceChar::kEmphasis;
  table[';'] = table[':'] = SentenceChar::kClause;
  return table;
}

inline constexpr std::array<SentenceChar, 128> kAsciiSentenceChars = make_ascii_sentence_chars();

/// Case of the letters outside ASCII for which ranges and parity suffice.
///
/// Rare exceptions inside the ranges are tolerated: the class only tells whether a word looks
/// like the start of a sentence.
constexpr SentenceChar cased_letter_class(char32_t c) {
  const auto by_case = [](bool is_upper) {
    return is_upper ? SentenceChar::kUpper : SentenceChar::kLower;
  };
  if (c < 0xC0) {
    return c == 0xAA || c == 0xB5 || c == 0xBA ? SentenceChar::kLower : SentenceChar::kOther;
  }
  if (c == 0xD7 || c == 0xF7) return SentenceChar::kOther;
  if (c < 0x100) return by_case(c < 0xDF);
  if (c < 0x250) {
    const bool is_odd_upper = (c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E);
    return by_case((c % 2 == 1) == is_odd_upper);
  }
  if (c < 0x370) return c < 0x2B0 ? SentenceChar::kLower : SentenceChar::kOther;
  if (c < 0x400) return by_case(c >= 0x386 && c <= 0x3AB && c != 0x390);
  if (c < 0x460) return by_case(c < 0x430);
  if (c < 0x530) return by_case(c % 2 == 0);
  if (c < 0x557) return by_case(true);
  if (c >= 0x561 && c < 0x588) return by_case(false);
  if (c >= 0x1E00 && c < 0x1F00) return by_case(c % 2 == 0);
  return SentenceChar::kUncased;
}

/// Class of a character outside ASCII.
constexpr SentenceChar wide_sentence_char(char32_t c) {
  switch (c) {
    case 0x00A0:
    case 0x0085:
    case 0x202F:
    case 0x205F:
    case 0x3000:
    case 0xFEFF: return SentenceChar::kSpace;
    case 0x2028:
    case 0x2029: return SentenceChar::kNewline;
    case 0x203C:
    case 0x203D:
    case 0x2047:
    case 0x2048:
    case 0x2049:
    case 0x061F:
    case 0x06D4:
    case 0x0589:
    case 0x1362:
    case 0x1367: return SentenceChar::kStrongStop;
    case 0x0964:
    case 0x0965:
    case 0x104A:
    case 0x104B:
    case 0x3002:
    case 0xFF01:
    case 0xFF0E:
    case 0xFF1F:
    case 0xFF61: return SentenceChar::kFinalStop;
    case 0x2013:
    case 0x2014:
    case 0x2015: return SentenceChar::kDash;
    case 0x2026: return SentenceChar::kEllipsis;
    case 0x2019: return SentenceChar::kApostrophe;
    case 0x00AB:
    case 0x2018:
    case 0x201C:
    case 0x201E:
    case 0x300C:
    case 0x300E: return SentenceChar::kOpenQuote;
    case 0x00BB:
    case 0x201D:
    case 0x300D:
    case 0x300F: return SentenceChar::kCloseQuote;
    case 0x3010:
    case 0xFF08: return SentenceChar::kOpenBracket;
    case 0x3011:
    case 0xFF09: return SentenceChar::kCloseBracket;
    case 0xFF1A:
    case 0xFF1B: return SentenceChar::kClause;
    case 0xFFFD: return SentenceChar::kOther;
    default: break;
  }
  if (c >= 0x2000 && c < 0x200B) return SentenceChar::kSpace;
  // Punctuation, currency, arrows, symbols, box drawing, dingbats, then CJK punctuation, emoji.
  if ((c >= 0x2000 && c < 0x2C00) || (c >= 0x3000 && c < 0x3041) || c >= 0x1F000) {
    return SentenceChar::kOther;
  }
  return cased_letter_class(c);
}

/// True for a letter of any script.
constexpr bool is_sentence_letter(SentenceChar c) {
  return c == SentenceChar::kLower || c == SentenceChar::kUpper || c == SentenceChar::kUncased;
}

/// True for the characters that may stand between a sentence's stop and the following space.
constexpr bool is_sentence_closer(SentenceChar c) {
  return c == SentenceChar::kQuote || c == SentenceChar::kApostrophe ||
         c == SentenceChar::kCloseQuote || c == SentenceChar::kCloseBracket ||
         c == SentenceChar::kEmphasis;
}

constexpr bool is_sentence_stop(SentenceChar c) {
  return c == SentenceChar::kFullStop || c == SentenceChar::kStrongStop ||
         c == SentenceChar::kFinalStop || c == SentenceChar::kEllipsis;
}

constexpr bool is_sentence_space(SentenceChar c) {
  return c == SentenceChar::kSpace || c == SentenceChar::kNewline;
}

constexpr bool is_ascii_space(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x80 && is_sentence_space(kAsciiSentenceChars[byte]);
}

/// A sentence of this many bytes may end with a line of code, verse or a table.
inline constexpr std::size_t kMinLineUnitBytes = 96;

/// Lines of wrapped prose have at least this many bytes.
inline constexpr std::size_t kMinProseLineBytes = 48;

}  // namespace chunkllm::detail
