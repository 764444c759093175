// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

/// English word lists of the sentence splitters. Not API.
namespace chunkllm::detail {

/// How a word that is written with a full stop of its own behaves in front of the next word.
enum class AbbreviationClass : std::uint8_t {
  kNone,
  kTitle,      ///< stands before a name: never ends a sentence ("Dr. Who")
  kReference,  ///< stands before a number: "p. 55", "Fig. 2"; else an ordinary word ("no.")
  kTime,       ///< "p.m.": ends a sentence before a capital letter
  kOther       ///< ends a sentence only before a word that likes to start one ("Co. It closed")
};

/// Longest word that the lists can hold, bytes.
inline constexpr std::size_t kPackedWordBytes = 8;

/// A word of up to 8 ASCII bytes as one integer, first byte lowest; longer words become 0.
constexpr std::uint64_t pack_word(std::string_view word) {
  if (word.size() > kPackedWordBytes) return 0;
  std::uint64_t packed = 0;
  for (std::size_t i = 0; i < word.size(); ++i) {
    packed |= std::uint64_t{static_cast<unsigned char>(word[i])} << (8 * i);
  }
  return packed;
}

template <std::size_t kNumWords>
constexpr std::array<std::uint64_t, kNumWords> pack_words(
    const std::array<std::string_view, kNumWords>& words) {
  std::array<std::uint64_t, kNumWords> packed{};
  for (std::size_t i = 0; i < kNumWords; ++i) packed[i] = pack_word(words[i]);
  std::sort(packed.begin(), packed.end());
  return packed;
}

// Lower case, without the last full stop. At most 8 bytes each (checked below).
inline constexpr auto kTitleWords = pack_words(std::to_array<std::string_view>({
    "adm",  "archbp", "bp",   "brig", "capt", "cmdr", "col", "comdr", "cpl",  "dr",   "drs",
    "ens",  "esq",    "fr",   "gen",  "gov",  "hon",  "ld",  "lieut", "lt",   "maj",  "messrs",
    "mlle", "mme",    "mmes", "mons", "mr",   "mrs",  "ms",  "mss",   "msgr", "mt",   "mts",
    "pfc",  "pres",   "prof", "pvt",  "rep",  "reps", "rev", "revd",  "sen",  "sens", "sergt",
    "sgt",  "st",     "ste",  "supt", "vs",   "viz",  "i.e", "e.g",   "cf",   "ca",   "n\xC2\xB0",
}));
inline constexpr auto kReferenceWords = pack_words(std::to_array<std::string_view>({
    "app", "bk", "chap", "chaps", "eq", "eqn", "eqns", "eqs",  "fig", "figs", "fol", "no",  "nos",
    "nr",  "op", "p",    "para",  "pl", "pp",  "ref",  "refs", "sec", "sect", "ver", "vol", "vols",
}));
inline constexpr auto kTimeWords = pack_words(std::to_array<std::string_view>({
    "a.d",
    "a.m",
    "b.c",
    "b.c.e",
    "c.e",
    "p.m",
}));
inline constexpr auto kOtherWords = pack_words(std::to_array<std::string_view>({
    "abbr", "al",   "approx", "apr",  "assn", "aug",  "ave",    "avg",  "b.a",  "bldg", "blvd",
    "bros", "b.s",  "co",     "corp", "dec",  "dept", "encl",   "etc",  "feb",  "ft",   "govt",
    "ibid", "inc",  "incl",   "intl", "jan",  "jr",   "jul",    "jun",  "ltd",  "m.a",  "m.d",
    "mfg",  "misc", "mph",    "natl", "nov",  "oct",  "orig",   "oz",   "ph.d", "plc",  "q.e.d",
    "q.v",  "rd",   "sep",    "sept", "sr",   "tel",  "transl", "univ", "yr",   "yrs",
}));

// Words that, capitalised after an abbreviation, almost always start a sentence.
inline constexpr auto kSentenceStarters = pack_words(std::to_array<std::string_view>({
    "after",   "all",   "although", "and",   "another", "are",   "as",    "at",     "because",
    "before",  "but",   "by",       "can",   "could",   "did",   "do",    "does",   "during",
    "each",    "every", "few",      "for",   "from",    "had",   "has",   "have",   "he",
    "her",     "here",  "his",      "how",   "however", "i",     "if",    "in",     "is",
    "it",      "its",   "let",      "many",  "may",     "most",  "must",  "my",     "no",
    "nor",     "not",   "now",      "of",    "on",      "once",  "one",   "or",     "our",
    "perhaps", "she",   "should",   "since", "so",      "some",  "such",  "that",   "the",
    "their",   "then",  "there",    "these", "they",    "this",  "those", "though", "thus",
    "to",      "was",   "we",       "were",  "what",    "when",  "where", "which",  "while",
    "who",     "whose", "why",      "will",  "with",    "would", "yes",   "yet",    "you",
    "your",
}));

// Names and titles whose exclamation mark is part of them.
inline constexpr auto kExclamatoryNames = pack_words(std::to_array<std::string_view>({
    "jeopardy",
    "joomla",
    "mamma",
    "oklahoma",
    "yahoo",
    "yum",
}));

template <std::size_t kNumWords>
constexpr bool contains_word(const std::array<std::uint64_t, kNumWords>& words,
                             std::uint64_t packed) {
  return std::binary_search(words.begin(), words.end(), packed);
}

static_assert(!contains_word(kTitleWords, 0) && !contains_word(kReferenceWords, 0) &&
                  !contains_word(kTimeWords, 0) && !contains_word(kOtherWords, 0) &&
                  !contains_word(kSentenceStarters, 0) && !contains_word(kExclamatoryNames, 0),
              "a listed word is longer than kPackedWordBytes");

/// Class of a packed lower-case word. A word of two lists has the class of the first of title,
/// reference, time, other. Cost: four binary searches.
constexpr AbbreviationClass abbreviation_class(std::uint64_t packed) {
  if (packed == 0) return AbbreviationClass::kNone;
  if (contains_word(kTitleWords, packed)) return AbbreviationClass::kTitle;
  if (contains_word(kReferenceWords, packed)) return AbbreviationClass::kReference;
  if (contains_word(kTimeWords, packed)) return AbbreviationClass::kTime;
  if (contains_word(kOtherWords, packed)) return AbbreviationClass::kOther;
  return AbbreviationClass::kNone;
}

/// The word in front of a full stop, as far as both splitters need it.
struct StopWord {
  std::uint64_t packed = 0;  ///< `pack_word` of its lower case with inner stops; 0 if longer
  std::uint32_t num_bytes = 0;
  bool starts_upper = false;  ///< its first letter is a capital
  bool is_number = false;     ///< ASCII digits only
  bool has_stop = false;      ///< an inner full stop: "u.s"
};

/// What a full stop does after a given word, the rest depending on what follows.
enum class StopRule : std::uint8_t {
  kEnds,           ///< an ordinary word: the sentence ends
  kNever,          ///< a title
  kUnlessNumber,   ///< a reference: ends unless a number follows
  kBeforeCapital,  ///< a time of day: ends before a capital letter
  kBeforeStarter,  ///< other abbreviations and acronyms: ends before a usual first word
  kInitial         ///< a single capital letter: as kBeforeStarter, "I" included
};

constexpr StopRule stop_rule(const StopWord& word) {
  if (word.num_bytes == 1 && word.starts_upper) return StopRule::kInitial;
  switch (abbreviation_class(word.packed)) {
    case AbbreviationClass::kTitle: return StopRule::kNever;
    case AbbreviationClass::kReference: return StopRule::kUnlessNumber;
    case AbbreviationClass::kTime: return StopRule::kBeforeCapital;
    case AbbreviationClass::kOther: return StopRule::kBeforeStarter;
    case AbbreviationClass::kNone: break;
  }
  // Single letters with stops between: "u.s", "j.r.r". Longer parts are file names and the like.
  if (word.has_stop && word.packed != 0) {
    for (std::uint32_t i = 0; i < word.num_bytes; ++i) {
      const std::uint64_t byte = (word.packed >> (8 * i)) & 0xFF;
      const bool fits = i % 2 == 0 ? byte >= 'a' && byte <= 'z' : byte == '.';
      if (!fits) return StopRule::kEnds;
    }
    return StopRule::kBeforeStarter;
  }
  return StopRule::kEnds;
}

}  // namespace chunkllm::detail
