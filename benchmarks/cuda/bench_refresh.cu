// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// One refresh at 5,000 chunks of 8 to 40 tokens and 32 layers, everything that a decode step does
// for it: boundary, chunk keys and queries, scores, join, selection, plan. Scorers are QK Adapters
// (one head of 128 over a hidden size of 4096) and mean keys (32 heads over 8 key heads of 128).
// `joined` is one set for all layers after the last layer, `layer` a set for each, made layer by
// layer with the boundary in front: a launch a layer, and one for all sums. `no_boundary` is what
// the same launches cost in a step in which no chunk ends. `bytes` are the chunk keys and, with
// adapters, the projections, read once.
//
// A graph holds refreshes of 8 sequences with chunk tables, keys and weights of their own, together
// far more than the L2 cache; tables are set back in front of each replay. Scores of a layer are
// checked against the oracle, joined scores, chosen chunks and attended tokens against the host.

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bench_device_kv.hpp"
#include "bench_device_support.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/kernels/chunk_keys.cuh"
#include "chunkllm/kernels/detect_boundaries.cuh"
#include "chunkllm/kernels/join_scores.cuh"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "chunkllm/kernels/refresh_layer.cuh"
#include "chunkllm/kernels/score_chunks.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace {

using namespace chunkllm::bench;  // NOLINT(google-build-using-namespace): a program
namespace kernels = chunkllm::kernels;
namespace oracle = chunkllm::oracle;
using T = __nv_bfloat16;

constexpr std::int32_t kLayers = 32;
constexpr std::int32_t kChunks = 5000;
constexpr std::int32_t kMaxChunks = 5120;
constexpr std::int32_t kHidden = 4096;
constexpr std::int32_t kSets = 8;
constexpr double kShare = 0.1;
constexpr std::int32_t kSpanCapacity = 16384;

struct Scorer {
  bool is_adapter;
  std::int32_t num_heads;
  std::int32_t num_key_heads;
  std::int32_t row_size;  ///< of what is summed over a chunk: inputs, or keys
  std::int32_t key_dim = 128;

  [[nodiscard]] constexpr std::int32_t key_size() const { return num_key_heads * key_dim; }
  [[nodiscard]] constexpr std::int32_t query_features() const { return num_heads * key_dim; }
  /// Null logits stand behind an adapter's queries; rows begin at multiples of 16 bytes.
  [[nodiscard]] constexpr std::int32_t query_stride() const {
    return (query_features() + (is_adapter ? num_heads : 0) + 3) / 4 * 4;
  }
};
constexpr Scorer kAdapter{true, 1, 1, kHidden};
constexpr Scorer kMeanKey{false, 32, 8, 8 * 128};

struct RefreshCase {
  Scorer scorer;
  bool is_layer = false;
  bool has_boundary = true;
};

/// A sequence at the last token of its 5,000th chunk.
class Sequence {
 public:
  Sequence(const RefreshCase& c, std::uint64_t seed)
      : case_(c),
        all_ends_(random_chunk_ends((kChunks + 1) * 40, static_cast<unsigned>(seed))),
        hidden_(random_array<T>(kHidden, seed)),
        boundary_weight_(random_array<float>(kHidden, seed + 1, 0.01F)),
        rows_(random_array<T>(per_layer(scorer().row_size), seed + 2)),
        query_rows_(random_array<T>(per_layer(scorer().query_features()), seed + 3)),
        open_sums_(random_array<float>(per_layer(scorer().row_size), seed + 4)),
        keys_(random_array<T>(per_layer(kMaxChunks) * scorer().key_size(), seed + 5)),
        queries_(per_layer(scorer().query_stride())),
        open_keys_(per_layer(scorer().key_size())),
        scores_(per_layer(kMaxChunks)),
        joined_(kMaxChunks),
        chosen_(per_layer(kMaxChunks)),
        num_chosen_(kLayers),
        num_nan_(kLayers),
        span_tokens_(per_layer(kSpanCapacity)),
        num_span_tokens_(kLayers),
        tail_begin_(kLayers),
        triggers_(1),
        refresh_state_(std::vector<std::uint32_t>(2, 0U)),
        workspace_(
            kernels::score_chunks_workspace_bytes(kLayers, 1, scorer().num_heads, kMaxChunks)) {
    all_ends_.resize(kChunks);
    num_tokens_ = DeviceArray<std::int32_t>(std::vector<std::int32_t>{all_ends_.back()});
    std::vector<std::int32_t> ends = all_ends_;
    ends.resize(kMaxChunks);
    ends_ = DeviceArray<std::int32_t>(ends);
    num_chunks_ = DeviceArray<std::int32_t>(std::vector<std::int32_t>{kChunks - 1});
    num_chunks_before_ = DeviceArray<std::int32_t>(std::vector<std::int32_t>{kChunks - 1});
    if (!scorer().is_adapter) return;
    const std::size_t projection = per_layer(scorer().key_size()) * kHidden;
    const float deviation = 1.0F / std::sqrt(static_cast<float>(kHidden));
    key_weight_ = random_array<T>(projection, seed + 6, deviation);
    query_weight_ = random_array<T>(projection, seed + 7, deviation);
    null_weight_ = random_array<T>(per_layer(scorer().num_heads) * kHidden, seed + 8, deviation);
    null_bias_ = random_array<float>(per_layer(scorer().num_heads), seed + 9);
    distance_bias_ = random_array<float>(per_layer(scorer().num_heads) * chunkllm::kNumDistanceBins,
                                         seed + 10, 0.1F);
  }

