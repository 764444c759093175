// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// How an engine that keeps its own weights, cache and loop gains chunk-selective attention.
//
// mini_engine.hpp is the engine; it includes nothing of chunkllm. Its decoding loop below calls
// the hooks of `ChunkState` and asks what each layer's rows attend. Attention itself is either the
// engine's own over those segments, or `chunk_attention` on the engine's own pages.
//
// Exit status 0 if a budget of the whole text gives the dense loop's logits bit for bit, and if
// both kinds of attention agree under a small budget.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_state.hpp"
#include "mini_engine.hpp"

namespace {

using chunkllm::ChunkState;
using chunkllm::MatrixView;
using chunkllm::MeanKeyScorer;
using chunkllm::ReadMode;

constexpr int kPrompt = 900;
constexpr int kDecoded = 60;

/// Whose attention runs.
enum class Attention { kOwn, kLibrary };

/// A sequence in the mini engine, with chunk selection if a `ChunkState` is given.
class Sequence {
 public:
  Sequence(const mini::Model& model, std::optional<ChunkState<MeanKeyScorer>> chunks,
           Attention attention)
      : model_(model),
        chunks_(std::move(chunks)),
        attention_(attention),
        caches_(mini::kLayers, mini::PagedCache(kPrompt + kDecoded)) {}

  [[nodiscard]] double attended_share() const {
    return attended_ / static_cast<double>(num_counted_);
  }

  /// Runs tokens, a row each, and returns the logits behind the last.
  mini::Rows read(std::span<const int> tokens, ReadMode mode) {
    if (chunks_) {
      chunks_->begin_step(static_cast<std::int64_t>(tokens.size()), mode);     // hook
      for (const int token : tokens) chunks_->on_token(mini::text_of(token));  // hook
    }
    text_.insert(text_.end(), tokens.begin(), tokens.end());
    return run_layers(static_cast<std::int64_t>(text_.size() - tokens.size()));
  }

  /// Ends the prompt: a refresh, then a second look of the last tokens at what it chose.
  mini::Rows end_prompt(mini::Rows logits) {
    if (!chunks_) return logits;
    const auto num_tokens = static_cast<std::int64_t>(text_.size());
    const auto rows = chunks_->end_prompt(num_tokens, /*look_again=*/true, pool_);  // hook
    if (!rows.ok()) {  // as in `attend_by_library`
      std::fprintf(stderr, "%s\n", rows.status().message().c_str());
      std::fill(logits.begin(), logits.end(), std::numeric_limits<float>::quiet_NaN());
    }
    if (!rows.ok() || rows.value() == 0) return logits;
    return run_layers(num_tokens - rows.value());
  }

 private:
  /// Runs the tokens from `first` on through all layers.
  mini::Rows run_layers(std::int64_t first) {
    const auto rows = static_cast<std::int64_t>(text_.size()) - first;
    const auto size = [&](int width) { return static_cast<std::size_t>(rows * width); };
    mini::Rows hidden(size(mini::kWidth));
    mini::Rows normed(hidden.size());
    mini::Rows q(hidden.size());
    mini::Rows attended(hidden.size());
    mini::Rows k(size(mini::kKvWidth));
    mini::Rows v(k.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      model_.embed(text_[static_cast<std::size_t>(first + r)], hidden.data() + r * mini::kWidth);
    }
    for (int layer = 0; layer < mini::kLayers; ++layer) {
      for (std::int64_t r = 0; r < rows; ++r) {
        float* key = k.data() + r * mini::kKvWidth;
        float* value = v.data() + r * mini::kKvWidth;
        model_.project(layer, first + r, hidden.data() + r * mini::kWidth,
                       normed.data() + r * mini::kWidth, q.data() + r * mini::kWidth, key, value);
        caches_[static_cast<std::size_t>(layer)].store(first + r, key, value);
      }
      if (chunks_) {
        // The mean-key scorer reads queries and keys as the cache holds them. A scorer with
        // adapters would be given the normed inputs instead.
        chunks_->on_layer_qk(layer, {q.data(), rows, mini::kWidth},  // hook
                             {k.data(), rows, mini::kKvWidth});
      }
      attend(layer, first, {q.data(), rows, mini::kWidth}, {attended.data(), rows, mini::kWidth});
      for (std::int64_t r = 0; r < rows; ++r) {
        model_.finish(layer, attended.data() + r * mini::kWidth, hidden.data() + r * mini::kWidth);
      }
      if (chunks_ && layer == 0) {
        // With boundaries from the sentence rules all rows hold, so this is called once.
        chunks_->on_first_layer_output({hidden.data(), rows, mini::kWidth}, pool_);  // hook
      }
    }
    if (chunks_) chunks_->end_step(pool_);  // hook
    return model_.logits(hidden.data() + (rows - 1) * mini::kWidth);
  }

