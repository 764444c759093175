// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/text/sentence_abbreviations.hpp"
#include "chunkllm/text/sentence_characters.hpp"
#include "chunkllm/text/sentence_text.hpp"

namespace chunkllm {

namespace detail {

/// Longest quotation or parenthesis in bytes that is kept whole; a longer one is taken for a
/// stray mark, so that one odd quote does not swallow a document.
inline constexpr std::size_t kMaxProtectedBytes = 4096;

/// Finds the ends for `sentence_ends`, below. Walks the document once; the results of searches
/// forward are kept, so that the whole is linear.
class SentenceScanner {
 public:
  explicit SentenceScanner(std::string_view text) : document_(text) {}

  std::vector<std::size_t> run() && {
    std::size_t pos = 0;
    while (pos < document_.size()) {
      const std::size_t end = find_paragraph_end(pos);
      scan_paragraph(pos, end);
      pos = end;
      while (pos < document_.size() && is_ascii_space(document_[pos])) ++pos;
    }
    return std::move(ends_);
  }

 private:
  /// Offset of the first blank line at or after `pos`, or the end of the document.
  std::size_t find_paragraph_end(std::size_t pos) const {
    while ((pos = document_.find('\n', pos)) != std::string_view::npos) {
      std::size_t next = pos + 1;
      while (next < document_.size() && document_[next] != '\n' && is_ascii_space(document_[next]))
        ++next;
      if (next == document_.size() || document_[next] == '\n') return pos;
      pos = next;
    }
    return document_.size();
  }

  void scan_paragraph(std::size_t begin, std::size_t end) {
    text_ = SentenceText(document_, begin, end);
    next_close_ = {};
    line_begin_ = begin;
    list_ = {};
    begin_sentence(begin);
    std::size_t pos = begin;
    while (pos < text_.end()) {
      const SentenceTextChar c = text_.char_at(pos);
      switch (c.kind) {
        case SentenceChar::kFullStop:
        case SentenceChar::kStrongStop:
        case SentenceChar::kFinalStop:
        case SentenceChar::kEllipsis: pos = scan_stop(pos); break;
        case SentenceChar::kQuote:
        case SentenceChar::kApostrophe:
        case SentenceChar::kOpenQuote:
        case SentenceChar::kOpenBracket: pos = scan_protected(pos, c); break;
        case SentenceChar::kNewline: pos = scan_line_end(pos, c.num_bytes); break;
        case SentenceChar::kSpace: pos = scan_space(pos, c.num_bytes); break;
        default: pos += c.num_bytes; break;
      }
    }
    add_end(text_.end());
  }

  void add_end(std::size_t end) {
    if (end > sentence_begin_) ends_.push_back(end);
  }

  void begin_sentence(std::size_t pos) {
    sentence_begin_ = text_.skip_space(pos);
    sentence_marker_ = text_.list_marker_at(sentence_begin_);
    if (sentence_marker_.number == 1 || sentence_marker_.has_bullet ||
        follows_list(sentence_marker_)) {
      list_ = sentence_marker_;
    }
  }

  bool follows_list(const ListMarker& marker) const {
    return list_.number != 0 && marker.number == list_.number + 1 &&
           marker.is_sentence_letter == list_.is_sentence_letter;
  }

  /// Inside a numbered list, the next number ends the item before it.
  std::size_t scan_space(std::size_t pos, std::size_t num_bytes) {
    if (list_.number != 0 && pos > sentence_begin_) {
      const std::size_t next = text_.skip_space(pos);
      const ListMarker marker = text_.list_marker_at(next);
      if (follows_list(marker)) {
        add_end(pos);
        begin_sentence(next);
        return marker.end;
      }
      return next;
    }
    return pos + num_bytes;
  }

  /// A single line end is a space, except where the lines are those of a list, code or verse.
  std::size_t scan_line_end(std::size_t pos, std::size_t num_bytes) {
    std::string_view line = text_.bytes(line_begin_, pos - line_begin_);
    while (!line.empty() && is_ascii_space(line.back())) line.remove_suffix(1);
    const std::size_t line_end = line_begin_ + line.size();
    const std::size_t next = text_.skip_space(pos + num_bytes);
    const bool is_long = line_end >= sentence_begin_ + kMinLineUnitBytes;
    if (line_end > sentence_begin_ &&
        (starts_with_heading(line) || starts_item(next) || (is_long && !is_prose_line(line)))) {
      add_end(line_end);
      begin_sentence(next);
    }
    line_begin_ = pos + num_bytes;
    return next;
  }

  static bool starts_with_heading(std::string_view line) {
    const std::size_t level = line.find_first_not_of('#');
    return level != std::string_view::npos && level > 0 && level < 7 && line[level] == ' ';
  }

  bool starts_item(std::size_t pos) const {
    const std::string_view mark = text_.bytes(pos, 2);
    return mark == "- " || mark == "* " || mark == "+ " || text_.skip_bullet(pos) != pos ||
           text_.list_marker_at(pos).number != 0 || starts_with_heading(text_.bytes(pos, 8));
  }

