// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/cuda/device_rope.hpp"
#include "chunkllm/cuda/device_weights.hpp"
#include "chunkllm/cuda/gemm.hpp"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/matrix_vector.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/kernels/silu_gate.cuh"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm::cuda {

/// Where a `DeviceBackbone` enqueues, and what its products work in.
struct DeviceRun {
  cudaStream_t stream = nullptr;
  cublasHandle_t cublas = nullptr;  ///< bound to `stream`, with a workspace: see `CublasHandle`
  std::byte* scratch = nullptr;     ///< of one stream at a time, a multiple of 256 bytes
  std::size_t scratch_bytes = 0;    ///< at least `DeviceBackbone::scratch_bytes` of the rows given
};

/// A frozen decoder of the Llama family on the GPU: Llama, Qwen2, Qwen3, Mistral.
///
/// The same network as `DecoderBackbone`: RMSNorm, biases, SiLU-gated MLP, tied or untied head.
/// Attention, and with it q/k norm and RoPE (`rope_store_args`), is the caller's. The residual
/// stream is f32, what is multiplied is T. Const: sessions share one object, each with its own
/// `DeviceRun`. All methods but `rope_table` only enqueue; they allocate nothing and can be
/// captured in a graph.
///
/// Up to `kMaxVectorRows` rows run through the decode kernels, where a row's bits do not depend on
/// the rows beside it, and where a kernel reads its first weights while the one in front ends (see
/// dependent_launch.cuh); more go through cuBLAS, whose order of sums depends on their number.
/// Whoever writes weights waits for that before the first run.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
class DeviceBackbone {
 public:
  /// Up to here the weights' bytes are the time. Above, x costs more from L2 than they do from
  /// memory, and cuBLAS's larger tiles are ahead.
  static constexpr std::int32_t kMaxVectorRows = kernels::MatrixVectorShape::kMaxRows;

  /// Whether the products know a model's sizes: to be asked before its weights are loaded.
  ///
  /// Errors: kUnsupported for sizes that are no multiples of 8 (hidden, inner, heads) and for a
  ///         head_dim above 256. Attention is the caller's: see `DecodeStep::check_shapes`.
  static Status check_shapes(const BackboneConfig& config);

  /// Errors: as of `check_shapes`.
  static Result<DeviceBackbone> create(DeviceWeights<T> weights);

  /// Loads the weights. Errors: as of `DeviceWeights::load` and `create`.
  template <TensorSource Source>
  static Result<DeviceBackbone> load(const Source& source, ThreadPool& pool,
                                     const LoadProgress& progress = {}) {
    CHUNKLLM_RETURN_IF_ERROR(check_shapes(source.config()));
    CHUNKLLM_ASSIGN_OR_RETURN(DeviceWeights<T> weights,
                              DeviceWeights<T>::load(source, pool, progress));
    return create(std::move(weights));
  }

  [[nodiscard]] const BackboneConfig& config() const { return weights_.config; }
  [[nodiscard]] const DeviceWeights<T>& weights() const { return weights_; }
  [[nodiscard]] std::size_t weight_bytes() const { return weights_.bytes(); }
  /// Elements of a row of `qkv`: queries, keys, values.
  [[nodiscard]] std::int64_t qkv_size() const {
    return config().query_size() + 2 * config().kv_size();
  }

  /// Scratch memory for calls of up to `max_rows` rows.
  [[nodiscard]] std::size_t scratch_bytes(std::int32_t max_rows) const {
    return Scratch(*this, nullptr, max_rows).bytes;
  }

  /// Rotations by at least `count` positions, shared by all who ask: the table is made when longer
  /// ones than before are wanted. Errors: kResourceExhausted.
  [[nodiscard]] Result<std::shared_ptr<const DeviceRopeTable>> rope_table(
      std::int32_t count, cudaStream_t stream) const {
    return rope_->at_least(config(), count, stream);
  }

  /// hidden[r] = embedding of tokens[r].
  ///
  /// \param tokens  [num_rows] on the device   \param hidden  [num_rows, hidden_size]
  Status embed(const DeviceRun& run, const std::int32_t* tokens, std::int32_t num_rows,
               float* hidden) const;

