// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/device_set_chooser.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/batch_state.cuh"
#include "chunkllm/kernels/chunk_decode_attention.cuh"
#include "chunkllm/kernels/chunk_keys.cuh"
#include "chunkllm/kernels/detect_boundaries.cuh"
#include "chunkllm/kernels/next_token.cuh"
#include "chunkllm/kernels/refresh_layer.cuh"
#include "chunkllm/kernels/rope_store.cuh"

namespace chunkllm::cuda {

/// A Chunk Adapter in device memory.
struct DeviceChunkAdapter {
  DeviceBuffer<float> weight;  ///< [hidden_size]
  float bias = 0.0F;
  float threshold = 0.5F;
};

/// One token for each sequence of a batch: everything from the embedding to the next token, with
/// boundaries, chunk keys, selection and plan, and no word from the host in between. Enqueued
/// kernel by kernel, or captured once and replayed as a CUDA graph.
///
/// The graph holds for as long as the batch: lengths, sets and chunk tables are read on the device.
template <typename T>
class DecodeStep {
 public:
  /// The parts must outlive the step.
  ///
  /// \param maybe_adapter  finds the boundaries; null: `wanted()` says where chunks end
  /// Errors: those of allocation and of `check_shapes`; kUnsupported for a refresh policy that acts
  ///         in the first layer of its own token (each layer its own set, refreshed at every token
  ///         or stride).
  static Result<DecodeStep> create(const DeviceBackbone<T>& backbone, const DeviceScorer<T>& scorer,
                                   const DeviceChunkAdapter* maybe_adapter,
                                   const DeviceBatch<T>& batch, const CublasHandle& cublas,
                                   cudaStream_t stream) {
    CHUNKLLM_RETURN_IF_ERROR(check_shapes(backbone.config()));
    const ChunkOptions& chunk = batch.options().chunk;
    if (!batch.options().dense && chunk.selection == Selection::kLayer &&
        chunk.refresh.kind != RefreshPolicy::Kind::kBoundary) {
      return unsupported(
          "on the device, layers with sets of their own refresh at boundaries only: expected "
          "--refresh boundary, or a joined --selection");
    }
    DecodeStep step(backbone, scorer, maybe_adapter, batch, cublas);
    const Status status = step.allocate(stream);
    if (!status.ok()) return status.with_context("memory of a decode step");
    return Result<DecodeStep>(std::move(step));
  }
  /// Whether the attention kernels know a model's heads: to be asked before its weights are loaded.
  ///
  /// Errors: kUnsupported, listing what is.
  static Status check_shapes(const BackboneConfig& config) {
    const std::int64_t head_dim = config.head_dim;
    const bool knows_dim = head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
    const std::int64_t group = config.num_heads / config.num_kv_heads;
    if (knows_dim && group <= kernels::decode_attention::kMaxGroup) return {};
    return unsupported("on the device, attention with head_dim " + std::to_string(head_dim) +
                       " and " + std::to_string(group) +
                       " query heads a KV head; supported are head_dim 64, 96, 128 and 256, and up "
                       "to " +
                       std::to_string(kernels::decode_attention::kMaxGroup) + " query heads");
  }
  DecodeStep(const DecodeStep&) = delete;
  DecodeStep& operator=(const DecodeStep&) = delete;
  DecodeStep(DecodeStep&& other) noexcept = default;
  DecodeStep& operator=(DecodeStep&& other) noexcept = default;

