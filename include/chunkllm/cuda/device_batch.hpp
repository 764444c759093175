// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_rope.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm::cuda {

/// Room and settings of a batch of sequences on the device.
struct DeviceBatchOptions {
  std::int32_t num_seqs = 1;
  std::int32_t max_tokens = 0;  ///< of each sequence
  std::int32_t max_chunks = 0;  ///< of each sequence; 0: as many as the shortest chunks could make
  bool dense = false;           ///< no chunk selection
  Positions positions = Positions::kOriginal;
  ChunkOptions chunk;
  /// Rotations of at least max_tokens positions: `DeviceBackbone::rope_table`; null: the batch
  /// makes its own.
  std::shared_ptr<const DeviceRopeTable> maybe_rope;
};

/// Sizes of an attended set, as the host keeps them for its statistics.
struct SetSize {
  std::int32_t num_span_tokens = 0;
  std::int32_t tail_begin = 0;

  friend bool operator==(const SetSize&, const SetSize&) = default;
};

/// What a batch's selection had come to at some point: see `DeviceBatch::save`.
struct SelectionMemory {
  DeviceBuffer<float> open_sums;
  DeviceBuffer<std::int32_t> span_tokens;
  DeviceBuffer<std::int32_t> set_sizes;

  [[nodiscard]] std::size_t bytes() const {
    return open_sums.bytes() + span_tokens.bytes() + set_sizes.bytes();
  }
};