  /// qkv = projections of the layer's input norm of hidden, biases included; before q/k norm.
  ///
  /// \param maybe_normed  [num_rows, hidden_size] out: the normed input, or null
  /// \param qkv           [num_rows, qkv_size()] out
  Status project_qkv(const DeviceRun& run, std::int64_t layer, const float* hidden,
                     std::int32_t num_rows, T* maybe_normed, T* qkv) const;

  /// The part of `launch_rope_store`'s arguments that the backbone knows: shapes, norms, qkv.
  template <typename Kv = T>
  [[nodiscard]] kernels::RopeStoreArgs<T, Kv> rope_store_args(std::int64_t layer, const T* qkv,
                                                              std::int32_t num_rows) const;

  /// hidden += W_O attended; hidden += MLP(norm(hidden)).
  ///
  /// \param attended  [num_rows, num_heads * head_dim]   \param hidden  [num_rows, hidden_size]
  Status finish_layer(const DeviceRun& run, std::int64_t layer, const T* attended,
                      std::int32_t num_rows, float* hidden) const;

  /// logits = W_head norm(hidden).
  ///
  /// \param logits  [num_rows, vocab_size] out, float or T
  template <typename Logit>
  Status logits(const DeviceRun& run, const float* hidden, std::int32_t num_rows,
                Logit* logits) const;

 private:
  using Matrix = DeviceMatrix<T>;

  /// What lies where in a run's scratch memory.
  struct Scratch {
    T* normed;     ///< [rows, hidden_size]
    T* gate_up;    ///< [rows, 2 * inner]; not used by the decode kernels
    T* activated;  ///< [rows, inner]
    std::size_t bytes = 0;

    Scratch(const DeviceBackbone& backbone, std::byte* base, std::int32_t rows) {
      const std::int64_t inner = backbone.config().intermediate_size;
      normed = take(base, rows * backbone.config().hidden_size);
      gate_up = take(base, rows * 2 * inner);
      activated = take(base, rows * inner);
    }

   private:
    T* take(std::byte* base, std::int64_t count) {
      constexpr std::size_t kAlignment = 256;
      T* part = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
      const std::size_t size = static_cast<std::size_t>(count) * sizeof(T);
      bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
      return part;
    }
  };

  explicit DeviceBackbone(DeviceWeights<T> weights) : weights_(std::move(weights)) {}