  static bool is_prose_line(std::string_view line) {
    return line.size() >= kMinProseLineBytes && !is_ascii_space(line.front()) &&
           std::string_view(";{}").find(line.back()) == std::string_view::npos;
  }

  /// A quotation or bracket: skipped whole if it closes within reach.
  std::size_t scan_protected(std::size_t pos, SentenceTextChar open) {
    const std::size_t inside = pos + open.num_bytes;
    const std::string_view closer = closer_of(pos, open);
    if (closer.empty()) return inside;
    const std::size_t close = find_close(closer, inside);
    if (close == std::string_view::npos || close - inside > kMaxProtectedBytes) return inside;
    const std::size_t end = close + closer.size();
    // Inside "(...)" of the middle of a sentence nothing ends; what ends with a stop of its own
    // ends the sentence before a capital letter.
    if (is_sentence_stop(text_.kind_before(close)) && close > inside) {
      return finish_stop(end, /*wants_capital=*/true);
    }
    return end;
  }

  std::string_view closer_of(std::size_t pos, SentenceTextChar open) const {
    const bool starts_word = !is_sentence_letter(text_.kind_before(pos)) &&
                             text_.kind_before(pos) != SentenceChar::kDigit;
    const std::string_view mark = text_.bytes(pos, open.num_bytes);
    if (open.kind == SentenceChar::kQuote) return "\"";
    if (mark == "'") {
      return starts_word && !is_sentence_space(text_.char_at(pos + 1).kind) ? "'"
                                                                            : std::string_view();
    }
    for (const auto& [opening, closing] : kPairs) {
      if (mark == opening) return closing;
    }
    return {};
  }

  /// Offset of the first `closer` at or after `pos` in the paragraph; npos if there is none.
  std::size_t find_close(std::string_view closer, std::size_t pos) {
    std::size_t slot = 0;
    while (slot < kClosers.size() && kClosers[slot] != closer) ++slot;
    std::size_t& known = next_close_[slot];
    if (known == std::string_view::npos || known >= pos) return known;
    known = text_.find(closer, pos);
    const bool may_be_apostrophe = closer == "'" || closer == "\xE2\x80\x99";
    while (may_be_apostrophe && known != std::string_view::npos && !text_.closes_quotation(known)) {
      known = text_.find(closer, known + closer.size());
    }
    return known;
  }

  /// A run of stops at `pos`; returns where to go on.
  std::size_t scan_stop(std::size_t pos) {
    std::size_t end = pos;
    std::size_t num_dots = 0;
    bool is_strong = false;
    bool is_final = false;
    SentenceTextChar c = text_.char_at(pos);
    while (end < text_.end() && is_sentence_stop(c.kind)) {
      is_strong = is_strong || c.kind == SentenceChar::kStrongStop;
      is_final = is_final || c.kind == SentenceChar::kFinalStop;
      num_dots += c.kind == SentenceChar::kEllipsis ? 3 : 1;
      end += c.num_bytes;
      c = text_.char_at(end);
    }
    if (is_final) return finish_sentence(text_.skip_closers(end));
    if (is_strong) return scan_strong_stop(pos, end);
    if (num_dots > 1) return finish_stop(end, /*wants_capital=*/true);
    return scan_full_stop(pos);
  }

  std::size_t scan_strong_stop(std::size_t pos, std::size_t end) {
    const SentenceTextChar next = text_.char_at(text_.skip_space(end));
    if (next.kind == SentenceChar::kLower &&
        contains_word(kExclamatoryNames, text_.word_before(pos).packed)) {
      return end;
    }
    return finish_stop(end, /*wants_capital=*/false);
  }

  std::size_t scan_full_stop(std::size_t pos) {
    std::size_t spaced_end = 0;
    const std::size_t num_spaced = text_.count_spaced_stops(pos, spaced_end);
    if (num_spaced > 1) {
      const bool is_attached = !is_sentence_space(text_.kind_before(pos));
      // A stop and an ellipsis after it; else an ellipsis, with or without the stop at its end.
      if (num_spaced > 3 && is_attached && text_.skip_closers(spaced_end) < text_.end()) {
        finish_sentence(pos + 1);
        return spaced_end;
      }
      return num_spaced > 3 ? finish_stop(spaced_end, /*wants_capital=*/true) : spaced_end;
    }
    const StopWord word = text_.word_before(pos);
    const std::size_t word_begin = pos - word.num_bytes;
    if (sentence_marker_.end == pos + 1 || (word.is_number && word_begin == sentence_begin_)) {
      return pos + 1;
    }
    const std::size_t next = text_.skip_space(text_.skip_closers(pos + 1));
    if (!ends_after(word, next)) return pos + 1;
    return finish_stop(pos + 1, /*wants_capital=*/false);
  }

