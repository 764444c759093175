// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/sentence_boundary_stream.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace chunkllm {
namespace {

/// Tokens cut as byte-level tokenizers cut English: a word with the space before it, single
/// digits, runs of marks, single line feeds.
std::vector<std::string> cut(std::string_view text) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80) != 0;
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto is_space = [](char c) { return c == ' ' || c == '\n'; };
  std::vector<std::string> tokens;
  std::size_t pos = 0;
  while (pos < text.size()) {
    std::size_t end = pos;
    if (text[end] == ' ' && end + 1 < text.size() && !is_space(text[end + 1])) ++end;
    if (is_letter(text[end])) {
      while (end < text.size() && is_letter(text[end])) ++end;
    } else if (is_digit(text[end]) || is_space(text[end])) {
      ++end;
    } else {
      while (end < text.size() && !is_letter(text[end]) && !is_digit(text[end]) &&
             !is_space(text[end])) {
        ++end;
      }
    }
    tokens.emplace_back(text.substr(pos, end - pos));
    pos = end;
  }
  return tokens;
}

/// The text with '|' behind each token that ends a chunk.
std::string mark(const std::vector<std::string>& tokens) {
  SentenceBoundaryStream stream;
  std::string marked;
  for (const std::string& token : tokens) {
    marked += token;
    if (stream.on_token(token)) marked += '|';
  }
  return marked;
}

void expect_boundaries(const std::string& marked) {
  std::string text;
  for (const char c : marked) {
    if (c != '|') text += c;
  }
  EXPECT_EQ(mark(cut(text)), marked);
}

TEST(SentenceBoundaryStream, PlainStops) {
  expect_boundaries("The rain stopped.| Did we go out?| We did!| And");
  expect_boundaries("What?!| Yes.|");
}

TEST(SentenceBoundaryStream, WordsThatKeepTheirStop) {
  expect_boundaries("Dr. Bell met Mrs. Hart at 5 p.m. on Sunday.| She");
  expect_boundaries("It is by P. G. Marsh, cf. Fig. 3 on p. 12, etc. and so on.|");
  expect_boundaries("In the U.S. it rained.|");
  expect_boundaries("She said no.| See No. 12.|");
}

TEST(SentenceBoundaryStream, LettersOfAnAbbreviationKeepTheirStops) {
  expect_boundaries("Some marks, e.g. commas, i.e. small ones, end at 7 p.m. or so.| And then?|");
}

TEST(SentenceBoundaryStream, NumbersAreKnownUpToTheStopOnly) {
  expect_boundaries("1. Tea is hot.| It is 3.|14 or 4.|");
  expect_boundaries("It ends.| 2. Tea is hot.|");
}

TEST(SentenceBoundaryStream, AStopInsideATokenThatGoesOn) {
  const std::vector<std::string> tokens = {"It",  " is",     " 3.14", " or", " a.b",
                                           " or", " so. An", " end",  ".\n", "x"};
  EXPECT_EQ(mark(tokens), "It is 3.14 or a.b or so. An| end.\n|x");
}

TEST(SentenceBoundaryStream, ClosingMarksBelongToTheSentence) {
  expect_boundaries("He said, \"Sit down. Now.\"| Then");
  expect_boundaries("\"Sit down. Now!\"| Then");
  expect_boundaries("\xE2\x80\x9CSit down. Now.\xE2\x80\x9D| Then");
  expect_boundaries("(It was late. Very late.)| Then he slept (he was tired.) and");
  EXPECT_EQ(mark({"It", " ended", ".", "\"", "\n", "\n", "So"}), "It ended.|\"\n\nSo");
}

TEST(SentenceBoundaryStream, EmphasisedLabels) {
  expect_boundaries("In _Fig._ 4 and _Exper._ 2 it is.|");
  expect_boundaries("It was _late_.| So");
}

TEST(SentenceBoundaryStream, Ellipses) {
  expect_boundaries("He was . . . not there.|");
  expect_boundaries("He paused...| Then");
  EXPECT_EQ(mark({"well", "... maybe", " so"}), "well... maybe so");
  EXPECT_EQ(mark({"well", "... Maybe", " so"}), "well... Maybe| so");
}

TEST(SentenceBoundaryStream, ParagraphsEndAtTheirBlankLine) {
  expect_boundaries("A heading\n\n|The text.|\n\nMore");
  EXPECT_EQ(mark({"A", " heading", "\n\n", "Text"}), "A heading\n\n|Text");
  EXPECT_EQ(mark({"A", " heading", "\r\n", " \t", "\n", "Text"}), "A heading\r\n \t\n|Text");
  expect_boundaries("\"An open quotation\n\n|It ends.| So");
}

TEST(SentenceBoundaryStream, LinesOfCodeEndOnlyInLongUnits) {
  const std::string line = "    function(one, two);\n";  // 24 bytes
  EXPECT_EQ(mark(cut(line + line + line)), line + line + line);
  EXPECT_EQ(mark(cut(line + line + line + line + line)), line + line + line + line + "|" + line);
  const std::string prose = "This line of wrapped prose is clearly longer than any of verse\n";
  EXPECT_EQ(mark(cut(prose + prose + prose)), prose + prose + prose);
}

