// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/utf8.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace chunkllm {
namespace {

TEST(Utf8, EveryScalarValueSurvivesARoundTrip) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Step step = decode_utf8_step(text, 0);
    ASSERT_TRUE(step.valid) << static_cast<unsigned>(c);
    ASSERT_TRUE(step.code_point == c);
    ASSERT_EQ(step.num_bytes, text.size());
    ASSERT_TRUE(decode_valid_utf8(text.data(), 0).code_point == c);
    ASSERT_EQ(decode_valid_utf8(text.data(), 0).num_bytes, text.size());
  }
}

TEST(Utf8, SurrogatesAndLargeValuesEncodeAsReplacement) {
  for (const char32_t c : {char32_t{0xD800}, char32_t{0xDFFF}, char32_t{0x110000}}) {
    std::string text;
    append_utf8(c, text);
    EXPECT_EQ(text, "\xEF\xBF\xBD");
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8(""), 0u);
  EXPECT_EQ(find_invalid_utf8("plain ASCII, more than eight bytes"), 34u);
  EXPECT_EQ(find_invalid_utf8("12345678\xFF"), 8u);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2u);
  EXPECT_EQ(find_invalid_utf8("\xC0\x80"), 0u);              // overlong
  EXPECT_EQ(find_invalid_utf8("\xE0\x80\x80"), 0u);          // overlong
  EXPECT_EQ(find_invalid_utf8("x\xED\xA0\x80"), 1u);         // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0u);      // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("\xF0\x9F\x98\x80\xE2"), 4u);  // truncated
  EXPECT_EQ(find_invalid_utf8("\xE2\x82\xAC"), 3u);
}

TEST(Utf8, ValidityFollowsTheStandard) {
  for (const std::string_view text : {"", "ascii", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
                                      "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80"}) {
    EXPECT_TRUE(is_valid_utf8(text));
  }
  for (const std::string_view text :
       {"\x80", "\xc3", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xff", "a\xc3z"}) {
    EXPECT_FALSE(is_valid_utf8(text));
  }
}

// The expected texts are those of Python's bytes.decode("utf-8", "replace").
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("a\xFFz"), "a" + r + "z");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82z"), r + "z");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x80\x80"), r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(replace_invalid_utf8("fine \xC3\xA9"), "fine \xC3\xA9");
}

TEST(Utf8, IncompleteMeansThatMoreBytesCouldCompleteIt) {
  EXPECT_TRUE(decode_utf8_step("\xF0\x9F\x98", 0).incomplete);
  EXPECT_EQ(decode_utf8_step("\xF0\x9F\x98", 0).num_bytes, 3u);
  EXPECT_FALSE(decode_utf8_step("\xE0\x80", 0).incomplete);
  EXPECT_FALSE(decode_utf8_step("\x80", 0).incomplete);
  EXPECT_FALSE(decode_utf8_step("\xFF", 0).incomplete);
}

}  // namespace
}  // namespace chunkllm
