// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

/// The operations of chunk-selective attention written down as plainly as possible, in double
/// precision: the specification that the library is tested against. Shares no code with it.
namespace chunkllm::oracle {

using Row = std::vector<double>;
using Rows = std::vector<Row>;
using TokenList = std::vector<std::int64_t>;  // ascending positions

// ---------------------------------------------------------------------------------------------
// Attention over any list of keys.

struct AttentionShape {
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t head_dim = 2;
  double scale = 1.0;
  std::int64_t window = 0;  // newest listed tokens seen; 0: all
  bool in_cache = false;    // positions are ranks in the list instead of places in the text
  /// Angle of pair `i` (dimensions i and i + head_dim / 2) at a position; null: no rotation.
  std::function<double(std::int64_t position, std::int64_t i)> angle;
};

struct AttentionRow {
  Row out;          // [num_heads * head_dim]
  Row lse;          // [num_heads]
  Row value_sizes;  // [num_heads * head_dim] sum of weight * |value|, for error bounds
  Row score_sizes;  // [num_heads] largest scale * sum |q_d k_d|, for error bounds
};

inline Row rotated_head(const AttentionShape& shape, const Row& row, std::int64_t head,
                        std::int64_t position) {
  const std::int64_t half = shape.head_dim / 2;
  Row out(row.begin() + head * shape.head_dim, row.begin() + (head + 1) * shape.head_dim);
  if (!shape.angle) return out;
  for (std::int64_t i = 0; i < half; ++i) {
    const double angle = shape.angle(position, i);
    const double a = out[static_cast<std::size_t>(i)];
    const double b = out[static_cast<std::size_t>(i + half)];
    out[static_cast<std::size_t>(i)] = a * std::cos(angle) - b * std::sin(angle);
    out[static_cast<std::size_t>(i + half)] = b * std::cos(angle) + a * std::sin(angle);
  }
  return out;
}

/// One token's attention. q, keys and values are given before any rotation; `attended` ends with
/// the token itself.
inline AttentionRow attend(const AttentionShape& shape, const Row& q, const Rows& keys,
                           const Rows& values, const TokenList& attended) {
  AttentionRow result;
  const auto count = static_cast<std::int64_t>(attended.size());
  const auto position = [&](std::int64_t rank) {
    return shape.in_cache ? rank : attended[static_cast<std::size_t>(rank)];
  };
  const std::int64_t first = shape.window > 0 ? std::max<std::int64_t>(0, count - shape.window) : 0;
  for (std::int64_t head = 0; head < shape.num_heads; ++head) {
    const std::int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
    const Row query = rotated_head(shape, q, head, position(count - 1));
    Row scores;
    double score_size = 0.0;
    for (std::int64_t rank = first; rank < count; ++rank) {
      const auto token = static_cast<std::size_t>(attended[static_cast<std::size_t>(rank)]);
      const Row key = rotated_head(shape, keys[token], kv_head, position(rank));
      double score = 0.0;
      double size = 0.0;
      for (std::size_t d = 0; d < key.size(); ++d) {
        score += query[d] * key[d];
        size += std::abs(query[d] * key[d]);
      }
      scores.push_back(shape.scale * score);
      score_size = std::max(score_size, std::abs(shape.scale) * size);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (const double score : scores) sum += std::exp(score - largest);
    Row out(static_cast<std::size_t>(shape.head_dim), 0.0);
    Row sizes(out.size(), 0.0);
    for (std::int64_t rank = first; rank < count; ++rank) {
      const auto token = static_cast<std::size_t>(attended[static_cast<std::size_t>(rank)]);
      const double weight =
          std::exp(scores[static_cast<std::size_t>(rank - first)] - largest) / sum;
      for (std::size_t d = 0; d < out.size(); ++d) {
        const double value = values[token][static_cast<std::size_t>(kv_head * shape.head_dim) + d];
        out[d] += weight * value;
        sizes[d] += weight * std::abs(value);
      }
    }
    result.out.insert(result.out.end(), out.begin(), out.end());
    result.value_sizes.insert(result.value_sizes.end(), sizes.begin(), sizes.end());
    result.lse.push_back(largest + std::log(sum));
    result.score_sizes.push_back(score_size);
  }
  return result;
}

// ---------------------------------------------------------------------------------------------
// Chunks, boundaries, the candidates of a refresh.

/// [begin, end) of each closed chunk.
using ChunkList = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// 0: the chunk goes on; 1: it ends; 2: it ends because it is as long as chunks may be.
inline int boundary(std::int64_t open_len, bool wanted, std::int64_t min_len,
                    std::int64_t max_len) {
  if (wanted && open_len >= min_len) return 1;
  return open_len >= max_len ? 2 : 0;
}

struct Candidates {
  std::int64_t end = 0;         // chunks 1 .. end - 1 can be selected
  std::int64_t tail_begin = 0;  // the local window's first token
};

/// The local window takes whole chunks, the open one with its present length first, until it has
/// `min_chunks` and `min_tokens`.
inline Candidates candidates(const ChunkList& closed, std::int64_t token, std::int64_t min_tokens,
                             std::int64_t min_chunks) {
  const std::int64_t open_begin = closed.empty() ? 0 : closed.back().second;
  const std::int64_t open_len = token + 1 - open_begin;
  std::int64_t num_tokens = open_len;
  std::int64_t num_chunks = open_len > 0 ? 1 : 0;
  Candidates result{static_cast<std::int64_t>(closed.size()), open_begin};
  while (result.end > 0 && !(num_chunks >= min_chunks && num_tokens >= min_tokens)) {
    --result.end;
    const auto& chunk = closed[static_cast<std::size_t>(result.end)];
    num_tokens += chunk.second - chunk.first;
    num_chunks += 1;
    result.tail_begin = chunk.first;
  }
  return result;
}

/// floor(2 log2(distance)) by its definition: the largest n with 2^n <= distance^2; at most 33.
inline std::int64_t distance_bin(std::int64_t distance) {
  std::int64_t n = 0;
  while (n < 33 && std::pow(2.0, static_cast<double>(n + 1)) <=
                       static_cast<double>(distance) * static_cast<double>(distance)) {
    ++n;
  }
  return n;
}

// ---------------------------------------------------------------------------------------------
// Scores.

struct ScoreProblem {
  Rows queries;     // [heads][key_dim]
  Rows keys;        // [closed chunks][key_heads * key_dim]
  Row open_key;     // of the open chunk, or empty
  Row null_logits;  // [heads], or empty
  Rows bias;        // [heads][34], or empty
  Row lengths;      // of closed chunks, or empty where lengths do not count
  double open_length = 0;
  TokenList last_tokens;  // e_c
  std::int64_t candidate_end = 0;
  std::int64_t query_token = 0;
  std::int64_t num_key_heads = 1;
  double scale = 1.0;
  bool mean_over_heads = false;
};

/// Scores of chunks 1 .. candidate_end - 1.
inline Row scores(const ScoreProblem& p) {
  const auto num_heads = static_cast<std::int64_t>(p.queries.size());
  Row result(static_cast<std::size_t>(std::max<std::int64_t>(p.candidate_end - 1, 0)), 0.0);
  for (std::int64_t h = 0; h < num_heads; ++h) {
    const Row& q = p.queries[static_cast<std::size_t>(h)];
    const auto first = static_cast<std::size_t>(h / (num_heads / p.num_key_heads)) * q.size();
    const auto logit = [&](const Row& key, double length, std::int64_t last_token) {
      double z = 0.0;
      for (std::size_t i = 0; i < q.size(); ++i) z += p.scale * q[i] * key[first + i];
      if (!p.lengths.empty()) z += std::log(length);
      if (!p.bias.empty()) {
        const std::int64_t distance = std::max<std::int64_t>(1, p.query_token - last_token);
        z += p.bias[static_cast<std::size_t>(h)][static_cast<std::size_t>(distance_bin(distance))];
      }
      return z;
    };
    Row z;
    for (std::size_t c = 0; c < p.keys.size(); ++c) {
      z.push_back(logit(p.keys[c], p.lengths.empty() ? 1.0 : p.lengths[c], p.last_tokens[c]));
    }
    double null_logit = 0.0;
    if (!p.null_logits.empty()) {
      null_logit = p.null_logits[static_cast<std::size_t>(h)];
    } else {
      Row kept = {z[0]};
      for (std::size_t c = static_cast<std::size_t>(p.candidate_end); c < z.size(); ++c) {
        kept.push_back(z[c]);
      }
      if (!p.open_key.empty()) {
        kept.push_back(logit(p.open_key, p.open_length, p.query_token));
      }
      const double largest = *std::max_element(kept.begin(), kept.end());
      double sum = 0.0;
      for (const double x : kept) sum += std::exp(x - largest);
      null_logit = largest + std::log(sum);
    }
    double largest = null_logit;
    for (std::size_t i = 0; i < result.size(); ++i) largest = std::max(largest, z[i + 1]);
    double sum = std::exp(null_logit - largest);
    for (std::size_t i = 0; i < result.size(); ++i) sum += std::exp(z[i + 1] - largest);
    for (std::size_t i = 0; i < result.size(); ++i) {
      const double probability = std::exp(z[i + 1] - largest) / sum;
      result[i] = p.mean_over_heads ? result[i] + probability / static_cast<double>(num_heads)
                                    : std::max(result[i], probability);
    }
  }
  return result;
}

/// Mean of rows.
inline Row mean_of(const Rows& rows) {
  Row mean(rows.front().size(), 0.0);
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      mean[i] += row[i] / static_cast<double>(rows.size());
    }
  }
  return mean;
}

