// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "chunkllm/core/dtype.hpp"

namespace chunkllm {

/// Types of GGUF metadata values; the numbers are the file's.
enum class GgufType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12
};

constexpr std::string_view to_string(GgufType type) {
  constexpr std::array<std::string_view, 13> kNames = {"u8",  "i8",  "u16",  "i16",    "u32",
                                                       "i32", "f32", "bool", "string", "array",
                                                       "u64", "i64", "f64"};
  const auto index = static_cast<std::size_t>(type);
  return index < kNames.size() ? kNames[index] : "?";
}

/// Bytes of a fixed-size value; 0 for strings and arrays.
constexpr std::size_t gguf_type_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    case GgufType::kString:
    case GgufType::kArray: return 0;
  }
  return 0;
}

/// A checked metadata value, left in the file's bytes.
struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element_type = GgufType::kU8;  ///< of an array; else as `type`
  std::uint64_t num_elements = 1;         ///< of an array; else 1
  /// A number's bytes, a string's characters, or an array's elements one after the other (strings
  /// and inner arrays with their length fields).
  std::span<const std::byte> bytes;
};

/// How ggml stores a tensor type: `block_size` consecutive values of a row in `block_bytes` bytes.
struct GgufTensorType {
  std::uint32_t id;
  std::string_view name;
  std::size_t block_size;
  std::size_t block_bytes;
};

/// All types that a file may hold, readable here or not: their sizes are needed to check that the
/// tensors of a file do not overlap.
inline constexpr std::array<GgufTensorType, 34> kGgufTensorTypes = {{
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},
}};

/// The row of `kGgufTensorTypes` for a type id of a file; null where there is none.
constexpr const GgufTensorType* find_gguf_tensor_type(std::uint32_t id) {
  for (const GgufTensorType& type : kGgufTensorTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

/// The types that this library computes with.
constexpr std::optional<DType> dtype_of_gguf(std::uint32_t id) {
  switch (id) {
    case 0: return DType::kF32;
    case 1: return DType::kF16;
    case 2: return DType::kQ4_0;
    case 3: return DType::kQ4_1;
    case 8: return DType::kQ8_0;
    case 12: return DType::kQ4_K;
    case 14: return DType::kQ6_K;
    case 30: return DType::kBF16;
    default: return std::nullopt;
  }
}

/// One tensor of a file.
struct GgufTensorInfo {
  std::string_view name;  ///< in the file's bytes
  const GgufTensorType* type = nullptr;
  std::uint32_t num_dims = 0;
  /// dims[0] is the contiguous axis; those past `num_dims` are 1.
  std::array<std::int64_t, 4> dims = {1, 1, 1, 1};
  std::span<const std::byte> bytes;
};

}  // namespace chunkllm
