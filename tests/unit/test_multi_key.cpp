// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/multi_key.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

class MultiKey : public ::testing::Test {
 protected:
  MultiKey() : tokenizer_(BpeTokenizer::create(testing::tiny_spec()).value()) {
    std::string text = "It rains.";
    for (int i = 0; i < 200; ++i) text += " The wind turns to the east and the rain goes on.";
    filler_ = FillerText::from_ids(tokenizer_, tokenizer_.encode(text, false).value());
  }
  BpeTokenizer tokenizer_;
  FillerText filler_;
};

TEST_F(MultiKey, HoldsEightFactsAndAsksForOne) {
  for (std::int64_t t = 0; t < 10; ++t) {
    const double depth = 0.1 * static_cast<double>(t);
    const auto trial = make_multi_key_trial(tokenizer_, filler_, {4000, depth, 9, t});
    ASSERT_TRUE(trial.ok()) << trial.status().message();
    const std::string prompt = tokenizer_.decode(trial->ids).value();
    std::set<std::string> keys;
    std::string asked;
    for (const std::string_view name : kMultiKeyNames) {
      const std::string fact = " The number of " + std::string(name) + " is ";
      const std::size_t at = prompt.find(fact);
      ASSERT_NE(at, prompt.npos) << name;
      const std::string key = prompt.substr(at + fact.size(), 5);
      keys.insert(key);
      if (prompt.ends_with("The number of " + std::string(name) + " is")) {
        asked = key;
        // Eight facts of some 45 bytes and a sentence of 50 may stand before it.
        EXPECT_NEAR(static_cast<double>(at), trial->depth * 4000.0, 8 * 45.0 + 50.0);
      }
    }
    EXPECT_EQ(keys.size(), 8U);
    EXPECT_EQ(asked, trial->answer);
    EXPECT_NEAR(trial->depth, depth, 0.5 / 8.0 + 1e-9);
  }
}

TEST_F(MultiKey, IsFixedBySeedAndRefusesBadDepths) {
  const auto make = [&](std::uint64_t seed, double depth) {
    return make_multi_key_trial(tokenizer_, filler_, {1000, depth, seed, 0});
  };
  EXPECT_EQ(make(1, 0.5)->ids, make(1, 0.5)->ids);
  EXPECT_NE(make(1, 0.5)->ids, make(2, 0.5)->ids);
  EXPECT_EQ(make(1, 1.5).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(make(1, -0.5).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