  /// The chunk is open again.
  void reset(cudaStream_t stream) const {
    require(cudaMemcpyAsync(num_chunks_.data(), num_chunks_before_.data(), sizeof(std::int32_t),
                            cudaMemcpyDeviceToDevice, stream));
  }

  void launch(cudaStream_t stream) const {
    kernels::BoundaryArgs<T> boundary;
    boundary.hidden = hidden_.data();
    boundary.row_stride = kHidden;
    boundary.hidden_size = kHidden;
    boundary.weight = boundary_weight_.data();
    boundary.bias = case_.has_boundary ? 20.0F : -20.0F;
    boundary.num_rows = 1;
    boundary.num_tokens = num_tokens_.data();
    boundary.table = table();
    boundary.triggers = triggers_.data();
    require(kernels::launch_detect_boundaries(boundary, stream));
    if (case_.is_layer) {
      for (std::int32_t layer = 0; layer < kLayers; ++layer) {
        kernels::RefreshLayerArgs<T, T, T> refresh;
        refresh.update = update_args(layer, 1);
        refresh.score = score_args(refresh.update, layer, 1);
        refresh.select = select_args(refresh.score.scores, layer);
        refresh.plan = plan_args(refresh.select, layer);
        refresh.state = refresh_state_.data();
        require(kernels::launch_refresh_layer(refresh, stream));
      }
      require(kernels::launch_sum_newest_rows(update_args(0, kLayers), stream));
      return;
    }
    const auto update = update_args(0, kLayers);
    require(kernels::launch_update_chunk_keys(update, stream));
    require(kernels::launch_score_chunks(score_args(update, 0, kLayers), stream));
    kernels::JoinScoresArgs join;
    join.scores = scores_.data();
    join.score_stride = kMaxChunks;
    join.num_layers = kLayers;
    join.table = table();
    join.triggers = triggers();
    join.joined = joined_.data();
    join.joined_stride = kMaxChunks;
    require(kernels::launch_join_scores(join, stream));
    const kernels::SelectChunksArgs select = select_args(joined_.data(), 0);
    require(kernels::launch_select_and_plan(select, plan_args(select, 0), stream));
  }

