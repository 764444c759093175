// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/layer_scores.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/mass_recall.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/train/adam.hpp"
#include "chunkllm/train/attention_distillation.hpp"
#include "chunkllm/train/synthetic_retrieval.hpp"
#include "chunkllm/train/teacher_rows.hpp"

namespace chunkllm {

struct QkTrainerOptions {
  std::int64_t key_dim = 48;
  float learning_rate = 5e-4F;       ///< of the maps
  float bias_learning_rate = 1e-2F;  ///< of distance and null biases
  float question_weight = 20.0F;     ///< of a row in front of an answer, against 1 of a chunk's end
  float gradient_norm = 1.0F;        ///< a layer's gradient is scaled down to it
  /// Tokens of the longest sequence: farther chunks get the bias of the farthest that were seen.
  std::int64_t max_distance = 8192;
};

/// How well adapters do on sequences that they were not trained on.
struct QkEvaluation {
  double kl = 0.0;           ///< mean over rows, heads and layers
  double mass_recall = 0.0;  ///< at 12.5 % of the candidates, heads joined by maximum; NaN if none
};

namespace detail {

/// The parts of a layer's adapter, in the order of a checkpoint.
inline constexpr std::array<std::pair<const char*, std::vector<float> QkAdapterLayer::*>, 5>
    kQkAdapterParts = {{{"query.weight", &QkAdapterLayer::query_weight},
                        {"key.weight", &QkAdapterLayer::key_weight},
                        {"distance_bias", &QkAdapterLayer::distance_bias},
                        {"null.weight", &QkAdapterLayer::null_weight},
                        {"null.bias", &QkAdapterLayer::null_bias}}};
inline constexpr std::size_t kNumQkAdapterParts = kQkAdapterParts.size();

/// Whether a part is a bias, which is learnt at its own rate.
inline bool is_bias_part(std::size_t part) {
  return part == 2 || part == 4;
}

/// One layer: weights, gradient of the steps' sequences so far, and Adam's moments.
struct TrainedLayer {
  QkAdapterLayer weights;
  QkAdapterLayer gradient;
  std::array<AdamMoments, kNumQkAdapterParts> moments;
  DistillationLoss loss;  // of the sequences since the last step
  Status status;
  DistillationScratch scratch;
};

}  // namespace detail

/// Distils the backbone's attention into QK Adapters, layer by layer: layers never interact, so no
/// gradient passes through the backbone and nothing but one layer's rows is needed at a time.
///
/// Add the rows of some sequences, then take a step. Layers are worked on side by side, each by one
/// thread in a fixed order: equal calls give equal bits at any number of threads.
///
/// Source: ChunkLLM, arXiv 2510.02361 (attention distillation); the rows, the null class and the
///         weights of questions are ours, see docs/training.md
class QkTrainer {
 public:
  /// \param layers  to begin with, all parts given; num_heads and num_kv_heads of the backbone are
  ///                those of the adapters
  /// Errors: kInvalidArgument where a layer's parts have other sizes
  static Result<QkTrainer> create(const BackboneConfig& config, const QkTrainerOptions& options,
                                  std::vector<QkAdapterLayer> layers) {
    QkTrainer trainer;
    trainer.options_ = options;
    trainer.hidden_size_ = config.hidden_size;
    trainer.num_heads_ = config.num_heads;
    trainer.num_key_heads_ = config.num_kv_heads;
    trainer.shape_ = QkAdapter(layers, config.hidden_size, config.num_heads, config.num_kv_heads,
                               options.key_dim, KeyPooling::kMean, /*adds_log_length=*/true)
                         .shape();
    for (QkAdapterLayer& weights : layers) {
      CHUNKLLM_RETURN_IF_ERROR(detail::check_adapter_sizes("initial adapters", weights,
                                                           trainer.shape_,
                                                           /*has_bias=*/true));
      detail::TrainedLayer layer;
      layer.gradient = weights;
      for (std::size_t p = 0; p < detail::kNumQkAdapterParts; ++p) {
        layer.moments[p] = AdamMoments((weights.*detail::kQkAdapterParts[p].second).size());
      }
      layer.weights = std::move(weights);
      trainer.layers_.push_back(std::move(layer));
    }
    trainer.clear_gradients();
    return Result<QkTrainer>(std::move(trainer));
  }

  /// Adds a sequence's gradient to the next step's.
  ///
  /// \param questions  whose triggers are rows of `rows`
  /// Errors: those of `add_distillation_gradient`, naming the layer; take no step then
  Status add(const TeacherRows& rows, std::span<const TrainingQuestion> questions,
             ThreadPool& pool) {
    const std::vector<float> weights = row_weights(rows, questions);
    pool.parallel_for(num_layers(), [&](std::int64_t l, int) {
      detail::TrainedLayer& layer = layers_[static_cast<std::size_t>(l)];
      const TeacherRows::Layer& taught = rows.layers[static_cast<std::size_t>(l)];
      if (taught.inputs.empty()) return;  // a windowed layer takes no selection
      const Result<DistillationLoss> loss =
          add_distillation_gradient(layer.weights, shape_, view(rows, taught, weights),
                                    /*scale=*/1.0, layer.gradient, layer.scratch);
      if (loss.ok()) {
        layer.loss.kl_sum += loss->kl_sum;
        layer.loss.weight_sum += loss->weight_sum;
      } else {
        layer.status = loss.status().with_context("layer " + std::to_string(l));
      }
    });
    for (const detail::TrainedLayer& layer : layers_) CHUNKLLM_RETURN_IF_ERROR(layer.status);
    return {};
  }