  /// [num_seqs] ids that the next step reads; a step leaves the likeliest next ones there.
  [[nodiscard]] std::int32_t* tokens() const {
    return reinterpret_cast<std::int32_t*>(inputs_.data());
  }
  /// [num_seqs] not 0: the token wants to end its chunk; read without a Chunk Adapter. Lies behind
  /// `tokens()`, so that one copy of 5 bytes a sequence brings both.
  [[nodiscard]] std::uint8_t* wanted() const {
    return inputs_.data() + num_seqs() * std::int64_t{sizeof(std::int32_t)};
  }
  /// [num_seqs] 0: the sequence sits the step out, as one without room for a token does.
  [[nodiscard]] std::uint8_t* active() const { return active_.data(); }
  /// [num_seqs, vocab_size] of the last step.
  [[nodiscard]] const float* logits() const { return logits_.data(); }
  [[nodiscard]] float* mutable_logits() const { return logits_.data(); }
  /// What the backbone needs for up to num_seqs rows.
  [[nodiscard]] DeviceRun run_on(cudaStream_t stream) const {
    return {stream, cublas_->get(), scratch_.data(), scratch_.size()};
  }
  /// [num_seqs, hidden_size] final rows of the last step.
  [[nodiscard]] float* hidden() const { return hidden_.data(); }
  /// [num_seqs, 3] boundaries, forced ones, refreshes of all steps.
  [[nodiscard]] const std::int32_t* counters() const { return counters_.data(); }
  /// [num_seqs] whether the last step's tokens ended a chunk: 0 no, 1 yes, 2 forced by its length.
  [[nodiscard]] const std::uint8_t* boundary_flags() const { return boundary_flags_.data(); }
  /// [num_seqs] what the Chunk Adapter gave the last step's tokens.
  [[nodiscard]] const float* probabilities() const { return probabilities_.data(); }
  /// [num_seqs] position of the last step's token where it triggered a refresh, else -1.
  [[nodiscard]] std::int32_t* triggers() const { return triggers_.data(); }

  /// Device memory besides the batch's.
  [[nodiscard]] std::size_t bytes() const {
    return inputs_.bytes() + active_.bytes() + likeliest_.bytes() + hidden_.bytes() +
           normed_.bytes() + qkv_.bytes() + query_rows_.bytes() + key_rows_.bytes() +
           attended_.bytes() + logits_.bytes() + scratch_.bytes() + attention_workspace_.bytes() +
           triggers_.bytes() + counters_.bytes() + queries_.bytes() + open_keys_.bytes() +
           refresh_state_.bytes() + boundary_flags_.bytes() + probabilities_.bytes() +
           chooser_.bytes();
  }

