// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/layer_scores.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/chunk_mass.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "chunkllm/infer/session.hpp"

namespace chunkllm {

namespace detail {

/// What a `RecordingScorer` has gathered: the scores that a scorer gives at every chunk's end.
struct RecordedScores {
  struct Layer {
    std::int64_t num_tokens = 0;
    TokenRow newest;
    ChunkTable table;
    ChunkKeys keys;
    std::vector<float> log_lengths;
    /// [chunk that closed] -> scores of chunks 1, 2, ... up to the local window
    std::vector<std::vector<float>> scores;
  };
  std::vector<Layer> layers;
};

/// Passes everything on to a scorer and scores all candidates whenever a chunk closes, which a
/// dense reading does not do by itself.
///
/// Not shared between sequences: it writes to its record.
class RecordingScorer : public ChunkScorerBase {
 public:
  RecordingScorer(std::shared_ptr<const AnyScorer> scorer, const ChunkOptions& options,
                  std::shared_ptr<RecordedScores> record)
      : scorer_(std::move(scorer)), options_(options), record_(std::move(record)) {}

  [[nodiscard]] ScorerShape shape() const { return scorer_->shape(); }
  void add_token(std::int64_t layer, const TokenRow& row, bool is_first, float* state) const {
    scorer_->add_token(layer, row, is_first, state);
    RecordedScores::Layer& record = record_->layers[static_cast<std::size_t>(layer)];
    ++record.num_tokens;
    record.newest = row;
  }
  void make_key(std::int64_t layer, const float* state, std::int64_t length, float* key) const {
    scorer_->make_key(layer, state, length, key);
    RecordedScores::Layer& record = record_->layers[static_cast<std::size_t>(layer)];
    record.table.close(record.num_tokens);
    record.keys.append(key);
    record.log_lengths.push_back(std::log(static_cast<float>(length)));
    record.scores.push_back(score(layer, record));
  }

 private:
  [[nodiscard]] std::vector<float> score(std::int64_t layer,
                                         const RecordedScores::Layer& record) const {
    LayerRefresh refresh;
    refresh.layer = layer;
    refresh.trigger = record.num_tokens - 1;
    refresh.row = record.newest;
    refresh.range = candidate_range(record.table, refresh.trigger, options_);
    refresh.table = &record.table;
    refresh.keys = &record.keys;
    refresh.log_lengths = record.log_lengths.data();
    refresh.head_join = options_.head_join;
    return layer_scores(*scorer_, refresh);
  }

  std::shared_ptr<const AnyScorer> scorer_;
  ChunkOptions options_;
  std::shared_ptr<RecordedScores> record_;
};

/// Sum of `mass` over the `count` candidates that `scores` ranks first (equal: the later one; NaN
/// last).
inline double top_mass(std::span<const float> scores, std::span<const float> mass,
                       std::size_t count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto comes_first = [&](std::size_t a, std::size_t b) {
    if (std::isnan(scores[a]) != std::isnan(scores[b])) return std::isnan(scores[b]);
    if (std::isnan(scores[a]) || scores[a] == scores[b]) return a > b;
    return scores[a] > scores[b];
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    comes_first);
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) sum += static_cast<double>(mass[order[i]]);
  return sum;
}

}  // namespace detail

/// How much of the reachable attention mass a scorer's choice holds.
struct MassRecall {
  double sum = 0.0;           ///< of the recall of each row
  std::int64_t num_rows = 0;  ///< (layer, boundary) pairs

  /// NaN where the text was too short for a row.
  [[nodiscard]] double mean() const { return sum / static_cast<double>(num_rows); }
  MassRecall& operator+=(const MassRecall& other) {
    sum += other.sum;
    num_rows += other.num_rows;
    return *this;
  }
};

