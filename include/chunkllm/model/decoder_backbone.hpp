// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/backbone_weights.hpp"
#include "chunkllm/model/packed_weights.hpp"

namespace chunkllm {

namespace detail {

/// out = weight * x / sqrt(mean(x^2) + eps), in f32. `out` may be `x`.
///
/// Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
inline void rms_norm(const float* x, std::span<const float> weight, double eps, float* out) {
  const auto size = static_cast<std::int64_t>(weight.size());
  const float mean_square = simd::dot(x, x, size) / static_cast<float>(size);
  const float scale = 1.0F / std::sqrt(mean_square + static_cast<float>(eps));
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = weight[static_cast<std::size_t>(i)] * (x[i] * scale);
  }
}

/// gate * sigmoid(gate) * up, lane by lane.
inline simd::F32x16 silu_times(simd::F32x16 gate, simd::F32x16 up) {
  // Below -88 e^-gate would overflow; there gate / (1 + e^88) is below 1e-30 times gate already.
  const simd::F32x16 bounded = simd::max(gate, simd::broadcast(-88.0F));
  const simd::F32x16 e = simd::exp(simd::zero() - bounded);
  return gate / (simd::broadcast(1.0F) + e) * up;
}

/// gate[i] = silu(gate[i]) * up[i].
inline void silu_gate(float* gate, const float* up, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + simd::kLanes <= size; i += simd::kLanes) {
    simd::store(gate + i, silu_times(simd::load(gate + i), simd::load(up + i)));
  }
  if (i == size) return;
  // The tail runs through whole lanes too, so that a value never depends on its index.
  float gate_tail[simd::kLanes] = {};
  float up_tail[simd::kLanes] = {};
  std::copy(gate + i, gate + size, gate_tail);
  std::copy(up + i, up + size, up_tail);
  simd::store(gate_tail, silu_times(simd::load(gate_tail), simd::load(up_tail)));
  std::copy_n(gate_tail, size - i, gate + i);
}

}  // namespace detail

/// A frozen decoder of the Llama family: Llama, Qwen2, Qwen3, Mistral.
///
/// RMSNorm, grouped-query attention with optional biases and q/k norm, SiLU-gated MLP, tied or
/// untied head, in f32 but for the products of 4 to 8 bit weights (see `Linear`). Attention and
/// RoPE are the caller's (see `FrozenBackbone`). Const and without hidden state: any number of
/// sessions may share one object, each with its own pool.
///
/// `finish_layer` and `logits` take scratch memory from the heap, at most 512 rows at a time.
class DecoderBackbone {
 public:
  explicit DecoderBackbone(BackboneWeights weights) : weights_(std::move(weights)) {}

  /// Loads the weights. Errors: as of `BackboneWeights::load`.
  template <TensorSource Source>
  static Result<DecoderBackbone> load(const Source& source, WeightFormat format, ThreadPool& pool,
                                      const LoadProgress& progress = {}) {
    CHUNKLLM_ASSIGN_OR_RETURN(BackboneWeights weights,
                              BackboneWeights::load(source, format, pool, progress));
    return DecoderBackbone(std::move(weights));
  }

  [[nodiscard]] const BackboneConfig& config() const { return weights_.config; }
  [[nodiscard]] std::int64_t weight_bytes() const { return weights_.bytes(); }

