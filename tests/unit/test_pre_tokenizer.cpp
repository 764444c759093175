// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/pre_tokenizer.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace chunkllm {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(std::vector<SplitRule> rules, std::string_view text) {
  Pieces pieces;
  split_text(rules, text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(PreTokenizer, NoRulesAndNoText) {
  EXPECT_EQ(split({}, "a b"), Pieces{"a b"});
  EXPECT_EQ(split({SplitRule::kGpt2}, ""), Pieces{});
}

TEST(PreTokenizer, Gpt2) {
  const std::vector<SplitRule> rules = {SplitRule::kGpt2};
  EXPECT_EQ(split(rules, "It's 2024, isn't it?"),
            (Pieces{"It", "'s", " 2024", ",", " isn", "'t", " it", "?"}));
  EXPECT_EQ(split(rules, "IT'S"), (Pieces{"IT", "'", "S"}));
  EXPECT_EQ(split(rules, "'re've'm'll'd"), (Pieces{"'re", "'ve", "'m", "'ll", "'d"}));
  EXPECT_EQ(split(rules, " 's"), (Pieces{" '", "s"}));
  EXPECT_EQ(split(rules, "a  b"), (Pieces{"a", " ", " b"}));
  EXPECT_EQ(split(rules, "a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(split(rules, "a \n b"), (Pieces{"a", " \n", " b"}));
  EXPECT_EQ(split(rules, "a\nb"), (Pieces{"a", "\n", "b"}));
  EXPECT_EQ(split(rules, " "), (Pieces{" "}));
  EXPECT_EQ(split(rules, "x\xC2\x85y"), (Pieces{"x", "\xC2\x85", "y"}));
  EXPECT_EQ(split(rules, "x\xE1\xA0\x8Ey"), (Pieces{"x", "\xE1\xA0\x8E", "y"}));  // U+180E
  EXPECT_EQ(split(rules,
                  " \xE3\x80\x80"
                  "a"),
            (Pieces{" ", "\xE3\x80\x80", "a"}));
  EXPECT_EQ(split(rules,
                  "a\xCC\x81"
                  "b"),
            (Pieces{"a", "\xCC\x81", "b"}));  // a mark is no letter
}

TEST(PreTokenizer, Llama3) {
  const std::vector<SplitRule> rules = {SplitRule::kLlama3};
  EXPECT_EQ(split(rules, "It'S 12345"), (Pieces{"It", "'S", " ", "123", "45"}));
  EXPECT_EQ(split(rules, "x'\xC5\xBFy"), (Pieces{"x", "'\xC5\xBF", "y"}));  // the long s
  EXPECT_EQ(split(rules, "'LL'Ve"), (Pieces{"'LL", "'Ve"}));
  EXPECT_EQ(split(rules, "\tabc -def"), (Pieces{"\tabc", " -", "def"}));
  EXPECT_EQ(split(rules, "(abc)"), (Pieces{"(abc", ")"}));
  EXPECT_EQ(split(rules, "a);\r\n\n b"), (Pieces{"a", ");\r\n\n", " b"}));
  EXPECT_EQ(split(rules, "a \n \n  b"), (Pieces{"a", " \n \n", " ", " b"}));
  EXPECT_EQ(split(rules, "\nabc"), (Pieces{"\n", "abc"}));
  EXPECT_EQ(split(rules, "a  1"), (Pieces{"a", " ", " ", "1"}));
  EXPECT_EQ(split(rules, "a  "), (Pieces{"a", "  "}));
  EXPECT_EQ(split(rules, "\xC2\xA0x"), (Pieces{"\xC2\xA0x"}));
  EXPECT_EQ(split(rules, "\xC2\xA0!"), (Pieces{"\xC2\xA0", "!"}));
}

TEST(PreTokenizer, Qwen2TakesOneNumberCharacterAtATime) {
  EXPECT_EQ(split({SplitRule::kQwen2},
                  "a 12\xC2\xBD"
                  "b"),
            (Pieces{"a", " ", "1", "2", "\xC2\xBD", "b"}));
}

TEST(PreTokenizer, DigitsComeBeforeTheNextRule) {
  EXPECT_EQ(split({SplitRule::kDigits}, "a12 b"), (Pieces{"a", "1", "2", " b"}));
  EXPECT_EQ(split({SplitRule::kDigitRuns}, "a12 b"), (Pieces{"a", "12", " b"}));
  // The space before a digit ends its piece, so that the look-ahead sees the end of text.
  EXPECT_EQ(split({SplitRule::kDigits, SplitRule::kGpt2}, "in  1999"),
            (Pieces{"in", "  ", "1", "9", "9", "9"}));
}

TEST(PreTokenizer, PiecesCoverTheTextAndAreNeverEmpty) {
  const std::string pool[] = {
      "a", "'",        "s",        " ",        "\n",           "\r",       "1",
      ".", "\xC3\xA9", "\xC5\xBF", "\xC2\xA0", "\xE3\x80\x80", "\xCC\x81", "\xF0\x9F\x98\x80"};
  unsigned state = 1;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int n = 0; n < 10; ++n) {
      state = state * 1664525 + 1013904223;
      text += pool[(state >> 16) % std::size(pool)];
    }
    for (const SplitRule rule : {SplitRule::kGpt2, SplitRule::kLlama3, SplitRule::kQwen2,
                                 SplitRule::kDigits, SplitRule::kDigitRuns}) {
      std::string joined;
      for (const auto& piece : split({rule}, text)) {
        ASSERT_FALSE(piece.empty());
        joined += piece;
      }
      ASSERT_EQ(joined, text);
    }
  }
}

}  // namespace
}  // namespace chunkllm
