// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm::cuda {

/// Rotations by positions 0, 1, ... in device memory: `RopeTable` on the device.
class DeviceRopeTable {
 public:
  /// Made on the host in double precision: some 2 us a position. Waits for the copy.
  ///
  /// Errors: kResourceExhausted.
  static Result<DeviceRopeTable> create(const BackboneConfig& config, std::int32_t count,
                                        cudaStream_t stream) {
    const RopeTable host(RopeFrequencies(config), 0, count);
    const std::size_t size =
        static_cast<std::size_t>(count) * static_cast<std::size_t>(config.head_dim);
    DeviceRopeTable table;
    table.count_ = count;
    CHUNKLLM_ASSIGN_OR_RETURN(
        table.values_,
        DeviceBuffer<float>::from(std::span<const float>(host.row(0), size), stream));
    return Result<DeviceRopeTable>(std::move(table));
  }

  [[nodiscard]] DeviceRope view() const { return {values_.data(), count_}; }
  [[nodiscard]] std::int32_t count() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return values_.bytes(); }

 private:
  DeviceRopeTable() = default;

  DeviceBuffer<float> values_;  // [count, head_dim]
  std::int32_t count_ = 0;
};

/// The table of one model, made when first asked for: sessions share the longest so far. A row does
/// not depend on how many there are. May be called by several threads.
class SharedRopeTable {
 public:
  /// Errors: those of `DeviceRopeTable::create`.
  Result<std::shared_ptr<const DeviceRopeTable>> at_least(const BackboneConfig& config,
                                                          std::int32_t count, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (longest_ == nullptr || longest_->count() < count) {
      CHUNKLLM_ASSIGN_OR_RETURN(DeviceRopeTable table,
                                DeviceRopeTable::create(config, count, stream));
      longest_ = std::make_shared<const DeviceRopeTable>(std::move(table));
    }
    return longest_;
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<const DeviceRopeTable> longest_;
};

}  // namespace chunkllm::cuda
