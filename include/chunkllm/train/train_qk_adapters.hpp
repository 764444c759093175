// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <iterator>
#include <numbers>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/train/qk_checkpoint.hpp"
#include "chunkllm/train/qk_trainer.hpp"
#include "chunkllm/train/synthetic_retrieval.hpp"
#include "chunkllm/train/teacher_rows.hpp"
#include "chunkllm/train/training_texts.hpp"

namespace chunkllm {

struct QkTrainingOptions {
  std::int64_t num_steps = 0;  ///< 0: until the time limit
  double time_limit = 0.0;     ///< seconds of all starts together; 0: none. One of the two is set
  std::int64_t sequences_per_step = 2;
  std::int64_t warmup_steps = 30;
  std::int64_t num_validation = 12;  ///< sequences
  std::uint64_t seed = 0;
};

/// Reads a text densely. Not called from two threads at once.
using Teach = std::function<Result<TeacherRows>(std::span<const std::int32_t> ids,
                                                std::span<const std::int64_t> chunk_ends,
                                                std::span<const std::int64_t> triggers)>;

/// What training asks of the world around it.
struct QkTrainingHooks {
  /// Ends of the closed chunks of a text, exclusive, ascending.
  std::function<Result<std::vector<std::int64_t>>(std::span<const std::int32_t> ids)> chunk_ends;
  Teach teach;
  /// Reading needs no CPU: the next text is read while this one is learnt.
  bool teaches_beside = false;
  /// After each step, with its loss; false stops.
  std::function<bool(const TrainingProgress& progress, double kl)> on_step;
};

/// A sequence with all that is learnt from it.
struct TaughtSequence {
  TrainingSequence sequence;
  TeacherRows rows;
};

/// Reads one sequence: its rows are the chunks' ends and the questions.
///
/// Errors: those of the hooks
inline Result<TaughtSequence> teach_sequence(const QkTrainingHooks& hooks,
                                             TrainingSequence sequence) {
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int64_t> ends, hooks.chunk_ends(sequence.ids));
  std::vector<std::int64_t> triggers;
  triggers.reserve(ends.size() + sequence.questions.size());
  for (const std::int64_t end : ends) triggers.push_back(end - 1);
  for (const TrainingQuestion& question : sequence.questions) {
    triggers.push_back(question.trigger);
  }
  std::sort(triggers.begin(), triggers.end());
  triggers.erase(std::unique(triggers.begin(), triggers.end()), triggers.end());
  TaughtSequence taught;
  CHUNKLLM_ASSIGN_OR_RETURN(taught.rows, hooks.teach(sequence.ids, ends, triggers));
  taught.sequence = std::move(sequence);
  return Result<TaughtSequence>(std::move(taught));
}

/// The learning rate's factor: a linear warm-up, then half a cosine down to 2 %.
///
/// \param done  share of the run, 0 to 1
inline double rate_factor(std::int64_t step, std::int64_t warmup_steps, double done) {
  constexpr double kFloor = 0.02;
  const double warmup =
      std::min(1.0, static_cast<double>(step + 1) /
                        static_cast<double>(std::max<std::int64_t>(warmup_steps, 1)));
  const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * std::clamp(done, 0.0, 1.0)));
  return warmup * (kFloor + (1.0 - kFloor) * cosine);
}

/// Trains until the steps are done or the time is up, from where `progress` says.
///
/// With `num_steps` alone two runs with the same seed give the same bits, interrupted or not; a
/// time limit makes the schedule follow the clock.
///
/// \param progress  in: where to go on; out: how far it came
/// Errors: those of the hooks and of `QkTrainer`; kInterrupted where `on_step` returned false,
/// after
///         a whole step
inline Status train_qk_adapters(QkTrainer& trainer, const TrainingTexts& texts,
                                const QkTrainingOptions& options, const QkTrainingHooks& hooks,
                                ThreadPool& pool, TrainingProgress& progress) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const double seconds_before = progress.seconds;
  const auto seconds = [&] {
    return seconds_before + std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto share_done = [&] {
    double share = 0.0;
    if (options.num_steps > 0) {
      share = static_cast<double>(progress.num_steps) / static_cast<double>(options.num_steps);
    }
    if (options.time_limit > 0.0) share = std::max(share, progress.seconds / options.time_limit);
    return share;
  };
  const auto read = [&](std::int64_t number) -> Result<TaughtSequence> {
    CHUNKLLM_ASSIGN_OR_RETURN(TrainingSequence sequence,
                              texts.sequence(options.seed, static_cast<std::uint64_t>(number)));
    return teach_sequence(hooks, std::move(sequence));
  };
  const auto policy = hooks.teaches_beside ? std::launch::async : std::launch::deferred;
  std::int64_t number = progress.num_steps * options.sequences_per_step;
  std::future<Result<TaughtSequence>> next = std::async(policy, read, number);
  while (share_done() < 1.0) {
    for (std::int64_t i = 0; i < options.sequences_per_step; ++i) {
      CHUNKLLM_ASSIGN_OR_RETURN(const TaughtSequence taught, next.get());
      next = std::async(policy, read, ++number);
      CHUNKLLM_RETURN_IF_ERROR(trainer.add(taught.rows, taught.sequence.questions, pool));
      progress.num_tokens += static_cast<std::int64_t>(taught.sequence.ids.size());
    }
    const double kl =
        trainer.step(rate_factor(progress.num_steps, options.warmup_steps, share_done()), pool);
    ++progress.num_steps;
    progress.seconds = seconds();
    if (hooks.on_step && !hooks.on_step(progress, kl)) {
      return Status(StatusCode::kInterrupted,
                    "stopped after " + std::to_string(progress.num_steps) + " steps");
    }
  }
  return {};
}

/// Reads the validation sequences, to be compared with at any time.
///
/// Errors: those of the hooks
inline Result<std::vector<TeacherRows>> read_validation_rows(const TrainingTexts& texts,
                                                             const QkTrainingHooks& hooks,
                                                             std::int64_t num_sequences) {
  std::vector<TeacherRows> rows;
  for (std::int64_t i = 0; i < num_sequences; ++i) {
    CHUNKLLM_ASSIGN_OR_RETURN(TrainingSequence sequence,
                              texts.validation_sequence(static_cast<std::uint64_t>(i)));
    CHUNKLLM_ASSIGN_OR_RETURN(TaughtSequence taught, teach_sequence(hooks, std::move(sequence)));
    rows.push_back(std::move(taught.rows));
  }
  return rows;
}

}  // namespace chunkllm
