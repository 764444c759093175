// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/train/distillation_rows.hpp"
#include "chunkllm/train/padded_matrix.hpp"

namespace chunkllm {

/// Divergence of a student from its teacher, summed so that sequences can be added up.
struct DistillationLoss {
  double kl_sum = 0.0;        ///< sum over rows of weight times the mean over heads of KL(T || S)
  double weight_sum = 0.0;    ///< of the rows that were used
  std::int64_t num_rows = 0;  ///< of weight above 0 with at least 2 candidates

  [[nodiscard]] double mean() const { return weight_sum > 0.0 ? kl_sum / weight_sum : 0.0; }
  DistillationLoss& operator+=(const DistillationLoss& other) {
    kl_sum += other.kl_sum;
    weight_sum += other.weight_sum;
    num_rows += other.num_rows;
    return *this;
  }
};

/// Working memory of `add_distillation_gradient`, for one thread; grows and is used again.
struct DistillationScratch {
  /// Neighbouring candidates of a row that share a bin of the distance bias.
  struct BinRun {
    std::int64_t end = 0;  ///< column; the row's run before ends where this one begins
    std::int64_t bin = 0;
  };

  std::vector<std::int64_t> rows;            // [R] indices of the rows that are used
  std::vector<std::int64_t> num_candidates;  // [R]
  std::vector<float> log_lengths;            // [C] or zeros
  std::vector<BinRun> runs;                  // of all rows
  std::vector<std::size_t> first_run;        // [R + 1]
  std::vector<double> bias_gradient;         // [num_heads, kNumDistanceBins]
  std::vector<float> teacher;                // [C] of one row and head
  detail::PaddedMatrix inputs;               // [R, hidden_size]
  detail::PaddedMatrix pooled;               // [C, hidden_size]
  detail::PaddedMatrix transposed;           // of one of these
  detail::PaddedMatrix queries;              // [num_heads * key_dim, R]
  detail::PaddedMatrix nulls;                // [num_heads, R] logits, then their gradient
  detail::PaddedMatrix keys;                 // [num_key_heads * key_dim, C]
  detail::PaddedMatrix key_rows;             // [C, num_key_heads * key_dim]
  detail::PaddedMatrix logits;               // [R, C] of one head, then their gradient
  detail::PaddedMatrix query_gradient;       // [R, num_heads * key_dim]
  detail::PaddedMatrix key_gradient;         // [num_key_heads * key_dim, C]
};

namespace detail {

/// One layer and one sequence: logits, softmax against the teacher and, on request, gradients.
///
/// Chunk c stands in column c - 1: chunk 0 is no candidate. Rows that are not used are left out of
/// every matrix, so that whatever they hold cannot reach a sum.
class DistillationPass {
 public:
  DistillationPass(const QkAdapterLayer& weights, const ScorerShape& shape,
                   const DistillationRows& rows, DistillationScratch& scratch)
      : weights_(weights),
        shape_(shape),
        rows_(rows),
        s_(scratch),
        group_(shape.num_heads / shape.num_key_heads) {
    s_.rows.clear();
    s_.num_candidates.clear();
    for (std::int64_t r = 0; r < rows.inputs.rows; ++r) {
      const std::int64_t candidates = rows.candidate_ends[static_cast<std::size_t>(r)] - 1;
      if (candidates < 2 || rows.weights[static_cast<std::size_t>(r)] == 0.0F) continue;
      s_.rows.push_back(r);
      s_.num_candidates.push_back(candidates);
      num_cols_ = std::max(num_cols_, candidates);
    }
    num_rows_ = static_cast<std::int64_t>(s_.rows.size());
  }

  /// \param maybe_gradient  gets `scale` times the gradient of the loss's kl_sum added
  /// Errors: kInvalidArgument; the gradient is then as before.
  Result<DistillationLoss> run(double scale, QkAdapterLayer* maybe_gradient) {
    DistillationLoss loss;
    if (num_rows_ == 0) return loss;
    prepare_columns();
    project();
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      multiply_logits(h);
      for (std::int64_t r = 0; r < num_rows_; ++r) {
        CHUNKLLM_ASSIGN_OR_RETURN(const double divergence, compare_row(h, r, scale));
        loss.kl_sum += weight(r) * divergence / static_cast<double>(shape_.num_heads);
      }
      if (maybe_gradient != nullptr) gather_head(h);
    }
    for (std::int64_t r = 0; r < num_rows_; ++r) loss.weight_sum += weight(r);
    loss.num_rows = num_rows_;
    if (maybe_gradient != nullptr) add_to(*maybe_gradient);
    return loss;
  }

