// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/random.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/infer/sampler.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// Plain text into which facts are put, with the places where a sentence ends.
struct FillerText {
  std::vector<std::int32_t> ids;           ///< without the tokenizer's begin token
  std::vector<std::size_t> sentence_ends;  ///< tokens, ascending

  static FillerText from_ids(const BpeTokenizer& tokenizer, std::vector<std::int32_t> ids) {
    FillerText text;
    text.sentence_ends =
        sentence_end_tokens(ids, [&](std::int32_t id) { return tokenizer.token_bytes(id); });
    text.ids = std::move(ids);
    return text;
  }

  /// The first token at or behind `token` that begins a sentence, or `token` if none does.
  [[nodiscard]] std::size_t sentence_begin(std::size_t token) const {
    if (token == 0) return 0;
    const auto end = std::lower_bound(sentence_ends.begin(), sentence_ends.end(), token - 1);
    return end == sentence_ends.end() ? token : *end + 1;
  }
};

/// Which trial of a series: everything that is drawn follows from it.
struct RetrievalTrialOptions {
  std::int64_t length = 4000;  ///< tokens of filler
  double depth = 0.5;          ///< [0, 1], where the wanted fact stands in the filler
  std::uint64_t seed = 0;
  std::int64_t trial = 0;
  /// Depths that the series takes in turn: wordings are taken so that each depth meets each.
  std::int64_t num_depths = 1;
};

/// A long prompt that ends in a question, and the digits that answer it.
struct RetrievalTrial {
  std::vector<std::int32_t> ids;
  std::string answer;
  double depth = 0.0;

  /// Spaces and digits may each take a token of their own.
  [[nodiscard]] std::size_t max_answer_tokens() const { return answer.size() + 3; }
};

/// What a session says to a trial.
struct RetrievalAnswer {
  std::string text;           ///< greedy
  double forced_share = 0.0;  ///< of the digits that come first given the true ones before them
};

/// Answers counted over trials.
struct RetrievalScore {
  std::int64_t num_trials = 0;
  std::int64_t num_full = 0;  ///< greedy answers with all digits right
  double digits_sum = 0.0;    ///< of the share of digits right in greedy answers
  double forced_sum = 0.0;    ///< of the share of digits right when forced

  void add(double digit_share, double forced_share) {
    ++num_trials;
    num_full += digit_share == 1.0 ? 1 : 0;
    digits_sum += digit_share;
    forced_sum += forced_share;
  }
  RetrievalScore& operator+=(const RetrievalScore& other) {
    num_trials += other.num_trials;
    num_full += other.num_full;
    digits_sum += other.digits_sum;
    forced_sum += other.forced_sum;
    return *this;
  }
  /// These are NaN without a trial.
  [[nodiscard]] double full_share() const { return share(static_cast<double>(num_full)); }
  [[nodiscard]] double digit_share() const { return share(digits_sum); }
  [[nodiscard]] double forced_share() const { return share(forced_sum); }

 private:
  [[nodiscard]] double share(double sum) const { return sum / static_cast<double>(num_trials); }
};

/// Share of `expected`'s characters that `answer` has at the same place, leading spaces aside.
inline double digit_share(std::string_view answer, std::string_view expected) {
  if (expected.empty()) return 1.0;
  answer.remove_prefix(std::min(answer.find_first_not_of(" \n\t"), answer.size()));
  std::size_t right = 0;
  for (std::size_t i = 0; i < std::min(answer.size(), expected.size()); ++i) {
    right += answer[i] == expected[i] ? 1U : 0U;
  }
  return static_cast<double>(right) / static_cast<double>(expected.size());
}

namespace detail {

/// `argmax_token`; the fault of logits that allow no choice is the model's.
inline Result<std::int32_t> likeliest_token(std::span<const float> logits) {
  Result<std::int32_t> token = argmax_token(logits);
  if (!token.ok()) return invalid_file("the model's answer: " + token.status().message());
  return token;
}

/// Feeds the true answer and counts the digits that greedy decoding would have chosen next.
template <typename SessionType>
Result<double> forced_digit_share(SessionType& session, const BpeTokenizer& tokenizer,
                                  std::string_view answer, std::int32_t first_choice) {
  CHUNKLLM_ASSIGN_OR_RETURN(
      const std::vector<std::int32_t> tokens,
      tokenizer.encode(" " + std::string(answer), /*add_special_tokens=*/false));
  std::int32_t choice = first_choice;
  std::size_t num_digits = 0;
  std::size_t num_right = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    // A token may hold several digits, or a space alone.
    const std::string_view bytes = tokenizer.token_bytes(tokens[i]);
    const auto digits = static_cast<std::size_t>(
        std::count_if(bytes.begin(), bytes.end(), [](char c) { return c != ' '; }));
    num_digits += digits;
    if (choice == tokens[i]) num_right += digits;
    if (i + 1 == tokens.size()) break;
    CHUNKLLM_ASSIGN_OR_RETURN(const std::span<const float> logits, session.step(tokens[i]));
    CHUNKLLM_ASSIGN_OR_RETURN(choice, detail::likeliest_token(logits));
  }
  return static_cast<double>(num_right) / static_cast<double>(num_digits);
}

}  // namespace detail

