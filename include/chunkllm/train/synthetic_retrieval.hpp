// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/random.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/retrieval.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/train/synthetic_words.hpp"

namespace chunkllm {

/// A question in a training text: where the answer begins and what it can be read from.
struct TrainingQuestion {
  std::int64_t trigger = 0;     ///< the last token before the answer
  std::int64_t answer_end = 0;  ///< exclusive
  std::int64_t source_begin =
      0;                        ///< tokens of the statement that the answer stands in, or begins in
  std::int64_t source_end = 0;  ///< exclusive
};

/// A text to train on.
struct TrainingSequence {
  std::vector<std::int32_t> ids;
  std::vector<TrainingQuestion> questions;  ///< by ascending trigger; empty for plain text
};

struct SyntheticRetrievalOptions {
  std::int64_t length = 4096;  ///< tokens of a sequence, begin tokens included
  std::int64_t min_facts = 3;
  std::int64_t max_facts = 10;
  double plain_share = 0.25;  ///< of sequences without facts and questions
};

namespace detail {

/// `wording` with {who}, {what} and {value} replaced.
inline std::string fill_wording(std::string_view wording, std::string_view who,
                                std::string_view what, std::string_view value) {
  std::string text;
  while (!wording.empty()) {
    const std::size_t slot = std::min(wording.find('{'), wording.size());
    text += wording.substr(0, slot);
    wording.remove_prefix(slot);
    if (wording.empty()) break;
    const std::string_view name = wording.substr(1, wording.find('}') - 1);
    text += name == "who" ? who : name == "what" ? what : value;
    wording.remove_prefix(name.size() + 2);
  }
  return text;
}

/// Something stated once or more and asked for later. The answer begins with its space.
struct SyntheticFact {
  std::vector<std::string> statements;  // in the order of the text
  std::string question;
  std::string answer;
};

/// Draws facts whose names do not repeat within a sequence.
class SyntheticFacts {
 public:
  /// \param words  of the text around, which half of the things are named with
  SyntheticFacts(RandomStream& random, std::vector<std::string> words)
      : random_(random), words_(std::move(words)) {}

  SyntheticFact draw() {
    switch (random_.draw(8)) {
      case 0: return draw_trait();
      case 1: return draw_chain();
      case 2: return draw_two_values();
      default: return draw_number();
    }
  }

 private:
  template <typename Words>
  std::string_view pick(const Words& words) {
    return words[random_.draw(words.size())];
  }

  /// A name that this sequence has not used yet; after many tries any.
  template <typename Make>
  std::string draw_name(const Make& make) {
    std::string name = make();
    for (int i = 0; i < 16 && std::find(used_.begin(), used_.end(), name) != used_.end(); ++i) {
      name = make();
    }
    used_.push_back(name);
    return name;
  }
  std::string draw_thing() {
    return draw_name([&] {
      if (words_.size() > 1 && random_.draw(2) == 0) {
        return std::string(pick(words_)) + " " + std::string(pick(words_));
      }
      return std::string(pick(kSyntheticQualities)) + " " + std::string(pick(kSyntheticThings));
    });
  }
  /// Mostly five digits; some of three to seven, some in two groups.
  std::string draw_value() {
    const std::uint64_t form = random_.draw(8);
    std::uint64_t digits = form < 5 ? 5 : 3 + random_.draw(5);
    std::string value(1, static_cast<char>('1' + random_.draw(9)));
    while (--digits > 0) value += static_cast<char>('0' + random_.draw(10));
    if (form == 7) value.insert(value.size() / 2, "-");
    return value;
  }

  /// Facts of one sequence often share what their numbers are of, so that names must be told apart.
  std::string_view draw_what() {
    if (what_.empty() || random_.draw(3) == 0) what_ = pick(kSyntheticNumbers);
    return what_;
  }

  SyntheticFact draw_number() {
    const std::string who = draw_thing();
    const std::string_view what = draw_what();
    const std::string value = draw_value();
    SyntheticFact fact;
    fact.statements.push_back(fill_wording(pick(kSyntheticStatements), who, what, value));
    fact.question = fill_wording(pick(kSyntheticQuestions), who, what, value);
    fact.answer = " " + value;
    return fact;
  }

