// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/core/random.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/rope.hpp"
#include "chunkllm/train/teacher_rows.hpp"

namespace chunkllm {

namespace detail {

using TrainMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using TrainMap = Eigen::Map<const TrainMatrix>;

/// A layer's W_Q and W_K as columns: row i is what unit vector i becomes.
struct ProbedProjections {
  TrainMatrix query;  // [hidden_size, num_heads * head_dim]
  TrainMatrix key;    // [hidden_size, num_kv_heads * head_dim]
};

/// Reads a layer's projections through the backbone's own interface, whatever its weights' type.
template <FrozenBackbone Backbone>
ProbedProjections probe_projections(const Backbone& backbone, std::int64_t layer,
                                    ThreadPool& pool) {
  const BackboneConfig& config = backbone.config();
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = config.num_heads * config.head_dim;
  const std::int64_t kv_size = config.num_kv_heads * config.head_dim;
  // The last row is zero: what it becomes is the bias.
  TrainMatrix units = TrainMatrix::Zero(hidden + 1, hidden);
  units.topRows(hidden).setIdentity();
  TrainMatrix q(hidden + 1, q_size);
  TrainMatrix k(hidden + 1, kv_size);
  TrainMatrix v(hidden + 1, kv_size);
  backbone.project_qkv(layer, MatrixView<const float>(units.data(), hidden + 1, hidden),
                       MatrixView<float>(q.data(), hidden + 1, q_size),
                       MatrixView<float>(k.data(), hidden + 1, kv_size),
                       MatrixView<float>(v.data(), hidden + 1, kv_size), pool);
  ProbedProjections result;
  result.query = q.topRows(hidden).rowwise() - q.row(hidden);
  result.key = k.topRows(hidden).rowwise() - k.row(hidden);
  return result;
}

/// The symmetric square root of a covariance and its inverse; directions without variance count as
/// having very little.
inline std::pair<Eigen::MatrixXd, Eigen::MatrixXd> square_roots(const Eigen::MatrixXd& covariance) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(covariance);
  const Eigen::VectorXd values =
      solver.eigenvalues().cwiseMax(1e-9 * std::max(solver.eigenvalues().maxCoeff(), 1e-30));
  const Eigen::MatrixXd& vectors = solver.eigenvectors();
  return {vectors * values.cwiseSqrt().asDiagonal() * vectors.transpose(),
          vectors * values.cwiseSqrt().cwiseInverse().asDiagonal() * vectors.transpose()};
}

/// The maps [key_dim, head_dim] of queries and of keys whose product is nearest to the identity, in
/// the mean over queries and keys with these covariances.
inline std::pair<Eigen::MatrixXd, Eigen::MatrixXd> best_key_space(
    const Eigen::MatrixXd& query_covariance, const Eigen::MatrixXd& key_covariance,
    std::int64_t key_dim) {
  const auto [query_root, query_inverse] = square_roots(query_covariance);
  const auto [key_root, key_inverse] = square_roots(key_covariance);
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(query_root * key_root,
                                              Eigen::ComputeFullU | Eigen::ComputeFullV);
  const Eigen::VectorXd strength = svd.singularValues().head(key_dim).cwiseSqrt();
  return {strength.asDiagonal() * svd.matrixU().leftCols(key_dim).transpose() * query_inverse,
          strength.asDiagonal() * svd.matrixV().leftCols(key_dim).transpose() * key_inverse};
}

}  // namespace detail

