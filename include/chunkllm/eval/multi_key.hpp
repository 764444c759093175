// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/retrieval.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// What the facts of one prompt are about.
inline constexpr std::array<std::string_view, 8> kMultiKeyNames = {
    "the green bottle", "the old clock",    "the copper lamp",  "the paper boat",
    "the winter coat",  "the stone bridge", "the silver spoon", "the garden gate"};

/// Eight facts alike, evenly spread over plain text; the one nearest to `options.depth` is asked
/// for. A scorer must tell chunks of one kind apart, not just find what stands out.
///
/// `RetrievalTrial::depth` is the asked fact's true depth.
///
/// Errors: kInvalidArgument for a length outside the filler or a depth outside [0, 1].
inline Result<RetrievalTrial> make_multi_key_trial(const BpeTokenizer& tokenizer,
                                                   const FillerText& filler,
                                                   const RetrievalTrialOptions& options) {
  constexpr std::size_t kNumFacts = kMultiKeyNames.size();
  detail::TrialRandom random(options);
  std::array<std::string_view, kNumFacts> names = kMultiKeyNames;
  for (std::size_t i = kNumFacts - 1; i > 0; --i) std::swap(names[i], names[random.draw(i + 1)]);
  const double clamped = std::clamp(options.depth, 0.0, 1.0);  // an error comes below
  const std::size_t asked =
      std::min(static_cast<std::size_t>(clamped * static_cast<double>(kNumFacts)), kNumFacts - 1);
  RetrievalTrial trial;
  std::vector<detail::PlacedFact> facts;
  for (std::size_t i = 0; i < kNumFacts; ++i) {
    const std::string key = random.draw_key();
    const double depth = (static_cast<double>(i) + 0.5) / static_cast<double>(kNumFacts);
    facts.push_back({depth, detail::fill_in(" The number of {name} is {key}.", key, names[i])});
    if (i == asked) {
      trial.answer = key;
      trial.depth = depth;
    }
  }
  const std::string question = detail::fill_in(
      "\n\nWhat is the number of {name}? The number of {name} is", "", names[asked]);
  CHUNKLLM_ASSIGN_OR_RETURN(trial.ids, detail::build_retrieval_prompt(tokenizer, filler, options,
                                                                      facts, question, random));
  return trial;
}

}  // namespace chunkllm
