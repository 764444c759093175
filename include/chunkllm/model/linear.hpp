// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/packed_weights.hpp"

namespace chunkllm {

/// One tensor among those stacked into a `Linear`.
struct LinearPart {
  TensorBytes weight;  ///< [out_features, in_features]
  /// Output i is the tensor's row `row_order[i]`; empty keeps the file's order.
  std::span<const std::int64_t> row_order;
  std::span<const float> bias;  ///< [out_features] or empty
};

/// y = x W^T + b with weights held in their own type, repacked once for the micro kernel.
///
/// Several tensors with the same input (q, k and v; gate and up) can be stacked into one product.
/// Products run in f32: a panel's weights are expanded to f32 block by block and multiplied in
/// one chain over ascending input features. A row of y therefore depends on its row of x alone,
/// bit for bit: not on the other rows, their number or the number of threads.
class Linear {
 public:
  Linear() = default;

  /// Packs `parts` from top to bottom.
  ///
  /// Errors: kInvalidFile where shapes disagree or a row is not a whole number of blocks, and those
  /// of `PackedWeights::pack`.
  static Result<Linear> create(std::span<const LinearPart> parts, WeightFormat format,
                               ThreadPool& pool) {
    Linear linear;
    for (const LinearPart& part : parts) {
      if (linear.in_features_ != 0 && linear.in_features_ != part.weight.cols) {
        return invalid_file("stacked weights have " + std::to_string(linear.in_features_) +
                            " and " + std::to_string(part.weight.cols) + " input features");
      }
      if (!part.bias.empty() && static_cast<std::int64_t>(part.bias.size()) != part.weight.rows) {
        return invalid_file("bias has " + std::to_string(part.bias.size()) +
                            " values, expected one for each of " +
                            std::to_string(part.weight.rows) + " outputs");
      }
      linear.in_features_ = part.weight.cols;
      CHUNKLLM_ASSIGN_OR_RETURN(PackedWeights packed,
                                PackedWeights::pack(part.weight, part.row_order, format, pool));
      linear.bias_.resize(static_cast<std::size_t>(linear.out_features_), 0.0F);
      linear.bias_.insert(linear.bias_.end(), part.bias.begin(), part.bias.end());
      linear.has_bias_ = linear.has_bias_ || !part.bias.empty();
      linear.first_output_.push_back(linear.out_features_);
      linear.first_panel_.push_back(linear.num_panels_);
      linear.out_features_ += packed.rows();
      linear.num_panels_ += packed.num_panels();
      linear.parts_.push_back(std::move(packed));
    }
    linear.bias_.resize(linear.has_bias_ ? static_cast<std::size_t>(linear.out_features_) : 0,
                        0.0F);
    return linear;
  }

  [[nodiscard]] std::int64_t in_features() const { return in_features_; }
  [[nodiscard]] std::int64_t out_features() const { return out_features_; }

  /// Bytes of packed weights that one product reads.
  [[nodiscard]] std::int64_t weight_bytes() const {
    std::int64_t total = 0;
    for (const PackedWeights& part : parts_) total += part.bytes();
    return total;
  }

  /// Output row `row` of W as f32, for embedding look-ups in a tied matrix.
  void unpack_row(std::int64_t row, float* out) const {
    const std::size_t part = part_of(first_output_, row);
    parts_[part].unpack_row(row - first_output_[part], out);
  }

  /// Writes y = x W^T + b.
  ///
  /// \param x  [num_rows, in_features]   \param y  [num_rows, out_features], not overlapping x
  /// Cost: the packed weights are read once for every 512 rows of x.
  void apply(MatrixView<const float> x, MatrixView<float> y, ThreadPool& pool) const {
    if (x.rows == 0) return;  // no offsets on the pointer of an empty buffer
    pool.parallel_for(num_panels_, [&](std::int64_t panel, int) {
      const std::size_t part = part_of(first_panel_, panel);
      const std::int64_t first = first_output_[part];
      apply_panel(part, panel, x, {y.data + first, y.rows, parts_[part].rows(), y.row_stride});
    });
  }

