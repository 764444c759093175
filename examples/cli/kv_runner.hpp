// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_state.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/chunk_mass.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/text_chunks.hpp"
#include "chunkllm/infer/session.hpp"
#include "kv_kind.hpp"
#include "loaded_model.hpp"

namespace chunkllm::cli {

/// Called with the tokens read so far; false stops with kInterrupted.
using Progress = std::function<bool(std::int64_t)>;

/// A session whose KV type and device are hidden: see `Session` for what the members do.
class AnySession {
 public:
  using HiddenRows = std::function<void(std::int64_t first_token, MatrixView<const float> hidden)>;

  /// The parts of the backbone that scoring needs, wherever it runs.
  class Backbone {
   public:
    explicit Backbone(const AnySession& session) : session_(session) {}
    [[nodiscard]] const BackboneConfig& config() const { return session_.config(); }
    void logits(MatrixView<const float> hidden, MatrixView<float> logits, ThreadPool& pool) const {
      session_.logits(hidden, logits, pool);
    }

   private:
    const AnySession& session_;
  };

  AnySession() = default;
  AnySession(const AnySession&) = delete;
  AnySession& operator=(const AnySession&) = delete;
  virtual ~AnySession() = default;

  virtual void reserve(std::int64_t num_tokens) = 0;
  virtual Status prefill(std::span<const std::int32_t> tokens, const Progress& progress) = 0;
  virtual Result<std::span<const float>> finish_prompt() = 0;
  virtual Result<std::span<const float>> step(std::int32_t token) = 0;
  virtual Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
                      const HiddenRows& hidden_rows) = 0;
  virtual Status rollback(std::int64_t num_tokens) = 0;
  virtual void count_attended_from(std::int64_t first_token) = 0;

  [[nodiscard]] virtual std::int64_t num_tokens() const = 0;
  [[nodiscard]] const Backbone& backbone() const { return backbone_; }
  [[nodiscard]] virtual const BackboneConfig& config() const = 0;
  /// Logits of final hidden rows; NaN where the device failed, of which the next call tells.
  virtual void logits(MatrixView<const float> hidden, MatrixView<float> logits,
                      ThreadPool& pool) const = 0;
  [[nodiscard]] virtual const AttendedStats& attended() const = 0;
  [[nodiscard]] virtual std::int64_t kv_bytes_per_token() const = 0;
  [[nodiscard]] virtual std::int64_t kv_resident_bytes() const = 0;
  [[nodiscard]] virtual SessionMemory memory() const = 0;
  [[nodiscard]] virtual const ChunkCounters& counters() const = 0;
  [[nodiscard]] virtual std::int64_t num_chunks() const = 0;

 private:
  Backbone backbone_{*this};
};

/// What the program does with a model wherever it runs.
class ModelRunner {
 public:
  using OnRow = std::function<Status(const EvaluateRow&)>;
  using OnProgress =
      std::function<bool(std::string_view label, std::int64_t done, std::int64_t total)>;

  ModelRunner() = default;
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  /// A session; the model and the pool must outlive it.
  virtual Result<std::unique_ptr<AnySession>> make_session(
      const LoadedModel& model, std::shared_ptr<const AnyScorer> scorer,
      std::shared_ptr<const ChunkAdapter> maybe_adapter, const SessionOptions& options,
      ThreadPool& pool) const = 0;

  /// `Evaluator::run`.
  virtual Status evaluate(const LoadedModel& model,
                          std::shared_ptr<const ChunkAdapter> maybe_adapter,
                          const EvaluateOptions& options, std::span<const EvaluateText> texts,
                          const OnRow& on_row, const OnProgress& on_progress,
                          ThreadPool& pool) const = 0;

 protected:
  ~ModelRunner() = default;
};

/// All that the program does on the CPU with keys and values of one type; models must have their
/// weights in the host's memory. The templates behind it take long to compile: each type has one
/// source file, and the commands see only this.
class KvRunner : public ModelRunner {
 public:
  /// The first of the oracle's two passes: `chunkllm::make_oracle_scorer`.
  virtual Result<std::shared_ptr<const AnyScorer>> make_oracle_scorer(
      const LoadedModel& model, std::span<const std::int32_t> ids, const ChunkOptions& chunk,
      MassRows rows, const Progress& progress, ThreadPool& pool) const = 0;

  /// The chunks of a text by a Chunk Adapter: `chunkllm::chunks_by_adapter`.
  virtual Result<TextChunks> chunks_by_adapter(
      const LoadedModel& model, const std::shared_ptr<const ChunkAdapter>& adapter,
      std::shared_ptr<const AnyScorer> scorer, const SessionOptions& options,
      std::span<const std::int32_t> ids, const Progress& progress, ThreadPool& pool) const = 0;

 protected:
  ~KvRunner() = default;
};

const KvRunner& f16_runner();
const KvRunner& bf16_runner();
const KvRunner& f32_runner();

inline const KvRunner& runner_of(KvKind kv) {
  switch (kv) {
    case KvKind::kBF16: return bf16_runner();
    case KvKind::kF32: return f32_runner();
    case KvKind::kF16: break;
  }
  return f16_runner();
}

}  // namespace chunkllm::cli
