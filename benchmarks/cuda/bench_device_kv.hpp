// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "bench_device_support.hpp"
#include "chunkllm/cuda/views.hpp"
#include "reference/oracle.hpp"

/// Keys and values of a layer, chunks and attended sets of the device benchmarks.
namespace chunkllm::bench {

inline constexpr std::int32_t kTokens = 122880;

/// Ends of chunks of 8 to 40 tokens, 24 in the mean, that lie within `tokens`.
inline std::vector<std::int32_t> random_chunk_ends(std::int32_t tokens, unsigned seed) {
  std::minstd_rand random(seed);
  std::vector<std::int32_t> ends;
  std::int32_t end = 0;
  while (true) {
    end += 8 + static_cast<std::int32_t>(random() % 33);
    if (end > tokens) return ends;
    ends.push_back(end);
  }
}

/// Where the newest chunks with at least 64 tokens in front of `token` begin.
inline std::int32_t local_window_begin(const std::vector<std::int32_t>& ends, std::int32_t token) {
  const auto end = std::upper_bound(ends.begin(), ends.end(), std::max(token - 64, 0));
  return end == ends.begin() ? 0 : *std::prev(end);
}

struct SpanList {
  std::vector<std::int32_t> tokens;
  std::int32_t tail_begin = 0;

  [[nodiscard]] std::int32_t num_attended(std::int32_t position) const {
    return static_cast<std::int32_t>(tokens.size()) + position + 1 - tail_begin;
  }
  /// All of them, for the token at `position`.
  [[nodiscard]] std::vector<std::int32_t> attended(std::int32_t position) const {
    std::vector<std::int32_t> all = tokens;
    for (std::int32_t t = tail_begin; t <= position; ++t) all.push_back(t);
    return all;
  }
};

inline void append_chunk(const std::vector<std::int32_t>& ends, std::int32_t chunk,
                         std::vector<std::int32_t>& tokens) {
  const std::int32_t begin = chunk == 0 ? 0 : ends[static_cast<std::size_t>(chunk - 1)];
  for (std::int32_t t = begin; t < ends[static_cast<std::size_t>(chunk)]; ++t) tokens.push_back(t);
}

/// Sets that share nothing but chunk 0 and the local window, each of about `share` of all tokens in
/// random chunks. A share of 1 or more: dense.
inline std::vector<SpanList> disjoint_sets(const std::vector<std::int32_t>& ends,
                                           std::int32_t num_tokens, double share, int count,
                                           unsigned seed) {
  std::vector<SpanList> sets(static_cast<std::size_t>(count));
  if (share >= 1.0) return sets;
  const std::int32_t tail_begin = local_window_begin(ends, num_tokens);
  std::vector<std::int32_t> candidates;
  for (std::size_t c = 1; c < ends.size() && ends[c] <= tail_begin; ++c) {
    candidates.push_back(static_cast<std::int32_t>(c));
  }
  std::minstd_rand random(seed);
  std::shuffle(candidates.begin(), candidates.end(), random);
  const auto wanted = static_cast<std::int32_t>(share * num_tokens);
  std::size_t next = 0;
  for (SpanList& set : sets) {
    std::vector<std::int32_t> chosen = {0};
    std::int32_t size = num_tokens - tail_begin + ends[0];
    while (size < wanted && next < candidates.size()) {
      const std::int32_t chunk = candidates[next++];
      size += ends[static_cast<std::size_t>(chunk)] - ends[static_cast<std::size_t>(chunk - 1)];
      chosen.push_back(chunk);
    }
    std::sort(chosen.begin(), chosen.end());
    for (const std::int32_t chunk : chosen) append_chunk(ends, chunk, set.tokens);
    set.tail_begin = tail_begin;
  }
  return sets;
}

/// Sets on the device, one a row.
class DeviceSets {
 public:
  explicit DeviceSets(const std::vector<SpanList>& sets) {
    std::size_t capacity = 0;
    for (const SpanList& set : sets) capacity = std::max(capacity, set.tokens.size());
    std::vector<std::int32_t> tokens(capacity * sets.size());
    std::vector<std::int32_t> counts;
    std::vector<std::int32_t> tails;
    for (std::size_t s = 0; s < sets.size(); ++s) {
      std::copy(sets[s].tokens.begin(), sets[s].tokens.end(),
                tokens.begin() + static_cast<std::ptrdiff_t>(s * capacity));
      counts.push_back(static_cast<std::int32_t>(sets[s].tokens.size()));
      tails.push_back(sets[s].tail_begin);
    }
    capacity_ = static_cast<std::int32_t>(capacity);
    span_tokens_ = DeviceArray<std::int32_t>(tokens);
    num_span_tokens_ = DeviceArray<std::int32_t>(counts);
    tail_begin_ = DeviceArray<std::int32_t>(tails);
  }
  [[nodiscard]] cuda::DeviceAttendedSets rows(std::int32_t first, std::int32_t count) const {
    return {span_tokens_.data() + static_cast<std::int64_t>(first) * capacity_,
            num_span_tokens_.data() + first, tail_begin_.data() + first, count, capacity_};
  }