  /// A refresh from the start against the oracle and the host.
  void check(cudaStream_t stream) const {
    reset(stream);
    launch(stream);
    require(cudaStreamSynchronize(stream));
    const std::int32_t trigger = triggers_.download()[0];
    const std::int32_t token = all_ends_.back() - 1;
    require(trigger == (case_.has_boundary ? token : -1),
            "the trigger is " + std::to_string(trigger));
    require(num_chunks_.download()[0] == kChunks - (case_.has_boundary ? 0 : 1),
            "the chunk table holds " + std::to_string(num_chunks_.download()[0]) + " chunks");
    if (!case_.has_boundary) return;
    chunkllm::ChunkTable table;
    for (const std::int32_t end : all_ends_) table.close(end);
    const chunkllm::CandidateRange range = chunkllm::candidate_range(table, token, 64, 2);
    const auto candidates = static_cast<std::size_t>(range.num_candidates());
    const std::vector<float> scores = scores_.download();
    check_scores(range.end, token, scores);

    std::vector<float> used(scores.end() - kMaxChunks, scores.end());  // of the last layer
    if (!case_.is_layer) {
      used = joined_.download();
      for (std::size_t i = 0; i < candidates; ++i) {
        float largest = 0.0F;
        for (std::size_t layer = 0; layer < kLayers; ++layer) {
          largest = std::max(largest, scores[layer * kMaxChunks + i]);
        }
        require(used[i] == largest, "joined score " + std::to_string(i));
      }
    }
    used.resize(candidates);
    std::vector<std::int32_t> expected;
    append_chunk(all_ends_, 0, expected);
    for (const std::int64_t chunk : chunkllm::take_within_budget(
             table, range, token, budget(), chunkllm::ChunkOrder(used, /*threshold=*/0.0F))) {
      append_chunk(all_ends_, static_cast<std::int32_t>(chunk), expected);
    }
    const std::int32_t set = case_.is_layer ? kLayers - 1 : 0;
    const auto count = static_cast<std::size_t>(num_span_tokens_.download()[set]);
    require(
        count == expected.size() &&
            span_tokens_.download(static_cast<std::size_t>(set) * kSpanCapacity, count) == expected,
        "the attended set differs from the host's");
    require(tail_begin_.download()[set] == range.tail_begin, "the tail begins elsewhere");
  }

 private:
  [[nodiscard]] const Scorer& scorer() const { return case_.scorer; }
  static std::size_t per_layer(std::int32_t size) {
    return static_cast<std::size_t>(kLayers) * static_cast<std::size_t>(size);
  }
  [[nodiscard]] static chunkllm::Budget budget() {
    chunkllm::Budget budget;
    budget.kind = chunkllm::Budget::Kind::kShare;
    budget.share = kShare;
    return budget;
  }
  [[nodiscard]] chunkllm::cuda::DeviceChunkTable table() const {
    return {ends_.data(), num_chunks_.data(), 1, kMaxChunks};
  }
  [[nodiscard]] chunkllm::cuda::DeviceTriggers triggers() const {
    return {triggers_.data(), nullptr, 1};
  }

  [[nodiscard]] kernels::UpdateChunkKeysArgs<T, T, T> update_args(std::int32_t first_layer,
                                                                  std::int32_t num_layers) const {
    const std::int64_t layer = first_layer;
    const std::int64_t key_size = scorer().key_size();
    const std::int64_t query_stride = scorer().query_stride();
    kernels::UpdateChunkKeysArgs<T, T, T> update;
    update.num_layers = num_layers;
    update.row_size = scorer().row_size;
    update.key_size = scorer().key_size();
    update.num_heads = scorer().num_heads;
    update.num_query_features = scorer().query_features();
    update.table = table();
    update.num_tokens = num_tokens_.data();
    update.maybe_triggers = triggers_.data();
    update.rows = rows_.data() + layer * scorer().row_size;
    update.row_layer_stride = update.row_seq_stride = scorer().row_size;
    update.open_sums = open_sums_.data() + layer * scorer().row_size;
    update.sum_layer_stride = scorer().row_size;
    update.keys = keys_.data() + layer * kMaxChunks * key_size;
    update.key_layer_stride = kMaxChunks * key_size;
    update.queries = queries_.data() + layer * query_stride;
    update.query_layer_stride = query_stride;
    if (scorer().is_adapter) {
      update.maybe_key_weight = key_weight_.data() + layer * key_size * kHidden;
      update.maybe_query_weight = query_weight_.data() + layer * key_size * kHidden;
      update.maybe_null_weight = null_weight_.data() + layer * scorer().num_heads * kHidden;
      update.maybe_null_bias = null_bias_.data() + layer * scorer().num_heads;
    } else {
      update.maybe_query_rows = query_rows_.data() + layer * scorer().query_features();
      update.query_row_layer_stride = update.query_row_seq_stride = scorer().query_features();
      update.maybe_open_keys = open_keys_.data() + layer * key_size;
      update.open_key_layer_stride = key_size;
    }
    return update;
  }
  [[nodiscard]] kernels::DeviceScoreArgs<T> score_args(
      const kernels::UpdateChunkKeysArgs<T, T, T>& update, std::int32_t first_layer,
      std::int32_t num_layers) const {
    const std::int64_t layer = first_layer;
    const std::int64_t query_stride = scorer().query_stride();
    kernels::DeviceScoreArgs<T> score;
    if (scorer().is_adapter) {
      score.maybe_null = update.queries + scorer().query_features();
      score.null_layer_stride = query_stride;
      score.maybe_bias =
          distance_bias_.data() + layer * scorer().num_heads * chunkllm::kNumDistanceBins;
    } else {
      score.maybe_open_keys = update.maybe_open_keys;
      score.open_key_layer_stride = scorer().key_size();
    }
    score.queries = update.queries;
    score.query_layer_stride = score.query_stride = query_stride;
    score.keys = update.keys;
    score.key_layer_stride = update.key_layer_stride;
    score.table = table();
    score.triggers = triggers();
    score.num_layers = num_layers;
    score.num_heads = scorer().num_heads;
    score.num_key_heads = scorer().num_key_heads;
    score.key_dim = scorer().key_dim;
    score.adds_log_length = true;
    score.scale = 1.0F / std::sqrt(static_cast<float>(scorer().key_dim));
    score.scores = scores_.data() + layer * kMaxChunks;
    score.score_stride = kMaxChunks;
    score.workspace = workspace_.data();
    score.workspace_bytes = workspace_.bytes();
    return score;
  }