 private:
  // Stands behind a row's candidates: finite, and its exponential is 0 beside any real logit.
  static constexpr float kNoLogit = -1e30F;
  // Rows whose product with the keys is as deep as the most candidates among them.
  static constexpr std::int64_t kRowBlock = 4 * kMicroRows;

  [[nodiscard]] double weight(std::int64_t r) const {
    return static_cast<double>(rows_.weights[row_idx(r)]);
  }
  [[nodiscard]] std::size_t row_idx(std::int64_t r) const {
    return static_cast<std::size_t>(s_.rows[static_cast<std::size_t>(r)]);
  }
  [[nodiscard]] std::int64_t num_candidates(std::int64_t r) const {
    return s_.num_candidates[static_cast<std::size_t>(r)];
  }
  /// Rows before the first that has a candidate at or behind `col` need no work there.
  [[nodiscard]] std::int64_t first_row_with(std::int64_t col) const {
    return std::find_if(s_.num_candidates.begin(), s_.num_candidates.end(),
                        [col](std::int64_t count) { return count > col; }) -
           s_.num_candidates.begin();
  }

  void prepare_columns() {
    s_.log_lengths.assign(static_cast<std::size_t>(padded(num_cols_)), 0.0F);
    s_.teacher.resize(static_cast<std::size_t>(padded(num_cols_)));
    for (std::size_t c = 0; shape_.adds_log_length && c < static_cast<std::size_t>(num_cols_);
         ++c) {
      const std::int64_t length = rows_.chunk_ends[c + 1] - rows_.chunk_ends[c];
      s_.log_lengths[c] = std::log(static_cast<float>(length));
    }
    s_.bias_gradient.assign(weights_.distance_bias.size(), 0.0);
    s_.runs.clear();
    s_.first_run.assign(1, 0);
    for (std::int64_t r = 0; r < num_rows_; ++r) {
      for (std::int64_t c = 0; has_bias() && c < num_candidates(r); ++c) {
        const std::int64_t last = rows_.chunk_ends[static_cast<std::size_t>(c + 1)] - 1;
        // The trigger may itself be a chunk's last token: the nearest bin.
        const std::int64_t bin =
            distance_bin(std::max<std::int64_t>(rows_.triggers[row_idx(r)] - last, 1));
        const bool goes_on = c > 0 && s_.runs.back().bin == bin;
        if (goes_on) {
          s_.runs.back().end = c + 1;
        } else {
          s_.runs.push_back({c + 1, bin});
        }
      }
      s_.first_run.push_back(s_.runs.size());
    }
  }

  [[nodiscard]] bool has_bias() const { return !weights_.distance_bias.empty(); }

  void project() {
    const std::int64_t hidden = shape_.state_size;
    s_.inputs.resize(num_rows_, hidden);
    for (std::int64_t r = 0; r < num_rows_; ++r) {
      std::copy_n(rows_.inputs.row(s_.rows[static_cast<std::size_t>(r)]), hidden, s_.inputs.row(r));
    }
    s_.pooled.resize(num_cols_, hidden);
    for (std::int64_t c = 0; c < num_cols_; ++c) {
      std::copy_n(rows_.pooled.row(c + 1), hidden, s_.pooled.row(c));
    }
    const auto apply = [&](const std::vector<float>& weight, std::int64_t outputs,
                           PaddedMatrix& out) {
      out.resize(outputs, s_.transposed.cols());
      multiply({weight.data(), hidden, 1}, s_.transposed.row(0), s_.transposed.stride(), out.row(0),
               out.stride(), outputs, padded(out.cols()), hidden, /*accumulate=*/false);
    };
    s_.transposed.set_transposed(s_.inputs);
    apply(weights_.query_weight, shape_.num_heads * shape_.key_dim, s_.queries);
    apply(weights_.null_weight, shape_.num_heads, s_.nulls);
    s_.transposed.set_transposed(s_.pooled);
    apply(weights_.key_weight, shape_.key_size(), s_.keys);
    scale_rows(s_.keys);  // for logits and queries' gradients alike
    s_.key_rows.set_transposed(s_.keys);
    s_.query_gradient.resize(num_rows_, shape_.num_heads * shape_.key_dim);
    s_.key_gradient.resize(shape_.key_size(), num_cols_);
    s_.logits.resize(num_rows_, num_cols_);
  }

