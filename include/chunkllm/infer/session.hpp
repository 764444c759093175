// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_state.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm {

/// Settings of a `Session`.
struct SessionOptions {
  bool dense = false;          ///< no chunk selection at all
  bool dense_prefill = false;  ///< `prefill` attends everything; selection starts behind it
  Positions positions = Positions::kOriginal;
  std::int64_t block_len = 512;  ///< tokens that `prefill` and `read` take through a layer at once
  ChunkOptions chunk;
};

/// Attended and seen tokens, summed over layers and tokens.
struct AttendedStats {
  double share_sum = 0.0;     ///< of attended / past
  double attended_sum = 0.0;  ///< tokens
  std::int64_t count = 0;     ///< (layer, token) pairs

  [[nodiscard]] double share() const {
    return count == 0 ? 1.0 : share_sum / static_cast<double>(count);
  }
};

/// Bytes that a session holds.
struct SessionMemory {
  std::int64_t weights = 0;
  std::int64_t kv = 0;
  std::int64_t chunk_keys = 0;
  std::int64_t workspace = 0;
  [[nodiscard]] std::int64_t total() const { return weights + kv + chunk_keys + workspace; }
};

/// One sequence on a frozen backbone with chunk-selective attention: the whole thing.
///
/// Copying a session forks it. The backbone and the pool must outlive it.
///
/// \tparam Backbone  satisfies `FrozenBackbone`
/// \tparam Scorer    satisfies `ChunkScorer`
/// \tparam KvType    float, F16 or BF16
template <FrozenBackbone Backbone, ChunkScorer Scorer, typename KvType>
class Session {
 public:
  /// Bytes of a token, for the sentence rules; not called where a Chunk Adapter is given.
  using TokenBytes = std::function<std::string_view(std::int32_t)>;
  /// Called behind each block with the tokens read so far; false stops with kInterrupted.
  using Progress = std::function<bool(std::int64_t)>;
  /// Called with the final hidden rows of consecutive tokens from `first_token` on.
  using HiddenRows = std::function<void(std::int64_t first_token, MatrixView<const float> hidden)>;
  /// Called after a layer's attention with the queries as attention got them and the softmax's
  /// log denominators, [rows, num_heads]; for teachers and oracles.
  using AttentionObserver =
      std::function<void(std::int64_t layer, std::int64_t first_token, MatrixView<const float> q,
                         const KvView<KvType>& kv, std::span<const float> lse)>;

  /// Errors: kInvalidArgument as `validate(ChunkOptions)` says, or for a block below 1 token.
  static Result<Session> create(const Backbone& backbone, std::shared_ptr<const Scorer> scorer,
                                std::shared_ptr<const ChunkAdapter> maybe_adapter,
                                TokenBytes token_bytes, const SessionOptions& options,
                                ThreadPool& pool) {
    if (options.block_len < 1) {
      return invalid_argument("block_len is " + std::to_string(options.block_len) +
                              ", expected at least 1");
    }
    const BackboneConfig& config = backbone.config();
    ChunkStateShape shape;
    shape.num_layers = config.num_layers;
    shape.hidden_size = config.hidden_size;
    shape.query_size = config.query_size();
    shape.kv_size = config.kv_size();
    for (const std::int64_t window : config.sliding_window) shape.windowed.push_back(window > 0);
    CHUNKLLM_ASSIGN_OR_RETURN(auto state,
                              ChunkState<Scorer>::create(std::move(shape), std::move(scorer),
                                                         std::move(maybe_adapter), options.chunk));
    return Session(backbone, std::move(state), std::move(token_bytes), options, pool);
  }

  [[nodiscard]] std::int64_t num_tokens() const { return kv_.num_tokens(); }
  [[nodiscard]] const ChunkState<Scorer>& chunks() const { return state_; }
  [[nodiscard]] const SessionOptions& options() const { return options_; }
  [[nodiscard]] const Backbone& backbone() const { return *backbone_; }
  [[nodiscard]] const AttendedStats& attended() const { return attended_; }
  [[nodiscard]] std::int64_t kv_bytes_per_token() const { return kv_.bytes_per_token(); }
  [[nodiscard]] std::int64_t kv_resident_bytes() const { return kv_.resident_bytes(); }
  [[nodiscard]] SessionMemory memory() const {
    SessionMemory memory;
    memory.weights = backbone_->weight_bytes();
    memory.kv = kv_.resident_bytes();
    memory.chunk_keys = options_.dense ? 0 : state_.resident_bytes();
    for (const std::vector<float>* buffer :
         {&hidden_, &embedded_, &normed_, &q_, &k_, &v_, &attended_rows_, &workspace_, &logits_}) {
      memory.workspace += static_cast<std::int64_t>(buffer->capacity() * sizeof(float));
    }
    return memory;
  }

