// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "device_runner.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <limits>
#include <utility>

#include "chunkllm/cuda/backbone_shapes.hpp"
#include "chunkllm/cuda/device_session.hpp"
#include "chunkllm/eval/evaluate.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "device_evaluation.hpp"

namespace chunkllm::cli {
namespace {

template <typename T>
class TypedDeviceSession final : public AnySession {
 public:
  using Inner = cuda::DeviceSession<T>;

  explicit TypedDeviceSession(std::unique_ptr<Inner> session) : session_(std::move(session)) {}

  void reserve(std::int64_t num_tokens) override { keep(session_->reserve(num_tokens)); }
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress) override {
    CHUNKLLM_RETURN_IF_ERROR(taken_failure());
    return session_->prefill(tokens, progress);
  }
  Result<std::span<const float>> finish_prompt() override { return session_->finish_prompt(); }
  Result<std::span<const float>> step(std::int32_t token) override {
    CHUNKLLM_RETURN_IF_ERROR(taken_failure());
    return session_->step(token);
  }
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const HiddenRows& hidden_rows) override {
    CHUNKLLM_RETURN_IF_ERROR(taken_failure());
    CHUNKLLM_RETURN_IF_ERROR(session_->read(tokens, mode, progress, hidden_rows));
    return taken_failure();  // of `logits`, on the rows shown
  }
  Status rollback(std::int64_t num_tokens) override { return session_->rollback(num_tokens); }
  void count_attended_from(std::int64_t first_token) override {
    session_->count_attended_from(first_token);
  }

  [[nodiscard]] std::int64_t num_tokens() const override { return session_->num_tokens(); }
  [[nodiscard]] const BackboneConfig& config() const override { return session_->config(); }
  void logits(MatrixView<const float> hidden, MatrixView<float> logits,
              ThreadPool& /*pool*/) const override {
    const Status status = session_->logits(hidden, logits);
    if (status.ok()) return;
    keep(status);
    for (std::int64_t r = 0; r < logits.rows; ++r) {
      std::fill_n(logits.row(r), logits.cols, std::numeric_limits<float>::quiet_NaN());
    }
  }
  [[nodiscard]] const AttendedStats& attended() const override { return session_->attended(); }
  [[nodiscard]] std::int64_t kv_bytes_per_token() const override {
    return session_->kv_bytes_per_token();
  }
  [[nodiscard]] std::int64_t kv_resident_bytes() const override {
    return session_->kv_resident_bytes();
  }
  [[nodiscard]] SessionMemory memory() const override { return session_->memory(); }
  [[nodiscard]] const ChunkCounters& counters() const override { return session_->counters(); }
  [[nodiscard]] std::int64_t num_chunks() const override { return session_->table().num_chunks(); }

 private:
  /// Keeps the first failure of a call that cannot return one, for the next that can.
  void keep(Status status) const {
    if (failure_.ok()) std::swap(failure_, status);
  }
  Status taken_failure() const { return std::exchange(failure_, Status()); }

  std::unique_ptr<Inner> session_;
  mutable Status failure_;
};

/// \tparam T    __half or __nv_bfloat16   \tparam Host  the same as the CPU calls it
template <typename T, typename Host>
class TypedDeviceRunner final : public DeviceRunner {
 public:
  explicit TypedDeviceRunner(cuda::DeviceBackbone<T> backbone) : backbone_(std::move(backbone)) {}

  [[nodiscard]] const BackboneConfig& config() const override { return backbone_.config(); }

  Result<std::unique_ptr<AnySession>> make_session(const AnyScorer& scorer,
                                                   const ChunkAdapter* maybe_adapter,
                                                   TokenBytes token_bytes,
                                                   const SessionOptions& options) const override {
    CHUNKLLM_ASSIGN_OR_RETURN(auto device_scorer, make_scorer(scorer, options));
    CHUNKLLM_ASSIGN_OR_RETURN(
        auto session,
        cuda::DeviceSession<T>::create(backbone_, std::move(device_scorer), std::move(token_bytes),
                                       options, options.dense ? nullptr : maybe_adapter));
    return std::unique_ptr<AnySession>(std::make_unique<TypedDeviceSession<T>>(std::move(session)));
  }

  Result<std::unique_ptr<AnySession>> make_session(
      const ModelBundle& model, std::shared_ptr<const AnyScorer> scorer,
      std::shared_ptr<const ChunkAdapter> maybe_adapter, const SessionOptions& options,
      ThreadPool& /*pool*/) const override {
    return make_session(*scorer, maybe_adapter.get(), bytes_of(model.tokenizer), options);
  }

  Result<std::shared_ptr<const AnyScorer>> make_oracle_scorer(
      const ModelBundle& model, std::span<const std::int32_t> ids, const ChunkOptions& chunk,
      MassRows rows, const Progress& progress, ThreadPool& pool) const override {
    return runner_of(kHostKind).make_oracle_scorer(model, ids, chunk, rows, progress, pool);
  }

