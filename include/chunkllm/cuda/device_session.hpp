// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/boundary_journal.hpp"
#include "chunkllm/chunk/chunk_state_shape.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/cuda/decode_step.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/prefill_block.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/infer/session.hpp"

namespace chunkllm::cuda {

/// One sequence on a backbone in device memory: `Session` for the GPU, with the same members and
/// the same rules. Weights, keys, values and chunk keys are T; the residual stream, scores and
/// logits f32.
///
/// Chunks end by the sentence rules, which run on the host: it gives each block its boundaries and
/// each decode step one flag, and reads the logits back to sample. `DecodeStep` alone needs no
/// host.
///
/// Differences from `Session`: `reserve` must come first and cannot grow; `rollback` goes back to
/// the end of the last prompt only; a second look with QK Adapters begins at a chunk's first token.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
class DeviceSession {
 public:
  /// Bytes of a token, for the sentence rules.
  using TokenBytes = std::function<std::string_view(std::int32_t)>;
  using Progress = std::function<bool(std::int64_t)>;
  using HiddenRows = std::function<void(std::int64_t first_token, MatrixView<const float> hidden)>;

  /// The backbone must outlive the session.
  ///
  /// Errors: kInvalidArgument as `validate(ChunkOptions)` says; those of streams and cuBLAS.
  static Result<std::unique_ptr<DeviceSession>> create(const DeviceBackbone<T>& backbone,
                                                       DeviceScorer<T> scorer,
                                                       TokenBytes token_bytes,
                                                       const SessionOptions& options) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options.chunk));
    std::unique_ptr<DeviceSession> session(
        new DeviceSession(backbone, std::move(scorer), std::move(token_bytes), options));
    CHUNKLLM_ASSIGN_OR_RETURN(session->stream_, Stream::create());
    CHUNKLLM_ASSIGN_OR_RETURN(session->cublas_, CublasHandle::create(session->stream_.get()));
    return Result<std::unique_ptr<DeviceSession>>(std::move(session));
  }
  DeviceSession(const DeviceSession&) = delete;
  DeviceSession& operator=(const DeviceSession&) = delete;

  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] const AttendedStats& attended() const { return attended_; }
  [[nodiscard]] const ChunkCounters& counters() const { return journal_.counters(); }
  [[nodiscard]] const ChunkTable& table() const { return journal_.table(); }
  [[nodiscard]] std::int64_t kv_bytes_per_token() const {
    return config().num_layers * 2 * config().kv_size() * static_cast<std::int64_t>(sizeof(T));
  }
  [[nodiscard]] std::int64_t kv_resident_bytes() const {
    return num_tokens_ * kv_bytes_per_token();
  }
  [[nodiscard]] SessionMemory memory() const {
    SessionMemory memory;
    memory.weights = static_cast<std::int64_t>(backbone_->weight_bytes());
    if (batch_) {
      memory.kv = batch_->kv_bytes();
      memory.chunk_keys = batch_->chunk_bytes();
    }
    return memory;
  }
  /// Starts to count `attended()` anew, for tokens from `first_token` on.
  void count_attended_from(std::int64_t first_token) {
    attended_ = {};
    count_from_ = first_token;
  }

  /// Allocates memory for that many tokens, once. Errors: kInvalidArgument where it was done with
  /// less room; kResourceExhausted.
  Status reserve(std::int64_t num_tokens) {
    if (batch_) {
      if (num_tokens <= batch_->options().max_tokens) return {};
      return invalid_argument("the session has room for " +
                              std::to_string(batch_->options().max_tokens) + " tokens, not for " +
                              std::to_string(num_tokens));
    }
    DeviceBatchOptions options;
    options.max_tokens = static_cast<std::int32_t>(std::clamp<std::int64_t>(num_tokens, 1, kMost));
    options.dense = options_.dense;
    options.positions = options_.positions;
    options.chunk = options_.chunk;
    const cudaStream_t stream = stream_.get();
    CHUNKLLM_ASSIGN_OR_RETURN(auto batch,
                              DeviceBatch<T>::create(config(), scorer_, options, stream));
    batch_.emplace(std::move(batch));
    CHUNKLLM_ASSIGN_OR_RETURN(
        auto step, DecodeStep<T>::create(*backbone_, scorer_,
                                         /*maybe_adapter=*/nullptr, *batch_, cublas_, stream));
    step_.emplace(std::move(step));
    const auto rows = static_cast<std::int32_t>(
        std::min<std::int64_t>(std::max(options_.block_len, kBlockRows), options.max_tokens));
    CHUNKLLM_ASSIGN_OR_RETURN(auto block, PrefillBlock<T>::create(*backbone_, scorer_, *batch_,
                                                                  *step_, cublas_, rows, stream));
    block_.emplace(std::move(block));
    const std::uint8_t one = 1;
    CHUNKLLM_RETURN_IF_ERROR(put(step_->active(), &one, 1));
    logits_.resize(static_cast<std::size_t>(config().vocab_size));
    return {};
  }

  /// As `Session::prefill`.
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress = {}) {
    return read_rows(tokens, options_.dense_prefill ? ReadMode::kDense : ReadMode::kLayerLocal,
                     /*is_prompt=*/true, progress, {});
  }

  /// As `Session::finish_prompt`.
  Result<std::span<const float>> finish_prompt() {
    if (turn_.empty()) return invalid_argument("the prompt has no token");
    if (!has_last_row_) return invalid_argument("no token was read since the rollback");
    if (!options_.dense) CHUNKLLM_RETURN_IF_ERROR(end_prompt());
    turn_.clear();
    CHUNKLLM_RETURN_IF_ERROR(remember_prompt_end());
    return head_of(last_hidden_);
  }

  /// As `Session::step`.
  Result<std::span<const float>> step(std::int32_t token) {
    CHUNKLLM_RETURN_IF_ERROR(check_ids({&token, 1}));
    CHUNKLLM_RETURN_IF_ERROR(reserve(num_tokens_ + 1));
    const auto before = static_cast<std::int32_t>(num_tokens_);
    CHUNKLLM_RETURN_IF_ERROR(put(batch_->num_tokens(), &before, 1));
    CHUNKLLM_RETURN_IF_ERROR(put(step_->tokens(), &token, 1));
    bool triggers = false;
    if (!options_.dense) {
      journal_.on_token(token_bytes_(token));
      const std::uint8_t wanted = journal_.wanted(num_tokens_) ? 1 : 0;
      CHUNKLLM_RETURN_IF_ERROR(put(step_->wanted(), &wanted, 1));
      triggers = decide(num_tokens_);
    }
    CHUNKLLM_RETURN_IF_ERROR(step_->replay(stream_.get()));
    CHUNKLLM_RETURN_IF_ERROR(get(logits_.data(), step_->logits(), logits_.size()));
    const bool by_layer = options_.chunk.selection == Selection::kLayer;
    if (!by_layer) CHUNKLLM_RETURN_IF_ERROR(count_step());  // the new set acts behind the token
    if (triggers && !options_.dense) CHUNKLLM_RETURN_IF_ERROR(load_set_sizes());
    if (by_layer) CHUNKLLM_RETURN_IF_ERROR(count_step());
    ++num_tokens_;
    has_last_row_ = true;
    layer_sets_are_stale_ = true;
    turn_.clear();
    return std::span<const float>(logits_);
  }

  /// As `Session::read`.
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const HiddenRows& hidden_rows) {
    return read_rows(tokens, mode, /*is_prompt=*/false, progress, hidden_rows);
  }

  /// Forgets the tokens behind the last prompt's end. Errors: kOutOfRange for any other place.
  Status rollback(std::int64_t num_tokens);

  /// Logits of rows of final hidden states that lie on the host, [rows, vocab_size].
  Status logits(MatrixView<const float> hidden, MatrixView<float> logits);

 private:
  static constexpr std::int64_t kMost = std::int64_t{1} << 24;
  /// Rows a block: enough for matrix products at full speed, and few enough for scratch memory.
  static constexpr std::int64_t kBlockRows = 2048;

  /// Sizes of a set as the host keeps them, for `attended()`.
  struct SetSize {
    std::int32_t num_span_tokens = 0;
    std::int32_t tail_begin = 0;
  };
  /// What decoding changes, as it was at the last prompt's end.
  struct PromptEnd {
    std::int64_t num_tokens = -1;
    SelectionMemory memory;
    std::vector<SetSize> set_sizes;
  };

  DeviceSession(const DeviceBackbone<T>& backbone, DeviceScorer<T> scorer, TokenBytes token_bytes,
                const SessionOptions& options)
      : backbone_(&backbone),
        scorer_(std::move(scorer)),
        token_bytes_(std::move(token_bytes)),
        options_(options),
        journal_(options.chunk.guards),
        set_sizes_(static_cast<std::size_t>(backbone.config().num_layers)) {}

  template <typename Value>
  Status put(Value* to, const Value* from, std::size_t count) const {
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(to, from, count * sizeof(Value), cudaMemcpyHostToDevice, stream_.get()),
        "copy to the device"));
    return stream_.synchronize();
  }
  template <typename Value>
  Status get(Value* to, const Value* from, std::size_t count) const {
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(to, from, count * sizeof(Value), cudaMemcpyDeviceToHost, stream_.get()),
        "copy from the device"));
    return stream_.synchronize();
  }

  [[nodiscard]] Status check_ids(std::span<const std::int32_t> tokens) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= 0 && tokens[i] < config().vocab_size) continue;
      return invalid_argument("token " + std::to_string(i) + " has id " +
                              std::to_string(tokens[i]) + ", expected 0 to " +
                              std::to_string(config().vocab_size - 1));
    }
    return {};
  }

  /// Closes the open chunk behind `token` where rules and guards say so. True at a trigger.
  bool decide(std::int64_t token) {
    const bool boundary = journal_.decide(token, journal_.wanted(token));
    const RefreshPolicy& refresh = options_.chunk.refresh;
    const bool triggers =
        (boundary && refresh.kind == RefreshPolicy::Kind::kBoundary) || refresh.triggers_at(token);
    if (triggers) {
      journal_.count_refresh();
      last_trigger_ = token;
    }
    journal_.note_counters(token);
    return triggers;
  }
  /// Whether a budget of tokens holds all up to `token`, so that nothing is to be chosen there.
  [[nodiscard]] bool everything_fits(std::int64_t token) const {
    const Budget& budget = options_.chunk.budget;
    return budget.kind != Budget::Kind::kChunks && budget.tokens_at(token + 1) >= token + 1;
  }

  Status read_rows(std::span<const std::int32_t> tokens, ReadMode mode, bool is_prompt,
                   const Progress& progress, const HiddenRows& hidden_rows);
  Status run_block(std::span<const std::int32_t> tokens, TokenBlockPlan plan,
                   std::int64_t first_chunk);
  Status end_prompt();
  Status look_again(std::int64_t rows);
  Status restart_sums(std::int64_t chunk_begin, std::int64_t first);
  Status refresh_shared();
  Status spread_shared_sets();
  Status load_set_sizes();
  Status count_step();
  void count_rows(std::int64_t first, std::int64_t rows, std::int64_t layer, const SetSize& set);
  Status remember_prompt_end();
  Result<std::span<const float>> head_of(const float* device_row);

  const DeviceBackbone<T>* backbone_;
  DeviceScorer<T> scorer_;
  TokenBytes token_bytes_;
  SessionOptions options_;
  Stream stream_;
  CublasHandle cublas_;
  std::optional<DeviceBatch<T>> batch_;  // the next two point into those before them
  std::optional<DecodeStep<T>> step_;
  std::optional<PrefillBlock<T>> block_;
  DeviceBuffer<float> head_rows_;  // hidden rows and logits of `logits`
  DeviceBuffer<float> head_logits_;
  DeviceBuffer<std::byte> head_scratch_;

  BoundaryJournal journal_;
  std::int64_t num_tokens_ = 0;
  std::int64_t last_trigger_ = -1;
  bool has_last_row_ = false;
  bool layer_sets_are_stale_ = false;   // the shared set was chosen after the layers' own
  const float* last_hidden_ = nullptr;  // on the device: final row of the last token read
  std::vector<std::int32_t> turn_;      // tokens of the prompt in progress
  std::vector<float> logits_;
  std::vector<float> host_hidden_;
  std::vector<SetSize> set_sizes_;  // [num_layers] of the sets in force
  AttendedStats attended_;
  std::int64_t count_from_ = 0;
  PromptEnd prompt_end_;
};

}  // namespace chunkllm::cuda

#include "chunkllm/cuda/device_session_reading.hpp"
