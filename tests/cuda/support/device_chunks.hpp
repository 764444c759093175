// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/cuda/views.hpp"
#include "cuda/support/device.hpp"

namespace chunkllm::testing {

/// Sequences of random chunks of 1 to 40 tokens, on the host and on the device.
class DeviceChunks {
 public:
  DeviceChunks(const std::vector<std::int32_t>& num_chunks, std::int32_t max_chunks,
               std::mt19937& random)
      : max_chunks_(max_chunks),
        ends_(num_chunks.size() * static_cast<std::size_t>(max_chunks)),
        num_chunks_(num_chunks) {
    // Behind a sequence's chunks stands what no kernel may read.
    std::vector<std::int32_t> ends(ends_.size(), -7);
    for (std::size_t s = 0; s < num_chunks.size(); ++s) {
      tables_.emplace_back();
      std::int64_t end = 0;
      for (std::int32_t c = 0; c < num_chunks[s]; ++c) {
        tables_.back().close(end += static_cast<std::int64_t>(1 + random() % 40));
        ends[s * static_cast<std::size_t>(max_chunks) + static_cast<std::size_t>(c)] =
            static_cast<std::int32_t>(end);
      }
    }
    ends_.upload(ends);
  }

  [[nodiscard]] const ChunkTable& table(std::size_t seq) const { return tables_[seq]; }
  [[nodiscard]] std::int32_t max_chunks() const { return max_chunks_; }
  /// The last token of the sequence's last closed chunk; 0 where there is none.
  [[nodiscard]] std::int32_t last_boundary(std::size_t seq) const {
    const std::int64_t end = tables_[seq].open_begin();
    return end == 0 ? 0 : static_cast<std::int32_t>(end - 1);
  }
  [[nodiscard]] cuda::DeviceChunkTable view() const {
    cuda::DeviceChunkTable view;
    view.ends = ends_.data();
    view.num_chunks = num_chunks_.data();
    view.num_seqs = static_cast<std::int32_t>(tables_.size());
    view.max_chunks = max_chunks_;
    return view;
  }

 private:
  std::int32_t max_chunks_;
  std::vector<ChunkTable> tables_;
  DeviceBuffer<std::int32_t> ends_;
  DeviceBuffer<std::int32_t> num_chunks_;
};

/// Triggers on the host and on the device.
class DeviceTriggerList {
 public:
  DeviceTriggerList(std::vector<std::int32_t> tokens, std::vector<std::int32_t> seqs)
      : tokens_(std::move(tokens)),
        seqs_(std::move(seqs)),
        device_tokens_(tokens_),
        device_seqs_(seqs_) {}

  [[nodiscard]] std::size_t count() const { return tokens_.size(); }
  [[nodiscard]] std::int32_t token(std::size_t i) const { return tokens_[i]; }
  [[nodiscard]] std::size_t seq(std::size_t i) const { return static_cast<std::size_t>(seqs_[i]); }
  [[nodiscard]] cuda::DeviceTriggers view() const {
    cuda::DeviceTriggers view;
    view.tokens = device_tokens_.data();
    view.maybe_seqs = device_seqs_.data();
    view.count = static_cast<std::int32_t>(tokens_.size());
    return view;
  }

 private:
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> seqs_;
  DeviceBuffer<std::int32_t> device_tokens_;
  DeviceBuffer<std::int32_t> device_seqs_;
};

}  // namespace chunkllm::testing