 private:
  std::int32_t capacity_ = 0;
  DeviceArray<std::int32_t> span_tokens_;
  DeviceArray<std::int32_t> num_span_tokens_;
  DeviceArray<std::int32_t> tail_begin_;
};

struct KvShape {
  std::int32_t num_seqs = 1;
  std::int32_t num_tokens = kTokens;
  std::int32_t num_kv_heads = 8;
  std::int32_t head_dim = 128;
  std::int32_t page_size = 0;  ///< 0: contiguous
};

/// Random keys and values of one layer; pages lie in random order.
template <typename Kv>
class KvMemory {
 public:
  explicit KvMemory(const KvShape& shape) : shape_(shape) {
    const std::size_t size = static_cast<std::size_t>(shape.num_seqs) * shape.num_tokens *
                             shape.num_kv_heads * shape.head_dim;
    keys_ = random_array<Kv>(size, 11);
    values_ = random_array<Kv>(size, 12);
    if (shape.page_size == 0) return;
    require(shape.num_tokens % shape.page_size == 0, "pages must divide the tokens");
    page_table_.resize(static_cast<std::size_t>(shape.num_seqs) * max_pages());
    std::iota(page_table_.begin(), page_table_.end(), 0);
    std::minstd_rand random(13);
    std::shuffle(page_table_.begin(), page_table_.end(), random);
    device_page_table_ = DeviceArray<std::int32_t>(page_table_);
  }

  [[nodiscard]] cuda::DeviceKvView<const Kv> view() const {
    cuda::DeviceKvView<const Kv> view;
    view.keys = keys_.data();
    view.values = values_.data();
    view.token_stride = token_stride();
    view.head_stride = shape_.head_dim;
    if (shape_.page_size == 0) {
      view.seq_stride = shape_.num_tokens * token_stride();
      return view;
    }
    view.page_table = device_page_table_.data();
    view.max_pages = max_pages();
    view.page_size = shape_.page_size;
    view.page_stride = shape_.page_size * token_stride();
    return view;
  }

  /// Keys, or values, of the listed tokens, for a reference.
  [[nodiscard]] oracle::Rows read(bool values, std::int32_t seq, std::int32_t kv_head,
                                  const std::vector<std::int32_t>& tokens) const {
    std::vector<std::int64_t> offsets;
    offsets.reserve(tokens.size());
    for (const std::int32_t token : tokens) {
      std::int64_t place = std::int64_t{seq} * shape_.num_tokens + token;
      if (shape_.page_size > 0) {
        const std::int64_t page = place / shape_.page_size;  // whole pages a sequence
        place = std::int64_t{page_table_[static_cast<std::size_t>(page)]} * shape_.page_size +
                token % shape_.page_size;
      }
      offsets.push_back(place * token_stride() + std::int64_t{kv_head} * shape_.head_dim);
    }
    return read_rows(values ? values_.data() : keys_.data(), offsets, shape_.head_dim);
  }

 private:
  [[nodiscard]] std::int32_t max_pages() const { return shape_.num_tokens / shape_.page_size; }
  [[nodiscard]] std::int64_t token_stride() const {
    return std::int64_t{shape_.num_kv_heads} * shape_.head_dim;
  }

  KvShape shape_;
  DeviceArray<Kv> keys_;
  DeviceArray<Kv> values_;
  std::vector<std::int32_t> page_table_;
  DeviceArray<std::int32_t> device_page_table_;
};

/// Attention of one query head over the listed tokens, in double.
///
/// \param angle  of RoPE, positions being ranks in the list; null: nothing is turned
template <typename Kv>
oracle::Row reference_attention(const KvMemory<Kv>& kv, std::int32_t seq, std::int32_t kv_head,
                                const oracle::Row& q, const std::vector<std::int32_t>& tokens,
                                std::function<double(std::int64_t, std::int64_t)> angle = nullptr) {
  oracle::AttentionShape shape;
  shape.head_dim = static_cast<std::int64_t>(q.size());
  shape.scale = 1.0 / std::sqrt(static_cast<double>(q.size()));
  shape.angle = std::move(angle);
  oracle::TokenList ranks(tokens.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return oracle::attend(shape, q, kv.read(/*values=*/false, seq, kv_head, tokens),
                        kv.read(/*values=*/true, seq, kv_head, tokens), ranks)
      .out;
}

}  // namespace chunkllm::bench
