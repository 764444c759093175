// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/train/boundary_examples.hpp"
#include "chunkllm/train/boundary_objective.hpp"

namespace chunkllm {

struct BoundaryTrainerOptions {
  /// Every so many windows one is kept aside, for the threshold and the report.
  std::int64_t validation_stride = 6;
  double ridge =
      1e-6;  ///< of the weights for standardised features, beside the mean loss of a token
  std::int64_t max_steps = 50;  ///< of Newton's method; about a dozen are taken
  ChunkGuards guards;           ///< under which the threshold is chosen
};

/// A fitted Chunk Adapter and how it did.
struct BoundaryTraining {
  ChunkAdapter adapter;
  std::int64_t num_tokens = 0;             ///< fitted to
  std::int64_t num_validation_tokens = 0;  ///< kept aside
  double positive_share = 0.0;             ///< of the tokens fitted to
  double loss = 0.0;                       ///< nats a token, the ridge included
  double validation_loss = 0.0;            ///< nats a token
  /// On the windows kept aside, by exact tokens under the guards, at the adapter's threshold.
  BoundaryScore validation;
  std::int64_t num_steps = 0;   ///< of Newton's method
  std::int64_t num_passes = 0;  ///< over the tokens, those for the Hessian counted too
  bool converged = false;
};

namespace detail {

/// Replaces the lower triangle of a symmetric matrix by that of its Cholesky factor.
///
/// \param matrix  [size, size] row-major
/// \return false where the matrix is not positive definite; it is spoilt then
inline bool cholesky(std::vector<double>& matrix, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    double* row = matrix.data() + i * size;
    for (std::size_t j = 0; j <= i; ++j) {
      const double* other = matrix.data() + j * size;
      const double rest = row[j] - std::inner_product(row, row + j, other, 0.0);
      if (i != j) {
        row[j] = rest / other[j];
      } else if (!(rest > 0.0)) {
        return false;
      } else {
        row[j] = std::sqrt(rest);
      }
    }
  }
  return true;
}

/// x of L L^T x = b for a lower triangle L.
inline std::vector<double> solve_cholesky(const std::vector<double>& factor,
                                          std::vector<double> b) {
  const std::size_t size = b.size();
  for (std::size_t i = 0; i < size; ++i) {
    const double* row = factor.data() + i * size;
    b[i] = (b[i] - std::inner_product(row, row + i, b.data(), 0.0)) / row[i];
  }
  for (std::size_t i = size; i-- > 0;) {
    b[i] /= factor[i * size + i];
    for (std::size_t j = 0; j < i; ++j) b[j] -= factor[i * size + j] * b[i];
  }
  return b;
}

/// Newton's step down: the solution of (H + damping diag(H)) step = gradient, with as little
/// damping as makes the matrix positive definite in rounded arithmetic.
inline std::vector<double> newton_step(const std::vector<double>& hessian,
                                       std::span<const double> gradient) {
  const std::size_t size = gradient.size();
  for (double damping = 0.0;; damping = damping == 0.0 ? 1e-9 : 10.0 * damping) {
    std::vector<double> factor = hessian;
    for (std::size_t i = 0; i < size; ++i) {
      // A coordinate that never varies has no curvature and takes no step.
      double& diagonal = factor[i * size + i];
      diagonal = diagonal > 0.0 ? diagonal * (1.0 + damping) : 1.0;
    }
    if (cholesky(factor, size)) {
      return solve_cholesky(factor, {gradient.begin(), gradient.end()});
    }
  }
}

/// Minimises the objective from w = 0 and the bias that gives the labels' share; fills in what the
/// report has of it.
///
/// Newton's method with halved steps: where labels are rare a full step goes far too far at first.
/// Source: S. Boyd and L. Vandenberghe, Convex Optimization, 2004, algorithm 9.5.
inline std::vector<double> minimise(BoundaryObjective& objective, std::int64_t max_steps,
                                    BoundaryTraining& report) {
  constexpr double kPromisedShare = 0.1;
  constexpr double kLeastGain = 1e-6;  // of the loss: F1 does not move any more
  constexpr double kLeastLength = 1e-4;
  const std::size_t size = objective.mean().size() + 1;
  std::vector<double> weights(size);
  std::vector<double> gradient(size);
  std::vector<double> next(size);
  std::vector<double> next_gradient(size);
  std::vector<double> hessian;
  weights.back() = std::log(objective.positive_share() / (1.0 - objective.positive_share()));
  report.loss = objective.evaluate(weights, gradient);
  report.num_passes = 1;
  for (; report.num_steps < max_steps; ++report.num_steps) {
    objective.hessian(hessian);
    ++report.num_passes;
    const std::vector<double> step = newton_step(hessian, gradient);
    const double gain = std::inner_product(step.begin(), step.end(), gradient.begin(), 0.0);
    report.converged = gain <= kLeastGain * report.loss;
    if (report.converged) break;
    double loss = 0.0;
    double length = 1.0;
    for (;; length *= 0.5) {
      if (length < kLeastLength) return weights;
      for (std::size_t j = 0; j < size; ++j) next[j] = weights[j] - length * step[j];
      loss = objective.evaluate(next, next_gradient);
      ++report.num_passes;
      if (loss <= report.loss - kPromisedShare * length * gain) break;
    }
    weights.swap(next);
    gradient.swap(next_gradient);
    report.loss = loss;
  }
  return weights;
}

inline Status check_boundary_examples(const BoundaryExamples& examples,
                                      const BoundaryTrainerOptions& options) {
  const std::int64_t num_tokens = examples.num_tokens();
  if (examples.hidden_size < 1 || examples.window_len < 2 ||
      num_tokens % examples.window_len != 0 ||
      static_cast<std::int64_t>(examples.hidden.size()) != num_tokens * examples.hidden_size) {
    return invalid_argument("boundary trainer: " + std::to_string(examples.hidden.size()) +
                            " features of " + std::to_string(num_tokens) + " tokens, expected " +
                            std::to_string(examples.hidden_size) + " a token in whole windows of " +
                            std::to_string(examples.window_len) + " tokens");
  }
  if (options.validation_stride < 2 || options.validation_stride > examples.num_windows()) {
    return invalid_argument("boundary trainer: every " + std::to_string(options.validation_stride) +
                            "th of " + std::to_string(examples.num_windows()) +
                            " windows is kept aside, expected from 2 to their number");
  }
  if (!(options.ridge > 0.0) || !std::isfinite(options.ridge)) {
    return invalid_argument("boundary trainer: ridge is " + std::to_string(options.ridge) +
                            ", expected above 0");
  }
  for (std::size_t i = 0; i < examples.hidden.size(); ++i) {
    if (!std::isfinite(examples.hidden[i])) {
      const auto width = static_cast<std::size_t>(examples.hidden_size);
      return invalid_argument("boundary trainer: feature " + std::to_string(i % width) +
                              " of token " + std::to_string(i / width) + " is not finite");
    }
  }
  return {};
}

}  // namespace detail

