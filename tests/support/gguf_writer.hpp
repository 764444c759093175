// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/io/gguf_types.hpp"

namespace chunkllm::testing {

using Bytes = std::vector<std::byte>;

template <typename T>
void append_number(Bytes& bytes, T value) {
  static_assert(std::is_arithmetic_v<T>);
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

inline void append_gguf_string(Bytes& bytes, std::string_view text) {
  append_number(bytes, std::uint64_t{text.size()});
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  bytes.insert(bytes.end(), begin, begin + text.size());
}

template <typename T>
constexpr GgufType gguf_type_of() {
  if constexpr (std::is_same_v<T, std::uint8_t>) return GgufType::kU8;
  if constexpr (std::is_same_v<T, std::int8_t>) return GgufType::kI8;
  if constexpr (std::is_same_v<T, std::uint16_t>) return GgufType::kU16;
  if constexpr (std::is_same_v<T, std::int16_t>) return GgufType::kI16;
  if constexpr (std::is_same_v<T, std::uint32_t>) return GgufType::kU32;
  if constexpr (std::is_same_v<T, std::int32_t>) return GgufType::kI32;
  if constexpr (std::is_same_v<T, std::uint64_t>) return GgufType::kU64;
  if constexpr (std::is_same_v<T, std::int64_t>) return GgufType::kI64;
  if constexpr (std::is_same_v<T, float>) return GgufType::kF32;
  if constexpr (std::is_same_v<T, double>) return GgufType::kF64;
  if constexpr (std::is_same_v<T, bool>) return GgufType::kBool;
}

/// Builds small GGUF files in memory. The header's fields are public, so that a test can lie.
class GgufWriter {
 public:
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;     ///< of the data; the reader learns it from `general.alignment`
  std::uint64_t extra_tensors = 0;  ///< added to the true tensor_count
  std::uint64_t extra_values = 0;   ///< added to the true kv_count
  std::uint64_t first_offset = 0;   ///< added to every tensor's offset

  /// A number or bool.
  template <typename T>
  void add(std::string_view key, T value) {
    begin_value(key, gguf_type_of<T>());
    append_number(values_, value);
  }
  void add_string(std::string_view key, std::string_view value) {
    begin_value(key, GgufType::kString);
    append_gguf_string(values_, value);
  }
  template <typename T>
  void add_array(std::string_view key, const std::vector<T>& elements) {
    begin_array(key, gguf_type_of<T>(), elements.size());
    for (const T element : elements) append_number(values_, element);
  }
  void add_string_array(std::string_view key, const std::vector<std::string>& elements) {
    begin_array(key, GgufType::kString, elements.size());
    for (const std::string& element : elements) append_gguf_string(values_, element);
  }
  /// A value of which the caller gives the encoding.
  void add_raw(std::string_view key, std::uint32_t type, std::span<const std::byte> encoding) {
    ++num_values_;
    append_gguf_string(values_, key);
    append_number(values_, type);
    values_.insert(values_.end(), encoding.begin(), encoding.end());
  }
  /// dims[0] is the contiguous axis.
  void add_tensor(std::string_view name, const std::vector<std::int64_t>& dims,
                  std::uint32_t type_id, std::span<const std::byte> data) {
    ++num_tensors_;
    append_gguf_string(infos_, name);
    append_number(infos_, static_cast<std::uint32_t>(dims.size()));
    for (const std::int64_t dim : dims) append_number(infos_, dim);
    append_number(infos_, type_id);
    pad(data_);
    append_number(infos_, first_offset + data_.size());
    data_.insert(data_.end(), data.begin(), data.end());
  }
  void add_f32_tensor(std::string_view name, const std::vector<std::int64_t>& dims,
                      const std::vector<float>& values) {
    add_tensor(name, dims, /*type_id=*/0, std::as_bytes(std::span<const float>(values)));
  }

  [[nodiscard]] Bytes finish() const {
    Bytes file(magic.size());
    std::memcpy(file.data(), magic.data(), magic.size());
    append_number(file, version);
    append_number(file, num_tensors_ + extra_tensors);
    append_number(file, num_values_ + extra_values);
    file.insert(file.end(), values_.begin(), values_.end());
    file.insert(file.end(), infos_.begin(), infos_.end());
    if (num_tensors_ > 0) pad(file);
    file.insert(file.end(), data_.begin(), data_.end());
    return file;
  }

 private:
  void begin_value(std::string_view key, GgufType type) {
    add_raw(key, static_cast<std::uint32_t>(type), {});
  }
  void begin_array(std::string_view key, GgufType element_type, std::size_t count) {
    begin_value(key, GgufType::kArray);
    append_number(values_, static_cast<std::uint32_t>(element_type));
    append_number(values_, std::uint64_t{count});
  }
  void pad(Bytes& bytes) const {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  }

  std::uint64_t num_values_ = 0;
  std::uint64_t num_tensors_ = 0;
  Bytes values_;
  Bytes infos_;
  Bytes data_;
};

}  // namespace chunkllm::testing
