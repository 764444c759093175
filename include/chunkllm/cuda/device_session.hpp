// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/boundary_journal.hpp"
#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
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
/// Where no Chunk Adapter is given, chunks end by the sentence rules, which run on the host: it
/// gives each block its boundaries and each decode step one flag. The logits are read back to
/// sample. `DecodeStep` alone needs no host.
///
/// Differences from `Session`:
///   - room is made once, by `reserve` or for the first tokens read, and cannot grow
///   - but for dense sessions `rollback` goes back to the end of the last prompt only
///   - `finish_prompt` must follow a block, not a step
///   - a second look with QK Adapters that pool means begins at a chunk's first token
///   - layers with sets of their own, and a Chunk Adapter, are refreshed at boundaries only
///   - the oracle, min-max-key and random scorers are missing
///   - `counters().nan_scores` stays 0: NaN scores are ranked last, as on the CPU, but not counted
///   - it cannot be copied, and attention cannot be observed
///   - it belongs to the device that was current when it was made: calls with another one current
///     are kInvalidArgument
///   - an error in the midst of work, as of the device, leaves tokens read in part. The session has
///     failed then: every later call returns that error. Wrong arguments and kInterrupted do not
///     count; nothing has changed then, or whole blocks are read
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
  /// \param maybe_adapter  finds the boundaries; null: the sentence rules do
  /// Errors: kInvalidArgument as `validate(ChunkOptions)` says, for a block below 1 token or an
  ///         adapter of another hidden size; kUnsupported for a Chunk Adapter with another refresh
  ///         than at boundaries; those of streams and cuBLAS.
  static Result<std::unique_ptr<DeviceSession>> create(
      const DeviceBackbone<T>& backbone, DeviceScorer<T> scorer, TokenBytes token_bytes,
      const SessionOptions& options, const ChunkAdapter* maybe_adapter = nullptr) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options.chunk));
    if (options.block_len < 1) {
      return invalid_argument("block_len is " + std::to_string(options.block_len) +
                              ", expected at least 1");
    }
    std::unique_ptr<DeviceSession> session(
        new DeviceSession(backbone, std::move(scorer), std::move(token_bytes), options));
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&session->device_), "cudaGetDevice"));
    CHUNKLLM_ASSIGN_OR_RETURN(session->stream_, Stream::create());
    CHUNKLLM_ASSIGN_OR_RETURN(session->cublas_, CublasHandle::create(session->stream_.get()));
    if (maybe_adapter != nullptr) CHUNKLLM_RETURN_IF_ERROR(session->take(*maybe_adapter));
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
  /// Of the device, but for what the CUDA context and cuBLAS keep to themselves.
  [[nodiscard]] SessionMemory memory() const {
    SessionMemory memory;
    memory.weights = static_cast<std::int64_t>(backbone_->weight_bytes());
    memory.workspace = static_cast<std::int64_t>(cublas_.workspace_bytes() + look_tail_.bytes() +
                                                 prompt_end_.memory.bytes() + head_rows_.bytes() +
                                                 head_logits_.bytes() + head_scratch_.bytes());
    if (batch_) {
      memory.kv = batch_->kv_bytes();
      memory.chunk_keys = batch_->chunk_bytes();
      memory.workspace += batch_->other_bytes();
    }
    if (step_) memory.workspace += static_cast<std::int64_t>(step_->bytes());
    if (block_) memory.workspace += static_cast<std::int64_t>(block_->bytes());
    return memory;
  }
  /// What the next token attends in `layer`: sorted, merged [begin, end), as
  /// `ChunkState::segments`. Waits for the device; for tests and for looking on.
  Result<std::vector<TokenSpan>> segments(std::int64_t layer) const;
  /// Starts to count `attended()` anew, for tokens from `first_token` on.
  void count_attended_from(std::int64_t first_token) {
    attended_ = {};
    count_from_ = first_token;
  }

  /// Allocates memory for that many tokens, once. Errors: kInvalidArgument where it was done with
  /// less room, or for more than 2^24 tokens; kResourceExhausted; kUnsupported for settings that
  /// the device has no kernels for.
  Status reserve(std::int64_t num_tokens) {
    CHUNKLLM_RETURN_IF_ERROR(check_usable());
    if (block_) {
      if (num_tokens <= batch_->options().max_tokens) return {};
      return invalid_argument("the session has room for " +
                              std::to_string(batch_->options().max_tokens) + " tokens, not for " +
                              std::to_string(num_tokens));
    }
    const Status status = allocate(num_tokens);
    if (status.ok()) return {};
    block_.reset();  // all or nothing
    step_.reset();
    batch_.reset();
    prompt_end_.memory = {};
    if (status.code() != StatusCode::kResourceExhausted) return status;
    return status.with_context("the device has no room for " + std::to_string(num_tokens) +
                               " tokens, expected fewer");
  }

  /// As `Session::prefill`.
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress = {}) {
    return read_rows(tokens, options_.dense_prefill ? ReadMode::kDense : ReadMode::kLayerLocal,
                     /*is_prompt=*/true, progress, {});
  }

  /// As `Session::finish_prompt`.
  Result<std::span<const float>> finish_prompt() {
    CHUNKLLM_RETURN_IF_ERROR(check_usable());
    if (turn_tokens_ == 0) return invalid_argument("the prompt has no token");
    if (last_row_ == LastRow::kNone) {
      return invalid_argument("no token was read since the rollback");
    }
    if (last_row_ == LastRow::kOfStep) {
      return invalid_argument(
          "the last token was decoded: on the device a prompt ends with a "
          "token that was read by prefill");
    }
    return kept(end_turn());
  }

  /// As `Session::step`.
  Result<std::span<const float>> step(std::int32_t token) {
    CHUNKLLM_RETURN_IF_ERROR(check_usable());
    CHUNKLLM_RETURN_IF_ERROR(check_ids({&token, 1}));
    CHUNKLLM_RETURN_IF_ERROR(reserve(num_tokens_ + 1));
    return kept(run_step(token));
  }

  /// As `Session::read`.
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const HiddenRows& hidden_rows) {
    return read_rows(tokens, mode, /*is_prompt=*/false, progress, hidden_rows);
  }

  /// Forgets the tokens behind the last prompt's end. Errors: kOutOfRange for any other place, but
  /// in a dense session for a place ahead only.
  Status rollback(std::int64_t num_tokens) {
    CHUNKLLM_RETURN_IF_ERROR(check_usable());
    if (num_tokens == num_tokens_) return {};
    CHUNKLLM_RETURN_IF_ERROR(check_rollback(num_tokens));
    return kept(go_back_to(num_tokens));
  }

  /// Logits of rows of final hidden states that lie on the host, [rows, vocab_size].
  Status logits(MatrixView<const float> hidden, MatrixView<float> logits);

 private:
  /// Rows a block: enough for matrix products at full speed, and few enough for scratch memory.
  static constexpr std::int64_t kBlockRows = 2048;
  /// The same where a shared set and a Chunk Adapter cut blocks anyway: one round of the first
  /// layer.
  static constexpr std::int64_t kCutBlockRows = 32;

  /// Who made the final row of the last token, and left its queries behind.
  enum class LastRow : std::uint8_t { kNone, kOfBlock, kOfStep };

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

  /// Errors: that of a call that failed before; kInvalidArgument where another device is current.
  [[nodiscard]] Status check_usable() const {
    CHUNKLLM_RETURN_IF_ERROR(failure_);
    int device = 0;
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "cudaGetDevice"));
    if (device == device_) return {};
    return invalid_argument("the session is of device " + std::to_string(device_) +
                            ", but device " + std::to_string(device) +
                            " is current: expected cudaSetDevice(" + std::to_string(device_) + ")");
  }
  /// The same status, noted where work has begun and failed.
  Status kept(const Status& status) {
    if (!status.ok() && status.code() != StatusCode::kInterrupted) failure_ = status;
    return status;
  }
  template <typename Value>
  Result<Value> kept(Result<Value> result) {
    static_cast<void>(kept(result.status()));
    return result;
  }

  Status take(const ChunkAdapter& adapter) {
    if (static_cast<std::int64_t>(adapter.weight.size()) != config().hidden_size) {
      return invalid_argument("the Chunk Adapter has " + std::to_string(adapter.weight.size()) +
                              " weights, expected the hidden size " +
                              std::to_string(config().hidden_size));
    }
    if (options_.chunk.refresh.kind != RefreshPolicy::Kind::kBoundary) {
      return unsupported(
          "on the device, boundaries of a Chunk Adapter with refreshes every or stride: expected "
          "--refresh boundary");
    }
    adapter_.emplace();
    adapter_->bias = adapter.bias;
    adapter_->threshold = adapter.threshold;
    CHUNKLLM_ASSIGN_OR_RETURN(
        adapter_->weight,
        DeviceBuffer<float>::from(std::span<const float>(adapter.weight), stream_.get()));
    return {};
  }

  Status allocate(std::int64_t num_tokens) {
    constexpr std::int64_t kMost = std::int64_t{1} << 24;
    if (num_tokens > kMost) {
      return invalid_argument("room for " + std::to_string(num_tokens) +
                              " tokens, the device takes at most " + std::to_string(kMost));
    }
    DeviceBatchOptions options;
    options.max_tokens = static_cast<std::int32_t>(std::max<std::int64_t>(num_tokens, 1));
    options.dense = options_.dense;
    options.positions = options_.positions;
    options.chunk = options_.chunk;
    const cudaStream_t stream = stream_.get();
    CHUNKLLM_ASSIGN_OR_RETURN(options.maybe_rope,
                              backbone_->rope_table(options.max_tokens, stream));
    CHUNKLLM_ASSIGN_OR_RETURN(auto batch,
                              DeviceBatch<T>::create(config(), scorer_, options, stream));
    batch_.emplace(std::move(batch));
    CHUNKLLM_ASSIGN_OR_RETURN(
        auto step, DecodeStep<T>::create(*backbone_, scorer_, adapter_ ? &*adapter_ : nullptr,
                                         *batch_, cublas_, stream));
    step_.emplace(std::move(step));
    const auto rows = static_cast<std::int32_t>(
        std::min<std::int64_t>(std::max(options_.block_len, kBlockRows), options.max_tokens));
    const auto layers = static_cast<std::size_t>(config().num_layers);
    CHUNKLLM_ASSIGN_OR_RETURN(
        logits_, PinnedBuffer<float>::create(static_cast<std::size_t>(config().vocab_size)));
    CHUNKLLM_ASSIGN_OR_RETURN(step_in_, PinnedBuffer<StepIn>::create(1));
    CHUNKLLM_ASSIGN_OR_RETURN(step_out_, PinnedBuffer<std::int32_t>::create(2 * layers + 1));
    CHUNKLLM_ASSIGN_OR_RETURN(look_tail_, DeviceBuffer<std::int32_t>::create(1));
    if (!options_.dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(prompt_end_.memory, batch_->make_selection_memory());
    }
    const std::uint8_t one = 1;
    CHUNKLLM_RETURN_IF_ERROR(put(step_->active(), &one, 1));
    CHUNKLLM_ASSIGN_OR_RETURN(auto block, PrefillBlock<T>::create(*backbone_, scorer_, *batch_,
                                                                  *step_, cublas_, rows, stream));
    block_.emplace(std::move(block));
    return {};
  }

  /// What a step reads, laid out as `DecodeStep::tokens` and `wanted` are.
  struct StepIn {
    std::int32_t token = 0;
    std::uint8_t wanted = 0;
  };
  static constexpr std::size_t kStepInBytes = sizeof(std::int32_t) + sizeof(std::uint8_t);

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

  /// Closes the open chunk behind `token` where the verdict and the guards say so. True at a
  /// trigger.
  bool decide(std::int64_t token, bool wants) {
    const bool boundary = journal_.decide(token, wants);
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
  /// Whether a budget of tokens holds all up to `token`, and so held all before, so that nothing is
  /// to be chosen there.
  [[nodiscard]] bool everything_fits(std::int64_t token) const {
    const Budget& budget = options_.chunk.budget;
    return budget.kind != Budget::Kind::kChunks && budget.tokens_at(token + 1) >= token + 1;
  }
  [[nodiscard]] bool selects_by_layer() const {
    return options_.chunk.selection == Selection::kLayer;
  }
  [[nodiscard]] bool finds_boundaries() const { return adapter_.has_value(); }

  Status read_rows(std::span<const std::int32_t> tokens, ReadMode mode, bool is_prompt,
                   const Progress& progress, const HiddenRows& hidden_rows);
  Status read_blocks(std::span<const std::int32_t> tokens, ReadMode mode, bool is_prompt,
                     const Progress& progress, const HiddenRows& hidden_rows);
  Result<std::span<const float>> run_step(std::int32_t token);
  Status run_found_block(TokenBlockPlan& plan, bool chooses);
  void decide_by_rules(TokenBlockPlan& plan, bool cuts);
  std::span<const std::int32_t> ends_from(std::int64_t first_chunk);
  Status count_block(const TokenBlockPlan& plan);
  Status show_rows(const TokenBlockPlan& plan, const HiddenRows& hidden_rows);
  void note_read(std::span<const std::int32_t> tokens);
  Result<std::span<const float>> end_turn();
  Status end_prompt();
  Status look_again(std::int64_t rows);
  Status look_at(std::int64_t first, std::int64_t rows);
  Status count_look(std::int64_t first);
  Status restart_sums(std::int64_t chunk_begin, std::int64_t first);
  Status refresh_at_last_token();
  Status fetch_set_sizes(const DeviceBuffer<std::int32_t>& sizes);
  [[nodiscard]] SetSize fetched_set_size(std::int64_t layer) const;
  void count_step();
  void count_rows(std::int64_t first, std::int64_t rows, std::int64_t layer, const SetSize& set);
  Status remember_prompt_end();
  [[nodiscard]] Status check_rollback(std::int64_t num_tokens) const;
  Status go_back_to(std::int64_t num_tokens);
  Result<std::span<const float>> head_of(const float* device_row);

  const DeviceBackbone<T>* backbone_;
  DeviceScorer<T> scorer_;
  TokenBytes token_bytes_;
  SessionOptions options_;
  int device_ = 0;
  Status failure_;  // of the first call that failed in the midst of work
  Stream stream_;
  CublasHandle cublas_;
  std::optional<DeviceChunkAdapter> adapter_;
  std::optional<DeviceBatch<T>> batch_;  // the next two point to those before them
  std::optional<DecodeStep<T>> step_;
  std::optional<PrefillBlock<T>> block_;  // not empty once there is room
  DeviceBuffer<std::int32_t> look_tail_;
  DeviceBuffer<float> head_rows_;  // hidden rows and logits of `logits`
  DeviceBuffer<float> head_logits_;
  DeviceBuffer<std::byte> head_scratch_;
  PinnedBuffer<float> logits_;
  PinnedBuffer<StepIn> step_in_;
  PinnedBuffer<std::int32_t> step_out_;  // [2, num_layers] sizes of sets, then a boundary flag

  BoundaryJournal journal_;
  std::int64_t num_tokens_ = 0;
  std::int64_t last_trigger_ = -1;
  LastRow last_row_ = LastRow::kNone;
  const float* last_hidden_ = nullptr;  // on the device: final row of the last block's last token
  std::vector<std::int32_t> ids_;       // of all tokens
  std::int64_t turn_tokens_ = 0;        // of the prompt in progress
  std::vector<std::int32_t> triggers_;  // of the block in progress
  std::vector<std::int32_t> ends_;      // of the chunks that end in it
  std::vector<float> host_hidden_;
  std::vector<SetSize> block_sizes_;
  std::vector<SetSize> set_sizes_;  // [num_layers] of the sets in force
  AttendedStats attended_;
  std::int64_t count_from_ = 0;
  PromptEnd prompt_end_;
};

}  // namespace chunkllm::cuda

#include "chunkllm/cuda/device_session_prompt.hpp"
#include "chunkllm/cuda/device_session_reading.hpp"
