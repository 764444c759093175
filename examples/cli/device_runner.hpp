// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include "kv_kind.hpp"
#include "kv_runner.hpp"

namespace chunkllm::cli {

/// `--device cuda`: a model in the memory of the GPU. Weights, keys and values are of the type that
/// `--kv` names. What only the CPU does (oracles, mass recall, `chunks`) runs there.
class DeviceRunner : public KvRunner {
 public:
  using TokenBytes = std::function<std::string_view(std::int32_t)>;
  using KvRunner::make_session;

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
};

/// kOk where this build and this machine can run on a GPU, else what is missing.
Status check_cuda();

/// Loads a model's weights onto the GPU.
///
/// \param progress  called with (tensors done, tensors in all); may be empty
/// Errors: those of `check_cuda` and of `DeviceWeights::load`; kUnsupported for `--kv f32`.
Result<std::unique_ptr<const DeviceRunner>> load_device_runner(const ModelFiles& files, KvKind kv,
                                                               ThreadPool& pool,
                                                               const LoadProgress& progress);

/// Random weights of a published model's shape, for work on speed.
///
/// Errors: as above; kInvalidArgument for an unknown name, with the names there are.
Result<std::unique_ptr<const DeviceRunner>> random_device_runner(std::string_view shape, KvKind kv);

}  // namespace chunkllm::cli