  /// Enqueues one step.
  Status enqueue(cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_advance_tokens(
        batch_->num_tokens(), active_.data(), batch_->options().max_tokens, batch_->step_tokens(),
        num_seqs(), stream));
    CHUNKLLM_RETURN_IF_ERROR(
        backbone_->embed(run_on(stream), tokens(), num_seqs(), hidden_.data()));
    const bool selects = !batch_->options().dense;
    const bool by_layer = selects && batch_->options().chunk.selection == Selection::kLayer;
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      CHUNKLLM_RETURN_IF_ERROR(project(layer, stream));
      if (by_layer && layer > 0) CHUNKLLM_RETURN_IF_ERROR(refresh_layer(layer, stream));
      CHUNKLLM_RETURN_IF_ERROR(attend(layer, stream));
      CHUNKLLM_RETURN_IF_ERROR(backbone_->finish_layer(run_on(stream), layer, attended_.data(),
                                                       num_seqs(), hidden_.data()));
      if (selects && layer == 0) {
        CHUNKLLM_RETURN_IF_ERROR(detect(stream));
        // The first layer learns of a boundary from its own output: its set acts a token later.
        if (by_layer) CHUNKLLM_RETURN_IF_ERROR(refresh_layer(layer, stream));
      }
    }
    if (by_layer && refreshes_in_one_launch()) {  // which left the sums as they were
      CHUNKLLM_RETURN_IF_ERROR(
          kernels::launch_sum_newest_rows(update_args(0, config().num_layers), stream));
    } else if (selects && !by_layer) {
      CHUNKLLM_RETURN_IF_ERROR(
          kernels::launch_update_chunk_keys(update_args(0, config().num_layers), stream));
      CHUNKLLM_RETURN_IF_ERROR(choose_shared(stream));
    }
    CHUNKLLM_RETURN_IF_ERROR(
        backbone_->logits(run_on(stream), hidden_.data(), num_seqs(), logits_.data()));
    kernels::NextTokenArgs<float> next;
    next.logits = logits_.data();
    next.logits_stride = config().vocab_size;
    next.num_rows = num_seqs();
    next.vocab_size = static_cast<std::int32_t>(config().vocab_size);
    next.maybe_tokens = likeliest_.data();
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_next_token(next, stream));
    return kernels::launch_take_tokens(likeliest_.data(), batch_->step_tokens(), tokens(),
                                       num_seqs(), stream);
  }

  /// The step as a graph. The first call enqueues it kernel by kernel, which also loads them all;
  /// the second captures the graph, which is replayed ever after.
  Status replay(cudaStream_t stream) {
    if (!was_run_) {
      was_run_ = true;
      return enqueue(stream);
    }
    if (graph_ == nullptr) CHUNKLLM_RETURN_IF_ERROR(capture(stream));
    return cuda_status(cudaGraphLaunch(graph_.get(), stream), "cudaGraphLaunch");
  }

  /// Chooses the sets of `triggers()` anew with queries that stand in the step's memory: a prefill
  /// block leaves those of its last token there.
  ///
  /// \param num_layers         more than one: they share the sets
  /// \param maybe_tail_tokens  see `PlanArgs`
  Status choose(std::int64_t first_layer, std::int64_t num_layers, const DeviceAttendedSets& sets,
                const std::int32_t* maybe_tail_tokens, cudaStream_t stream) const {
    SetRequest request = request_of(first_layer, num_layers, sets);
    request.maybe_tail_tokens = maybe_tail_tokens;
    return chooser_.choose(request, stream);
  }
  /// Chooses one set for all layers, likewise.
  Status choose_shared(cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(
        choose(0, config().num_layers, batch_->shared_sets(), nullptr, stream));
    return kernels::launch_spread_sets(batch_->all_sets(), triggers_.data(),
                                       static_cast<std::int32_t>(config().num_layers), num_seqs(),
                                       stream);
  }

  /// A layer's queries [num_seqs, query_stride] and keys of open chunks [num_seqs, key_size].
  [[nodiscard]] float* queries(std::int64_t layer) const {
    return queries_.data() + layer * num_seqs() * scorer_->query_stride();
  }
  [[nodiscard]] float* open_keys(std::int64_t layer) const {
    return open_keys_.data() + layer * num_seqs() * batch_->key_size();
  }

 private:
  /// Sequences that `launch_refresh_layer` takes.
  static constexpr std::int32_t kMostRefreshedAtOnce = 256;

  struct GraphDeleter {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };

  DecodeStep(const DeviceBackbone<T>& backbone, const DeviceScorer<T>& scorer,
             const DeviceChunkAdapter* maybe_adapter, const DeviceBatch<T>& batch,
             const CublasHandle& cublas)
      : backbone_(&backbone),
        scorer_(&scorer),
        adapter_(maybe_adapter),
        batch_(&batch),
        cublas_(&cublas) {}

  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] std::int32_t num_seqs() const { return batch_->num_seqs(); }

  Status allocate(cudaStream_t stream) {
    const auto seqs = static_cast<std::size_t>(num_seqs());
    const auto layers = static_cast<std::size_t>(config().num_layers);
    const auto query_size = static_cast<std::size_t>(config().query_size());
    const auto kv_size = static_cast<std::size_t>(config().kv_size());
    const auto hidden_size = static_cast<std::size_t>(config().hidden_size);
    CHUNKLLM_RETURN_IF_ERROR(make(inputs_, seqs * (sizeof(std::int32_t) + 1), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(active_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(likeliest_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(hidden_, seqs * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(normed_, layers * seqs * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(qkv_, seqs * (query_size + 2 * kv_size), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(query_rows_, layers * seqs * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(key_rows_, layers * seqs * kv_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(attended_, seqs * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(
        make(logits_, seqs * static_cast<std::size_t>(config().vocab_size), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(scratch_, backbone_->scratch_bytes(num_seqs()), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(attention_workspace_,
                                  kernels::chunk_decode_attention_workspace_bytes(
                                      num_seqs(), static_cast<std::int32_t>(config().num_heads),
                                      static_cast<std::int32_t>(config().head_dim)),
                                  stream));
    CHUNKLLM_RETURN_IF_ERROR(kernels::init_decode_attention_workspace(
        attention_workspace_.data(), attention_workspace_.size(), stream));
    if (batch_->options().dense) return {};
    CHUNKLLM_RETURN_IF_ERROR(make(triggers_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(counters_, seqs * 3, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(boundary_flags_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(probabilities_, seqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(
        make(queries_, layers * seqs * static_cast<std::size_t>(scorer_->query_stride()), stream));
    if (scorer_->uses_open_key()) {
      CHUNKLLM_RETURN_IF_ERROR(
          make(open_keys_, layers * seqs * static_cast<std::size_t>(batch_->key_size()), stream));
    }
    const bool by_layer = batch_->options().chunk.selection == Selection::kLayer;
    CHUNKLLM_ASSIGN_OR_RETURN(
        chooser_,
        DeviceSetChooser<T>::create(config(), *scorer_, *batch_,
                                    by_layer ? 1 : static_cast<std::int32_t>(config().num_layers),
                                    num_seqs(), stream));
    CHUNKLLM_RETURN_IF_ERROR(
        make(refresh_state_, kernels::kRefreshStateBytes / sizeof(std::uint32_t), stream));
    return cuda_status(cudaStreamSynchronize(stream), "memory of a decode step");
  }

  template <typename Value>
  static Status make(DeviceBuffer<Value>& buffer, std::size_t count, cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<Value>::create(count));
    return buffer.zero(stream);
  }

  [[nodiscard]] T* normed(std::int64_t layer) const {
    return normed_.data() + layer * num_seqs() * config().hidden_size;
  }
  [[nodiscard]] T* query_rows(std::int64_t layer) const {
    return query_rows_.data() + layer * num_seqs() * config().query_size();
  }
  [[nodiscard]] T* key_rows(std::int64_t layer) const {
    return key_rows_.data() + layer * num_seqs() * config().kv_size();
  }

  /// Normed input, queries and keys of a layer; the keys and values go to the cache.
  Status project(std::int64_t layer, cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(backbone_->project_qkv(run_on(stream), layer, hidden_.data(),
                                                    num_seqs(), normed(layer), qkv_.data()));
    kernels::RopeStoreArgs<T> args = backbone_->rope_store_args(layer, qkv_.data(), num_seqs());
    args.num_tokens = batch_->step_tokens();
    args.rope = batch_->rope();
    args.query_rotation = batch_->rotation(layer);
    args.queries = query_rows(layer);
    args.kv = batch_->kv(layer);
    args.kv_capacity = batch_->options().max_tokens;
    args.maybe_cached_keys = key_rows(layer);
    return kernels::launch_rope_store(args, stream);
  }

  Status attend(std::int64_t layer, cudaStream_t stream) const {
    const DeviceKvView<T> kv = batch_->kv(layer);
    kernels::DecodeAttentionArgs<T, T> args;
    args.q = query_rows(layer);
    args.out = attended_.data();
    args.kv = as_const(kv);
    args.sets = batch_->options().dense ? batch_->everything() : batch_->sets(layer);
    args.num_tokens = batch_->step_tokens();
    args.num_seqs = num_seqs();
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
    args.head_dim = static_cast<std::int32_t>(config().head_dim);
    args.scale = softmax_scale(config());
    args.q_rotation = batch_->rotation(layer);
    args.positions = batch_->positions(layer);
    args.rope = batch_->rope();
    args.window = batch_->window(layer);
    args.workspace = attention_workspace_.data();
    args.workspace_bytes = attention_workspace_.size();
    // Past keys may be read while `rope_store` still writes the newest; behind a refresh the set
    // itself is new.
    const bool is_behind_refresh = !batch_->options().dense && layer > 0 &&
                                   batch_->options().chunk.selection == Selection::kLayer &&
                                   !batch_->is_windowed(layer);
    args.overlap = is_behind_refresh ? kernels::decode_attention::Overlap::kLaunch
                                     : kernels::decode_attention::Overlap::kPast;
    return kernels::launch_chunk_decode_attention(args, stream);
  }

  Status detect(cudaStream_t stream) const {
    const ChunkOptions& chunk = batch_->options().chunk;
    kernels::BoundaryArgs<float> args;
    if (adapter_ != nullptr) {
      args.hidden = hidden_.data();
      args.row_stride = config().hidden_size;
      args.hidden_size = static_cast<std::int32_t>(config().hidden_size);
      args.weight = adapter_->weight.data();
      args.bias = adapter_->bias;
      args.threshold = adapter_->threshold;
    } else {
      args.maybe_wanted = wanted();
    }
    args.num_rows = num_seqs();
    args.num_tokens = batch_->step_tokens();
    args.guards = chunk.guards;
    args.refresh = chunk.refresh;
    args.table = batch_->table();
    args.triggers = triggers_.data();
    args.maybe_boundary_flags = boundary_flags_.data();
    args.maybe_probabilities = probabilities_.data();
    args.maybe_counters = counters_.data();
    return kernels::launch_detect_boundaries(args, stream);
  }

  /// A layer's chunk keys, and at triggers its queries, scores and sets.
  Status refresh_layer(std::int64_t layer, cudaStream_t stream) const {
    if (batch_->is_windowed(layer)) return {};
    if (!refreshes_in_one_launch()) {
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_update_chunk_keys(update_args(layer, 1), stream));
      return choose(layer, 1, batch_->sets(layer), nullptr, stream);
    }
    kernels::RefreshLayerArgs<T, T, T> args;
    args.update = update_args(layer, 1);
    chooser_.fill(request_of(layer, 1, batch_->sets(layer)), args.score, args.select, args.plan);
    args.state = refresh_state_.data();
    return kernels::launch_refresh_layer(args, stream);
  }
  /// Whether a layer's refresh is one launch; very large batches, and those that need no scores,
  /// take the operations one by one.
  [[nodiscard]] bool refreshes_in_one_launch() const {
    return num_seqs() <= kMostRefreshedAtOnce && chooser_.holds(num_seqs()) &&
           !scorer_->ranks_by_recency();
  }

  [[nodiscard]] SetRequest request_of(std::int64_t first_layer, std::int64_t num_layers,
                                      const DeviceAttendedSets& sets) const {
    SetRequest request;
    request.triggers = {triggers_.data(), nullptr, num_seqs()};
    request.first_layer = first_layer;
    request.num_layers = num_layers;
    request.queries = queries(first_layer);
    if (scorer_->uses_open_key()) request.maybe_open_keys = open_keys(first_layer);
    request.sets = sets;
    return request;
  }

  /// What makes chunk keys, and at triggers queries, of consecutive layers.
  [[nodiscard]] kernels::UpdateChunkKeysArgs<T, T> update_args(std::int64_t layer,
                                                               std::int64_t num_layers) const {
    const ScorerShape& shape = scorer_->shape();
    kernels::UpdateChunkKeysArgs<T, T> args;
    args.num_layers = static_cast<std::int32_t>(num_layers);
    args.row_size = static_cast<std::int32_t>(scorer_->row_size());
    args.key_size = static_cast<std::int32_t>(shape.key_size());
    args.num_heads = static_cast<std::int32_t>(shape.num_heads);
    args.num_query_features = static_cast<std::int32_t>(scorer_->query_features());
    args.pooling = scorer_->pooling();
    args.table = batch_->table();
    args.num_tokens = batch_->step_tokens();
    args.maybe_triggers = triggers_.data();
    args.rows = scorer_->is_adapter() ? normed(layer) : key_rows(layer);
    args.row_seq_stride = scorer_->row_size();
    args.row_layer_stride = num_seqs() * scorer_->row_size();
    args.open_sums = batch_->open_sums(layer);
    args.sum_layer_stride = num_seqs() * scorer_->row_size();
    args.keys = batch_->chunk_keys(layer);
    args.key_layer_stride = std::int64_t{num_seqs()} * batch_->max_chunks() * shape.key_size();
    args.maybe_key_weight = scorer_->maybe_key_weight(layer);
    args.maybe_query_weight = scorer_->maybe_query_weight(layer);
    args.maybe_null_weight = scorer_->maybe_null_weight(layer);
    args.maybe_null_bias = scorer_->maybe_null_bias(layer);
    if (!scorer_->is_adapter()) {
      args.maybe_query_rows = query_rows(layer);
      args.query_row_seq_stride = config().query_size();
      args.query_row_layer_stride = num_seqs() * config().query_size();
    }
    args.queries = queries(layer);
    args.query_seq_stride = scorer_->query_stride();
    args.query_layer_stride = num_seqs() * scorer_->query_stride();
    if (scorer_->uses_open_key()) {
      args.maybe_open_keys = open_keys(layer);
      args.open_key_layer_stride = num_seqs() * shape.key_size();
    }
    return args;
  }

  Status capture(cudaStream_t stream) {
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                    "cudaStreamBeginCapture"));
    const Status status = enqueue(stream);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (!status.ok() || ended != cudaSuccess) {
      if (graph != nullptr) cudaGraphDestroy(graph);
      return status.ok() ? cuda_status(ended, "cudaStreamEndCapture") : status;
    }
    cudaGraphExec_t instance = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&instance, graph, 0);
    cudaGraphDestroy(graph);
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(made, "cudaGraphInstantiate"));
    graph_.reset(instance);
    return {};
  }

  const DeviceBackbone<T>* backbone_;
  const DeviceScorer<T>* scorer_;
  const DeviceChunkAdapter* adapter_;  // or null
  const DeviceBatch<T>* batch_;
  const CublasHandle* cublas_;
  DeviceBuffer<std::uint8_t> inputs_;  // tokens, then whether they want to end their chunks
  DeviceBuffer<std::uint8_t> active_;
  DeviceBuffer<std::int32_t> likeliest_;
  DeviceBuffer<float> hidden_;
  DeviceBuffer<T> normed_;  // [num_layers, num_seqs, hidden_size]
  DeviceBuffer<T> qkv_;
  DeviceBuffer<T> query_rows_;  // [num_layers, num_seqs, query_size] rotated as cached keys are
  DeviceBuffer<T> key_rows_;    // [num_layers, num_seqs, kv_size] as cached
  DeviceBuffer<T> attended_;
  DeviceBuffer<float> logits_;
  DeviceBuffer<std::byte> scratch_;
  DeviceBuffer<std::byte> attention_workspace_;
  DeviceBuffer<std::int32_t> triggers_;
  DeviceBuffer<std::int32_t> counters_;
  DeviceBuffer<float> queries_;
  DeviceBuffer<float> open_keys_;
  DeviceBuffer<std::uint32_t> refresh_state_;
  DeviceBuffer<std::uint8_t> boundary_flags_;
  DeviceBuffer<float> probabilities_;
  DeviceSetChooser<T> chooser_;
  bool was_run_ = false;
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphDeleter> graph_;
};

}  // namespace chunkllm::cuda
