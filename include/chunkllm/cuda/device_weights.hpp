// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/rounding.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/kernels/random_weights.cuh"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/backbone_weights.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm::cuda {

/// A matrix on the device, dense and row-major, and the bias of its product.
template <typename T>
struct DeviceMatrix {
  DeviceBuffer<T> weight;    ///< [rows, cols]
  DeviceBuffer<float> bias;  ///< [rows], or empty
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// Weights of one decoder layer.
template <typename T>
struct DeviceLayerWeights {
  DeviceBuffer<float> attention_norm;  ///< [hidden_size]
  DeviceMatrix<T> qkv;                 ///< queries, keys, values
  DeviceBuffer<float> q_norm;          ///< [head_dim], or empty
  DeviceBuffer<float> k_norm;          ///< [head_dim], or empty
  DeviceMatrix<T> output;
  DeviceBuffer<float> mlp_norm;  ///< [hidden_size]
  DeviceMatrix<T> gate_up;       ///< gate, up
  DeviceMatrix<T> down;
};

/// All weights of a decoder in the memory of the current device.
///
/// Matrices are rounded to T once; norms and biases stay f32.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct DeviceWeights {
  BackboneConfig config;
  DeviceMatrix<T> embedding;
  std::vector<DeviceLayerWeights<T>> layers;
  DeviceBuffer<float> final_norm;
  DeviceMatrix<T> untied_head;  ///< empty where embeddings are tied

  /// Maps hidden states to logits.
  [[nodiscard]] const DeviceMatrix<T>& head() const {
    return config.tied_embeddings ? embedding : untied_head;
  }
  /// Bytes held by matrices and vectors.
  [[nodiscard]] std::size_t bytes() const;

  /// Reads every tensor that `source.config()` calls for, dequantises it on the host and uploads
  /// it.
  ///
  /// \param progress  may be empty
  /// Errors: as of `BackboneWeights::load`; kResourceExhausted without device or pinned memory;
  ///         kUnsupported for a weight beyond the range of __half. The message names the tensor.
  /// Cost:   reads the files once; two pinned buffers of 16 MB besides the weights. Waits for the
  ///         device.
  template <TensorSource Source>
  static Result<DeviceWeights> load(const Source& source, ThreadPool& pool,
                                    const LoadProgress& progress = {});

  /// Weights of about normal distribution, made on the device: for work on speed. Norms are 1,
  /// biases 0.
  ///
  /// \param deviation  of every matrix; at 0.02 the hidden states of the shapes in
  ///                   `backbone_shapes.hpp` stay far within the range of __half
  /// Errors: as of `load`, but for files.
  static Result<DeviceWeights> random(const BackboneConfig& config, std::uint64_t seed,
                                      float deviation = 0.02F);
};

namespace detail {

/// Uploads what it reads. `prepare` comes first.
template <typename T, TensorSource Source>
class DeviceWeightReader {
 public:
  DeviceWeightReader(const Source& source, ThreadPool& pool, const LoadProgress& progress)
      : tensors_(source, progress), pool_(pool) {}

  Status prepare() {
    CHUNKLLM_ASSIGN_OR_RETURN(stream_, Stream::create());
    for (Staging& staging : staging_) {
      CHUNKLLM_ASSIGN_OR_RETURN(staging.values, PinnedBuffer<T>::create(kStagingValues));
      CHUNKLLM_ASSIGN_OR_RETURN(staging.copied, Event::create());
    }
    return {};
  }

  Result<DeviceMatrix<T>> matrix(std::span<const chunkllm::detail::WeightPart> parts,
                                 std::int64_t cols) {
    CHUNKLLM_ASSIGN_OR_RETURN(const chunkllm::detail::WeightStack stack,
                              tensors_.stack(parts, cols));
    DeviceMatrix<T> matrix;
    matrix.cols = cols;
    std::vector<float> bias;
    bool has_bias = false;
    for (const LinearPart& part : stack.parts) {
      matrix.rows += part.weight.rows;
      has_bias = has_bias || !part.bias.empty();
      bias.insert(bias.end(), part.bias.begin(), part.bias.end());
      bias.resize(static_cast<std::size_t>(matrix.rows), 0.0F);
    }
    const auto size = static_cast<std::size_t>(matrix.rows * cols);
    const std::string context = "tensor '" + parts[0].name + ".weight'";
    Result<DeviceBuffer<T>> weight = DeviceBuffer<T>::create(size);
    if (!weight.ok()) return weight.status().with_context(context);
    matrix.weight = std::move(weight).value();
    std::int64_t first_row = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      CHUNKLLM_RETURN_IF_ERROR(upload(stack.parts[i], matrix.weight, first_row)
                                   .with_context("tensor '" + parts[i].name + ".weight'"));
      first_row += stack.parts[i].weight.rows;
      CHUNKLLM_RETURN_IF_ERROR(tensors_.count_tensor());
    }
    if (has_bias) {
      CHUNKLLM_ASSIGN_OR_RETURN(matrix.bias, DeviceBuffer<float>::from(bias, stream_.get()));
    }
    return Result<DeviceMatrix<T>>(std::move(matrix));
  }

