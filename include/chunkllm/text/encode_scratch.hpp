// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "chunkllm/text/bpe_merges.hpp"
#include "chunkllm/text/token_vocabulary.hpp"

namespace chunkllm {

class BpeTokenizer;

/// Buffers and a bounded cache of encoded words, owned by one thread of a tokenizer's callers.
///
/// Used with another tokenizer it forgets its words. It changes speed, never results.
class EncodeScratch {
 public:
  /// \param num_cached_words  rounded up to a power of two and held to 64 .. 2^20; 64 bytes each.
  ///        The default is 2 MiB, about the size of a core's second-level cache.
  explicit EncodeScratch(std::size_t num_cached_words = std::size_t{1} << 15)
      : num_entries_(
            std::bit_ceil(std::clamp(num_cached_words, std::size_t{64}, std::size_t{1} << 20))) {}

 private:
  friend class BpeTokenizer;

  /// A short word, zero padded, its length in the last byte.
  using Key = std::array<std::uint64_t, 3>;

  /// One cached word: a cache line.
  struct Entry {
    static constexpr std::size_t kMaxKeyBytes = 23;
    static constexpr std::size_t kMaxIds = 9;

    Key key{};  // the empty word, which is never looked up
    std::array<std::int32_t, kMaxIds> ids{};
    std::uint32_t num_ids = 0;
  };
  static_assert(sizeof(Entry) == 64);

  /// \param word          1 to kMaxKeyBytes bytes
  /// \param readable_end  end of the buffer that the word lies in
  static Key make_key(std::string_view word, const char* readable_end) {
    Key key{};
    const std::size_t size = word.size();
    if (static_cast<std::size_t>(readable_end - word.data()) >= sizeof(Key)) {
      // Three whole loads and masks are cheaper than a copy of unknown length.
      std::memcpy(key.data(), word.data(), sizeof(Key));
      for (std::size_t i = 0; i < key.size(); ++i) {
        const std::size_t kept = size <= 8 * i ? 0 : size - 8 * i;
        if (kept < 8) key[i] &= (std::uint64_t{1} << (8 * kept)) - 1;
      }
    } else {
      std::memcpy(key.data(), word.data(), size);
    }
    key[2] |= static_cast<std::uint64_t>(size) << 56;
    return key;
  }

  Entry& entry(const Key& key) {
    const std::uint64_t hash = detail::mix_words(key[0] ^ detail::kHashMultiplier,
                                                 key[1] ^ (key[2] * detail::kHashMultiplier));
    return entries_[hash & (num_entries_ - 1)];
  }

  void bind(std::uint64_t fingerprint) {
    if (!entries_.empty() && fingerprint == fingerprint_) return;
    entries_.assign(num_entries_, Entry{});
    fingerprint_ = fingerprint;
  }

  std::size_t num_entries_;  // a power of two
  std::vector<Entry> entries_;
  std::uint64_t fingerprint_ = 0;
  detail::MergeScratch merge_;
};

}  // namespace chunkllm