  [[nodiscard]] kernels::SelectChunksArgs select_args(const float* scores, std::int32_t set) const {
    kernels::SelectChunksArgs select;
    select.scores = scores;
    select.score_stride = kMaxChunks;
    select.table = table();
    select.triggers = triggers();
    select.budget = budget();
    select.chosen = chosen_.data() + std::int64_t{set} * kMaxChunks;
    select.max_chosen = kMaxChunks;
    select.num_chosen = num_chosen_.data() + set;
    select.num_nan = num_nan_.data() + set;
    return select;
  }
  [[nodiscard]] kernels::PlanArgs plan_args(const kernels::SelectChunksArgs& select,
                                            std::int32_t set) const {
    kernels::PlanArgs plan;
    plan.table = table();
    plan.triggers = triggers();
    plan.chosen = select.chosen;
    plan.max_chosen = kMaxChunks;
    plan.num_chosen = select.num_chosen;
    plan.sets = {span_tokens_.data() + std::int64_t{set} * kSpanCapacity,
                 num_span_tokens_.data() + set, tail_begin_.data() + set, 1, kSpanCapacity};
    return plan;
  }

  /// Layer 0: the query (and null logits), the new key, and the scores made of them.
  void check_scores(std::int64_t candidate_end, std::int32_t token,
                    const std::vector<float>& scores) const {
    oracle::ScoreProblem p;
    const oracle::Row query = read_rows(queries_.data(), {0}, scorer().query_stride())[0];
    for (std::int32_t h = 0; h < scorer().num_heads; ++h) {
      const auto first = query.begin() + std::int64_t{h} * scorer().key_dim;
      p.queries.emplace_back(first, first + scorer().key_dim);
    }
    std::vector<std::int64_t> places;
    for (std::int64_t c = 0; c < kChunks; ++c) places.push_back(c * scorer().key_size());
    p.keys = read_rows(keys_.data(), places, scorer().key_size());
    for (std::size_t c = 0; c < kChunks; ++c) {
      p.lengths.push_back(all_ends_[c] - (c == 0 ? 0 : all_ends_[c - 1]));
      p.last_tokens.push_back(all_ends_[c] - 1);
    }
    p.candidate_end = candidate_end;
    p.query_token = token;
    p.num_key_heads = scorer().num_key_heads;
    p.scale = 1.0 / std::sqrt(static_cast<double>(scorer().key_dim));
    if (scorer().is_adapter) {
      p.null_logits.assign(query.begin() + scorer().query_features(),
                           query.begin() + scorer().query_features() + scorer().num_heads);
      p.bias = read_rows(distance_bias_.data(), {0}, chunkllm::kNumDistanceBins);
      check_query(query);
    }
    const oracle::Row expected = oracle::scores(p);
    const oracle::Row actual(scores.begin(),
                             scores.begin() + static_cast<std::ptrdiff_t>(expected.size()));
    const double error = relative_error(actual, expected);
    require(error <= 1e-4, "scores of layer 0 differ from the oracle by " + std::to_string(error));
  }
  void check_query(const oracle::Row& query) const {
    const oracle::Row x = read_rows(rows_.data(), {0}, kHidden)[0];
    std::vector<std::int64_t> places;
    for (std::int64_t i = 0; i < scorer().query_features(); ++i) places.push_back(i * kHidden);
    oracle::Row expected;
    for (const oracle::Row& weight : read_rows(query_weight_.data(), places, kHidden)) {
      double sum = 0.0;
      for (std::size_t d = 0; d < weight.size(); ++d) sum += weight[d] * x[d];
      expected.push_back(sum);
    }
    const double error = relative_error(query, expected);
    require(error <= 1e-4, "the query of layer 0 differs by " + std::to_string(error));
  }