/// Adapters to begin training with: the backbone's own W_Q and W_K before RoPE, a scoring head for
/// each query head and a key head for each KV head, narrowed to `key_dim` features so that the
/// logits of `samples` are kept best (least squares). No distance bias; a null class that takes
/// most of the mass.
///
/// Their scores are those of mean keys without rotation: a start, better than random maps on
/// retrieval (docs/experiments.md).
///
/// \param samples  sequences read by this backbone, at least one with a chunk; more tell better
///                 which features matter
/// Errors: kInvalidArgument for a key_dim outside 1 to head_dim or samples without rows;
///         kUnsupported for a backbone with q/k norms, whose maps are not linear.
template <FrozenBackbone Backbone>
Result<std::vector<QkAdapterLayer>> make_initial_adapters(const Backbone& backbone,
                                                          std::span<const TeacherRows> samples,
                                                          std::int64_t key_dim, ThreadPool& pool) {
  constexpr float kNullBias = 6.0F;
  const BackboneConfig& config = backbone.config();
  if (key_dim < 1 || key_dim > config.head_dim) {
    return invalid_argument("key_dim is " + std::to_string(key_dim) + ", expected 1 to head_dim " +
                            std::to_string(config.head_dim));
  }
  if (config.qk_norm) {
    return unsupported("initial adapters of a backbone with q/k norms; begin with random ones");
  }
  if (samples.empty() || samples.front().triggers.empty()) {
    return invalid_argument("initial adapters: the samples have no rows");
  }
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t head_dim = config.head_dim;
  const std::int64_t group = config.num_heads / config.num_kv_heads;
  // z = scale q . k must come out of q' . k' / sqrt(key_dim).
  const double query_scale =
      static_cast<double>(softmax_scale(config)) * std::sqrt(static_cast<double>(key_dim));
  std::vector<QkAdapterLayer> layers(static_cast<std::size_t>(config.num_layers));
  std::vector<detail::ProbedProjections> projections(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    projections[l] = detail::probe_projections(backbone, static_cast<std::int64_t>(l), pool);
  }
  pool.parallel_for(config.num_layers, [&](std::int64_t index, int) {
    const auto l = static_cast<std::size_t>(index);
    const detail::ProbedProjections& projection = projections[l];
    QkAdapterLayer& layer = layers[l];
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    layer.query_weight.resize(size(config.num_heads * key_dim * hidden));
    layer.key_weight.resize(size(config.num_kv_heads * key_dim * hidden));
    layer.distance_bias.assign(size(config.num_heads * kNumDistanceBins), 0.0F);
    layer.null_weight.assign(size(config.num_heads * hidden), 0.0F);
    layer.null_bias.assign(size(config.num_heads), kNullBias);
    for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
      Eigen::MatrixXd query_covariance = Eigen::MatrixXd::Zero(head_dim, head_dim);
      Eigen::MatrixXd key_covariance = query_covariance;
      const auto key_map = projection.key.middleCols(g * head_dim, head_dim);
      for (const TeacherRows& sample : samples) {
        const TeacherRows::Layer& rows = sample.layers[l];
        const detail::TrainMap inputs(rows.inputs.data(),
                                      static_cast<Eigen::Index>(sample.triggers.size()), hidden);
        const detail::TrainMap pooled(rows.pooled.data(),
                                      static_cast<Eigen::Index>(sample.chunk_ends.size()), hidden);
        const Eigen::MatrixXd keys = (pooled * key_map).template cast<double>();
        key_covariance += keys.transpose() * keys;
        for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
          const Eigen::MatrixXd queries =
              (inputs * projection.query.middleCols(h * head_dim, head_dim))
                  .template cast<double>();
          query_covariance += queries.transpose() * queries;
        }
      }
      const auto [query_space, key_space] =
          detail::best_key_space(query_covariance, key_covariance, key_dim);
      const auto write = [&](const Eigen::MatrixXd& map, std::vector<float>& weight,
                             std::int64_t head) {
        Eigen::Map<detail::TrainMatrix>(weight.data() + head * key_dim * hidden, key_dim, hidden) =
            map.cast<float>();
      };
      write(key_space * key_map.transpose().template cast<double>(), layer.key_weight, g);
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        write(query_scale * query_space *
                  projection.query.middleCols(h * head_dim, head_dim)
                      .transpose()
                      .template cast<double>(),
              layer.query_weight, h);
      }
    }
  });
  return layers;
}

/// Adapters to begin training with where a backbone's own maps cannot be used: normal numbers of
/// variance 1 / hidden_size.
inline std::vector<QkAdapterLayer> make_random_adapters(const BackboneConfig& config,
                                                        std::int64_t key_dim, std::uint64_t seed) {
  constexpr float kNullBias = 6.0F;
  const double deviation = 1.0 / std::sqrt(static_cast<double>(config.hidden_size));
  std::vector<QkAdapterLayer> layers(static_cast<std::size_t>(config.num_layers));
  for (std::size_t l = 0; l < layers.size(); ++l) {
    RandomStream random(seed, l);
    const auto draw = [&](std::int64_t heads) {
      std::vector<float> values(static_cast<std::size_t>(heads * key_dim * config.hidden_size));
      for (float& value : values) value = static_cast<float>(deviation * random.draw_normal());
      return values;
    };
    layers[l].query_weight = draw(config.num_heads);
    layers[l].key_weight = draw(config.num_kv_heads);
    layers[l].distance_bias.assign(static_cast<std::size_t>(config.num_heads * kNumDistanceBins),
                                   0.0F);
    layers[l].null_weight.assign(static_cast<std::size_t>(config.num_heads * config.hidden_size),
                                 0.0F);
    layers[l].null_bias.assign(static_cast<std::size_t>(config.num_heads), kNullBias);
  }
  return layers;
}

}  // namespace chunkllm
