// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/utf8.hpp"
#include "chunkllm/io/atomic_file.hpp"
#include "chunkllm/io/byte_reader.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/safetensors.hpp"

namespace chunkllm {

/// One tensor to be written.
struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;  ///< kF32, kF16 or kBF16: the format has no block types
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  ///< little-endian, row-major; alive until it is written
};

namespace detail {

inline Status check_safetensors_tensor(const SafetensorsTensor& tensor) {
  const std::string where = "tensor '" + printable(tensor.name) + "'";
  if (tensor.name.empty() || tensor.name == "__metadata__" || !is_valid_utf8(tensor.name)) {
    return invalid_argument(where + ": not a valid tensor name");
  }
  const DTypeTraits traits = dtype_traits(tensor.dtype);
  if (traits.block_size != 1) {
    return unsupported(where + ": safetensors cannot hold " + std::string(traits.name) +
                       ", supported are f32, f16 and bf16");
  }
  std::optional<std::uint64_t> num_bytes = traits.block_bytes;
  for (const std::int64_t size : tensor.shape) {
    if (size < 0) return invalid_argument(where + ": a negative size in its shape");
    if (num_bytes) num_bytes = checked_multiply(*num_bytes, static_cast<std::uint64_t>(size));
  }
  if (num_bytes != tensor.bytes.size()) {
    return invalid_argument(where + ": " + std::to_string(tensor.bytes.size()) +
                            " bytes do not match its shape");
  }
  return {};
}

inline std::string_view safetensors_dtype_name(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
}

/// Tensor indices in file order: wide elements first, so that all are aligned; then by name.
inline std::vector<std::size_t> safetensors_order(std::span<const SafetensorsTensor> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const std::size_t a_bytes = dtype_traits(tensors[a].dtype).block_bytes;
    const std::size_t b_bytes = dtype_traits(tensors[b].dtype).block_bytes;
    return a_bytes != b_bytes ? a_bytes > b_bytes : tensors[a].name < tensors[b].name;
  });
  return order;
}

/// The length field and the padded JSON header.
inline std::string safetensors_header(std::span<const SafetensorsTensor> tensors,
                                      std::span<const std::size_t> order,
                                      const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header.emplace("__metadata__", metadata);
  std::uint64_t offset = 0;
  for (const std::size_t i : order) {
    const SafetensorsTensor& tensor = tensors[i];
    const std::uint64_t end = offset + tensor.bytes.size();
    Json entry = Json::object();
    entry.emplace("dtype", std::string(safetensors_dtype_name(tensor.dtype)));
    entry.emplace("shape", tensor.shape);
    entry.emplace("data_offsets", std::vector<std::uint64_t>{offset, end});
    header.emplace(tensor.name, std::move(entry));
    offset = end;
  }
  std::string json = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t json_bytes = json.size();
  std::string result(sizeof(json_bytes), '\0');
  std::memcpy(result.data(), &json_bytes, sizeof(json_bytes));
  return result + json;
}

}  // namespace detail

/// Writes a safetensors file atomically. Equal arguments give equal bytes, whatever the order of
/// `tensors`.
///
/// \param tensors   in any order, with unique names
/// \param metadata  UTF-8 strings for `__metadata__`; left out where empty
/// Errors: kInvalidArgument for a name, shape or byte count that does not fit; kUnsupported for a
/// block type; those of `write_file_atomically`.
inline Status write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> names;
  for (const SafetensorsTensor& tensor : tensors) {
    CHUNKLLM_RETURN_IF_ERROR(detail::check_safetensors_tensor(tensor).with_context(path));
    if (!names.insert(tensor.name).second) {
      return invalid_argument(path + ": tensor '" + detail::printable(tensor.name) +
                              "' is given twice");
    }
  }
  for (const auto& [key, value] : metadata) {
    if (!is_valid_utf8(key) || !is_valid_utf8(value)) {
      return invalid_argument(path + ": metadata '" + detail::printable(key) + "' is not UTF-8");
    }
  }
  const std::vector<std::size_t> order = detail::safetensors_order(tensors);
  const std::string header = detail::safetensors_header(tensors, order, metadata);
  if (header.size() > detail::kMaxSafetensorsHeaderBytes) {
    return invalid_argument(path + ": the header would exceed " +
                            std::to_string(detail::kMaxSafetensorsHeaderBytes) + " bytes");
  }
  std::vector<std::span<const std::byte>> parts = {std::as_bytes(std::span<const char>(header))};
  for (const std::size_t i : order) parts.push_back(tensors[i].bytes);
  return write_file_atomically(path, parts);
}

}  // namespace chunkllm
