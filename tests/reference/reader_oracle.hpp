// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "reference/oracle.hpp"

namespace chunkllm::oracle {

struct ReaderSettings {
  enum class Refresh { kBoundary, kEvery, kStride };
  std::int64_t num_layers = 1;
  std::vector<bool> windowed;  // [num_layers] or empty
  Refresh refresh = Refresh::kBoundary;
  std::int64_t stride = 1;
  bool shares_sets = false;  // in decoding; prefill is always layer by layer
  Join join = Join::kMax;
  BudgetRule budget;
  float threshold = 0.0F;
  std::int64_t min_len = 4;
  std::int64_t max_len = 128;
  std::int64_t local_min_tokens = 64;
  std::int64_t local_min_chunks = 2;
  std::int64_t second_look = 64;
};

/// Reads a text token by token and says what every token attends in every layer: the moments at
/// which sets are chosen and take effect, restated without blocks, rounds or journals.
class Reader {
 public:
  /// Scores of chunks 1 .. count of a refresh at `token` in `layer`.
  using Scores = std::function<std::vector<float>(std::int64_t layer, std::int64_t token,
                                                  std::int64_t count, const ChunkList& closed)>;

  Reader(ReaderSettings settings, Scores scores)
      : settings_(std::move(settings)),
        scores_(std::move(scores)),
        sets_(static_cast<std::size_t>(settings_.num_layers)) {}

  [[nodiscard]] const ChunkList& closed() const { return closed_; }
  [[nodiscard]] std::int64_t num_refreshes() const { return num_refreshes_; }
  [[nodiscard]] std::int64_t num_forced() const { return num_forced_; }

  /// Reads the next token and returns what it attends in each layer.
  ///
  /// \param wanted  whether the boundary finder would end a chunk with it
  std::vector<TokenList> read(bool wanted, bool decoding) {
    const std::int64_t token = num_tokens_++;
    const std::int64_t open_begin = closed_.empty() ? 0 : closed_.back().second;
    const int verdict =
        boundary(token + 1 - open_begin, wanted, settings_.min_len, settings_.max_len);
    if (verdict != 0) closed_.emplace_back(open_begin, token + 1);
    if (verdict == 2) ++num_forced_;
    const bool known_before = settings_.refresh == ReaderSettings::Refresh::kEvery ||
                              (settings_.refresh == ReaderSettings::Refresh::kStride &&
                               (token + 1) % settings_.stride == 0);
    const bool triggers =
        known_before || (verdict != 0 && settings_.refresh == ReaderSettings::Refresh::kBoundary);
    if (triggers) ++num_refreshes_;
    last_triggered_ = triggers;
    const bool shared = decoding && settings_.shares_sets;
    std::vector<TokenList> attended;
    for (std::int64_t layer = 0; layer < settings_.num_layers; ++layer) {
      const bool before_itself = layer > 0 || known_before;
      if (triggers && !shared && before_itself) refresh(layer, token);
      attended.push_back(listed(sets_[static_cast<std::size_t>(layer)], token));
      if (triggers && !shared && !before_itself) refresh(layer, token);
    }
    if (triggers && shared) refresh_together(token);
    return attended;
  }

