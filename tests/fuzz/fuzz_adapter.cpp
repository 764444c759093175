// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/chunk/adapter_file.hpp"

using namespace chunkllm;

/// What is accepted must be usable: every weight is read by one key, query and probability, and
/// all of them are finite on a zero input.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span<const std::uint8_t>(data, size));
  const Result<AdapterFile> file = parse_adapter_bytes(bytes, "fuzz");
  if (!file.ok()) {
    if (file.status().message().find('\n') != std::string::npos) __builtin_trap();
    return 0;
  }
  const std::vector<float> input(static_cast<std::size_t>(file->model.hidden_size), 0.0F);
  if (file->maybe_chunk_adapter != nullptr &&
      !std::isfinite(file->maybe_chunk_adapter->probability(input.data()))) {
    __builtin_trap();
  }
  if (file->maybe_qk_adapter == nullptr) return 0;
  const QkAdapter& adapter = *file->maybe_qk_adapter;
  const ScorerShape shape = adapter.shape();
  TokenRow row;
  row.input = input.data();
  for (std::int64_t layer = 0; layer < file->model.num_layers; ++layer) {
    std::vector<float> key(static_cast<std::size_t>(shape.key_size()));
    std::vector<float> query(static_cast<std::size_t>(shape.query_size()));
    adapter.make_key(layer, input.data(), /*length=*/1, key.data());
    adapter.make_query(layer, row, query.data());
    for (const float value : key) {
      if (value != 0.0F) __builtin_trap();
    }
    for (const float value : query) {
      if (!std::isfinite(value)) __builtin_trap();
    }
    const float* bias = adapter.distance_bias(layer);
    for (std::int64_t i = 0; bias != nullptr && i < shape.num_heads * kNumDistanceBins; ++i) {
      if (!std::isfinite(bias[i])) __builtin_trap();
    }
  }
  return 0;
}
