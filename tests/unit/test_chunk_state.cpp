// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_state.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "reference/reader_oracle.hpp"

namespace chunkllm {
namespace {

constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kHidden = 6;
constexpr std::int64_t kKeySize = 4;

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
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      wanted.push_back(random() % 9 == 0);
      for (std::int64_t i = 0; i < kHidden; ++i) {
        hidden.push_back(i == 0 ? (wanted.back() ? 1.0F : -1.0F) : 0.25F);
      }
    }
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

std::shared_ptr<const ChunkAdapter> sign_adapter() {
  auto adapter = std::make_shared<ChunkAdapter>();
  adapter->weight.assign(kHidden, 0.0F);
  adapter->weight[0] = 4.0F;
  return adapter;
}

oracle::TokenList listed(const std::vector<TokenSpan>& segments) {
  oracle::TokenList tokens;
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
      : state_(std::move(state)), text_(text), pool_(pool) {}

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

ChunkOptions small_options() {
  ChunkOptions options;
  options.budget.tokens = 150;
  options.local_min_tokens = 20;
  options.guards = {3, 30};
  options.second_look = 17;
  options.journal_len = 50;
  return options;
}

oracle::ReaderSettings settings_of(const ChunkOptions& options, const std::vector<bool>& windowed) {
  oracle::ReaderSettings settings;
  settings.num_layers = kLayers;
  settings.windowed = windowed;
  settings.refresh = options.refresh.kind == RefreshPolicy::Kind::kBoundary
                         ? oracle::ReaderSettings::Refresh::kBoundary
                     : options.refresh.kind == RefreshPolicy::Kind::kEvery
                         ? oracle::ReaderSettings::Refresh::kEvery
                         : oracle::ReaderSettings::Refresh::kStride;
  settings.stride = options.refresh.stride;
  settings.shares_sets = options.selection != Selection::kLayer;
  settings.join = options.selection == Selection::kVote   ? oracle::Join::kVote
                  : options.selection == Selection::kSoft ? oracle::Join::kSoft
                                                          : oracle::Join::kMax;
  switch (options.budget.kind) {
    case Budget::Kind::kTokens:
      settings.budget = {oracle::BudgetRule::Kind::kTokens,
                         static_cast<double>(options.budget.tokens)};
      break;
    case Budget::Kind::kShare:
      settings.budget = {oracle::BudgetRule::Kind::kShare, options.budget.share};
      break;
    case Budget::Kind::kChunks:
      settings.budget = {oracle::BudgetRule::Kind::kChunks,
                         static_cast<double>(options.budget.chunks)};
      break;
  }
  settings.threshold = options.threshold;
  settings.min_len = options.guards.min_len;
  settings.max_len = options.guards.max_len;
  settings.local_min_tokens = options.local_min_tokens;
  settings.local_min_chunks = options.local_min_chunks;
  settings.second_look = options.second_look;
  return settings;
}

/// A prompt, some decoding, a second prompt and more decoding, by the library and by the oracle.
template <typename Scorer>
void expect_reads_as_oracle(const ChunkOptions& options, bool finds_boundaries,
                            std::vector<bool> windowed, std::int64_t num_prompt,
                            std::int64_t block) {
  constexpr std::int64_t kDecode = 60;
  constexpr std::int64_t kSecond = 40;
  const std::int64_t total = num_prompt + kSecond + 2 * kDecode;
  ThreadPool pool(1 + static_cast<int>(block % 3));
  MadeUpText text(total);
  HookDriver<Scorer> driver(make_state<Scorer>(options, finds_boundaries, windowed), text, pool);
  MadeUpText oracle_text(total);
  const oracle::Reader::Scores scores = [&](std::int64_t layer, std::int64_t token,
                                            std::int64_t count, const oracle::ChunkList& closed) {
    std::vector<float> out;
    for (std::int64_t chunk = 1; chunk <= count; ++chunk) {
      if constexpr (std::is_same_v<Scorer, HashScorer>) {
        out.push_back(HashScorer::score(layer, token, chunk));
      } else {
        const auto& [begin, end] = closed[static_cast<std::size_t>(chunk)];
        float z = 0.0F;  // the softmax keeps the order of the logits
        for (std::int64_t i = 0; i < kKeySize; ++i) {
          float largest = 0.0F;
          for (std::int64_t t = begin; t < end; ++t) {
            largest =
                std::max(largest, oracle_text.keys[static_cast<std::size_t>(layer)]
                                                  [static_cast<std::size_t>(t * kKeySize + i)]);
          }
          z += largest * oracle_text.queries[static_cast<std::size_t>(layer)]
                                            [static_cast<std::size_t>(token * kKeySize + i)];
        }
        out.push_back(z);
      }
    }
    return out;
  };
  oracle::Reader reader(settings_of(options, windowed), scores);
  const std::vector<bool> wanted = finds_boundaries ? text.wanted : text.verdicts();
  EXPECT_GT(std::count(wanted.begin(), wanted.end(), true), total / 20);
  std::vector<std::vector<oracle::TokenList>> expected;  // [token][layer]
  const auto oracle_read = [&](std::int64_t count, bool decoding) {
    for (std::int64_t i = 0; i < count; ++i) {
      expected.push_back(reader.read(wanted[expected.size()], decoding));
    }
  };
  const auto oracle_end = [&](std::int64_t turn) {
    const auto looked = reader.end_prompt(turn);
    const auto count = static_cast<std::int64_t>(looked.size());
    expected.resize(expected.size() - looked.size());
    if (count > 0) oracle_text.redraw(static_cast<std::int64_t>(expected.size()), count);
    expected.insert(expected.end(), looked.begin(), looked.end());
    return count;
  };
  driver.read(num_prompt, block, ReadMode::kLayerLocal);
  oracle_read(num_prompt, /*decoding=*/false);
  EXPECT_EQ(driver.end_prompt(num_prompt), oracle_end(num_prompt));
  driver.read(kDecode, 1, ReadMode::kAsDecode);
  oracle_read(kDecode, /*decoding=*/true);
  driver.read(kSecond, block, ReadMode::kLayerLocal);
  oracle_read(kSecond, /*decoding=*/false);
  EXPECT_EQ(driver.end_prompt(kSecond), oracle_end(kSecond));
  driver.read(kDecode, block, ReadMode::kAsDecode);  // teacher forcing: steps are cut
  oracle_read(kDecode, /*decoding=*/true);

  oracle::ChunkList closed;
  for (std::int64_t c = 0; c < driver.state().table().num_chunks(); ++c) {
    closed.emplace_back(driver.state().table().begin(c), driver.state().table().end(c));
  }
  EXPECT_EQ(closed, reader.closed());
  EXPECT_EQ(driver.state().counters().boundaries, static_cast<std::int64_t>(closed.size()));
  EXPECT_EQ(driver.state().counters().forced_boundaries, reader.num_forced());
  EXPECT_EQ(driver.state().counters().refreshes, reader.num_refreshes());
  for (std::size_t t = 0; t < expected.size(); ++t) {
    for (std::size_t l = 0; l < kLayers; ++l) {
      ASSERT_EQ(listed(driver.attended()[l][t]), expected[t][l])
          << "token " << t << ", layer " << l;
    }
  }
}

std::vector<RefreshPolicy> all_policies() {
  return {{RefreshPolicy::Kind::kBoundary, 0},
          {RefreshPolicy::Kind::kEvery, 0},
          {RefreshPolicy::Kind::kStride, 7}};
}

std::string name_of(const ChunkOptions& options, bool finds_boundaries) {
  return std::string(finds_boundaries ? "adapter" : "rules") + ", selection " +
         std::to_string(static_cast<int>(options.selection)) + ", refresh " +
         std::to_string(static_cast<int>(options.refresh.kind)) + ", budget " +
         std::to_string(static_cast<int>(options.budget.kind));
}

TEST(ChunkState, ReadsAsTheOracleWithScoresHandedIn) {
  for (const bool finds_boundaries : {true, false}) {
    for (const Selection selection :
         {Selection::kLayer, Selection::kMax, Selection::kVote, Selection::kSoft}) {
      for (const RefreshPolicy& refresh : all_policies()) {
        ChunkOptions options = small_options();
        options.selection = selection;
        options.refresh = refresh;
        SCOPED_TRACE(name_of(options, finds_boundaries));
        expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 330, 64);
      }
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleWithExactKeys) {
  for (const bool finds_boundaries : {true, false}) {
    for (const RefreshPolicy& refresh : all_policies()) {
      for (const std::int64_t block : {1, 5, 400}) {
        ChunkOptions options = small_options();
        options.selection = Selection::kLayer;
        options.refresh = refresh;
        SCOPED_TRACE(name_of(options, finds_boundaries) + ", block " + std::to_string(block));
        expect_reads_as_oracle<IntegerScorer>(options, finds_boundaries, {}, 330, block);
      }
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleUnderOtherBudgetsThresholdsAndWindows) {
  for (const bool finds_boundaries : {true, false}) {
    for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
      ChunkOptions options = small_options();
      options.selection = selection;
      options.budget.kind = Budget::Kind::kChunks;
      for (const std::int64_t chunks : {0, 1, 6, 1000}) {
        options.budget.chunks = chunks;
        SCOPED_TRACE(name_of(options, finds_boundaries) + " of " + std::to_string(chunks));
        expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 250, 32);
      }
      options = small_options();
      options.selection = selection;
      options.threshold = 0.1F;
      SCOPED_TRACE("threshold");
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 300, 13);
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {true, false, true}, 300, 29);
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {false, true, false}, 300, 64);
      options.budget.tokens = 10;  // below what is always kept
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 200, 64);
      options.local_min_chunks = 9;
      options.second_look = 0;
      options.budget.tokens = 400;
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 390, 64);
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleOverThousandsOfTokens) {
  for (const bool finds_boundaries : {true, false}) {
    ChunkOptions options = small_options();
    options.budget.kind = Budget::Kind::kShare;
    options.budget.share = 0.4;
    options.second_look = 64;
    options.selection = finds_boundaries ? Selection::kMax : Selection::kLayer;
    expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 3000, 512);
    if (!finds_boundaries) {
      expect_reads_as_oracle<IntegerScorer>(options, finds_boundaries, {}, 3000, 512);
    }
  }
}