TEST(SentenceBoundaryStream, OnIndentedLinesAStopCountsAtTheLineEnd) {
  EXPECT_EQ(mark({"  ", "object", ".", "call", "(x", ").", "then", ".\n", "So"}),
            "  object.call(x).then.\n|So");
  EXPECT_EQ(mark({"  ", "It", " ends", ".", "\n", "  ", "So"}), "  It ends.\n|  So");
  EXPECT_EQ(mark({"object", "\n", ".", "call", "()"}), "object\n.call()");
}

TEST(SentenceBoundaryStream, LongSentencesEndAtWeakerMarks) {
  std::string words;
  while (words.size() < 500) words += "word and ";
  expect_boundaries("so it is; and then " + words + "went;| and so");
  expect_boundaries("\"It is. So " + words + "it is.| And then.\"| So");
}

TEST(SentenceBoundaryStream, OtherScripts) {
  expect_boundaries("\xE4\xBB\x8A\xE6\x97\xA5\xE3\x80\x82|");
  EXPECT_EQ(mark({"\xE4\xBB\x8A", "\xE3\x80\x82", "\xE4\xBB\x8A", "\xEF\xBC\x9F", "\xE4\xBB\x8A"}),
            "\xE4\xBB\x8A\xE3\x80\x82|\xE4\xBB\x8A\xEF\xBC\x9F|\xE4\xBB\x8A");
  // A stop in the middle of a token needs no space after it.
  EXPECT_EQ(mark({"\xE4\xBB\x8A\xE3\x80\x82\xE4\xBB\x8A"}),
            "\xE4\xBB\x8A\xE3\x80\x82\xE4\xBB\x8A|");
  expect_boundaries("\xE0\xA4\x95 \xE0\xA5\xA4|");
  EXPECT_EQ(mark({"\xD9\x83", "\xD8\x9F", " x"}), "\xD9\x83\xD8\x9F| x");
}

TEST(SentenceBoundaryStream, TokensMaySplitCharacters) {
  const std::string stop = "\xE3\x80\x82";
  EXPECT_EQ(mark({"a", stop.substr(0, 1), stop.substr(1, 1), stop.substr(2, 1), "b"}),
            "a" + stop + "|b");
  EXPECT_EQ(mark({"a", stop.substr(0, 2), "", stop.substr(2) + "b"}), "a" + stop + "b|");
  // An incomplete character that never completes is a symbol; what follows it counts.
  EXPECT_EQ(mark({"a", "\xE3\x80", ".", " B"}), "a\xE3\x80.| B");
  EXPECT_EQ(mark({"a", "\xE3", "\xE3\x80\x82"}), "a\xE3\xE3\x80\x82|");
}

TEST(SentenceBoundaryStream, NoBoundaryWithoutContent) {
  EXPECT_EQ(mark({"", "", " ", "\n", "\n", ".", ".", "!", "\n\n", "\"", "."}), " \n\n..!\n\n\".");
  EXPECT_EQ(mark({"Yes", ".", "!", "\n\n", "\n", " "}), "Yes.|!\n\n\n ");
}

std::string random_text(std::mt19937& random, std::size_t num_pieces) {
  const std::string_view pieces[] = {"a",    "B",    "1",    ".",
                                     "!",    "?",    "\"",   "'",
                                     "(",    ")",    " ",    "\n",
                                     "\xE2", "\x80", "\x9C", "\xE2\x80\x9D",
                                     "_",    "Mr",   "U.S",  "\xE3\x80\x82",
                                     "\xFF", ";",    "{",    "-"};
  std::string text;
  for (std::size_t i = 0; i < num_pieces; ++i) {
    const std::size_t piece = random() % (std::size(pieces) + 1);
    text += piece < std::size(pieces) ? std::string(pieces[piece]) : std::string(1, '\0');
  }
  return text;
}

TEST(SentenceBoundaryStream, DecisionsDependOnTheTokensSoFarAlone) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(random, 60);
    std::vector<std::string> tokens;
    for (std::size_t pos = 0; pos < text.size();) {
      const std::size_t length = random() % 5;
      tokens.push_back(text.substr(pos, length));
      pos += length;
    }
    SentenceBoundaryStream stream;
    std::vector<SentenceBoundaryStream> states;
    std::vector<bool> decisions;
    for (const std::string& token : tokens) {
      states.push_back(stream);
      decisions.push_back(stream.on_token(token));
    }
    // Back to any token, over another continuation, and on again.
    const std::size_t back = random() % tokens.size();
    SentenceBoundaryStream again = states[back];
    for (const char c : random_text(random, 20)) again.on_token(std::string_view(&c, 1));
    again = states[back];
    for (std::size_t i = back; i < tokens.size(); ++i) {
      ASSERT_EQ(again, states[i]);
      ASSERT_EQ(again.on_token(tokens[i]), decisions[i]);
    }
    ASSERT_EQ(again, stream);
  }
}

TEST(SentenceBoundaryStream, TenMegabytesOfOneCharacterInOneToken) {
  for (const char c : {'a', '.', '"', '(', '\n', ' ', '\x80', '\xE3', '\0'}) {
    SentenceBoundaryStream stream;
    stream.on_token(std::string(10'000'000, c));
    stream.on_token("\n\nEnd");
    EXPECT_TRUE(stream.on_token("."));
  }
}

}  // namespace
}  // namespace chunkllm
