// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/gemm.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/pool_chunks.cuh"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm::cuda {

/// Rows of one layer that a scorer takes from a block of tokens.
template <typename T>
struct ScorerRows {
  kernels::TokenBlock<T> block;  ///< normed inputs, or keys as they are cached
  const T* queries = nullptr;    ///< [block.num_rows, query_size of the backbone]
  std::int64_t layer = 0;
  std::int32_t first_chunk = 0;                ///< chunks that end before or at the first row
  std::int32_t num_new_chunks = 0;             ///< that end among the rows
  const std::int32_t* query_tokens = nullptr;  ///< [num_queries] positions, on the device
  std::int32_t num_queries = 0;
};

/// Makes chunk keys, queries and keys of open chunks from blocks of rows, as `LayerState` does.
template <typename T>
class PrefillKeys {
 public:
  PrefillKeys() = default;

  /// \param max_queries  of a block   \param max_new_chunks  that can end in one
  static Result<PrefillKeys> create(const BackboneConfig& config, const DeviceScorer<T>& scorer,
                                    const DeviceBatch<T>& batch, const CublasHandle& cublas,
                                    std::int32_t max_queries, std::int32_t max_new_chunks) {
    PrefillKeys keys;
    keys.scorer_ = &scorer;
    keys.batch_ = &batch;
    keys.cublas_ = &cublas;
    keys.query_row_size_ = config.query_size();
    const auto queries = static_cast<std::size_t>(max_queries);
    const auto row_size = static_cast<std::size_t>(scorer.row_size());
    const auto key_size = static_cast<std::size_t>(scorer.shape().key_size());
    CHUNKLLM_ASSIGN_OR_RETURN(
        keys.queries_,
        DeviceBuffer<float>::create(queries * static_cast<std::size_t>(scorer.query_stride())));
    if (scorer.uses_open_key()) {
      CHUNKLLM_ASSIGN_OR_RETURN(keys.open_keys_, DeviceBuffer<float>::create(queries * key_size));
    }
    if (scorer.is_adapter()) {
      CHUNKLLM_ASSIGN_OR_RETURN(keys.query_rows_, DeviceBuffer<T>::create(queries * row_size));
      CHUNKLLM_ASSIGN_OR_RETURN(
          keys.pooled_rows_,
          DeviceBuffer<T>::create(static_cast<std::size_t>(max_new_chunks) * row_size));
    }
    return Result<PrefillKeys>(std::move(keys));
  }

  /// Device memory of queries, open keys and rows.
  [[nodiscard]] std::size_t bytes() const {
    return queries_.bytes() + open_keys_.bytes() + query_rows_.bytes() + pooled_rows_.bytes();
  }
  /// [num_queries, query_stride] of the last call.
  [[nodiscard]] const float* queries() const { return queries_.data(); }
  /// [num_queries, key_size] of the last call; null where the scorer needs none.
  [[nodiscard]] const float* maybe_open_keys() const { return open_keys_.data(); }