TEST(ChunkState, TriggerTokenSeesItsSetOneTokenLaterInTheFirstLayer) {
  for (const bool finds_boundaries : {true, false}) {
    ChunkOptions options = small_options();
    options.selection = Selection::kLayer;
    ThreadPool pool(1);
    MadeUpText text(400);
    HookDriver<HashScorer> driver(make_state<HashScorer>(options, finds_boundaries), text, pool);
    driver.read(400, 64, ReadMode::kLayerLocal);
    const ChunkTable& table = driver.state().table();
    int num_changes = 0;
    for (std::int64_t c = 0; c < table.num_chunks(); ++c) {
      const std::int64_t trigger = table.end(c) - 1;
      if (trigger < 200 || trigger + 1 >= 400) continue;
      const auto set = [&](std::size_t layer, std::int64_t token) {
        std::vector<TokenSpan> spans = driver.attended()[layer][static_cast<std::size_t>(token)];
        spans.back().end = 0;  // all but the growing end of the tail
        return spans;
      };
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        const std::int64_t first_new = layer == 0 ? trigger + 1 : trigger;
        EXPECT_EQ(set(layer, first_new - 1), set(layer, first_new - 2));
        num_changes += set(layer, first_new) != set(layer, first_new - 1) ? 1 : 0;
      }
    }
    EXPECT_GT(num_changes, 15);
  }
}

