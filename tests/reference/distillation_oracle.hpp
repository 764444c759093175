// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "reference/oracle.hpp"

namespace chunkllm::oracle {

/// One layer of a QK Adapter in double.
struct AdapterLayer {
  Row query_weight;   // [num_heads * key_dim, hidden]
  Row key_weight;     // [num_key_heads * key_dim, hidden]
  Row distance_bias;  // [num_heads, 34] or empty
  Row null_weight;    // [num_heads, hidden]
  Row null_bias;      // [num_heads]
};

/// One sequence that an adapter is compared on.
struct DistillationProblem {
  std::int64_t num_heads = 1;
  std::int64_t num_key_heads = 1;
  std::int64_t key_dim = 1;
  bool adds_log_length = true;
  Rows inputs;                               // [R][hidden]
  Rows pooled;                               // [C][hidden]
  std::vector<std::int64_t> triggers;        // [R]
  std::vector<std::int64_t> ends;            // [C] exclusive
  std::vector<std::int64_t> candidate_ends;  // [R] candidates are chunks 1 to end - 1
  Row weights;                               // [R]
  std::vector<Rows> mass;                    // [R][num_heads][C]
};

/// W x for row `r` of W.
inline double product(const Row& weight, std::size_t r, const Row& x) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += weight[r * x.size() + i] * x[i];
  return sum;
}

/// sum over rows of weight times the mean over heads of KL(T || S); rows with fewer than 2
/// candidates are skipped.
inline double distillation_kl_sum(const AdapterLayer& adapter, const DistillationProblem& p) {
  const auto dim = static_cast<std::size_t>(p.key_dim);
  const auto heads = static_cast<std::size_t>(p.num_heads);
  const std::size_t group = heads / static_cast<std::size_t>(p.num_key_heads);
  const auto project = [](const Row& weight, std::size_t outputs, const Rows& inputs) {
    Rows out;
    for (const Row& x : inputs) {
      out.emplace_back();
      for (std::size_t o = 0; o < outputs; ++o) out.back().push_back(product(weight, o, x));
    }
    return out;
  };
  const Rows queries = project(adapter.query_weight, heads * dim, p.inputs);
  const Rows keys = project(adapter.key_weight, heads / group * dim, p.pooled);
  double total = 0.0;
  for (std::size_t r = 0; r < p.inputs.size(); ++r) {
    if (p.candidate_ends[r] < 3) continue;
    const auto end = static_cast<std::size_t>(p.candidate_ends[r]);
    for (std::size_t h = 0; h < heads; ++h) {
      Row logits = {product(adapter.null_weight, h, p.inputs[r]) + adapter.null_bias[h]};
      Row teacher = {1.0};
      for (std::size_t c = 1; c < end; ++c) {
        double z = 0.0;
        for (std::size_t d = 0; d < dim; ++d) {
          z += queries[r][h * dim + d] * keys[c][h / group * dim + d];
        }
        z /= std::sqrt(static_cast<double>(p.key_dim));
        if (p.adds_log_length) z += std::log(static_cast<double>(p.ends[c] - p.ends[c - 1]));
        if (!adapter.distance_bias.empty()) {
          const std::int64_t distance = std::max<std::int64_t>(p.triggers[r] - (p.ends[c] - 1), 1);
          z += adapter.distance_bias[h * 34 + static_cast<std::size_t>(distance_bin(distance))];
        }
        logits.push_back(z);
        teacher.push_back(p.mass[r][h][c]);
        teacher[0] -= p.mass[r][h][c];
      }
      teacher[0] = std::max(teacher[0], 0.0);
      double teacher_sum = 0.0;
      double exp_sum = 0.0;
      for (std::size_t i = 0; i < logits.size(); ++i) {
        teacher_sum += teacher[i];
        exp_sum += std::exp(logits[i]);
      }
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double t = teacher[i] / teacher_sum;
        if (t > 0.0) {
          total += p.weights[r] / static_cast<double>(p.num_heads) * t *
                   (std::log(t) - logits[i] + std::log(exp_sum));
        }
      }
    }
  }
  return total;
}

}  // namespace chunkllm::oracle
