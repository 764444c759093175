// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"

namespace chunkllm::cuda {

namespace detail {

/// An array in memory that `Memory` allocates and frees. Move only; empty until created.
template <typename T, typename Memory>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  /// `size` elements, not initialised. Errors: kResourceExhausted, with the number of bytes.
  static Result<Buffer> create(std::size_t size) {
    Buffer buffer;
    if (size == 0) return Result<Buffer>(std::move(buffer));
    if (size > std::numeric_limits<std::size_t>::max() / sizeof(T)) {
      return resource_exhausted(std::string(Memory::kName) + ": " + std::to_string(size) +
                                " elements do not fit an address space");
    }
    void* data = nullptr;
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(
        Memory::allocate(&data, size * sizeof(T)),
        std::string(Memory::kName) + " of " + std::to_string(size * sizeof(T)) + " bytes"));
    buffer.data_ = static_cast<T*>(data);
    buffer.size_ = size;
    return Result<Buffer>(std::move(buffer));
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) Memory::release(data_);
  }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

struct PinnedMemory {
  static constexpr const char* kName = "pinned memory";
  static cudaError_t allocate(void** data, std::size_t bytes) {
    return cudaMallocHost(data, bytes);
  }
  static void release(void* data) { cudaFreeHost(data); }
};
struct DeviceMemory {
  static constexpr const char* kName = "device memory";
  static cudaError_t allocate(void** data, std::size_t bytes) { return cudaMalloc(data, bytes); }
  static void release(void* data) { cudaFree(data); }
};

}  // namespace detail

/// Host memory that the device copies from and to without a detour.
template <typename T>
using PinnedBuffer = detail::Buffer<T, detail::PinnedMemory>;

/// Memory of the current device.
///
/// Copies are enqueued on the given stream; the host's side must live and rest until they are done.
/// Freeing waits for the device, so a buffer may go while work on it is under way.
template <typename T>
class DeviceBuffer : public detail::Buffer<T, detail::DeviceMemory> {
  using Base = detail::Buffer<T, detail::DeviceMemory>;

 public:
  DeviceBuffer() = default;
  static Result<DeviceBuffer> create(std::size_t size) {
    Result<Base> base = Base::create(size);
    if (!base.ok()) return base.status();
    return DeviceBuffer(std::move(base).value());
  }
  /// A buffer of `values`, which may go on return.
  static Result<DeviceBuffer> from(std::span<const T> values, cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(DeviceBuffer buffer, create(values.size()));
    CHUNKLLM_RETURN_IF_ERROR(buffer.upload(values, stream));
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream), "cudaStreamSynchronize"));
    return Result<DeviceBuffer>(std::move(buffer));
  }

  /// Copies `values` to elements [first, first + values.size()). Errors: kOutOfRange.
  [[nodiscard]] Status upload(std::span<const T> values, cudaStream_t stream,
                              std::size_t first = 0) const {
    CHUNKLLM_RETURN_IF_ERROR(check(first, values.size()));
    if (values.empty()) return {};
    return cuda_status(cudaMemcpyAsync(this->data() + first, values.data(), values.size_bytes(),
                                       cudaMemcpyHostToDevice, stream),
                       "copy to the device");
  }
  /// Copies elements [first, first + values.size()) out. Errors: kOutOfRange.
  [[nodiscard]] Status download(std::span<T> values, cudaStream_t stream,
                                std::size_t first = 0) const {
    CHUNKLLM_RETURN_IF_ERROR(check(first, values.size()));
    if (values.empty()) return {};
    return cuda_status(cudaMemcpyAsync(values.data(), this->data() + first, values.size_bytes(),
                                       cudaMemcpyDeviceToHost, stream),
                       "copy from the device");
  }
  [[nodiscard]] Status zero(cudaStream_t stream) const {
    if (this->size() == 0) return {};
    return cuda_status(cudaMemsetAsync(this->data(), 0, this->bytes(), stream), "cudaMemsetAsync");
  }

 private:
  explicit DeviceBuffer(Base base) : Base(std::move(base)) {}

  [[nodiscard]] Status check(std::size_t first, std::size_t count) const {
    if (first <= this->size() && count <= this->size() - first) return {};
    return out_of_range("device buffer: elements " + std::to_string(first) + " to " +
                        std::to_string(first + count) + " of " + std::to_string(this->size()));
  }
};

}  // namespace chunkllm::cuda