  SyntheticFact draw_trait() {
    const std::string who = draw_name([&] { return std::string(pick(kSyntheticPeople)); });
    const std::uint64_t trait = random_.draw(kSyntheticTraits.size());
    const std::string_view value = pick(kSyntheticTraitWords[trait]);
    SyntheticFact fact;
    fact.statements.push_back(
        fill_wording(pick(kSyntheticTraitStatements), who, kSyntheticTraits[trait], value));
    fact.question = fill_wording(pick(kSyntheticTraitQuestions), who, kSyntheticTraits[trait], "");
    fact.answer = " " + std::string(value);
    return fact;
  }

  /// Names that stand for one another; the last is asked for.
  SyntheticFact draw_chain() {
    const std::string value = draw_value();
    std::string name = draw_thing();
    SyntheticFact fact;
    fact.statements.push_back(" On the map the " + name + " stands for " + value + ".");
    for (std::uint64_t hops = 1 + random_.draw(2); hops > 0; --hops) {
      std::string next = draw_thing();
      fact.statements.push_back(" The " + next + " stands for whatever the " + name +
                                " stands for.");
      name = std::move(next);
    }
    fact.question = " On the map, then, the " + name + " stands for";
    fact.answer = " " + value;
    return fact;
  }

  SyntheticFact draw_two_values() {
    const std::string who = draw_thing();
    const std::string_view what = draw_what();
    const std::string first = draw_value();
    const std::string second = draw_value();
    SyntheticFact fact;
    fact.statements.push_back(
        fill_wording(" One {what} of the {who} is {value}.", who, what, first));
    fact.statements.push_back(
        fill_wording(" A further {what} of the {who} is {value}.", who, what, second));
    fact.question =
        fill_wording(" For the {who} we have met more than one {what}, namely", who, what, "");
    fact.answer = " " + first + " and " + second;
    return fact;
  }

  RandomStream& random_;
  std::vector<std::string> words_;
  std::vector<std::string> used_;
  std::string_view what_;
};

/// Words of 4 to 10 small Latin letters in a stretch of text, each once, in its order.
inline std::vector<std::string> plain_words(const BpeTokenizer& tokenizer,
                                            std::span<const std::int32_t> ids) {
  std::string text;
  for (const std::int32_t id : ids) text += tokenizer.token_bytes(id);
  std::vector<std::string> words;
  std::string word;
  bool is_plain = true;
  for (const char c : text + " ") {
    if (c >= 'a' && c <= 'z') {
      word += c;
    } else if (c != ' ' && c != '\n' && c != ',' && c != '.') {
      is_plain = false;
    } else {
      const bool fits = is_plain && word.size() >= 4 && word.size() <= 10;
      if (fits && std::find(words.begin(), words.end(), word) == words.end()) {
        words.push_back(word);
      }
      word.clear();
      is_plain = true;
    }
  }
  return words;
}

/// Text to be put before a token of the filler.
struct SyntheticInsertion {
  std::size_t offset = 0;  // in the filler
  std::size_t fact = 0;
  bool asks = false;
  bool is_source = false;  // the first statement, which the answer (or half of it) stands in
  std::string text;
};

/// The filler with its insertions: tokens, and where the questions are.
inline Result<TrainingSequence> assemble_training_sequence(
    const BpeTokenizer& tokenizer, std::span<const std::int32_t> filler,
    std::span<const SyntheticInsertion> insertions, std::span<const SyntheticFact> facts,
    std::size_t length) {
  TrainingSequence sequence;
  sequence.ids.assign(tokenizer.prefix_ids().begin(), tokenizer.prefix_ids().end());
  std::vector<std::pair<std::int64_t, std::int64_t>> sources(facts.size(), {-1, -1});
  std::size_t next = 0;
  const auto end_of_ids = [&] { return static_cast<std::int64_t>(sequence.ids.size()); };
  const auto append = [&](std::span<const std::int32_t> ids) {
    sequence.ids.insert(sequence.ids.end(), ids.begin(), ids.end());
  };
  for (const SyntheticInsertion& insertion : insertions) {
    append(filler.subspan(next, insertion.offset - next));
    next = insertion.offset;
    if (sequence.ids.size() >= length) break;
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens,
                              tokenizer.encode(insertion.text, /*add_special_tokens=*/false));
    const std::int64_t begin = end_of_ids();
    append(tokens);
    if (!insertion.asks) {
      if (insertion.is_source) sources[insertion.fact] = {begin, end_of_ids()};
      continue;
    }
    const auto& [source_begin, source_end] = sources[insertion.fact];
    if (source_begin < 0) continue;
    CHUNKLLM_ASSIGN_OR_RETURN(
        const std::vector<std::int32_t> answer,
        tokenizer.encode(facts[insertion.fact].answer, /*add_special_tokens=*/false));
    const std::int64_t trigger = end_of_ids() - 1;
    append(answer);
    sequence.questions.push_back({trigger, end_of_ids(), source_begin, source_end});
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> stop,
                              tokenizer.encode(".", /*add_special_tokens=*/false));
    append(stop);
  }
  if (sequence.ids.size() < length) {
    append(filler.subspan(next, std::min(length - sequence.ids.size(), filler.size() - next)));
  }
  sequence.ids.resize(std::min(sequence.ids.size(), length));
  // An answer that is cut off could not be taught.
  std::erase_if(sequence.questions, [&](const TrainingQuestion& question) {
    return question.answer_end > end_of_ids();
  });
  return sequence;
}

}  // namespace detail

