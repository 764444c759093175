// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/boundary_journal.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <vector>

namespace chunkllm {
namespace {

constexpr ChunkGuards kGuards{3, 10};

/// Sentences of 2 to 16 words and a full stop: too short, fitting and forced chunks.
std::vector<std::string_view> words(std::size_t num_tokens) {
  std::vector<std::string_view> text = {"Start"};
  for (std::size_t sentence = 0; text.size() < num_tokens; ++sentence) {
    if (sentence > 0) text.push_back(" Next");
    for (std::size_t i = 0; i < sentence * 5 % 15 + 1; ++i) text.push_back(" word");
    text.push_back(".");
  }
  text.resize(num_tokens);
  return text;
}

void read(BoundaryJournal& journal, const std::vector<std::string_view>& text, std::int64_t first,
          std::int64_t end) {
  for (std::int64_t t = first; t < end; ++t) {
    journal.on_token(text[static_cast<std::size_t>(t)]);
    journal.decide(t, journal.wanted(t));
    if (t % 3 == 0) journal.count_refresh();
    journal.note_counters(t);
  }
}

auto contents(const BoundaryJournal& journal) {
  const ChunkCounters& counters = journal.counters();
  return std::tuple(journal.table().ends(), journal.log_lengths(), journal.num_read_tokens(),
                    counters.boundaries, counters.forced_boundaries, counters.refreshes,
                    counters.nan_scores);
}

TEST(BoundaryJournal, GuardsDecideAndAreCounted) {
  const std::vector<std::string_view> text = words(200);
  BoundaryJournal journal(kGuards);
  read(journal, text, 0, 200);
  const ChunkTable& table = journal.table();
  EXPECT_GT(table.num_chunks(), 20);
  std::int64_t num_forced = 0;
  for (std::int64_t c = 0; c < table.num_chunks(); ++c) {
    EXPECT_GE(table.length(c), kGuards.min_len);
    EXPECT_LE(table.length(c), kGuards.max_len);
    const bool wanted = journal.wanted(table.end(c) - 1);
    num_forced += wanted ? 0 : 1;
    EXPECT_TRUE(wanted || table.length(c) == kGuards.max_len);
    EXPECT_EQ(journal.log_lengths()[static_cast<std::size_t>(c)],
              std::log(static_cast<float>(table.length(c))));
  }
  EXPECT_GT(num_forced, 0);
  EXPECT_LT(num_forced, table.num_chunks());
  EXPECT_EQ(journal.counters().boundaries, table.num_chunks());
  EXPECT_EQ(journal.counters().forced_boundaries, num_forced);
}

TEST(BoundaryJournal, OpenChunkEndReadsAhead) {
  BoundaryJournal longer(kGuards);
  read(longer, words(120), 0, 120);
  ASSERT_GT(longer.table().num_chunks(), 12);
  const std::int64_t num_tokens = longer.table().end(11) + 2;  // of the next chunk's at least 3
  const std::vector<std::string_view> text = words(static_cast<std::size_t>(num_tokens));
  BoundaryJournal whole(kGuards);
  read(whole, text, 0, num_tokens);
  BoundaryJournal ahead(kGuards);
  for (const std::string_view bytes : text) ahead.on_token(bytes);
  for (std::int64_t c = 0; c < whole.table().num_chunks(); ++c) {
    const std::int64_t end = whole.table().end(c);
    for (std::int64_t t = whole.table().begin(c); t < end; ++t) {
      EXPECT_EQ(ahead.open_chunk_end(t), end);
      EXPECT_EQ(ahead.decide(t, ahead.wanted(t)), t + 1 == end);
    }
  }
  const std::int64_t open = whole.table().open_begin();
  EXPECT_EQ(open, num_tokens - 2);
  EXPECT_EQ(ahead.open_chunk_end(open), num_tokens);  // as far as the rules have read
}

TEST(BoundaryJournal, RollbackToEveryTokenItKeepsAndReplayGiveTheSame) {
  const std::vector<std::string_view> text = words(150);
  const std::vector<std::string_view> other = words(10);
  BoundaryJournal straight(kGuards);
  read(straight, text, 0, 150);
  BoundaryJournal full(kGuards);
  read(full, text, 0, 100);
  full.prune(60);
  for (std::int64_t back = 60; back <= 100; ++back) {
    BoundaryJournal journal = full;
    journal.on_token(".");  // ahead of what is decided
    journal.rollback(back);
    BoundaryJournal fresh(kGuards);
    read(fresh, text, 0, back);
    EXPECT_EQ(contents(journal), contents(fresh)) << back;
    for (std::int64_t t = 0; t < 7; ++t) {
      journal.on_token(other[static_cast<std::size_t>(t)]);
      journal.decide(back + t, true);
      journal.note_counters(back + t);
    }
    journal.rollback(back);
    read(journal, text, back, 150);
    EXPECT_EQ(contents(journal), contents(straight)) << back;
  }
  BoundaryJournal unpruned(kGuards);
  read(unpruned, text, 0, 40);
  unpruned.count_nan_scores(5);
  unpruned.rollback(0);
  EXPECT_EQ(unpruned.counters().nan_scores, 5);  // the sets say how many to take off
  unpruned.count_nan_scores(-5);
  EXPECT_EQ(contents(unpruned), contents(BoundaryJournal(kGuards)));
}

}  // namespace
}  // namespace chunkllm
