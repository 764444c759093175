// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/io/safetensors.hpp"

using namespace chunkllm;

/// Every tensor's last row is read; together the tensors must be the whole data section.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span<const std::uint8_t>(data, size));
  const Result<SafetensorsFile> file = SafetensorsFile::parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, sizeof(header_bytes));
  std::size_t num_data_bytes = 0;
  for (const std::string& name : file->tensor_names()) {
    num_data_bytes += file->find(name)->bytes.size();
    const Result<TensorBytes> tensor = file->tensor(name);
    if (!tensor.ok() || tensor->rows == 0 || tensor->bytes.empty()) continue;
    std::vector<float> row(static_cast<std::size_t>(tensor->cols));
    if (!dequantize_row(tensor.value(), tensor->rows - 1, row).ok()) __builtin_trap();
  }
  if (8 + header_bytes + num_data_bytes != size) __builtin_trap();
  return 0;
}
