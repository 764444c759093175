// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/infer/sampler.hpp"

namespace chunkllm {

/// Why a generation ended.
enum class StopReason : std::uint8_t {
  kEos,         ///< an end token was chosen; it is the last id
  kLength,      ///< as many tokens as were asked for
  kInterrupted  ///< the callback returned false
};

constexpr std::string_view to_string(StopReason reason) {
  switch (reason) {
    case StopReason::kEos: return "eos";
    case StopReason::kLength: return "length";
    case StopReason::kInterrupted: return "interrupted";
  }
  return "?";
}

/// What a generation may not exceed.
struct GenerationLimits {
  std::int64_t max_new_tokens = 128;
  std::span<const std::int32_t> eos_ids;
};

/// Chooses and reads tokens until an end token, the limit, or the callback's word.
///
/// The last chosen token is not read: a following `session.step(token)` would be the turn's next.
///
/// \param session   with `step(token)` that gives the logits behind a token, such as `Session`
/// \param logits    of the first new token: what `finish_prompt` returned
/// \param[out] ids  new tokens are appended as they come, the end token included, so that they
///                  are there when an error or a callback ends the loop
/// \param on_token  called with each new id; false stops
/// Errors: those of the sampler and of `session.step`.
template <typename AnySession, std::predicate<std::int32_t> OnToken>
Result<StopReason> generate(AnySession& session, std::span<const float> logits, Sampler& sampler,
                            const GenerationLimits& limits, std::vector<std::int32_t>& ids,
                            OnToken&& on_token) {
  for (std::int64_t i = 0; i < limits.max_new_tokens; ++i) {
    if (i > 0) {
      CHUNKLLM_ASSIGN_OR_RETURN(logits, session.step(ids.back()));
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t token, sampler.sample(logits));
    ids.push_back(token);
    const bool goes_on = on_token(token);
    if (std::find(limits.eos_ids.begin(), limits.eos_ids.end(), token) != limits.eos_ids.end()) {
      return StopReason::kEos;
    }
    if (!goes_on) return StopReason::kInterrupted;
  }
  return StopReason::kLength;
}

}  // namespace chunkllm
