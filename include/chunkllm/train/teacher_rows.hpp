// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/head_mass.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// What one dense reading of a sequence yields to train QK Adapters on, in all layers.
///
/// R rows are triggers, C columns the closed chunks. Chunks that are not closed at a row's trigger
/// have mass 0 there; what a row's mass over all columns lacks to 1 lies in the tokens behind them.
struct TeacherRows {
  struct Layer {
    std::vector<float> inputs;  ///< [R, hidden_size] normed inputs of the triggers
    std::vector<float>
        pooled;  ///< [C, hidden_size] of a chunk's tokens, as a chunk's key takes them
    /// [R, num_heads, C] attention mass of the chunk in each head of the backbone, averaged over
    /// the tokens behind the trigger, up to the next trigger and with it
    std::vector<float> mass;
  };

  std::int64_t hidden_size = 0;
  std::int64_t num_heads = 0;
  std::vector<std::int64_t> triggers;        ///< [R] token positions, ascending
  std::vector<std::int64_t> chunk_ends;      ///< [C] exclusive, ascending
  std::vector<std::int64_t> candidate_ends;  ///< [R] row r's candidates are 1 to this less one
  std::vector<Layer> layers;  ///< [num_layers]; empty where a sliding window takes no selection

  [[nodiscard]] std::int64_t num_rows() const { return static_cast<std::int64_t>(triggers.size()); }
  [[nodiscard]] std::int64_t num_chunks() const {
    return static_cast<std::int64_t>(chunk_ends.size());
  }
};

/// Rows without values: lists, candidates and layers. A trigger that no token follows is dropped.
///
/// \param num_tokens  of the sequence
/// \param chunk_ends  exclusive ends of the closed chunks, ascending, 1 to num_tokens
/// \param triggers    token positions, ascending, 0 to num_tokens - 1
/// \param options     local_min_tokens and local_min_chunks bound the candidates
/// Errors: kInvalidArgument for lists out of order or range; kResourceExhausted where the values
///         would exceed 4 GiB
inline Result<TeacherRows> plan_teacher_rows(const BackboneConfig& config, std::int64_t num_tokens,
                                             std::span<const std::int64_t> chunk_ends,
                                             std::span<const std::int64_t> triggers,
                                             const ChunkOptions& options) {
  CHUNKLLM_RETURN_IF_ERROR(detail::check_ascending("chunk_ends", chunk_ends, 1));
  CHUNKLLM_RETURN_IF_ERROR(detail::check_ascending("triggers", triggers, 0));
  if (!chunk_ends.empty() && chunk_ends.back() > num_tokens) {
    return invalid_argument("chunk_ends reach " + std::to_string(chunk_ends.back()) +
                            ", expected at most the number of tokens, " +
                            std::to_string(num_tokens));
  }
  if (!triggers.empty() && triggers.back() >= num_tokens) {
    return invalid_argument("triggers reach " + std::to_string(triggers.back()) +
                            ", expected less than the number of tokens, " +
                            std::to_string(num_tokens));
  }
  if (!triggers.empty() && triggers.back() == num_tokens - 1) {
    triggers = triggers.first(triggers.size() - 1);
  }
  TeacherRows rows;
  rows.hidden_size = config.hidden_size;
  rows.num_heads = config.num_heads;
  rows.triggers.assign(triggers.begin(), triggers.end());
  rows.chunk_ends.assign(chunk_ends.begin(), chunk_ends.end());
  rows.layers.resize(static_cast<std::size_t>(config.num_layers));

  // In double: products of counts from outside must not wrap.
  constexpr double kMostValues = 0x1p30;
  const auto num_rows = static_cast<double>(rows.num_rows());
  const auto num_chunks = static_cast<double>(rows.num_chunks());
  const double values = static_cast<double>(config.num_layers) *
                        (num_rows * num_chunks * static_cast<double>(config.num_heads) +
                         (num_rows + num_chunks) * static_cast<double>(config.hidden_size));
  if (values > kMostValues) {
    return resource_exhausted("what " + std::to_string(rows.num_rows()) + " triggers teach of " +
                              std::to_string(rows.num_chunks()) +
                              " chunks would exceed 4 GiB: expected a shorter text");
  }
  ChunkTable table;
  for (const std::int64_t end : chunk_ends) table.close(end);
  for (const std::int64_t trigger : triggers) {
    rows.candidate_ends.push_back(candidate_range(table, trigger, options).end);
  }
  return rows;
}

