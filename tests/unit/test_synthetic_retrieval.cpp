// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/synthetic_retrieval.hpp"

#include <gtest/gtest.h>

#include <cctype>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/eval/multi_key.hpp"
#include "chunkllm/eval/passkey.hpp"
#include "chunkllm/train/training_texts.hpp"
#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

BpeTokenizer byte_tokenizer() {
  auto tokenizer = BpeTokenizer::create(testing::tiny_spec());
  EXPECT_TRUE(tokenizer.ok());
  return std::move(tokenizer).value();
}

std::vector<std::int32_t> plain_ids(const BpeTokenizer& tokenizer, int num_sentences,
                                    const std::string& river = "river") {
  std::string text;
  for (int i = 0; i < num_sentences; ++i) {
    text += (i == 0 ? "The " : " The ") + river + " runs past field " + std::to_string(i) +
            " and on to the sea.";
  }
  return tokenizer.encode(text, /*add_special_tokens=*/false).value();
}

FillerText plain_filler(const BpeTokenizer& tokenizer) {
  return FillerText::from_ids(tokenizer, plain_ids(tokenizer, 400));
}

std::string text_between(const BpeTokenizer& tokenizer, const TrainingSequence& sequence,
                         std::int64_t begin, std::int64_t end) {
  const std::span<const std::int32_t> ids(sequence.ids);
  return tokenizer
      .decode(ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)))
      .value();
}

SyntheticRetrievalOptions with_questions() {
  SyntheticRetrievalOptions options;
  options.length = 8192;  // of bytes, here
  options.plain_share = 0.0;
  return options;
}

TEST(SyntheticRetrieval, AnswersStandInTheirSourceBeforeTheQuestion) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText filler = plain_filler(tokenizer);
  std::int64_t num_questions = 0;
  for (std::uint64_t number = 0; number < 40; ++number) {
    const auto sequence = make_training_sequence(tokenizer, filler, with_questions(), 3, number);
    ASSERT_TRUE(sequence.ok()) << sequence.status().message();
    EXPECT_EQ(sequence->ids.size(), 8192U);
    std::int64_t last_trigger = -1;
    for (const TrainingQuestion& question : sequence->questions) {
      EXPECT_GT(question.trigger, last_trigger);
      last_trigger = question.trigger;
      ASSERT_LE(0, question.source_begin);
      ASSERT_LT(question.source_begin, question.source_end);
      EXPECT_LE(question.source_end, question.trigger);
      ASSERT_LT(question.trigger + 1, question.answer_end);
      ASSERT_LE(question.answer_end, 8192);
      const std::string answer =
          text_between(tokenizer, sequence.value(), question.trigger + 1, question.answer_end);
      ASSERT_EQ(answer.front(), ' ') << answer;
      const std::string value = answer.substr(1, answer.find(' ', 1) - 1);
      EXPECT_NE(
          text_between(tokenizer, sequence.value(), question.source_begin, question.source_end)
              .find(value),
          std::string::npos)
          << answer;
      ++num_questions;
    }
  }
  EXPECT_GT(num_questions, 100);
}

TEST(SyntheticRetrieval, FollowsFromItsSeedAndNumber) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText filler = plain_filler(tokenizer);
  const auto ids = [&](std::uint64_t seed, std::uint64_t number) {
    return make_training_sequence(tokenizer, filler, with_questions(), seed, number).value().ids;
  };
  EXPECT_EQ(ids(1, 2), ids(1, 2));
  EXPECT_NE(ids(1, 2), ids(1, 3));
  EXPECT_NE(ids(1, 2), ids(2, 2));
}

TEST(SyntheticRetrieval, PlainSequencesAreTheFillerAlone) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText filler = plain_filler(tokenizer);
  SyntheticRetrievalOptions options = with_questions();
  options.plain_share = 1.0;
  const auto sequence = make_training_sequence(tokenizer, filler, options, 0, 0);
  ASSERT_TRUE(sequence.ok());
  EXPECT_TRUE(sequence->questions.empty());
  const std::string text = text_between(tokenizer, sequence.value(), 0, 8192);
  EXPECT_NE(tokenizer.decode(filler.ids).value().find(text), std::string::npos);
}