TEST(ChunkState, JoinedSetsActFromTheNextToken) {
  ChunkOptions options = small_options();
  options.selection = Selection::kSoft;
  ThreadPool pool(1);
  MadeUpText text(400);
  HookDriver<HashScorer> driver(make_state<HashScorer>(options, /*finds_boundaries=*/true), text,
                                pool);
  driver.read(300, 64, ReadMode::kLayerLocal);
  driver.end_prompt(300);
  driver.read(100, 1, ReadMode::kAsDecode);
  for (std::size_t t = 300; t < 400; ++t) {
    EXPECT_EQ(driver.attended()[0][t], driver.attended()[1][t]);
    EXPECT_EQ(driver.attended()[0][t], driver.attended()[2][t]);
    const bool follows_boundary = driver.state().table().chunk_of(static_cast<std::int64_t>(t)) !=
                                  driver.state().table().chunk_of(static_cast<std::int64_t>(t) - 1);
    if (t == 300 || follows_boundary) continue;
    auto before = driver.attended()[0][t - 1];
    before.back().end += 1;
    EXPECT_EQ(driver.attended()[0][t], before) << t;
  }
}

TEST(ChunkState, PromptEndEvaluatesAtLeastTheLastTokenAgain) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    ChunkOptions options = small_options();
    options.selection = selection;
    ThreadPool pool(1);
    for (const std::int64_t look : {0, 1, 17}) {
      options.second_look = look;
      MadeUpText text(300);
      HookDriver<HashScorer> driver(make_state<HashScorer>(options, true), text, pool);
      driver.read(300, 64, ReadMode::kLayerLocal);
      EXPECT_EQ(driver.end_prompt(300), std::max<std::int64_t>(look, 1));
    }
    MadeUpText text(300);
    HookDriver<HashScorer> dense(make_state<HashScorer>(options, true), text, pool);
    dense.read(300, 64, ReadMode::kDense);
    EXPECT_EQ(listed(dense.attended()[1][299]).size(), 300U);
    EXPECT_EQ(dense.end_prompt(300, /*look_again=*/false), 0);
    EXPECT_LT(listed(dense.state().segments(1, 300)).size(), 160U);
    MadeUpText short_text(100);
    HookDriver<HashScorer> fits(make_state<HashScorer>(options, true), short_text, pool);
    fits.read(100, 64, ReadMode::kLayerLocal);
    EXPECT_EQ(fits.end_prompt(100), 0);
  }
}

