// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/random.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/retrieval.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/train/synthetic_retrieval.hpp"

namespace chunkllm {

/// Which sequences are cut from the texts.
struct TrainingTextOptions {
  std::int64_t length = 4096;       ///< tokens of most sequences
  std::int64_t long_length = 8192;  ///< of the others; at least `length`
  double long_share = 0.25;         ///< of sequences that are long
  double plain_share = 0.25;        ///< of sequences without synthetic retrieval
};

/// Plain texts to train on, each with its end kept aside for validation.
class TrainingTexts {
 public:
  /// \param ids      a text each, without begin tokens
  /// \param options  the longest sequence must fit the longest text
  /// Errors: kInvalidArgument where no text is as long as the long sequences
  static Result<TrainingTexts> create(const BpeTokenizer& tokenizer,
                                      std::vector<std::vector<std::int32_t>> ids,
                                      const TrainingTextOptions& options) {
    TrainingTexts texts;
    texts.tokenizer_ = &tokenizer;
    texts.options_ = options;
    std::size_t longest = 0;
    for (const std::vector<std::int32_t>& text : ids) longest = std::max(longest, text.size());
    const auto needed = static_cast<std::size_t>(options.long_length);
    if (longest < needed) {
      return invalid_argument("the longest text has " + std::to_string(longest) +
                              " tokens, expected at least " + std::to_string(needed) +
                              ", the longest sequence");
    }
    for (std::vector<std::int32_t>& text : ids) {
      const auto aside = std::max(text.size() / kValidationPart, needed);
      if (text.size() >= kLeastParts * aside) {
        texts.validation_.push_back(FillerText::from_ids(
            tokenizer, {text.end() - static_cast<std::ptrdiff_t>(aside), text.end()}));
        text.resize(text.size() - aside);
      }
      texts.training_.push_back(FillerText::from_ids(tokenizer, std::move(text)));
    }
    return Result<TrainingTexts>(std::move(texts));
  }

  /// Whether the validation sequences are cut from text that is not trained on; texts that are too
  /// short to be split serve both.
  [[nodiscard]] bool has_validation() const { return !validation_.empty(); }
  [[nodiscard]] std::int64_t num_tokens() const { return count(training_); }
  /// The texts without what is kept aside.
  [[nodiscard]] std::vector<std::span<const std::int32_t>> training_ids() const {
    std::vector<std::span<const std::int32_t>> ids;
    for (const FillerText& text : training_) ids.emplace_back(text.ids);
    return ids;
  }

  /// Sequence `number` to train on; the same one whenever it is asked for.
  [[nodiscard]] Result<TrainingSequence> sequence(std::uint64_t seed, std::uint64_t number) const {
    return draw(training_, seed, number);
  }
  /// Sequence `number` to validate on, the same ones for all seeds.
  [[nodiscard]] Result<TrainingSequence> validation_sequence(std::uint64_t number) const {
    constexpr std::uint64_t kSeed = 0x76616c6964U;
    return draw(has_validation() ? validation_ : training_, kSeed, number);
  }

 private:
  static constexpr std::size_t kValidationPart = 20;
  static constexpr std::size_t kLeastParts = 4;
  /// A text counts as at most this long, so that one does not drown the others.
  static constexpr std::int64_t kMostTokensCounted = 700'000;

  TrainingTexts() = default;

  static std::int64_t count(const std::vector<FillerText>& texts) {
    std::int64_t tokens = 0;
    for (const FillerText& text : texts) tokens += static_cast<std::int64_t>(text.ids.size());
    return tokens;
  }

  [[nodiscard]] Result<TrainingSequence> draw(const std::vector<FillerText>& texts,
                                              std::uint64_t seed, std::uint64_t number) const {
    RandomStream random(~seed, number);
    SyntheticRetrievalOptions options;
    options.plain_share = options_.plain_share;
    options.length = options_.length;
    if (random.draw_unit() < options_.long_share) {
      // As dense in facts as the short ones.
      options.length = options_.long_length;
      options.min_facts = options.min_facts * options_.long_length / options_.length;
      options.max_facts = options.max_facts * options_.long_length / options_.length;
    }
    const auto weight = [&](const FillerText& text) -> std::uint64_t {
      const auto tokens = static_cast<std::int64_t>(text.ids.size());
      return tokens < options.length
                 ? 0
                 : static_cast<std::uint64_t>(std::min(tokens, kMostTokensCounted));
    };
    std::uint64_t sum = 0;
    for (const FillerText& text : texts) sum += weight(text);
    if (sum == 0) {
      return invalid_argument("no text has the " + std::to_string(options.length) +
                              " tokens of a sequence");
    }
    std::uint64_t place = random.draw(sum);
    std::size_t index = 0;
    for (; place >= weight(texts[index]); ++index) place -= weight(texts[index]);
    return make_training_sequence(*tokenizer_, texts[index], options, seed, number);
  }

  const BpeTokenizer* tokenizer_ = nullptr;
  TrainingTextOptions options_;
  std::vector<FillerText> training_;
  std::vector<FillerText> validation_;
};

}  // namespace chunkllm
