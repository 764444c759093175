// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "device_runner.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/cuda/device_session.hpp"
#include "chunkllm/cuda/device_teacher.hpp"
#include "chunkllm/eval/evaluate.hpp"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "device_evaluation.hpp"

// What nvcc compiles for, such as "800,900".
#define CHUNKLLM_CLI_TEXT_OF(...) #__VA_ARGS__
#define CHUNKLLM_CLI_TEXT(...) CHUNKLLM_CLI_TEXT_OF(__VA_ARGS__)
#define CHUNKLLM_CLI_BUILT_FOR CHUNKLLM_CLI_TEXT(__CUDA_ARCH_LIST__)

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
      const LoadedModel& model, std::shared_ptr<const AnyScorer> scorer,
      std::shared_ptr<const ChunkAdapter> maybe_adapter, const SessionOptions& options,
      ThreadPool& /*pool*/) const override {
    return make_session(*scorer, maybe_adapter.get(), bytes_of(model.tokenizer), options);
  }

  Result<Teach> make_teacher(std::int64_t max_tokens, std::int64_t input_budget) const override {
    cuda::DeviceTeacherLimits limits;
    limits.max_tokens = static_cast<std::int32_t>(max_tokens);
    // Sentences of prose have 25 tokens and more; lines of code and verse may have 6.
    limits.max_chunks = limits.max_triggers = static_cast<std::int32_t>(max_tokens / 6);
    CHUNKLLM_ASSIGN_OR_RETURN(auto teacher, cuda::DeviceTeacher<T>::create(backbone_, limits));
    const auto shared = std::make_shared<cuda::DeviceTeacher<T>>(std::move(teacher));
    return Teach([shared, input_budget](std::span<const std::int32_t> ids,
                                        std::span<const std::int64_t> chunk_ends,
                                        std::span<const std::int64_t> triggers) {
      return shared->collect(ids, chunk_ends, triggers, ChunkOptions{}, KeyPooling::kMean,
                             input_budget);
    });
  }

  Status evaluate(const LoadedModel& model, std::shared_ptr<const ChunkAdapter> maybe_adapter,
                  const EvaluateOptions& options, std::span<const EvaluateText> texts,
                  const OnRow& on_row, const OnProgress& on_progress,
                  ThreadPool& pool) const override {
    const EvaluatedModel evaluated(model.maybe_backbone.get(), *this);
    Evaluator<EvaluatedModel, Host, EvaluatedSession> evaluator(
        evaluated, model.tokenizer, std::move(maybe_adapter), options, pool);
    return evaluator.run(texts, on_row, on_progress);
  }

 private:
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
    if (scorer.template get_if<RecentScorer>() != nullptr) {
      return Result<cuda::DeviceScorer<T>>(cuda::DeviceScorer<T>::recent(config()));
    }
    return unsupported("--device cuda: a scorer without kernels, expected " +
                       std::string(kDeviceScorers));
  }

  cuda::DeviceBackbone<T> backbone_;
};

template <typename T, typename Host>
Result<std::unique_ptr<const DeviceRunner>> make_runner(Result<cuda::DeviceBackbone<T>> backbone) {
  if (!backbone.ok()) return backbone.status();
  return std::unique_ptr<const DeviceRunner>(
      std::make_unique<TypedDeviceRunner<T, Host>>(std::move(backbone).value()));
}

/// What can be told before weights are loaded.
Status check_shapes(const BackboneConfig& config, KvKind kv) {
  CHUNKLLM_RETURN_IF_ERROR(check_cuda());
  if (kv == KvKind::kF32) {
    return unsupported("--kv f32: on the device weights, keys and values are f16 or bf16");
  }
  // The same for both types.
  CHUNKLLM_RETURN_IF_ERROR(cuda::DeviceBackbone<__half>::check_shapes(config));
  return cuda::DecodeStep<__half>::check_shapes(config);
}

template <typename T>
Result<cuda::DeviceBackbone<T>> random_backbone(const BackboneConfig& config) {
  CHUNKLLM_ASSIGN_OR_RETURN(auto weights, cuda::DeviceWeights<T>::random(config, /*seed=*/1));
  return cuda::DeviceBackbone<T>::create(std::move(weights));
}

}  // namespace

Status check_cuda() {
  int count = 0;
  const Status counted = cuda::cuda_status(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (!counted.ok() || count == 0) {
    return unsupported("--device cuda: no CUDA GPU was found (" +
                       (counted.ok() ? "none installed" : counted.message()) + "), expected cpu");
  }
  cudaFuncAttributes attributes = {};
  const Status has_code = cuda::cuda_status(
      cudaFuncGetAttributes(&attributes, kernels::embed_tokens_kernel<__half>), "device code");
  if (has_code.ok()) return {};
  CHUNKLLM_ASSIGN_OR_RETURN(const int major,
                            cuda::device_attribute(cudaDevAttrComputeCapabilityMajor));
  CHUNKLLM_ASSIGN_OR_RETURN(const int minor,
                            cuda::device_attribute(cudaDevAttrComputeCapabilityMinor));
  return unsupported("--device cuda: the GPU is of compute capability " + std::to_string(major) +
                     "." + std::to_string(minor) +
                     ", this build has device code for " CHUNKLLM_CLI_BUILT_FOR
                     " (compute capability times 100): expected a build whose "
                     "CHUNKLLM_CUDA_ARCHITECTURES names it; " +
                     has_code.message());
}

Result<DeviceFacts> device_facts() {
  CHUNKLLM_RETURN_IF_ERROR(check_cuda());
  int device = 0;
  cudaDeviceProp properties = {};
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  CHUNKLLM_RETURN_IF_ERROR(cuda::cuda_status(cudaGetDevice(&device), "cudaGetDevice"));
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaMemGetInfo(&free_bytes, &all_bytes), "cudaMemGetInfo"));
  return DeviceFacts{properties.name, static_cast<std::int64_t>(free_bytes)};
}

Result<std::unique_ptr<const DeviceRunner>> load_device_runner(const ModelFiles& files, KvKind kv,
                                                               ThreadPool& pool,
                                                               const LoadProgress& progress) {
  CHUNKLLM_RETURN_IF_ERROR(check_shapes(files.config(), kv));
  if (kv == KvKind::kBF16) {
    return make_runner<__nv_bfloat16, BF16>(
        cuda::DeviceBackbone<__nv_bfloat16>::load(files, pool, progress));
  }
  return make_runner<__half, F16>(cuda::DeviceBackbone<__half>::load(files, pool, progress));
}

Result<std::unique_ptr<const DeviceRunner>> random_device_runner(const BackboneConfig& shape,
                                                                 KvKind kv) {
  CHUNKLLM_RETURN_IF_ERROR(check_shapes(shape, kv));
  if (kv == KvKind::kBF16) {
    return make_runner<__nv_bfloat16, BF16>(random_backbone<__nv_bfloat16>(shape));
  }
  return make_runner<__half, F16>(random_backbone<__half>(shape));
}

}  // namespace chunkllm::cli