  void scale_rows(PaddedMatrix& matrix) const {
    for (std::int64_t r = 0; r < matrix.rows(); ++r) {
      float* row = matrix.row(r);
      for (std::int64_t c = 0; c < matrix.cols(); ++c) row[c] *= shape_.scale;
    }
  }

  void multiply_logits(std::int64_t h) {
    const float* queries = s_.queries.row(h * shape_.key_dim);
    const float* keys = s_.keys.row(h / group_ * shape_.key_dim);
    for (std::int64_t c = 0; c < num_cols_; c += kPanelCols) {
      const std::int64_t first = first_row_with(c);
      multiply({queries + first, 1, s_.queries.stride()}, keys + c, s_.keys.stride(),
               s_.logits.row(first) + c, s_.logits.stride(), num_rows_ - first,
               std::min(kPanelCols, padded(num_cols_) - c), shape_.key_dim, /*accumulate=*/false);
    }
  }

  /// KL(T || S) of one row and head; leaves weight * scale / num_heads * (S - T) in `logits` and
  /// `nulls`, and 0 in the columns that are no candidates of the row.
  Result<double> compare_row(std::int64_t h, std::int64_t r, double scale) {
    const std::int64_t count = num_candidates(r);
    const std::int64_t end = padded(count);
    float* z = s_.logits.row(r);
    float& null = s_.nulls.row(h)[r];
    null += weights_.null_bias[static_cast<std::size_t>(h)];

    // T = teacher * of_total, and the rest of the attention for the null class.
    CHUNKLLM_ASSIGN_OR_RETURN(const float mass_sum, load_teacher(h, r));
    const float of_total = 1.0F / std::max(mass_sum, 1.0F);
    const float null_share = std::max(0.0F, 1.0F - mass_sum);

    add_bias(h, r, z);
    std::fill(z + count, z + padded(num_cols_), kNoLogit);
    simd::F32x16 largest = simd::broadcast(null);
    for (std::int64_t c = 0; c < end; c += simd::kLanes) {
      const simd::F32x16 logit = simd::load(z + c) + simd::load(s_.log_lengths.data() + c);
      simd::store(z + c, logit);
      largest = simd::max(largest, logit);
    }
    const simd::F32x16 shift = simd::broadcast(simd::horizontal_max(largest));
    simd::F32x16 exp_sum = simd::zero();
    simd::F32x16 cross_sum = simd::zero();  // sum of T log(S sum(exp))
    for (std::int64_t c = 0; c < end; c += simd::kLanes) {
      const simd::F32x16 below = simd::load(z + c) - shift;
      const simd::F32x16 power = simd::exp(below);
      exp_sum = exp_sum + power;
      cross_sum = simd::multiply_add(simd::load(s_.teacher.data() + c), below, cross_sum);
      simd::store(z + c, power);
    }
    const float null_below = null - simd::first_lane(shift);
    const float null_power = simd::first_lane(simd::exp(simd::broadcast(null_below)));
    const float total = simd::horizontal_sum(exp_sum) + null_power;

    const double cross = static_cast<double>(simd::horizontal_sum(cross_sum) * of_total) +
                         static_cast<double>(null_share) * static_cast<double>(null_below);
    const double divergence = negative_entropy(count, of_total, null_share) - cross +
                              std::log(static_cast<double>(total));
    if (!std::isfinite(divergence)) {
      return invalid_argument("row " + std::to_string(row_idx(r)) + ", head " + std::to_string(h) +
                              ": the adapter's logits are not finite");
    }

    const auto factor =
        static_cast<float>(scale * weight(r) / static_cast<double>(shape_.num_heads));
    const simd::F32x16 of_power = simd::broadcast(1.0F / total);
    const simd::F32x16 of_mass = simd::broadcast(of_total);
    for (std::int64_t c = 0; c < end; c += simd::kLanes) {
      const simd::F32x16 gap =
          simd::load(z + c) * of_power - simd::load(s_.teacher.data() + c) * of_mass;
      simd::store(z + c, simd::broadcast(factor) * gap);
    }
    std::fill(z + count, z + padded(num_cols_), 0.0F);
    null = factor * (null_power / total - null_share);
    return divergence;
  }

