// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/text/utf8.hpp"

namespace chunkllm::detail {

/// The printable code point that stands for each byte in byte-level BPE vocabularies.
///
/// 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves, the other 68 bytes, in order, are
/// U+0100 up. Source: GPT-2's `bytes_to_unicode`.
constexpr std::array<char16_t, 256> make_byte_alphabet() {
  std::array<char16_t, 256> alphabet{};
  char16_t next = 0x100;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                        (byte >= 0xAE && byte <= 0xFF);
    alphabet[byte] = itself ? static_cast<char16_t>(byte) : next++;
  }
  return alphabet;
}
inline constexpr std::array<char16_t, 256> kByteAlphabet = make_byte_alphabet();

inline constexpr std::size_t kByteAlphabetEnd = 0x100 + 68;

/// The byte of each code point below `kByteAlphabetEnd`, or -1 where it stands for none.
constexpr std::array<std::int16_t, kByteAlphabetEnd> make_alphabet_bytes() {
  std::array<std::int16_t, kByteAlphabetEnd> bytes{};
  for (auto& byte : bytes) byte = -1;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    bytes[kByteAlphabet[byte]] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}
inline constexpr std::array<std::int16_t, kByteAlphabetEnd> kAlphabetBytes = make_alphabet_bytes();

/// Appends the bytes that a token's text stands for.
///
/// \return  false, with the text's own bytes appended, where a character is not of the alphabet:
///          such a token decodes to its text and is never the result of byte-level BPE
inline bool append_token_bytes(std::string_view token, std::string& out) {
  const std::size_t start = out.size();
  for (std::size_t pos = 0; pos < token.size();) {
    const Utf8Step step = decode_utf8_step(token, pos);
    const std::int16_t byte = step.valid && step.code_point < kByteAlphabetEnd
                                  ? kAlphabetBytes[step.code_point]
                                  : std::int16_t{-1};
    if (byte < 0) {
      out.resize(start);
      out.append(token);
      return false;
    }
    out.push_back(static_cast<char>(byte));
    pos += step.num_bytes;
  }
  return true;
}

}  // namespace chunkllm::detail
