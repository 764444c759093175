// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/kernels/chunk_mass.cuh"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"

namespace chunkllm::testing {

using kernels::ChunkMassArgs;

struct MassCase {
  std::int32_t num_heads = 4;
  std::int32_t num_kv_heads = 2;
  std::int32_t head_dim = 64;
  std::int32_t first_token = 0;
  std::int32_t num_rows = 0;
  std::vector<std::int32_t> ends;
  std::vector<std::int32_t> pooled_tokens;
  std::int32_t num_columns = 0;
  std::int32_t page_size = 0;  ///< 0: contiguous
  std::int64_t q_padding = 0;  ///< elements between rows of q, and in front of the first

  [[nodiscard]] std::int32_t num_tokens() const { return first_token + num_rows; }
};

/// What a call is handed, on the host: [rows, heads, dim], [tokens, kv heads, dim], [rows, heads].
struct MassOperands {
  std::vector<float> q;
  std::vector<float> keys;
  std::vector<float> lse;
};

/// Random operands, exact in T. `lse` need not be that of the keys: the sum is defined for any.
template <typename T>
MassOperands random_operands(const MassCase& c, std::uint64_t seed) {
  std::minstd_rand random(static_cast<unsigned>(seed));
  const auto draw = [&] { return static_cast<float>(random() % 4096) / 1024.0F - 2.0F; };
  const auto exact = [](std::vector<float> values) { return widened(rounded<T>(values)); };
  MassOperands operands;
  operands.q.resize(static_cast<std::size_t>(c.num_rows) * c.num_heads * c.head_dim);
  operands.keys.resize(static_cast<std::size_t>(c.num_tokens()) * c.num_kv_heads * c.head_dim);
  operands.lse.resize(static_cast<std::size_t>(c.num_rows) * c.num_heads);
  for (float& value : operands.q) value = draw();
  for (float& value : operands.keys) value = draw();
  for (float& value : operands.lse) {
    value = 1.0F + std::log(static_cast<float>(c.num_tokens())) + 0.25F * draw();
  }
  operands.q = exact(std::move(operands.q));
  operands.keys = exact(std::move(operands.keys));
  return operands;
}

inline float scale_of(const MassCase& c) {
  return 1.0F / std::sqrt(static_cast<float>(c.head_dim));
}

/// A mass in double, and how far f32 arithmetic may be from it.
struct Mass {
  double value = 0.0;
  double bound = 0.0;
};

/// The definition, term by term; 0 for a chunk that is open at the row.
inline Mass mass_of(const MassCase& c, const MassOperands& x, std::int32_t row, std::int32_t head,
                    std::size_t chunk) {
  const std::int32_t end = chunk < c.ends.size() ? c.ends[chunk] : c.num_tokens() + 1;
  if (end > c.first_token + row + 1) return {};
  const auto at_row = static_cast<std::size_t>(row) * c.num_heads + head;
  const float* q = x.q.data() + at_row * c.head_dim;
  const double lse = x.lse[at_row];
  const std::int32_t kv_head = head / (c.num_heads / c.num_kv_heads);
  Mass mass;
  const std::int32_t begin = chunk == 0 ? 0 : c.ends[chunk - 1];
  for (std::int32_t t = begin; t < end; ++t) {
    const float* k =
        x.keys.data() + (static_cast<std::size_t>(t) * c.num_kv_heads + kv_head) * c.head_dim;
    double score = 0.0;
    double size = 0.0;
    for (std::int32_t d = 0; d < c.head_dim; ++d) {
      const double product = static_cast<double>(q[d]) * static_cast<double>(k[d]);
      score += product;
      size += std::abs(product);
    }
    score *= static_cast<double>(scale_of(c));
    size *= static_cast<double>(scale_of(c));
    const double p = std::exp(score - lse);
    // Matrix instructions may truncate: two units for each addition. Then the exponent's own
    // roundings, of scale, lse and their difference, and two units of exp2.
    const double exponent = kUnitRoundoff * (2.0 * (c.head_dim + 4) * size +
                                             4.0 * (std::abs(score) + std::abs(lse) + 1));
    mass.value += p;
    mass.bound += p * (std::expm1(exponent) + 4.0 * kUnitRoundoff) + 1e-37;
  }
  mass.bound += mass.value * (end - begin + 2) * kUnitRoundoff;
  return mass;
}

/// Maximum or mean over heads of what `of_head(head)` gives.
inline Mass join_masses(const MassCase& c, bool is_mean,
                        const std::function<Mass(std::int32_t)>& of_head) {
  Mass joined;
  for (std::int32_t head = 0; head < c.num_heads; ++head) {
    const Mass mass = of_head(head);
    joined.value = is_mean ? joined.value + mass.value : std::max(joined.value, mass.value);
    joined.bound = is_mean ? joined.bound + mass.bound : std::max(joined.bound, mass.bound);
  }
  if (is_mean) {
    joined.value /= c.num_heads;
    joined.bound /= c.num_heads;
    joined.bound += joined.value * (c.num_heads + 1) * kUnitRoundoff;
  }
  return joined;
}

/// Rows [first, second) that pooled row `group` averages.
inline std::pair<std::int32_t, std::int32_t> rows_of(const MassCase& c, std::size_t group) {
  const auto row_behind = [&](std::size_t i) {
    const std::int64_t row = std::int64_t{c.pooled_tokens[i]} + 1 - c.first_token;
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(row, 0, c.num_rows));
  };
  return {row_behind(group),
          group + 1 < c.pooled_tokens.size() ? row_behind(group + 1) : c.num_rows};
}