  /// Whether a full stop after `word` ends a sentence when `next` starts the next word.
  bool ends_after(const StopWord& word, std::size_t next) const {
    constexpr std::size_t kMinTimedSentenceBytes = 12;  // "At 5 a.m." alone is no sentence
    const bool is_capital = text_.char_at(next).kind == SentenceChar::kUpper;
    switch (stop_rule(word)) {
      case StopRule::kEnds: return true;
      case StopRule::kNever: return false;
      case StopRule::kUnlessNumber: return !text_.is_number_at(next);
      case StopRule::kBeforeCapital:
        return text_.is_starter_at(next) ||
               (is_capital && next > sentence_begin_ + kMinTimedSentenceBytes);
      case StopRule::kBeforeStarter:
      case StopRule::kInitial: return text_.is_starter_at(next);
    }
    return true;
  }

  /// Ends the sentence at `end` and its closers, if a space follows (and then a capital
  /// where one is wanted). Returns where to go on.
  std::size_t finish_stop(std::size_t end, bool wants_capital) {
    end = text_.skip_note(text_.skip_closers(end));
    std::size_t next = text_.skip_space(end);
    if (next == end && end < text_.end()) {
      next = text_.skip_dash(end);
      if (next == end) return end;
      wants_capital = true;
    }
    // "_Fig._ 4" and "_PROP._ I": what is emphasised is a label as often as a sentence.
    if (text_.kind_before(end) == SentenceChar::kEmphasis) {
      if (text_.is_number_at(next)) return end;
      wants_capital = true;
    }
    return wants_capital && !text_.starts_like_sentence(next) ? end : finish_sentence(end);
  }

  std::size_t finish_sentence(std::size_t end) {
    add_end(end);
    begin_sentence(end);
    return end;
  }

  static constexpr std::array<std::array<std::string_view, 2>, 10> kPairs = {{
      {"(", ")"},
      {"[", "]"},
      {"\xE2\x80\x9C", "\xE2\x80\x9D"},  // U+201C U+201D
      {"\xE2\x80\x98", "\xE2\x80\x99"},  // U+2018 U+2019
      {"\xE2\x80\x9E", "\xE2\x80\x9C"},  // U+201E U+201C
      {"\xC2\xAB", "\xC2\xBB"},          // U+00AB U+00BB
      {"\xE3\x80\x8C", "\xE3\x80\x8D"},  // U+300C U+300D
      {"\xE3\x80\x8E", "\xE3\x80\x8F"},  // U+300E U+300F
      {"\xE3\x80\x90", "\xE3\x80\x91"},  // U+3010 U+3011
      {"\xEF\xBC\x88", "\xEF\xBC\x89"},  // U+FF08 U+FF09
  }};
  static constexpr std::array<std::string_view, 12> kClosers = {
      "\"",         "'",          kPairs[0][1], kPairs[1][1], kPairs[2][1], kPairs[3][1],
      kPairs[4][1], kPairs[5][1], kPairs[6][1], kPairs[7][1], kPairs[8][1], kPairs[9][1]};

  std::string_view document_;
  SentenceText text_;  // the current paragraph
  std::vector<std::size_t> ends_;
  std::array<std::size_t, kClosers.size()> next_close_{};  // where the next one stands, if known
  std::size_t sentence_begin_ = 0;
  std::size_t line_begin_ = 0;
  ListMarker sentence_marker_;  // the number in front of the sentence, if any
  ListMarker list_;             // the last number of the list that is open
};

}  // namespace detail

/// Where the sentences of a whole document end.
///
/// For the labels that a Chunk Adapter is trained on, and as the reference of the causal
/// `SentenceBoundaryStream`; unlike that, it looks ahead. Rules for English, harmless elsewhere:
/// - a stop (`. ! ?`, the ellipsis, the stops of Arabic, Devanagari, Chinese, Japanese and others)
///   ends a sentence before white space, with the quotes and brackets that close after it; the
///   ideographic stops and the danda need no space;
/// - no end after titles, before the number of a reference ("p. 55"), after other abbreviations,
///   acronyms and initials unless a usual first word follows, nor inside numbers, addresses and
///   names;
/// - quotations and brackets that close within their paragraph and 4096 bytes are kept whole, and
///   end a sentence if their own last character is a stop and a capital letter follows;
/// - an ellipsis ends a sentence before a capital letter only;
/// - the next number of a list ("2.", "b)") ends the item before it;
/// - a blank line always ends a sentence. A single line end does so only after a Markdown
///   heading, before a list item, and in code, verse or tables (a line that is indented, below 48
///   bytes or ends in ; { }) once the sentence has 96 bytes; elsewhere lines count as wrapped.
///
/// \param text  UTF-8; bytes that are not are taken for symbols
/// \return byte offsets just past the last byte of each sentence that is no white space, strictly
///         ascending; empty where the text is nothing but white space. Else the last one is the end
///         of the text without its trailing white space.
///
/// Cost:   time linear in the bytes; memory for the result only. Cannot fail.
/// Source: own rules and lists. Compared with pySBD 0.3.4 by scripts/compare_sentences.py.
inline std::vector<std::size_t> sentence_ends(std::string_view text) {
  return detail::SentenceScanner(text).run();
}

}  // namespace chunkllm
