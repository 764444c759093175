// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm {

/// Keys of one layer's closed chunks, [chunk][num_key_heads * key_dim], f32.
///
/// Kept in panels of 32 chunks with the chunks side by side, which is what the scoring product
/// reads: panel p holds element i of chunk 32 p + lane at `panel(p)[i * 32 + lane]`.
class ChunkKeys {
 public:
  explicit ChunkKeys(std::int64_t key_size = 0) : key_size_(key_size) {}

  static constexpr std::int64_t kPanel = detail::kPanelCols;

  [[nodiscard]] std::int64_t num_chunks() const { return num_chunks_; }
  [[nodiscard]] std::int64_t key_size() const { return key_size_; }
  [[nodiscard]] std::int64_t resident_bytes() const {
    return static_cast<std::int64_t>(panels_.size() * sizeof(float)) * key_size_ * kPanel;
  }

  void append(const float* key) {
    if (num_chunks_ % kPanel == 0) {
      panels_.emplace_back(static_cast<std::size_t>(key_size_ * kPanel), 0.0F);
    }
    ++num_chunks_;
    write(num_chunks_ - 1, key);
  }
  void write(std::int64_t chunk, const float* key) {
    float* lane = panels_[static_cast<std::size_t>(chunk / kPanel)].data() + chunk % kPanel;
    for (std::int64_t i = 0; i < key_size_; ++i) lane[i * kPanel] = key[i];
  }
  void read(std::int64_t chunk, float* key) const {
    const float* lane = panel(chunk / kPanel) + chunk % kPanel;
    for (std::int64_t i = 0; i < key_size_; ++i) key[i] = lane[i * kPanel];
  }
  void truncate(std::int64_t num_chunks) {
    num_chunks_ = num_chunks;
    panels_.resize(static_cast<std::size_t>((num_chunks + kPanel - 1) / kPanel));
  }

  [[nodiscard]] const float* panel(std::int64_t index) const {
    return panels_[static_cast<std::size_t>(index)].data();
  }

 private:
  std::int64_t key_size_;
  std::int64_t num_chunks_ = 0;
  std::vector<std::vector<float>> panels_;
};

}  // namespace chunkllm