/// The mean of one head over the rows of `group`.
inline Mass pooled_head_mass_of(const MassCase& c, const MassOperands& x, std::size_t group,
                                std::int32_t head, std::size_t chunk) {
  const auto [begin, end] = rows_of(c, group);
  if (begin == end || chunk >= c.ends.size() || c.ends[chunk] > c.pooled_tokens[group] + 1) {
    return {};
  }
  const std::int32_t count = end - begin;
  Mass pooled;
  for (std::int32_t row = begin; row < end; ++row) {
    const Mass mass = mass_of(c, x, row, head, chunk);
    pooled.value += mass.value;
    pooled.bound += mass.bound;
  }
  pooled.bound += pooled.value * (count + 2) * kUnitRoundoff;
  return {pooled.value / count, pooled.bound / count};
}

inline Mass pooled_mass_of(const MassCase& c, const MassOperands& x, std::size_t group,
                           bool is_mean, std::size_t chunk) {
  return join_masses(
      c, is_mean, [&](std::int32_t head) { return pooled_head_mass_of(c, x, group, head, chunk); });
}

/// A call on the device: its operands, its outputs and their fences.
template <typename T>
class MassRun {
 public:
  MassRun(const MassCase& c, const MassOperands& x)
      : case_(c),
        q_(padded_q(c, x)),
        keys_(key_memory(c, x)),
        lse_(x.lse),
        ends_(c.ends),
        num_chunks_(std::vector<std::int32_t>{static_cast<std::int32_t>(c.ends.size())}),
        pooled_tokens_(c.pooled_tokens),
        pages_(page_table(c)),
        head_mass_(row_size() * c.num_heads),
        max_(row_size()),
        mean_(row_size()),
        pooled_heads_(c.pooled_tokens.size() * c.num_heads * c.num_columns),
        pooled_max_(c.pooled_tokens.size() * c.num_columns),
        pooled_mean_(pooled_max_.size()) {
    args_.q = q_.data() + c.q_padding;
    args_.q_head_stride = c.head_dim;
    args_.q_row_stride = std::int64_t{c.num_heads} * c.head_dim + c.q_padding;
    args_.kv.keys = keys_.data();
    args_.kv.head_stride = c.head_dim;
    args_.kv.token_stride = std::int64_t{c.num_kv_heads} * c.head_dim;
    if (c.page_size > 0) {
      args_.kv.page_table = pages_.data();
      args_.kv.max_pages = static_cast<std::int32_t>(pages_.size());
      args_.kv.page_size = c.page_size;
      args_.kv.page_stride = args_.kv.token_stride * c.page_size;
    }
    args_.lse = lse_.data();
    args_.table = {ends_.data(), num_chunks_.data(), 1, static_cast<std::int32_t>(c.ends.size())};
    args_.first_token = c.first_token;
    args_.num_rows = c.num_rows;
    args_.num_heads = c.num_heads;
    args_.num_kv_heads = c.num_kv_heads;
    args_.head_dim = c.head_dim;
    args_.scale = scale_of(c);
    args_.num_columns = c.num_columns;
    args_.maybe_head_mass = head_mass_.data();
    args_.maybe_max = max_.data();
    args_.maybe_mean = mean_.data();
    if (!c.pooled_tokens.empty()) {
      args_.maybe_pooled_tokens = pooled_tokens_.data();
      args_.num_pooled = static_cast<std::int32_t>(c.pooled_tokens.size());
      args_.maybe_pooled_heads = pooled_heads_.data();
      args_.maybe_pooled_max = pooled_max_.data();
      args_.maybe_pooled_mean = pooled_mean_.data();
    }
    workspace_.emplace(kernels::chunk_mass_workspace_bytes(args_));
    args_.workspace = workspace_->data();
    args_.workspace_bytes = workspace_->size();
    settle();
  }

  ChunkMassArgs<T>& args() { return args_; }
  [[nodiscard]] Status launch(cudaStream_t stream) const {
    return kernels::launch_chunk_mass(args_, stream);
  }
  void poison() {
    for (DeviceBuffer<float>* buffer :
         {&head_mass_, &max_, &mean_, &pooled_heads_, &pooled_max_, &pooled_mean_}) {
      buffer->poison();
    }
    workspace_->poison();
    settle();
  }