/// Device memory of a batch of sequences: keys and values, chunk tables, chunk keys, attended sets.
/// Owns memory only; `DecodeStep` and `PrefillBlock` work on it.
///
/// \tparam T  __half or __nv_bfloat16: type of keys, values and chunk keys
template <typename T>
class DeviceBatch {
 public:
  /// Allocates everything, zeroed: sequences of no tokens that attend all of their past.
  ///
  /// Errors: kInvalidArgument for settings out of range; kResourceExhausted where the device has
  ///         no room, with the bytes that were asked for.
  static Result<DeviceBatch> create(const BackboneConfig& config, const DeviceScorer<T>& scorer,
                                    const DeviceBatchOptions& options, cudaStream_t stream) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options.chunk));
    if (!options.dense) CHUNKLLM_RETURN_IF_ERROR(scorer.check(config));
    if (options.num_seqs < 1 || options.max_tokens < 1 || options.max_tokens > kMaxTokens) {
      return invalid_argument("a batch of " + std::to_string(options.num_seqs) + " sequences of " +
                              std::to_string(options.max_tokens) + " tokens, expected at least 1 " +
                              "sequence of 1 to " + std::to_string(kMaxTokens) + " tokens");
    }
    if (options.maybe_rope != nullptr && options.maybe_rope->count() < options.max_tokens) {
      return invalid_argument("a RoPE table of " + std::to_string(options.maybe_rope->count()) +
                              " positions, expected at least " +
                              std::to_string(options.max_tokens));
    }
    DeviceBatch batch(config, options);
    const Status status = batch.allocate(config, scorer, stream);
    if (!status.ok()) return status.with_context("memory of the batch");
    return Result<DeviceBatch>(std::move(batch));
  }

  [[nodiscard]] const DeviceBatchOptions& options() const { return options_; }
  [[nodiscard]] std::int32_t num_seqs() const { return options_.num_seqs; }
  [[nodiscard]] std::int32_t max_chunks() const { return max_chunks_; }
  [[nodiscard]] std::int32_t span_capacity() const { return span_capacity_; }

  /// A layer's keys and values, [num_seqs, max_tokens, num_kv_heads, head_dim].
  [[nodiscard]] DeviceKvView<T> kv(std::int64_t layer) const {
    DeviceKvView<T> view;
    const std::int64_t size = std::int64_t{options_.max_tokens} * kv_size_;
    view.keys = keys_.data() + layer * options_.num_seqs * size;
    view.values = values_.data() + layer * options_.num_seqs * size;
    view.seq_stride = size;
    view.token_stride = kv_size_;
    view.head_stride = head_dim_;
    view.rotation = rotation(layer);
    return view;
  }
  /// Whether a layer's keys are stored as they come, to be turned by their rank when read.
  [[nodiscard]] Rotation rotation(std::int64_t layer) const {
    return positions(layer) == Positions::kInCache ? Rotation::kNone : Rotation::kAtTokenPosition;
  }
  /// Windowed layers never re-number: their window moves with the text.
  [[nodiscard]] Positions positions(std::int64_t layer) const {
    return is_windowed(layer) ? Positions::kOriginal : options_.positions;
  }
  /// Windowed layers attend their window and take no selection.
  [[nodiscard]] bool is_windowed(std::int64_t layer) const { return window(layer) > 0; }
  [[nodiscard]] std::int32_t window(std::int64_t layer) const {
    return windows_.empty() ? 0 : windows_[static_cast<std::size_t>(layer)];
  }

  [[nodiscard]] DeviceChunkTable table() const {
    return {ends_.data(), num_chunks_.data(), options_.num_seqs, max_chunks_};
  }
  /// [num_seqs] tokens so far.
  [[nodiscard]] std::int32_t* num_tokens() const { return num_tokens_.data(); }
  /// [num_seqs] tokens so far of the sequences that take part in the step in progress; 0: others.
  [[nodiscard]] std::int32_t* step_tokens() const { return step_tokens_.data(); }

  /// A layer's sets, one a sequence. Each layer has its own, equal ones where all share a set.
  [[nodiscard]] DeviceAttendedSets sets(std::int64_t layer) const {
    if (is_windowed(layer)) return everything();
    return set_rows(layer * options_.num_seqs, options_.num_seqs);
  }
  /// Where a set that all layers share is chosen: `launch_spread_sets` then gives it to the others.
  [[nodiscard]] DeviceAttendedSets shared_sets() const { return set_rows(0, options_.num_seqs); }
  /// The sets of all layers, windowed ones included, [num_layers * num_seqs].
  [[nodiscard]] DeviceAttendedSets all_sets() const {
    return set_rows(0, static_cast<std::int32_t>(num_layers_) * options_.num_seqs);
  }
  /// [2, num_layers, num_seqs] on the device: `num_span_tokens` of all sets, then `tail_begin`.
  [[nodiscard]] const DeviceBuffer<std::int32_t>& set_sizes() const { return set_sizes_; }
  /// Sets that hold all of the past, one a sequence.
  [[nodiscard]] DeviceAttendedSets everything() const {
    return {nullptr, zeros_.data(), zeros_.data(), options_.num_seqs, 0};
  }

  /// [num_layers, num_seqs, row_size] sums of the scorer's rows over the open chunks.
  [[nodiscard]] float* open_sums(std::int64_t layer) const {
    return open_sums_.data() + layer * options_.num_seqs * row_size_;
  }
  /// [num_layers, num_seqs, max_chunks, key_size].
  [[nodiscard]] T* chunk_keys(std::int64_t layer) const {
    return chunk_keys_.data() + layer * options_.num_seqs * max_chunks_ * key_size_;
  }
  [[nodiscard]] std::int64_t row_size() const { return row_size_; }
  [[nodiscard]] std::int64_t key_size() const { return key_size_; }
  [[nodiscard]] DeviceRope rope() const { return options_.maybe_rope->view(); }

  /// Room for what `save` copies. Errors: kResourceExhausted.
  [[nodiscard]] Result<SelectionMemory> make_selection_memory() const {
    SelectionMemory memory;
    CHUNKLLM_ASSIGN_OR_RETURN(memory.open_sums, DeviceBuffer<float>::create(open_sums_.size()));
    CHUNKLLM_ASSIGN_OR_RETURN(memory.span_tokens,
                              DeviceBuffer<std::int32_t>::create(span_tokens_.size()));
    CHUNKLLM_ASSIGN_OR_RETURN(memory.set_sizes,
                              DeviceBuffer<std::int32_t>::create(set_sizes_.size()));
    return Result<SelectionMemory>(std::move(memory));
  }
  /// Copies open sums and sets, to be put back by `restore`; keys, values and chunk keys behind
  /// that point are written anew before they are read.
  ///
  /// \param saved  of `make_selection_memory`   Errors: kInvalidArgument for memory of other sizes
  Status save(const SelectionMemory& saved, cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(copy(open_sums_, saved.open_sums, stream));
    CHUNKLLM_RETURN_IF_ERROR(copy(span_tokens_, saved.span_tokens, stream));
    return copy(set_sizes_, saved.set_sizes, stream);
  }
  Status restore(const SelectionMemory& saved, cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(copy(saved.open_sums, open_sums_, stream));
    CHUNKLLM_RETURN_IF_ERROR(copy(saved.span_tokens, span_tokens_, stream));
    return copy(saved.set_sizes, set_sizes_, stream);
  }

  [[nodiscard]] std::int64_t kv_bytes() const { return bytes_of(keys_) + bytes_of(values_); }
  [[nodiscard]] std::int64_t kv_bytes_per_token() const {
    return num_layers_ * 2 * kv_size_ * static_cast<std::int64_t>(sizeof(T));
  }
  [[nodiscard]] std::int64_t chunk_bytes() const {
    return bytes_of(chunk_keys_) + bytes_of(open_sums_) + bytes_of(ends_) + bytes_of(span_tokens_);
  }
  /// What is left: counters, sizes and the RoPE table.
  [[nodiscard]] std::int64_t other_bytes() const {
    return bytes_of(num_tokens_) + bytes_of(step_tokens_) + bytes_of(zeros_) +
           static_cast<std::int64_t>(options_.maybe_rope->bytes()) + bytes_of(num_chunks_) +
           bytes_of(set_sizes_);
  }

 private:
  static constexpr std::int32_t kMaxTokens = 1 << 24;

  DeviceBatch(const BackboneConfig& config, const DeviceBatchOptions& options)
      : options_(options),
        num_layers_(config.num_layers),
        kv_size_(config.kv_size()),
        head_dim_(config.head_dim) {
    for (const std::int64_t window : config.sliding_window) {
      windows_.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(window, kMaxTokens)));
    }
    const ChunkGuards& guards = options.chunk.guards;
    max_chunks_ = options.max_chunks > 0
                      ? options.max_chunks
                      : static_cast<std::int32_t>(options.max_tokens / guards.min_len + 1);
    // A list holds chunk 0, whatever the budget, and what the budget took; a budget of chunks,
    // those at their longest.
    const Budget& budget = options.chunk.budget;
    const std::int64_t most = budget.kind == Budget::Kind::kChunks
                                  ? (budget.chunks + 1) * guards.max_len
                                  : std::max(budget.tokens_at(options.max_tokens), guards.max_len);
    span_capacity_ = static_cast<std::int32_t>(
        options.dense ? 0 : std::min<std::int64_t>(most, options.max_tokens));
  }

  Status allocate(const BackboneConfig& config, const DeviceScorer<T>& scorer,
                  cudaStream_t stream) {
    const auto seqs = static_cast<std::size_t>(options_.num_seqs);
    const auto layers = static_cast<std::size_t>(num_layers_);
    const std::size_t kv = layers * seqs * static_cast<std::size_t>(options_.max_tokens) *
                           static_cast<std::size_t>(kv_size_);
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(keys_, kv, stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(values_, kv, stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(num_tokens_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(step_tokens_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(zeros_, seqs, stream));
    if (options_.maybe_rope == nullptr) {
      CHUNKLLM_ASSIGN_OR_RETURN(DeviceRopeTable rope,
                                DeviceRopeTable::create(config, options_.max_tokens, stream));
      options_.maybe_rope = std::make_shared<const DeviceRopeTable>(std::move(rope));
    }
    if (options_.dense) return {};
    row_size_ = scorer.row_size();
    key_size_ = scorer.shape().key_size();
    const auto chunks = static_cast<std::size_t>(max_chunks_);
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(ends_, seqs * chunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(num_chunks_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(
        allocate_zeroed(open_sums_, layers * seqs * static_cast<std::size_t>(row_size_), stream));
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(
        chunk_keys_, layers * seqs * chunks * static_cast<std::size_t>(key_size_), stream));
    // While a prompt is read every layer has sets of its own, whatever is shared later.
    CHUNKLLM_RETURN_IF_ERROR(allocate_zeroed(
        span_tokens_, layers * seqs * static_cast<std::size_t>(span_capacity_), stream));
    return allocate_zeroed(set_sizes_, 2 * layers * seqs, stream);
  }

  template <typename Value>
  static Status allocate_zeroed(DeviceBuffer<Value>& buffer, std::size_t count,
                                cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<Value>::create(count));
    return buffer.zero(stream);
  }

  template <typename Value>
  static Status copy(const DeviceBuffer<Value>& from, const DeviceBuffer<Value>& to,
                     cudaStream_t stream) {
    if (to.size() != from.size()) {
      return invalid_argument("selection memory of " + std::to_string(to.size()) + " and " +
                              std::to_string(from.size()) + " elements, expected the same");
    }
    if (from.size() == 0) return {};
    return cuda_status(
        cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, stream),
        "copy of the sets");
  }

  [[nodiscard]] DeviceAttendedSets set_rows(std::int64_t first, std::int32_t count) const {
    std::int32_t* sizes = set_sizes_.data() + first;
    return {span_tokens_.data() + first * span_capacity_, sizes,
            sizes + num_layers_ * options_.num_seqs, count, span_capacity_};
  }
  template <typename Value>
  static std::int64_t bytes_of(const DeviceBuffer<Value>& buffer) {
    return static_cast<std::int64_t>(buffer.size() * sizeof(Value));
  }

  DeviceBatchOptions options_;
  std::int64_t num_layers_ = 0;
  std::int64_t kv_size_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t row_size_ = 0;
  std::int64_t key_size_ = 0;
  std::int32_t max_chunks_ = 0;
  std::int32_t span_capacity_ = 0;
  std::vector<std::int32_t> windows_;  // [num_layers] or empty; 0: none
  DeviceBuffer<T> keys_;               // [num_layers, num_seqs, max_tokens, kv_size]
  DeviceBuffer<T> values_;
  DeviceBuffer<std::int32_t> num_tokens_;
  DeviceBuffer<std::int32_t> step_tokens_;
  DeviceBuffer<std::int32_t> zeros_;  // [num_seqs] stays 0
  DeviceBuffer<std::int32_t> ends_;
  DeviceBuffer<std::int32_t> num_chunks_;
  DeviceBuffer<float> open_sums_;
  DeviceBuffer<T> chunk_keys_;
  DeviceBuffer<std::int32_t> span_tokens_;  // [num_layers, num_seqs, span_capacity]
  DeviceBuffer<std::int32_t> set_sizes_;    // [2, num_layers, num_seqs]
};

}  // namespace chunkllm::cuda