TEST(ChunkState, RollbackAndReplayAttendTheSame) {
  for (const bool finds_boundaries : {true, false}) {
    for (const RefreshPolicy& refresh : all_policies()) {
      for (const std::int64_t block : {1, 200}) {
        ChunkOptions options = small_options();
        options.selection = Selection::kLayer;
        options.refresh = refresh;
        ThreadPool pool(1);
        MadeUpText text(500);
        HookDriver<IntegerScorer> straight(make_state<IntegerScorer>(options, finds_boundaries),
                                           text, pool);
        straight.read(500, block, ReadMode::kLayerLocal);
        HookDriver<IntegerScorer> winding(make_state<IntegerScorer>(options, finds_boundaries),
                                          text, pool);
        for (std::int64_t t = 60; t <= 480; t += 60) {
          winding.read(t - winding.state().num_tokens(), block, ReadMode::kLayerLocal);
          const std::int64_t back = t - 1 - t % 47;
          ASSERT_TRUE(winding.state().rollback(back).ok());
          winding.forget_from(back);
        }
        winding.read(500 - winding.state().num_tokens(), block, ReadMode::kLayerLocal);
        EXPECT_EQ(straight.attended(), winding.attended());
        EXPECT_EQ(straight.state().table().ends(), winding.state().table().ends());
        EXPECT_EQ(straight.state().counters().refreshes, winding.state().counters().refreshes);
      }
    }
  }
}

