// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/train/boundary_examples.hpp"

namespace chunkllm {

/// Which of the examples' windows are meant, ascending.
using WindowIndices = std::span<const std::int64_t>;

/// The logistic loss of a Chunk Adapter over examples, as a function of weights for standardised
/// features, with its gradient and its Hessian.
///
/// The residual stream has a few coordinates that are larger than the others by orders of
/// magnitude; over (h - mean) / deviation one ridge suits all. The last of the weights is the bias.
///
///     loss(w, b) = mean over tokens of softplus(-z) where y = 1, softplus(z) where y = 0
///                  + ridge / 2 * |w|^2,       z = w . (h - mean) / deviation + b
///
/// Sums are made of blocks of tokens in a fixed order, in f32 within a block and in double over
/// blocks: the same bits at any number of threads. A coordinate that never varies has no weight.
class BoundaryObjective {
 public:
  /// \param examples  must outlive this; every value finite
  /// \param windows   those to fit to, at least one
  BoundaryObjective(const BoundaryExamples& examples, WindowIndices windows, double ridge,
                    ThreadPool& pool)
      : examples_(&examples),
        pool_(&pool),
        ridge_(ridge),
        num_features_(examples.hidden_size),
        width_((num_features_ + kTile) / kTile * kTile) {
    for (const std::int64_t window : windows) {
      for (std::int64_t done = 0; done < examples.window_len; done += kBlock) {
        blocks_.push_back({window * examples.window_len + done,
                           std::min(kBlock, examples.window_len - done), num_tokens_});
        num_tokens_ += blocks_.back().num_tokens;
      }
    }
    probabilities_.resize(static_cast<std::size_t>(num_tokens_));
    standardise();
  }

  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] double positive_share() const {
    return static_cast<double>(num_positive_) / static_cast<double>(num_tokens_);
  }
  [[nodiscard]] std::span<const double> mean() const { return mean_; }

  /// The weights as an adapter has them, for features as they are: [hidden_size], then the bias.
  [[nodiscard]] std::vector<float> fold(std::span<const double> weights) const {
    std::vector<float> folded;
    double bias = weights.back();
    for (std::size_t j = 0; j < mean_.size(); ++j) {
      const double weight = weights[j] * inverse_deviation_[j];
      folded.push_back(static_cast<float>(weight));
      bias -= weight * mean_[j];
    }
    folded.push_back(static_cast<float>(bias));
    return folded;
  }

