// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/decode_step.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/device_set_chooser.hpp"
#include "chunkllm/cuda/prefill_keys.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/token_block.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/batch_state.cuh"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "chunkllm/kernels/rope_store.cuh"

namespace chunkllm::cuda {

/// Runs blocks of tokens through a frozen backbone: prefill, teacher-forced reading, second look.
///
/// Behind each block the decode step's memory holds the queries and open keys of its last token in
/// all layers: a prompt's end scores with them. The batch knows the block's chunks and tokens.
template <typename T>
class PrefillBlock {
 public:
  /// Takes the Chunk Adapter's word on a token: closes its chunk where that ends. True where a set
  /// must be chosen at the token.
  using Decide = std::function<bool(std::int32_t token, float probability)>;
  /// Ends of the chunks that have ended since the block's first token.
  using NewEnds = std::function<std::span<const std::int32_t>()>;

  /// The parts must outlive the block.
  ///
  /// \param max_rows  tokens a block
  static Result<PrefillBlock> create(const DeviceBackbone<T>& backbone,
                                     const DeviceScorer<T>& scorer, const DeviceBatch<T>& batch,
                                     const DecodeStep<T>& step, const CublasHandle& cublas,
                                     std::int32_t max_rows, cudaStream_t stream) {
    PrefillBlock block(backbone, scorer, batch, step, cublas, max_rows);
    const Status status = block.allocate(stream);
    if (!status.ok()) return status.with_context("memory of a prefill block");
    return Result<PrefillBlock>(std::move(block));
  }

  /// [max_rows, hidden_size] final rows of the last block.
  [[nodiscard]] float* hidden() const { return hidden_.data(); }
  [[nodiscard]] std::int32_t max_rows() const { return max_rows_; }
  /// Device memory besides the batch's and the step's.
  [[nodiscard]] std::size_t bytes() const {
    return inputs_.device_bytes() + hidden_.bytes() + normed_.bytes() + qkv_.bytes() +
           query_rows_.bytes() + attended_.bytes() + scratch_.bytes() + keys_.bytes() +
           chooser_.bytes() + span_tokens_.bytes() + set_sizes_.bytes() + look_tokens_.bytes() +
           look_sizes_.bytes() + probabilities_.bytes();
  }