  /// hidden[t] = embedding of tokens[t]; ids must lie in [0, vocab_size).
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> hidden) const {
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      weights_.embedding.unpack_row(tokens[t], hidden.row(static_cast<std::int64_t>(t)));
    }
  }

  /// normed = the layer's input norm of hidden; may run in place.
  void attention_input(std::int64_t layer, MatrixView<const float> hidden,
                       MatrixView<float> normed) const {
    for (std::int64_t r = 0; r < hidden.rows; ++r) {
      detail::rms_norm(hidden.row(r), layer_weights(layer).attention_norm, config().rms_norm_eps,
                       normed.row(r));
    }
  }

  /// q, k, v = projections of normed, biases and q/k norm included, before RoPE.
  void project_qkv(std::int64_t layer, MatrixView<const float> normed, MatrixView<float> q,
                   MatrixView<float> k, MatrixView<float> v, ThreadPool& pool) const {
    const LayerWeights& weights = layer_weights(layer);
    weights.qkv.apply(normed, std::array{q, k, v}, pool);
    if (!config().qk_norm) return;
    for_row_blocks(normed.rows, pool, [&](std::int64_t r) {
      norm_heads(q.row(r), config().num_heads, weights.q_norm);
      norm_heads(k.row(r), config().num_kv_heads, weights.k_norm);
    });
  }

  /// hidden += W_O attended; hidden += MLP(norm(hidden)).
  void finish_layer(std::int64_t layer, MatrixView<const float> attended, MatrixView<float> hidden,
                    ThreadPool& pool) const {
    const LayerWeights& weights = layer_weights(layer);
    const std::int64_t inner = config().intermediate_size;
    const std::int64_t block = std::min(kRowBlock, hidden.rows);
    const auto update =
        scratch(block * hidden.cols);  // a projection's output, then the MLP's input
    const auto gate_up = scratch(block * 2 * inner);
    for (std::int64_t first = 0; first < hidden.rows; first += kRowBlock) {
      const std::int64_t rows = std::min(kRowBlock, hidden.rows - first);
      const MatrixView<float> residual = hidden.middle_rows(first, rows);
      const MatrixView<float> out(update.get(), rows, hidden.cols);
      const MatrixView<float> gate(gate_up.get(), rows, inner, 2 * inner);
      const MatrixView<float> up(gate_up.get() + inner, rows, inner, 2 * inner);

      weights.output.apply(attended.middle_rows(first, rows), out, pool);
      for_row_blocks(rows, pool, [&](std::int64_t r) {
        add_row(residual, out, r);
        detail::rms_norm(residual.row(r), weights.mlp_norm, config().rms_norm_eps, out.row(r));
      });
      weights.gate_up.apply(out, std::array{gate, up}, pool);
      for_row_blocks(rows, pool,
                     [&](std::int64_t r) { detail::silu_gate(gate.row(r), up.row(r), inner); });
      weights.down.apply(gate, out, pool);
      for_row_blocks(rows, pool, [&](std::int64_t r) { add_row(residual, out, r); });
    }
  }

  /// logits = W_head norm(hidden).
  void logits(MatrixView<const float> hidden, MatrixView<float> logits, ThreadPool& pool) const {
    const auto normed = scratch(std::min(kRowBlock, hidden.rows) * hidden.cols);
    for (std::int64_t first = 0; first < hidden.rows; first += kRowBlock) {
      const std::int64_t rows = std::min(kRowBlock, hidden.rows - first);
      const MatrixView<float> input(normed.get(), rows, hidden.cols);
      for_row_blocks(rows, pool, [&](std::int64_t r) {
        detail::rms_norm(hidden.row(first + r), weights_.final_norm, config().rms_norm_eps,
                         input.row(r));
      });
      weights_.head().apply(input, logits.middle_rows(first, rows), pool);
    }
  }

 private:
  // As many rows as `Linear` handles in one pass over a panel, so splitting here costs nothing
  // and bounds the scratch memory.
  static constexpr std::int64_t kRowBlock = 512;
  // Rows that one task of a row-wise loop takes: enough work to pay for handing it out.
  static constexpr std::int64_t kTaskRows = 8;

  static std::unique_ptr<float[]> scratch(std::int64_t size) {
    return std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(size));
  }

  template <typename RowTask>
  static void for_row_blocks(std::int64_t rows, ThreadPool& pool, const RowTask& task) {
    pool.parallel_for((rows + kTaskRows - 1) / kTaskRows, [&](std::int64_t block, int) {
      const std::int64_t end = std::min(rows, (block + 1) * kTaskRows);
      for (std::int64_t r = block * kTaskRows; r < end; ++r) task(r);
    });
  }

  static void add_row(MatrixView<float> target, MatrixView<const float> addend, std::int64_t r) {
    float* out = target.row(r);
    const float* in = addend.row(r);
    for (std::int64_t i = 0; i < target.cols; ++i) out[i] += in[i];
  }

  void norm_heads(float* row, std::int64_t num_heads, std::span<const float> weight) const {
    for (std::int64_t h = 0; h < num_heads; ++h) {
      float* head = row + h * config().head_dim;
      detail::rms_norm(head, weight, config().rms_norm_eps, head);
    }
  }

  [[nodiscard]] const LayerWeights& layer_weights(std::int64_t layer) const {
    return weights_.layers[static_cast<std::size_t>(layer)];
  }

  BackboneWeights weights_;
};

static_assert(FrozenBackbone<DecoderBackbone>);

}  // namespace chunkllm