  Status check_run(const DeviceRun& run, std::int32_t num_rows, std::int64_t layer) const;
  [[nodiscard]] const DeviceLayerWeights<T>& layer_weights(std::int64_t layer) const {
    return weights_.layers[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] std::int32_t hidden_size() const {
    return static_cast<std::int32_t>(config().hidden_size);
  }

  Status norm(const DeviceRun& run, const float* hidden, const DeviceBuffer<float>& weight,
              std::int32_t num_rows, T* normed) const;
  /// y = W norm(hidden) with the decode kernel, which `args` knows the output of.
  Status few_rows_of_norm(const DeviceRun& run, kernels::MatrixVectorArgs<T> args,
                          const float* hidden, const DeviceBuffer<float>& weight, T* maybe_normed,
                          T* scratch) const;
  /// hidden += W x.
  Status add_product(const DeviceRun& run, const Matrix& matrix, const T* x, std::int32_t num_rows,
                     float* hidden, bool is_behind_attention) const;
  /// y = W x, or y += W x, by cuBLAS and without the bias.
  template <typename Out>
  static Status many_rows(const DeviceRun& run, const Matrix& matrix, const T* x,
                          std::int32_t num_rows, Out* y, bool accumulates);
  static kernels::MatrixVectorArgs<T> few_rows_args(const Matrix& matrix, std::int32_t num_rows);

  DeviceWeights<T> weights_;
  std::unique_ptr<SharedRopeTable> rope_ = std::make_unique<SharedRopeTable>();
};

template <typename T>
inline Status DeviceBackbone<T>::check_shapes(const BackboneConfig& config) {
  if (config.hidden_size % 8 == 0 && config.intermediate_size % 8 == 0 &&
      config.head_dim % 8 == 0 && config.head_dim <= kernels::kMaxRopeHeadDim) {
    return {};
  }
  return unsupported("device backbone: hidden_size " + std::to_string(config.hidden_size) +
                     ", intermediate_size " + std::to_string(config.intermediate_size) +
                     ", head_dim " + std::to_string(config.head_dim) +
                     "; supported are multiples of 8, head_dim up to " +
                     std::to_string(kernels::kMaxRopeHeadDim));
}

template <typename T>
inline Result<DeviceBackbone<T>> DeviceBackbone<T>::create(DeviceWeights<T> weights) {
  CHUNKLLM_RETURN_IF_ERROR(check_shapes(weights.config));
  return Result<DeviceBackbone>(DeviceBackbone(std::move(weights)));
}

template <typename T>
inline Status DeviceBackbone<T>::check_run(const DeviceRun& run, std::int32_t num_rows,
                                           std::int64_t layer) const {
  if (layer < 0 || layer >= config().num_layers) {
    return out_of_range("device backbone: layer " + std::to_string(layer) + " of " +
                        std::to_string(config().num_layers));
  }
  if (num_rows < 0) {
    return invalid_argument("device backbone: " + std::to_string(num_rows) + " rows");
  }
  const std::size_t needed = scratch_bytes(num_rows);
  if (run.scratch_bytes < needed || (run.scratch == nullptr && needed > 0) ||
      reinterpret_cast<std::uintptr_t>(run.scratch) % 256 != 0) {
    return invalid_argument("device backbone: scratch of " + std::to_string(run.scratch_bytes) +
                            " bytes, expected " + std::to_string(needed) + " for " +
                            std::to_string(num_rows) + " rows, 256 byte aligned");
  }
  return {};
}

template <typename T>
inline kernels::MatrixVectorArgs<T> DeviceBackbone<T>::few_rows_args(const Matrix& matrix,
                                                                     std::int32_t num_rows) {
  kernels::MatrixVectorArgs<T> args;
  args.weight = matrix.weight.data();
  args.maybe_bias = matrix.bias.data();
  args.num_outputs = static_cast<std::int32_t>(matrix.rows);
  args.k = static_cast<std::int32_t>(matrix.cols);
  args.num_rows = num_rows;
  return args;
}

template <typename T>
template <typename Out>
inline Status DeviceBackbone<T>::many_rows(const DeviceRun& run, const Matrix& matrix, const T* x,
                                           std::int32_t num_rows, Out* y, bool accumulates) {
  GemmArgs<T, Out> args;
  args.inputs = x;
  args.weights = matrix.weight.data();
  args.outputs = y;
  args.input_stride = matrix.cols;
  args.weight_stride = matrix.cols;
  args.output_stride = matrix.rows;
  args.num_rows = num_rows;
  args.in_features = matrix.cols;
  args.out_features = matrix.rows;
  args.accumulates = accumulates;
  return gemm(run.cublas, args);
}

template <typename T>
inline Status DeviceBackbone<T>::norm(const DeviceRun& run, const float* hidden,
                                      const DeviceBuffer<float>& weight, std::int32_t num_rows,
                                      T* normed) const {
  kernels::RmsNormArgs<T> args;
  args.residual = const_cast<float*>(hidden);  // written only with an update, and there is none
  args.residual_stride = config().hidden_size;
  args.weight = weight.data();
  args.eps = static_cast<float>(config().rms_norm_eps);
  args.normed = normed;
  args.normed_stride = config().hidden_size;
  args.num_rows = num_rows;
  args.size = hidden_size();
  return kernels::launch_rms_norm(args, run.stream);
}

template <typename T>
inline Status DeviceBackbone<T>::few_rows_of_norm(const DeviceRun& run,
                                                  kernels::MatrixVectorArgs<T> args,
                                                  const float* hidden,
                                                  const DeviceBuffer<float>& weight,
                                                  T* maybe_normed, T* scratch) const {
  CHUNKLLM_ASSIGN_OR_RETURN(const int shared_bytes,
                            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (kernels::can_fuse_norm(args.num_rows, args.k, shared_bytes)) {
    args.hidden = hidden;
    args.hidden_stride = config().hidden_size;
    args.norm_weight = weight.data();
    args.eps = static_cast<float>(config().rms_norm_eps);
    args.maybe_normed = maybe_normed;
  } else {
    T* normed = maybe_normed == nullptr ? scratch : maybe_normed;
    CHUNKLLM_RETURN_IF_ERROR(norm(run, hidden, weight, args.num_rows, normed));
    args.x = normed;
    args.x_stride = config().hidden_size;
  }
  return kernels::launch_matrix_vector(args, run.stream);
}

template <typename T>
inline Status DeviceBackbone<T>::add_product(const DeviceRun& run, const Matrix& matrix, const T* x,
                                             std::int32_t num_rows, float* hidden,
                                             bool is_behind_attention) const {
  if (num_rows <= kMaxVectorRows) {
    kernels::MatrixVectorArgs<T> args = few_rows_args(matrix, num_rows);
    args.x = x;
    args.x_stride = matrix.cols;
    args.epilogue = kernels::Epilogue::kAddF32;
    args.y_f32 = hidden;
    args.y_f32_stride = matrix.rows;
    args.one_block_an_sm = is_behind_attention;
    return kernels::launch_matrix_vector(args, run.stream);
  }
  if (matrix.bias.size() > 0) {
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_fill_rows<float>(
        {matrix.bias.data(), hidden, matrix.rows, num_rows, static_cast<std::int32_t>(matrix.rows),
         /*accumulate=*/true},
        run.stream));
  }
  return many_rows(run, matrix, x, num_rows, hidden, /*accumulates=*/true);
}

template <typename T>
inline Status DeviceBackbone<T>::embed(const DeviceRun& run, const std::int32_t* tokens,
                                       std::int32_t num_rows, float* hidden) const {
  kernels::EmbedTokensArgs<T> args;
  args.embedding = weights_.embedding.weight.data();
  args.vocab_size = static_cast<std::int32_t>(config().vocab_size);
  args.hidden_size = hidden_size();
  args.tokens = tokens;
  args.num_rows = num_rows;
  args.hidden = hidden;
  args.hidden_stride = config().hidden_size;
  return kernels::launch_embed_tokens(args, run.stream);
}

template <typename T>
inline Status DeviceBackbone<T>::project_qkv(const DeviceRun& run, std::int64_t layer,
                                             const float* hidden, std::int32_t num_rows,
                                             T* maybe_normed, T* qkv) const {
  CHUNKLLM_RETURN_IF_ERROR(check_run(run, num_rows, layer));
  const DeviceLayerWeights<T>& weights = layer_weights(layer);
  const Scratch scratch(*this, run.scratch, num_rows);
  if (num_rows <= kMaxVectorRows) {
    kernels::MatrixVectorArgs<T> args = few_rows_args(weights.qkv, num_rows);
    args.epilogue = kernels::Epilogue::kStore;
    args.y = qkv;
    args.y_stride = weights.qkv.rows;
    return few_rows_of_norm(run, args, hidden, weights.attention_norm, maybe_normed,
                            scratch.normed);
  }
  T* normed = maybe_normed == nullptr ? scratch.normed : maybe_normed;
  CHUNKLLM_RETURN_IF_ERROR(norm(run, hidden, weights.attention_norm, num_rows, normed));
  const bool has_bias = weights.qkv.bias.size() > 0;
  if (has_bias) {
    // cuBLAS adds to it in f32 and rounds once; the bias itself is rounded to T, which published
    // weights are already.
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_fill_rows<T>(
        {weights.qkv.bias.data(), qkv, weights.qkv.rows, num_rows,
         static_cast<std::int32_t>(weights.qkv.rows), /*accumulate=*/false},
        run.stream));
  }
  return many_rows(run, weights.qkv, normed, num_rows, qkv, /*accumulates=*/has_bias);
}

