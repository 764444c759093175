// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/packed_blocks.hpp"
#include "chunkllm/model/packed_panels.hpp"
#include "chunkllm/model/row_block.hpp"
#include "chunkllm/model/weight_format.hpp"

namespace chunkllm {

/// A weight matrix [rows, cols], repacked once from a file's tensor for the products.
///
/// F32, f16 and bf16 weights stand in `PackedPanels`, those of 4 to 8 bits in `PackedBlocks`.
class PackedWeights {
 public:
  PackedWeights() = default;

  /// Repacks a file's tensor.
  ///
  /// \param row_order  packed row i is the tensor's row `row_order[i]`; empty: as in the file
  /// Errors: kInvalidFile if a row is not a whole number of blocks or bytes are missing;
  ///         kInvalidArgument if `row_order` has another length or names rows outside the tensor;
  ///         kUnsupported for kInt8 where `cols` is no multiple of 32.
  static Result<PackedWeights> pack(const TensorBytes& tensor,
                                    std::span<const std::int64_t> row_order, WeightFormat format,
                                    ThreadPool& pool);

  /// Memory that `pack` will take for a tensor of that type and shape.
  static std::int64_t bytes_of(DType dtype, std::int64_t rows, std::int64_t cols,
                               WeightFormat format) {
    const DType type = packed_type(dtype, format);
    return is_plain(type) ? PackedPanels::bytes_of(rows, cols, type)
                          : PackedBlocks::bytes_of(rows, cols, type);
  }

  [[nodiscard]] std::int64_t rows() const {
    return std::visit([](const auto& packed) { return packed.rows(); }, packed_);
  }
  [[nodiscard]] std::int64_t cols() const {
    return std::visit([](const auto& packed) { return packed.cols(); }, packed_);
  }
  [[nodiscard]] std::int64_t bytes() const {
    return std::visit([](const auto& packed) { return packed.bytes(); }, packed_);
  }

  /// Null where the weights are in blocks.
  [[nodiscard]] const PackedPanels* maybe_panels() const {
    return std::get_if<PackedPanels>(&packed_);
  }
  /// Null where the weights are f32, f16 or bf16.
  [[nodiscard]] const PackedBlocks* maybe_blocks() const {
    return std::get_if<PackedBlocks>(&packed_);
  }

  /// Writes row `row` as f32 [cols], each weight rounded once.
  void unpack_row(std::int64_t row, float* out) const {
    std::visit([&](const auto& packed) { packed.unpack_row(row, out); }, packed_);
  }

 private:
  static constexpr std::int64_t kTaskRows = detail::kPanelCols;  // whole panels of either kind

  static DType packed_type(DType dtype, WeightFormat format) {
    switch (format) {
      case WeightFormat::kF32: return DType::kF32;
      case WeightFormat::kBF16: return DType::kBF16;
      case WeightFormat::kInt8: return DType::kQ8_0;
      case WeightFormat::kKeep: break;
    }
    return dtype;
  }
  static bool is_plain(DType type) { return dtype_traits(type).block_size == 1; }
  static Status check(const TensorBytes& tensor, std::span<const std::int64_t> row_order,
                      WeightFormat format);
  void set_row(std::int64_t target, const TensorBytes& tensor, std::int64_t source,
               std::span<float> scratch);

  std::variant<PackedPanels, PackedBlocks> packed_;
};

inline Status PackedWeights::check(const TensorBytes& tensor,
                                   std::span<const std::int64_t> row_order, WeightFormat format) {
  const DTypeTraits traits = dtype_traits(tensor.dtype);
  const auto cols = static_cast<std::size_t>(tensor.cols);
  if (tensor.rows <= 0 || tensor.cols <= 0 || cols % traits.block_size != 0) {
    return invalid_file("a " + std::string(traits.name) + " matrix of " +
                        std::to_string(tensor.rows) + " x " + std::to_string(tensor.cols) +
                        ", expected rows of whole blocks of " + std::to_string(traits.block_size));
  }
  if (tensor.bytes.size() / static_cast<std::size_t>(tensor.rows) <
      cols / traits.block_size * traits.block_bytes) {
    return invalid_file("a matrix's data is shorter than its shape says");
  }
  if (format == WeightFormat::kInt8 && tensor.cols % detail::kBlockFeatures != 0) {
    return unsupported("int8 weights need input features in multiples of 32, not " +
                       std::to_string(cols));
  }
  if (!row_order.empty() && static_cast<std::int64_t>(row_order.size()) != tensor.rows) {
    return invalid_argument("row_order names " + std::to_string(row_order.size()) + " of " +
                            std::to_string(tensor.rows) + " rows");
  }
  for (const std::int64_t row : row_order) {
    if (row < 0 || row >= tensor.rows) {
      return invalid_argument("row_order names row " + std::to_string(row) + " of " +
                              std::to_string(tensor.rows));
    }
  }
  return {};
}

inline void PackedWeights::set_row(std::int64_t target, const TensorBytes& tensor,
                                   std::int64_t source, std::span<float> scratch) {
  auto* blocks = std::get_if<PackedBlocks>(&packed_);
  const std::int64_t num_blocks = tensor.cols / detail::kBlockFeatures;
  if (blocks != nullptr && blocks->type() == tensor.dtype) {
    const DTypeTraits traits = dtype_traits(tensor.dtype);
    const std::byte* row = tensor.bytes.data() + static_cast<std::size_t>(source) *
                                                     (static_cast<std::size_t>(tensor.cols) /
                                                      traits.block_size * traits.block_bytes);
    for (std::int64_t block = 0; block < num_blocks; ++block) {
      blocks->set_block(target, block, detail::read_row_block(tensor.dtype, row, block));
    }
    return;
  }
  [[maybe_unused]] const Status status = dequantize_row(tensor, source, scratch);
  assert(status.ok() && "check() looked at the shapes");
  if (blocks == nullptr) return std::get<PackedPanels>(packed_).set_row(target, scratch);
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const float* values = scratch.data() + block * detail::kBlockFeatures;
    blocks->set_block(target, block, detail::quantize_row_block(values));
  }
}

inline Result<PackedWeights> PackedWeights::pack(const TensorBytes& tensor,
                                                 std::span<const std::int64_t> row_order,
                                                 WeightFormat format, ThreadPool& pool) {
  CHUNKLLM_RETURN_IF_ERROR(check(tensor, row_order, format));
  PackedWeights packed;
  const DType type = packed_type(tensor.dtype, format);
  if (is_plain(type)) {
    packed.packed_ = PackedPanels(tensor.rows, tensor.cols, type);
  } else {
    packed.packed_ = PackedBlocks(tensor.rows, tensor.cols, type);
  }
  pool.parallel_for((tensor.rows + kTaskRows - 1) / kTaskRows, [&](std::int64_t task, int) {
    std::vector<float> scratch(static_cast<std::size_t>(tensor.cols));
    const std::int64_t end = std::min(tensor.rows, (task + 1) * kTaskRows);
    for (std::int64_t row = task * kTaskRows; row < end; ++row) {
      packed.set_row(row, tensor,
                     row_order.empty() ? row : row_order[static_cast<std::size_t>(row)], scratch);
    }
  });
  return packed;
}

}  // namespace chunkllm
