// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// Settings of a `Sampler`. Each filter has a value that turns it off.
struct SamplerOptions {
  double temperature = 0.0;  ///< 0: greedy, whatever the other settings
  std::int64_t top_k = 0;    ///< keep the k likeliest tokens; 0: all
  double top_p = 1.0;        ///< keep the fewest likeliest tokens of this total probability; 1: all
  double min_p = 0.0;        ///< keep tokens of at least this share of the likeliest's; 0: all
  std::uint64_t seed = 0;
};

/// Errors: kInvalidArgument naming the setting, its value and the range; NaN fails.
inline Status validate(const SamplerOptions& options) {
  const auto in_range = [](const char* name, double value, double low, double high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                            std::to_string(low) + " to " + std::to_string(high));
  };
  CHUNKLLM_RETURN_IF_ERROR(in_range("temperature", options.temperature, 0.0, 1e6));
  CHUNKLLM_RETURN_IF_ERROR(in_range("top_p", options.top_p, 0.0, 1.0));
  CHUNKLLM_RETURN_IF_ERROR(in_range("min_p", options.min_p, 0.0, 1.0));
  if (options.top_k < 0) {
    return invalid_argument("top_k is " + std::to_string(options.top_k) +
                            ", expected at least 0 (0 keeps all tokens)");
  }
  return {};
}

/// 64 random bits at a time from xoshiro256**, seeded through SplitMix64: the same on every
/// platform, unlike the standard library's distributions.
///
/// Source: D. Blackman and S. Vigna, Scrambled Linear Pseudorandom Number Generators, 2021.
class Xoshiro256 {
 public:
  explicit Xoshiro256(std::uint64_t seed) {
    for (std::uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15U;
      word = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9U;
      word = (word ^ (word >> 27)) * 0x94d049bb133111ebU;
      word ^= word >> 31;
    }
  }

  std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::array<std::uint64_t, 4> state_{};
};

/// The token of the largest logit, of equal ones the lowest id.
///
/// Errors: kInvalidArgument for no logits or a NaN or +infinity among them: a choice would hide
///         broken weights.
inline Result<std::int32_t> argmax_token(std::span<const float> logits) {
  if (logits.empty()) return invalid_argument("no logits to choose from");
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity())) {
      return invalid_argument("logit of token " + std::to_string(i) + " is " +
                              (std::isnan(logits[i]) ? "NaN" : "infinite") +
                              ", expected a finite number");
    }
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<std::int32_t>(best);
}

/// Chooses the next token from logits.
///
/// Filters run in this order: temperature, top-k, top-p, min-p, each on the renormalised
/// probabilities of what the one before kept; the likeliest token always stays. Candidates are
/// ordered by logit, equal ones by id, and one uniform number is drawn a token, so equal logits
/// and seeds give equal tokens.
class Sampler {
 public:
  /// Errors: those of `validate(options)`.
  static Result<Sampler> create(const SamplerOptions& options) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options));
    return Sampler(options);
  }

  /// \param logits  [vocab_size]
  /// Errors: as of `argmax_token`.
  /// Cost: greedy one pass; else a partial sort of the vocabulary, and no allocation after the
  ///       first call.
  Result<std::int32_t> sample(std::span<const float> logits) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t likeliest, argmax_token(logits));
    if (options_.temperature == 0.0) return likeliest;
    sort_candidates(logits);
    const double largest = static_cast<double>(logits[static_cast<std::size_t>(likeliest)]);
    double total = 0.0;
    for (Candidate& candidate : candidates_) {
      // All logits -infinity: every difference is NaN, and every token as likely as the others.
      const double difference = static_cast<double>(candidate.logit) - largest;
      candidate.weight = std::isnan(difference) ? 1.0 : std::exp(difference / options_.temperature);
      total += candidate.weight;
    }
    total = keep_top_p(total);
    total = keep_min_p(total);
    double rest = random_.uniform() * total;
    std::int32_t chosen = likeliest;
    for (const Candidate& candidate : candidates_) {
      if (candidate.weight <= 0.0) break;  // the sum's rounding must not choose what cannot come
      chosen = candidate.token;
      rest -= candidate.weight;
      if (rest < 0.0) break;
    }
    return chosen;
  }

 private:
  struct Candidate {
    float logit = 0.0F;
    std::int32_t token = 0;
    double weight = 0.0;  // exp((logit - largest) / temperature)
  };

  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}

  /// Fills `candidates_` with the top-k, likeliest first.
  void sort_candidates(std::span<const float> logits) {
    candidates_.clear();
    candidates_.reserve(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      candidates_.push_back({logits[i], static_cast<std::int32_t>(i), 0.0});
    }
    const auto comes_first = [](const Candidate& a, const Candidate& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    };
    const auto top_k = static_cast<std::uint64_t>(options_.top_k);
    if (top_k == 0 || top_k >= candidates_.size()) {
      std::sort(candidates_.begin(), candidates_.end(), comes_first);
      return;
    }
    const auto kept = candidates_.begin() + options_.top_k;
    std::partial_sort(candidates_.begin(), kept, candidates_.end(), comes_first);
    candidates_.erase(kept, candidates_.end());
  }

  /// Cuts behind the token that reaches top_p; returns the weight that is left.
  double keep_top_p(double total) {
    if (options_.top_p >= 1.0) return total;
    double kept = 0.0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      kept += candidates_[i].weight;
      if (kept >= options_.top_p * total) {
        candidates_.resize(i + 1);
        return kept;
      }
    }
    return kept;
  }

  double keep_min_p(double total) {
    if (options_.min_p <= 0.0) return total;
    const double least = options_.min_p * candidates_.front().weight;
    while (candidates_.back().weight < least) {
      total -= candidates_.back().weight;
      candidates_.pop_back();
    }
    return total;
  }

  SamplerOptions options_;
  Xoshiro256 random_;
  std::vector<Candidate> candidates_;
};

}  // namespace chunkllm