TEST(SyntheticRetrieval, RefusesFillerThatIsTooShort) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const FillerText filler = FillerText::from_ids(tokenizer, plain_ids(tokenizer, 20));
  EXPECT_EQ(make_training_sequence(tokenizer, filler, with_questions(), 0, 0).status().code(),
            StatusCode::kInvalidArgument);
  SyntheticRetrievalOptions tiny = with_questions();
  tiny.length = 100;
  EXPECT_EQ(make_training_sequence(tokenizer, filler, tiny, 0, 0).status().code(),
            StatusCode::kInvalidArgument);
}

/// Words of four letters and more, in lower case, slots left out.
std::set<std::string> words_of(std::string_view text) {
  std::set<std::string> words;
  std::string word;
  bool is_slot = false;
  for (const char c : std::string(text) + ".") {
    is_slot = c == '{' || (is_slot && c != '}');
    if (!is_slot && std::isalpha(static_cast<unsigned char>(c)) != 0) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else {
      if (word.size() >= 4) words.insert(word);
      word.clear();
    }
  }
  return words;
}

TEST(SyntheticRetrieval, NoNameOfTheEvaluationIsTrainedOn) {
  std::set<std::string> trained;
  const auto add = [&](const auto& list) {
    for (const std::string_view text : list) trained.merge(words_of(text));
  };
  add(detail::kSyntheticQualities);
  add(detail::kSyntheticThings);
  add(detail::kSyntheticPeople);
  add(detail::kSyntheticNumbers);
  add(detail::kSyntheticTraits);
  for (const auto& words : detail::kSyntheticTraitWords) add(words);
  ASSERT_TRUE(trained.contains("ledger"));
  for (const std::string_view name : kMultiKeyNames) {
    for (const std::string& word : words_of(name)) EXPECT_FALSE(trained.contains(word)) << word;
  }
  // What the pass keys are called.
  for (const std::string word : {"pass", "code", "vault", "secret", "number", "door"}) {
    EXPECT_FALSE(trained.contains(word)) << word;
  }
}

TEST(SyntheticRetrieval, NoSentenceOfTheEvaluationIsTrainedOn) {
  std::set<std::string_view> trained;
  for (const auto& text : detail::kSyntheticStatements) trained.insert(text);
  for (const auto& text : detail::kSyntheticQuestions) trained.insert(text);
  for (const auto& text : detail::kSyntheticTraitStatements) trained.insert(text);
  for (const auto& text : detail::kSyntheticTraitQuestions) trained.insert(text);
  for (const PasskeyWording& wording : kPasskeyWordings) {
    EXPECT_FALSE(trained.contains(wording.fact));
    EXPECT_FALSE(trained.contains(wording.question));
  }
}

TEST(TrainingTexts, KeepsTheEndOfATextForValidation) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  TrainingTextOptions options;
  options.length = 1024;
  options.long_length = 2048;
  options.plain_share = 1.0;
  const std::vector<std::int32_t> ids = plain_ids(tokenizer, 600);
  auto texts = TrainingTexts::create(tokenizer, {ids}, options);
  ASSERT_TRUE(texts.ok()) << texts.status().message();
  ASSERT_TRUE(texts->has_validation());
  const std::string all = tokenizer.decode(ids).value();
  const auto aside =
      static_cast<std::size_t>(static_cast<std::int64_t>(ids.size()) - texts->num_tokens());
  EXPECT_GE(aside, 2048U);
  const std::string train_part = all.substr(0, all.size() - aside);
  std::set<std::size_t> lengths;
  for (std::uint64_t n = 0; n < 20; ++n) {
    const auto train = texts->sequence(1, n);
    const auto validation = texts->validation_sequence(n);
    ASSERT_TRUE(train.ok() && validation.ok());
    lengths.insert(train->ids.size());
    EXPECT_NE(train_part.find(tokenizer.decode(train->ids).value()), std::string::npos);
    EXPECT_EQ(train_part.find(tokenizer.decode(validation->ids).value()), std::string::npos);
  }
  EXPECT_EQ(lengths, (std::set<std::size_t>{1024, 2048}));
}

TEST(TrainingTexts, RefusesTextsShorterThanASequence) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  const auto texts = TrainingTexts::create(tokenizer, {plain_ids(tokenizer, 10)}, {});
  ASSERT_FALSE(texts.ok());
  EXPECT_NE(texts.status().message().find("expected at least 8192"), std::string::npos);
}

}  // namespace
}  // namespace chunkllm
