// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/attention_args.hpp"
#include "chunkllm/chunk/boundary_journal.hpp"
#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/chunk_state_shape.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/layer_state.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/chunk/set_chooser.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

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
  /// `windowed` list of another length, no scorer or one whose shape contradicts itself, or an
  /// adapter of another hidden size.
  static Result<ChunkState> create(ChunkStateShape shape, std::shared_ptr<const Scorer> scorer,
                                   std::shared_ptr<const ChunkAdapter> maybe_adapter,
                                   const ChunkOptions& options) {
    CHUNKLLM_RETURN_IF_ERROR(validate(options));
    CHUNKLLM_RETURN_IF_ERROR(validate(shape));
    if (scorer == nullptr) return invalid_argument("no scorer was given");
    CHUNKLLM_RETURN_IF_ERROR(validate(scorer->shape()));
    if (maybe_adapter != nullptr &&
        static_cast<std::int64_t>(maybe_adapter->weight.size()) != shape.hidden_size) {
      return invalid_argument(
          "the Chunk Adapter has " + std::to_string(maybe_adapter->weight.size()) +
          " weights, expected the hidden size " + std::to_string(shape.hidden_size));
    }
    return ChunkState(std::move(shape), std::move(scorer), std::move(maybe_adapter), options);
  }

  [[nodiscard]] const ChunkTable& table() const { return journal_.table(); }
  [[nodiscard]] const ChunkOptions& options() const { return options_; }
  [[nodiscard]] const ChunkCounters& counters() const { return journal_.counters(); }
  [[nodiscard]] const Scorer& scorer() const { return *scorer_; }
  /// Tokens whose steps have ended.
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  /// Tokens that `on_token` has seen; may run ahead of the steps.
  [[nodiscard]] std::int64_t num_read_tokens() const { return journal_.num_read_tokens(); }
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
  ///                  In a step a layer's sets stand once its `tiles` has been called.
  [[nodiscard]] std::vector<TokenSpan> segments(std::int64_t layer, std::int64_t position) const {
    const LayerState& state = layer_at(layer);
    if (!state.selectable || (dense_ && in_step(position))) return everything_.segments(position);
    const bool looks = look_rows_ > 0 && in_step(position);
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
  void on_token(std::string_view bytes) { journal_.on_token(bytes); }

  /// The views are read until the layer's `tiles` has returned (layer 0: until its rounds are
  /// over); the buffers behind them may then serve the next layer.
  ///
  /// \param x  [step rows, hidden_size]
  void on_layer_input(std::int64_t layer, MatrixView<const float> x) {
    assert(x.cols == shape_.hidden_size);
    layer_at(layer).inputs = x;
  }
  /// \param q  [step rows, query_size]   \param k  [step rows, kv_size]
  void on_layer_qk(std::int64_t layer, MatrixView<const float> q, MatrixView<const float> k) {
    assert(q.cols == shape_.query_size && k.cols == shape_.kv_size);
    layer_at(layer).queries = q;
    layer_at(layer).keys_in = k;
  }

  /// Rows of the step, cut at a trigger in joined reading once layer 0 has found it.
  [[nodiscard]] std::int64_t step_rows() const { return step_rows_; }
  /// Rows of the step that have left layer 0.
  [[nodiscard]] std::int64_t first_layer_rows() const { return first_layer_rows_; }

  /// What the rows attend, ready for `chunk_attention`; valid until the next `tiles` of any layer
  /// or `end_step`.
  ///
  /// Layer 0: the rows from `first_layer_rows()` on that this round covers, counted from 0.
  /// Other layers: all rows of the step.
  std::span<const AttentionTile> tiles(std::int64_t layer, ThreadPool& pool) {
    LayerState& state = layer_at(layer);
    if (look_rows_ > 0) {
      if (state.selectable) {
        state.take_rows(*scorer_, table(), step_first_, step_first_ + step_rows_,
                        [](std::int64_t) {});
      }
      tiles_.assign(1, {0, look_rows_, state.selectable ? &state.look_set : &everything_});
      return tiles_;
    }
    if (layer > 0) {
      advance(state, step_first_ + step_rows_, pool);
      return cut_into_tiles(state, step_first_, step_first_ + step_rows_);
    }
    const std::int64_t first = step_first_ + first_layer_rows_;
    std::int64_t end = step_first_ + step_rows_;
    if (!everything_fits_) {
      if (boundaries_known_early()) {
        for (std::int64_t token = first; token < end; ++token) {
          decide(token, journal_.wanted(token));
        }
        advance(state, end, pool);
      } else {
        // A refresh that is due whatever the text says acts in the first layer, too.
        if (!joined_ && options_.refresh.triggers_at(first) && state.position <= first) {
          add_trigger(first);
          advance(state, first + 1, pool);
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
                                       : journal_.wanted(token));
        const bool trigger = boundary || (joined_ && options_.refresh.triggers_at(token));
        if (trigger && !everything_fits_) rows = r + 1;
      }
      advance(layer_at(0), first + rows, pool);
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
      for (const std::int64_t trigger : triggers_) refresh_together(trigger, pool);
    }
    num_tokens_ += step_rows_;
    journal_begin_ = std::max(journal_begin_, num_tokens_ - options_.journal_len);
    has_last_row_ = has_last_row_ || step_rows_ > 0;
    for (LayerState& layer : layers_) layer.prune_history(journal_begin_);
    journal_.prune(journal_begin_);
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
    if (last_trigger_ != trigger) journal_.count_refresh();
    last_trigger_ = trigger;
    journal_.note_counters(trigger);
    if (budget_holds_all(range, trigger, options_.budget) && attends_everything()) {
      return std::int64_t{0};
    }

    step_first_ = trigger;  // `LayerState::row` gives the remembered ones
    dense_ = false;
    for (LayerState& layer : layers_) {
      if (!layer.selectable) continue;
      layer.pending.assign(
          1, layer.make_pending(*scorer_, table(), range.num_closed, trigger, trigger + 1));
    }
    const bool joined = options_.selection != Selection::kLayer;
    if (joined) {
      refresh_together(trigger, pool);
    } else {
      for (LayerState& layer : layers_) {
        if (layer.selectable) refresh_by_layer(layer, pool);
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
  /// Errors: kOutOfRange where `num_tokens` lies more than `journal_len` tokens behind the longest
  /// length so far, or ahead of the present one; nothing is changed then.
  Status rollback(std::int64_t num_tokens) {
    if (num_tokens < journal_begin_ || num_tokens > num_tokens_) {
      return out_of_range("rollback to token " + std::to_string(num_tokens) + " of " +
                          std::to_string(num_tokens_) + ", the journal begins at " +
                          std::to_string(journal_begin_));
    }
    journal_.rollback(num_tokens);
    while (!looks_.empty() && looks_.back().end > num_tokens) {
      undo_look(looks_.back());
      looks_.pop_back();
    }
    for (LayerState& layer : layers_) {
      journal_.count_nan_scores(-layer.rollback(num_tokens, table()));
    }
    if (last_trigger_ >= num_tokens) last_trigger_ = -1;
    has_last_row_ = has_last_row_ && num_tokens == num_tokens_;
    num_tokens_ = num_tokens;
    look_rows_ = 0;
    dense_ = false;
    return {};
  }

 private:
  /// Rows tried at a time in layer 0 while its boundaries are unknown. About a chunk: longer
  /// stretches are mostly thrown away, shorter ones leave the matrix product too few rows.
  static constexpr std::int64_t kRowsAtATime = 32;

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
        journal_(options.guards) {
    // A second look restarts sums in front of its first token, at the journal's far end, too.
    const std::int64_t ring_len =
        options.journal_len + std::max<std::int64_t>(options.second_look, 1) + 1;
    for (std::int64_t l = 0; l < shape_.num_layers; ++l) {
      layers_.emplace_back(l, scorer_->shape(), ring_len);
      layers_.back().selectable =
          shape_.windowed.empty() || !shape_.windowed[static_cast<std::size_t>(l)];
    }
  }

  [[nodiscard]] bool in_step(std::int64_t position) const {
    return position >= step_first_ && position < step_first_ + step_rows_;
  }
  LayerState& layer_at(std::int64_t layer) { return layers_[static_cast<std::size_t>(layer)]; }
  [[nodiscard]] const LayerState& layer_at(std::int64_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] bool attends_everything() const {
    return std::all_of(layers_.begin(), layers_.end(), [](const LayerState& layer) {
      return layer.history.back().set == AttendedSet{};
    });
  }
  [[nodiscard]] bool boundaries_known_early() const { return adapter_ == nullptr && !joined_; }

  [[nodiscard]] CandidateRange range_at(std::int64_t trigger) const {
    return candidate_range(table(), trigger, options_);
  }

  /// First row behind those that layer 0 can try in one round, starting at token `first`.
  std::int64_t round_end(std::int64_t first) {
    // The rules' verdicts are there already: no row is tried in vain.
    const std::int64_t end =
        adapter_ == nullptr ? journal_.open_chunk_end(first) : first + kRowsAtATime;
    for (std::int64_t token = first; token < end; ++token) {
      if (!options_.refresh.triggers_at(token)) continue;
      if (joined_) return token + 1;    // the set changes behind it
      if (token > first) return token;  // the set changes at it
    }
    return end;
  }

  /// Closes the open chunk behind `token` where the verdict and the guards say so, and notes a
  /// trigger.
  bool decide(std::int64_t token, bool wants) {
    const bool boundary = journal_.decide(token, wants);
    const bool refreshes = boundary && options_.refresh.kind == RefreshPolicy::Kind::kBoundary;
    if (refreshes || options_.refresh.triggers_at(token)) add_trigger(token);
    journal_.note_counters(token);
    return boundary;
  }

  void add_trigger(std::int64_t token) {
    if (!triggers_.empty() && triggers_.back() == token) return;
    triggers_.push_back(token);
    last_trigger_ = token;
    journal_.count_refresh();
  }

  /// Takes a layer's rows up to token `end` and chooses the sets of the triggers among them.
  /// Windowed layers take none.
  void advance(LayerState& state, std::int64_t end, ThreadPool& pool) {
    if (!state.selectable) return;
    state.pending.clear();
    auto trigger = std::lower_bound(triggers_.begin(), triggers_.end(), state.position);
    state.take_rows(*scorer_, table(), step_first_, end, [&](std::int64_t token) {
      if (trigger == triggers_.end() || *trigger != token) return;
      ++trigger;
      if (everything_fits_) return;
      // The first layer learns of a boundary from its own output: one token later.
      const bool at_once = state.index > 0 || options_.refresh.triggers_at(token);
      state.pending.push_back(state.make_pending(*scorer_, table(), range_at(token).num_closed,
                                                 token, at_once && !joined_ ? token : token + 1));
    });
    if (!everything_fits_ && !joined_) refresh_by_layer(state, pool);
  }

  /// Chooses the set of each of a layer's pending triggers by its own scores.
  void refresh_by_layer(LayerState& state, ThreadPool& pool) {
    journal_.count_nan_scores(chooser().by_layer(state, pool));
  }
  /// Chooses one set for all layers by their joined scores, in effect behind the trigger.
  void refresh_together(std::int64_t trigger, ThreadPool& pool) {
    journal_.count_nan_scores(chooser().together(layers_, trigger, pool));
  }
  [[nodiscard]] SetChooser<Scorer> chooser() const {
    return {*scorer_, options_, journal_.table(), journal_.log_lengths(), step_first_};
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
    look.first_chunk = table().chunk_of(first);
    for (LayerState& layer : layers_) {
      look.layers.push_back(layer.back_up(first, look.end, look.first_chunk));
      const SetRecord& chosen = layer.history.back();
      layer.look_set =
          make_attended_set(table(), chosen.chunks, std::min(window, chosen.set.tail_begin));
      layer.restart(first, table());
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

  BoundaryJournal journal_;
  std::vector<LayerState> layers_;
  std::int64_t num_tokens_ = 0;
  std::int64_t journal_begin_ = 0;  // the oldest length that a rollback can go to
  std::int64_t last_trigger_ = -1;
  bool has_last_row_ = false;  // the layers remember the rows of token num_tokens_ - 1
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