namespace detail {

/// Takes a layer's normed inputs as they go by: those of triggers, and each chunk's pooled.
class TeacherInputs {
 public:
  /// \param rows  of `plan_teacher_rows`; must outlive this
  TeacherInputs(TeacherRows& rows, KeyPooling pooling)
      : rows_(&rows), pooling_(pooling), places_(rows.layers.size()) {}

  /// Takes a block of a layer. Blocks of a layer come in order, each token once.
  void take(std::int64_t layer, MatrixView<const float> inputs) {
    TeacherRows::Layer& values = rows_->layers[static_cast<std::size_t>(layer)];
    Place& place = places_[static_cast<std::size_t>(layer)];
    const auto width = static_cast<std::size_t>(rows_->hidden_size);
    if (place.token == 0) {
      values.inputs.resize(rows_->triggers.size() * width);
      values.pooled.resize(rows_->chunk_ends.size() * width);
    }
    for (std::int64_t r = 0; r < inputs.rows; ++r, ++place.token) {
      const float* input = inputs.row(r);
      if (place.trigger < rows_->triggers.size() && rows_->triggers[place.trigger] == place.token) {
        std::copy_n(input, width, values.inputs.data() + place.trigger * width);
        ++place.trigger;
      }
      if (place.chunk < rows_->chunk_ends.size()) add_to_chunk(input, values, place);
    }
  }

 private:
  /// How far a layer has been read.
  struct Place {
    std::int64_t token = 0;
    std::size_t trigger = 0;  // index
    std::size_t chunk = 0;
  };

  /// Sums as `QkAdapter` does: token by token, the mean is the sum times the rounded 1 / length.
  void add_to_chunk(const float* input, TeacherRows::Layer& values, Place& place) const {
    const auto width = static_cast<std::size_t>(rows_->hidden_size);
    const std::int64_t begin = place.chunk == 0 ? 0 : rows_->chunk_ends[place.chunk - 1];
    const std::int64_t end = rows_->chunk_ends[place.chunk];
    float* pooled = values.pooled.data() + place.chunk * width;
    const bool replaces = place.token == begin || pooling_ == KeyPooling::kEndToken;
    for (std::size_t i = 0; i < width; ++i) pooled[i] = replaces ? input[i] : pooled[i] + input[i];
    if (place.token + 1 < end) return;
    if (pooling_ == KeyPooling::kMean) {
      const float inverse = 1.0F / static_cast<float>(end - begin);
      for (std::size_t i = 0; i < width; ++i) pooled[i] *= inverse;
    }
    ++place.chunk;
  }

  TeacherRows* rows_;
  KeyPooling pooling_;
  std::vector<Place> places_;  // [layer]
};

/// A decoder that shows its layers' normed inputs: a dense session tells nobody of them.
template <FrozenBackbone Decoder>
class InputShowingBackbone {
 public:
  using Show = std::function<void(std::int64_t layer, MatrixView<const float> normed)>;

  /// \param decoder  must outlive this
  InputShowingBackbone(const Decoder& decoder, Show show)
      : decoder_(&decoder), show_(std::move(show)) {}

  [[nodiscard]] const BackboneConfig& config() const { return decoder_->config(); }
  [[nodiscard]] std::int64_t weight_bytes() const { return decoder_->weight_bytes(); }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> hidden) const {
    decoder_->embed(tokens, hidden);
  }
  void attention_input(std::int64_t layer, MatrixView<const float> hidden,
                       MatrixView<float> normed) const {
    decoder_->attention_input(layer, hidden, normed);
    show_(layer, normed);
  }
  void project_qkv(std::int64_t layer, MatrixView<const float> normed, MatrixView<float> q,
                   MatrixView<float> k, MatrixView<float> v, ThreadPool& pool) const {
    decoder_->project_qkv(layer, normed, q, k, v, pool);
  }
  void finish_layer(std::int64_t layer, MatrixView<const float> attended, MatrixView<float> hidden,
                    ThreadPool& pool) const {
    decoder_->finish_layer(layer, attended, hidden, pool);
  }
  void logits(MatrixView<const float> hidden, MatrixView<float> logits, ThreadPool& pool) const {
    decoder_->logits(hidden, logits, pool);
  }

