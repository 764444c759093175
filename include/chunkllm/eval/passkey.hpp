// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/retrieval.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// How a pass key is stated and asked for. The question is left open for the key to follow.
struct PasskeyWording {
  std::string_view fact;
  std::string_view question;
};

/// See `passkey_wording`.
inline constexpr std::array<PasskeyWording, 4> kPasskeyWordings = {{
    {" Here is a thing to remember: the pass key is {key}. Once more, the pass key is {key}.",
     "\n\nWhat is the pass key? The pass key is"},
    {" Take note of the vault's code, which is {key}. The code of the vault is {key}.",
     "\n\nQuestion: what is the code of the vault?\nAnswer: The code of the vault is"},
    {" Before we go on, the secret number is {key}. Keep it in mind: the secret number is {key}.",
     "\n\nSomewhere above a secret number was given. The secret number is"},
    {" The door opens with the number {key}. Do not forget that the door's number is {key}.",
     "\n\nWhich number opens the door? The door's number is"},
}};

/// The wording of a trial: in turn, as depths are, but moved on by one whenever both would begin
/// anew together, so that each depth meets each wording once in four rounds of the depths.
///
/// \param trial       at least 0
/// \param num_depths  depths that trials take in turn, at least 1
inline const PasskeyWording& passkey_wording(std::int64_t trial, std::int64_t num_depths) {
  const auto count = static_cast<std::int64_t>(kPasskeyWordings.size());
  const std::int64_t shifts = std::gcd(num_depths, count);
  const std::int64_t shift = trial / std::lcm(num_depths, count) % shifts;
  return kPasskeyWordings[static_cast<std::size_t>((trial + shift) % count)];
}

/// A key of five digits, stated at a depth of plain text and asked for at its end.
///
/// \param filler  `options.length` tokens of it are taken from a drawn sentence on
/// Errors: kInvalidArgument for a length outside the filler or a depth outside [0, 1].
inline Result<RetrievalTrial> make_passkey_trial(const BpeTokenizer& tokenizer,
                                                 const FillerText& filler,
                                                 const RetrievalTrialOptions& options) {
  detail::TrialRandom random(options);
  RetrievalTrial trial;
  trial.answer = random.draw_key();
  trial.depth = options.depth;
  const PasskeyWording& wording = passkey_wording(options.trial, options.num_depths);
  const detail::PlacedFact fact{options.depth, detail::fill_in(wording.fact, trial.answer, "")};
  CHUNKLLM_ASSIGN_OR_RETURN(trial.ids,
                            detail::build_retrieval_prompt(tokenizer, filler, options, {&fact, 1},
                                                           wording.question, random));
  return trial;
}

}  // namespace chunkllm