  /// Takes one step of Adam with the mean gradient of the rows added since the last step.
  ///
  /// \param rate_factor  of both learning rates: the schedule
  /// \return the rows' weighted mean KL, over heads and layers; 0 where no row was added
  double step(double rate_factor, ThreadPool& pool) {
    ++num_steps_;
    pool.parallel_for(num_layers(), [&](std::int64_t l, int) {
      take_step(layers_[static_cast<std::size_t>(l)], rate_factor);
    });
    double kl = 0.0;
    double count = 0.0;
    for (const detail::TrainedLayer& layer : layers_) {
      if (!(layer.loss.weight_sum > 0.0)) continue;
      kl += layer.loss.kl_sum / layer.loss.weight_sum;
      count += 1.0;
    }
    clear_gradients();
    return count > 0.0 ? kl / count : 0.0;
  }

  /// Compares with the teacher on rows of weight 1, questions included.
  ///
  /// Errors: those of `distillation_loss`
  Result<QkEvaluation> evaluate(std::span<const TeacherRows> sequences, ThreadPool& pool) {
    const QkAdapter scorer = adapter();
    std::vector<DistillationLoss> losses(layers_.size());
    std::vector<MassRecall> recalls(layers_.size());
    pool.parallel_for(num_layers(), [&](std::int64_t index, int) {
      const auto l = static_cast<std::size_t>(index);
      detail::TrainedLayer& layer = layers_[l];
      for (const TeacherRows& rows : sequences) {
        if (rows.layers[l].inputs.empty()) continue;
        const std::vector<float> weights(rows.triggers.size(), 1.0F);
        const Result<DistillationLoss> loss = distillation_loss(
            layer.weights, shape_, view(rows, rows.layers[l], weights), layer.scratch);
        if (!loss.ok()) {
          layer.status = loss.status().with_context("layer " + std::to_string(l));
          return;
        }
        losses[l].kl_sum += loss->kl_sum;
        losses[l].weight_sum += loss->weight_sum;
        recalls[l] += recall(scorer, rows, index);
      }
    });
    QkEvaluation result;
    MassRecall all;
    double weight_sum = 0.0;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      CHUNKLLM_RETURN_IF_ERROR(layers_[l].status);
      result.kl += losses[l].kl_sum;
      weight_sum += losses[l].weight_sum;
      all += recalls[l];
    }
    result.kl /= std::max(weight_sum, 1.0);
    result.mass_recall = all.num_rows > 0 ? all.mean() : std::numeric_limits<double>::quiet_NaN();
    return result;
  }

  /// A copy of the adapters as they stand.
  [[nodiscard]] QkAdapter adapter() const {
    const std::int64_t last_seen =
        distance_bin(std::max<std::int64_t>(options_.max_distance - 1, 1));
    std::vector<QkAdapterLayer> layers;
    layers.reserve(layers_.size());
    for (const detail::TrainedLayer& layer : layers_) {
      layers.push_back(layer.weights);
      // Bins that training never saw would stand where they began, high above those it lowered.
      for (std::int64_t head = 0; head < num_heads_; ++head) {
        float* bias = layers.back().distance_bias.data() + head * kNumDistanceBins;
        std::fill(bias + last_seen + 1, bias + kNumDistanceBins, bias[last_seen]);
      }
    }
    return QkAdapter(std::move(layers), hidden_size_, num_heads_, num_key_heads_, options_.key_dim,
                     KeyPooling::kMean, /*adds_log_length=*/true);
  }

  [[nodiscard]] std::int64_t num_layers() const {
    return static_cast<std::int64_t>(layers_.size());
  }
  [[nodiscard]] std::int64_t num_steps() const { return num_steps_; }
  /// What a checkpoint holds.
  [[nodiscard]] std::span<detail::TrainedLayer> layers() { return layers_; }
  void set_num_steps(std::int64_t num_steps) { num_steps_ = num_steps; }

 private:
  static constexpr double kRecallShare = 0.125;

  QkTrainer() = default;

  [[nodiscard]] std::vector<float> row_weights(const TeacherRows& rows,
                                               std::span<const TrainingQuestion> questions) const {
    std::vector<float> weights(rows.triggers.size(), 1.0F);
    for (const TrainingQuestion& question : questions) {
      const auto row =
          std::lower_bound(rows.triggers.begin(), rows.triggers.end(), question.trigger);
      if (row == rows.triggers.end() || *row != question.trigger) continue;
      weights[static_cast<std::size_t>(row - rows.triggers.begin())] = options_.question_weight;
    }
    return weights;
  }