  void attend(int layer, std::int64_t first, MatrixView<const float> q, MatrixView<float> out) {
    const chunkllm::AttentionTile dense{0, q.rows, &everything_};
    const std::span<const chunkllm::AttentionTile> tiles =
        chunks_ ? chunks_->tiles(layer, pool_) : std::span(&dense, 1);  // hook
    for (const chunkllm::AttentionTile& tile : tiles) {
      for (std::int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
        attended_ += static_cast<double>(tile.set->num_attended(first + r)) /
                     static_cast<double>(first + r + 1);
        ++num_counted_;
      }
    }
    const mini::PagedCache& cache = caches_[static_cast<std::size_t>(layer)];
    if (attention_ == Attention::kLibrary) {
      attend_by_library(cache, first, q, out, tiles);
      return;
    }
    for (std::int64_t r = 0; r < q.rows; ++r) {
      mini::Segments segments = {{0, first + r + 1}};
      if (chunks_) {
        segments.clear();
        for (const chunkllm::TokenSpan& span : chunks_->segments(layer, first + r)) {  // hook
          segments.emplace_back(span.begin, span.end);
        }
      }
      mini::attend(cache, segments, q.row(r), out.row(r));
    }
  }

  /// `chunk_attention` on the engine's pages: nothing is copied.
  void attend_by_library(const mini::PagedCache& cache, std::int64_t first,
                         MatrixView<const float> q, MatrixView<float> out,
                         std::span<const chunkllm::AttentionTile> tiles) {
    chunkllm::ChunkAttentionArgs<float> args;
    args.q = q;
    args.out = out;
    args.kv.keys = cache.keys();
    args.kv.values = cache.values();
    args.kv.num_tokens = first + q.rows;
    args.kv.token_stride = mini::kHeadDim;
    args.kv.head_stride = mini::kPageTokens * mini::kHeadDim;
    args.kv.page_table = cache.page_table().data();
    args.kv.page_size = mini::kPageTokens;
    args.kv.page_stride = mini::kPageTokens * mini::kKvWidth;
    args.tiles = tiles;
    args.first_token = first;
    args.num_heads = mini::kHeads;
    args.num_kv_heads = mini::kKvHeads;
    args.head_dim = mini::kHeadDim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(mini::kHeadDim));
    workspace_.resize(static_cast<std::size_t>(chunkllm::chunk_attention_workspace_floats(
        mini::kHeads, mini::kKvHeads, mini::kHeadDim, first + q.rows, pool_.num_threads())));
    const chunkllm::Status status =
        chunkllm::chunk_attention(args, std::span<float>(workspace_), pool_);
    if (!status.ok()) {  // poison the row: the comparison at the end then fails
      std::fprintf(stderr, "%s\n", status.message().c_str());
      std::fill_n(out.data, out.rows * out.cols, std::numeric_limits<float>::quiet_NaN());
    }
  }

