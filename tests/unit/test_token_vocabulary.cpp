// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/token_vocabulary.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace chunkllm::detail {
namespace {

TokenVocabulary make(const std::vector<std::string>& tokens) {
  auto vocabulary = TokenVocabulary::create(tokens, std::vector<bool>(tokens.size()));
  EXPECT_TRUE(vocabulary.ok()) << vocabulary.status().message();
  return std::move(vocabulary).value();
}

constexpr std::size_t kNumTokens = 1 << 14;
constexpr std::size_t kNumSlots = std::bit_ceil(2 * kNumTokens + 2);

/// Texts that begin with `prefix`, each the first to have its slot; slots from `num_slots` on are
/// left free.
std::vector<std::string> texts_of_own_slots(const std::string& prefix, std::size_t num_slots) {
  std::vector<bool> taken(kNumSlots);
  std::vector<std::string> texts;
  for (std::size_t i = 0; texts.size() < kNumTokens; ++i) {
    std::string text = prefix + std::to_string(i);
    const std::size_t slot = hash_bytes(text) & (kNumSlots - 1);
    if (slot >= num_slots || taken[slot]) continue;
    taken[slot] = true;
    texts.push_back(std::move(text));
  }
  return texts;
}

TEST(TokenVocabulary, FindsWhatItHolds) {
  const std::vector<std::string> tokens = texts_of_own_slots("t", kNumSlots);
  const TokenVocabulary vocabulary = make(tokens);
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    ASSERT_EQ(vocabulary.find_text(tokens[id]), static_cast<std::int32_t>(id));
  }
  EXPECT_EQ(vocabulary.find_text("u1"), -1);
  EXPECT_EQ(vocabulary.find_bytes(""), -1);
}

TEST(TokenVocabulary, OneTextOfTwoSpellingsIsTwoTokens) {
  // A space in the byte alphabet, and a text that stands for itself.
  const TokenVocabulary vocabulary = make({"\xC4\xA0", " "});
  EXPECT_EQ(vocabulary.bytes(0), " ");
  EXPECT_EQ(vocabulary.bytes(1), " ");
  EXPECT_EQ(vocabulary.find_bytes(" "), 0);
  EXPECT_EQ(vocabulary.find_text(" "), 1);
}

/// Seconds of the fastest of five rounds of lookups that find nothing.
double seconds_of_misses(const TokenVocabulary& vocabulary) {
  std::vector<std::string> texts(5000);
  for (std::size_t i = 0; i < texts.size(); ++i) texts[i] = "missing" + std::to_string(i);
  double fastest = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (const std::string& text : texts) EXPECT_EQ(vocabulary.find_bytes(text), -1);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, elapsed.count());
  }
  return fastest;
}

// Every token in its own slot, but all slots side by side: a search that goes on to the next free
// slot walks over thousands of tokens on average.
TEST(TokenVocabulary, ALongRunOfOccupiedSlotsDoesNotSlowTheSearch) {
  const double spread = seconds_of_misses(make(texts_of_own_slots("t", kNumSlots)));
  const double side_by_side = seconds_of_misses(make(texts_of_own_slots("t", kNumTokens)));
  EXPECT_TRUE(side_by_side <= 30 * spread) << side_by_side << " s and " << spread << " s";
}

TEST(TokenVocabulary, RefusesTokensThatWereMadeToCollide) {
  // As many as fit the limit, all of one slot, and two more.
  constexpr std::size_t kNumColliding = kMaxProbes + 2;
  constexpr std::size_t kMask = std::bit_ceil(2 * kNumColliding + 2) - 1;
  std::vector<std::string> tokens;
  for (std::size_t i = 0; tokens.size() < kNumColliding; ++i) {
    std::string text = "t" + std::to_string(i);
    if ((hash_bytes(text) & kMask) == 7) tokens.push_back(std::move(text));
  }
  const auto refused = TokenVocabulary::create(tokens, std::vector<bool>(tokens.size()));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(refused.status().message(), "vocabulary: too many colliding tokens");
}

}  // namespace
}  // namespace chunkllm::detail
