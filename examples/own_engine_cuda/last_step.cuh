// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "paged_engine.cuh"

/// What the engine's last attention should have been, worked out on the host. A set is read here as
/// any engine may read it: listed tokens, then all from the tail's first on.
namespace mini {

/// What the engine's last step left on the device, on the host.
struct LastStep {
  std::vector<std::int32_t> num_tokens;  // [kSeqs]
  std::vector<__half> attended;          // [kLayers, kSeqs, kWidth]
  std::int32_t span_capacity = 0;
  std::vector<std::int32_t> span_tokens;  // [kSeqs, span_capacity]
  std::vector<std::int32_t> num_span_tokens;
  std::vector<std::int32_t> tail_begin;
};

/// Positions that a sequence's last token attends: the listed ones, then all from the tail's first.
inline std::vector<int> attended_positions(const LastStep& last, int seq) {
  const auto at = static_cast<std::size_t>(seq);
  const auto first = last.span_tokens.begin() + seq * last.span_capacity;
  std::vector<int> positions(first, first + last.num_span_tokens[at]);
  for (int token = last.tail_begin[at]; token < last.num_tokens[at]; ++token) {
    positions.push_back(token);
  }
  return positions;
}

/// Attention of one head over `positions`, in double precision; the numbers are drawn again.
inline std::vector<double> plain_attention(int layer, int seq, int head, int token,
                                           const std::vector<int>& positions) {
  const auto draw = [&](Row row, int position, int feature) {
    return static_cast<double>(__half2float(random_half(row, layer, seq, position, feature)));
  };
  const int kv_feature = head / (kHeads / kKvHeads) * kHeadDim;
  std::vector<double> out(kHeadDim, 0.0);
  double sum = 0.0;
  for (const int position : positions) {
    double product = 0.0;
    for (int i = 0; i < kHeadDim; ++i) {
      product +=
          draw(Row::kQuery, token, head * kHeadDim + i) * draw(Row::kKey, position, kv_feature + i);
    }
    const double weight = std::exp(product / std::sqrt(double{kHeadDim}));
    sum += weight;
    for (int i = 0; i < kHeadDim; ++i) {
      out[static_cast<std::size_t>(i)] += weight * draw(Row::kValue, position, kv_feature + i);
    }
  }
  for (double& value : out) value /= sum;
  return out;
}

/// The largest difference of all layers, sequences and heads; infinite where a value is NaN.
inline double largest_difference(const LastStep& last) {
  double largest = 0.0;
  for (int seq = 0; seq < kSeqs; ++seq) {
    const std::vector<int> positions = attended_positions(last, seq);
    const int token = last.num_tokens[static_cast<std::size_t>(seq)] - 1;
    for (int row = 0; row < kLayers * kHeads; ++row) {
      const int layer = row / kHeads;
      const int head = row % kHeads;
      const std::vector<double> expected = plain_attention(layer, seq, head, token, positions);
      const __half* got = last.attended.data() + (layer * kSeqs + seq) * kWidth + head * kHeadDim;
      for (int i = 0; i < kHeadDim; ++i) {
        const double difference = std::abs(static_cast<double>(__half2float(got[i])) -
                                           expected[static_cast<std::size_t>(i)]);
        if (!(difference <= largest)) {
          largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
        }
      }
    }
  }
  return largest;
}

}  // namespace mini
