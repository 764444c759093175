// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/bpe_tokenizer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

using Ids = std::vector<std::int32_t>;
using Pairs = std::vector<std::pair<std::string, std::string>>;

BpeTokenizer make(BpeTokenizerSpec spec) {
  auto tokenizer = BpeTokenizer::create(std::move(spec));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return std::move(tokenizer).value();
}

Ids encode(const BpeTokenizer& tokenizer, std::string_view text, bool add_special = false) {
  const auto ids = tokenizer.encode(text, add_special);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.value();
}

AddedToken added(std::int32_t id, std::string content) {
  AddedToken token;
  token.id = id;
  token.content = std::move(content);
  return token;
}

TEST(BpeTokenizer, MergesByRankThenFromTheLeft) {
  const auto tokenizer =
      make(testing::tiny_spec({{"a", "a"}, {"b", "c"}, {"a", "b"}, {"aa", "a"}}));
  EXPECT_EQ(encode(tokenizer, "aaa"), (Ids{259}));
  EXPECT_EQ(encode(tokenizer, "aaaa"), (Ids{256, 256}));
  EXPECT_EQ(encode(tokenizer, "abc"), (Ids{'a', 257}));
  EXPECT_EQ(encode(tokenizer, "ab"), (Ids{258}));
  EXPECT_EQ(encode(tokenizer, ""), Ids{});
}

TEST(BpeTokenizer, ARepeatedPairTakesItsLastRank) {
  auto spec = testing::tiny_spec({{"a", "b"}, {"b", "c"}});
  spec.merges.push_back(spec.merges.front());
  EXPECT_EQ(encode(make(std::move(spec)), "abc"), (Ids{'a', 257}));
}

/// The definition, slowly: merge the leftmost pair of lowest rank until there is none.
std::vector<std::string> merge_naively(const Pairs& merges, const std::string& word) {
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (std::size_t i = 0; i < merges.size(); ++i) ranks[merges[i]] = i;
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  for (;;) {
    std::size_t best = merges.size();
    std::size_t best_pos = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find({symbols[i], symbols[i + 1]});
      if (found != ranks.end() && found->second < best) {
        best = found->second;
        best_pos = i;
      }
    }
    if (best == merges.size()) return symbols;
    symbols[best_pos] += symbols[best_pos + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_pos) + 1);
  }
}

