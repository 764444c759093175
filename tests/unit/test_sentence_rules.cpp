// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/sentence_rules.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace chunkllm {
namespace {

/// The document of the sentences written with '|' at each end, and its ends.
void expect_sentences(const std::string& marked) {
  std::string text;
  std::vector<std::size_t> expected;
  for (const char c : marked) {
    if (c == '|') {
      expected.push_back(text.size());
    } else {
      text += c;
    }
  }
  const std::vector<std::size_t> ends = sentence_ends(text);
  std::string found;
  std::size_t begin = 0;
  for (const std::size_t end : ends) {
    found += text.substr(begin, end - begin) + "|";
    begin = end;
  }
  found += text.substr(begin);
  EXPECT_EQ(found, marked);
}

TEST(SentenceRules, PlainStops) {
  expect_sentences("The rain stopped.| We went out.|");
  expect_sentences("Is it late?| No!| It is early.|");
  expect_sentences("Really?!| Yes!!| Fine.|");
  expect_sentences("no final stop here|");
  expect_sentences("One.|  Two.|   ");
}

TEST(SentenceRules, Titles) {
  expect_sentences("We met Dr. Bell and Mrs. Hart at noon.| They left.|");
  expect_sentences("St. Mary's lies below Mt. Ida.|");
  expect_sentences("The Rev. Mr. Cole wrote to Capt. Hall.|");
}

TEST(SentenceRules, ReferencesNeedANumber) {
  expect_sentences("It stands on p. 12 and in Fig. 3 of vol. IV here.|");
  expect_sentences("See sec. (4) for more.|");
  expect_sentences("She said no.| He said yes.|");
}

TEST(SentenceRules, AbbreviationsEndBeforeAUsualFirstWord) {
  expect_sentences("He works for Marsh & Co. in town.|");
  expect_sentences("He works for Marsh & Co.| They sell tea.|");
  expect_sentences("Bring paper, ink, etc. and come.|");
  expect_sentences("He moved to the U.S. in May.| She did not.|");
  expect_sentences("He moved to the U.K.| How did it go?|");
  expect_sentences("The U.S. Senate voted.|");
  expect_sentences("Some fruit, e.g. plums, i.e. Damsons, is sour.|");
}

TEST(SentenceRules, TimesOfDay) {
  expect_sentences("We left at 7 p.m. on Friday.|");
  expect_sentences("The last train leaves at 7 p.m.| Mr. Hale took it.|");
  expect_sentences("At 6 a.m. Mr. Hale rose.|");
}

TEST(SentenceRules, Initials) {
  expect_sentences("The author is P. G. Marsh of Leeds.|");
  expect_sentences("It was only you and I.| Did you see Ann B. Moss there?|");
}

TEST(SentenceRules, NumbersAndAddresses) {
  expect_sentences("It costs 3.50 now.| It was 2.75.| Next year 4.|");
  expect_sentences("Write to ann.moss@mail.example.org today.| Or call.|");
  expect_sentences("See https://www.example.org/a.b/c.html?x=1.2 first.| Then go.|");
  expect_sentences("Open lib.so.6 with obj.method(x).| Done.|");
  expect_sentences("It is N\xC2\xB0. 17 in the list.|");
}

TEST(SentenceRules, Ellipses) {
  expect_sentences("Well... maybe.| He paused...| Then he went on.|");
  expect_sentences("Well\xE2\x80\xA6 maybe.| He paused\xE2\x80\xA6| Then he went on.|");
  expect_sentences("He was . . . not there.|");
  expect_sentences("He stopped . . . .| Nobody spoke.|");
  expect_sentences("He stopped.| . . . Nobody spoke.|");
}

TEST(SentenceRules, QuotationsAreKeptWhole) {
  expect_sentences("He said, \"Sit down. Wait here.\"| Then he left.|");
  expect_sentences("\"Sit down! Now!\" he said.|");
  expect_sentences("\"Who is it?\" cried Ann.| \"Me,\" said Tom.|");
  expect_sentences("\xE2\x80\x9CGo. Run.\xE2\x80\x9D| They ran.|");
  expect_sentences("She called, 'Go. Run.' and waved.|");
  expect_sentences("Don't stop.| It's late.| The boys' hats fell.| Tom's too.|");
  expect_sentences("\xC2\xABGo. Run.\xC2\xBB| They ran.|");
}

TEST(SentenceRules, AnOpenQuotationDoesNotSwallowTheRest) {
  expect_sentences("\"Sit down.| Wait here.|\n\n\"And then go.\"|");
  const std::string inside(5000, 'x');
  expect_sentences("\"" + inside + ".| And so.\"| It ends.|");
}

TEST(SentenceRules, Brackets) {
  expect_sentences("He sat (he was tired. Very tired.) and slept.|");
  expect_sentences("He slept.| (It was late. Very late.)| Then he woke.|");
  expect_sentences("This was shown.[12]| Nobody minded.|");
}

TEST(SentenceRules, EmphasisIsALabelBeforeANumber) {
  expect_sentences("As in _Fig._ 4 you see.|");
  expect_sentences("_It was late._| Then he woke.|");
}

TEST(SentenceRules, DashesAfterAStop) {
  expect_sentences("He knew it.|--She did not.|");
  expect_sentences("He knew it.--so he said.|");
}

TEST(SentenceRules, Lists) {
  expect_sentences("1. Tea and milk| 2. Bread| 3. Salt|");
  expect_sentences("1) Tea.| 2) Bread.|");
  expect_sentences("a. Tea| b. Bread|");
  expect_sentences("\xE2\x80\xA2 7. Tea| \xE2\x80\xA2 8. Bread|");
  expect_sentences("Buy:|\n- tea|\n- bread|\n* salt|\n12. oil|");
  expect_sentences("In 1) we say 2) and 5.|");
}

TEST(SentenceRules, ParagraphsAndLines) {
  expect_sentences("A heading|\n\nThe text is\nwrapped over\nlines.| So it is.|");
  expect_sentences("one|\r\n \t\r\ntwo|\r\n");
  expect_sentences("# Title|\nText here|");
  const std::string call = "    first_function(argument_one, argument_two);";
  expect_sentences(call + "\n" + call + "\n" + call + "|\n" + call + "|");
  const std::string prose = "This line of wrapped prose is clearly longer than any of verse";
  expect_sentences(prose + "\n" + prose + "\n" + prose + "|");
}

TEST(SentenceRules, OtherScripts) {
  expect_sentences(
      "\xE4\xBB\x8A\xE6\x97\xA5\xE3\x80\x82|\xE6\x98\x8E\xE6\x97\xA5\xEF\xBC\x81|"
      "\xE4\xBD\xA0\xEF\xBC\x9F|");
  expect_sentences("\xE0\xA4\x95\xE0\xA5\xA4| \xE0\xA4\x96\xE0\xA5\xA4|");
  expect_sentences("\xD9\x83\xD9\x8A\xD9\x81\xD8\x9F| \xD8\xAC\xD9\x8A\xD8\xAF.|");
  expect_sentences("\xD0\x94\xD0\xB0.| \xD0\x9D\xD0\xB5\xD1\x82.|");
  expect_sentences("Il est all\xC3\xA9.| \xC3\x89mile aussi.|");
}

TEST(SentenceRules, ExclamatoryNames) {
  expect_sentences("She writes for Yahoo! in Leeds.|");
  expect_sentences("She writes for Yahoo!| It pays.|");
}

TEST(SentenceRules, NothingToFind) {
  EXPECT_TRUE(sentence_ends("").empty());
  EXPECT_TRUE(sentence_ends(" \n\n\t \r\n").empty());
  expect_sentences("\xC2\xA0\xE3\x80\x80");
  expect_sentences("...|");
}

void expect_well_formed(std::string_view text) {
  const std::vector<std::size_t> ends = sentence_ends(text);
  std::size_t previous = 0;
  for (const std::size_t end : ends) {
    ASSERT_GT(end, previous);
    ASSERT_LE(end, text.size());
    ASSERT_FALSE(detail::is_ascii_space(text[end - 1]));
    previous = end;
  }
  const std::size_t last = text.find_last_not_of(" \t\n\r\f\v");
  if (last == std::string_view::npos) {
    ASSERT_TRUE(ends.empty());
  }
}

TEST(SentenceRules, AnyBytesGiveOrderedEnds) {
  std::mt19937 random(11);
  const std::string_view pieces[] = {"a",
                                     "B",
                                     "1",
                                     ".",
                                     "!",
                                     "?",
                                     "\"",
                                     "'",
                                     "(",
                                     ")",
                                     " ",
                                     "\n",
                                     "\xE2",
                                     "\x80",
                                     "\x9C",
                                     "\xE2\x80\x9D",
                                     "\xE2\x80\x99",
                                     "-",
                                     "_",
                                     "Mr",
                                     "p",
                                     "U.S",
                                     "\xC2\xB0",
                                     "\xE3\x80\x82",
                                     "\xFF",
                                     "\xE2\x80\xA2",
                                     "[",
                                     "]",
                                     ";",
                                     "\xC2\xA0"};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const std::size_t num_pieces = random() % 40;
    for (std::size_t i = 0; i < num_pieces; ++i) {
      text += pieces[random() % std::size(pieces)];
    }
    if (round % 8 == 0) text += '\0';
    expect_well_formed(text);
  }
}

// Each of these made a naive splitter quadratic: searches for a closing mark, runs of spaces or
// stops looked at again and again. Quadratic time on 10 MB would take hours.
TEST(SentenceRules, TenMegabytesOfOnePatternTakeLinearTime) {
  const std::string_view patterns[] = {"a",    ".", " ",  "\n", "\"", "'",  "(",   "\xE2\x80\x9C",
                                       "\x80", "_", ". ", "' ", " '", "(.", "1. ", "U.",
                                       "a.'"};
  const std::string_view heads[] = {"", "1. x ", "\xE2\x80\xA2 1. x.", "No"};
  constexpr std::size_t kNumBytes = 10'000'000;
  std::size_t i = 0;
  for (const std::string_view pattern : patterns) {
    std::string text(heads[i++ % std::size(heads)]);
    // One pattern gets the full size; a tenth is enough for the others to show quadratic time.
    const std::size_t num_bytes = pattern == "a" ? kNumBytes : kNumBytes / 10;
    while (text.size() < num_bytes) text += pattern;
    expect_well_formed(text);
  }
}

}  // namespace
}  // namespace chunkllm