  Result<DeviceBuffer<float>> vector(const std::string& name, std::int64_t size) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<float> values, tensors_.vector(name, size));
    return DeviceBuffer<float>::from(values, stream_.get());
  }

  [[nodiscard]] Status finish() const { return stream_.synchronize(); }

 private:
  // Large enough that a copy runs at the link's speed, small beside any model.
  static constexpr std::size_t kStagingValues = std::size_t{8} << 20;
  static constexpr std::int64_t kTaskRows = 16;

  struct Staging {
    PinnedBuffer<T> values;
    Event copied;
  };

  /// Two staging buffers: one is filled while the other is on its way.
  Status upload(const LinearPart& part, const DeviceBuffer<T>& target, std::int64_t first_row) {
    const std::int64_t cols = part.weight.cols;
    const std::int64_t block =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(kStagingValues) / cols);
    for (std::int64_t first = 0; first < part.weight.rows; first += block) {
      const std::int64_t rows = std::min(block, part.weight.rows - first);
      Staging& staging = staging_[next_];
      next_ = (next_ + 1) % staging_.size();
      CHUNKLLM_RETURN_IF_ERROR(staging.copied.synchronize());
      CHUNKLLM_RETURN_IF_ERROR(round_rows(part, first, rows, staging.values.data()));
      const auto count = static_cast<std::size_t>(rows * cols);
      CHUNKLLM_RETURN_IF_ERROR(target.upload(std::span<const T>(staging.values.data(), count),
                                             stream_.get(),
                                             static_cast<std::size_t>((first_row + first) * cols)));
      CHUNKLLM_RETURN_IF_ERROR(staging.copied.record(stream_.get()));
    }
    return {};
  }

  Status round_rows(const LinearPart& part, std::int64_t first, std::int64_t rows, T* out) {
    const auto cols = static_cast<std::size_t>(part.weight.cols);
    const std::int64_t num_tasks = (rows + kTaskRows - 1) / kTaskRows;
    std::vector<Status> statuses(static_cast<std::size_t>(num_tasks));
    pool_.parallel_for(num_tasks, [&](std::int64_t task, int) {
      std::vector<float> values(cols);
      const std::int64_t end = std::min(rows, (task + 1) * kTaskRows);
      for (std::int64_t r = task * kTaskRows; r < end; ++r) {
        Status status = round_row(part, first + r, values, out + r * part.weight.cols);
        if (status.ok()) continue;
        std::swap(statuses[static_cast<std::size_t>(task)], status);
        return;
      }
    });
    for (const Status& status : statuses) CHUNKLLM_RETURN_IF_ERROR(status);
    return {};
  }

  static Status round_row(const LinearPart& part, std::int64_t row, std::vector<float>& values,
                          T* out) {
    const std::int64_t source_row =
        part.row_order.empty() ? row : part.row_order[static_cast<std::size_t>(row)];
    CHUNKLLM_RETURN_IF_ERROR(dequantize_row(part.weight, source_row, values));
    for (std::size_t i = 0; i < values.size(); ++i) {
      out[i] = rounded<T>(values[i]);
      if constexpr (std::is_same_v<T, __half>) {
        constexpr float kBeyondHalf = 65520.0F;  // rounds to infinity
        if (std::isfinite(values[i]) && std::abs(values[i]) >= kBeyondHalf) {
          return unsupported("row " + std::to_string(source_row) +
                             " holds a value beyond the range of f16; bf16 holds it");
        }
      }
    }
    return {};
  }

  chunkllm::detail::TensorReader<Source> tensors_;
  ThreadPool& pool_;
  Stream stream_;
  std::array<Staging, 2> staging_;
  std::size_t next_ = 0;
};

/// Stands where a file would: `load_weights` asks it for the configuration alone.
struct RandomWeightSource {
  const BackboneConfig& shape;
  [[nodiscard]] const BackboneConfig& config() const { return shape; }
  [[nodiscard]] bool qk_rows_permuted() const { return false; }
  [[nodiscard]] Result<TensorBytes> tensor(const std::string& name) const {
    return not_found("random weights: there is no tensor '" + name + "'");
  }
};

