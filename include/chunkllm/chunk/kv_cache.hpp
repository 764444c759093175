// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/tensor_view.hpp"

namespace chunkllm {

/// Keys and values of one layer in anybody's memory, contiguous or paged.
///
/// Token t of head h stands at `keys + offset(t, h)`, its head_dim values side by side; values
/// alike. Strides are in elements.
template <typename T>
struct KvView {
  const T* keys = nullptr;
  const T* values = nullptr;
  std::int64_t num_tokens = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  const std::int32_t* page_table = nullptr;  ///< [ceil(num_tokens / page_size)]; null: contiguous
  std::int64_t page_size = 0;                ///< tokens a page
  std::int64_t page_stride = 0;
  Rotation rotation = Rotation::kAtTokenPosition;

  [[nodiscard]] std::int64_t offset(std::int64_t token, std::int64_t head) const {
    if (page_table == nullptr) return token * token_stride + head * head_stride;
    return page_table[token / page_size] * page_stride + token % page_size * token_stride +
           head * head_stride;
  }
};

/// A view of [num_tokens, num_kv_heads, head_dim] without gaps.
template <typename T>
KvView<T> contiguous_kv(const T* keys, const T* values, std::int64_t num_tokens,
                        std::int64_t num_kv_heads, std::int64_t head_dim,
                        Rotation rotation = Rotation::kAtTokenPosition) {
  KvView<T> view;
  view.keys = keys;
  view.values = values;
  view.num_tokens = num_tokens;
  view.token_stride = num_kv_heads * head_dim;
  view.head_stride = head_dim;
  view.rotation = rotation;
  return view;
}

/// Keys and values of all layers of one sequence, [layer][token, num_kv_heads, head_dim].
///
/// \tparam T  float, F16 or BF16; values are rounded once, when they are stored
template <typename T>
class KvCache {
 public:
  KvCache(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim)
      : num_kv_heads_(num_kv_heads), head_dim_(head_dim) {
    layers_.resize(static_cast<std::size_t>(num_layers));
  }
  KvCache(const KvCache& other) { *this = other; }
  KvCache& operator=(const KvCache& other) {
    if (this == &other) return *this;
    num_kv_heads_ = other.num_kv_heads_;
    head_dim_ = other.head_dim_;
    num_tokens_ = other.num_tokens_;
    capacity_ = 0;
    layers_.clear();
    layers_.resize(other.layers_.size());
    const std::int64_t tokens = num_tokens_;
    num_tokens_ = 0;
    reserve(tokens);
    num_tokens_ = tokens;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      std::copy_n(other.layers_[l].keys.get(), tokens * row_size(), layers_[l].keys.get());
      std::copy_n(other.layers_[l].values.get(), tokens * row_size(), layers_[l].values.get());
    }
    return *this;
  }
  KvCache(KvCache&&) noexcept = default;
  KvCache& operator=(KvCache&&) noexcept = default;

  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] std::int64_t row_size() const { return num_kv_heads_ * head_dim_; }
  /// Bytes that hold the keys and values of the tokens so far.
  [[nodiscard]] std::int64_t resident_bytes() const { return num_tokens_ * bytes_per_token(); }
  [[nodiscard]] std::int64_t bytes_per_token() const {
    return static_cast<std::int64_t>(layers_.size() * sizeof(T)) * 2 * row_size();
  }

  /// Makes room for `num_tokens` without touching the new memory; never shrinks.
  void reserve(std::int64_t num_tokens) {
    if (num_tokens <= capacity_) return;
    const auto size = static_cast<std::size_t>(num_tokens * row_size());
    for (Layer& layer : layers_) {  // layer by layer, so that only one stands in memory twice
      for (std::unique_ptr<T[]>* values : {&layer.keys, &layer.values}) {
        auto grown = std::make_unique_for_overwrite<T[]>(size);
        if (num_tokens_ > 0) std::copy_n(values->get(), num_tokens_ * row_size(), grown.get());
        *values = std::move(grown);
      }
    }
    capacity_ = num_tokens;
  }

  /// Sets the number of tokens; new ones hold no values until `store` writes them.
  void resize(std::int64_t num_tokens) {
    if (num_tokens > capacity_) reserve(std::max(num_tokens, capacity_ + capacity_ / 2));
    num_tokens_ = num_tokens;
  }

  /// Writes rows of keys and values, [rows, num_kv_heads * head_dim], at tokens first, first + 1,
  /// ...
  void store(std::int64_t layer, std::int64_t first, MatrixView<const float> keys,
             MatrixView<const float> values) {
    Layer& target = layers_[static_cast<std::size_t>(layer)];
    for (std::int64_t r = 0; r < keys.rows; ++r) {
      T* key = target.keys.get() + (first + r) * row_size();
      T* value = target.values.get() + (first + r) * row_size();
      for (std::int64_t i = 0; i < row_size(); ++i) {
        key[i] = from_f32<T>(keys.row(r)[i]);
        value[i] = from_f32<T>(values.row(r)[i]);
      }
    }
  }

  /// The rows [first, first + count) of a layer as stored: keys, then values.
  [[nodiscard]] std::vector<T> save_rows(std::int64_t layer, std::int64_t first,
                                         std::int64_t count) const {
    const Layer& source = layers_[static_cast<std::size_t>(layer)];
    std::vector<T> saved(static_cast<std::size_t>(2 * count * row_size()));
    std::copy_n(source.keys.get() + first * row_size(), count * row_size(), saved.data());
    std::copy_n(source.values.get() + first * row_size(), count * row_size(),
                saved.data() + count * row_size());
    return saved;
  }
  void restore_rows(std::int64_t layer, std::int64_t first, const std::vector<T>& saved) {
    Layer& target = layers_[static_cast<std::size_t>(layer)];
    const auto half = static_cast<std::int64_t>(saved.size() / 2);
    std::copy_n(saved.data(), half, target.keys.get() + first * row_size());
    std::copy_n(saved.data() + half, half, target.values.get() + first * row_size());
  }

  [[nodiscard]] KvView<T> view(std::int64_t layer, Rotation rotation) const {
    const Layer& source = layers_[static_cast<std::size_t>(layer)];
    return contiguous_kv<T>(source.keys.get(), source.values.get(), num_tokens_, num_kv_heads_,
                            head_dim_, rotation);
  }

 private:
  struct Layer {
    std::unique_ptr<T[]> keys;
    std::unique_ptr<T[]> values;
  };

  std::int64_t num_kv_heads_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t num_tokens_ = 0;
  std::int64_t capacity_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace chunkllm