template <typename T>
template <typename Kv>
inline kernels::RopeStoreArgs<T, Kv> DeviceBackbone<T>::rope_store_args(
    std::int64_t layer, const T* qkv, std::int32_t num_rows) const {
  kernels::RopeStoreArgs<T, Kv> args;
  args.qkv = qkv;
  args.qkv_stride = qkv_size();
  args.num_rows = num_rows;
  args.num_heads = static_cast<std::int32_t>(config().num_heads);
  args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
  args.head_dim = static_cast<std::int32_t>(config().head_dim);
  args.maybe_q_norm = layer_weights(layer).q_norm.data();
  args.maybe_k_norm = layer_weights(layer).k_norm.data();
  args.eps = static_cast<float>(config().rms_norm_eps);
  return args;
}

template <typename T>
inline Status DeviceBackbone<T>::finish_layer(const DeviceRun& run, std::int64_t layer,
                                              const T* attended, std::int32_t num_rows,
                                              float* hidden) const {
  CHUNKLLM_RETURN_IF_ERROR(check_run(run, num_rows, layer));
  const DeviceLayerWeights<T>& weights = layer_weights(layer);
  const Scratch scratch(*this, run.scratch, num_rows);
  const auto inner = static_cast<std::int32_t>(config().intermediate_size);
  CHUNKLLM_RETURN_IF_ERROR(add_product(run, weights.output, attended, num_rows, hidden,
                                       /*is_behind_attention=*/true));
  if (num_rows <= kMaxVectorRows) {
    kernels::MatrixVectorArgs<T> args = few_rows_args(weights.gate_up, num_rows);
    args.epilogue = kernels::Epilogue::kSiluGate;
    args.y = scratch.activated;
    args.y_stride = inner;
    CHUNKLLM_RETURN_IF_ERROR(few_rows_of_norm(run, args, hidden, weights.mlp_norm,
                                              /*maybe_normed=*/nullptr, scratch.normed));
  } else {
    CHUNKLLM_RETURN_IF_ERROR(norm(run, hidden, weights.mlp_norm, num_rows, scratch.normed));
    CHUNKLLM_RETURN_IF_ERROR(many_rows(run, weights.gate_up, scratch.normed, num_rows,
                                       scratch.gate_up, /*accumulates=*/false));
    kernels::SiluGateArgs<T> args;
    args.gate_up = scratch.gate_up;
    args.gate_up_stride = 2 * static_cast<std::int64_t>(inner);
    args.maybe_bias = weights.gate_up.bias.data();
    args.out = scratch.activated;
    args.out_stride = inner;
    args.num_rows = num_rows;
    args.inner = inner;
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_silu_gate(args, run.stream));
  }
  return add_product(run, weights.down, scratch.activated, num_rows, hidden,
                     /*is_behind_attention=*/false);
}

