// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/unicode_classes.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace chunkllm {
namespace {

static_assert(is_letter(U'a') && !is_letter(U'1') && !is_letter(U'_'));

TEST(UnicodeClasses, CountsOfUnicode15) {
  ASSERT_EQ(std::string_view(detail::kUnicodeVersion), "15.0.0");
  std::size_t letters = 0;
  std::size_t numbers = 0;
  std::size_t spaces = 0;
  std::size_t marks = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    letters += is_letter(c);
    numbers += is_number(c);
    spaces += is_white_space(c);
    marks += is_mark(c);
  }
  // DerivedGeneralCategory.txt and PropList.txt of that version.
  EXPECT_EQ(letters, 136104u);
  EXPECT_EQ(numbers, 1831u);
  EXPECT_EQ(spaces, 25u);
  EXPECT_EQ(marks, 2450u);
}

TEST(UnicodeClasses, WhiteSpaceIsTheProperty) {
  for (const std::uint32_t c :
       {0x09u, 0x0Du, 0x20u, 0x85u, 0xA0u, 0x1680u, 0x2000u, 0x2028u, 0x3000u}) {
    EXPECT_TRUE(is_white_space(c)) << static_cast<unsigned>(c);
  }
  for (const std::uint32_t c : {0x1Cu, 0x180Eu, 0x200Bu, 0xFEFFu}) {
    EXPECT_FALSE(is_white_space(c)) << static_cast<unsigned>(c);
  }
}

TEST(UnicodeClasses, NumbersAreAllOfN) {
  EXPECT_TRUE(is_number(0x661));    // Nd
  EXPECT_TRUE(is_number(0x2167));   // Nl
  EXPECT_TRUE(is_number(0xBD));     // No
  EXPECT_FALSE(is_number(0x4E00));  // an ideograph that means one
}

TEST(UnicodeClasses, WordCharacters) {
  for (const char32_t c :
       {char32_t{'_'}, char32_t{'7'}, char32_t{0x300}, char32_t{0x200D}, char32_t{0x24B6}}) {
    EXPECT_TRUE(is_word_character(c)) << static_cast<unsigned>(c);
  }
  for (const char32_t c : {char32_t{'-'}, char32_t{0xBD}, char32_t{' '}}) {
    EXPECT_FALSE(is_word_character(c)) << static_cast<unsigned>(c);
  }
}

TEST(UnicodeClasses, AboveTheLastCodePointThereIsNothing) {
  EXPECT_EQ(unicode_classes(0x110000), 0);
  EXPECT_EQ(unicode_classes(0xFFFFFFFF), 0);
  EXPECT_EQ(canonical_combining_class(0x110000), 0);
}

TEST(UnicodeClasses, CombiningClasses) {
  EXPECT_EQ(canonical_combining_class('a'), 0);
  EXPECT_EQ(canonical_combining_class(0x301), 230);
  EXPECT_EQ(canonical_combining_class(0x323), 220);
  EXPECT_EQ(canonical_combining_class(0x345), 240);
}

}  // namespace
}  // namespace chunkllm