  /// Copies the candidates' mass, with zeros up to a whole vector; returns its sum.
  Result<float> load_teacher(std::int64_t h, std::int64_t r) {
    const auto heads = static_cast<std::size_t>(shape_.num_heads);
    const std::int64_t count = num_candidates(r);
    const float* mass = rows_.mass.data() + (row_idx(r) * heads + static_cast<std::size_t>(h)) *
                                                rows_.chunk_ends.size();
    std::copy_n(mass + 1, count, s_.teacher.data());
    std::fill(s_.teacher.data() + count, s_.teacher.data() + padded(count), 0.0F);
    const simd::F32x16 not_a_number = simd::broadcast(std::numeric_limits<float>::quiet_NaN());
    simd::F32x16 sum = simd::zero();
    for (std::int64_t c = 0; c < count; c += simd::kLanes) {
      const simd::F32x16 share = simd::load(s_.teacher.data() + c);
      sum = sum + simd::select_if_at_least(share, simd::zero(), share, not_a_number);
    }
    const float total = simd::horizontal_sum(sum);
    if (total <= std::numeric_limits<float>::max()) return total;
    return invalid_argument(
        "row " + std::to_string(row_idx(r)) + ", head " + std::to_string(h) +
        ": the teacher's mass holds a negative number or one that is not finite");
  }

  void add_bias(std::int64_t h, std::int64_t r, float* z) const {
    if (!has_bias()) return;
    const float* bias = weights_.distance_bias.data() + h * kNumDistanceBins;
    std::int64_t c = 0;
    for (std::size_t i = s_.first_run[static_cast<std::size_t>(r)];
         i < s_.first_run[static_cast<std::size_t>(r + 1)]; ++i) {
      for (; c < s_.runs[i].end; ++c) z[c] += bias[s_.runs[i].bin];
    }
  }

  /// sum of T log T over candidates and null class, where 0 log 0 = 0.
  [[nodiscard]] double negative_entropy(std::int64_t count, float of_total,
                                        float null_share) const {
    const auto term = [](float share) {
      return share > 0.0F ? static_cast<double>(share * std::log(share)) : 0.0;
    };
    double sum = term(null_share);
    for (std::int64_t c = 0; c < count; ++c) {
      sum += term(s_.teacher[static_cast<std::size_t>(c)] * of_total);
    }
    return sum;
  }

  /// Gradients of the head's queries, keys and bias from those of its logits.
  void gather_head(std::int64_t h) {
    const std::int64_t dim = shape_.key_dim;
    const std::int64_t key_head = h / group_;
    for (std::int64_t r = 0; r < num_rows_; r += kRowBlock) {
      const std::int64_t count = std::min(kRowBlock, num_rows_ - r);
      std::int64_t depth = 0;
      for (std::int64_t i = r; i < r + count; ++i) depth = std::max(depth, num_candidates(i));
      multiply({s_.logits.row(r), s_.logits.stride(), 1}, s_.key_rows.row(0) + key_head * dim,
               s_.key_rows.stride(), s_.query_gradient.row(r) + h * dim, s_.query_gradient.stride(),
               count, dim, depth, /*accumulate=*/false);
    }
    for (std::int64_t c = 0; c < num_cols_; c += kPanelCols) {
      const std::int64_t first = first_row_with(c);
      multiply({s_.queries.row(h * dim) + first, s_.queries.stride(), 1}, s_.logits.row(first) + c,
               s_.logits.stride(), s_.key_gradient.row(key_head * dim) + c,
               s_.key_gradient.stride(), dim, std::min(kPanelCols, padded(num_cols_) - c),
               num_rows_ - first, /*accumulate=*/h % group_ != 0);
    }
    if (!has_bias()) return;
    double* bias = s_.bias_gradient.data() + h * kNumDistanceBins;
    for (std::int64_t r = 0; r < num_rows_; ++r) {
      const float* gradient = s_.logits.row(r);
      std::int64_t c = 0;
      for (std::size_t i = s_.first_run[static_cast<std::size_t>(r)];
           i < s_.first_run[static_cast<std::size_t>(r + 1)]; ++i) {
        double sum = 0.0;
        for (; c < s_.runs[i].end; ++c) sum += static_cast<double>(gradient[c]);
        bias[s_.runs[i].bin] += sum;
      }
    }
  }