/// Makes training sequences: plain text into which facts and, later, questions for them are put.
///
/// Facts are numbers of things, words of persons, chains of names and pairs of values, several of
/// one kind in a sequence; half of the things have names made of words of the text; a question
/// stands at least 128 tokens of text behind its last statement, in the middle of the text as often
/// as at its end.
///
/// \param filler  plain text to cut from
/// \param number  which sequence of the series; the same one whenever it is asked for
/// Errors: kInvalidArgument where the filler is shorter than the sequence.
inline Result<TrainingSequence> make_training_sequence(const BpeTokenizer& tokenizer,
                                                       const FillerText& filler,
                                                       const SyntheticRetrievalOptions& options,
                                                       std::uint64_t seed, std::uint64_t number) {
  constexpr std::size_t kLeastGap = 128;
  const auto length = static_cast<std::size_t>(options.length);
  if (options.length < 512 || length > filler.ids.size()) {
    return invalid_argument("training sequence: length is " + std::to_string(options.length) +
                            " tokens, expected 512 to the text's " +
                            std::to_string(filler.ids.size()));
  }
  RandomStream random(seed, number);
  const std::size_t last_begin = filler.ids.size() - length;
  const std::size_t begin =
      std::min(filler.sentence_begin(random.draw(last_begin + 1)), last_begin);
  const std::span<const std::int32_t> text(filler.ids.data() + begin, length);
  const auto place = [&](std::size_t offset) {
    return std::min(filler.sentence_begin(begin + offset), begin + length) - begin;
  };
  std::vector<detail::SyntheticFact> facts;
  std::vector<detail::SyntheticInsertion> insertions;
  if (random.draw_unit() >= options.plain_share) {
    constexpr std::size_t kWordTokens = 400;
    const std::size_t first_word = random.draw(length - kWordTokens);
    detail::SyntheticFacts draws(
        random, detail::plain_words(tokenizer, text.subspan(first_word, kWordTokens)));
    const auto spread = static_cast<std::uint64_t>(options.max_facts - options.min_facts + 1);
    const std::uint64_t count = static_cast<std::uint64_t>(options.min_facts) +
                                random.draw(std::max<std::uint64_t>(spread, 1));
    for (std::size_t f = 0; f < count; ++f) {
      facts.push_back(draws.draw());
      const detail::SyntheticFact& fact = facts.back();
      std::vector<std::size_t> offsets;
      for (std::size_t s = 0; s < fact.statements.size(); ++s) {
        offsets.push_back(random.draw(length * 3 / 4));
      }
      std::sort(offsets.begin(), offsets.end());
      for (std::size_t s = 0; s < offsets.size(); ++s) {
        insertions.push_back({place(offsets[s]), f, /*asks=*/false,
                              /*is_source=*/s == 0, fact.statements[s]});
      }
      const std::size_t from = offsets.back() + kLeastGap;
      insertions.push_back({place(from + random.draw(length - from)), f, /*asks=*/true,
                            /*is_source=*/false, fact.question});
    }
    // Stable: what is put at one place keeps its order, statements before their question.
    std::stable_sort(insertions.begin(), insertions.end(),
                     [](const auto& a, const auto& b) { return a.offset < b.offset; });
  }
  return detail::assemble_training_sequence(tokenizer, text, insertions, facts, length);
}

}  // namespace chunkllm
