// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/backbone_weights.hpp"
#include "chunkllm/model/model_files.hpp"
#include "chunkllm/train/train_qk_adapters.hpp"
#include "kv_kind.hpp"
#include "kv_runner.hpp"

namespace chunkllm::cli {

/// `--device cuda`: a model in the memory of the GPU. Weights, keys and values are of one type, f16
/// or bf16. Mass recall and a Chunk Adapter's boundary F1 in `evaluate` run on the CPU.
class DeviceRunner : public ModelRunner {
 public:
  using TokenBytes = std::function<std::string_view(std::int32_t)>;
  using ModelRunner::make_session;

  virtual ~DeviceRunner() = default;

  [[nodiscard]] virtual const BackboneConfig& config() const = 0;

  /// A session on this model without a tokenizer of its own; the runner must outlive it.
  ///
  /// \param maybe_adapter  finds the boundaries; null: the sentence rules do
  /// Errors: kUnsupported for a scorer or a setting that the device has no kernels for.
  virtual Result<std::unique_ptr<AnySession>> make_session(const AnyScorer& scorer,
                                                           const ChunkAdapter* maybe_adapter,
                                                           TokenBytes token_bytes,
                                                           const SessionOptions& options) const = 0;

  /// Reads texts to train on, of at most `max_tokens`; the runner must outlive it.
  ///
  /// \param input_budget  as of `DeviceTeacher::collect`
  /// Errors: those of `DeviceTeacher::create`
  virtual Result<Teach> make_teacher(std::int64_t max_tokens, std::int64_t input_budget) const = 0;
};

/// Scorers that the device has, as `--scorer` names them.
inline constexpr std::string_view kDeviceScorers = "adapter, mean-key or recent";

/// kOk where this build has code for this machine's GPU, else what is missing.
Status check_cuda();

/// The GPU's name, and memory that is free on it. Errors: those of `check_cuda`.
struct DeviceFacts {
  std::string name;
  std::int64_t free_bytes = 0;
};
Result<DeviceFacts> device_facts();

/// Loads a model's weights onto the GPU.
///
/// \param progress  called with (tensors done, tensors in all); may be empty
/// Errors: those of `check_cuda` and of `DeviceWeights::load`; kUnsupported for `--kv f32`, and
///         before anything is loaded for heads that there are no kernels for.
Result<std::unique_ptr<const DeviceRunner>> load_device_runner(const ModelFiles& files, KvKind kv,
                                                               ThreadPool& pool,
                                                               const LoadProgress& progress);

/// Random weights of a model's shape, for work on speed.
///
/// Errors: as above, but for files.
Result<std::unique_ptr<const DeviceRunner>> random_device_runner(const BackboneConfig& shape,
                                                                 KvKind kv);

}  // namespace chunkllm::cli
