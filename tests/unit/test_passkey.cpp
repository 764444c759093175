// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/passkey.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/infer/session.hpp"
#include "support/dense_forward.hpp"
#include "support/tiny_backbone.hpp"
#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

BpeTokenizer byte_tokenizer() {
  auto tokenizer = BpeTokenizer::create(testing::tiny_spec());
  EXPECT_TRUE(tokenizer.ok());
  return std::move(tokenizer).value();
}

std::string plain_text(int num_sentences) {
  std::string text;
  for (int i = 0; i < num_sentences; ++i) {
    text += (i == 0 ? "" : " ") + std::string("The river runs past field ") + std::to_string(i) +
            " and on to the sea.";
  }
  return text;
}

FillerText filler(const BpeTokenizer& tokenizer, int num_sentences) {
  return FillerText::from_ids(tokenizer,
                              tokenizer.encode(plain_text(num_sentences), false).value());
}

std::string text_of(const BpeTokenizer& tokenizer, const RetrievalTrial& trial) {
  return tokenizer.decode(trial.ids).value();
}

TEST(Passkey, StatesTheKeyBetweenSentencesAtItsDepth) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText text = filler(tokenizer, 60);
  for (const double depth : {0.0, 0.3, 0.9, 1.0}) {
    for (std::int64_t t = 0; t < 8; ++t) {
      const auto trial = make_passkey_trial(tokenizer, text, {1500, depth, 5, t});
      ASSERT_TRUE(trial.ok()) << trial.status().message();
      const std::string prompt = text_of(tokenizer, trial.value());
      ASSERT_EQ(trial->answer.size(), 5U);
      const PasskeyWording& wording = kPasskeyWordings[static_cast<std::size_t>(t) % 4];
      const std::string fact = detail::fill_in(wording.fact, trial->answer, "");
      const std::size_t at = prompt.find(fact);
      ASSERT_NE(at, prompt.npos) << prompt;
      // A sentence here has at most 50 bytes, so that the next end is no further off.
      EXPECT_GE(at, static_cast<std::size_t>(depth * 1500.0));
      EXPECT_LE(at, static_cast<std::size_t>(depth * 1500.0) + 50);
      EXPECT_TRUE(at == 0 || depth == 1.0 || prompt[at - 1] == '.');
      EXPECT_TRUE(prompt.ends_with(wording.question));
      EXPECT_EQ(prompt.size(), 1500 + fact.size() + wording.question.size());
    }
  }
}

TEST(Passkey, TrialsAreFixedBySeedAndNumber) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText text = filler(tokenizer, 100);
  const auto make = [&](std::uint64_t seed, std::int64_t t) {
    return make_passkey_trial(tokenizer, text, {1000, 0.5, seed, t}).value();
  };
  EXPECT_EQ(make(3, 2).ids, make(3, 2).ids);
  std::set<std::string> keys;
  for (std::int64_t t = 0; t < 20; ++t) {
    keys.insert(make(3, t).answer);
    keys.insert(make(4, t).answer);
  }
  EXPECT_GE(keys.size(), 39U);
  for (const std::string& key : keys) EXPECT_NE(key.front(), '0');
}

TEST(Passkey, EveryDepthMeetsEveryWording) {
  for (const std::int64_t num_depths : {1, 2, 3, 4, 5, 6, 8, 10}) {
    std::set<std::pair<std::int64_t, std::string_view>> met;
    for (std::int64_t t = 0; t < 4 * num_depths; ++t) {
      met.emplace(t % num_depths, passkey_wording(t, num_depths).fact);
    }
    EXPECT_EQ(met.size(), 4U * static_cast<std::size_t>(num_depths)) << num_depths;
  }
  // A trial's prompt has the wording of its number among the depths.
  const BpeTokenizer tokenizer = byte_tokenizer();
  RetrievalTrialOptions options{1000, 0.5, 3, /*trial=*/4, /*num_depths=*/4};
  const auto trial = make_passkey_trial(tokenizer, filler(tokenizer, 60), options);
  EXPECT_TRUE(text_of(tokenizer, trial.value()).ends_with(kPasskeyWordings[1].question));
}

TEST(Passkey, RefusesLengthsAndDepths) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText text = filler(tokenizer, 4);
  const auto length = static_cast<std::int64_t>(text.ids.size());
  const auto code = [&](std::int64_t n, double depth) {
    return make_passkey_trial(tokenizer, text, {n, depth, 0, 0}).status().code();
  };
  EXPECT_EQ(code(length, 0.5), StatusCode::kOk);
  EXPECT_EQ(code(length + 1, 0.5), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(0, 0.5), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(length, -0.1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(length, 1.1), StatusCode::kInvalidArgument);
}