  void add_to(QkAdapterLayer& gradient) {
    const std::int64_t hidden = shape_.state_size;
    const auto add = [hidden](const StridedOperand& by, const PaddedMatrix& inputs,
                              std::int64_t outputs, std::vector<float>& sum) {
      multiply(by, inputs.row(0), inputs.stride(), sum.data(), hidden, outputs, hidden,
               inputs.rows(), /*accumulate=*/true);
    };
    add({s_.query_gradient.row(0), 1, s_.query_gradient.stride()}, s_.inputs,
        shape_.num_heads * shape_.key_dim, gradient.query_weight);
    scale_rows(s_.key_gradient);
    add({s_.key_gradient.row(0), s_.key_gradient.stride(), 1}, s_.pooled, shape_.key_size(),
        gradient.key_weight);
    add({s_.nulls.row(0), s_.nulls.stride(), 1}, s_.inputs, shape_.num_heads, gradient.null_weight);
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      double sum = 0.0;
      for (std::int64_t r = 0; r < num_rows_; ++r) sum += static_cast<double>(s_.nulls.row(h)[r]);
      gradient.null_bias[static_cast<std::size_t>(h)] += static_cast<float>(sum);
    }
    for (std::size_t i = 0; i < s_.bias_gradient.size(); ++i) {
      gradient.distance_bias[i] += static_cast<float>(s_.bias_gradient[i]);
    }
  }

  const QkAdapterLayer& weights_;
  const ScorerShape& shape_;
  const DistillationRows& rows_;
  DistillationScratch& s_;
  std::int64_t group_;         // heads of a key head
  std::int64_t num_rows_ = 0;  // that are used
  std::int64_t num_cols_ = 0;  // chunks that are a candidate of some row
};

}  // namespace detail

/// How far one layer's QK Adapter is from the attention mass of one sequence.
///
///   z[r,h,c] = scale q'_h(x_r) . k'_(h,c) + log len_c + b_h[distance_bin(t_r - e_c)],
///   null: n_h . x_r + n0_h;   S = softmax of z over the row's candidates and null
///   T[r,h,c] = m[r,h,c], null: max(0, 1 - sum_c m[r,h,c]);   T divided by its sum
///   kl_sum = sum_r w_r / num_heads sum_h sum_c T (log T - log S)
///
/// S is what `score_chunks` joins over heads. Rows of weight 0 or with fewer than 2 candidates are
/// not read: there is nothing to choose.
///
/// \param shape  of a `QkAdapter` with these weights
/// Numerics: f32 products, softmax and logarithms, f64 sums over rows; results depend on the
///           arguments alone. A divergence near 0 may come out negative by rounding.
/// Errors: kUnsupported without a null class; kInvalidArgument where sizes disagree, a row's
///         candidates are not closed at its trigger, or a used row's mass is negative or not finite
///         or makes logits that are not finite; the message names the row
/// Cost: half of `add_distillation_gradient`
/// Source: ChunkLLM, arXiv 2510.02361 (attention distillation); rows, null class and teacher by
///         head are ours
inline Result<DistillationLoss> distillation_loss(const QkAdapterLayer& weights,
                                                  const ScorerShape& shape,
                                                  const DistillationRows& rows,
                                                  DistillationScratch& scratch) {
  CHUNKLLM_RETURN_IF_ERROR(detail::check_distillation(weights, shape, rows));
  return detail::DistillationPass(weights, shape, rows, scratch).run(/*scale=*/1.0, nullptr);
}

/// The same loss; adds `scale` times the gradient of its kl_sum to `gradient`.
///
///   G = dkl_sum/dz = w_r / num_heads (S - T);   dq' = scale G k', dk' = scale G^T q';
///   dWq += dq'^T X, dWk += dk'^T pooled, dn += G_null^T X, dn0 and db sum G
///
/// For the mean over a batch hand in 1 / (the batch's sum of weights) as `scale`, or divide later.
///
/// \param gradient  of the sizes of `weights`; unchanged where an error is returned
/// Numerics: as above; sums over rows run in ascending order and go on from what `gradient` holds
/// Cost: for R rows and C chunks 4 (R num_heads + C num_key_heads) key_dim hidden_size flops and
///       about 3 R C num_heads key_dim; single-threaded: call it side by side for other layers,
///       each with its own scratch, which grows to about 2 (R + C) hidden_size floats
/// Errors: as above, and kInvalidArgument where `gradient` has other sizes than `weights`
inline Result<DistillationLoss> add_distillation_gradient(const QkAdapterLayer& weights,
                                                          const ScorerShape& shape,
                                                          const DistillationRows& rows,
                                                          double scale, QkAdapterLayer& gradient,
                                                          DistillationScratch& scratch) {
  CHUNKLLM_RETURN_IF_ERROR(detail::check_distillation(weights, shape, rows));
  CHUNKLLM_RETURN_IF_ERROR(
      detail::check_adapter_sizes("gradient", gradient, shape, !weights.distance_bias.empty()));
  return detail::DistillationPass(weights, shape, rows, scratch).run(scale, &gradient);
}

}  // namespace chunkllm
