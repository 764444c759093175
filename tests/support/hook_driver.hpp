// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_state.hpp"

/// What tests of `ChunkState` share: scorers whose every score is exact, a made-up text, and an
/// engine without a model that calls the hooks.
namespace chunkllm::testing {

inline constexpr std::int64_t kLayers = 3;
inline constexpr std::int64_t kHidden = 6;
inline constexpr std::int64_t kKeySize = 4;

/// Scores from a hash, of few values, so that ties are common; now and then NaN.
struct HashScorer : ChunkScorerBase {
  [[nodiscard]] ScorerShape shape() const { return {}; }
  static float score(std::int64_t layer, std::int64_t trigger, std::int64_t chunk) {
    auto x = static_cast<std::uint64_t>(layer * 1000003 + trigger * 7919 + chunk * 104729 + 12345);
    x ^= x >> 15;
    x *= 0x9e3779b97f4a7c15U;
    x ^= x >> 29;
    if (x % 61 == 0) return std::numeric_limits<float>::quiet_NaN();
    return static_cast<float>(x % 13) / 64.0F;  // sums over layers are exact
  }
  void direct_scores(std::int64_t layer, std::int64_t trigger, std::span<float> scores) const {
    for (std::size_t i = 0; i < scores.size(); ++i) {
      scores[i] = score(layer, trigger, static_cast<std::int64_t>(i) + 1);
    }
  }
};

/// q . k with k the largest value of each channel over the chunk: on small integers every step is
/// exact, and equal products give equal scores.
struct IntegerScorer : ChunkScorerBase {
  [[nodiscard]] ScorerShape shape() const {
    ScorerShape shape;
    shape.num_heads = 1;
    shape.num_key_heads = 1;
    shape.key_dim = kKeySize;
    shape.state_size = kKeySize;
    shape.uses_query_key = true;
    return shape;
  }
  void add_token(std::int64_t, const TokenRow& row, bool is_first, float* state) const {
    for (std::int64_t i = 0; i < kKeySize; ++i) {
      state[i] = is_first ? row.key[i] : std::max(state[i], row.key[i]);
    }
  }
  void make_key(std::int64_t, const float* state, std::int64_t, float* key) const {
    std::copy_n(state, kKeySize, key);
  }
  void make_query(std::int64_t, const TokenRow& row, float* query) const {
    std::copy_n(row.query, kKeySize, query);
  }
};

/// Everything that an engine would hand over, for each layer and token, made up.
struct MadeUpText {
  explicit MadeUpText(std::int64_t num_tokens, std::uint32_t seed = 1) : random(seed) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      queries.emplace_back();
      keys.emplace_back();
      for (std::int64_t i = 0; i < num_tokens * kKeySize; ++i) {
        queries.back().push_back(draw());
        keys.back().push_back(draw());
      }
    }
    wanted.resize(static_cast<std::size_t>(num_tokens));
    hidden.assign(static_cast<std::size_t>(num_tokens * kHidden), 0.25F);
    for (std::int64_t t = 0; t < num_tokens; ++t) set_wanted(t, random() % 9 == 0);
  }

  void set_wanted(std::int64_t t, bool value) {
    wanted[static_cast<std::size_t>(t)] = value;
    hidden[static_cast<std::size_t>(t * kHidden)] = value ? 1.0F : -1.0F;
  }

  /// Words, with a full stop where a boundary is wanted.
  [[nodiscard]] std::string_view bytes(std::int64_t t) const {
    if (t == 0) return "Start";
    if (wanted[static_cast<std::size_t>(t)]) return ".";
    return wanted[static_cast<std::size_t>(t) - 1] ? " Next" : " word";
  }
  /// What the sentence rules make of those bytes.
  [[nodiscard]] std::vector<bool> verdicts() const {
    SentenceBoundaryStream stream;
    std::vector<bool> verdicts;
    for (std::size_t t = 0; t < wanted.size(); ++t) {
      verdicts.push_back(stream.on_token(bytes(static_cast<std::int64_t>(t))));
    }
    return verdicts;
  }

  float draw() { return static_cast<float>(random() % 3); }
  /// A second look finds other keys and queries than the first.
  void redraw(std::int64_t first, std::int64_t count) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      for (std::int64_t i = first * kKeySize; i < (first + count) * kKeySize; ++i) {
        queries[static_cast<std::size_t>(l)][static_cast<std::size_t>(i)] = draw();
        keys[static_cast<std::size_t>(l)][static_cast<std::size_t>(i)] = draw();
      }
    }
  }
  /// Another text from `first` on.
  void alter_from(std::int64_t first) {
    const auto num_tokens = static_cast<std::int64_t>(wanted.size());
    redraw(first, num_tokens - first);
    for (std::int64_t t = first; t < num_tokens; ++t) set_wanted(t, random() % 9 == 0);
  }
  static MatrixView<const float> rows(const std::vector<float>& values, std::int64_t first,
                                      std::int64_t count, std::int64_t width) {
    return {values.data() + first * width, count, width};
  }

  std::mt19937 random;
  std::vector<std::vector<float>> queries;  // [layer][token * kKeySize]
  std::vector<std::vector<float>> keys;
  std::vector<float> hidden;  // of the first layer, [token * kHidden]
  std::vector<bool> wanted;
};

inline std::shared_ptr<const ChunkAdapter> sign_adapter() {
  auto adapter = std::make_shared<ChunkAdapter>();
  adapter->weight.assign(kHidden, 0.0F);
  adapter->weight[0] = 4.0F;
  return adapter;
}