  /// \param weights   [hidden_size + 1]
  /// \param gradient  [hidden_size + 1] written
  double evaluate(std::span<const double> weights, std::span<double> gradient) {
    const std::vector<float> folded = fold(weights);
    const auto width = static_cast<std::size_t>(num_features_ + 1);
    std::vector<double> losses(blocks_.size());
    std::vector<float> sums(blocks_.size() * width);
    pool_->parallel_for(static_cast<std::int64_t>(blocks_.size()), [&](std::int64_t b, int) {
      const auto at = static_cast<std::size_t>(b);
      losses[at] = evaluate_block(blocks_[at], folded, sums.data() + at * width);
    });
    const auto count = static_cast<double>(num_tokens_);
    double loss = 0.0;
    std::fill(gradient.begin(), gradient.end(), 0.0);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      loss += losses[b];
      for (std::size_t j = 0; j < width; ++j) gradient[j] += sums[b * width + j];
    }
    loss /= count;
    for (std::size_t j = 0; j < mean_.size(); ++j) {
      gradient[j] = gradient[j] * inverse_deviation_[j] / count + ridge_ * weights[j];
      loss += ridge_ / 2.0 * weights[j] * weights[j];
    }
    gradient.back() /= count;
    return loss;
  }

  /// Hessian at the weights of the last `evaluate`, [hidden_size + 1, hidden_size + 1] row-major;
  /// only its lower triangle is written.
  ///
  /// Tokens that are all but certain are left out: they curve nothing, and they are most tokens.
  void hessian(std::vector<double>& out) {
    const std::int64_t size = num_features_ + 1;
    out.assign(static_cast<std::size_t>(size * size), 0.0);
    const std::vector<UncertainToken> tokens = uncertain_tokens();
    const std::int64_t num_tiles = width_ / kTile;
    for (std::size_t begin = 0; begin < tokens.size(); begin += kSlice) {
      gather({tokens.data() + begin, std::min(kSlice, tokens.size() - begin)});
      pool_->parallel_for(num_tiles * (num_tiles + 1) / 2, [&](std::int64_t task, int) {
        std::int64_t row_tile = 0;
        while (task > row_tile) task -= ++row_tile;
        add_tile(row_tile * kTile, task * kTile, out);
      });
    }
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        double& value = out[static_cast<std::size_t>(i * size + j)];
        value /= static_cast<double>(num_tokens_);
        if (i == j && i < num_features_) value += ridge_;
      }
    }
  }

 private:
  static constexpr std::int64_t kBlock = 256;  // tokens of one f32 sum of the gradient
  static constexpr std::size_t kSlice = 512;   // tokens of one f32 sum of the Hessian
  static constexpr std::int64_t kTile = 32;    // features of the Hessian, both ways
  static constexpr float kLeastCurvature = 1e-7F;

  struct Block {
    std::int64_t first_token = 0;  // of the examples
    std::int64_t num_tokens = 0;
    std::int64_t first_probability = 0;
  };
  struct UncertainToken {
    std::int64_t token = 0;
    float root = 0.0F;  // of the curvature p (1 - p)
  };

  /// Mean and deviation of each coordinate, in two passes: they may be far from 0.
  void standardise() {
    const auto size = static_cast<std::size_t>(num_features_);
    mean_ = column_sums([](float x, double) { return static_cast<double>(x); });
    for (double& mean : mean_) mean /= static_cast<double>(num_tokens_);
    const std::vector<double> squares =
        column_sums([](float x, double mean) { return (x - mean) * (x - mean); });
    mean_f32_.resize(size);
    inverse_deviation_.resize(size);
    for (std::size_t j = 0; j < size; ++j) {
      const double deviation = std::sqrt(squares[j] / static_cast<double>(num_tokens_));
      // What rounding alone makes of a constant is no variation.
      const bool varies = deviation > 1e-6 * std::abs(mean_[j]);
      inverse_deviation_[j] = varies ? 1.0 / deviation : 0.0;
      mean_f32_[j] = static_cast<float>(mean_[j]);
    }
    for (const Block& block : blocks_) {
      for (std::int64_t i = 0; i < block.num_tokens; ++i) {
        num_positive_ += examples_->labels[static_cast<std::size_t>(block.first_token + i)];
      }
    }
  }

  /// \param term  (value, the column's mean so far) -> double
  template <typename Term>
  std::vector<double> column_sums(const Term& term) const {
    constexpr std::int64_t kColumns = 32;
    std::vector<double> sums(static_cast<std::size_t>(num_features_));
    pool_->parallel_for((num_features_ + kColumns - 1) / kColumns, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(num_features_, (task + 1) * kColumns);
      for (const Block& block : blocks_) {
        for (std::int64_t i = 0; i < block.num_tokens; ++i) {
          const float* row = examples_->row(block.first_token + i);
          for (std::int64_t j = task * kColumns; j < end; ++j) {
            const auto at = static_cast<std::size_t>(j);
            sums[at] += term(row[j], mean_.empty() ? 0.0 : mean_[at]);
          }
        }
      }
    });
    return sums;
  }

  /// The block's loss; its gradient's sums, before the division by the deviations, go to `sums`.
  double evaluate_block(const Block& block, std::span<const float> folded, float* sums) {
    double loss = 0.0;
    float residual_sum = 0.0F;
    for (std::int64_t i = 0; i < block.num_tokens; ++i) {
      const float* row = examples_->row(block.first_token + i);
      const float z = simd::dot(folded.data(), row, num_features_) + folded.back();
      const bool positive = examples_->labels[static_cast<std::size_t>(block.first_token + i)] != 0;
      const float error = positive ? -z : z;
      loss += std::max(error, 0.0F) + std::log1p(std::exp(-std::abs(static_cast<double>(error))));
      const float probability = 1.0F / (1.0F + std::exp(-z));
      probabilities_[static_cast<std::size_t>(block.first_probability + i)] = probability;
      const float residual = probability - (positive ? 1.0F : 0.0F);
      residual_sum += residual;
      add_centred(row, residual, sums);
    }
    sums[num_features_] = residual_sum;
    return loss;
  }

  /// sums += factor * (row - mean)
  void add_centred(const float* row, float factor, float* sums) const {
    const simd::F32x16 factors = simd::broadcast(factor);
    std::int64_t j = 0;
    for (; j + simd::kLanes <= num_features_; j += simd::kLanes) {
      const simd::F32x16 centred = simd::load(row + j) - simd::load(mean_f32_.data() + j);
      simd::store(sums + j, simd::multiply_add(factors, centred, simd::load(sums + j)));
    }
    for (; j < num_features_; ++j) {
      sums[j] += factor * (row[j] - mean_f32_[static_cast<std::size_t>(j)]);
    }
  }

  [[nodiscard]] std::vector<UncertainToken> uncertain_tokens() const {
    std::vector<UncertainToken> tokens;
    for (const Block& block : blocks_) {
      for (std::int64_t i = 0; i < block.num_tokens; ++i) {
        const float p = probabilities_[static_cast<std::size_t>(block.first_probability + i)];
        const float curvature = p * (1.0F - p);
        if (curvature < kLeastCurvature) continue;
        tokens.push_back({block.first_token + i, std::sqrt(curvature)});
      }
    }
    return tokens;
  }

  /// The tokens' standardised rows times the root of their curvature; the bias is a feature that is
  /// always 1.
  void gather(std::span<const UncertainToken> tokens) {
    num_gathered_ = static_cast<std::int64_t>(tokens.size());
    gathered_.assign(tokens.size() * static_cast<std::size_t>(width_), 0.0F);
    constexpr std::int64_t kTaskRows = 32;
    pool_->parallel_for((num_gathered_ + kTaskRows - 1) / kTaskRows, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(num_gathered_, (task + 1) * kTaskRows);
      for (std::int64_t r = task * kTaskRows; r < end; ++r) {
        const auto [token, root] = tokens[static_cast<std::size_t>(r)];
        const float* row = examples_->row(token);
        float* scaled = gathered_.data() + r * width_;
        for (std::int64_t j = 0; j < num_features_; ++j) {
          const auto at = static_cast<std::size_t>(j);
          scaled[j] = root * (row[j] - mean_f32_[at]) * static_cast<float>(inverse_deviation_[at]);
        }
        scaled[num_features_] = root;
      }
    });
  }

  /// Adds the gathered rows' products of features [i, i + 32) and [j, j + 32).
  void add_tile(std::int64_t first_i, std::int64_t first_j, std::vector<double>& out) const {
    constexpr std::int64_t kRows = 8;  // by 2 vectors of 16: as many sums as stay in registers
    for (std::int64_t i = first_i; i < first_i + kTile; i += kRows) {
      simd::F32x16 sums[kRows][2];
      for (auto& pair : sums) pair[0] = pair[1] = simd::zero();
      for (std::int64_t r = 0; r < num_gathered_; ++r) {
        const float* row = gathered_.data() + r * width_;
        const simd::F32x16 left = simd::load(row + first_j);
        const simd::F32x16 right = simd::load(row + first_j + simd::kLanes);
        for (std::int64_t k = 0; k < kRows; ++k) {
          const simd::F32x16 factor = simd::broadcast(row[i + k]);
          sums[k][0] = simd::multiply_add(factor, left, sums[k][0]);
          sums[k][1] = simd::multiply_add(factor, right, sums[k][1]);
        }
      }
      for (std::int64_t k = 0; k < kRows; ++k) {
        float lanes[kTile];
        simd::store(lanes, sums[k][0]);
        simd::store(lanes + simd::kLanes, sums[k][1]);
        const std::int64_t end = std::min(first_j + kTile, std::min(i + k, num_features_) + 1);
        if (i + k > num_features_) break;
        for (std::int64_t j = first_j; j < end; ++j) {
          out[static_cast<std::size_t>((i + k) * (num_features_ + 1) + j)] += lanes[j - first_j];
        }
      }
    }
  }

  const BoundaryExamples* examples_;
  ThreadPool* pool_;
  double ridge_;
  std::int64_t num_features_;
  std::int64_t width_;  // features and the bias, in whole tiles
  std::vector<Block> blocks_;
  std::int64_t num_tokens_ = 0;
  std::int64_t num_positive_ = 0;
  std::vector<double> mean_;
  std::vector<float> mean_f32_;
  std::vector<double> inverse_deviation_;  // 0 for a coordinate that never varies
  std::vector<float> probabilities_;       // [num_tokens] of the last `evaluate`
  std::vector<float> gathered_;            // [num_gathered_, width_]
  std::int64_t num_gathered_ = 0;
};

}  // namespace chunkllm
