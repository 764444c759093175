// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "../tests/reference/oracle.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/dtype.hpp"

namespace chunkllm::bench {

struct AttentionShape {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
};

/// Random queries of the last tokens over a contiguous f16 cache.
class AttentionProblem {
 public:
  AttentionProblem(const AttentionShape& shape, std::int64_t num_tokens, std::int64_t num_rows,
                   int num_threads)
      : shape_(shape), num_tokens_(num_tokens), num_rows_(num_rows) {
    std::minstd_rand random(1);
    const auto width = static_cast<std::size_t>(shape.num_heads * shape.head_dim);
    const auto kv_width = static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim);
    const auto draw = [&] { return static_cast<float>(random() % 4096) / 1024.0F - 2.0F; };
    q_.resize(width * static_cast<std::size_t>(num_rows));
    for (float& x : q_) x = draw();
    out_.resize(q_.size());
    keys_.resize(kv_width * static_cast<std::size_t>(num_tokens));
    values_.resize(keys_.size());
    for (F16& x : keys_) x = to_f16(draw());
    for (F16& x : values_) x = to_f16(draw());
    workspace_.resize(static_cast<std::size_t>(chunk_attention_workspace_floats(
        shape.num_heads, shape.num_kv_heads, shape.head_dim, num_tokens, num_threads)));
  }

  /// \param tiles  must outlive the arguments
  ChunkAttentionArgs<F16> args(std::span<const AttentionTile> tiles) {
    const std::int64_t width = shape_.num_heads * shape_.head_dim;
    ChunkAttentionArgs<F16> args;
    args.q = {q_.data(), num_rows_, width};
    args.out = {out_.data(), num_rows_, width};
    args.kv = contiguous_kv(keys_.data(), values_.data(), num_tokens_, shape_.num_kv_heads,
                            shape_.head_dim);
    args.tiles = tiles;
    args.first_token = num_tokens_ - num_rows_;
    args.num_heads = shape_.num_heads;
    args.num_kv_heads = shape_.num_kv_heads;
    args.head_dim = shape_.head_dim;
    args.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
    return args;
  }
  std::span<float> workspace() { return workspace_; }

  /// Whether the first and the last row are the oracle's, within the bound of n f32 additions and
  /// of the error that a score's head_dim products put on its weight.
  [[nodiscard]] bool is_right(const AttendedSet& set) const {
    oracle::AttentionShape shape;
    shape.head_dim = shape_.head_dim;
    shape.scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim));
    const std::int64_t head = shape_.num_heads - 1;
    for (const std::int64_t row : {std::int64_t{0}, num_rows_ - 1}) {
      const std::int64_t token = num_tokens_ - num_rows_ + row;
      oracle::Rows keys;
      oracle::Rows values;
      oracle::TokenList attended;
      for (const TokenSpan& span : set.segments(token)) {
        for (std::int64_t t = span.begin; t < span.end; ++t) {
          const std::int64_t at =
              (t * shape_.num_kv_heads + shape_.num_kv_heads - 1) * shape_.head_dim;
          keys.push_back(row_of(keys_, at));
          values.push_back(row_of(values_, at));
          attended.push_back(static_cast<std::int64_t>(attended.size()));
        }
      }
      const std::int64_t at = (row * shape_.num_heads + head) * shape_.head_dim;
      const oracle::Row q(q_.begin() + at, q_.begin() + at + shape_.head_dim);
      const oracle::AttentionRow expected = oracle::attend(shape, q, keys, values, attended);
      const double score =
          static_cast<double>(shape_.head_dim + 8) * 0x1p-24 * expected.score_sizes[0];
      const double weight =
          2.0 * std::expm1(score) + static_cast<double>(attended.size() + 16) * 0x1p-24;
      for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
        const auto i = static_cast<std::size_t>(d);
        const auto actual = static_cast<double>(out_[static_cast<std::size_t>(at + d)]);
        if (!(std::abs(actual - expected.out[i]) <= weight * expected.value_sizes[i])) return false;
      }
    }
    return true;
  }

 private:
  [[nodiscard]] oracle::Row row_of(const std::vector<F16>& values, std::int64_t at) const {
    oracle::Row row;
    for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
      row.push_back(static_cast<double>(to_f32(values[static_cast<std::size_t>(at + d)])));
    }
    return row;
  }

  AttentionShape shape_;
  std::int64_t num_tokens_;
  std::int64_t num_rows_;
  std::vector<float> q_;
  std::vector<float> out_;
  std::vector<F16> keys_;
  std::vector<F16> values_;
  std::vector<float> workspace_;
};

}  // namespace chunkllm::bench