  /// As above with each part's outputs in a place of their own.
  ///
  /// \param outputs  one for each part: [num_rows, the part's out_features], not overlapping x
  void apply(MatrixView<const float> x, std::span<const MatrixView<float>> outputs,
             ThreadPool& pool) const {
    pool.parallel_for(num_panels_, [&](std::int64_t panel, int) {
      const std::size_t part = part_of(first_panel_, panel);
      apply_panel(part, panel, x, outputs[part]);
    });
  }

 private:
  // Input features expanded at a time: 256 x 32 floats fill two thirds of a 48 KB L1 cache.
  static constexpr std::int64_t kDepthBlock = 256;
  // Rows per pass, so that their slice of x stays in the L2 cache beside the expanded panel.
  static constexpr std::int64_t kRowBlock = 512;

  static std::size_t part_of(const std::vector<std::int64_t>& firsts, std::int64_t index) {
    return static_cast<std::size_t>(std::upper_bound(firsts.begin(), firsts.end(), index) -
                                    firsts.begin() - 1);
  }

  // `y` holds the outputs of that part only.
  void apply_panel(std::size_t part_idx, std::int64_t stacked_panel, MatrixView<const float> x,
                   MatrixView<float> y) const {
    constexpr std::int64_t kCols = detail::kPanelCols;
    const PackedWeights& part = parts_[part_idx];
    const std::int64_t panel = stacked_panel - first_panel_[part_idx];
    const std::int64_t first = panel * kCols;
    const std::int64_t cols = std::min(kCols, part.rows() - first);
    const float* bias = has_bias_ ? bias_.data() + first_output_[part_idx] + first : nullptr;
    alignas(64) float weights[kDepthBlock * kCols];
    alignas(64) float edge[kRowBlock * kCols];  // a narrow last panel must not write past its part
    for (std::int64_t row = 0; row < x.rows; row += kRowBlock) {
      const std::int64_t rows = std::min(kRowBlock, x.rows - row);
      float* out = cols == kCols ? y.row(row) + first : edge;
      const std::int64_t out_stride = cols == kCols ? y.row_stride : kCols;
      if (rows == 1) {
        multiply_row(part, panel, x.row(row), out);
      } else {
        for (std::int64_t k = 0; k < in_features_; k += kDepthBlock) {
          const std::int64_t depth = std::min(kDepthBlock, in_features_ - k);
          part.expand(panel, k, depth, weights);
          detail::multiply_panel(x.row(row) + k, x.row_stride, /*a_col=*/1, weights, kCols, out,
                                 out_stride, rows, depth, /*accumulate=*/k > 0);
        }
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        float* target = y.row(row + r) + first;
        if (cols != kCols) std::copy_n(edge + r * kCols, cols, target);
        if (bias != nullptr) {
          for (std::int64_t c = 0; c < cols; ++c) target[c] += bias[c];
        }
      }
    }
  }

  // Decoding's product: the same chains of multiply-adds as `multiply_panel`, but the weights go
  // from the packed form to the sums without a stop in memory.
  void multiply_row(const PackedWeights& part, std::int64_t panel, const float* x,
                    float* out) const {
    struct Sums {
      const float* x;
      simd::F32x16 low = simd::zero();
      simd::F32x16 high = simd::zero();
      void operator()(std::int64_t k, simd::F32x16 w0, simd::F32x16 w1) {
        low = simd::multiply_add(simd::broadcast(x[k]), w0, low);
        high = simd::multiply_add(simd::broadcast(x[k]), w1, high);
      }
    };
    const Sums sums = part.decode(panel, 0, in_features_, Sums{x});
    simd::store(out, sums.low);
    simd::store(out + simd::kLanes, sums.high);
  }

  std::int64_t in_features_ = 0;
  std::int64_t out_features_ = 0;
  std::int64_t num_panels_ = 0;
  bool has_bias_ = false;
  std::vector<PackedWeights> parts_;
  std::vector<std::int64_t> first_output_;  // of each part
  std::vector<std::int64_t> first_panel_;   // of each part
  std::vector<float> bias_;
};

}  // namespace chunkllm