TEST(Passkey, CountsDigitsAtTheirPlaces) {
  EXPECT_EQ(digit_share("12345", "12345"), 1.0);
  EXPECT_EQ(digit_share(" \n12345. And", "12345"), 1.0);
  EXPECT_EQ(digit_share(" 12945", "12345"), 0.8);
  EXPECT_EQ(digit_share("2345", "12345"), 0.0);
  EXPECT_EQ(digit_share("", "12345"), 0.0);
  EXPECT_EQ(digit_share("   ", "12345"), 0.0);
  RetrievalScore score;
  for (const double share : {1.0, 0.8, 0.0, 1.0}) score.add(share, 0.5 * share);
  EXPECT_EQ(score.full_share(), 0.5);
  EXPECT_EQ(score.digit_share(), 0.7);
  EXPECT_EQ(score.forced_share(), 0.35);
}

TEST(Passkey, AnswersAreGreedy) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const DecoderBackbone backbone = testing::tiny_backbone(256);
  ThreadPool pool(1);
  RetrievalTrial trial =
      make_passkey_trial(tokenizer, filler(tokenizer, 10), {200, 0.5, 0, 1}).value();
  SessionOptions dense;
  dense.dense = true;
  using TinySession = Session<DecoderBackbone, RecentScorer, float>;
  auto session = TinySession::create(
      backbone, std::make_shared<const RecentScorer>(), nullptr,
      [&](std::int32_t id) { return tokenizer.token_bytes(id); }, dense, pool);
  const auto answer = answer_trial(session.value(), tokenizer, trial, {});
  ASSERT_TRUE(answer.ok());
  std::string expected;
  testing::DenseForward reference(backbone, pool);
  for (const std::int32_t id : reference.greedy(trial.ids, 8)) {
    expected += tokenizer.token_bytes(id);
    if (expected.size() - std::min(expected.find_first_not_of(" \n\t"), expected.size()) >= 5)
      break;
  }
  EXPECT_EQ(answer->text, expected);

  // The bytes are tokens, so the forced digits are those that follow each true prefix greedily.
  std::vector<std::int32_t> ids = trial.ids;
  ids.push_back(' ');
  int num_right = 0;
  for (const char digit : trial.answer) {
    testing::DenseForward forced(backbone, pool);
    num_right += forced.greedy(ids, 1).front() == digit ? 1 : 0;
    ids.push_back(digit);
  }
  EXPECT_EQ(answer->forced_share, num_right / 5.0);
}

/// Says " 92345" where " 12345" is wanted, but goes on rightly only from the right digits.
class ForgetfulSession {
 public:
  void reserve(std::int64_t) {}
  void count_attended_from(std::int64_t) {}
  [[nodiscard]] std::int64_t num_tokens() const { return static_cast<std::int64_t>(ids_.size()); }
  Status prefill(std::span<const std::int32_t> ids, const std::function<bool(std::int64_t)>&) {
    ids_.assign(ids.begin(), ids.end());
    prompt_len_ = ids.size();
    return {};
  }
  Result<std::span<const float>> finish_prompt() { return logits(); }
  Result<std::span<const float>> step(std::int32_t token) {
    ids_.push_back(token);
    return logits();
  }
  Status rollback(std::int64_t num_tokens) {
    ids_.resize(static_cast<std::size_t>(num_tokens));
    return {};
  }

 private:
  std::span<const float> logits() {
    const std::string said(ids_.begin() + static_cast<std::ptrdiff_t>(prompt_len_), ids_.end());
    const std::string wanted = " 12345";
    char next = '0';
    if (said == " ") {
      next = '9';
    } else if (wanted.starts_with(said) && said.size() < wanted.size()) {
      next = wanted[said.size()];
    }
    logits_.assign(256, 0.0F);
    logits_[static_cast<unsigned char>(next)] = 1.0F;
    return logits_;
  }
  std::vector<std::int32_t> ids_;
  std::size_t prompt_len_ = 0;
  std::vector<float> logits_;
};

TEST(Passkey, NaNLogitsAreAnError) {
  /// Logits without a number: a model with broken weights.
  class BrokenSession : public ForgetfulSession {
   public:
    Result<std::span<const float>> finish_prompt() { return std::span<const float>(nans_); }

   private:
    std::vector<float> nans_ = std::vector<float>(256, std::numeric_limits<float>::quiet_NaN());
  };
  const BpeTokenizer tokenizer = byte_tokenizer();
  BrokenSession session;
  const auto answer = answer_trial(session, tokenizer, {{1, 2, 3}, "12345", 0.5}, {});
  EXPECT_EQ(answer.status().code(), StatusCode::kInvalidFile);
}

TEST(Passkey, ForcedDigitsHaveTheTrueOnesBeforeThem) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  ForgetfulSession session;
  const auto answer = answer_trial(session, tokenizer, {{1, 2, 3}, "12345", 0.5}, {});
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->forced_share, 0.8);
  EXPECT_EQ(answer->text, " 90000");
  EXPECT_EQ(digit_share(answer->text, "12345"), 0.0);
}

}  // namespace
}  // namespace chunkllm
