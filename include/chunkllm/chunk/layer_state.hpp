// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/core/tensor_view.hpp"

namespace chunkllm {

/// A trigger whose set is still to be chosen.
struct PendingRefresh {
  std::int64_t trigger = 0;
  std::int64_t effective = 0;   ///< first token that attends the new set
  std::vector<float> open_key;  ///< of the open chunk at the trigger; empty if none is open
  std::int64_t open_length = 0;
};

/// A set and the token it was chosen at.
struct SetRecord {
  std::int64_t trigger = -1;
  std::int64_t effective = 0;
  std::vector<std::int64_t> chunks;  ///< the selected ones, ascending
  AttendedSet set;
  std::int64_t num_nan = 0;  ///< scores that were NaN
};

/// One layer's part of a `ChunkState`: chunk keys, the open chunk's sum, the sets in force, and
/// what is needed to go back.
struct LayerState {
  LayerState(const ScorerShape& shape, std::int64_t num_ring_tokens)
      : keys(shape.key_size()),
        open(static_cast<std::size_t>(shape.state_size)),
        ring(static_cast<std::size_t>(shape.state_size * num_ring_tokens)),
        ring_len(num_ring_tokens),
        uses_input(shape.uses_input),
        uses_query_key(shape.uses_query_key) {
    history.emplace_back();
  }

  bool selectable = true;
  ChunkKeys keys;
  std::vector<float> open;  // sum (or the scorer's other state) of the open chunk
  std::vector<float> ring;  // `open` after each of the last tokens, at token % ring_len
  std::int64_t ring_len;
  bool uses_input;
  bool uses_query_key;
  std::int64_t position = 0;      // tokens taken
  std::int64_t chunk = 0;         // chunk that token `position` belongs to
  std::deque<SetRecord> history;  // ascending by `effective`; the last is in force
  std::vector<PendingRefresh> pending;
  AttendedSet look_set;
  std::vector<float> key;  // scratch

  // Rows of the step in progress, owned by the engine.
  MatrixView<const float> inputs;
  MatrixView<const float> queries;
  MatrixView<const float> keys_in;
  // The last row taken: the trigger of a joined refresh or of a prompt's end.
  std::vector<float> last_input;
  std::vector<float> last_query;

  [[nodiscard]] std::int64_t resident_bytes() const {
    return keys.resident_bytes() +
           static_cast<std::int64_t>((open.size() + ring.size()) * sizeof(float));
  }

  [[nodiscard]] TokenRow row(std::int64_t r) const {
    TokenRow out;
    if (uses_input) out.input = inputs.data != nullptr ? inputs.row(r) : last_input.data();
    if (uses_query_key) {
      out.query = queries.data != nullptr ? queries.row(r) : last_query.data();
      out.key = keys_in.data != nullptr ? keys_in.row(r) : nullptr;
    }
    return out;
  }

  /// Copies row `r`: the engine may reuse its buffers for the next layer.
  void remember_row(std::int64_t r) {
    if (uses_input && inputs.data != nullptr) {
      last_input.assign(inputs.row(r), inputs.row(r) + inputs.cols);
    }
    if (uses_query_key && queries.data != nullptr) {
      last_query.assign(queries.row(r), queries.row(r) + queries.cols);
    }
  }
  /// From here on `row` gives the remembered row.
  void release_rows() { inputs = queries = keys_in = {}; }

  /// The set that `token` attends; `maybe_next` is lowered to where another takes over. For tokens
  /// older than the records it is the oldest one kept.
  [[nodiscard]] const AttendedSet& set_at(std::int64_t token,
                                          std::int64_t* maybe_next = nullptr) const {
    auto record = history.end() - 1;
    while (record->effective > token && record != history.begin()) {
      if (maybe_next != nullptr) *maybe_next = record->effective;
      --record;
    }
    return record->set;
  }

  /// Keeps the records that tokens from `first` on may need.
  void prune_history(std::int64_t first) {
    while (history.size() > 1 && history[1].effective <= first && history[1].trigger < first) {
      history.pop_front();
    }
  }

  /// Notes the open sum behind `token`.
  void journal(std::int64_t token) { std::copy(open.begin(), open.end(), ring_at(token)); }

  void put_key(std::int64_t index) {
    if (index < keys.num_chunks()) {
      keys.write(index, key.data());
    } else {
      keys.append(key.data());
    }
  }

  /// Goes back to token `first`, which lies in chunk `index` that begins at `begin`.
  void restart(std::int64_t first, std::int64_t index, std::int64_t begin) {
    position = first;
    chunk = index;
    if (first > begin) {
      std::copy_n(ring_at(first - 1), static_cast<std::int64_t>(open.size()), open.begin());
    }
  }

  /// \return NaN scores of the refreshes that are undone
  std::int64_t rollback(std::int64_t num_tokens, std::int64_t open_begin, std::int64_t num_chunks) {
    if (keys.num_chunks() > num_chunks) keys.truncate(num_chunks);
    std::int64_t num_nan = 0;
    while (history.back().trigger >= num_tokens) {
      num_nan += history.back().num_nan;
      history.pop_back();
    }
    pending.clear();
    restart(num_tokens, num_chunks, open_begin);
    return num_nan;
  }

  /// What a second look over tokens [first, end) will overwrite.
  struct LookBackup {
    std::vector<float> sums;               // [end - first][state]
    std::vector<std::vector<float>> keys;  // of chunks from the first token's on
  };

  [[nodiscard]] LookBackup back_up(std::int64_t first, std::int64_t end, std::int64_t first_chunk) {
    LookBackup backup;
    for (std::int64_t token = first; token < end; ++token) {
      const auto sum = ring_at(token);
      backup.sums.insert(backup.sums.end(), sum, sum + static_cast<std::int64_t>(open.size()));
    }
    for (std::int64_t c = first_chunk; c < keys.num_chunks(); ++c) {
      backup.keys.emplace_back(static_cast<std::size_t>(keys.key_size()));
      keys.read(c, backup.keys.back().data());
    }
    return backup;
  }

  /// Puts back what lies in front of the chunks that were rolled back already.
  void restore(const LookBackup& backup, std::int64_t first, std::int64_t first_chunk) {
    const auto size = static_cast<std::int64_t>(open.size());
    if (size == 0) return;
    const auto count = static_cast<std::int64_t>(backup.sums.size()) / size;
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(backup.sums.begin() + i * size, size, ring_at(first + i));
    }
    for (std::size_t i = 0; i < backup.keys.size(); ++i) {
      const std::int64_t index = first_chunk + static_cast<std::int64_t>(i);
      if (index < keys.num_chunks()) keys.write(index, backup.keys[i].data());
    }
  }

 private:
  std::vector<float>::iterator ring_at(std::int64_t token) {
    return ring.begin() + token % ring_len * static_cast<std::int64_t>(open.size());
  }
};

}  // namespace chunkllm