/// Mass recall at a share of the candidates, against the next chunk's attention in a dense pass:
///
///   sum of m over the scorer's first k / sum of m over the k heaviest,  k = max(1, share * |V|)
///
/// V are the candidates: closed chunks without chunk 0 and the local window. Rows are the
/// boundaries with at least 1 / share candidates, in every layer that selects; both sides join
/// heads by `options.head_join`. Chunks are those of the sentence rules.
///
/// \param scorer    keys and queries at original positions
/// \param share     (0, 1]
/// \param progress  called with the tokens read so far in two passes (one for a scorer without
///                  heads); false stops
/// Errors: as `collect_oracle_scores`; kInvalidArgument for a share outside (0, 1].
template <typename KvType, FrozenBackbone Backbone, typename TokenBytes>
Result<MassRecall> measure_mass_recall(
    const Backbone& backbone, std::shared_ptr<const AnyScorer> scorer,
    std::span<const std::int32_t> ids, const TokenBytes& token_bytes, const ChunkOptions& options,
    double share, const std::function<bool(std::int64_t)>& progress, ThreadPool& pool) {
  if (!(share > 0.0 && share <= 1.0)) {
    return invalid_argument("mass recall: share is " + std::to_string(share) +
                            ", expected more than 0 and at most 1");
  }
  const std::vector<std::int64_t> ends = rule_chunk_ends(ids, token_bytes, options.guards);
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  ChunkMassOptions mass;
  mass.head_join = options.head_join;
  CHUNKLLM_ASSIGN_OR_RETURN(
      const std::shared_ptr<const TableScorer::Table> teacher,
      collect_oracle_scores<KvType>(backbone, ids, ends, refresh_triggers(ends, {}, num_tokens),
                                    mass, progress, pool));

  const ScorerShape shape = scorer->shape();
  const std::int64_t num_layers = backbone.config().num_layers;
  auto record = std::make_shared<detail::RecordedScores>();
  for (std::int64_t l = 0; l < num_layers; ++l) {
    record->layers.emplace_back().keys = ChunkKeys(shape.key_size());
  }
  if (shape.num_heads > 0) {
    SessionOptions reading;
    reading.chunk = options;
    using DenseSession = Session<Backbone, detail::RecordingScorer, KvType>;
    CHUNKLLM_ASSIGN_OR_RETURN(
        DenseSession session,
        DenseSession::create(
            backbone, std::make_shared<const detail::RecordingScorer>(scorer, options, record),
            nullptr, [&](std::int32_t id) { return std::string_view(token_bytes(id)); }, reading,
            pool));
    session.reserve(num_tokens);
    std::function<bool(std::int64_t)> second_pass;
    if (progress) second_pass = [&](std::int64_t read) { return progress(num_tokens + read); };
    CHUNKLLM_RETURN_IF_ERROR(session.read(ids, ReadMode::kDense, second_pass, {}));
  }

  MassRecall recall;
  ChunkTable table;
  for (std::size_t chunk = 0; chunk < ends.size(); ++chunk) {
    table.close(ends[chunk]);
    const std::int64_t trigger = ends[chunk] - 1;
    const auto candidates = static_cast<std::size_t>(
        candidate_range(table, trigger, options.local_min_tokens, options.local_min_chunks)
            .num_candidates());
    const auto count = static_cast<std::size_t>(share * static_cast<double>(candidates));
    if (count == 0) continue;
    for (std::int64_t l = 0; l < num_layers; ++l) {
      const auto& rows = (*teacher)[static_cast<std::size_t>(l)];
      if (static_cast<std::size_t>(trigger) >= rows.size()) continue;
      const std::vector<float>& masses = rows[static_cast<std::size_t>(trigger)];
      if (masses.size() < candidates) continue;  // the text ends here: no next chunk
      const std::span<const float> known(masses.data(), candidates);
      std::vector<float> scores(candidates);
      if (shape.num_heads > 0) {
        scores = record->layers[static_cast<std::size_t>(l)].scores[chunk];
      } else {
        scorer->direct_scores(l, trigger, scores);
      }
      const double reachable = detail::top_mass(known, known, count);
      if (!(reachable > 0.0)) continue;
      recall.sum += detail::top_mass(scores, known, count) / reachable;
      ++recall.num_rows;
    }
  }
  return recall;
}

}  // namespace chunkllm