  /// Ends a prompt. Returns, for the last tokens that are evaluated again, what each attends in
  /// each layer: [token][layer].
  std::vector<std::vector<TokenList>> end_prompt(std::int64_t turn_tokens) {
    const std::int64_t token = num_tokens_ - 1;
    if (!last_triggered_) ++num_refreshes_;
    last_triggered_ = true;
    const std::vector<Set> before = sets_;
    if (settings_.shares_sets) {
      refresh_together(token);
    } else {
      for (std::int64_t layer = 0; layer < settings_.num_layers; ++layer) refresh(layer, token);
    }
    bool nothing_hidden = true;
    for (std::size_t l = 0; l < sets_.size(); ++l) {
      const auto everything = static_cast<std::size_t>(num_tokens_);
      nothing_hidden = nothing_hidden && listed(sets_[l], token).size() == everything &&
                       listed(before[l], token).size() == everything;
    }
    if (nothing_hidden) return {};
    const std::int64_t count =
        std::min(std::max<std::int64_t>(settings_.second_look, 1), turn_tokens);
    ChunkList closed_then;
    for (const auto& chunk : closed_) {
      if (chunk.second <= num_tokens_ - count + 1) closed_then.push_back(chunk);
    }
    const std::int64_t window = candidates(closed_then, num_tokens_ - count,
                                           settings_.local_min_tokens, settings_.local_min_chunks)
                                    .tail_begin;
    std::vector<std::vector<TokenList>> looked;
    for (std::int64_t t = num_tokens_ - count; t < num_tokens_; ++t) {
      looked.emplace_back();
      for (const Set& set : sets_) {
        Set wider = set;
        wider.tail_begin = std::min(wider.tail_begin, window);
        looked.back().push_back(listed(wider, t));
      }
    }
    return looked;
  }

 private:
  struct Set {
    std::vector<std::pair<std::int64_t, std::int64_t>> spans;  // chunk 0 and the chosen ones
    std::int64_t tail_begin = 0;
  };

  static TokenList listed(const Set& set, std::int64_t token) {
    std::vector<bool> attended(static_cast<std::size_t>(token + 1), false);
    const auto add = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < std::min(end, token + 1); ++t) {
        attended[static_cast<std::size_t>(t)] = true;
      }
    };
    for (const auto& span : set.spans) add(span.first, span.second);
    add(set.tail_begin, token + 1);
    TokenList list;
    for (std::int64_t t = 0; t <= token; ++t) {
      if (attended[static_cast<std::size_t>(t)]) list.push_back(t);
    }
    return list;
  }

  [[nodiscard]] bool takes_selection(std::int64_t layer) const {
    return settings_.windowed.empty() || !settings_.windowed[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] Candidates candidates_at(std::int64_t token) const {
    return candidates(closed_, token, settings_.local_min_tokens, settings_.local_min_chunks);
  }

  void refresh(std::int64_t layer, std::int64_t token) {
    if (!takes_selection(layer)) return;
    const Candidates range = candidates_at(token);
    TokenList order;
    if (range.end > 1) {
      order = rank(scores_(layer, token, range.end - 1, closed_), settings_.threshold);
    }
    sets_[static_cast<std::size_t>(layer)] = make_set(order, range, token);
  }

  void refresh_together(std::int64_t token) {
    const Candidates range = candidates_at(token);
    TokenList order;
    if (range.end > 1) {
      std::vector<std::vector<float>> scores;
      for (std::int64_t layer = 0; layer < settings_.num_layers; ++layer) {
        if (takes_selection(layer)) scores.push_back(scores_(layer, token, range.end - 1, closed_));
      }
      order = joined_order(scores, settings_.join, settings_.threshold, closed_, range, token,
                           settings_.budget);
    }
    const Set set = make_set(order, range, token);
    for (std::int64_t layer = 0; layer < settings_.num_layers; ++layer) {
      if (takes_selection(layer)) sets_[static_cast<std::size_t>(layer)] = set;
    }
  }

  [[nodiscard]] Set make_set(const TokenList& order, const Candidates& range,
                             std::int64_t token) const {
    Set set;
    set.tail_begin = range.tail_begin;
    if (!closed_.empty()) set.spans.push_back(closed_[0]);
    for (const std::int64_t chunk : choose(order, closed_, range, token, settings_.budget)) {
      set.spans.push_back(closed_[static_cast<std::size_t>(chunk)]);
    }
    return set;
  }

  ReaderSettings settings_;
  Scores scores_;
  ChunkList closed_;
  std::vector<Set> sets_;
  std::int64_t num_tokens_ = 0;
  std::int64_t num_refreshes_ = 0;
  std::int64_t num_forced_ = 0;
  bool last_triggered_ = false;
};

}  // namespace chunkllm::oracle