TEST(BpeTokenizer, ShortAndLongWordsFollowTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    // Merges of any two known tokens, in an order that training would not give.
    std::vector<std::string> known = {"a", "b", "c"};
    std::set<std::string> texts(known.begin(), known.end());
    Pairs merges;
    while (merges.size() < 12) {
      const std::string& left = known[random() % known.size()];
      const std::string& right = known[random() % known.size()];
      if (left.size() + right.size() > 9 || !texts.insert(left + right).second) continue;
      merges.emplace_back(left, right);
      known.push_back(left + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const auto tokenizer = make(testing::tiny_spec(merges));
    for (const unsigned length : {1u, 2u, 7u, 23u, 24u, 63u, 64u, 65u, 66u, 150u, 400u}) {
      std::string word;
      for (unsigned i = 0; i < length; ++i) word += static_cast<char>('a' + random() % 3);
      Ids expected;
      for (const auto& symbol : merge_naively(merges, word)) {
        expected.push_back(*tokenizer.token_to_id(symbol));
      }
      ASSERT_EQ(encode(tokenizer, word), expected) << word;
    }
  }
}

TEST(BpeTokenizer, ALongWordOfOneLetterIsNotQuadratic) {
  const auto tokenizer = make(testing::tiny_spec({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}));
  const std::string word(std::size_t{1} << 20, 'a');
  EXPECT_EQ(encode(tokenizer, word), Ids(word.size() / 8, 258));
}

TEST(BpeTokenizer, BytesWithoutATokenAreDroppedBeforeMerging) {
  auto spec = testing::tiny_spec({{"a", "b"}});
  spec.tokens['x'].clear();
  EXPECT_EQ(encode(make(spec), "axb"), (Ids{256}));
  EXPECT_EQ(encode(make(spec), "xx"), Ids{});
}

TEST(BpeTokenizer, BytesWithoutATokenBecomeTheUnknownOne) {
  auto spec = testing::tiny_spec({{"a", "b"}});
  spec.tokens['x'].clear();
  spec.unknown_id = '?';
  EXPECT_EQ(encode(make(spec), "axxb"), (Ids{'a', '?', '?', 'b'}));
  spec.fuse_unknown = true;
  EXPECT_EQ(encode(make(spec), "axxb"), (Ids{'a', '?', 'b'}));
}

TEST(BpeTokenizer, IgnoreMergesTakesWholeWordsFromTheVocabulary) {
  auto spec = testing::tiny_spec({{"a", "b"}});
  spec.tokens.push_back("abc");  // 257, out of the merges' reach
  spec.added_tokens = {added(258, "abcd")};
  spec.added_tokens[0].single_word = true;
  EXPECT_EQ(encode(make(spec), "abc"), (Ids{256, 'c'}));
  spec.ignore_merges = true;
  EXPECT_EQ(encode(make(spec), "abc"), (Ids{257}));
  // An added token that its flags refuse is no word of the vocabulary.
  EXPECT_EQ(encode(make(spec), "_abcd"), (Ids{'_', 256, 'c', 'd'}));
}

TEST(BpeTokenizer, AddedTokensAreFoundLeftmostThenLongest) {
  auto spec = testing::tiny_spec();
  spec.added_tokens = {added(256, "<a"), added(257, "<ab>"), added(258, "b><")};
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(encode(tokenizer, "x<ab>y"), (Ids{'x', 257, 'y'}));
  EXPECT_EQ(encode(tokenizer, "<ab<ab>"), (Ids{256, 'b', 257}));
  EXPECT_EQ(encode(tokenizer, "<ab><ab>"), (Ids{257, 257}));
  EXPECT_EQ(encode(tokenizer, "ab><a"), (Ids{'a', 258, 'a'}));
}

TEST(BpeTokenizer, AddedTokensStripWhiteSpace) {
  auto spec = testing::tiny_spec();
  spec.added_tokens = {added(256, "<l>"), added(257, "<r>")};
  spec.added_tokens[0].lstrip = true;
  spec.added_tokens[1].rstrip = true;
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(encode(tokenizer, "a \xE3\x80\x80\n<l> b"), (Ids{'a', 256, ' ', 'b'}));
  EXPECT_EQ(encode(tokenizer, "a <r> \xC2\xA0 b"), (Ids{'a', ' ', 257, 'b'}));
  EXPECT_EQ(encode(tokenizer, "<r>  <l>"), (Ids{257, 256}));
}

TEST(BpeTokenizer, AStrippingTokenOfWhiteSpaceIsNotQuadratic) {
  auto spec = testing::tiny_spec();
  spec.added_tokens = {added(256, " ")};
  spec.added_tokens[0].rstrip = true;
  const std::size_t num_spaces = std::size_t{1} << 20;
  Ids expected(num_spaces, 256);
  expected.push_back('a');
  EXPECT_EQ(encode(make(std::move(spec)), std::string(num_spaces, ' ') + "a"), expected);
}

TEST(BpeTokenizer, SingleWordNeedsNoWordCharacterBesideIt) {
  auto spec = testing::tiny_spec();
  spec.added_tokens = {added(256, "tok")};
  spec.added_tokens[0].single_word = true;
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(encode(tokenizer, "tok-tok"), (Ids{256, '-', 256}));
  EXPECT_EQ(encode(tokenizer, "tok_"), (Ids{'t', 'o', 'k', '_'}));
  EXPECT_EQ(encode(tokenizer, "\xC3\xA9tok"), (Ids{0xC3, 0xA9, 't', 'o', 'k'}));
  EXPECT_EQ(encode(tokenizer, "toktok"), (Ids{'t', 'o', 'k', 't', 'o', 'k'}));
}

TEST(BpeTokenizer, NormalizedTokensAreSearchedAfterNormalization) {
  auto spec = testing::tiny_spec();
  spec.normalize_nfc = true;
  spec.added_tokens = {added(256, "<e\xCC\x81>"), added(257, "[e\xCC\x81]")};
  spec.added_tokens[0].normalized = true;
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(encode(tokenizer, "<\xC3\xA9><e\xCC\x81>"), (Ids{256, 256}));
  EXPECT_EQ(encode(tokenizer, "[\xC3\xA9][e\xCC\x81]"), (Ids{'[', 0xC3, 0xA9, ']', 257}));
}

TEST(BpeTokenizer, PrefixSpaceAndSpecialTokens) {
  auto spec = testing::tiny_spec();
  spec.add_prefix_space = true;
  spec.added_tokens = {added(256, "<s>"), added(257, "</s>")};
  spec.added_tokens[0].special = true;
  spec.prefix_ids = {256};
  spec.suffix_ids = {257};
  spec.bos_id = 256;
  spec.eos_ids = {257};
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(encode(tokenizer, "a<s> b", true), (Ids{256, ' ', 'a', 256, ' ', 'b', 257}));
  EXPECT_EQ(encode(tokenizer, "", true), (Ids{256, 257}));
  EXPECT_EQ(encode(tokenizer, "", false), Ids{});
  EXPECT_TRUE(tokenizer.is_special(256));
  EXPECT_FALSE(tokenizer.is_special(257));
  EXPECT_EQ(tokenizer.bos_id(), 256);
  EXPECT_EQ(tokenizer.eos_ids()[0], 257);
  EXPECT_EQ(tokenizer.vocab_size(), 258);
  EXPECT_EQ(tokenizer.token_to_id("</s>"), 257);
  EXPECT_EQ(tokenizer.token_to_id("\xC4\xA0"), ' ');
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
}

TEST(BpeTokenizer, RefusesTextThatIsNotUtf8) {
  const auto ids = make(testing::tiny_spec()).encode("good \xFF bad", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ids.status().message(), "text is not UTF-8 at byte 5");
}

TEST(BpeTokenizer, DecodesBytesAndRefusesUnknownIds) {
  auto spec = testing::tiny_spec();
  spec.tokens.resize(258);            // 256 is unused
  spec.tokens[257] = "\xE6\x97\xA5";  // not of the byte alphabet: stands for itself
  const auto tokenizer = make(std::move(spec));
  EXPECT_EQ(tokenizer.decode(Ids{0xC3, 0xA9, 0xFF, 257, 'a'}).value(),
            "\xC3\xA9\xEF\xBF\xBD\xE6\x97\xA5"
            "a");
  for (const std::int32_t id : {-1, 256, 258, 0x7FFFFFFF}) {
    const auto text = tokenizer.decode(Ids{'a', id});
    ASSERT_FALSE(text.ok());
    EXPECT_EQ(text.status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(tokenizer.token_bytes(id), "");
  }
  EXPECT_EQ(tokenizer.token_bytes(0xC3), "\xC3");
}

TEST(BpeTokenizer, AScratchServesSeveralTokenizers) {
  const auto one = make(testing::tiny_spec({{"a", "b"}}));
  const auto other = make(testing::tiny_spec({{"b", "a"}}));
  EncodeScratch scratch(1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(one.encode("ab ba", false, scratch).value(), (Ids{256, ' ', 'b', 'a'}));
    EXPECT_EQ(other.encode("ab ba", false, scratch).value(), (Ids{'a', 'b', ' ', 256}));
  }
}

TEST(BpeTokenizer, AScratchKnowsAddedTokensFromWords) {
  auto spec = testing::tiny_spec({{"a", "b"}});
  spec.ignore_merges = true;
  spec.tokens.push_back("abc");
  const auto with_word = make(spec);
  spec.tokens.back().clear();
  spec.added_tokens = {added(257, "abc")};
  spec.added_tokens[0].single_word = true;
  const auto with_added = make(std::move(spec));
  EncodeScratch scratch(1);
  EXPECT_EQ(with_word.encode("1abc", false, scratch).value(), (Ids{'1', 257}));
  EXPECT_EQ(with_added.encode("1abc", false, scratch).value(), (Ids{'1', 256, 'c'}));
}

TEST(BpeTokenizer, ThreadsShareATokenizer) {
  const auto tokenizer = make(testing::tiny_spec({{"a", "b"}, {"ab", "c"}, {" ", "abc"}}));
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 3 == 0 ? "abc " : "ab cab ";
  const Ids expected = encode(tokenizer, text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] { result = tokenizer.encode(text, false).value(); });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(BpeTokenizer, RefusesContradictorySpecs) {
  const auto code_of = [](BpeTokenizerSpec spec) {
    const auto tokenizer = BpeTokenizer::create(std::move(spec));
    return tokenizer.ok() ? StatusCode::kOk : tokenizer.status().code();
  };
  auto spec = testing::tiny_spec();
  spec.tokens.push_back(spec.tokens['a']);
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "a text twice";

  spec = testing::tiny_spec();
  spec.merges = {{"a", "b"}};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "a merge without its token";
  spec.merges.resize(BpeTokenizer::kMaxMerges + 1);
  EXPECT_EQ(code_of(std::move(spec)), StatusCode::kResourceExhausted) << "too many merges";

  spec = testing::tiny_spec();
  spec.added_tokens = {added('a', "b")};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an added token with another's id";

  spec.added_tokens = {added(300, "a")};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an added token with a second id";

  spec.added_tokens = {added(256, "<x>"), added(257, "<x>")};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an added text twice";

  for (const std::int32_t id : {-1, BpeTokenizer::kMaxTokenId + 1}) {
    spec.added_tokens = {added(id, "<x>")};
    EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "id " << id;
  }
  spec.added_tokens = {added(256, "")};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an empty added token";
  spec.added_tokens = {added(256, std::string(2000, 'x'))};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "a long added token";
  spec.added_tokens = {added(256, "\xFF")};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an added token that is not UTF-8";
  for (std::int32_t i = 0; i <= (1 << 12); ++i) {
    std::string text = std::to_string(i);
    text.resize(1024, 'x');
    spec.added_tokens.push_back(added(256 + i, std::move(text)));
  }
  spec.added_tokens.erase(spec.added_tokens.begin());
  EXPECT_EQ(code_of(spec), StatusCode::kResourceExhausted) << "more than 4 MiB of added tokens";

  spec = testing::tiny_spec();
  spec.prefix_ids = {256};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "a begin token out of range";
  spec = testing::tiny_spec();
  spec.eos_ids = {-5};
  EXPECT_EQ(code_of(spec), StatusCode::kInvalidFile) << "an end token out of range";

  spec = testing::tiny_spec();
  spec.add_prefix_space = true;
  spec.split_rules = {SplitRule::kDigits, SplitRule::kGpt2};
  EXPECT_EQ(code_of(spec), StatusCode::kUnsupported) << "a prefix space a piece";
}

}  // namespace
}  // namespace chunkllm