TEST(ChunkState, CountsNanScoresAndUncountsThemOnRollback) {
  ChunkOptions options = small_options();
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    options.selection = selection;
    ThreadPool pool(1);
    MadeUpText text(400);
    HookDriver<HashScorer> driver(make_state<HashScorer>(options, true), text, pool);
    driver.read(350, 64, ReadMode::kLayerLocal);
    const std::int64_t before = driver.state().counters().nan_scores;
    EXPECT_GT(before, 0);
    driver.read(50, 1, ReadMode::kAsDecode);
    EXPECT_GT(driver.state().counters().nan_scores, before);
    ASSERT_TRUE(driver.state().rollback(350).ok());
    EXPECT_EQ(driver.state().counters().nan_scores, before);
  }
}

TEST(ChunkState, RollbackBeyondTheJournalIsRefused) {
  ThreadPool pool(1);
  MadeUpText text(300);
  HookDriver<HashScorer> driver(make_state<HashScorer>(small_options(), true), text, pool);
  driver.read(200, 64, ReadMode::kLayerLocal);
  EXPECT_EQ(driver.state().rollback(149).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(driver.state().rollback(201).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(driver.state().num_tokens(), 200);
  EXPECT_TRUE(driver.state().rollback(160).ok());
  EXPECT_EQ(driver.state().rollback(140).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(driver.state().rollback(150).ok());
  EXPECT_EQ(driver.state().num_tokens(), 150);
  HookDriver<HashScorer> young(make_state<HashScorer>(small_options(), true), text, pool);
  young.read(30, 64, ReadMode::kLayerLocal);
  EXPECT_TRUE(young.state().rollback(0).ok());
  EXPECT_EQ(young.state().table().num_chunks(), 0);
  EXPECT_EQ(young.state().counters().boundaries, 0);
}

TEST(ChunkState, EndPromptNeedsATokenAndItsRows) {
  ThreadPool pool(1);
  MadeUpText text(300);
  HookDriver<HashScorer> driver(make_state<HashScorer>(small_options(), true), text, pool);
  EXPECT_EQ(driver.state().end_prompt(1, true, pool).status().code(), StatusCode::kInvalidArgument);
  driver.read(200, 64, ReadMode::kLayerLocal);
  EXPECT_EQ(driver.state().end_prompt(0, true, pool).status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(driver.state().rollback(200).ok());
  ASSERT_TRUE(driver.state().rollback(190).ok());
  EXPECT_EQ(driver.state().end_prompt(190, true, pool).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(ChunkState, CreateRefusesShapesThatDoNotFit) {
  ChunkStateShape shape;
  shape.num_layers = 2;
  shape.hidden_size = 4;
  const auto scorer = std::make_shared<const RecentScorer>();
  const auto code = [&](const ChunkStateShape& s, std::shared_ptr<const RecentScorer> given,
                        std::shared_ptr<const ChunkAdapter> adapter, const ChunkOptions& options) {
    return ChunkState<RecentScorer>::create(s, std::move(given), std::move(adapter), options)
        .status()
        .code();
  };
  EXPECT_EQ(code(shape, scorer, nullptr, {}), StatusCode::kOk);
  EXPECT_EQ(code(shape, nullptr, nullptr, {}), StatusCode::kInvalidArgument);
  auto adapter = std::make_shared<ChunkAdapter>();
  adapter->weight.resize(3);
  EXPECT_EQ(code(shape, scorer, adapter, {}), StatusCode::kInvalidArgument);
  ChunkStateShape bad = shape;
  bad.windowed = {true};
  EXPECT_EQ(code(bad, scorer, nullptr, {}), StatusCode::kInvalidArgument);
  bad = shape;
  bad.num_layers = 0;
  EXPECT_EQ(code(bad, scorer, nullptr, {}), StatusCode::kInvalidArgument);
  ChunkOptions options;
  options.budget.tokens = 0;
  EXPECT_EQ(code(shape, scorer, nullptr, options), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
