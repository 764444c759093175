// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// How an engine on the GPU that keeps its own loop and paged KV cache gains chunk-selective
// attention, by the operations of chunkllm/kernels alone. examples/own_engine does it on the CPU.
//
// paged_engine.cuh is the engine: two sequences, two layers, a paged cache, random numbers in the
// place of what weights would give. `ChunkSelection` below is all that chunkllm asks for: memory,
// and a launch for each operation. The loop reads both sequences side by side, token by token, on
// one stream; no step waits for the host, so that a step may be captured as a CUDA graph.
//
// Exit status 0 if the last tokens' attention equals a plain softmax over what they attend, or,
// with a word of it, where there is no GPU (1 where CHUNKLLM_REQUIRE_GPU is 1).

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/chunk_decode_attention.cuh"
#include "chunkllm/kernels/chunk_keys.cuh"
#include "chunkllm/kernels/detect_boundaries.cuh"
#include "chunkllm/kernels/join_scores.cuh"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "chunkllm/kernels/score_chunks.cuh"
#include "chunkllm/kernels/select_chunks.cuh"
#include "last_step.cuh"
#include "paged_engine.cuh"

namespace {

namespace kernels = chunkllm::kernels;
using chunkllm::Result;
using chunkllm::Status;
using chunkllm::cuda::DeviceBuffer;
using mini::kHeadDim;
using mini::kHeads;
using mini::kKvHeads;
using mini::kKvWidth;
using mini::kLayers;
using mini::kSeqs;
using mini::kSteps;
using mini::kWidth;
using mini::make_zeros;

/// Chunks, their keys and the sets of one batch: one set a sequence, shared by all layers.
class ChunkSelection {
 public:
  /// Asks for all sizes before anything runs. Zeroed sets hold everything: dense until the first
  /// refresh.
  Status allocate(cudaStream_t stream) {
    constexpr std::size_t kRows = std::size_t{kLayers} * kSeqs;
    constexpr std::size_t kChunks = kMaxChunks;
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(ends_, kSeqs * kChunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(num_chunks_, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(triggers_, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(open_sums_, kRows * kKvWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(chunk_keys_, kRows * kChunks * kKvWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(queries_, kRows * kWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(scores_, kRows * kChunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(joined_, kSeqs * kChunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(chosen_, kSeqs * kChunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(num_chosen_, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(num_nan_, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(span_tokens_, kSeqs * kSpanCapacity, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(num_span_tokens_, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(tail_begin_, kSeqs, stream));
    // Scores and votes are made one behind the other and may share their scratch memory.
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(
        scratch_,
        std::max(kernels::score_chunks_workspace_bytes(kLayers, kSeqs, kHeads, kMaxChunks),
                 kernels::join_scores_workspace_bytes(kSelection, kLayers, kSeqs)),
        stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(
        attention_workspace_,
        kernels::chunk_decode_attention_workspace_bytes(kSeqs, kHeads, kHeadDim), stream));
    return kernels::init_decode_attention_workspace(attention_workspace_.data(),
                                                    attention_workspace_.size(), stream);
  }

  /// In each layer, once the new tokens' keys and values are in the cache.
  Status attend(const mini::Engine& engine, int layer, cudaStream_t stream) const {
    kernels::DecodeAttentionArgs<__half, __half> args;
    args.q = engine.queries_of(layer);
    args.out = engine.attended_of(layer);
    args.kv = as_const(engine.kv(layer));
    args.sets = sets();
    args.num_tokens = engine.num_tokens.data();
    args.num_seqs = kSeqs;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kHeadDim;
    args.scale = scorer().scale;
    args.workspace = attention_workspace_.data();
    args.workspace_bytes = attention_workspace_.size();
    return kernels::launch_chunk_decode_attention(args, stream);
  }

  /// Behind the last layer: where a chunk has ended its sequence gets a new set, in force from the
  /// next token on. All launches run at every step and end at once where no chunk did.
  ///
  /// With sets of their own, layers behind the first instead choose before they attend, each with
  /// num_layers = 1: boundaries behind the first layer, then chunk keys, scores, selection and plan
  /// (or `launch_refresh_layer`) between `project` and `attend`.
  Status refresh(const mini::Engine& engine, cudaStream_t stream) const {
    CHUNKLLM_RETURN_IF_ERROR(detect(engine, stream));
    CHUNKLLM_RETURN_IF_ERROR(update_chunk_keys(engine, stream));
    CHUNKLLM_RETURN_IF_ERROR(score(stream));
    CHUNKLLM_RETURN_IF_ERROR(join(stream));
    return select_and_plan(stream);
  }

  [[nodiscard]] chunkllm::cuda::DeviceAttendedSets sets() const {
    return {span_tokens_.data(), num_span_tokens_.data(), tail_begin_.data(), kSeqs, kSpanCapacity};
  }
  [[nodiscard]] const DeviceBuffer<std::int32_t>& num_chunks() const { return num_chunks_; }
  [[nodiscard]] const DeviceBuffer<std::int32_t>& span_tokens() const { return span_tokens_; }
  [[nodiscard]] const DeviceBuffer<std::int32_t>& num_span_tokens() const {
    return num_span_tokens_;
  }
  [[nodiscard]] const DeviceBuffer<std::int32_t>& tail_begin() const { return tail_begin_; }

  static constexpr chunkllm::ChunkGuards kGuards{/*min_len=*/4, /*max_len=*/32};
  static constexpr std::int64_t kBudgetTokens = 160;
  /// Of a budget of tokens: the list holds chunk 0, whatever the budget, and what the budget took.
  static constexpr std::int32_t kSpanCapacity =
      static_cast<std::int32_t>(std::max(kBudgetTokens, std::int64_t{kGuards.max_len}));
  /// Until the next chunk ends the tail grows by one more chunk. `gather_kv` would need this room.
  static constexpr std::size_t kMostAttended = std::size_t{kBudgetTokens} + kGuards.max_len;
  static constexpr std::int32_t kMaxChunks =
      kSteps / static_cast<std::int32_t>(kGuards.min_len) + 1;

 private:
  static constexpr chunkllm::Selection kSelection = chunkllm::Selection::kMax;
  // One value each for scores, join, selection and plan: the operations must agree.
  static constexpr kernels::LocalWindow kWindow{/*min_tokens=*/64, /*min_chunks=*/2};
  static constexpr chunkllm::Budget kBudget{chunkllm::Budget::Kind::kTokens, kBudgetTokens};

  [[nodiscard]] chunkllm::cuda::DeviceChunkTable table() const {
    return {ends_.data(), num_chunks_.data(), kSeqs, kMaxChunks};
  }
  [[nodiscard]] chunkllm::cuda::DeviceTriggers triggers() const {
    return {triggers_.data(), nullptr, kSeqs};
  }
  /// What mean keys are scored with: attention's own scale, and log of a chunk's length.
  [[nodiscard]] static chunkllm::ScorerShape scorer() {
    return chunkllm::MeanKeyScorer(kHeads, kKvHeads, kHeadDim,
                                   1.0F / std::sqrt(static_cast<float>(kHeadDim)))
        .shape();
  }

  /// Sentence ends decide. A Chunk Adapter would take `hidden`, the first layer's output, instead.
  Status detect(const mini::Engine& engine, cudaStream_t stream) const {
    kernels::BoundaryArgs<float> args;
    args.maybe_wanted = engine.wanted.data();
    args.num_rows = kSeqs;
    args.num_tokens = engine.num_tokens.data();
    args.guards = kGuards;
    args.table = table();
    args.triggers = triggers_.data();
    return kernels::launch_detect_boundaries(args, stream);
  }

  /// Of all layers at once. No key of an open chunk is asked for: at a boundary none is open.
  Status update_chunk_keys(const mini::Engine& engine, cudaStream_t stream) const {
    kernels::UpdateChunkKeysArgs<__half, __half> args;
    args.num_layers = kLayers;
    args.row_size = kKvWidth;
    args.key_size = kKvWidth;
    args.num_query_features = kWidth;
    args.table = table();
    args.num_tokens = engine.num_tokens.data();
    args.maybe_triggers = triggers_.data();
    args.rows = engine.new_keys.data();
    args.open_sums = open_sums_.data();
    args.keys = chunk_keys_.data();
    args.maybe_query_rows = engine.queries.data();
    args.queries = queries_.data();
    return kernels::launch_update_chunk_keys(args, stream);
  }

  Status score(cudaStream_t stream) const {
    const chunkllm::ScorerShape shape = scorer();
    kernels::DeviceScoreArgs<__half> args;
    args.queries = queries_.data();
    args.keys = chunk_keys_.data();
    args.table = table();
    args.triggers = triggers();
    args.window = kWindow;
    args.num_layers = kLayers;
    args.num_heads = static_cast<std::int32_t>(shape.num_heads);
    args.num_key_heads = static_cast<std::int32_t>(shape.num_key_heads);
    args.key_dim = static_cast<std::int32_t>(shape.key_dim);
    args.adds_log_length = shape.adds_log_length;
    args.scale = shape.scale;
    args.scores = scores_.data();
    args.score_stride = kMaxChunks;
    args.workspace = scratch_.data();
    args.workspace_bytes = scratch_.size();
    return kernels::launch_score_chunks(args, stream);
  }

  Status join(cudaStream_t stream) const {
    kernels::JoinScoresArgs args;
    args.scores = scores_.data();
    args.score_stride = kMaxChunks;
    args.num_layers = kLayers;
    args.selection = kSelection;
    args.table = table();
    args.triggers = triggers();
    args.window = kWindow;
    args.budget = kBudget;
    args.joined = joined_.data();
    args.joined_stride = kMaxChunks;
    args.workspace = scratch_.data();
    args.workspace_bytes = scratch_.size();
    return kernels::launch_join_scores(args, stream);
  }

  /// In one launch; `launch_select_chunks` and `launch_plan_attended_sets` are the two apart.
  Status select_and_plan(cudaStream_t stream) const {
    kernels::SelectChunksArgs select;
    select.scores = joined_.data();
    select.score_stride = kMaxChunks;
    select.table = table();
    select.triggers = triggers();
    select.window = kWindow;
    select.budget = kBudget;
    select.chosen = chosen_.data();
    select.max_chosen = kMaxChunks;
    select.num_chosen = num_chosen_.data();
    select.num_nan = num_nan_.data();
    kernels::PlanArgs plan;
    plan.table = select.table;
    plan.triggers = select.triggers;
    plan.window = select.window;
    plan.chosen = select.chosen;
    plan.max_chosen = select.max_chosen;
    plan.num_chosen = select.num_chosen;
    plan.sets = sets();
    return kernels::launch_select_and_plan(select, plan, stream);
  }

  DeviceBuffer<std::int32_t> ends_;  // [kSeqs, kMaxChunks]
  DeviceBuffer<std::int32_t> num_chunks_;
  DeviceBuffer<std::int32_t> triggers_;
  DeviceBuffer<float> open_sums_;    // [kLayers, kSeqs, kKvWidth]
  DeviceBuffer<__half> chunk_keys_;  // [kLayers, kSeqs, kMaxChunks, kKvWidth]
  DeviceBuffer<float> queries_;      // [kLayers, kSeqs, kWidth]
  DeviceBuffer<float> scores_;       // [kLayers, kSeqs, kMaxChunks]
  DeviceBuffer<float> joined_;       // [kSeqs, kMaxChunks]
  DeviceBuffer<std::int32_t> chosen_;
  DeviceBuffer<std::int32_t> num_chosen_;
  DeviceBuffer<std::int32_t> num_nan_;
  DeviceBuffer<std::int32_t> span_tokens_;  // [kSeqs, kSpanCapacity]
  DeviceBuffer<std::int32_t> num_span_tokens_;
  DeviceBuffer<std::int32_t> tail_begin_;
  DeviceBuffer<std::byte> scratch_;
  DeviceBuffer<std::byte> attention_workspace_;
};

/// What is left behind the loop.
struct Run {
  mini::LastStep last;
  std::vector<std::int32_t> num_chunks;  // [kSeqs]
};

template <typename T>
Status download(const DeviceBuffer<T>& from, std::vector<T>& to, cudaStream_t stream) {
  to.resize(from.size());
  return from.download(std::span<T>(to), stream);
}

/// The engine's loop. The last token has no refresh behind it: nobody would read its sets.
Result<Run> run_loop() {
  CHUNKLLM_ASSIGN_OR_RETURN(const auto own_stream, chunkllm::cuda::Stream::create());
  cudaStream_t stream = own_stream.get();
  mini::Engine engine;
  ChunkSelection chunks;
  CHUNKLLM_RETURN_IF_ERROR(engine.allocate(stream));
  CHUNKLLM_RETURN_IF_ERROR(chunks.allocate(stream));
  for (int step = 0; step < kSteps; ++step) {
    // The second sequence joins later; until then it has no token and all launches pass it over.
    if (step == 0) CHUNKLLM_RETURN_IF_ERROR(engine.activate(/*seq=*/0, stream));
    if (step == mini::kJoinStep) CHUNKLLM_RETURN_IF_ERROR(engine.activate(/*seq=*/1, stream));
    CHUNKLLM_RETURN_IF_ERROR(engine.begin_step(stream));
    for (int layer = 0; layer < kLayers; ++layer) {
      CHUNKLLM_RETURN_IF_ERROR(engine.project(layer, stream));
      CHUNKLLM_RETURN_IF_ERROR(chunks.attend(engine, layer, stream));
      // Here a model's output projection and MLP would follow.
    }
    if (step + 1 < kSteps) CHUNKLLM_RETURN_IF_ERROR(chunks.refresh(engine, stream));
  }
  Run run;
  mini::LastStep& last = run.last;
  last.span_capacity = ChunkSelection::kSpanCapacity;
  CHUNKLLM_RETURN_IF_ERROR(download(engine.num_tokens, last.num_tokens, stream));
  CHUNKLLM_RETURN_IF_ERROR(download(engine.attended, last.attended, stream));
  CHUNKLLM_RETURN_IF_ERROR(download(chunks.num_chunks(), run.num_chunks, stream));
  CHUNKLLM_RETURN_IF_ERROR(download(chunks.span_tokens(), last.span_tokens, stream));
  CHUNKLLM_RETURN_IF_ERROR(download(chunks.num_span_tokens(), last.num_span_tokens, stream));
  CHUNKLLM_RETURN_IF_ERROR(download(chunks.tail_begin(), last.tail_begin, stream));
  CHUNKLLM_RETURN_IF_ERROR(own_stream.synchronize());
  return run;
}

}  // namespace

int main() {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    const char* required = std::getenv("CHUNKLLM_REQUIRE_GPU");
    if (required != nullptr && std::string_view(required) == "1") {
      std::fprintf(stderr, "CHUNKLLM_REQUIRE_GPU is 1, but no GPU was found\n");
      return 1;
    }
    std::printf("no CUDA device: nothing was run\n");
    return 0;
  }
  const Result<Run> run = run_loop();
  if (!run.ok()) {
    std::fprintf(stderr, "%s\n", run.status().message().c_str());
    return 1;
  }
  const mini::LastStep& last = run->last;
  const std::size_t num_attended[kSeqs] = {attended_positions(last, 0).size(),
                                           attended_positions(last, 1).size()};
  const bool within_budget =
      std::max(num_attended[0], num_attended[1]) <= ChunkSelection::kMostAttended;
  // Weights and outputs are rounded to 16 bits, each by 2^-11 of the largest value at most.
  const double tolerance = 2.0 * mini::kLargest / 2048.0;
  const double difference = largest_difference(last);
  const bool equal = difference <= tolerance;
  std::printf(
      "tokens %d and %d, chunks %d and %d, attended by the last token %zu and %zu%s; a plain "
      "softmax over those %s (%.1e apart)\n",
      last.num_tokens[0], last.num_tokens[1], run->num_chunks[0], run->num_chunks[1],
      num_attended[0], num_attended[1], within_budget ? "" : ", MORE than the budget allows",
      equal ? "gives the same" : "DIFFERS", difference);
  return equal && within_budget ? 0 : 1;
}
