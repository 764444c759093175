// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/layer_state.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/text/sentence_boundary_stream.hpp"

namespace chunkllm {

/// Shapes that the chunk state shares with its engine.
struct ChunkStateShape {
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t query_size = 0;  ///< num_heads * head_dim
  std::int64_t kv_size = 0;     ///< num_kv_heads * head_dim
  /// [num_layers] or empty: layers that keep a sliding window of their own and take no selection.
  std::vector<bool> windowed;
};

/// How a step's tokens read the past.
enum class ReadMode : std::uint8_t {
  kDense,       ///< all of the past; boundaries and chunk keys are gathered, no set is chosen
  kLayerLocal,  ///< each layer by its own sets: prefill, whatever the selection
  kAsDecode     ///< by `ChunkOptions::selection`; joined sets cut a step at each trigger
};

/// Counted over all tokens so far.
struct ChunkCounters {
  std::int64_t boundaries = 0;
  std::int64_t forced_boundaries = 0;
  std::int64_t refreshes = 0;
  std::int64_t nan_scores = 0;
};

/// The chunk bookkeeping of one sequence, for an engine that keeps its own loop and cache.
///
/// A step is one or many consecutive tokens. Per step the engine calls, in this order:
///
///   begin_step(n, mode)
///   on_token(bytes)                       n times, where no Chunk Adapter is given
///   for each layer:
///     on_layer_input(layer, x)            normed inputs, where the scorer uses them
///     on_layer_qk(layer, q, k)            where the scorer uses them
///     tiles(layer, pool)                  what each row attends; then the engine's attention
///     on_first_layer_output(h, pool)      after layer 0 only
///   end_step(pool)
///
/// The first layer finds boundaries in its own output, so it may take several rounds: `tiles(0)`
/// covers the next rows only, and `on_first_layer_output` says how many of them hold; the engine
/// goes on with the rows behind those until `first_layer_rows()` reaches `step_rows()`. With one
/// token a step, or with boundaries from the sentence rules in layer-local reading, one round
/// does. In joined reading a step may be cut: `step_rows()` after layer 0 tells how many of the
/// tokens it holds.
///
/// `end_prompt` refreshes at a prompt's end and says how many of the last tokens are to be
/// evaluated again (the second look); the engine then runs them through the same calls.
///
/// Copying a state forks the sequence. Results do not depend on how tokens are cut into steps,
/// nor on the number of threads.
template <ChunkScorer Scorer>
class ChunkState {
 public:
  /// \param maybe_adapter  finds the boundaries; null: the sentence rules do, over `on_token`
  /// Errors: those of `validate(options)`; kInvalidArgument for a shape without layers, a
  /// `windowed` list of another length, no scorer, or an adapter of another hidden size.
  static Result<ChunkState> create(ChunkStateShape shape, std::shared_ptr<const Scorer> scorer,
                                   std::shared_ptr<const ChunkAdapter> maybe_adapter,
                                   const ChunkOptions& options) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options));
    if (shape.num_layers < 1 || shape.hidden_size < 1) {
      return invalid_argument("the shape has " + std::to_string(shape.num_layers) +
                              " layers of hidden size " + std::to_string(shape.hidden_size));
    }
    if (!shape.windowed.empty() &&
        static_cast<std::int64_t>(shape.windowed.size()) != shape.num_layers) {
      return invalid_argument("windowed names " + std::to_string(shape.windowed.size()) +
                              " layers, expected none or " + std::to_string(shape.num_layers));
    }
    if (scorer == nullptr) return invalid_argument("no scorer was given");
    if (maybe_adapter != nullptr &&
        static_cast<std::int64_t>(maybe_adapter->weight.size()) != shape.hidden_size) {
      return invalid_argument(
          "the Chunk Adapter has " + std::to_string(maybe_adapter->weight.size()) +
          " weights, expected the hidden size " + std::to_string(shape.hidden_size));
    }
    return ChunkState(std::move(shape), std::move(scorer), std::move(maybe_adapter), options);
  }

  [[nodiscard]] const ChunkTable& table() const { return table_; }
  [[nodiscard]] const ChunkOptions& options() const { return options_; }
  [[nodiscard]] const ChunkCounters& counters() const { return counters_; }
  [[nodiscard]] const Scorer& scorer() const { return *scorer_; }
  /// Tokens whose steps have ended.
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  /// Tokens that `on_token` has seen; may run ahead of the steps.
  [[nodiscard]] std::int64_t num_read_tokens() const {
    return first_record_ + static_cast<std::int64_t>(records_.size());
  }
  [[nodiscard]] bool needs_token_bytes() const { return adapter_ == nullptr; }
  /// Bytes of chunk keys and sums that stay in memory.
  [[nodiscard]] std::int64_t resident_bytes() const {
    std::int64_t total = 0;
    for (const LayerState& layer : layers_) total += layer.resident_bytes();
    return total;
  }

  /// What the token at `position` attends in `layer`: sorted, merged [begin, end) of tokens.
  ///
  /// \param position  of a token in the step (or the second look) in progress, or of the next one.
  ///                  Windowed layers report all of the past: their window is the engine's.
  [[nodiscard]] std::vector<TokenSpan> segments(std::int64_t layer, std::int64_t position) const {
    const LayerState& state = layer_at(layer);
    const bool looks = look_rows_ > 0 && state.selectable && position < step_first_ + look_rows_;
    return (looks ? state.look_set : state.set_at(position)).segments(position);
  }

  void begin_step(std::int64_t num_rows, ReadMode mode) {
    step_first_ = num_tokens_;
    step_rows_ = num_rows;
    first_layer_rows_ = 0;
    look_rows_ = 0;
    triggers_.clear();
    dense_ = mode == ReadMode::kDense;
    joined_ = mode == ReadMode::kAsDecode && options_.selection != Selection::kLayer;
    // While everything fits, boundaries change no set: no scores, no rounds, no cuts.
    const std::int64_t end = step_first_ + num_rows;
    everything_fits_ = dense_ || (options_.budget.kind != Budget::Kind::kChunks &&
                                  options_.budget.tokens_at(end) >= end && attends_everything());
  }

  /// Feeds a token's bytes to the sentence rules. Tokens come in order, each once.
  void on_token(std::string_view bytes) {
    TokenRecord record;
    record.wanted = sentences_.on_token(bytes);
    record.sentences = sentences_;
    records_.push_back(record);
  }

  /// The views are read until the layer's `tiles` has returned (layer 0: until its rounds are
  /// over); the buffers behind them may then serve the next layer.
  void on_layer_input(std::int64_t layer, MatrixView<const float> x) { layer_at(layer).inputs = x; }
  void on_layer_qk(std::int64_t layer, MatrixView<const float> q, MatrixView<const float> k) {
    layer_at(layer).queries = q;
    layer_at(layer).keys_in = k;
  }

  /// Rows of the step, cut at a trigger in joined reading once layer 0 has found it.
  [[nodiscard]] std::int64_t step_rows() const { return step_rows_; }
  /// Rows of the step that have left layer 0.
  [[nodiscard]] std::int64_t first_layer_rows() const { return first_layer_rows_; }

  /// What the rows attend, ready for `chunk_attention`; valid until the layer's next call.
  ///
  /// Layer 0: the rows from `first_layer_rows()` on that this round covers, counted from 0.
  /// Other layers: all rows of the step.
  std::span<const AttentionTile> tiles(std::int64_t layer, ThreadPool& pool) {
    LayerState& state = layer_at(layer);
    if (look_rows_ > 0) {
      if (state.selectable) take_rows(state, layer, step_first_ + step_rows_, nullptr);
      tiles_.assign(1, {0, look_rows_, state.selectable ? &state.look_set : &everything_});
      return tiles_;
    }
    if (layer > 0) {
      advance(state, layer, step_first_ + step_rows_, pool);
      return cut_into_tiles(state, step_first_, step_first_ + step_rows_);
    }
    const std::int64_t first = step_first_ + first_layer_rows_;
    std::int64_t end = step_first_ + step_rows_;
    if (!everything_fits_) {
      if (boundaries_known_early()) {
        for (std::int64_t token = first; token < end; ++token) decide(token, wanted(token));
        advance(state, layer, end, pool);
      } else {
        // A refresh that is due whatever the text says acts in the first layer, too.
        if (!joined_ && options_.refresh.triggers_at(first) && state.position <= first) {
          add_trigger(first);
          advance(state, layer, first + 1, pool);
        }
        end = std::min(end, round_end(first));
      }
    }
    return cut_into_tiles(state, first, end);
  }

  /// Looks for boundaries in the first layer's output (or in the rules' verdicts).
  ///
  /// \param hidden  the rows that the last `tiles(0)` covered, [rows, hidden_size]
  /// \return how many of them hold; later ones must be computed anew with the next `tiles(0)`
  std::int64_t on_first_layer_output(MatrixView<const float> hidden, ThreadPool& pool) {
    if (look_rows_ > 0) {
      first_layer_rows_ += hidden.rows;
      return hidden.rows;
    }
    const std::int64_t first = step_first_ + first_layer_rows_;
    std::int64_t rows = hidden.rows;
    if (everything_fits_ || !boundaries_known_early()) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t token = first + r;
        const bool boundary = decide(
            token, adapter_ != nullptr ? adapter_->probability(hidden.row(r)) > adapter_->threshold
                                       : wanted(token));
        const bool trigger = boundary || (joined_ && options_.refresh.triggers_at(token));
        if (trigger && !everything_fits_) rows = r + 1;
      }
      advance(layer_at(0), /*layer=*/0, first + rows, pool);
    }
    first_layer_rows_ += rows;
    if (joined_ && !triggers_.empty() && !everything_fits_) step_rows_ = first_layer_rows_;
    return rows;
  }

  /// Joins the layers' scores where a set is shared, and takes the step's tokens for good.
  void end_step(ThreadPool& pool) {
    // The engine's buffers hold the last layer's rows by now.
    for (LayerState& layer : layers_) layer.release_rows();
    if (look_rows_ > 0) {
      look_rows_ = 0;
      return;
    }
    if (joined_ && !everything_fits_) {
      for (const std::int64_t trigger : triggers_) refresh_joined(trigger, pool);
    }
    num_tokens_ += step_rows_;
    journal_begin_ = std::max(journal_begin_, num_tokens_ - options_.journal_len);
    has_last_row_ = has_last_row_ || step_rows_ > 0;
    for (LayerState& layer : layers_) {
      layer.prune_history(journal_begin_);
    }
    while (first_record_ < journal_begin_ - 1) {
      records_.pop_front();
      ++first_record_;
    }
    std::erase_if(looks_, [&](const LookRecord& look) { return look.end < journal_begin_; });
  }

  /// Refreshes at a prompt's end, with the last token as the trigger, and opens the second look.
  ///
  /// \param turn_tokens  tokens read since the last turn; the look reaches no further back
  /// \param look_again   false after dense reading: the last tokens have seen everything
  /// \return how many of the last tokens the engine must evaluate again, through `on_layer_input`
  ///         ... `end_step` without `begin_step` and `on_token`, replacing their KV; 0 where
  ///         everything is attended anyway
  /// Errors: kInvalidArgument if the turn has no token, or none was read since a rollback: the
  ///         trigger's rows are gone then.
  Result<std::int64_t> end_prompt(std::int64_t turn_tokens, bool look_again, ThreadPool& pool) {
    if (turn_tokens <= 0 || !has_last_row_) {
      return invalid_argument(turn_tokens <= 0 ? "the prompt has no token"
                                               : "no token was read since the rollback");
    }
    const std::int64_t trigger = num_tokens_ - 1;
    const CandidateRange range = range_at(trigger);
    if (last_trigger_ != trigger) ++counters_.refreshes;
    last_trigger_ = trigger;
    record_at(trigger).counters = counters_;
    if (budget_holds_all(range, trigger, options_.budget) && attends_everything()) {
      return std::int64_t{0};
    }

    step_first_ = trigger;  // `pending_row` reads the remembered rows
    for (LayerState& layer : layers_) {
      if (!layer.selectable) continue;
      layer.pending.assign(1, PendingRefresh{trigger, trigger + 1, {}});
      make_open_key(layer, range, layer.pending.front());
    }
    const bool joined = options_.selection != Selection::kLayer;
    if (joined) {
      refresh_joined(trigger, pool);
    } else {
      for (std::int64_t l = 0; l < shape_.num_layers; ++l) {
        if (layer_at(l).selectable) refresh_pending(layer_at(l), l, pool);
      }
    }
    if (!look_again) return std::int64_t{0};
    const std::int64_t rows =
        std::min({std::max<std::int64_t>(options_.second_look, 1), turn_tokens, num_tokens_});
    begin_look(num_tokens_ - rows, rows);
    return rows;
  }

  /// Forgets all tokens from `num_tokens` on, as if they had never been read.
  ///
  /// A second look behind that point is undone, too; the engine must then restore the keys and
  /// values that it replaced. Tokens that `on_token` has seen ahead of the steps are forgotten,
  /// too.
  ///
  /// Errors: kOutOfRange beyond `journal_len` tokens before the longest length so far since the
  /// journal was that long; nothing is changed then.
  Status rollback(std::int64_t num_tokens) {
    if (num_tokens < journal_begin_ || num_tokens > num_tokens_) {
      return out_of_range("rollback to token " + std::to_string(num_tokens) + " of " +
                          std::to_string(num_tokens_) + ", the journal begins at " +
                          std::to_string(journal_begin_));
    }
    table_.rollback(num_tokens);
    log_lengths_.resize(static_cast<std::size_t>(table_.num_chunks()));
    while (!looks_.empty() && looks_.back().end > num_tokens) {
      undo_look(looks_.back());
      looks_.pop_back();
    }
    const std::int64_t open = table_.open_begin();
    std::int64_t nan_scores = counters_.nan_scores;
    for (LayerState& layer : layers_) {
      nan_scores -= layer.rollback(num_tokens, open, table_.num_chunks());
    }
    records_.resize(static_cast<std::size_t>(num_tokens - first_record_));
    sentences_ = records_.empty() ? SentenceBoundaryStream{} : records_.back().sentences;
    counters_ = records_.empty() ? ChunkCounters{} : records_.back().counters;
    counters_.nan_scores = nan_scores;
    has_last_row_ = has_last_row_ && num_tokens == num_tokens_;
    num_tokens_ = num_tokens;
    return {};
  }

 private:
  /// Rows tried at a time in layer 0 while its boundaries are unknown. About a chunk: longer
  /// stretches are mostly thrown away, shorter ones leave the matrix product too few rows.
  static constexpr std::int64_t kRowsAtATime = 32;

  struct TokenRecord {
    bool wanted = false;
    SentenceBoundaryStream sentences;  // after the token
    ChunkCounters counters;            // after the token; nan_scores stand in the set records
  };
  struct LookRecord {
    std::int64_t first = 0;
    std::int64_t end = 0;
    std::int64_t first_chunk = 0;  // the one that holds `first`
    std::vector<LayerState::LookBackup> layers;
  };

  ChunkState(ChunkStateShape shape, std::shared_ptr<const Scorer> scorer,
             std::shared_ptr<const ChunkAdapter> maybe_adapter, const ChunkOptions& options)
      : shape_(std::move(shape)),
        scorer_(std::move(scorer)),
        adapter_(std::move(maybe_adapter)),
        options_(options),
        scorer_shape_(scorer_->shape()) {
    // A second look restarts sums in front of its first token, at the journal's far end, too.
    const std::int64_t ring_len =
        options.journal_len + std::max<std::int64_t>(options.second_look, 1) + 1;
    for (std::int64_t l = 0; l < shape_.num_layers; ++l) {
      layers_.emplace_back(scorer_shape_, ring_len);
      layers_.back().selectable =
          shape_.windowed.empty() || !shape_.windowed[static_cast<std::size_t>(l)];
    }
  }

  LayerState& layer_at(std::int64_t layer) { return layers_[static_cast<std::size_t>(layer)]; }
  [[nodiscard]] const LayerState& layer_at(std::int64_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }
  TokenRecord& record_at(std::int64_t token) {
    while (num_read_tokens() <= token) records_.emplace_back();  // an adapter needs no bytes
    return records_[static_cast<std::size_t>(token - first_record_)];
  }
  bool wanted(std::int64_t token) { return record_at(token).wanted; }

  [[nodiscard]] bool attends_everything() const {
    return std::all_of(layers_.begin(), layers_.end(), [](const LayerState& layer) {
      return layer.history.back().set == AttendedSet{};
    });
  }
  [[nodiscard]] bool boundaries_known_early() const { return adapter_ == nullptr && !joined_; }

  [[nodiscard]] CandidateRange range_at(std::int64_t trigger) const {
    return candidate_range(table_, trigger, options_.local_min_tokens, options_.local_min_chunks);
  }

  /// First row behind those that layer 0 can try in one round, starting at token `first`.
  std::int64_t round_end(std::int64_t first) {
    std::int64_t end = first + kRowsAtATime;
    if (adapter_ == nullptr) {  // the rules' verdicts are there already: no row is tried in vain
      end = first + 1;
      const std::int64_t open = table_.open_begin();
      while (end < num_read_tokens() &&
             !decide_boundary(end - open, wanted(end - 1), options_.guards).boundary) {
        ++end;
      }
    }
    for (std::int64_t token = first; token < end; ++token) {
      if (!options_.refresh.triggers_at(token)) continue;
      if (joined_) return token + 1;    // the set changes behind it
      if (token > first) return token;  // the set changes at it
    }
    return end;
  }

  /// Closes the open chunk behind `token` where the verdict and the guards say so.
  bool decide(std::int64_t token, bool wants) {
    const BoundaryDecision decision =
        decide_boundary(token + 1 - table_.open_begin(), wants, options_.guards);
    if (decision.boundary) {
      log_lengths_.push_back(std::log(static_cast<float>(token + 1 - table_.open_begin())));
      table_.close(token + 1);
      ++counters_.boundaries;
      counters_.forced_boundaries += decision.forced ? 1 : 0;
    }
    const bool boundary_refresh =
        decision.boundary && options_.refresh.kind == RefreshPolicy::Kind::kBoundary;
    if (boundary_refresh || options_.refresh.triggers_at(token)) add_trigger(token);
    record_at(token).counters = counters_;
    return decision.boundary;
  }

  void add_trigger(std::int64_t token) {
    if (!triggers_.empty() && triggers_.back() == token) return;
    triggers_.push_back(token);
    last_trigger_ = token;
    ++counters_.refreshes;
  }

  /// Takes a layer's rows up to token `end` and chooses the sets of the triggers among them.
  /// Windowed layers take none.
  void advance(LayerState& state, std::int64_t layer, std::int64_t end, ThreadPool& pool) {
    if (!state.selectable) return;
    state.pending.clear();
    take_rows(state, layer, end, &state.pending);
    if (everything_fits_) {
      state.pending.clear();
      return;
    }
    if (!joined_) refresh_pending(state, layer, pool);
  }

  /// Adds rows to the open chunk's sum, closes keys, and notes triggers on the way.
  void take_rows(LayerState& state, std::int64_t layer, std::int64_t end,
                 std::vector<PendingRefresh>* maybe_pending) {
    auto trigger = std::lower_bound(triggers_.begin(), triggers_.end(), state.position);
    close_key(state, layer);  // of a chunk that turned out to end with the last token taken
    while (state.position < end) {
      const std::int64_t token = state.position;
      if (scorer_shape_.state_size > 0) {
        const TokenRow row = state.row(token - step_first_);
        scorer_->add_token(layer, row, token == begin_of(state.chunk), state.open.data());
        state.journal(token);
      }
      ++state.position;
      close_key(state, layer);
      if (maybe_pending == nullptr || trigger == triggers_.end() || *trigger != token) continue;
      ++trigger;
      // The first layer learns of a boundary from its own output: one token later.
      const bool at_once = layer > 0 || options_.refresh.triggers_at(token);
      maybe_pending->push_back({token, at_once && !joined_ ? token : token + 1, {}});
      make_open_key(state, range_at(token), maybe_pending->back());
    }
    if (end > step_first_) state.remember_row(end - 1 - step_first_);
  }

  /// Makes the key of the chunk that ends in front of the layer's next token, if one does.
  void close_key(LayerState& state, std::int64_t layer) {
    if (state.chunk >= table_.num_chunks() || table_.end(state.chunk) != state.position) return;
    if (scorer_shape_.state_size > 0) {
      state.key.resize(static_cast<std::size_t>(scorer_shape_.key_size()));
      scorer_->make_key(layer, state.open.data(), table_.length(state.chunk), state.key.data());
      state.put_key(state.chunk);
    }
    ++state.chunk;
  }

  [[nodiscard]] std::int64_t begin_of(std::int64_t chunk) const {
    return chunk == 0 ? 0 : table_.end(chunk - 1);
  }

  /// Key of the part of the open chunk that lies at or before the trigger, if any.
  void make_open_key(const LayerState& state, const CandidateRange& range,
                     PendingRefresh& pending) {
    if (scorer_shape_.num_heads == 0) return;
    const std::int64_t begin = begin_of(range.num_closed);
    const std::int64_t length = pending.trigger + 1 - begin;
    if (length == 0) return;
    pending.open_key.resize(static_cast<std::size_t>(scorer_shape_.key_size()));
    const auto layer = static_cast<std::int64_t>(&state - layers_.data());
    scorer_->make_key(layer, state.open.data(), length, pending.open_key.data());
    pending.open_length = length;
  }

  /// Scores of a trigger's candidates in one layer.
  std::vector<float> scores_of(const LayerState& state, std::int64_t layer,
                               const PendingRefresh& pending, const CandidateRange& range) const {
    std::vector<float> scores(static_cast<std::size_t>(range.num_candidates()));
    if (scores.empty()) return scores;
    if (scorer_shape_.num_heads == 0) {
      scorer_->direct_scores(layer, pending.trigger, scores);
      return scores;
    }
    std::vector<float> query(static_cast<std::size_t>(scorer_shape_.query_size()));
    scorer_->make_query(layer, state.row(pending.trigger - step_first_), query.data());
    ScoreChunksArgs args;
    args.query = query.data();
    if (scorer_shape_.has_null_logits) {
      args.maybe_null = query.data() + scorer_shape_.num_heads * scorer_shape_.key_dim;
    }
    args.maybe_bias = scorer_->distance_bias(layer);
    args.maybe_open_key = pending.open_key.empty() ? nullptr : pending.open_key.data();
    if (scorer_shape_.adds_log_length) {
      args.maybe_log_lengths = log_lengths_.data();
      args.open_log_length =
          std::log(static_cast<float>(std::max<std::int64_t>(pending.open_length, 1)));
    }
    args.keys = &state.keys;
    args.table = &table_;
    args.range = range;
    args.query_token = pending.trigger;
    args.num_heads = scorer_shape_.num_heads;
    args.num_key_heads = scorer_shape_.num_key_heads;
    args.key_dim = scorer_shape_.key_dim;
    args.scale = scorer_shape_.scale;
    args.head_join = options_.head_join;
    std::vector<float> scratch;
    score_chunks(args, scores, scratch);
    return scores;
  }

  /// Chooses the set of each pending trigger by the layer's own scores.
  void refresh_pending(LayerState& state, std::int64_t layer, ThreadPool& pool) {
    std::vector<SetRecord> chosen(state.pending.size());
    pool.parallel_for(static_cast<std::int64_t>(chosen.size()), [&](std::int64_t i, int) {
      const PendingRefresh& pending = state.pending[static_cast<std::size_t>(i)];
      SetRecord& record = chosen[static_cast<std::size_t>(i)];
      record.trigger = pending.trigger;
      record.effective = pending.effective;
      const CandidateRange range = range_at(pending.trigger);
      if (budget_holds_all(range, pending.trigger, options_.budget)) return;
      const ChunkOrder order(scores_of(state, layer, pending, range), options_.threshold);
      record.num_nan = order.num_nan();
      record.chunks = take_within_budget(table_, range, pending.trigger, options_.budget, order);
      record.set = make_attended_set(table_, record.chunks, range.tail_begin);
    });
    for (SetRecord& record : chosen) {
      counters_.nan_scores += record.num_nan;
      state.history.push_back(std::move(record));
    }
    state.pending.clear();
  }

  /// Chooses one set for all layers by their joined scores, in effect behind the trigger.
  void refresh_joined(std::int64_t trigger, ThreadPool& pool) {
    SetRecord record;
    record.trigger = trigger;
    record.effective = trigger + 1;
    const CandidateRange range = range_at(trigger);
    if (!budget_holds_all(range, trigger, options_.budget)) {
      std::vector<std::vector<float>> scores(layers_.size());
      pool.parallel_for(shape_.num_layers, [&](std::int64_t l, int) {
        const LayerState& layer = layer_at(l);
        if (!layer.selectable) return;
        const auto pending =
            std::find_if(layer.pending.begin(), layer.pending.end(),
                         [&](const PendingRefresh& p) { return p.trigger == trigger; });
        assert(pending != layer.pending.end());
        scores[static_cast<std::size_t>(l)] = scores_of(layer, l, *pending, range);
      });
      std::erase_if(scores, [](const std::vector<float>& s) { return s.empty(); });
      const ChunkOrder order(join_layers(scores, options_.selection, table_, range, trigger,
                                         options_.budget, options_.threshold),
                             options_.threshold);
      record.num_nan = order.num_nan();
      counters_.nan_scores += record.num_nan;
      record.chunks = take_within_budget(table_, range, trigger, options_.budget, order);
      record.set = make_attended_set(table_, record.chunks, range.tail_begin);
    }
    for (LayerState& layer : layers_) {
      layer.pending.clear();
      if (!layer.selectable) continue;
      layer.history.push_back(record);
      record.num_nan = 0;  // counted once
    }
  }

  /// Cuts tokens [first, end) where the layer's set changes.
  std::span<const AttentionTile> cut_into_tiles(const LayerState& state, std::int64_t first,
                                                std::int64_t end) {
    tiles_.clear();
    if (dense_) {
      tiles_.push_back({0, end - first, &everything_});
      return tiles_;
    }
    for (std::int64_t token = first; token < end;) {
      std::int64_t next = end;
      const AttendedSet& set = state.set_at(token, &next);
      next = std::min(next, end);
      tiles_.push_back({token - first, next - token, &set});
      token = next;
    }
    return tiles_;
  }

  void begin_look(std::int64_t first, std::int64_t rows) {
    step_first_ = first;
    step_rows_ = rows;
    first_layer_rows_ = 0;
    look_rows_ = rows;
    triggers_.clear();
    LookRecord look;
    look.first = first;
    look.end = first + rows;
    const std::int64_t window = range_at(first).tail_begin;
    const std::int64_t chunk = table_.chunk_of(first);
    look.first_chunk = chunk;
    const std::int64_t begin = begin_of(chunk);
    for (LayerState& layer : layers_) {
      look.layers.push_back(layer.back_up(first, look.end, chunk));
      const SetRecord& chosen = layer.history.back();
      layer.look_set =
          make_attended_set(table_, chosen.chunks, std::min(window, chosen.set.tail_begin));
      layer.restart(first, chunk, begin);
    }
    if (options_.journal_len > 0) looks_.push_back(std::move(look));
  }

  void undo_look(const LookRecord& look) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].restore(look.layers[l], look.first, look.first_chunk);
    }
  }

  ChunkStateShape shape_;
  std::shared_ptr<const Scorer> scorer_;
  std::shared_ptr<const ChunkAdapter> adapter_;
  ChunkOptions options_;
  ScorerShape scorer_shape_;

  ChunkTable table_;
  std::vector<float> log_lengths_;  // of closed chunks
  std::vector<LayerState> layers_;
  ChunkCounters counters_;
  std::int64_t num_tokens_ = 0;
  std::int64_t journal_begin_ = 0;  // the oldest length that a rollback can go to
  std::int64_t last_trigger_ = -1;
  bool has_last_row_ = false;  // the layers remember the rows of token num_tokens_ - 1

  SentenceBoundaryStream sentences_;
  std::deque<TokenRecord> records_;  // of tokens from first_record_ on
  std::int64_t first_record_ = 0;
  std::vector<LookRecord> looks_;

  // The step in progress.
  std::int64_t step_first_ = 0;
  std::int64_t step_rows_ = 0;
  std::int64_t first_layer_rows_ = 0;
  std::int64_t look_rows_ = 0;  // > 0: the step is a second look
  bool dense_ = false;
  bool joined_ = false;
  bool everything_fits_ = false;
  std::vector<std::int64_t> triggers_;
  std::vector<AttentionTile> tiles_;
  AttendedSet everything_;
};

}  // namespace chunkllm
