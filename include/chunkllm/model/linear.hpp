// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/packed_blocks.hpp"
#include "chunkllm/model/packed_panels.hpp"
#include "chunkllm/model/packed_weights.hpp"
#include "chunkllm/model/quantized_rows.hpp"

namespace chunkllm {

/// One tensor among those stacked into a `Linear`.
struct LinearPart {
  TensorBytes weight;  ///< [out_features, in_features]
  /// Output i is the tensor's row `row_order[i]`; empty keeps the file's order.
  std::span<const std::int64_t> row_order;
  std::span<const float> bias;  ///< [out_features] or empty
};

/// y = x W^T + b with weights held in their own type, repacked once for the kernels.
///
/// Several tensors with the same input (q, k and v; gate and up) can be stacked into one product.
/// F32, f16 and bf16 weights are multiplied in f32, in one chain over ascending input features;
/// weights of 4 to 8 bits with activations rounded to 8 bits in blocks of 32 input features
/// (`QuantizedRows`), in exact integer sums and one f32 chain over ascending blocks. A row of y
/// therefore depends on its row of x alone, bit for bit: not on the other rows, their number or
/// the number of threads.
class Linear {
 public:
  Linear() = default;

  /// Packs `parts` from top to bottom.
  ///
  /// Errors: kInvalidFile where shapes disagree or a row is not a whole number of blocks.
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
      linear.first_task_.push_back(linear.num_tasks_);
      linear.out_features_ += packed.rows();
      linear.num_tasks_ += (packed.rows() + kTaskOutputs - 1) / kTaskOutputs;
      linear.has_blocks_ = linear.has_blocks_ || packed.maybe_blocks() != nullptr;
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
  /// Cost: the packed weights are read once for every 512 rows of x. Weights of 4 to 8 bits take
  ///       1.5 bytes of heap memory for each activation of up to 512 rows.
  void apply(MatrixView<const float> x, MatrixView<float> y, ThreadPool& pool) const {
    if (x.rows == 0) return;  // no offsets on the pointer of an empty buffer
    apply_tasks(x, pool, [&](std::size_t part) {
      return MatrixView<float>(y.data + first_output_[part], y.rows, parts_[part].rows(),
                               y.row_stride);
    });
  }

  /// As above with each part's outputs in a place of their own.
  ///
  /// \param outputs  one for each part: [num_rows, the part's out_features], not overlapping x
  void apply(MatrixView<const float> x, std::span<const MatrixView<float>> outputs,
             ThreadPool& pool) const {
    if (x.rows == 0) return;
    apply_tasks(x, pool, [&](std::size_t part) { return outputs[part]; });
  }

 private:
  // Outputs of one task: a panel of f32 kernels, two of block kernels.
  static constexpr std::int64_t kTaskOutputs = detail::kPanelCols;
  // Rows per pass, so that their slice of x stays in the L2 cache beside the weights of a task.
  static constexpr std::int64_t kRowBlock = 512;

  static std::size_t part_of(const std::vector<std::int64_t>& firsts, std::int64_t index) {
    return static_cast<std::size_t>(std::upper_bound(firsts.begin(), firsts.end(), index) -
                                    firsts.begin() - 1);
  }

  template <typename OutputsOf>
  void apply_tasks(MatrixView<const float> x, ThreadPool& pool, const OutputsOf& outputs_of) const {
    for (std::int64_t first = 0; first < x.rows; first += kRowBlock) {
      const MatrixView<const float> rows =
          x.middle_rows(first, std::min(kRowBlock, x.rows - first));
      const QuantizedRows quantized = has_blocks_ ? quantize(rows, pool) : QuantizedRows();
      pool.parallel_for(num_tasks_, [&](std::int64_t task, int) {
        const std::size_t part = part_of(first_task_, task);
        const MatrixView<float> y = outputs_of(part).middle_rows(first, rows.rows);
        apply_task(part, (task - first_task_[part]) * kTaskOutputs, rows, quantized, y);
      });
    }
  }

  static QuantizedRows quantize(MatrixView<const float> x, ThreadPool& pool) {
    constexpr std::int64_t kRows = 16;  // of a task: some microseconds
    QuantizedRows quantized(x.rows, x.cols);
    pool.parallel_for((x.rows + kRows - 1) / kRows, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(x.rows, (task + 1) * kRows);
      for (std::int64_t r = task * kRows; r < end; ++r) quantized.set_row(r, x.row(r));
    });
    return quantized;
  }

  /// Outputs [first, first + 32) of a part. `y` holds the outputs of that part only.
  void apply_task(std::size_t part_idx, std::int64_t first, MatrixView<const float> x,
                  const QuantizedRows& quantized, MatrixView<float> y) const {
    const PackedWeights& part = parts_[part_idx];
    const std::int64_t cols = std::min(kTaskOutputs, part.rows() - first);
    alignas(64) float edge[kRowBlock * kTaskOutputs];  // narrow: must not write past its part
    const bool whole = cols == kTaskOutputs;
    float* out = whole ? y.data + first : edge;
    const std::int64_t out_stride = whole ? y.row_stride : kTaskOutputs;
    if (const PackedPanels* panels = part.maybe_panels()) {
      panels->multiply_rows(first / kTaskOutputs, x.data, x.row_stride, x.rows, out, out_stride);
    } else {
      for (std::int64_t i = 0; i < cols; i += detail::kBlockOutputs) {
        part.maybe_blocks()->multiply_rows((first + i) / detail::kBlockOutputs, quantized, 0,
                                           x.rows, out + i, out_stride);
      }
    }
    const float* bias = has_bias_ ? bias_.data() + first_output_[part_idx] + first : nullptr;
    if (whole && bias == nullptr) return;
    for (std::int64_t r = 0; r < x.rows; ++r) {
      float* target = y.row(r) + first;
      if (!whole) std::copy_n(edge + r * kTaskOutputs, cols, target);
      if (bias != nullptr) {
        for (std::int64_t c = 0; c < cols; ++c) target[c] += bias[c];
      }
    }
  }

  std::int64_t in_features_ = 0;
  std::int64_t out_features_ = 0;
  std::int64_t num_tasks_ = 0;
  bool has_bias_ = false;
  bool has_blocks_ = false;  // some part is multiplied with 8 bit activations
  std::vector<PackedWeights> parts_;
  std::vector<std::int64_t> first_output_;  // of each part
  std::vector<std::int64_t> first_task_;    // of each part
  std::vector<float> bias_;
};

}  // namespace chunkllm