template <typename T>
template <typename Logit>
inline Status DeviceBackbone<T>::logits(const DeviceRun& run, const float* hidden,
                                        std::int32_t num_rows, Logit* logits) const {
  static_assert(std::is_same_v<Logit, float> || std::is_same_v<Logit, T>);
  CHUNKLLM_RETURN_IF_ERROR(check_run(run, num_rows, /*layer=*/0));
  const Matrix& head = weights_.head();
  const Scratch scratch(*this, run.scratch, num_rows);
  if (num_rows <= kMaxVectorRows) {
    kernels::MatrixVectorArgs<T> args = few_rows_args(head, num_rows);
    if constexpr (std::is_same_v<Logit, float>) {
      args.epilogue = kernels::Epilogue::kStoreF32;
      args.y_f32 = logits;
      args.y_f32_stride = head.rows;
    } else {
      args.epilogue = kernels::Epilogue::kStore;
      args.y = logits;
      args.y_stride = head.rows;
    }
    return few_rows_of_norm(run, args, hidden, weights_.final_norm, /*maybe_normed=*/nullptr,
                            scratch.normed);
  }
  CHUNKLLM_RETURN_IF_ERROR(norm(run, hidden, weights_.final_norm, num_rows, scratch.normed));
  return many_rows(run, head, scratch.normed, num_rows, logits, /*accumulates=*/false);
}

}  // namespace chunkllm::cuda
