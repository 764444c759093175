// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
#include "chunkllm/cuda/gemm.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/batch_state.cuh"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "chunkllm/kernels/pool_chunks.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/kernels/score_chunks.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace chunkllm::cuda {

/// Consecutive tokens of one sequence that go through all layers together. The chunk table holds
/// the boundaries among them already.
struct TokenBlockPlan {
  /// What the rows attend.
  enum class Sets : std::uint8_t {
    kEverything,  ///< all of the past; no set is chosen
    kLayerLocal,  ///< the layer's own, chosen anew at each trigger
    kShared,      ///< the ones that stand, chosen by all layers; none is chosen in the block
    kLook         ///< those of a second look: `look_sets`
  };

  std::span<const std::int32_t> tokens;
  std::int32_t seq = 0;
  std::int32_t first_token = 0;     ///< position of tokens[0]
  std::int32_t first_chunk = 0;     ///< chunks that end before or at first_token
  std::int32_t num_new_chunks = 0;  ///< that end among the tokens
  /// Positions among the tokens at which layers choose their own sets; ascending; kLayerLocal.
  std::span<const std::int32_t> triggers;
  Sets sets = Sets::kEverything;
  bool shares_look_set = false;  ///< kLook: all layers look with set 0
};

/// Runs blocks of tokens through a frozen backbone: prefill, teacher-forced reading, second look.
///
/// Behind each block the decode step's memory holds the queries and open keys of its last token in
/// all layers: a prompt's end scores with them.
template <typename T>
class PrefillBlock {
 public:
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

  /// The last block's tiles in a layer; set 0 is the one that stood in front of the block.
  [[nodiscard]] std::span<const kernels::PrefillTile> tiles(std::int64_t layer) const {
    return layer == 0 ? first_tiles_.tiles : other_tiles_.tiles;
  }
  /// Triggers of the last block that chose sets.
  [[nodiscard]] std::int32_t num_triggers() const { return num_triggers_; }
  /// Sizes of the last block's sets in a layer, on the device, [1 + num_triggers()].
  [[nodiscard]] DeviceAttendedSets chosen_sets(std::int64_t layer) const {
    return block_sets(layer);
  }

  /// The set of a second look in a layer.
  [[nodiscard]] DeviceAttendedSets look_set(std::int64_t layer) const {
    return {look_tokens_.data() + layer * batch_->span_capacity(), num_look_tokens_.data() + layer,
            look_tail_begin_.data() + layer, 1, batch_->span_capacity()};
  }

