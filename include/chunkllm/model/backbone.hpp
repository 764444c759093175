// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// What `Session` needs of a decoder. All members are const: the model is frozen.
///
/// Rows are tokens. A layer is run in three steps, so that the library's own attention can stand
/// in the middle:
///   normed = attention_input(layer, hidden)   what feeds the layer's W_Q, W_K, W_V
///   q, k, v = project_qkv(layer, normed)      before RoPE, after any q/k norm
///   hidden  = finish_layer(layer, attended, hidden)   output projection, residual, MLP, residual
///
/// Every row must depend on its own row alone, bit for bit, or prefill in blocks will not equal
/// decoding token by token.
///
///   embed            writes hidden [num_tokens, hidden_size]; ids lie in [0, vocab_size)
///   attention_input  writes normed [num_tokens, hidden_size]
///   project_qkv      writes q [num_tokens, num_heads * head_dim], k and v [num_tokens,
///                    num_kv_heads * head_dim]
///   finish_layer     attended [num_tokens, num_heads * head_dim]; updates hidden in place
///   logits           writes logits [num_tokens, vocab_size] of hidden rows (final norm included)
///
/// The views may be slices of larger buffers (row_stride > cols).
template <typename B>
concept FrozenBackbone = requires(const B& backbone, std::span<const std::int32_t> tokens,
                                  std::int64_t layer, MatrixView<float> out,
                                  MatrixView<const float> in, ThreadPool& pool) {
  { backbone.config() } -> std::same_as<const BackboneConfig&>;
  { backbone.weight_bytes() } -> std::convertible_to<std::int64_t>;
  backbone.embed(tokens, out);
  backbone.attention_input(layer, in, out);
  backbone.project_qkv(layer, in, out, out, out, pool);
  backbone.finish_layer(layer, in, out, pool);
  backbone.logits(in, out, pool);
};

}  // namespace chunkllm
