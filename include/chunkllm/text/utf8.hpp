// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/core/utf8.hpp"

namespace chunkllm {

/// Decodes one code point of text that is known to be valid UTF-8.
///
/// \param text  valid UTF-8 from `pos` on
/// \param pos   start of a sequence
inline Utf8Step decode_valid_utf8(const char* text, std::size_t pos) {
  const auto byte_at = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<std::uint8_t>(text[pos + i]));
  };
  const char32_t lead = byte_at(0);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xE0) return {((lead & 0x1F) << 6) | (byte_at(1) & 0x3F), 2, true, false};
  if (lead < 0xF0) {
    return {((lead & 0x0F) << 12) | ((byte_at(1) & 0x3F) << 6) | (byte_at(2) & 0x3F), 3, true,
            false};
  }
  return {((lead & 0x07) << 18) | ((byte_at(1) & 0x3F) << 12) | ((byte_at(2) & 0x3F) << 6) |
              (byte_at(3) & 0x3F),
          4, true, false};
}

/// Appends the UTF-8 form of a code point; surrogates and values above U+10FFFF become U+FFFD.
inline void append_utf8(char32_t code_point, std::string& out) {
  if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)) {
    code_point = kReplacementCharacter;
  }
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

/// The bytes as valid UTF-8: each maximal ill-formed subpart becomes one U+FFFD.
inline std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  std::size_t pos = 0;
  while (pos < bytes.size()) {
    const std::size_t valid_end = pos + find_invalid_utf8(bytes.substr(pos));
    out.append(bytes.substr(pos, valid_end - pos));
    if (valid_end == bytes.size()) break;
    append_utf8(kReplacementCharacter, out);
    pos = valid_end + decode_utf8_step(bytes, valid_end).num_bytes;
  }
  return out;
}

}  // namespace chunkllm