/// sum over channels of max(q min, q max) over the rows' smallest and largest values.
inline double upper_bound(const Row& q, const Rows& keys) {
  double sum = 0.0;
  for (std::size_t i = 0; i < q.size(); ++i) {
    double smallest = keys.front()[i];
    double largest = keys.front()[i];
    for (const Row& key : keys) {
      smallest = std::min(smallest, key[i]);
      largest = std::max(largest, key[i]);
    }
    sum += std::max(q[i] * smallest, q[i] * largest);
  }
  return sum;
}

// ---------------------------------------------------------------------------------------------
// Order, budget, joins. Scores are taken as they are handed in.

/// Chunks 1, 2, ... from best to worst.
inline TokenList rank(const std::vector<float>& scores, float threshold) {
  TokenList order;
  for (std::size_t i = 0; i < scores.size(); ++i) order.push_back(static_cast<std::int64_t>(i) + 1);
  const auto tier = [&](std::int64_t chunk) {
    const float score = scores[static_cast<std::size_t>(chunk - 1)];
    return std::isnan(score) ? 2 : score >= threshold ? 0 : 1;
  };
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    if (tier(a) != tier(b)) return tier(a) < tier(b);
    const float x = scores[static_cast<std::size_t>(a - 1)];
    const float y = scores[static_cast<std::size_t>(b - 1)];
    if (tier(a) == 0 && x != y) return x > y;
    return a > b;
  });
  return order;
}

