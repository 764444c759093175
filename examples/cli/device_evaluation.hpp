// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "device_runner.hpp"
#include "kv_runner.hpp"

namespace chunkllm::cli {

/// What the `Evaluator` asks of a backbone: sessions are the device's; layers, which oracles, mass
/// recall and a Chunk Adapter's boundary F1 run, are the host's.
class EvaluatedModel {
 public:
  /// \param maybe_host  null where no task runs layers
  EvaluatedModel(const DecoderBackbone* maybe_host, const DeviceRunner& runner)
      : maybe_host_(maybe_host), runner_(runner) {}

  [[nodiscard]] const DeviceRunner& runner() const { return runner_; }
  [[nodiscard]] const BackboneConfig& config() const { return runner_.config(); }
  [[nodiscard]] std::int64_t weight_bytes() const { return maybe_host_->weight_bytes(); }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> hidden) const {
    maybe_host_->embed(tokens, hidden);
  }
  void attention_input(std::int64_t layer, MatrixView<const float> hidden,
                       MatrixView<float> normed) const {
    maybe_host_->attention_input(layer, hidden, normed);
  }
  void project_qkv(std::int64_t layer, MatrixView<const float> normed, MatrixView<float> q,
                   MatrixView<float> k, MatrixView<float> v, ThreadPool& pool) const {
    maybe_host_->project_qkv(layer, normed, q, k, v, pool);
  }
  void finish_layer(std::int64_t layer, MatrixView<const float> attended, MatrixView<float> hidden,
                    ThreadPool& pool) const {
    maybe_host_->finish_layer(layer, attended, hidden, pool);
  }
  void logits(MatrixView<const float> hidden, MatrixView<float> logits, ThreadPool& pool) const {
    maybe_host_->logits(hidden, logits, pool);
  }

 private:
  const DecoderBackbone* maybe_host_;
  const DeviceRunner& runner_;
};

/// An `AnySession` as the `Evaluator` makes its sessions.
class EvaluatedSession {
 public:
  using TokenBytes = DeviceRunner::TokenBytes;

  static Result<EvaluatedSession> create(const EvaluatedModel& model,
                                         const std::shared_ptr<const AnyScorer>& scorer,
                                         const std::shared_ptr<const ChunkAdapter>& maybe_adapter,
                                         TokenBytes token_bytes, const SessionOptions& options,
                                         ThreadPool& /*pool*/) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        std::unique_ptr<AnySession> session,
        model.runner().make_session(*scorer, maybe_adapter.get(), std::move(token_bytes), options));
    return Result<EvaluatedSession>(EvaluatedSession(std::move(session)));
  }

  void reserve(std::int64_t num_tokens) { session_->reserve(num_tokens); }
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress) {
    return session_->prefill(tokens, progress);
  }
  Result<std::span<const float>> finish_prompt() { return session_->finish_prompt(); }
  Result<std::span<const float>> step(std::int32_t token) { return session_->step(token); }
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const AnySession::HiddenRows& hidden_rows) {
    return session_->read(tokens, mode, progress, hidden_rows);
  }
  Status rollback(std::int64_t num_tokens) { return session_->rollback(num_tokens); }
  void count_attended_from(std::int64_t first) { session_->count_attended_from(first); }
  [[nodiscard]] std::int64_t num_tokens() const { return session_->num_tokens(); }
  [[nodiscard]] const AnySession::Backbone& backbone() const { return session_->backbone(); }
  [[nodiscard]] const AttendedStats& attended() const { return session_->attended(); }

 private:
  explicit EvaluatedSession(std::unique_ptr<AnySession> session) : session_(std::move(session)) {}

  std::unique_ptr<AnySession> session_;
};

}  // namespace chunkllm::cli