  [[nodiscard]] std::vector<float> head_mass() const { return head_mass_.download(); }
  /// Both joins, one behind the other.
  [[nodiscard]] std::vector<float> joined() const {
    return concatenated(max_.download(), mean_.download());
  }
  [[nodiscard]] std::vector<float> pooled_heads() const { return pooled_heads_.download(); }
  [[nodiscard]] std::vector<float> pooled() const {
    return concatenated(pooled_max_.download(), pooled_mean_.download());
  }
  /// The bits of every output.
  [[nodiscard]] std::vector<std::uint32_t> bits() const {
    std::vector<float> all = concatenated(head_mass(), joined());
    all = concatenated(std::move(all), pooled_heads());
    all = concatenated(std::move(all), pooled());
    std::vector<std::uint32_t> out(all.size());
    std::transform(all.begin(), all.end(), out.begin(),
                   [](float value) { return std::bit_cast<std::uint32_t>(value); });
    return out;
  }
  [[nodiscard]] bool intact() const {
    return head_mass_.intact() && max_.intact() && mean_.intact() && pooled_heads_.intact() &&
           pooled_max_.intact() && pooled_mean_.intact() && workspace_->intact();
  }

 private:
  /// Copies and fills run on a stream that does not wait for those of the tests.
  static void settle() { EXPECT_TRUE(succeeds(cudaDeviceSynchronize())); }
  static std::vector<float> concatenated(std::vector<float> a, const std::vector<float>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  static std::vector<T> padded_q(const MassCase& c, const MassOperands& x) {
    const std::size_t width = static_cast<std::size_t>(c.num_heads) * c.head_dim;
    std::vector<float> q;
    for (std::int32_t row = 0; row < c.num_rows; ++row) {
      q.insert(q.end(), static_cast<std::size_t>(c.q_padding),
               std::numeric_limits<float>::quiet_NaN());
      const auto first = x.q.begin() + static_cast<std::ptrdiff_t>(row * width);
      q.insert(q.end(), first, first + static_cast<std::ptrdiff_t>(width));
    }
    return rounded<T>(q);
  }
  static std::int32_t num_pages(const MassCase& c) {
    return c.page_size > 0 ? kernels::ceil_div(c.num_tokens(), c.page_size) : 0;
  }
  /// Page p stands at place (7 p + 3) % n, n a power of two above the number of pages.
  static std::int32_t num_places(const MassCase& c) {
    std::int32_t places = 4;
    while (places < num_pages(c)) places *= 2;
    return places;
  }
  static std::vector<std::int32_t> page_table(const MassCase& c) {
    std::vector<std::int32_t> table(static_cast<std::size_t>(num_pages(c)));
    for (std::size_t p = 0; p < table.size(); ++p) {
      table[p] = static_cast<std::int32_t>((7 * p + 3) % static_cast<std::size_t>(num_places(c)));
    }
    return table;
  }
  static std::vector<T> key_memory(const MassCase& c, const MassOperands& x) {
    std::vector<T> keys = rounded<T>(x.keys);
    if (c.page_size == 0) return keys;
    const std::size_t width = static_cast<std::size_t>(c.num_kv_heads) * c.head_dim;
    std::vector<T> paged(width * num_places(c) * c.page_size, rounded<T>(NAN));
    const std::vector<std::int32_t> table = page_table(c);
    for (std::int32_t t = 0; t < c.num_tokens(); ++t) {
      const std::size_t place = static_cast<std::size_t>(table[t / c.page_size]) * c.page_size +
                                static_cast<std::size_t>(t % c.page_size);
      std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(t * width), width,
                  paged.begin() + static_cast<std::ptrdiff_t>(place * width));
    }
    return paged;
  }
  [[nodiscard]] std::size_t row_size() const {
    return static_cast<std::size_t>(case_.num_rows) * case_.num_columns;
  }

  MassCase case_;
  DeviceBuffer<T> q_;
  DeviceBuffer<T> keys_;
  DeviceBuffer<float> lse_;
  DeviceBuffer<std::int32_t> ends_;
  DeviceBuffer<std::int32_t> num_chunks_;
  DeviceBuffer<std::int32_t> pooled_tokens_;
  DeviceBuffer<std::int32_t> pages_;
  DeviceBuffer<float> head_mass_;
  DeviceBuffer<float> max_;
  DeviceBuffer<float> mean_;
  DeviceBuffer<float> pooled_heads_;
  DeviceBuffer<float> pooled_max_;
  DeviceBuffer<float> pooled_mean_;
  std::optional<DeviceBuffer<unsigned char>> workspace_;
  ChunkMassArgs<T> args_;
};

}  // namespace chunkllm::testing
