// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <utility>

#include "chunkllm/eval/evaluate.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "kv_runner.hpp"

namespace chunkllm::cli {

template <typename KvType>
class TypedSession final : public AnySession {
 public:
  using Inner = Session<DecoderBackbone, AnyScorer, KvType>;

  explicit TypedSession(Inner session) : session_(std::move(session)) {}

  void reserve(std::int64_t num_tokens) override { session_.reserve(num_tokens); }
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress) override {
    return session_.prefill(tokens, progress);
  }
  Result<std::span<const float>> finish_prompt() override { return session_.finish_prompt(); }
  Result<std::span<const float>> step(std::int32_t token) override { return session_.step(token); }
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const HiddenRows& hidden_rows) override {
    return session_.read(tokens, mode, progress, hidden_rows);
  }
  Status rollback(std::int64_t num_tokens) override { return session_.rollback(num_tokens); }
  void count_attended_from(std::int64_t first_token) override {
    session_.count_attended_from(first_token);
  }

  [[nodiscard]] std::int64_t num_tokens() const override { return session_.num_tokens(); }
  [[nodiscard]] const BackboneConfig& config() const override {
    return session_.backbone().config();
  }
  void logits(MatrixView<const float> hidden, MatrixView<float> logits,
              ThreadPool& pool) const override {
    session_.backbone().logits(hidden, logits, pool);
  }
  [[nodiscard]] const AttendedStats& attended() const override { return session_.attended(); }
  [[nodiscard]] std::int64_t kv_bytes_per_token() const override {
    return session_.kv_bytes_per_token();
  }
  [[nodiscard]] std::int64_t kv_resident_bytes() const override {
    return session_.kv_resident_bytes();
  }
  [[nodiscard]] SessionMemory memory() const override { return session_.memory(); }
  [[nodiscard]] const ChunkCounters& counters() const override {
    return session_.chunks().counters();
  }
  [[nodiscard]] std::int64_t num_chunks() const override {
    return session_.chunks().table().num_chunks();
  }

 private:
  Inner session_;
};

template <typename KvType>
class TypedKvRunner final : public KvRunner {
 public:
  Result<std::unique_ptr<AnySession>> make_session(
      const LoadedModel& model, std::shared_ptr<const AnyScorer> scorer,
      std::shared_ptr<const ChunkAdapter> maybe_adapter, const SessionOptions& options,
      ThreadPool& pool) const override {
    using Typed = TypedSession<KvType>;
    auto session =
        Typed::Inner::create(*model.maybe_backbone, std::move(scorer), std::move(maybe_adapter),
                             bytes_of(model.tokenizer), options, pool);
    if (!session.ok()) return session.status();
    return std::unique_ptr<AnySession>(std::make_unique<Typed>(std::move(session).value()));
  }

  Result<std::shared_ptr<const AnyScorer>> make_oracle_scorer(
      const LoadedModel& model, std::span<const std::int32_t> ids, const ChunkOptions& chunk,
      MassRows rows, const Progress& progress, ThreadPool& pool) const override {
    return chunkllm::make_oracle_scorer<KvType>(*model.maybe_backbone, ids,
                                                bytes_of(model.tokenizer), chunk, rows,
                                                /*prompt_len=*/0, progress, pool);
  }

  Result<TextChunks> chunks_by_adapter(const LoadedModel& model,
                                       const std::shared_ptr<const ChunkAdapter>& adapter,
                                       std::shared_ptr<const AnyScorer> scorer,
                                       const SessionOptions& options,
                                       std::span<const std::int32_t> ids, const Progress& progress,
                                       ThreadPool& pool) const override {
    return chunkllm::chunks_by_adapter<KvType>(*model.maybe_backbone, adapter, std::move(scorer),
                                               options, ids, progress, pool);
  }

  Status evaluate(const LoadedModel& model, std::shared_ptr<const ChunkAdapter> maybe_adapter,
                  const EvaluateOptions& options, std::span<const EvaluateText> texts,
                  const OnRow& on_row, const OnProgress& on_progress,
                  ThreadPool& pool) const override {
    Evaluator<DecoderBackbone, KvType> evaluator(*model.maybe_backbone, model.tokenizer,
                                                 std::move(maybe_adapter), options, pool);
    return evaluator.run(texts, on_row, on_progress);
  }

 private:
  static auto bytes_of(const BpeTokenizer& tokenizer) {
    return [&tokenizer](std::int32_t id) { return tokenizer.token_bytes(id); };
  }
};

}  // namespace chunkllm::cli