/// Makes up what it is asked for.
template <typename T>
class RandomWeightReader {
 public:
  RandomWeightReader(std::uint64_t seed, float deviation) : seed_(seed), deviation_(deviation) {}

  Status prepare() {
    CHUNKLLM_ASSIGN_OR_RETURN(stream_, Stream::create());
    return {};
  }
  Result<DeviceMatrix<T>> matrix(std::span<const chunkllm::detail::WeightPart> parts,
                                 std::int64_t cols) {
    DeviceMatrix<T> matrix;
    matrix.cols = cols;
    bool has_bias = false;
    for (const chunkllm::detail::WeightPart& part : parts) {
      matrix.rows += part.rows;
      has_bias = has_bias || part.has_bias;
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        matrix.weight, DeviceBuffer<T>::create(static_cast<std::size_t>(matrix.rows * cols)));
    CHUNKLLM_RETURN_IF_ERROR(fill(matrix.weight, /*mean=*/0.0F, deviation_));
    if (has_bias) {
      CHUNKLLM_ASSIGN_OR_RETURN(matrix.bias,
                                DeviceBuffer<float>::create(static_cast<std::size_t>(matrix.rows)));
      CHUNKLLM_RETURN_IF_ERROR(matrix.bias.zero(stream_.get()));
    }
    return Result<DeviceMatrix<T>>(std::move(matrix));
  }
  Result<DeviceBuffer<float>> vector(const std::string& /*name*/, std::int64_t size) {
    CHUNKLLM_ASSIGN_OR_RETURN(DeviceBuffer<float> values,
                              DeviceBuffer<float>::create(static_cast<std::size_t>(size)));
    CHUNKLLM_RETURN_IF_ERROR(fill(values, /*mean=*/1.0F, /*deviation=*/0.0F));
    return Result<DeviceBuffer<float>>(std::move(values));
  }
  [[nodiscard]] Status finish() const { return stream_.synchronize(); }

 private:
  template <typename V>
  Status fill(const DeviceBuffer<V>& values, float mean, float deviation) {
    kernels::RandomWeightsArgs<V> args;
    args.values = values.data();
    args.count = static_cast<std::int64_t>(values.size());
    args.seed = seed_ + 0xd1342543de82ef95U * ++num_filled_;  // another stretch of the sequence
    args.mean = mean;
    args.deviation = deviation;
    return kernels::launch_random_weights(args, stream_.get());
  }

  std::uint64_t seed_;
  float deviation_;
  std::uint64_t num_filled_ = 0;
  Stream stream_;
};

}  // namespace detail

template <typename T>
template <TensorSource Source>
inline Result<DeviceWeights<T>> DeviceWeights<T>::load(const Source& source, ThreadPool& pool,
                                                       const LoadProgress& progress) {
  CHUNKLLM_RETURN_IF_ERROR(validate(source.config(), "model configuration"));
  DeviceWeights weights;
  detail::DeviceWeightReader<T, Source> reader(source, pool, progress);
  CHUNKLLM_RETURN_IF_ERROR(reader.prepare());
  CHUNKLLM_RETURN_IF_ERROR(chunkllm::detail::load_weights(weights, reader, source));
  CHUNKLLM_RETURN_IF_ERROR(reader.finish());
  return Result<DeviceWeights>(std::move(weights));
}

template <typename T>
inline Result<DeviceWeights<T>> DeviceWeights<T>::random(const BackboneConfig& config,
                                                         std::uint64_t seed, float deviation) {
  CHUNKLLM_RETURN_IF_ERROR(validate(config, "model configuration"));
  DeviceWeights weights;
  detail::RandomWeightReader<T> reader(seed, deviation);
  CHUNKLLM_RETURN_IF_ERROR(reader.prepare());
  CHUNKLLM_RETURN_IF_ERROR(
      chunkllm::detail::load_weights(weights, reader, detail::RandomWeightSource{config}));
  CHUNKLLM_RETURN_IF_ERROR(reader.finish());
  return Result<DeviceWeights>(std::move(weights));
}

template <typename T>
inline std::size_t DeviceWeights<T>::bytes() const {
  std::size_t sum = final_norm.bytes();
  const auto add = [&sum](const DeviceMatrix<T>& m) { sum += m.weight.bytes() + m.bias.bytes(); };
  add(embedding);
  add(untied_head);
  for (const DeviceLayerWeights<T>& layer : layers) {
    for (const DeviceMatrix<T>* m : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      add(*m);
    }
    sum += layer.attention_norm.bytes() + layer.mlp_norm.bytes() + layer.q_norm.bytes() +
           layer.k_norm.bytes();
  }
  return sum;
}

}  // namespace chunkllm::cuda