  /// Enqueues keys of the chunks that end among the rows, queries and open keys of the query
  /// tokens, and the open chunk's sum behind the rows.
  Status take_rows(const ScorerRows<T>& rows, cudaStream_t stream) const {
    const std::int64_t key_size = scorer_->shape().key_size();
    const std::int32_t seq = rows.block.seq;
    float* open_sum = batch_->open_sums(rows.layer) + seq * scorer_->row_size();
    if (scorer_->uses_open_key()) {  // in front of the pooling: it needs the sum as it stood
      CHUNKLLM_RETURN_IF_ERROR(make_open_keys(rows, open_sum, stream));
    }
    CHUNKLLM_RETURN_IF_ERROR(make_queries(rows, stream));

    T* new_keys = batch_->chunk_keys(rows.layer) +
                  (std::int64_t{seq} * batch_->max_chunks() + rows.first_chunk) * key_size;
    kernels::PoolChunksArgs<T, T> pool;
    pool.block = rows.block;
    pool.first_chunk = rows.first_chunk;
    pool.num_new_chunks = rows.num_new_chunks;
    pool.open_sum = open_sum;
    pool.maybe_rounded = scorer_->is_adapter() ? pooled_rows_.data() : new_keys;
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_pool_chunks(pool, stream));
    if (!scorer_->is_adapter()) return {};
    return product(pooled_rows_.data(), rows.num_new_chunks, scorer_->maybe_key_weight(rows.layer),
                   key_size, new_keys, key_size,
                   /*accumulates=*/false);
  }

 private:
  Status make_open_keys(const ScorerRows<T>& rows, const float* open_sum,
                        cudaStream_t stream) const {
    const std::int64_t key_size = scorer_->shape().key_size();
    kernels::OpenKeysArgs<T, T> open;
    open.block = rows.block;
    open.open_sum = open_sum;
    open.triggers = rows.query_tokens;
    open.num_triggers = rows.num_queries;
    if (!scorer_->is_adapter()) {
      open.maybe_pooled = open_keys_.data();
      return kernels::launch_open_keys_at_triggers(open, stream);
    }
    open.maybe_rounded = query_rows_.data();
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_open_keys_at_triggers(open, stream));
    return product(query_rows_.data(), rows.num_queries, scorer_->maybe_key_weight(rows.layer),
                   key_size, open_keys_.data(), key_size, /*accumulates=*/false);
  }

  /// Queries, then null logits: the backbone's own, or the adapter's of the normed inputs.
  Status make_queries(const ScorerRows<T>& rows, cudaStream_t stream) const {
    if (!scorer_->is_adapter()) {
      return gather(rows.queries, query_row_size_, query_row_size_, rows, queries_.data(), stream);
    }
    CHUNKLLM_RETURN_IF_ERROR(gather(rows.block.rows, rows.block.row_stride, rows.block.row_size,
                                    rows, query_rows_.data(), stream));
    const std::int64_t query_stride = scorer_->query_stride();
    CHUNKLLM_RETURN_IF_ERROR(product(query_rows_.data(), rows.num_queries,
                                     scorer_->maybe_query_weight(rows.layer),
                                     scorer_->query_features(), queries_.data(), query_stride,
                                     /*accumulates=*/false));
    if (!scorer_->shape().has_null_logits) return {};
    // The biases first, the product on top of them.
    float* nulls = queries_.data() + scorer_->query_features();
    const std::int64_t heads = scorer_->shape().num_heads;
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_fill_rows<float>(
        {scorer_->maybe_null_bias(rows.layer), nulls, query_stride, rows.num_queries,
         static_cast<std::int32_t>(heads), /*accumulate=*/false},
        stream));
    return product(query_rows_.data(), rows.num_queries, scorer_->maybe_null_weight(rows.layer),
                   heads, nulls, query_stride, /*accumulates=*/true);
  }

  template <typename Out>
  static Status gather(const T* from, std::int64_t row_stride, std::int64_t row_size,
                       const ScorerRows<T>& rows, Out* to, cudaStream_t stream) {
    kernels::GatherRowsArgs<T, Out> args;
    args.rows = from;
    args.row_stride = row_stride;
    args.num_rows = rows.block.num_rows;
    args.row_size = static_cast<std::int32_t>(row_size);
    args.indices = rows.query_tokens;
    args.num_indices = rows.num_queries;
    args.index_base = rows.block.first_token;
    args.out = to;
    return kernels::launch_gather_rows(args, stream);
  }

  template <typename Out>
  Status product(const T* inputs, std::int64_t rows, const T* weights, std::int64_t features,
                 Out* outputs, std::int64_t output_stride, bool accumulates) const {
    GemmArgs<T, Out> args;
    args.inputs = inputs;
    args.input_stride = scorer_->row_size();
    args.weights = weights;
    args.weight_stride = scorer_->row_size();
    args.outputs = outputs;
    args.output_stride = output_stride;
    args.num_rows = rows;
    args.in_features = scorer_->row_size();
    args.out_features = features;
    args.accumulates = accumulates;
    return gemm(cublas_->get(), args);
  }

  const DeviceScorer<T>* scorer_ = nullptr;
  const DeviceBatch<T>* batch_ = nullptr;
  const CublasHandle* cublas_ = nullptr;
  std::int64_t query_row_size_ = 0;
  DeviceBuffer<float> queries_;
  DeviceBuffer<float> open_keys_;
  DeviceBuffer<T> query_rows_;
  DeviceBuffer<T> pooled_rows_;
};

}  // namespace chunkllm::cuda
