// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
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
  LayerState(std::int64_t layer, const ScorerShape& shape, std::int64_t num_ring_tokens)
      : index(layer),
        keys(shape.key_size()),
        open(static_cast<std::size_t>(shape.state_size)),
        ring(static_cast<std::size_t>(shape.state_size * num_ring_tokens)),
        ring_len(num_ring_tokens),
        uses_input(shape.uses_input),
        uses_query_key(shape.uses_query_key),
        uses_open_key(shape.num_heads > 0 && !shape.has_null_logits) {
    history.emplace_back();
  }

  std::int64_t index;      // of the layer
  bool selectable = true;  // false: the layer keeps a window of its own and takes no rows
  ChunkKeys keys;
  std::vector<float> open;  // sum (or the scorer's other state) of the open chunk
  std::vector<float> ring;  // `open` after each of the last tokens, at token % ring_len
  std::int64_t ring_len;
  bool uses_input;
  bool uses_query_key;
  bool uses_open_key;         // in the null class; an adapter's own null logits make it needless
  std::int64_t position = 0;  // tokens taken
  std::int64_t chunk = 0;     // chunk that token `position` belongs to
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

  /// Adds rows up to token `end` to the open chunk's sum and makes the keys of chunks that close on
  /// the way.
  ///
  /// \param step_first   token of row 0 of the views above
  /// \param after_token  called with each token once it is taken
  template <ChunkScorer Scorer, typename AfterToken>
  void take_rows(const Scorer& scorer, const ChunkTable& table, std::int64_t step_first,
                 std::int64_t end, const AfterToken& after_token) {
    close_key(scorer, table);  // of a chunk that turned out to end with the last token taken
    while (position < end) {
      const std::int64_t token = position;
      if (!open.empty()) {
        scorer.add_token(index, row(token - step_first), token == table.begin(chunk), open.data());
        journal(token);
      }
      ++position;
      close_key(scorer, table);
      after_token(token);
    }
    if (end > step_first) remember_row(end - 1 - step_first);
  }

  /// A refresh at `trigger`, the last token taken, with the key of the open chunk at that point.
  ///
  /// \param num_closed  chunks that are closed at the trigger
  template <ChunkScorer Scorer>
  [[nodiscard]] PendingRefresh make_pending(const Scorer& scorer, const ChunkTable& table,
                                            std::int64_t num_closed, std::int64_t trigger,
                                            std::int64_t effective) const {
    PendingRefresh made{trigger, effective, {}};
    const std::int64_t length = trigger + 1 - table.begin(num_closed);
    if (!uses_open_key || length == 0) return made;
    made.open_key.resize(static_cast<std::size_t>(keys.key_size()));
    made.open_length = length;
    scorer.make_key(index, open.data(), length, made.open_key.data());
    return made;
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

  /// Goes back to token `first`, whose chunk closed or open is known to the table.
  void restart(std::int64_t first, const ChunkTable& table) {
    position = first;
    chunk = table.chunk_of(first);
    if (first > table.begin(chunk)) {
      std::copy_n(ring_at(first - 1), static_cast<std::int64_t>(open.size()), open.begin());
    }
  }

  /// \param table  has been rolled back
  /// \return NaN scores of the refreshes that are undone
  std::int64_t rollback(std::int64_t num_tokens, const ChunkTable& table) {
    if (keys.num_chunks() > table.num_chunks()) keys.truncate(table.num_chunks());
    std::int64_t num_nan = 0;
    while (history.back().trigger >= num_tokens) {
      num_nan += history.back().num_nan;
      history.pop_back();
    }
    pending.clear();
    restart(num_tokens, table);
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
      const std::int64_t at = first_chunk + static_cast<std::int64_t>(i);
      if (at < keys.num_chunks()) keys.write(at, backup.keys[i].data());
    }
  }

 private:
  /// Makes the key of the chunk that ends in front of the layer's next token, if one does.
  template <ChunkScorer Scorer>
  void close_key(const Scorer& scorer, const ChunkTable& table) {
    if (chunk >= table.num_chunks() || table.end(chunk) != position) return;
    if (!open.empty()) {
      key.resize(static_cast<std::size_t>(keys.key_size()));
      scorer.make_key(index, open.data(), table.length(chunk), key.data());
      if (chunk < keys.num_chunks()) {
        keys.write(chunk, key.data());
      } else {
        keys.append(key.data());
      }
    }
    ++chunk;
  }

  /// Notes the open sum behind `token`.
  void journal(std::int64_t token) { std::copy(open.begin(), open.end(), ring_at(token)); }

  std::vector<float>::iterator ring_at(std::int64_t token) {
    return ring.begin() + token % ring_len * static_cast<std::int64_t>(open.size());
  }
};

}  // namespace chunkllm
