// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/text/unicode_classes.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

namespace detail {

// Hangul syllables compose and decompose by arithmetic (Unicode standard, section 3.12).
inline constexpr char32_t kHangulSBase = 0xAC00;
inline constexpr char32_t kHangulLBase = 0x1100;
inline constexpr char32_t kHangulVBase = 0x1161;
inline constexpr char32_t kHangulTBase = 0x11A7;
inline constexpr char32_t kHangulLCount = 19;
inline constexpr char32_t kHangulVCount = 21;
inline constexpr char32_t kHangulTCount = 28;
inline constexpr char32_t kHangulSCount = kHangulLCount * kHangulVCount * kHangulTCount;

struct CombiningCodePoint {
  char32_t code_point;
  std::uint8_t combining_class;
};

/// Appends the full canonical decomposition of a code point.
inline void append_decomposition(char32_t code_point, std::vector<CombiningCodePoint>& out) {
  const auto put = [&](char32_t c) { out.push_back({c, canonical_combining_class(c)}); };
  if (code_point >= kHangulSBase && code_point < kHangulSBase + kHangulSCount) {
    const char32_t index = code_point - kHangulSBase;
    put(kHangulLBase + index / (kHangulVCount * kHangulTCount));
    put(kHangulVBase + index / kHangulTCount % kHangulVCount);
    if (index % kHangulTCount != 0) put(kHangulTBase + index % kHangulTCount);
    return;
  }
  const auto* const begin = std::begin(kDecomposedCodePoints);
  const auto* const end = std::end(kDecomposedCodePoints);
  const auto* const found = std::lower_bound(begin, end, static_cast<std::uint32_t>(code_point));
  if (found == end || *found != code_point) {
    put(code_point);
    return;
  }
  const auto entry = found - begin;
  for (unsigned i = kDecompositionOffsets[entry]; i < kDecompositionOffsets[entry + 1]; ++i) {
    put(kDecompositionPool[i]);
  }
}

/// The primary composite of two code points, or 0 where there is none.
inline char32_t compose_pair(char32_t first, char32_t second) {
  if (first >= kHangulLBase && first < kHangulLBase + kHangulLCount && second >= kHangulVBase &&
      second < kHangulVBase + kHangulVCount) {
    return kHangulSBase +
           ((first - kHangulLBase) * kHangulVCount + (second - kHangulVBase)) * kHangulTCount;
  }
  if (first >= kHangulSBase && first < kHangulSBase + kHangulSCount &&
      (first - kHangulSBase) % kHangulTCount == 0 && second > kHangulTBase &&
      second < kHangulTBase + kHangulTCount) {
    return first + (second - kHangulTBase);
  }
  std::size_t low = 0;
  std::size_t high = std::size(kCompositions) / 3;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    const std::uint32_t* const row = kCompositions + 3 * middle;
    if (row[0] == first && row[1] == second) return row[2];
    if (row[0] < first || (row[0] == first && row[1] < second)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return 0;
}

/// Sorts runs of non-zero combining classes, stably.
inline void order_canonically(std::vector<CombiningCodePoint>& text) {
  const auto is_starter = [](const CombiningCodePoint& c) { return c.combining_class == 0; };
  for (auto run = text.begin(); run != text.end();) {
    const auto end = std::find_if(run, text.end(), is_starter);
    std::stable_sort(run, end, [](const CombiningCodePoint& a, const CombiningCodePoint& b) {
      return a.combining_class < b.combining_class;
    });
    run = std::find_if_not(end, text.end(), is_starter);
  }
}

/// Composes canonically ordered text in place.
inline void compose_canonically(std::vector<CombiningCodePoint>& text) {
  std::size_t out = 0;
  std::size_t starter = text.size();  // no starter seen yet
  for (std::size_t i = 0; i < text.size(); ++i) {
    const CombiningCodePoint current = text[i];
    if (starter < out) {
      // Blocked where something not below its class stands between it and the starter.
      const bool adjacent = starter + 1 == out;
      const bool blocked = !adjacent && (text[out - 1].combining_class == 0 ||
                                         text[out - 1].combining_class >= current.combining_class);
      const char32_t composite =
          blocked ? 0 : compose_pair(text[starter].code_point, current.code_point);
      if (composite != 0) {
        text[starter].code_point = composite;
        continue;
      }
    }
    if (current.combining_class == 0) starter = out;
    text[out++] = current;
  }
  text.resize(out);
}

}  // namespace detail

/// Normalization Form C of a text.
///
/// Runs of code points that NFC cannot change are copied as they are; only what lies between them
/// is decomposed, ordered and composed. Code points that are not assigned in the tables' Unicode
/// version stay as they are.
///
/// \param text  valid UTF-8; an ill-formed subpart comes out as U+FFFD
/// \return      valid UTF-8
/// Cost:   one table read a code point for text that is in NFC; n log n in the longest run of marks
/// Source: Unicode Standard Annex 15
inline std::string to_nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::vector<detail::CombiningCodePoint> segment;
  std::size_t pos = 0;
  std::size_t copied = 0;    // text before this is in `out`
  std::size_t boundary = 0;  // start of the last inert code point before pos
  while (pos < text.size()) {
    if (text.size() - pos >= 8 && is_ascii_word(text.data() + pos)) {
      pos += 8;
      boundary = pos - 1;
      continue;
    }
    const Utf8Step step = decode_utf8_step(text, pos);
    if (step.valid && (unicode_classes(step.code_point) & kUnicodeNfcInert) != 0) {
      boundary = pos;
      pos += step.num_bytes;
      continue;
    }
    // The segment runs from the inert code point before this one up to the next inert one.
    out.append(text.substr(copied, boundary - copied));
    segment.clear();
    pos = boundary;
    while (pos < text.size()) {
      const Utf8Step next = decode_utf8_step(text, pos);
      const bool inert = (unicode_classes(next.code_point) & kUnicodeNfcInert) != 0;
      if (inert && pos != boundary) break;
      detail::append_decomposition(next.code_point, segment);
      pos += next.num_bytes;
    }
    detail::order_canonically(segment);
    detail::compose_canonically(segment);
    for (const auto& c : segment) append_utf8(c.code_point, out);
    copied = pos;
    boundary = pos;
  }
  out.append(text.substr(copied));
  return out;
}

}  // namespace chunkllm
