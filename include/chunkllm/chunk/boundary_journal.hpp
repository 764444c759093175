// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/text/sentence_boundary_stream.hpp"

namespace chunkllm {

/// Counted over all tokens so far.
struct ChunkCounters {
  std::int64_t boundaries = 0;
  std::int64_t forced_boundaries = 0;
  std::int64_t refreshes = 0;
  std::int64_t nan_scores = 0;
};

/// Where the chunks of one sequence end, and what it takes to forget its last tokens: after each of
/// them, the state of the sentence rules and the counters.
///
/// Verdicts come from the sentence rules or, where a Chunk Adapter gives them, from outside; the
/// guards have the last word.
class BoundaryJournal {
 public:
  explicit BoundaryJournal(const ChunkGuards& guards) : guards_(guards) {}

  [[nodiscard]] const ChunkTable& table() const { return table_; }
  /// [table().num_chunks()] logarithms of the chunks' lengths.
  [[nodiscard]] const std::vector<float>& log_lengths() const { return log_lengths_; }
  [[nodiscard]] const ChunkCounters& counters() const { return counters_; }
  /// Tokens that `on_token` has seen, or that were decided without it.
  [[nodiscard]] std::int64_t num_read_tokens() const {
    return first_record_ + static_cast<std::int64_t>(records_.size());
  }

  /// Feeds a token's bytes to the sentence rules. Tokens come in order, each once.
  void on_token(std::string_view bytes) {
    Record record;
    record.wanted = sentences_.on_token(bytes);
    record.sentences = sentences_;
    records_.push_back(record);
  }
  /// The sentence rules' verdict on a token that `on_token` has seen.
  [[nodiscard]] bool wanted(std::int64_t token) { return record_at(token).wanted; }
  /// Where the open chunk ends by the sentence rules, looking from its token `first` on; the number
  /// of tokens read where it does not end among them.
  [[nodiscard]] std::int64_t open_chunk_end(std::int64_t first) {
    std::int64_t end = first + 1;
    while (end < num_read_tokens() && !decision(end - 1, wanted(end - 1)).boundary) ++end;
    return end;
  }

  /// Closes the open chunk behind `token` where the verdict and the guards say so.
  bool decide(std::int64_t token, bool wants) {
    const BoundaryDecision made = decision(token, wants);
    if (!made.boundary) return false;
    log_lengths_.push_back(std::log(static_cast<float>(token + 1 - table_.open_begin())));
    table_.close(token + 1);
    ++counters_.boundaries;
    counters_.forced_boundaries += made.forced ? 1 : 0;
    return true;
  }
  void count_refresh() { ++counters_.refreshes; }
  /// \param count  negative where refreshes are undone
  void count_nan_scores(std::int64_t count) { counters_.nan_scores += count; }
  /// Notes the counters as those behind `token`.
  void note_counters(std::int64_t token) { record_at(token).counters = counters_; }

  /// Forgets the tokens from `num_tokens` on, also those read ahead. `nan_scores` stays: the sets
  /// know how many of them are undone.
  void rollback(std::int64_t num_tokens) {
    table_.rollback(num_tokens);
    log_lengths_.resize(static_cast<std::size_t>(table_.num_chunks()));
    records_.resize(static_cast<std::size_t>(num_tokens - first_record_));
    const Record last = records_.empty() ? Record{} : records_.back();
    const std::int64_t nan_scores = counters_.nan_scores;
    sentences_ = last.sentences;
    counters_ = last.counters;
    counters_.nan_scores = nan_scores;
  }
  /// Drops what only a rollback to fewer than `num_tokens` tokens would need.
  void prune(std::int64_t num_tokens) {
    while (first_record_ < num_tokens - 1) {
      records_.pop_front();
      ++first_record_;
    }
  }

 private:
  struct Record {
    bool wanted = false;
    SentenceBoundaryStream sentences;  // after the token
    ChunkCounters counters;            // after the token; nan_scores stand in the set records
  };

  Record& record_at(std::int64_t token) {
    while (num_read_tokens() <= token) records_.emplace_back();  // an adapter needs no bytes
    return records_[static_cast<std::size_t>(token - first_record_)];
  }
  [[nodiscard]] BoundaryDecision decision(std::int64_t token, bool wants) const {
    return decide_boundary(token + 1 - table_.open_begin(), wants, guards_);
  }

  ChunkGuards guards_;
  ChunkTable table_;
  std::vector<float> log_lengths_;
  ChunkCounters counters_;
  SentenceBoundaryStream sentences_;
  std::deque<Record> records_;  // of tokens from first_record_ on
  std::int64_t first_record_ = 0;
};

}  // namespace chunkllm
