// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/nfc.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace chunkllm {
namespace {

std::string utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) append_utf8(c, out);
  return out;
}

TEST(Nfc, AsciiAndComposedTextStayAsTheyAre) {
  for (const std::u32string_view text :
       {U"", U"plain text, longer than eight bytes", U"\u00E9t\u00E9", U"\u65E5\u672C",
        U"\uAC00\uB098", U"\U0001F468\u200D\U0001F469"}) {
    EXPECT_EQ(to_nfc(utf8(text)), utf8(text));
  }
}

// Expected values are Python's unicodedata.normalize("NFC", text).
TEST(Nfc, ComposesOrdersAndReplacesSingletons) {
  const std::vector<std::pair<std::u32string_view, std::u32string_view>> cases = {
      {U"e\u0301", U"\u00E9"},
      {U"cafe\u0301 au lait", U"caf\u00E9 au lait"},
      {U"\u212B", U"\u00C5"},         // singleton
      {U"\u2126", U"\u03A9"},         // singleton
      {U"o\u0302\u0323", U"\u1ED9"},  // ordered, then composed twice
      {U"a\u0315\u0300\u05AE\u0300b", U"\u00E0\u05AE\u0300\u0315b"},
      {U"\u0958", U"\u0915\u093C"},              // composition exclusion
      {U"\uFB1D", U"\u05D9\u05B4"},              // composition exclusion
      {U"\u1100\u1161\u11A8", U"\uAC01"},        // Hangul LVT
      {U"\uAC00\u11A8", U"\uAC01"},              // Hangul LV + T
      {U"\uAC01\u11A8", U"\uAC01\u11A8"},        // LVT takes no more
      {U"\u1100\u1161\u11A7", U"\uAC00\u11A7"},  // T base is no trailing consonant
      {U"\u0DD9\u0DCF\u0DCA", U"\u0DDD"},        // starters that compose
      {U"\u0344", U"\u0308\u0301"},              // no starter
      {U"\u0301e", U"\u0301e"},                  // a mark first
      {U"a\u0301\u0301", U"\u00E1\u0301"},       // the second is not blocked, but has no pair
      {U"\U0001D15E", U"\U0001D157\U0001D165"},  // outside the BMP, excluded
      {U"\U00011099\U000110BA", U"\U0001109A"},  // outside the BMP, composed
      {U"\U0002F800", U"\u4E3D"},                // compatibility ideograph
      {U"\u0F71\u0F73", U"\u0F71\u0F71\u0F72"},  // decomposes to a non-starter
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(to_nfc(utf8(text)), utf8(expected)) << utf8(text);
    EXPECT_EQ(to_nfc("word " + utf8(text) + "x"), "word " + utf8(expected) + "x");
  }
}

TEST(Nfc, EveryCodePointIsStableAfterOneNormalization) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(c, text);
    const std::string once = to_nfc(text);
    ASSERT_EQ(to_nfc(once), once) << static_cast<unsigned>(c);
  }
}

TEST(Nfc, RandomTextIsStableAfterOneNormalization) {
  const std::u32string pool =
      U"ao\u0300\u0301\u0308\u0323\u0327\u0345\u1100\u1161\u11A8\uAC00\u0915"
      U"\u093C\u0DD9\u0DCF\u0DCA\u212B \u00E9";
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    std::u32string text;
    for (int n = 0; n < 8; ++n) text += pool[random() % pool.size()];
    const std::string once = to_nfc(utf8(text));
    ASSERT_EQ(to_nfc(once), once);
    // A normalised text normalises piecewise where the pieces meet at an ASCII letter or a space.
    ASSERT_EQ(to_nfc(utf8(text) + " " + utf8(text)).substr(0, once.size()), once);
  }
}

TEST(Nfc, ALongRunOfMarksIsNotQuadratic) {
  std::string text = "a";
  for (int i = 0; i < 200000; ++i) append_utf8(i % 2 == 0 ? 0x0323 : 0x0302, text);
  // One of each composes with the "a" to U+1EAD, three bytes; the others follow in order.
  const std::string normalized = to_nfc(text);
  ASSERT_EQ(normalized.size(), 3u + 2 * 99999 + 2 * 99999);
  EXPECT_EQ(normalized.substr(0, 5), "\xE1\xBA\xAD\xCC\xA3");
  EXPECT_EQ(normalized.substr(normalized.size() - 2), "\xCC\x82");
}

}  // namespace
}  // namespace chunkllm