/// Boundaries that probabilities give under a threshold and the guards, against the labels, over
/// windows that each begin with a chunk.
///
/// \param probabilities  [windows.size() * window_len] of the windows in their order
inline Result<BoundaryScore> score_windows(const BoundaryExamples& examples, WindowIndices windows,
                                           std::span<const float> probabilities, float threshold,
                                           const ChunkGuards& guards) {
  BoundaryScore score;
  std::vector<std::size_t> predicted;
  std::vector<std::size_t> labelled;
  const auto window_len = static_cast<std::size_t>(examples.window_len);
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const std::size_t first = static_cast<std::size_t>(windows[w]) * window_len;
    predicted.clear();
    labelled.clear();
    std::int64_t open_len = 0;
    for (std::size_t i = 0; i < window_len; ++i) {
      if (examples.labels[first + i] != 0) labelled.push_back(i);
      const bool wanted = probabilities[w * window_len + i] > threshold;
      if (!decide_boundary(++open_len, wanted, guards).boundary) continue;
      predicted.push_back(i);
      open_len = 0;
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const BoundaryScore of_window,
                              score_boundaries(predicted, labelled, window_len));
    score += of_window;
  }
  return score;
}

/// Fits a Chunk Adapter: logistic regression on standardised features, which are folded into its
/// weights; all tokens weigh alike, so its probabilities are calibrated. The threshold is the one
/// of 0.01, 0.02 ... 0.99 with the best F1 on the windows kept aside; of equal ones the lowest.
///
/// Nothing is drawn at random, and the same examples give the same bits at any number of threads.
///
/// Errors: kInvalidArgument where examples or options break what their fields say, a feature is not
///         finite, or the tokens fitted to are all labelled alike.
/// Cost:   a pass over the tokens for each value of the loss, and hidden_size^2 multiply-adds a
///         token that is not yet certain for each of about a dozen steps; beside the examples
///         8 * hidden_size^2 bytes twice and a few MiB
/// Source: ChunkLLM, arXiv 2510.02361: binary cross-entropy on sentence ends. Threshold, guards and
///         standardisation are ours.
inline Result<BoundaryTraining> train_boundaries(const BoundaryExamples& examples,
                                                 const BoundaryTrainerOptions& options,
                                                 ThreadPool& pool) {
  CHUNKLLM_RETURN_IF_ERROR(detail::check_boundary_examples(examples, options));
  std::vector<std::int64_t> fitted;
  std::vector<std::int64_t> kept_aside;
  for (std::int64_t w = 0; w < examples.num_windows(); ++w) {
    const bool aside = w % options.validation_stride == options.validation_stride - 1;
    (aside ? kept_aside : fitted).push_back(w);
  }
  BoundaryTraining report;
  BoundaryObjective objective(examples, fitted, options.ridge, pool);
  report.num_tokens = objective.num_tokens();
  report.positive_share = objective.positive_share();
  if (report.positive_share <= 0.0 || report.positive_share >= 1.0) {
    return invalid_argument("boundary trainer: all " + std::to_string(report.num_tokens) +
                            " tokens have the same label");
  }
  std::vector<float> folded =
      objective.fold(detail::minimise(objective, options.max_steps, report));
  report.adapter.bias = folded.back();
  folded.pop_back();
  report.adapter.weight = std::move(folded);

  const std::int64_t window_len = examples.window_len;
  report.num_validation_tokens = static_cast<std::int64_t>(kept_aside.size()) * window_len;
  std::vector<float> probabilities(static_cast<std::size_t>(report.num_validation_tokens));
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    const std::size_t in_window = i % static_cast<std::size_t>(window_len);
    const std::int64_t window = kept_aside[i / static_cast<std::size_t>(window_len)];
    const std::int64_t token = window * window_len + static_cast<std::int64_t>(in_window);
    probabilities[i] = report.adapter.probability(examples.row(token));
    const bool positive = examples.labels[static_cast<std::size_t>(token)] != 0;
    // Of a certain and wrong token the loss is infinite in f32: bounded by the least float.
    const double right = positive ? probabilities[i] : 1.0 - probabilities[i];
    report.validation_loss -= std::log(std::fmax(right, 1e-38));
  }
  report.validation_loss /= static_cast<double>(probabilities.size());
  double best = -1.0;
  for (int percent = 1; percent < 100; ++percent) {
    const float threshold = static_cast<float>(percent) / 100.0F;
    CHUNKLLM_ASSIGN_OR_RETURN(
        const BoundaryScore score,
        score_windows(examples, kept_aside, probabilities, threshold, options.guards));
    if (score.f1() <= best) continue;
    best = score.f1();
    report.validation = score;
    report.adapter.threshold = threshold;
  }
  return report;
}

}  // namespace chunkllm