  Result<TextChunks> chunks_by_adapter(const ModelBundle& model,
                                       const std::shared_ptr<const ChunkAdapter>& adapter,
                                       std::shared_ptr<const AnyScorer> scorer,
                                       const SessionOptions& options,
                                       std::span<const std::int32_t> ids, const Progress& progress,
                                       ThreadPool& pool) const override {
    return runner_of(kHostKind).chunks_by_adapter(model, adapter, std::move(scorer), options, ids,
                                                  progress, pool);
  }

  Status evaluate(const ModelBundle& model, std::shared_ptr<const ChunkAdapter> maybe_adapter,
                  const EvaluateOptions& options, std::span<const EvaluateText> texts,
                  const OnRow& on_row, const OnProgress& on_progress,
                  ThreadPool& pool) const override {
    const EvaluatedModel evaluated(model.backbone, *this);
    Evaluator<EvaluatedModel, Host, EvaluatedSession> evaluator(
        evaluated, model.tokenizer, std::move(maybe_adapter), options, pool);
    return evaluator.run(texts, on_row, on_progress);
  }

 private:
  static constexpr KvKind kHostKind = std::is_same_v<Host, F16> ? KvKind::kF16 : KvKind::kBF16;

  static TokenBytes bytes_of(const BpeTokenizer& tokenizer) {
    return [&tokenizer](std::int32_t id) { return tokenizer.token_bytes(id); };
  }

  Result<cuda::DeviceScorer<T>> make_scorer(const AnyScorer& scorer,
                                            const SessionOptions& options) const {
    if (const auto* adapter = scorer.template get_if<QkAdapter>()) {
      CHUNKLLM_ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::Stream::create());
      return cuda::DeviceScorer<T>::adapter(*adapter, stream.get());
    }
    if (options.dense || scorer.template get_if<MeanKeyScorer>() != nullptr) {
      return Result<cuda::DeviceScorer<T>>(cuda::DeviceScorer<T>::mean_key(config()));
    }
    return unsupported(
        "--device cuda: chunks are ranked by mean keys or QK Adapters there, expected --scorer "
        "mean-key or adapter");
  }

  cuda::DeviceBackbone<T> backbone_;
};

template <typename T, typename Host>
Result<std::unique_ptr<const DeviceRunner>> make_runner(Result<cuda::DeviceBackbone<T>> backbone) {
  if (!backbone.ok()) return backbone.status();
  return std::unique_ptr<const DeviceRunner>(
      std::make_unique<TypedDeviceRunner<T, Host>>(std::move(backbone).value()));
}

Status check_kind(KvKind kv) {
  if (kv != KvKind::kF32) return {};
  return unsupported("--kv f32: on the device weights, keys and values are f16 or bf16");
}

template <typename T>
Result<cuda::DeviceBackbone<T>> random_backbone(const BackboneConfig& config) {
  CHUNKLLM_ASSIGN_OR_RETURN(auto weights, cuda::DeviceWeights<T>::random(config, /*seed=*/1));
  return cuda::DeviceBackbone<T>::create(std::move(weights));
}

}  // namespace

Status check_cuda() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {};
  return unsupported(std::string("--device cuda: no CUDA GPU was found (") +
                     (error == cudaSuccess ? "none installed" : cudaGetErrorString(error)) +
                     "), expected cpu");
}

Result<std::unique_ptr<const DeviceRunner>> load_device_runner(const ModelFiles& files, KvKind kv,
                                                               ThreadPool& pool,
                                                               const LoadProgress& progress) {
  CHUNKLLM_RETURN_IF_ERROR(check_cuda());
  CHUNKLLM_RETURN_IF_ERROR(check_kind(kv));
  if (kv == KvKind::kBF16) {
    return make_runner<__nv_bfloat16, BF16>(
        cuda::DeviceBackbone<__nv_bfloat16>::load(files, pool, progress));
  }
  return make_runner<__half, F16>(cuda::DeviceBackbone<__half>::load(files, pool, progress));
}

Result<std::unique_ptr<const DeviceRunner>> random_device_runner(std::string_view shape,
                                                                 KvKind kv) {
  CHUNKLLM_RETURN_IF_ERROR(check_cuda());
  CHUNKLLM_RETURN_IF_ERROR(check_kind(kv));
  CHUNKLLM_ASSIGN_OR_RETURN(const BackboneConfig config, cuda::backbone_shape(shape));
  if (kv == KvKind::kBF16) {
    return make_runner<__nv_bfloat16, BF16>(random_backbone<__nv_bfloat16>(config));
  }
  return make_runner<__half, F16>(random_backbone<__half>(config));
}

}  // namespace chunkllm::cli