  /// The last block's tiles in a layer; set 0 is the one that stood in front of the block.
  [[nodiscard]] std::span<const kernels::PrefillTile> tiles(std::int64_t layer) const {
    return layer == 0 ? inputs_.first_layer_tiles().tiles : inputs_.other_tiles().tiles;
  }
  /// Triggers of the last block that chose sets.
  [[nodiscard]] std::int32_t num_triggers() const { return num_triggers_; }
  /// Sizes of the last block's sets, the one that stood first: [num_layers][1 + num_triggers()],
  /// unspecified for windowed layers. Waits for the block.
  Status read_set_sizes(std::vector<SetSize>& sizes, cudaStream_t stream) const {
    const auto sets = static_cast<std::size_t>(num_triggers_) + 1;
    const auto layers = static_cast<std::size_t>(config().num_layers);
    std::vector<std::int32_t> words(2 * layers * sets);
    const std::size_t pitch = sets_a_layer() * sizeof(std::int32_t);
    const std::size_t width = sets * sizeof(std::int32_t);
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaMemcpy2DAsync(words.data(), width, set_sizes_.data(), pitch, width,
                                      2 * layers, cudaMemcpyDeviceToHost, stream),
                    "copy of the sets' sizes"));
    CHUNKLLM_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream), "a prefill block"));
    sizes.resize(layers * sets);
    for (std::size_t i = 0; i < sizes.size(); ++i) sizes[i] = {words[i], words[sizes.size() + i]};
    return {};
  }

  /// The set of a second look in a layer.
  [[nodiscard]] DeviceAttendedSets look_set(std::int64_t layer) const {
    return {look_tokens_.data() + layer * batch_->span_capacity(), look_sizes_.data() + layer,
            look_sizes_.data() + config().num_layers + layer, 1, batch_->span_capacity()};
  }
  /// [2, num_layers] on the device: `num_span_tokens` of all look sets, then `tail_begin`.
  [[nodiscard]] const DeviceBuffer<std::int32_t>& look_sizes() const { return look_sizes_; }

  /// Enqueues a block whose boundaries are known.
  ///
  /// Errors: kInvalidArgument for more tokens, triggers or chunks than there is room for; those of
  ///         the launches.
  Status run(const TokenBlockPlan& plan, cudaStream_t stream) {
    if (plan.tokens.empty()) return {};
    CHUNKLLM_RETURN_IF_ERROR(begin(plan, stream));
    CHUNKLLM_RETURN_IF_ERROR(upload_plan(plan, stream));
    CHUNKLLM_RETURN_IF_ERROR(project(plan, 0, stream));
    if (selects(0)) CHUNKLLM_RETURN_IF_ERROR(take_rows(plan, 0, stream));
    CHUNKLLM_RETURN_IF_ERROR(finish_layer(plan, 0, stream));
    return run_other_layers(plan, stream);
  }

  /// Runs a block whose boundaries a Chunk Adapter finds in the first layer's output, in rounds: a
  /// row behind a trigger is computed again with the set chosen there. Waits for each round.
  ///
  /// \param plan      without new_ends and triggers. Shortened to end with the first trigger where
  ///                  its sets stand; else `triggers` tells them.
  /// \param new_ends  called behind calls of `decide`
  /// \param chooses   false: `decide` never asks for a set; one round does
  Status find_boundaries_and_run(TokenBlockPlan& plan, const DeviceChunkAdapter& adapter,
                                 const Decide& decide, const NewEnds& new_ends, bool chooses,
                                 std::vector<std::int32_t>& triggers, cudaStream_t stream);

 private:
  PrefillBlock(const DeviceBackbone<T>& backbone, const DeviceScorer<T>& scorer,
               const DeviceBatch<T>& batch, const DecodeStep<T>& step, const CublasHandle& cublas,
               std::int32_t max_rows)
      : backbone_(&backbone),
        scorer_(&scorer),
        batch_(&batch),
        step_(&step),
        cublas_(&cublas),
        max_rows_(max_rows) {
    const std::int64_t shortest = batch.options().chunk.guards.min_len;
    max_ends_ = static_cast<std::int32_t>(max_rows / shortest + 1);
    const bool every = batch.options().chunk.refresh.kind != RefreshPolicy::Kind::kBoundary;
    max_triggers_ = every ? max_rows : max_ends_;
  }

  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] DeviceRun run_on(cudaStream_t stream) const {
    return {stream, cublas_->get(), scratch_.data(), scratch_.size()};
  }
  [[nodiscard]] bool selects(std::int64_t layer) const {
    return !batch_->options().dense && !batch_->is_windowed(layer);
  }
  /// Sets of a block in a layer: the one that stood, and one for each trigger.
  [[nodiscard]] std::size_t sets_a_layer() const {
    return static_cast<std::size_t>(max_triggers_) + 1;
  }

  Status allocate(cudaStream_t stream) {
    const auto rows = static_cast<std::size_t>(max_rows_);
    const auto layers = static_cast<std::size_t>(config().num_layers);
    const auto query_size = static_cast<std::size_t>(config().query_size());
    const auto hidden_size = static_cast<std::size_t>(config().hidden_size);
    CHUNKLLM_ASSIGN_OR_RETURN(
        inputs_, TokenBlockInputs::create(max_rows_, batch_->options().max_tokens, max_triggers_,
                                          max_ends_, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(hidden_, rows * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(normed_, rows * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(
        make(qkv_, rows * static_cast<std::size_t>(backbone_->qkv_size()), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(query_rows_, rows * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(attended_, rows * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(scratch_, backbone_->scratch_bytes(max_rows_), stream));
    if (batch_->options().dense) return {};
    const std::size_t sets = sets_a_layer();
    const auto spans = static_cast<std::size_t>(batch_->span_capacity());
    CHUNKLLM_ASSIGN_OR_RETURN(keys_, PrefillKeys<T>::create(config(), *scorer_, *batch_, *cublas_,
                                                            max_triggers_ + 1, max_ends_));
    CHUNKLLM_ASSIGN_OR_RETURN(
        chooser_, DeviceSetChooser<T>::create(config(), *scorer_, *batch_, /*most_layers=*/1,
                                              max_triggers_, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(span_tokens_, sets * spans, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(set_sizes_, 2 * layers * sets, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(look_tokens_, layers * spans, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(look_sizes_, 2 * layers, stream));
    return make(probabilities_, static_cast<std::size_t>(max_rows_), stream);
  }

  template <typename Value>
  static Status make(DeviceBuffer<Value>& buffer, std::size_t count, cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<Value>::create(count));
    return buffer.zero(stream);
  }

  /// Checks the plan's room; tokens and embeddings.
  Status begin(const TokenBlockPlan& plan, cudaStream_t stream) {
    const std::int32_t rows = plan.num_rows();
    if (rows > max_rows_ || plan.first_token + rows > batch_->options().max_tokens) {
      return invalid_argument("prefill block: " + std::to_string(rows) + " tokens from " +
                              std::to_string(plan.first_token) + " on, there is room for " +
                              std::to_string(max_rows_) + " a block and " +
                              std::to_string(batch_->options().max_tokens) + " in all");
    }
    num_triggers_ = 0;
    CHUNKLLM_RETURN_IF_ERROR(inputs_.upload_tokens(plan, stream));
    return backbone_->embed(run_on(stream), inputs_.tokens(), rows, hidden_.data());
  }

  /// Whether there is room for a block's triggers, and for the chunks that end in it.
  [[nodiscard]] Status check_room(const TokenBlockPlan& plan, std::size_t triggers,
                                  std::size_t ends) const {
    const auto most_ends = static_cast<std::size_t>(
        std::max(0, std::min(max_ends_, batch_->max_chunks() - plan.first_chunk)));
    if (triggers <= static_cast<std::size_t>(max_triggers_) &&
        (batch_->options().dense || ends <= most_ends)) {
      return {};
    }
    return invalid_argument("prefill block: " + std::to_string(triggers) + " triggers and " +
                            std::to_string(ends) + " chunks, expected at most " +
                            std::to_string(max_triggers_) + " and " + std::to_string(most_ends));
  }

  Status upload_plan(const TokenBlockPlan& plan, cudaStream_t stream) {
    const std::size_t triggers =
        plan.sets == TokenBlockPlan::Sets::kLayerLocal ? plan.triggers.size() : 0;
    CHUNKLLM_RETURN_IF_ERROR(check_room(plan, triggers, plan.new_ends.size()));
    num_triggers_ = static_cast<std::int32_t>(triggers);
    // The first layer learns of a boundary from its own output: its sets act one token later.
    const bool found_by_first =
        batch_->options().chunk.refresh.kind == RefreshPolicy::Kind::kBoundary;
    return inputs_.upload_plan(plan, found_by_first ? 1 : 0, batch_->table(), batch_->num_tokens(),
                               stream);
  }

  Status run_other_layers(const TokenBlockPlan& plan, cudaStream_t stream) {
    for (std::int64_t layer = 1; layer < config().num_layers; ++layer) {
      CHUNKLLM_RETURN_IF_ERROR(project(plan, layer, stream));
      if (selects(layer)) CHUNKLLM_RETURN_IF_ERROR(take_rows(plan, layer, stream));
      CHUNKLLM_RETURN_IF_ERROR(finish_layer(plan, layer, stream));
    }
    return {};
  }

  /// Normed input, queries, keys and values of all rows; keys and values go to the cache.
  Status project(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    const std::int32_t rows = plan.num_rows();
    CHUNKLLM_RETURN_IF_ERROR(backbone_->project_qkv(run_on(stream), layer, hidden_.data(), rows,
                                                    normed_.data(), qkv_.data()));
    kernels::RopeStoreArgs<T> args = backbone_->rope_store_args(layer, qkv_.data(), rows);
    args.positions = inputs_.positions(plan.first_token);
    args.one_seq = true;
    args.first_seq = plan.seq;
    args.rope = batch_->rope();
    args.query_rotation = batch_->rotation(layer);
    args.queries = query_rows_.data();
    args.kv = batch_->kv(layer);
    args.kv_capacity = batch_->options().max_tokens;
    return kernels::launch_rope_store(args, stream);
  }

  /// Chunk keys and queries of the block's rows; sets of its triggers.
  Status take_rows(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    ScorerRows<T> rows = scorer_rows(plan, layer, 0, plan.num_rows());
    rows.first_chunk = plan.first_chunk;
    rows.num_new_chunks = plan.num_new_chunks();
    rows.query_tokens = inputs_.query_tokens();
    rows.num_queries = inputs_.num_queries();
    CHUNKLLM_RETURN_IF_ERROR(keys_.take_rows(rows, stream));
    CHUNKLLM_RETURN_IF_ERROR(hand_over_query(plan.seq, layer, inputs_.last_query(), stream));
    if (num_triggers_ == 0) return {};
    CHUNKLLM_RETURN_IF_ERROR(
        kernels::launch_copy_set(batch_->sets(layer), plan.seq, block_sets(layer), 0, stream));
    return choose_sets(layer, 0, {rows.query_tokens, inputs_.query_seqs(), num_triggers_}, stream);
  }

  /// \param row  first of `count` rows of the block that are taken
  [[nodiscard]] ScorerRows<T> scorer_rows(const TokenBlockPlan& plan, std::int64_t layer,
                                          std::int32_t row, std::int32_t count) const {
    ScorerRows<T> rows;
    rows.layer = layer;
    rows.queries = query_rows_.data() + row * config().query_size();
    rows.block.num_rows = count;
    rows.block.row_size = static_cast<std::int32_t>(scorer_->row_size());
    rows.block.row_stride = scorer_->row_size();
    rows.block.first_token = plan.first_token + row;
    rows.block.seq = plan.seq;
    rows.block.table = batch_->table();
    rows.block.pooling = scorer_->pooling();
    if (scorer_->is_adapter()) {
      rows.block.rows = normed_.data() + row * scorer_->row_size();
    } else {
      const DeviceKvView<T> kv = batch_->kv(layer);
      rows.block.rows = kv.keys + kv.token_offset(plan.seq, plan.first_token + row);
    }
    return rows;
  }

  /// Puts query `index` and its open key where the decode step scores with them.
  Status hand_over_query(std::int32_t seq, std::int64_t layer, std::int32_t index,
                         cudaStream_t stream) const {
    const auto copy = [&](float* to, const float* from, std::int64_t size) {
      return cuda_status(cudaMemcpyAsync(to + seq * size, from + index * size,
                                         static_cast<std::size_t>(size) * sizeof(float),
                                         cudaMemcpyDeviceToDevice, stream),
                         "copy of a query");
    };
    CHUNKLLM_RETURN_IF_ERROR(copy(step_->queries(layer), keys_.queries(), scorer_->query_stride()));
    if (!scorer_->uses_open_key()) return {};
    return copy(step_->open_keys(layer), keys_.maybe_open_keys(), scorer_->shape().key_size());
  }

  /// Chooses the block's sets first + 1, first + 2, ... with queries 0, 1, ....
  Status choose_sets(std::int64_t layer, std::int32_t first, const DeviceTriggers& triggers,
                     cudaStream_t stream) const {
    SetRequest request;
    request.triggers = triggers;
    request.first_layer = layer;
    request.queries = keys_.queries();
    request.maybe_open_keys = keys_.maybe_open_keys();
    request.sets = block_sets(layer);
    request.sets.span_tokens += std::int64_t{first + 1} * batch_->span_capacity();
    request.sets.num_span_tokens += first + 1;
    request.sets.tail_begin += first + 1;
    request.sets.num_sets = triggers.count;
    return chooser_.choose(request, stream);
  }

  /// Lists are the present layer's; their sizes stay for all layers until the next block.
  [[nodiscard]] DeviceAttendedSets block_sets(std::int64_t layer) const {
    const auto sets = static_cast<std::int64_t>(sets_a_layer());
    std::int32_t* sizes = set_sizes_.data() + layer * sets;
    return {span_tokens_.data(), sizes, sizes + config().num_layers * sets, max_triggers_ + 1,
            batch_->span_capacity()};
  }

  /// Attention and the rest of a layer for all rows; the last set chosen is the layer's then.
  Status finish_layer(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    const TileList& list = layer == 0 ? inputs_.first_layer_tiles() : inputs_.other_tiles();
    const kernels::PrefillTile* tiles =
        inputs_.device_tiles() + (layer == 0 ? 0 : inputs_.first_layer_tiles().count());
    CHUNKLLM_RETURN_IF_ERROR(batch_->is_windowed(layer)
                                 ? attend(plan, layer, 0, plan.num_rows(), inputs_.one_tile(), 1,
                                          plan.num_rows(), sets_of(plan, layer), stream)
                                 : attend(plan, layer, 0, plan.num_rows(), tiles, list.count(),
                                          list.most_rows, sets_of(plan, layer), stream));
    CHUNKLLM_RETURN_IF_ERROR(backbone_->finish_layer(run_on(stream), layer, attended_.data(),
                                                     plan.num_rows(), hidden_.data()));
    return keep_last_set(plan, layer, stream);
  }
  Status keep_last_set(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    if (!selects(layer) || num_triggers_ == 0) return {};
    return kernels::launch_copy_set(block_sets(layer), num_triggers_, batch_->sets(layer), plan.seq,
                                    stream);
  }

  /// \param row  first of `count` rows; tiles count rows from it
  Status attend(const TokenBlockPlan& plan, std::int64_t layer, std::int32_t row,
                std::int32_t count, const kernels::PrefillTile* tiles, std::int32_t num_tiles,
                std::int32_t most_rows, const DeviceAttendedSets& sets, cudaStream_t stream) const {
    const std::int64_t offset = row * config().query_size();
    kernels::PrefillAttentionArgs<T> args;
    args.q = query_rows_.data() + offset;
    args.out = attended_.data() + offset;
    args.q_stride = config().query_size();
    args.out_stride = config().query_size();
    args.kv = as_const(batch_->kv(layer));
    args.seq = plan.seq;
    args.tiles = tiles;
    args.num_tiles = num_tiles;
    args.max_tile_rows = most_rows;
    args.sets = sets;
    args.first_token = plan.first_token + row;
    args.num_rows = count;
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
    args.head_dim = static_cast<std::int32_t>(config().head_dim);
    args.scale = softmax_scale(config());
    args.q_rotation = batch_->rotation(layer);
    args.positions = batch_->positions(layer);
    args.rope = batch_->rope();
    args.window = batch_->window(layer);
    return kernels::launch_chunk_prefill_attention(args, stream);
  }

  static DeviceAttendedSets one(DeviceAttendedSets sets, std::int32_t index) {
    sets.span_tokens += std::int64_t{index} * sets.span_capacity;
    sets.num_span_tokens += index;
    sets.tail_begin += index;
    sets.num_sets = 1;
    return sets;
  }
  /// Tiles name sets by index: 0 where the block has one only.
  [[nodiscard]] DeviceAttendedSets sets_of(const TokenBlockPlan& plan, std::int64_t layer) const {
    if (!selects(layer) || plan.sets == TokenBlockPlan::Sets::kEverything) {
      return one(batch_->everything(), plan.seq);
    }
    if (plan.sets == TokenBlockPlan::Sets::kLook) {
      return look_set(plan.shares_look_set ? 0 : layer);
    }
    return num_triggers_ > 0 ? block_sets(layer) : one(batch_->sets(layer), plan.seq);
  }

  const DeviceBackbone<T>* backbone_;
  const DeviceScorer<T>* scorer_;
  const DeviceBatch<T>* batch_;
  const DecodeStep<T>* step_;
  const CublasHandle* cublas_;
  std::int32_t max_rows_ = 0;
  std::int32_t max_triggers_ = 0;
  std::int32_t max_ends_ = 0;
  std::int32_t num_triggers_ = 0;  // of the block in progress
  TokenBlockInputs inputs_;
  DeviceBuffer<float> hidden_;
  DeviceBuffer<T> normed_;
  DeviceBuffer<T> qkv_;
  DeviceBuffer<T> query_rows_;
  DeviceBuffer<T> attended_;
  DeviceBuffer<std::byte> scratch_;
  PrefillKeys<T> keys_;
  DeviceSetChooser<T> chooser_;
  DeviceBuffer<std::int32_t> span_tokens_;  // [1 + max_triggers, span_capacity]
  DeviceBuffer<std::int32_t> set_sizes_;    // [2, num_layers, 1 + max_triggers]
  DeviceBuffer<std::int32_t> look_tokens_;  // [num_layers, span_capacity]
  DeviceBuffer<std::int32_t> look_sizes_;   // [2, num_layers]
  DeviceBuffer<float> probabilities_;       // of the Chunk Adapter, [max_rows]
};

}  // namespace chunkllm::cuda

#include "chunkllm/cuda/prefill_boundaries.hpp"