 private:
  const Decoder* decoder_;
  Show show_;
};

}  // namespace detail

/// Reads a sequence densely and gathers what trains the adapters: the teacher on the CPU.
///
/// \tparam KvType     of the cached keys and values
/// \param ids         the sequence from its first token on; positions are original
/// \param chunk_ends  exclusive ends of closed chunks, ascending
/// \param triggers    token positions, ascending: as a rule every chunk's last token, and every
///                    question's; one that no token follows is dropped
/// \param options     local_min_tokens and local_min_chunks bound the candidates
/// \param pooling     which of a chunk's inputs stand for it
/// \param progress    called with the tokens read so far; false stops
/// Numerics: f32 behind the cache's rounding; independent of the number of threads
/// Errors: those of `plan_teacher_rows`; kInvalidArgument for an id outside the vocabulary;
///         kInterrupted where `progress` asks to stop
/// Cost:   a dense reading, and half as much attention again for the mass
/// Source: attention distillation of ChunkLLM, arXiv 2510.02361; each head by itself and the tokens
///         behind the trigger instead of its own attention are ours
/// Test:   tests/unit/test_teacher_rows.cpp
template <typename KvType, FrozenBackbone Backbone>
Result<TeacherRows> collect_teacher_rows(const Backbone& backbone,
                                         std::span<const std::int32_t> ids,
                                         std::span<const std::int64_t> chunk_ends,
                                         std::span<const std::int64_t> triggers,
                                         const ChunkOptions& options, KeyPooling pooling,
                                         ThreadPool& pool,
                                         const std::function<bool(std::int64_t)>& progress) {
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  const BackboneConfig& config = backbone.config();
  CHUNKLLM_ASSIGN_OR_RETURN(TeacherRows rows,
                            plan_teacher_rows(config, num_tokens, chunk_ends, triggers, options));
  CHUNKLLM_ASSIGN_OR_RETURN(
      HeadMassCollector collector,
      HeadMassCollector::create(config, rows.chunk_ends, rows.triggers, MassRows::kNext, pool));
  const auto takes_selection = [&](std::int64_t layer) {
    return config.sliding_window.empty() ||
           config.sliding_window[static_cast<std::size_t>(layer)] == 0;
  };
  const std::size_t row_size = static_cast<std::size_t>(config.num_heads) * rows.chunk_ends.size();
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!takes_selection(layer)) continue;
    rows.layers[static_cast<std::size_t>(layer)].mass.resize(rows.triggers.size() * row_size);
  }
  const auto take_mass = [&](const HeadMass& mass) {
    float* row =
        rows.layers[static_cast<std::size_t>(mass.layer)].mass.data() + mass.trigger * row_size;
    const auto count = static_cast<float>(mass.num_rows);
    for (std::int64_t head = 0; head < config.num_heads; ++head) {
      for (std::int64_t chunk = 0; chunk < mass.num_chunks; ++chunk) {
        row[head * rows.num_chunks() + chunk] =
            mass.sums[static_cast<std::size_t>(head * mass.num_chunks + chunk)] / count;
      }
    }
  };
  detail::TeacherInputs inputs(rows, pooling);
  const detail::InputShowingBackbone<Backbone> decoder(
      backbone, [&](std::int64_t layer, MatrixView<const float> normed) {
        if (takes_selection(layer)) inputs.take(layer, normed);
      });
  SessionOptions dense;
  dense.dense = true;
  // A scorer that nobody asks.
  using DenseSession = Session<detail::InputShowingBackbone<Backbone>, RecentScorer, KvType>;
  CHUNKLLM_ASSIGN_OR_RETURN(DenseSession session,
                            DenseSession::create(
                                decoder, std::make_shared<const RecentScorer>(), nullptr,
                                [](std::int32_t) { return std::string_view(); }, dense, pool));
  session.reserve(num_tokens);
  session.observe_attention([&](std::int64_t layer, std::int64_t first_token,
                                MatrixView<const float> q, const KvView<KvType>& kv,
                                std::span<const float> lse) {
    collector.observe(layer, first_token, q, kv, lse, take_mass);
  });
  CHUNKLLM_RETURN_IF_ERROR(session.prefill(ids, progress));
  collector.finish(take_mass);
  return rows;
}

}  // namespace chunkllm