/// The tokens of segments, one by one.
inline std::vector<std::int64_t> listed(const std::vector<TokenSpan>& segments) {
  std::vector<std::int64_t> tokens;
  for (const TokenSpan& span : segments) {
    for (std::int64_t t = span.begin; t < span.end; ++t) tokens.push_back(t);
  }
  return tokens;
}

/// An engine without a model: calls the hooks as `ChunkState` asks for and notes what each token
/// attended in each layer when its row was taken for good.
template <typename Scorer>
class HookDriver {
 public:
  HookDriver(ChunkState<Scorer> state, MadeUpText& text, ThreadPool& pool)
      : state_(std::move(state)), text_(text), pool_(pool) {
    forget_from(state_.num_tokens());  // a forked state: what it read before is not known here
  }

  ChunkState<Scorer>& state() { return state_; }
  [[nodiscard]] const std::vector<std::vector<std::vector<TokenSpan>>>& attended() const {
    return attended_;
  }
  void forget_from(std::int64_t token) {
    for (auto& layer : attended_) layer.resize(static_cast<std::size_t>(token));
  }

  void read(std::int64_t count, std::int64_t block, ReadMode mode) {
    const std::int64_t end = state_.num_tokens() + count;
    while (state_.num_tokens() < end) {
      const std::int64_t first = state_.num_tokens();
      const std::int64_t rows = std::min(block, end - first);
      state_.begin_step(rows, mode);
      if (state_.needs_token_bytes()) {
        for (std::int64_t t = state_.num_read_tokens(); t < first + rows; ++t) {
          state_.on_token(text_.bytes(t));
        }
      }
      run_layers(first, rows);
    }
  }

  std::int64_t end_prompt(std::int64_t turn_tokens, bool look_again = true) {
    const Result<std::int64_t> rows = state_.end_prompt(turn_tokens, look_again, pool_);
    EXPECT_TRUE(rows.ok()) << rows.status().message();
    if (rows.value() == 0) return 0;
    const std::int64_t first = state_.num_tokens() - rows.value();
    text_.redraw(first, rows.value());
    forget_from(first);
    run_layers(first, rows.value());
    return rows.value();
  }

 private:
  void run_layers(std::int64_t first, std::int64_t rows) {
    for (std::int64_t l = 0; l < kLayers; ++l) {
      const auto layer = static_cast<std::size_t>(l);
      state_.on_layer_input(l, MadeUpText::rows(text_.hidden, first, rows, kHidden));
      // One pair of buffers for all layers, as engines have: old rows must not be read again.
      buffer_q_.assign(text_.queries[layer].begin() + first * kKeySize,
                       text_.queries[layer].begin() + (first + rows) * kKeySize);
      buffer_k_.assign(text_.keys[layer].begin() + first * kKeySize,
                       text_.keys[layer].begin() + (first + rows) * kKeySize);
      state_.on_layer_qk(l, MadeUpText::rows(buffer_q_, 0, rows, kKeySize),
                         MadeUpText::rows(buffer_k_, 0, rows, kKeySize));
      if (l > 0) {
        note(l, first, state_.step_rows(), state_.tiles(l, pool_));
        continue;
      }
      while (state_.first_layer_rows() < state_.step_rows()) {
        const std::int64_t done = first + state_.first_layer_rows();
        const auto tiles = state_.tiles(0, pool_);
        const std::int64_t count = tiles.back().first_row + tiles.back().num_rows;
        const std::int64_t kept = state_.on_first_layer_output(
            MadeUpText::rows(text_.hidden, done, count, kHidden), pool_);
        ASSERT_GT(kept, 0);
        ASSERT_LE(kept, count);
        note(0, done, kept, tiles);
      }
    }
    state_.end_step(pool_);
  }

  void note(std::int64_t layer, std::int64_t first, std::int64_t kept,
            std::span<const AttentionTile> tiles) {
    auto& attended = attended_[static_cast<std::size_t>(layer)];
    for (const AttentionTile& tile : tiles) {
      for (std::int64_t r = tile.first_row; r < std::min(tile.first_row + tile.num_rows, kept);
           ++r) {
        ASSERT_EQ(static_cast<std::int64_t>(attended.size()), first + r);
        attended.push_back(tile.set->segments(first + r));
        EXPECT_EQ(attended.back(), state_.segments(layer, first + r));
      }
    }
  }

  ChunkState<Scorer> state_;
  MadeUpText& text_;
  ThreadPool& pool_;
  std::vector<float> buffer_q_;
  std::vector<float> buffer_k_;
  std::vector<std::vector<std::vector<TokenSpan>>> attended_{kLayers};
};

template <typename Scorer>
ChunkState<Scorer> make_state(const ChunkOptions& options, bool finds_boundaries,
                              std::vector<bool> windowed = {}) {
  ChunkStateShape shape;
  shape.num_layers = kLayers;
  shape.hidden_size = kHidden;
  shape.query_size = kKeySize;
  shape.kv_size = kKeySize;
  shape.windowed = std::move(windowed);
  auto state = ChunkState<Scorer>::create(shape, std::make_shared<const Scorer>(),
                                          finds_boundaries ? sign_adapter() : nullptr, options);
  EXPECT_TRUE(state.ok()) << state.status().message();
  return std::move(state).value();
}

inline ChunkOptions small_options() {
  ChunkOptions options;
  options.budget.tokens = 150;
  options.local_min_tokens = 20;
  options.guards = {3, 30};
  options.second_look = 17;
  options.journal_len = 50;
  return options;
}

inline std::vector<RefreshPolicy> all_policies() {
  return {{RefreshPolicy::Kind::kBoundary, 0},
          {RefreshPolicy::Kind::kEvery, 0},
          {RefreshPolicy::Kind::kStride, 7}};
}

}  // namespace chunkllm::testing