/// Reads a trial's prompt in a fresh session and answers greedily (equal logits: the lowest id);
/// before that it tries each digit with the true ones in front of it, which tells a scorer that
/// finds the fact late from one that never does.
///
/// `session.attended()` afterwards counts the greedy answer's tokens.
///
/// \return the text has at least `trial.answer.size()` characters behind its spaces, unless the
///         model says something longer than any answer
/// Errors: those of `Session::prefill` and `Session::rollback`; `progress` as in the former;
///         kInvalidFile for logits that are not finite.
template <typename SessionType>
Result<RetrievalAnswer> answer_trial(SessionType& session, const BpeTokenizer& tokenizer,
                                     const RetrievalTrial& trial,
                                     const std::function<bool(std::int64_t)>& progress) {
  const std::size_t max_tokens = trial.max_answer_tokens();
  session.reserve(static_cast<std::int64_t>(trial.ids.size() + max_tokens));
  CHUNKLLM_RETURN_IF_ERROR(session.prefill(trial.ids, progress));
  CHUNKLLM_ASSIGN_OR_RETURN(std::span<const float> logits, session.finish_prompt());
  CHUNKLLM_ASSIGN_OR_RETURN(std::int32_t token, detail::likeliest_token(logits));
  RetrievalAnswer answer;
  CHUNKLLM_ASSIGN_OR_RETURN(answer.forced_share,
                            detail::forced_digit_share(session, tokenizer, trial.answer, token));
  CHUNKLLM_RETURN_IF_ERROR(session.rollback(static_cast<std::int64_t>(trial.ids.size())));
  session.count_attended_from(session.num_tokens());
  for (std::size_t i = 0; i < max_tokens; ++i) {
    answer.text += tokenizer.token_bytes(token);
    const std::size_t spaces = std::min(answer.text.find_first_not_of(" \n\t"), answer.text.size());
    if (answer.text.size() - spaces >= trial.answer.size()) break;
    CHUNKLLM_ASSIGN_OR_RETURN(logits, session.step(token));
    CHUNKLLM_ASSIGN_OR_RETURN(token, detail::likeliest_token(logits));
  }
  return answer;
}

namespace detail {

/// The numbers that a trial draws.
class TrialRandom : public RandomStream {
 public:
  explicit TrialRandom(const RetrievalTrialOptions& options)
      : RandomStream(options.seed, static_cast<std::uint64_t>(options.trial)) {}

  /// Five digits, the first not 0.
  std::string draw_key() { return std::to_string(10000 + draw(90000)); }
};

/// A fact and the place in the filler, [0, 1], before which it is put.
struct PlacedFact {
  double depth = 0.0;
  std::string text;
};

/// `wording` with every "{key}" and "{name}" replaced.
inline std::string fill_in(std::string_view wording, std::string_view key, std::string_view name) {
  std::string text(wording);
  for (const auto& [slot, value] :
       {std::pair<std::string_view, std::string_view>{"{key}", key},
        std::pair<std::string_view, std::string_view>{"{name}", name}}) {
    for (std::size_t at = text.find(slot); at != std::string::npos;
         at = text.find(slot, at + value.size())) {
      text.replace(at, slot.size(), value);
    }
  }
  return text;
}

/// Filler from a drawn place on, facts between its sentences, the question behind it.
///
/// \param facts  by ascending depth
inline Result<std::vector<std::int32_t>> build_retrieval_prompt(
    const BpeTokenizer& tokenizer, const FillerText& filler, const RetrievalTrialOptions& options,
    std::span<const PlacedFact> facts, std::string_view question, TrialRandom& random) {
  const auto available = static_cast<std::int64_t>(filler.ids.size());
  if (options.length < 1 || options.length > available) {
    return invalid_argument("retrieval: length is " + std::to_string(options.length) +
                            " tokens, expected 1 to the text's " + std::to_string(available));
  }
  if (!(options.depth >= 0.0 && options.depth <= 1.0)) {
    return invalid_argument("retrieval: depth is " + std::to_string(options.depth) +
                            ", expected 0 to 1");
  }
  const auto length = static_cast<std::size_t>(options.length);
  const std::size_t last_begin = filler.ids.size() - length;
  const std::size_t drawn = random.draw(last_begin + 1);
  const std::size_t begin = std::min(filler.sentence_begin(drawn), last_begin);
  std::vector<std::int32_t> ids(tokenizer.prefix_ids().begin(), tokenizer.prefix_ids().end());
  std::size_t next = begin;
  const auto append_filler = [&](std::size_t end) {
    for (; next < end; ++next) ids.push_back(filler.ids[next]);
  };
  for (const PlacedFact& fact : facts) {
    const auto offset = static_cast<std::size_t>(fact.depth * static_cast<double>(length));
    append_filler(std::min(filler.sentence_begin(begin + offset), begin + length));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens,
                              tokenizer.encode(fact.text, /*add_special_tokens=*/false));
    ids.insert(ids.end(), tokens.begin(), tokens.end());
  }
  append_filler(begin + length);
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens,
                            tokenizer.encode(question, /*add_special_tokens=*/false));
  ids.insert(ids.end(), tokens.begin(), tokens.end());
  return ids;
}

}  // namespace detail

}  // namespace chunkllm