  RefreshCase case_;
  std::vector<std::int32_t> all_ends_;
  DeviceArray<T> hidden_;
  DeviceArray<float> boundary_weight_;
  DeviceArray<T> rows_;
  DeviceArray<T> query_rows_;
  DeviceArray<float> open_sums_;
  DeviceArray<T> keys_;
  DeviceArray<float> queries_;
  DeviceArray<float> open_keys_;
  DeviceArray<float> scores_;
  DeviceArray<float> joined_;
  DeviceArray<std::int32_t> chosen_;
  DeviceArray<std::int32_t> num_chosen_;
  DeviceArray<std::int32_t> num_nan_;
  DeviceArray<std::int32_t> span_tokens_;
  DeviceArray<std::int32_t> num_span_tokens_;
  DeviceArray<std::int32_t> tail_begin_;
  DeviceArray<std::int32_t> triggers_;
  DeviceArray<std::uint32_t> refresh_state_;
  DeviceArray<unsigned char> workspace_;
  DeviceArray<std::int32_t> num_tokens_;
  DeviceArray<std::int32_t> ends_;
  DeviceArray<std::int32_t> num_chunks_;
  DeviceArray<std::int32_t> num_chunks_before_;
  DeviceArray<T> key_weight_;
  DeviceArray<T> query_weight_;
  DeviceArray<T> null_weight_;
  DeviceArray<float> null_bias_;
  DeviceArray<float> distance_bias_;
};

/// Chunk keys and projections of all layers, read once.
double refresh_bytes(const RefreshCase& c) {
  const Scorer& scorer = c.scorer;
  if (!c.has_boundary) {  // rows, and sums in and out
    return static_cast<double>(kLayers) * scorer.row_size * (sizeof(T) + 2 * sizeof(float));
  }
  const double keys = static_cast<double>(kLayers) * kChunks * scorer.key_size() * sizeof(T);
  const double outputs = scorer.key_size() + scorer.query_features() + scorer.num_heads;
  return keys + (scorer.is_adapter ? kLayers * outputs * kHidden * sizeof(T) : 0.0);
}

void refresh(benchmark::State& state, const RefreshCase& c) {
  run_case(state, [&] {
    const chunkllm::cuda::Stream stream = new_stream();
    std::vector<Sequence> sequences;
    for (std::uint64_t i = 0; i < kSets; ++i) sequences.emplace_back(c, 100 * (i + 1));
    sequences.front().check(stream.get());
    const double seconds = launch_seconds(
        stream, kSets,
        [&](int i, cudaStream_t s) { sequences[static_cast<std::size_t>(i)].launch(s); },
        [&] {
          for (const Sequence& sequence : sequences) sequence.reset(stream.get());
        });
    // A replay has done what it was to do only if the chunk has ended in it.
    sequences.back().check(stream.get());
    report_time(state, seconds);
    report_bytes(state, seconds, refresh_bytes(c));
  });
}

// Scorer, layer by layer, with a boundary.
BENCHMARK_CAPTURE(refresh, adapter_joined, {kAdapter, false, true})->Apply(device_case);
BENCHMARK_CAPTURE(refresh, adapter_joined_no_boundary, {kAdapter, false, false})
    ->Apply(device_case);
BENCHMARK_CAPTURE(refresh, adapter_layer, {kAdapter, true, true})->Apply(device_case);
BENCHMARK_CAPTURE(refresh, adapter_layer_no_boundary, {kAdapter, true, false})->Apply(device_case);
BENCHMARK_CAPTURE(refresh, mean_key_joined, {kMeanKey, false, true})->Apply(device_case);
BENCHMARK_CAPTURE(refresh, mean_key_joined_no_boundary, {kMeanKey, false, false})
    ->Apply(device_case);
BENCHMARK_CAPTURE(refresh, mean_key_layer, {kMeanKey, true, true})->Apply(device_case);
BENCHMARK_CAPTURE(refresh, mean_key_layer_no_boundary, {kMeanKey, true, false})->Apply(device_case);

}  // namespace

int main(int argc, char** argv) {
  return run_benchmarks(argc, argv);
}