  /// Enqueues a block; waits for the copies of its host arrays.
  ///
  /// Errors: kInvalidArgument for more tokens than a block has rows; those of the launches.
  Status run(const TokenBlockPlan& plan, cudaStream_t stream) {
    const auto rows = static_cast<std::int32_t>(plan.tokens.size());
    if (rows == 0) return {};
    if (rows > max_rows_ || plan.first_token + rows > batch_->options().max_tokens) {
      return invalid_argument("prefill block: " + std::to_string(rows) + " tokens from " +
                              std::to_string(plan.first_token) + " on, there is room for " +
                              std::to_string(max_rows_) + " a block and " +
                              std::to_string(batch_->options().max_tokens) + " in all");
    }
    CHUNKLLM_RETURN_IF_ERROR(upload(plan, stream));
    CHUNKLLM_RETURN_IF_ERROR(
        backbone_->embed(run_on(stream), tokens_.data(), rows, hidden_.data()));
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      CHUNKLLM_RETURN_IF_ERROR(project(plan, layer, stream));
      const bool selects = !batch_->options().dense && !batch_->is_windowed(layer);
      if (selects) {
        CHUNKLLM_RETURN_IF_ERROR(gather_keys(plan, layer, stream));
        if (num_triggers_ > 0) CHUNKLLM_RETURN_IF_ERROR(choose_sets(plan, layer, stream));
      }
      CHUNKLLM_RETURN_IF_ERROR(attend(plan, layer, stream));
      CHUNKLLM_RETURN_IF_ERROR(
          backbone_->finish_layer(run_on(stream), layer, attended_.data(), rows, hidden_.data()));
      if (selects && num_triggers_ > 0) {
        CHUNKLLM_RETURN_IF_ERROR(kernels::launch_copy_set(
            block_sets(layer), num_triggers_, batch_->layer_sets(layer), plan.seq, stream));
      }
    }
    return {};
  }

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
    const bool every = batch.options().chunk.refresh.kind != RefreshPolicy::Kind::kBoundary;
    max_triggers_ = every ? max_rows : static_cast<std::int32_t>(max_rows / shortest + 1);
  }

  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] DeviceRun run_on(cudaStream_t stream) const {
    return {stream, cublas_->get(), scratch_.data(), scratch_.size()};
  }

  Status allocate(cudaStream_t stream) {
    const auto rows = static_cast<std::size_t>(max_rows_);
    const auto layers = static_cast<std::size_t>(config().num_layers);
    const auto query_size = static_cast<std::size_t>(config().query_size());
    const auto kv_size = static_cast<std::size_t>(config().kv_size());
    const auto hidden_size = static_cast<std::size_t>(config().hidden_size);
    CHUNKLLM_RETURN_IF_ERROR(make(tokens_, rows, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(positions_, rows, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(hidden_, rows * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(normed_, rows * hidden_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(qkv_, rows * (query_size + 2 * kv_size), stream));
    CHUNKLLM_RETURN_IF_ERROR(make(query_rows_, rows * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(attended_, rows * query_size, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(scratch_, backbone_->scratch_bytes(max_rows_), stream));
    const auto triggers = static_cast<std::size_t>(max_triggers_) + 1;
    CHUNKLLM_RETURN_IF_ERROR(make(tiles_, 2 * (triggers + 1) + 1, stream));
    if (batch_->options().dense) return {};
    const auto row_size = static_cast<std::size_t>(scorer_->row_size());
    const auto features = static_cast<std::size_t>(scorer_->shape().query_size());
    const auto spans = static_cast<std::size_t>(batch_->span_capacity());
    CHUNKLLM_RETURN_IF_ERROR(make(query_tokens_, triggers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(trigger_seqs_, triggers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(queries_, triggers * features, stream));
    if (scorer_->is_adapter()) {
      CHUNKLLM_RETURN_IF_ERROR(make(trigger_rows_, triggers * row_size, stream));
      CHUNKLLM_RETURN_IF_ERROR(make(pooled_rows_, triggers * row_size, stream));
    }
    if (scorer_->uses_open_key()) {
      CHUNKLLM_RETURN_IF_ERROR(make(
          open_keys_, triggers * static_cast<std::size_t>(scorer_->shape().key_size()), stream));
    }
    CHUNKLLM_RETURN_IF_ERROR(make(span_tokens_, triggers * spans, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(num_span_tokens_, layers * triggers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(tail_begin_, layers * triggers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(look_tokens_, layers * spans, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(num_look_tokens_, layers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(look_tail_begin_, layers, stream));
    // Logits of all heads and triggers take most: score in parts where they would not fit.
    scored_at_once_ = max_triggers_;
    const auto workspace = [&] {
      return kernels::score_chunks_workspace_bytes(
          1, scored_at_once_, static_cast<std::int32_t>(scorer_->shape().num_heads),
          batch_->max_chunks());
    };
    while (scored_at_once_ > 1 && workspace() > kMostWorkspaceBytes) scored_at_once_ /= 2;
    CHUNKLLM_RETURN_IF_ERROR(make(workspace_, workspace(), stream));
    const auto scored = static_cast<std::size_t>(scored_at_once_);
    const auto chunks = static_cast<std::size_t>(batch_->max_chunks());
    CHUNKLLM_RETURN_IF_ERROR(make(scores_, scored * chunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(chosen_, scored * chunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(num_chosen_, scored, stream));
    return make(num_nan_, scored, stream);
  }

  template <typename Value>
  static Status make(DeviceBuffer<Value>& buffer, std::size_t count, cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<Value>::create(count));
    return buffer.zero(stream);
  }

  /// Tokens, positions, the tokens whose queries are wanted, and the tiles of both kinds of layers.
  Status upload(const TokenBlockPlan& plan, cudaStream_t stream) {
    const auto rows = static_cast<std::int32_t>(plan.tokens.size());
    const std::int32_t last = plan.first_token + rows - 1;
    std::vector<std::int32_t> positions(plan.tokens.size());
    for (std::int32_t r = 0; r < rows; ++r) {
      positions[static_cast<std::size_t>(r)] = plan.first_token + r;
    }
    std::vector<std::int32_t> queries;
    if (plan.sets == TokenBlockPlan::Sets::kLayerLocal) {
      queries.assign(plan.triggers.begin(), plan.triggers.end());
    }
    num_triggers_ = static_cast<std::int32_t>(queries.size());
    if (num_triggers_ > max_triggers_) {
      return invalid_argument("prefill block: " + std::to_string(num_triggers_) +
                              " triggers, expected at most " + std::to_string(max_triggers_));
    }
    last_query_ = num_triggers_ - 1;
    if (queries.empty() || queries.back() != last) {
      last_query_ = num_triggers_;
      queries.push_back(last);
    }
    num_queries_ = static_cast<std::int32_t>(queries.size());
    const std::vector<std::int32_t> seqs(queries.size(), plan.seq);
    // The first layer learns of a boundary from its own output: its sets act one token later.
    const bool found_by_first =
        batch_->options().chunk.refresh.kind == RefreshPolicy::Kind::kBoundary;
    first_tiles_ = cut(plan, rows, /*delay=*/found_by_first ? 1 : 0);
    other_tiles_ = cut(plan, rows, /*delay=*/0);
    std::vector<kernels::PrefillTile> tiles = first_tiles_.tiles;
    tiles.insert(tiles.end(), other_tiles_.tiles.begin(), other_tiles_.tiles.end());
    tiles.push_back({0, rows, 0});
    CHUNKLLM_RETURN_IF_ERROR(tokens_.upload(plan.tokens, stream));
    CHUNKLLM_RETURN_IF_ERROR(positions_.upload(std::span<const std::int32_t>(positions), stream));
    CHUNKLLM_RETURN_IF_ERROR(tiles_.upload(std::span<const kernels::PrefillTile>(tiles), stream));
    if (!batch_->options().dense) {
      CHUNKLLM_RETURN_IF_ERROR(
          query_tokens_.upload(std::span<const std::int32_t>(queries), stream));
      CHUNKLLM_RETURN_IF_ERROR(trigger_seqs_.upload(std::span<const std::int32_t>(seqs), stream));
    }
    return cuda_status(cudaStreamSynchronize(stream), "upload of a prefill block");
  }

  struct TileList {
    std::vector<kernels::PrefillTile> tiles;
    std::int32_t most_rows = 0;

    [[nodiscard]] std::int32_t count() const { return static_cast<std::int32_t>(tiles.size()); }
  };

  /// Tiles of rows between triggers, `delay` tokens behind each. Set 0 is the one that stood in
  /// front of the block; trigger i chose set i + 1.
  static TileList cut(const TokenBlockPlan& plan, std::int32_t rows, std::int32_t delay) {
    TileList list;
    std::int32_t begin = 0;
    std::int32_t set = 0;
    const auto close = [&](std::int32_t end) {
      if (end <= begin) return;
      list.tiles.push_back({begin, end - begin, set});
      list.most_rows = std::max(list.most_rows, end - begin);
      begin = end;
    };
    if (plan.sets == TokenBlockPlan::Sets::kLayerLocal) {
      for (const std::int32_t trigger : plan.triggers) {
        close(std::min(trigger - plan.first_token + delay, rows));
        ++set;
      }
    }
    close(rows);
    return list;
  }

  Status project(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    const auto rows = static_cast<std::int32_t>(plan.tokens.size());
    CHUNKLLM_RETURN_IF_ERROR(backbone_->project_qkv(run_on(stream), layer, hidden_.data(), rows,
                                                    normed_.data(), qkv_.data()));
    kernels::RopeStoreArgs<T> args = backbone_->rope_store_args(layer, qkv_.data(), rows);
    args.positions = positions_.data();
    args.one_seq = true;
    args.first_seq = plan.seq;
    args.rope = batch_->rope();
    args.query_rotation = batch_->rotation(layer);
    args.queries = query_rows_.data();
    args.kv = batch_->kv(layer);
    args.kv_capacity = batch_->options().max_tokens;
    return kernels::launch_rope_store(args, stream);
  }

  /// The rows that the scorer gathers: normed inputs, or keys as they are cached.
  [[nodiscard]] kernels::TokenBlock<T> scorer_rows(const TokenBlockPlan& plan,
                                                   std::int64_t layer) const {
    kernels::TokenBlock<T> block;
    block.num_rows = static_cast<std::int32_t>(plan.tokens.size());
    block.row_size = static_cast<std::int32_t>(scorer_->row_size());
    block.row_stride = scorer_->row_size();
    block.first_token = plan.first_token;
    block.seq = plan.seq;
    block.table = batch_->table();
    block.pooling = scorer_->pooling();
    if (scorer_->is_adapter()) {
      block.rows = normed_.data();
    } else {
      const DeviceKvView<T> kv = batch_->kv(layer);
      block.rows = kv.keys + kv.token_offset(plan.seq, plan.first_token);
    }
    return block;
  }

  /// Keys of the chunks that end in the block; queries and open keys of its triggers and its last
  /// token.
  Status gather_keys(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    const kernels::TokenBlock<T> block = scorer_rows(plan, layer);
    const std::int64_t key_size = scorer_->shape().key_size();
    float* open_sum = batch_->open_sums(layer) + plan.seq * scorer_->row_size();
    if (scorer_->uses_open_key()) {  // in front of the pooling: it needs the sum as it stood
      kernels::OpenKeysArgs<T, T> open;
      open.block = block;
      open.open_sum = open_sum;
      open.triggers = query_tokens_.data();
      open.num_triggers = num_queries_;
      if (scorer_->is_adapter()) {
        open.maybe_rounded = trigger_rows_.data();
      } else {
        open.maybe_pooled = open_keys_.data();
      }
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_open_keys_at_triggers(open, stream));
      if (scorer_->is_adapter()) {
        CHUNKLLM_RETURN_IF_ERROR(product(trigger_rows_.data(), num_queries_,
                                         scorer_->maybe_key_weight(layer), key_size,
                                         open_keys_.data(), key_size, false));
      }
      CHUNKLLM_RETURN_IF_ERROR(copy(step_->open_keys(layer) + plan.seq * key_size,
                                    open_keys_.data() + last_query_ * key_size, key_size, stream));
    }
    CHUNKLLM_RETURN_IF_ERROR(make_queries(block, layer, stream));
    const std::int64_t query_size = scorer_->shape().query_size();
    CHUNKLLM_RETURN_IF_ERROR(copy(step_->queries(layer) + plan.seq * query_size,
                                  queries_.data() + last_query_ * query_size, query_size, stream));

    T* new_keys = batch_->chunk_keys(layer) +
                  (std::int64_t{plan.seq} * batch_->max_chunks() + plan.first_chunk) * key_size;
    kernels::PoolChunksArgs<T, T> pool;
    pool.block = block;
    pool.first_chunk = plan.first_chunk;
    pool.num_new_chunks = plan.num_new_chunks;
    pool.open_sum = open_sum;
    pool.maybe_rounded = scorer_->is_adapter() ? pooled_rows_.data() : new_keys;
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_pool_chunks(pool, stream));
    if (!scorer_->is_adapter()) return {};
    return product(pooled_rows_.data(), plan.num_new_chunks, scorer_->maybe_key_weight(layer),
                   key_size, new_keys, key_size, false);
  }

  /// [num_queries, query_size] queries, then null logits, of the block's query tokens.
  Status make_queries(const kernels::TokenBlock<T>& block, std::int64_t layer,
                      cudaStream_t stream) const {
    const std::int64_t query_size = scorer_->shape().query_size();
    if (!scorer_->is_adapter()) {
      kernels::GatherRowsArgs<T, float> gather;
      gather.rows = query_rows_.data();
      gather.row_stride = config().query_size();
      gather.num_rows = block.num_rows;
      gather.row_size = static_cast<std::int32_t>(config().query_size());
      gather.indices = query_tokens_.data();
      gather.num_indices = num_queries_;
      gather.index_base = block.first_token;
      gather.out = queries_.data();
      return kernels::launch_gather_rows(gather, stream);
    }
    kernels::GatherRowsArgs<T, T> gather;
    gather.rows = block.rows;
    gather.row_stride = block.row_stride;
    gather.num_rows = block.num_rows;
    gather.row_size = block.row_size;
    gather.indices = query_tokens_.data();
    gather.num_indices = num_queries_;
    gather.index_base = block.first_token;
    gather.out = trigger_rows_.data();
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_gather_rows(gather, stream));
    CHUNKLLM_RETURN_IF_ERROR(product(trigger_rows_.data(), num_queries_,
                                     scorer_->maybe_query_weight(layer), scorer_->query_features(),
                                     queries_.data(), query_size, false));
    if (!scorer_->shape().has_null_logits) return {};
    // The biases first, the product on top of them.
    float* nulls = queries_.data() + scorer_->query_features();
    const auto heads = static_cast<std::size_t>(scorer_->shape().num_heads);
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_fill_strided_rows(
        scorer_->maybe_null_bias(layer), static_cast<std::int32_t>(heads), nulls, query_size,
        num_queries_, stream));
    return product(trigger_rows_.data(), num_queries_, scorer_->maybe_null_weight(layer),
                   scorer_->shape().num_heads, nulls, query_size, true);
  }

  template <typename Out>
  Status product(const T* inputs, std::int64_t rows, const T* weights, std::int64_t features,
                 Out* outputs, std::int64_t output_stride, bool accumulates) const {
    GemmArgs<T, Out> args;
    args.inputs = inputs;
    args.input_stride = scorer_->row_size();
    args.weights = weights;
    args.weight_stride = scorer_->row_size();
    args.outputs = outputs;
    args.output_stride = output_stride;
    args.num_rows = rows;
    args.in_features = scorer_->row_size();
    args.out_features = features;
    args.accumulates = accumulates;
    return gemm(cublas_->get(), args);
  }

  static Status copy(float* to, const float* from, std::int64_t count, cudaStream_t stream) {
    return cuda_status(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(float),
                                       cudaMemcpyDeviceToDevice, stream),
                       "copy of a query");
  }

  /// Lists are the present layer's; their sizes stay for all layers until the next block.
  [[nodiscard]] DeviceAttendedSets block_sets(std::int64_t layer) const {
    const std::int64_t rows = max_triggers_ + 1;
    return {span_tokens_.data(), num_span_tokens_.data() + layer * rows,
            tail_begin_.data() + layer * rows, max_triggers_ + 1, batch_->span_capacity()};
  }

  [[nodiscard]] kernels::DeviceScoreArgs<T> score_args(std::int64_t layer, std::int32_t first,
                                                       std::int32_t count) const {
    const ScorerShape& shape = scorer_->shape();
    kernels::DeviceScoreArgs<T> args;
    args.queries = queries_.data() + first * shape.query_size();
    args.query_stride = shape.query_size();
    if (shape.has_null_logits) {
      args.maybe_null = args.queries + scorer_->query_features();
    } else {
      args.maybe_open_keys = open_keys_.data() + first * shape.key_size();
    }
    args.maybe_bias = scorer_->maybe_distance_bias(layer);
    args.keys = batch_->chunk_keys(layer);
    args.key_seq_stride = std::int64_t{batch_->max_chunks()} * shape.key_size();
    args.table = batch_->table();
    args.triggers = {query_tokens_.data() + first, trigger_seqs_.data() + first, count};
    args.window = local_window();
    args.num_layers = 1;
    args.num_heads = static_cast<std::int32_t>(shape.num_heads);
    args.num_key_heads = static_cast<std::int32_t>(shape.num_key_heads);
    args.key_dim = static_cast<std::int32_t>(shape.key_dim);
    args.adds_log_length = shape.adds_log_length;
    args.scale = shape.scale;
    args.head_join = batch_->options().chunk.head_join;
    args.scores = scores_.data();
    args.score_stride = batch_->max_chunks();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    return args;
  }

  [[nodiscard]] kernels::LocalWindow local_window() const {
    const ChunkOptions& chunk = batch_->options().chunk;
    return {static_cast<std::int32_t>(chunk.local_min_tokens),
            static_cast<std::int32_t>(chunk.local_min_chunks)};
  }

  /// The set that stood, then one for each trigger.
  Status choose_sets(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_copy_set(batch_->layer_sets(layer), plan.seq,
                                                      block_sets(layer), 0, stream));
    const ChunkOptions& chunk = batch_->options().chunk;
    for (std::int32_t first = 0; first < num_triggers_; first += scored_at_once_) {
      const std::int32_t count = std::min(scored_at_once_, num_triggers_ - first);
      const kernels::DeviceScoreArgs<T> score = score_args(layer, first, count);
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_score_chunks(score, stream));
      kernels::SelectChunksArgs select;
      select.scores = scores_.data();
      select.score_stride = batch_->max_chunks();
      select.table = score.table;
      select.triggers = score.triggers;
      select.window = score.window;
      select.budget = chunk.budget;
      select.threshold = chunk.threshold;
      select.chosen = chosen_.data();
      select.max_chosen = batch_->max_chunks();
      select.num_chosen = num_chosen_.data();
      select.num_nan = num_nan_.data();
      kernels::PlanArgs planned;
      planned.table = score.table;
      planned.triggers = score.triggers;
      planned.window = score.window;
      planned.chosen = chosen_.data();
      planned.max_chosen = select.max_chosen;
      planned.num_chosen = num_chosen_.data();
      planned.sets = block_sets(layer);
      planned.sets.span_tokens += std::int64_t{first + 1} * batch_->span_capacity();
      planned.sets.num_span_tokens += first + 1;
      planned.sets.tail_begin += first + 1;
      planned.sets.num_sets = count;
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_select_and_plan(select, planned, stream));
    }
    return {};
  }

  Status attend(const TokenBlockPlan& plan, std::int64_t layer, cudaStream_t stream) const {
    const auto rows = static_cast<std::int32_t>(plan.tokens.size());
    kernels::PrefillAttentionArgs<T> args;
    args.q = query_rows_.data();
    args.out = attended_.data();
    args.q_stride = config().query_size();
    args.out_stride = config().query_size();
    args.kv = as_const(batch_->kv(layer));
    args.seq = plan.seq;
    const TileList& list = layer == 0 ? first_tiles_ : other_tiles_;
    args.tiles = tiles_.data() + (layer == 0 ? 0 : first_tiles_.count());
    args.num_tiles = list.count();
    args.max_tile_rows = list.most_rows;
    args.sets = sets_of(plan, layer);
    args.first_token = plan.first_token;
    args.num_rows = rows;
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
    args.head_dim = static_cast<std::int32_t>(config().head_dim);
    args.scale = softmax_scale(config());
    args.q_rotation = batch_->rotation(layer);
    args.positions = batch_->positions(layer);
    args.rope = batch_->rope();
    args.window = batch_->window(layer);
    if (batch_->is_windowed(layer)) {  // one tile over all rows
      args.tiles = tiles_.data() + first_tiles_.count() + other_tiles_.count();
      args.num_tiles = 1;
      args.max_tile_rows = rows;
    }
    return kernels::launch_chunk_prefill_attention(args, stream);
  }

  /// Tiles name sets by index: 0 where the block has one only.
  [[nodiscard]] DeviceAttendedSets sets_of(const TokenBlockPlan& plan, std::int64_t layer) const {
    const auto one = [](DeviceAttendedSets sets, std::int32_t index) {
      sets.span_tokens += std::int64_t{index} * sets.span_capacity;
      sets.num_span_tokens += index;
      sets.tail_begin += index;
      sets.num_sets = 1;
      return sets;
    };
    if (batch_->options().dense || batch_->is_windowed(layer) ||
        plan.sets == TokenBlockPlan::Sets::kEverything) {
      return one(batch_->everything(), plan.seq);
    }
    if (plan.sets == TokenBlockPlan::Sets::kLook) {
      return look_set(plan.shares_look_set ? 0 : layer);
    }
    if (plan.sets == TokenBlockPlan::Sets::kShared) return one(batch_->sets(layer), plan.seq);
    return num_triggers_ > 0 ? block_sets(layer) : one(batch_->layer_sets(layer), plan.seq);
  }

  static constexpr std::size_t kMostWorkspaceBytes = std::size_t{256} << 20;

  const DeviceBackbone<T>* backbone_;
  const DeviceScorer<T>* scorer_;
  const DeviceBatch<T>* batch_;
  const DecodeStep<T>* step_;
  const CublasHandle* cublas_;
  std::int32_t max_rows_ = 0;
  std::int32_t max_triggers_ = 0;
  std::int32_t scored_at_once_ = 0;
  // Of the block in progress.
  std::int32_t num_triggers_ = 0;
  std::int32_t num_queries_ = 0;  // triggers, and the last token where it is none
  std::int32_t last_query_ = 0;   // index of the last token's query
  TileList first_tiles_;
  TileList other_tiles_;
  DeviceBuffer<std::int32_t> tokens_;
  DeviceBuffer<std::int32_t> positions_;
  DeviceBuffer<float> hidden_;
  DeviceBuffer<T> normed_;
  DeviceBuffer<T> qkv_;
  DeviceBuffer<T> query_rows_;
  DeviceBuffer<T> attended_;
  DeviceBuffer<std::byte> scratch_;
  DeviceBuffer<kernels::PrefillTile> tiles_;  // first layer's, the others', one over all rows
  DeviceBuffer<std::int32_t> query_tokens_;
  DeviceBuffer<std::int32_t> trigger_seqs_;
  DeviceBuffer<float> queries_;
  DeviceBuffer<float> open_keys_;
  DeviceBuffer<T> trigger_rows_;
  DeviceBuffer<T> pooled_rows_;
  DeviceBuffer<std::int32_t> span_tokens_;      // [1 + max_triggers, span_capacity]
  DeviceBuffer<std::int32_t> num_span_tokens_;  // [num_layers, 1 + max_triggers]
  DeviceBuffer<std::int32_t> tail_begin_;
  DeviceBuffer<std::int32_t> look_tokens_;
  DeviceBuffer<std::int32_t> num_look_tokens_;
  DeviceBuffer<std::int32_t> look_tail_begin_;
  DeviceBuffer<float> scores_;
  DeviceBuffer<std::int32_t> chosen_;
  DeviceBuffer<std::int32_t> num_chosen_;
  DeviceBuffer<std::int32_t> num_nan_;
  DeviceBuffer<std::byte> workspace_;
};

}  // namespace chunkllm::cuda