  /// Starts to count `attended()` anew, for tokens from `first_token` on.
  void count_attended_from(std::int64_t first_token) {
    attended_ = {};
    count_from_ = first_token;
  }
  void observe_attention(AttentionObserver observer) { observer_ = std::move(observer); }

  /// Makes room for that many tokens; without it the cache grows by halves.
  void reserve(std::int64_t num_tokens) { kv_.reserve(num_tokens); }

  /// Reads a part of a prompt. Never refreshes at its end: that is `finish_prompt`.
  ///
  /// The result does not depend on how a prompt is cut into calls or blocks.
  ///
  /// Errors: kInvalidArgument for an id outside the vocabulary (nothing is read then);
  ///         kInterrupted where `progress` asks to stop; the tokens of whole blocks stay read.
  Status prefill(std::span<const std::int32_t> tokens, const Progress& progress = {}) {
    return read_rows(tokens, options_.dense_prefill ? ReadMode::kDense : ReadMode::kLayerLocal,
                     /*is_prompt=*/true, progress, {});
  }

  /// Ends a turn's prompt: refreshes with its last token, then evaluates the turn's last tokens
  /// once more with the set chosen (the second look), replacing their KV.
  ///
  /// \return logits of the last token, [vocab_size], valid until the next call
  /// Errors: kInvalidArgument if nothing was read since the last turn, or since a rollback.
  Result<std::span<const float>> finish_prompt() {
    if (turn_tokens() == 0) return invalid_argument("the prompt has no token");
    if (last_row_ < 0) return invalid_argument("no token was read since the rollback");
    if (!options_.dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const std::int64_t rows,
          state_.end_prompt(turn_tokens(), /*look_again=*/!options_.dense_prefill, *pool_));
      if (rows > 0) look_again(rows);
    }
    recent_tokens_.back().turn_tokens = 0;
    return last_logits();
  }

  /// Reads one token and gives the logits behind it, [vocab_size], valid until the next call.
  ///
  /// Errors: kInvalidArgument for an id outside the vocabulary.
  Result<std::span<const float>> step(std::int32_t token) {
    CHUNKLLM_RETURN_IF_ERROR(
        read_rows({&token, 1}, ReadMode::kAsDecode, /*is_prompt=*/false, {}, {}));
    return last_logits();
  }

  /// Reads given tokens as decoding would, and shows their final hidden rows: teacher forcing.
  ///
  /// \param mode  kAsDecode follows `ChunkOptions::selection`; kLayerLocal reads as `prefill`
  Status read(std::span<const std::int32_t> tokens, ReadMode mode, const Progress& progress,
              const HiddenRows& hidden_rows) {
    return read_rows(tokens, mode, /*is_prompt=*/false, progress, hidden_rows);
  }

  /// Forgets the tokens from `num_tokens` on, as if they had never been read.
  ///
  /// Errors: kOutOfRange beyond the journal; nothing is changed then.
  Status rollback(std::int64_t num_tokens) {
    if (options_.dense) {
      if (num_tokens < 0 || num_tokens > kv_.num_tokens()) {
        return out_of_range("rollback to token " + std::to_string(num_tokens) + " of " +
                            std::to_string(kv_.num_tokens()));
      }
    } else {
      CHUNKLLM_RETURN_IF_ERROR(state_.rollback(num_tokens));
    }
    while (!looks_.empty() && looks_.back().end > num_tokens) {
      for (std::size_t l = 0; l < looks_.back().layers.size(); ++l) {
        kv_.restore_rows(static_cast<std::int64_t>(l), looks_.back().first,
                         looks_.back().layers[l]);
      }
      looks_.pop_back();
    }
    const std::int64_t dropped = kv_.num_tokens() - num_tokens;
    recent_tokens_.resize(static_cast<std::size_t>(
        std::max<std::int64_t>(0, static_cast<std::int64_t>(recent_tokens_.size()) - dropped)));
    if (dropped > 0) last_row_ = -1;
    kv_.resize(num_tokens);
    return {};
  }

 private:
  struct RecentToken {
    std::int32_t id = 0;
    std::int64_t turn_tokens = 0;  // of the unfinished prompt, this one included
  };
  struct LookKv {
    std::int64_t first = 0;
    std::int64_t end = 0;
    std::vector<std::vector<KvType>> layers;
  };

  Session(const Backbone& backbone, ChunkState<Scorer> state, TokenBytes token_bytes,
          const SessionOptions& options, ThreadPool& pool)
      : backbone_(&backbone),
        pool_(&pool),
        options_(options),
        token_bytes_(std::move(token_bytes)),
        state_(std::move(state)),
        kv_(backbone.config().num_layers, backbone.config().num_kv_heads,
            backbone.config().head_dim),
        frequencies_(backbone.config()),
        scale_(softmax_scale(backbone.config())) {}

  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] std::int64_t window(std::int64_t layer) const {
    return config().sliding_window.empty()
               ? 0
               : config().sliding_window[static_cast<std::size_t>(layer)];
  }
  /// Windowed layers never re-number: their window moves with the text.
  [[nodiscard]] Positions positions(std::int64_t layer) const {
    return window(layer) > 0 ? Positions::kOriginal : options_.positions;
  }

  [[nodiscard]] std::int64_t turn_tokens() const {
    return recent_tokens_.empty() ? 0 : recent_tokens_.back().turn_tokens;
  }

  Status read_rows(std::span<const std::int32_t> tokens, ReadMode mode, bool is_prompt,
                   const Progress& progress, const HiddenRows& hidden_rows) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= config().vocab_size) {
        return invalid_argument("token " + std::to_string(i) + " has id " +
                                std::to_string(tokens[i]) + ", expected 0 to " +
                                std::to_string(config().vocab_size - 1));
      }
    }
    std::size_t done = 0;
    while (done < tokens.size()) {
      const std::size_t count =
          std::min(tokens.size() - done, static_cast<std::size_t>(options_.block_len));
      const std::int64_t first = kv_.num_tokens();
      const std::int64_t rows = run_step(tokens.subspan(done, count), mode, is_prompt);
      if (hidden_rows) hidden_rows(first, view(hidden_, rows, config().hidden_size));
      done += static_cast<std::size_t>(rows);
      if (progress && !progress(kv_.num_tokens())) {
        // The sentence rules may have seen tokens that are now never read.
        if (!options_.dense) CHUNKLLM_RETURN_IF_ERROR(state_.rollback(kv_.num_tokens()));
        return Status(StatusCode::kInterrupted,
                      "stopped after " + std::to_string(kv_.num_tokens()) + " tokens");
      }
    }
    return {};
  }

  static MatrixView<float> view(std::vector<float>& buffer, std::int64_t rows, std::int64_t cols) {
    if (static_cast<std::int64_t>(buffer.size()) < rows * cols) {
      buffer.resize(static_cast<std::size_t>(rows * cols));
    }
    return {buffer.data(), rows, cols};
  }

  /// Runs new tokens through all layers; returns how many the step holds.
  std::int64_t run_step(std::span<const std::int32_t> tokens, ReadMode mode, bool is_prompt) {
    auto rows = static_cast<std::int64_t>(tokens.size());
    const std::int64_t first = kv_.num_tokens();
    if (!options_.dense) {
      state_.begin_step(rows, mode);
      if (state_.needs_token_bytes()) {
        for (std::int64_t i = state_.num_read_tokens() - first; i < rows; ++i) {
          state_.on_token(token_bytes_(tokens[static_cast<std::size_t>(i)]));
        }
      }
    }
    backbone_->embed(tokens, view(hidden_, rows, config().hidden_size));
    kv_.resize(first + rows);
    rows = run_layers(first, rows);
    kv_.resize(first + rows);
    for (const std::int32_t token : tokens.first(static_cast<std::size_t>(rows))) {
      recent_tokens_.push_back({token, turn_tokens() + (is_prompt ? 1 : 0)});
    }
    // Twice the most that a second look or a rollback may ask for; trimmed now and then only.
    const auto keep =
        static_cast<std::size_t>(options_.chunk.second_look + options_.chunk.journal_len + 1);
    if (recent_tokens_.size() > 2 * keep) {
      recent_tokens_.erase(recent_tokens_.begin(),
                           recent_tokens_.end() - static_cast<std::ptrdiff_t>(keep));
    }
    return rows;
  }

  void look_again(std::int64_t rows) {
    const std::int64_t first = kv_.num_tokens() - rows;
    LookKv look{first, kv_.num_tokens(), {}};
    for (std::int64_t l = 0; l < config().num_layers; ++l) {
      look.layers.push_back(kv_.save_rows(l, first, rows));
    }
    std::erase_if(looks_, [&](const LookKv& old) {
      return old.end < kv_.num_tokens() - options_.chunk.journal_len;
    });
    looks_.push_back(std::move(look));
    std::vector<std::int32_t> tail;
    for (auto token = recent_tokens_.end() - rows; token != recent_tokens_.end(); ++token) {
      tail.push_back(token->id);
    }
    backbone_->embed(tail, view(hidden_, rows, config().hidden_size));
    run_layers(first, rows);
  }

  /// hidden_ goes from embeddings to final rows; keys and values are stored on the way.
  std::int64_t run_layers(std::int64_t first, std::int64_t rows) {
    const RopeTable turns(frequencies_, first, rows);
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      const MatrixView<float> hidden = view(hidden_, rows, config().hidden_size);
      const MatrixView<float> normed = view(normed_, rows, config().hidden_size);
      const MatrixView<float> q = view(q_, rows, config().query_size());
      const MatrixView<float> k = view(k_, rows, config().kv_size());
      const MatrixView<float> v = view(v_, rows, config().kv_size());
      backbone_->attention_input(layer, hidden, normed);
      backbone_->project_qkv(layer, normed, q, k, v, *pool_);
      if (positions(layer) == Positions::kOriginal) {
        rotate_rows(q, config().num_heads, turns, first);
        rotate_rows(k, config().num_kv_heads, turns, first);
      }
      kv_.store(layer, first, k, v);
      if (options_.dense) {
        const AttentionTile tile{0, rows, &everything_};
        attend(layer, first, 0, rows, {&tile, 1});
        observe(layer, first, 0, rows, {&tile, 1});
        backbone_->finish_layer(layer, view(attended_rows_, rows, config().query_size()), hidden,
                                *pool_);
        continue;
      }
      state_.on_layer_input(layer, normed);
      state_.on_layer_qk(layer, q, k);
      if (layer == 0) {
        rows = run_first_layer(first, rows);
        continue;
      }
      const std::span<const AttentionTile> tiles = state_.tiles(layer, *pool_);
      attend(layer, first, 0, rows, tiles);
      observe(layer, first, 0, rows, tiles);
      backbone_->finish_layer(layer, view(attended_rows_, rows, config().query_size()), hidden,
                              *pool_);
    }
    if (!options_.dense) state_.end_step(*pool_);
    last_row_ = rows - 1;
    return rows;
  }

  /// The first layer in rounds: rows behind a boundary are computed again with the new set.
  std::int64_t run_first_layer(std::int64_t first, std::int64_t rows) {
    const std::int64_t width = config().hidden_size;
    view(embedded_, rows, width);
    std::copy_n(hidden_.data(), rows * width, embedded_.data());
    while (state_.first_layer_rows() < state_.step_rows()) {
      const std::int64_t done = state_.first_layer_rows();
      const std::span<const AttentionTile> tiles = state_.tiles(0, *pool_);
      const std::int64_t count = tiles.back().first_row + tiles.back().num_rows;
      attend(/*layer=*/0, first, done, count, tiles);
      const MatrixView<float> out = view(hidden_, rows, width).middle_rows(done, count);
      backbone_->finish_layer(
          0, view(attended_rows_, rows, config().query_size()).middle_rows(done, count), out,
          *pool_);
      const std::int64_t kept = state_.on_first_layer_output(out, *pool_);
      observe(/*layer=*/0, first, done, kept, tiles);
      std::copy_n(embedded_.data() + (done + kept) * width, (count - kept) * width, out.row(kept));
    }
    return state_.step_rows();
  }

  /// Attention of rows [row, row + count) of the step.
  void attend(std::int64_t layer, std::int64_t first, std::int64_t row, std::int64_t count,
              std::span<const AttentionTile> tiles) {
    const bool in_cache = positions(layer) == Positions::kInCache;
    std::int64_t most = 0;
    for (const AttentionTile& tile : tiles) {
      const std::int64_t newest = first + row + tile.first_row + tile.num_rows - 1;
      most = std::max(most, tile.set->num_attended(newest));
    }
    if (in_cache && ranks_.count() < most) {
      ranks_ = RopeTable(frequencies_, 0, std::max(most, 2 * ranks_.count()));
    }
    ChunkAttentionArgs<KvType> args;
    args.q = view(q_, row + count, config().query_size()).middle_rows(row, count);
    args.out = view(attended_rows_, row + count, config().query_size()).middle_rows(row, count);
    args.kv = kv_.view(layer, in_cache ? Rotation::kNone : Rotation::kAtTokenPosition);
    args.tiles = tiles;
    args.first_token = first + row;
    args.num_heads = config().num_heads;
    args.num_kv_heads = config().num_kv_heads;
    args.head_dim = config().head_dim;
    args.scale = scale_;
    args.window = window(layer);
    args.q_rotation = in_cache ? Rotation::kNone : Rotation::kAtTokenPosition;
    args.positions = positions(layer);
    args.rope = in_cache ? &ranks_ : nullptr;
    if (observer_) {
      lse_.resize(static_cast<std::size_t>(count * config().num_heads));
      args.maybe_lse = lse_.data();
    }
    const std::int64_t floats = chunk_attention_workspace_floats(
        config().num_heads, config().num_kv_heads, config().head_dim, most, pool_->num_threads());
    if (static_cast<std::int64_t>(workspace_.size()) < floats) {
      workspace_.resize(static_cast<std::size_t>(floats));
    }
    // The arguments are this session's own, so a failure is a broken invariant of the library.
    const Status status = chunk_attention(args, workspace_, *pool_);
    assert(status.ok());
    static_cast<void>(status);
  }

  /// Counts and shows rows [row, row + kept) of the step as they were attended for good.
  void observe(std::int64_t layer, std::int64_t first, std::int64_t row, std::int64_t kept,
               std::span<const AttentionTile> tiles) {
    for (const AttentionTile& tile : tiles) {
      const std::int64_t begin = first + row + tile.first_row;
      const std::int64_t end = std::min(begin + tile.num_rows, first + row + kept);
      for (std::int64_t token = std::max(begin, count_from_); token < end; ++token) {
        std::int64_t attended = tile.set->num_attended(token);
        if (window(layer) > 0) attended = std::min(attended, window(layer));
        attended_.share_sum += static_cast<double>(attended) / static_cast<double>(token + 1);
        attended_.attended_sum += static_cast<double>(attended);
        ++attended_.count;
      }
    }
    if (!observer_) return;
    const bool in_cache = positions(layer) == Positions::kInCache;
    observer_(layer, first + row,
              view(q_, row + kept, config().query_size()).middle_rows(row, kept),
              kv_.view(layer, in_cache ? Rotation::kNone : Rotation::kAtTokenPosition),
              std::span<const float>(lse_).first(static_cast<std::size_t>(kept) *
                                                 static_cast<std::size_t>(config().num_heads)));
  }

  Result<std::span<const float>> last_logits() {
    const MatrixView<float> logits = view(logits_, 1, config().vocab_size);
    backbone_->logits(view(hidden_, last_row_ + 1, config().hidden_size).middle_rows(last_row_, 1),
                      logits, *pool_);
    return std::span<const float>(logits_.data(), static_cast<std::size_t>(logits.cols));
  }

  const Backbone* backbone_;
  ThreadPool* pool_;
  SessionOptions options_;
  TokenBytes token_bytes_;
  ChunkState<Scorer> state_;
  KvCache<KvType> kv_;
  RopeFrequencies frequencies_;
  RopeTable ranks_;
  float scale_;
  AttendedSet everything_;
  AttentionObserver observer_;

  std::int64_t last_row_ = -1;  // of hidden_: the last token's; -1 behind a rollback
  std::int64_t count_from_ = 0;
  AttendedStats attended_;
  std::vector<LookKv> looks_;
  std::vector<RecentToken> recent_tokens_;  // the last ones, for the second look

  std::vector<float> hidden_;
  std::vector<float> embedded_;
  std::vector<float> normed_;
  std::vector<float> q_;
  std::vector<float> k_;
  std::vector<float> v_;
  std::vector<float> attended_rows_;
  std::vector<float> workspace_;
  std::vector<float> logits_;
  std::vector<float> lse_;
};

}  // namespace chunkllm
