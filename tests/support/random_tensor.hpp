// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "reference/dequantize_oracle.hpp"

namespace chunkllm::testing {

inline constexpr std::array<DType, 8> kAllDTypes = {DType::kF32,  DType::kF16,  DType::kBF16,
                                                    DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                                                    DType::kQ4_K, DType::kQ6_K};

/// A matrix with its bytes: every bit pattern of codes may occur, scales are ordinary numbers.
class RandomTensor {
 public:
  RandomTensor(DType dtype, std::int64_t rows, std::int64_t cols, std::uint32_t seed)
      : dtype_(dtype), rows_(rows), cols_(cols) {
    const DTypeTraits traits = dtype_traits(dtype);
    row_bytes_ = static_cast<std::size_t>(cols) / traits.block_size * traits.block_bytes;
    bytes_.resize(static_cast<std::size_t>(rows) * row_bytes_);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::byte& byte : bytes_) byte = static_cast<std::byte>(random());
    for (std::size_t block = 0; block < bytes_.size(); block += traits.block_bytes) {
      switch (dtype) {
        case DType::kF32: put(block, normal(random)); break;
        case DType::kF16: put(block, to_f16(normal(random))); break;
        case DType::kBF16: put(block, to_bf16(normal(random))); break;
        case DType::kQ8_0:
        case DType::kQ4_0: put(block, to_f16(0.01F * normal(random))); break;
        case DType::kQ4_1:
        case DType::kQ4_K:
          put(block, to_f16(0.01F * normal(random)));
          put(block + 2, to_f16(0.01F * normal(random)));
          break;
        case DType::kQ6_K: put(block + 208, to_f16(0.001F * normal(random))); break;
      }
    }
  }

  [[nodiscard]] TensorBytes view() const { return {dtype_, bytes_, rows_, cols_}; }
  [[nodiscard]] double at(std::int64_t row, std::int64_t col) const {
    return oracle::value_at(
        dtype_, std::span(bytes_).subspan(static_cast<std::size_t>(row) * row_bytes_, row_bytes_),
        static_cast<std::size_t>(col));
  }

 private:
  template <typename T>
  void put(std::size_t offset, T value) {
    std::memcpy(&bytes_[offset], &value, sizeof(T));
  }

  DType dtype_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::size_t row_bytes_ = 0;
  std::vector<std::byte> bytes_;
};

}  // namespace chunkllm::testing