struct BudgetRule {
  enum class Kind { kTokens, kShare, kChunks };
  Kind kind = Kind::kTokens;
  double amount = 0.0;
};

/// Tokens that may be attended out of `past`.
inline std::int64_t tokens_allowed(const BudgetRule& budget, std::int64_t past) {
  if (budget.kind == BudgetRule::Kind::kTokens) return static_cast<std::int64_t>(budget.amount);
  if (budget.kind == BudgetRule::Kind::kChunks) return past;
  return std::max<std::int64_t>(
      1024, static_cast<std::int64_t>(std::floor(budget.amount * static_cast<double>(past))));
}

/// The longest prefix of an order that fits, ascending.
inline TokenList choose(const TokenList& order, const ChunkList& closed, const Candidates& range,
                        std::int64_t token, const BudgetRule& budget) {
  TokenList chosen;
  if (range.end < 2) return chosen;
  std::int64_t attended = closed[0].second + (token + 1 - range.tail_begin);
  for (const std::int64_t chunk : order) {
    const auto& bounds = closed[static_cast<std::size_t>(chunk)];
    attended += bounds.second - bounds.first;
    if (attended > tokens_allowed(budget, token + 1)) break;
    if (budget.kind == BudgetRule::Kind::kChunks &&
        static_cast<double>(chosen.size()) >= budget.amount) {
      break;
    }
    chosen.push_back(chunk);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

enum class Join { kMax, kVote, kSoft };

/// The order of chunks 1, 2, ... for all layers together. Means are taken in f32, as handed in.
inline TokenList joined_order(const std::vector<std::vector<float>>& layer_scores, Join join,
                              float threshold, const ChunkList& closed, const Candidates& range,
                              std::int64_t token, const BudgetRule& budget) {
  const std::size_t count = layer_scores.front().size();
  std::vector<float> joined(count, 0.0F);
  for (std::size_t i = 0; i < count; ++i) {
    float sum = 0.0F;
    float largest = layer_scores.front()[i];
    for (const std::vector<float>& scores : layer_scores) {
      sum += scores[i];
      if (std::isnan(scores[i]) || scores[i] > largest) largest = scores[i];
      if (std::isnan(sum)) largest = sum;
    }
    joined[i] = join == Join::kMax ? largest : sum / static_cast<float>(layer_scores.size());
  }
  if (join != Join::kVote) return rank(joined, threshold);
  std::vector<int> votes(count, 0);
  for (const std::vector<float>& scores : layer_scores) {
    for (const std::int64_t chunk : choose(rank(scores, threshold), closed, range, token, budget)) {
      ++votes[static_cast<std::size_t>(chunk - 1)];
    }
  }
  // By votes first where the mean passes the threshold; a stable sort keeps the order by mean.
  TokenList order = rank(joined, threshold);
  const auto end_of_ranked = std::find_if(order.begin(), order.end(), [&](std::int64_t chunk) {
    return !(joined[static_cast<std::size_t>(chunk - 1)] >= threshold);
  });
  std::stable_sort(order.begin(), end_of_ranked, [&](std::int64_t a, std::int64_t b) {
    return votes[static_cast<std::size_t>(a - 1)] > votes[static_cast<std::size_t>(b - 1)];
  });
  return order;
}

}  // namespace chunkllm::oracle