  const mini::Model& model_;
  std::optional<ChunkState<MeanKeyScorer>> chunks_;
  Attention attention_;
  std::vector<mini::PagedCache> caches_;
  std::vector<int> text_;
  std::vector<float> workspace_;
  chunkllm::ThreadPool pool_{1};
  chunkllm::AttendedSet everything_;
  double attended_ = 0.0;
  std::int64_t num_counted_ = 0;
};

std::optional<ChunkState<MeanKeyScorer>> make_chunks(std::int64_t budget) {
  chunkllm::ChunkStateShape shape;
  shape.num_layers = mini::kLayers;
  shape.hidden_size = mini::kWidth;
  shape.query_size = mini::kWidth;
  shape.kv_size = mini::kKvWidth;
  chunkllm::ChunkOptions options;
  options.budget.tokens = budget;
  const auto scorer = std::make_shared<const MeanKeyScorer>(
      mini::kHeads, mini::kKvHeads, mini::kHeadDim, 1.0F / std::sqrt(float{mini::kHeadDim}));
  auto state = ChunkState<MeanKeyScorer>::create(shape, scorer, /*maybe_adapter=*/nullptr, options);
  if (!state.ok()) {
    std::fprintf(stderr, "%s\n", state.status().message().c_str());
    return std::nullopt;
  }
  return std::move(state).value();
}

struct Run {
  mini::Rows logits;  // behind the prompt and each decoded token
  double attended_share = 0.0;
};

/// The engine's loop: a prompt in blocks of 50, then a token at a time.
Run run(const mini::Model& model, std::optional<ChunkState<MeanKeyScorer>> chunks,
        Attention attention) {
  const std::vector<int> text = mini::sample_text(kPrompt + kDecoded);
  const std::span<const int> tokens(text);
  Sequence sequence(model, std::move(chunks), attention);
  mini::Rows logits;
  for (std::size_t done = 0; done < kPrompt; done += 50) {
    logits = sequence.read(tokens.subspan(done, 50), ReadMode::kLayerLocal);
  }
  Run result;
  result.logits = sequence.end_prompt(std::move(logits));
  for (std::size_t i = kPrompt; i < tokens.size(); ++i) {
    const mini::Rows next = sequence.read(tokens.subspan(i, 1), ReadMode::kAsDecode);
    result.logits.insert(result.logits.end(), next.begin(), next.end());
  }
  result.attended_share = sequence.attended_share();
  return result;
}

/// Largest difference; infinite where a value is NaN.
float largest_difference(const mini::Rows& a, const mini::Rows& b) {
  float largest = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) {
      largest = std::isnan(difference) ? std::numeric_limits<float>::infinity() : difference;
    }
  }
  return largest;
}

}  // namespace

int main() {
  const mini::Model model;
  bool all_equal = true;
  const struct {
    const char* name;
    Attention attention;
  } kinds[] = {{"its own attention", Attention::kOwn}, {"chunk_attention", Attention::kLibrary}};
  std::vector<Run> small;
  for (const auto& kind : kinds) {
    const Run dense = run(model, std::nullopt, kind.attention);
    const Run whole = run(model, make_chunks(kPrompt + kDecoded), kind.attention);
    const bool equal = dense.logits == whole.logits;
    all_equal = all_equal && equal;
    std::printf("%-18s budget of the whole text: %s the dense loop's logits\n", kind.name,
                equal ? "exactly" : "NOT");
    small.push_back(run(model, make_chunks(256), kind.attention));
    std::printf("%-18s budget 256: attends %.1f %% of the past, logits differ by up to %.3f\n",
                kind.name, 100.0 * small.back().attended_share,
                static_cast<double>(largest_difference(small.back().logits, dense.logits)));
  }
  const float gap = largest_difference(small[0].logits, small[1].logits);
  std::printf("the two kinds of attention differ by %.1e under budget 256\n",
              static_cast<double>(gap));
  return all_equal && gap < 1e-3F ? 0 : 1;
}
