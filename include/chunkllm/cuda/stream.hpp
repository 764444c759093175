// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/gemm.hpp"

namespace chunkllm::cuda {

/// A stream of its own, independent of the legacy default stream. Empty until created.
class Stream {
 public:
  Stream() = default;
  static Result<Stream> create() {
    Stream stream;
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking),
                    "cudaStreamCreateWithFlags"));
    return Result<Stream>(std::move(stream));
  }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  [[nodiscard]] cudaStream_t get() const { return stream_; }
  [[nodiscard]] Status synchronize() const {
    return cuda_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A point in a stream. Empty until created.
class Event {
 public:
  enum class Timing : bool { kOff, kOn };

  Event() = default;
  static Result<Event> create(Timing timing = Timing::kOff) {
    Event event;
    const unsigned flags = timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming;
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaEventCreateWithFlags(&event.event_, flags), "cudaEventCreateWithFlags"));
    return Result<Event>(std::move(event));
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  [[nodiscard]] cudaEvent_t get() const { return event_; }
  [[nodiscard]] Status record(cudaStream_t stream) const {
    return cuda_status(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  /// Waits on the host; at once where nothing has been recorded.
  [[nodiscard]] Status synchronize() const {
    return cuda_status(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// A cuBLAS handle for one stream, with a workspace of its own: products can then be captured in a
/// graph, allocate nothing and give the same bits in every run. Empty until created.
///
/// One thread at a time; results of two streams need two handles.
class CublasHandle {
 public:
  CublasHandle() = default;
  /// Errors: kResourceExhausted without device memory for cuBLAS itself or for the workspace.
  static Result<CublasHandle> create(cudaStream_t stream) {
    CublasHandle handle;
    const cublasStatus_t created = cublasCreate(&handle.handle_);
    if (created == CUBLAS_STATUS_NOT_INITIALIZED) {  // so it says where memory runs out
      return resource_exhausted("cublasCreate: " + std::string(cublasGetStatusName(created)) +
                                ", the device has no memory left for cuBLAS");
    }
    CHUNKLLM_RETURN_IF_ERROR(cublas_status(created, "cublasCreate"));
    // Partial sums of a product split along k stay f32.
    const auto mode = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    CHUNKLLM_RETURN_IF_ERROR(
        cublas_status(cublasSetMathMode(handle.handle_, mode), "cublasSetMathMode"));
    CHUNKLLM_ASSIGN_OR_RETURN(handle.workspace_, DeviceBuffer<std::byte>::create(kWorkspaceBytes));
    CHUNKLLM_RETURN_IF_ERROR(handle.bind(stream));
    return Result<CublasHandle>(std::move(handle));
  }
  CublasHandle(CublasHandle&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), workspace_(std::move(other.workspace_)) {}
  CublasHandle& operator=(CublasHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(workspace_, other.workspace_);
    return *this;
  }
  ~CublasHandle() {
    if (handle_ != nullptr) cublasDestroy(handle_);
  }

  [[nodiscard]] cublasHandle_t get() const { return handle_; }
  [[nodiscard]] std::size_t workspace_bytes() const { return workspace_.bytes(); }
  /// Moves the handle to `stream`. Setting a stream takes the workspace away, so it is set again.
  [[nodiscard]] Status bind(cudaStream_t stream) {
    CHUNKLLM_RETURN_IF_ERROR(cublas_status(cublasSetStream(handle_, stream), "cublasSetStream"));
    return cublas_status(cublasSetWorkspace(handle_, workspace_.data(), kWorkspaceBytes),
                         "cublasSetWorkspace");
  }

 private:
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32}
                                                 << 20;  // cuBLAS's advice for sm_90

  cublasHandle_t handle_ = nullptr;
  DeviceBuffer<std::byte> workspace_;
};

}  // namespace chunkllm::cuda