  static DistillationRows view(const TeacherRows& rows, const TeacherRows::Layer& layer,
                               std::span<const float> weights) {
    DistillationRows result;
    result.inputs = {layer.inputs.data(), rows.num_rows(), rows.hidden_size};
    result.pooled = {layer.pooled.data(), rows.num_chunks(), rows.hidden_size};
    result.triggers = rows.triggers;
    result.chunk_ends = rows.chunk_ends;
    result.candidate_ends = rows.candidate_ends;
    result.weights = weights;
    result.mass = layer.mass;
    return result;
  }

  void clear_gradients() {
    for (detail::TrainedLayer& layer : layers_) {
      for (const auto& [name, part] : detail::kQkAdapterParts) {
        std::fill((layer.gradient.*part).begin(), (layer.gradient.*part).end(), 0.0F);
      }
      layer.loss = {};
      layer.status = {};
    }
  }

  void take_step(detail::TrainedLayer& layer, double rate_factor) const {
    if (!(layer.loss.weight_sum > 0.0)) return;
    double squares = 0.0;
    for (const auto& [name, part] : detail::kQkAdapterParts) {
      for (const float g : layer.gradient.*part) {
        squares += static_cast<double>(g) * static_cast<double>(g);
      }
    }
    const double norm = std::sqrt(squares) / layer.loss.weight_sum;
    const double most = static_cast<double>(options_.gradient_norm);
    const double scale = (norm > most ? most / norm : 1.0) / layer.loss.weight_sum;
    for (std::size_t p = 0; p < detail::kNumQkAdapterParts; ++p) {
      const auto part = detail::kQkAdapterParts[p].second;
      const float rate =
          detail::is_bias_part(p) ? options_.bias_learning_rate : options_.learning_rate;
      take_adam_step(layer.weights.*part, layer.gradient.*part, static_cast<float>(scale),
                     rate * static_cast<float>(rate_factor), num_steps_, layer.moments[p]);
    }
  }

  /// Mass recall of one layer, by the scores that inference would give.
  static MassRecall recall(const QkAdapter& scorer, const TeacherRows& rows, std::int64_t layer) {
    const TeacherRows::Layer& taught = rows.layers[static_cast<std::size_t>(layer)];
    const std::int64_t num_chunks = rows.num_chunks();
    ChunkTable table;
    ChunkKeys keys(scorer.shape().key_size());
    std::vector<float> log_lengths;
    std::vector<float> key(static_cast<std::size_t>(scorer.shape().key_size()));
    for (std::int64_t c = 0; c < num_chunks; ++c) {
      const std::int64_t end = rows.chunk_ends[static_cast<std::size_t>(c)];
      const std::int64_t begin = c == 0 ? 0 : rows.chunk_ends[static_cast<std::size_t>(c - 1)];
      table.close(end);
      // Pooled already: a chunk of length 1 as far as the scorer knows.
      scorer.make_key(layer, taught.pooled.data() + c * rows.hidden_size, 1, key.data());
      keys.append(key.data());
      log_lengths.push_back(std::log(static_cast<float>(end - begin)));
    }
    MassRecall result;
    for (std::int64_t r = 0; r < rows.num_rows(); ++r) {
      LayerRefresh refresh;
      refresh.layer = layer;
      refresh.trigger = rows.triggers[static_cast<std::size_t>(r)];
      refresh.row.input = taught.inputs.data() + r * rows.hidden_size;
      refresh.range.num_closed = table.chunk_of(refresh.trigger + 1);
      refresh.range.end = rows.candidate_ends[static_cast<std::size_t>(r)];
      const auto candidates = static_cast<std::size_t>(refresh.range.num_candidates());
      const auto count = static_cast<std::size_t>(kRecallShare * static_cast<double>(candidates));
      if (count == 0) continue;
      refresh.table = &table;
      refresh.keys = &keys;
      refresh.log_lengths = log_lengths.data();
      std::vector<float> mass(candidates, 0.0F);
      for (std::int64_t h = 0; h < rows.num_heads; ++h) {
        const float* head = taught.mass.data() + (r * rows.num_heads + h) * num_chunks + 1;
        for (std::size_t c = 0; c < candidates; ++c) mass[c] = std::max(mass[c], head[c]);
      }
      const double reachable = detail::top_mass(mass, mass, count);
      if (!(reachable > 0.0)) continue;
      result.sum += detail::top_mass(layer_scores(scorer, refresh), mass, count) / reachable;
      ++result.num_rows;
    }
    return result;
  }

  QkTrainerOptions options_;
  ScorerShape shape_;
  std::int64_t hidden_size_ = 0;
  std::int64_t num_heads_ = 0;
  std::int64_t num_key_heads_ = 0;
  std::int64_t num_steps_ = 0;
  std::vector<detail::TrainedLayer> layers_;
};

}  // namespace chunkllm
