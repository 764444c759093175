// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "chunkllm/text/sentence_abbreviations.hpp"
#include "chunkllm/text/sentence_characters.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// Tells after each token of a text whether a sentence ends with it, knowing nothing of what
/// follows.
///
/// The chunk boundaries of a model that has no Chunk Adapter. A boundary is a token in which
/// - a sentence ends: a stop (`. ! ?`, the ellipsis, U+3002 and other scripts' stops) with the
///   quotes and brackets that close after it, unless the word before says otherwise (titles,
///   references, other abbreviations, initials, list numbers) or a quotation or bracket is open;
/// - a paragraph without a final stop ends, that is, its blank line begins;
/// - a line ends that is not one of wrapped prose (indented, short, or ending in `;`, `{`, `}`)
///   and the open sentence has at least 96 bytes: code, verse, tables;
/// - a semicolon stands and the open sentence has at least 400 bytes. From 480 bytes on, stops
///   inside quotations and brackets count too.
/// No boundary follows another with only spaces, stops and closing marks between them. There is
/// no lower or upper limit on the distance of two boundaries: that is the chunk table's.
///
/// On an indented line a full stop counts at the line's end only, since indented text is mostly
/// code. "3." of "3.14" cannot be told from the end of "It was 3." and is taken for an end, except
/// where a number begins a sentence.
///
/// The state is one trivially copyable value without pointers, so a rollback is an assignment of
/// an earlier copy. Equal tokens give equal states, whatever copies were made. How a text is cut
/// into tokens matters only in that a decision is made at the end of each token.
class SentenceBoundaryStream {
 public:
  /// Takes the next token.
  ///
  /// \param token_bytes  the token's bytes; may be empty, start or end inside a UTF-8 sequence,
  ///                     and hold any bytes
  /// \return whether a chunk should end with this token
  ///
  /// Cost: linear in the token's bytes; no allocation; cannot fail.
  bool on_token(std::string_view token_bytes);

  bool operator==(const SentenceBoundaryStream&) const = default;

 private:
  using Char = detail::SentenceChar;

  /// From here on stops inside quotations and brackets count.
  static constexpr std::uint32_t kLongQuotationBytes = 480;
  /// From here on semicolons count.
  static constexpr std::uint32_t kLongClauseBytes = 400;

  template <typename Count>
  static void add_saturating(Count& count, std::size_t amount) {
    constexpr Count kMax = std::numeric_limits<Count>::max();
    count =
        amount > static_cast<std::size_t>(kMax - count) ? kMax : static_cast<Count>(count + amount);
  }

  std::size_t take_partial(std::string_view bytes);
  void take(Char kind, char byte);
  void take_word_char(Char kind, char byte);
  void take_full_stop();
  void take_newline();
  void take_quote(bool opens);
  void take_bracket(bool opens);

  void settle_before_content(Char kind);
  void end_unit();
  void propose_end(Char stop) {
    stop_ = stop;
    is_pending_ = has_content_;
  }
  bool is_protected() const {
    return (in_quote_ || bracket_depth_ > 0) && unit_bytes_ < kLongQuotationBytes;
  }
  bool is_after_stop() const { return detail::is_sentence_stop(previous_); }
  bool is_prose_line() const {
    return line_bytes_ >= detail::kMinProseLineBytes && !line_is_indented_ &&
           line_last_ != Char::kBrace && line_last_ != Char::kClause;
  }
  bool stop_ends_sentence() const;

  // The word that is being read, as far as it matters at a stop; see StopWord.
  std::uint64_t word_ = 0;
  std::uint32_t word_bytes_ = 0;
  std::uint32_t unit_bytes_ = 0;  // since the last boundary
  std::uint32_t line_bytes_ = 0;
  bool word_starts_upper_ = false;
  bool word_is_number_ = false;
  bool word_has_stop_ = false;
  bool word_starts_unit_ = false;

  bool has_content_ = false;        // anything but spaces and marks since the last boundary
  bool is_pending_ = false;         // a sentence ended, nothing but closers and spaces since
  bool is_pending_spaced_ = false;  // ... and a space was among them
  bool is_reported_ = false;        // the current token holds a boundary
  bool in_quote_ = false;
  bool bracket_starts_unit_ = false;
  bool line_is_indented_ = false;
  std::uint8_t bracket_depth_ = 0;
  std::uint8_t num_newlines_ = 0;  // of the white space being read
  Char previous_ = Char::kNewline;
  Char line_last_ = Char::kNewline;  // last character of the line that is no space
  Char stop_ = Char::kOther;         // what ended the sentence that is pending

  std::array<char, 4> partial_{};  // the start of a UTF-8 sequence that is not complete
  std::uint8_t num_partial_ = 0;
};

static_assert(std::is_trivially_copyable_v<SentenceBoundaryStream>);
static_assert(sizeof(SentenceBoundaryStream) <= 128);

inline bool SentenceBoundaryStream::on_token(std::string_view token_bytes) {
  is_reported_ = false;
  add_saturating(unit_bytes_, token_bytes.size());
  std::size_t pos = num_partial_ > 0 ? take_partial(token_bytes) : 0;
  while (pos < token_bytes.size()) {
    const auto byte = static_cast<unsigned char>(token_bytes[pos]);
    if (byte < 0x80) {
      take(detail::kAsciiSentenceChars[byte], token_bytes[pos]);
      ++pos;
      continue;
    }
    const Utf8Step step = decode_utf8_step(token_bytes, pos);
    if (step.incomplete) {
      num_partial_ = step.num_bytes;
      std::copy_n(token_bytes.data() + pos, step.num_bytes, partial_.begin());
      break;
    }
    take(detail::wide_sentence_char(step.code_point), '\0');
    pos += step.num_bytes;
  }
  if (is_pending_) {
    is_reported_ = true;
    end_unit();
  }
  return is_reported_;
}

/// Completes the sequence begun in earlier tokens; returns how many bytes of this one it took.
inline std::size_t SentenceBoundaryStream::take_partial(std::string_view bytes) {
  std::size_t pos = 0;
  while (num_partial_ > 0 && pos < bytes.size()) {
    partial_[num_partial_] = bytes[pos];
    const std::string_view sequence(partial_.data(), std::size_t{num_partial_} + 1);
    const Utf8Step step = decode_utf8_step(sequence, 0);
    if (step.incomplete) {
      ++num_partial_;
      ++pos;
      continue;
    }
    // An ill-formed sequence ends before the byte that broke it.
    if (step.valid) ++pos;
    num_partial_ = 0;
    take(detail::wide_sentence_char(step.code_point), '\0');
  }
  if (num_partial_ == 0) partial_ = {};
  return pos;
}

inline void SentenceBoundaryStream::take(Char kind, char byte) {
  switch (kind) {
    case Char::kLower:
    case Char::kUpper:
    case Char::kUncased:
    case Char::kDigit: take_word_char(kind, byte); return;
    case Char::kSpace:
      if (previous_ == Char::kNewline) line_is_indented_ = true;
      is_pending_spaced_ = is_pending_;
      add_saturating(line_bytes_, 1);
      word_bytes_ = 0;
      // A line end stays the previous character through the indentation that follows it.
      if (previous_ != Char::kNewline) previous_ = kind;
      return;
    case Char::kNewline: take_newline(); return;
    case Char::kFullStop: take_full_stop(); break;
    case Char::kStrongStop:
    case Char::kEllipsis:
    case Char::kFinalStop:
      if (!is_protected()) propose_end(kind);
      break;
    case Char::kQuote:
      take_quote(!in_quote_ && !detail::is_sentence_letter(previous_) && !is_after_stop());
      break;
    case Char::kOpenQuote: take_quote(true); break;
    case Char::kCloseQuote: take_quote(false); break;
    case Char::kOpenBracket: take_bracket(true); break;
    case Char::kCloseBracket: take_bracket(false); break;
    case Char::kEmphasis:
      // "_Fig._" and "**Note.**": a label as often as a sentence.
      if (previous_ == Char::kFullStop) is_pending_ = false;
      break;
    case Char::kApostrophe:
    case Char::kDash: break;
    case Char::kClause:
      settle_before_content(kind);
      if (byte == ';' && unit_bytes_ >= kLongClauseBytes) propose_end(kind);
      break;
    case Char::kBrace:
    case Char::kOther:
      settle_before_content(kind);
      has_content_ = has_content_ || kind == Char::kOther;
      break;
  }
  if (kind != Char::kFullStop) word_bytes_ = 0;
  add_saturating(line_bytes_, 1);
  num_newlines_ = 0;
  previous_ = line_last_ = kind;
}

inline void SentenceBoundaryStream::take_word_char(Char kind, char byte) {
  settle_before_content(kind);
  if (word_bytes_ == 0) {
    word_ = 0;
    word_starts_upper_ = kind == Char::kUpper;
    word_is_number_ = true;
    word_has_stop_ = false;
    word_starts_unit_ = !has_content_;
  }
  // A character outside ASCII is stored as 0, which no listed word holds.
  if (word_bytes_ < detail::kPackedWordBytes) {
    const auto lower = static_cast<unsigned char>(kind == Char::kUpper ? byte | 0x20 : byte);
    word_ |= std::uint64_t{lower} << (8 * word_bytes_);
  }
  word_is_number_ = word_is_number_ && kind == Char::kDigit;
  add_saturating(word_bytes_, 1);
  add_saturating(line_bytes_, 1);
  has_content_ = true;
  num_newlines_ = 0;
  previous_ = line_last_ = kind;
}

inline bool SentenceBoundaryStream::stop_ends_sentence() const {
  if (word_bytes_ == 0) return true;
  if (word_is_number_) return !word_starts_unit_;
  // "e." begins "e.g." far more often than it ends a sentence.
  if (word_bytes_ == 1 && !word_starts_upper_ && word_ != 0) return false;
  const bool is_short = word_bytes_ <= detail::kPackedWordBytes;
  const detail::StopWord word{is_short ? word_ : 0, word_bytes_, word_starts_upper_,
                              word_is_number_, word_has_stop_};
  switch (detail::stop_rule(word)) {
    case detail::StopRule::kEnds: return true;
    // "no." is a word more often than a reference, unless it is "No."
    case detail::StopRule::kUnlessNumber:
      return word_ == detail::pack_word("no") && !word_starts_upper_;
    case detail::StopRule::kNever:
    case detail::StopRule::kBeforeCapital:
    case detail::StopRule::kBeforeStarter:
    case detail::StopRule::kInitial: return false;
  }
  return true;
}

inline void SentenceBoundaryStream::take_full_stop() {
  const Char stop = previous_ == Char::kFullStop ? Char::kEllipsis : Char::kFullStop;
  // ". . ." is an ellipsis inside a sentence; indented text is mostly code, where a stop joins
  // names ("object.method") more often than it ends a sentence before the line's end.
  const bool is_spaced = detail::is_sentence_space(previous_);
  const bool ends =
      stop == Char::kEllipsis || (!is_spaced && !line_is_indented_ && stop_ends_sentence());
  if (ends && !is_protected()) {
    propose_end(stop);
  } else {
    is_pending_ = false;
  }
  // The stop may turn out to be inside a word ("u.s").
  if (word_bytes_ > 0) {
    if (word_bytes_ < detail::kPackedWordBytes) {
      word_ |= std::uint64_t{'.'} << (8 * word_bytes_);
    }
    word_has_stop_ = true;
    word_is_number_ = false;
    add_saturating(word_bytes_, 1);
  }
}

inline void SentenceBoundaryStream::take_newline() {
  if (num_newlines_ < 2) ++num_newlines_;
  if (num_newlines_ == 2) {
    if (has_content_) {
      is_reported_ = true;
      end_unit();
    }
    in_quote_ = false;
    bracket_depth_ = 0;
  } else if (!is_protected() && line_is_indented_ && previous_ == Char::kFullStop) {
    propose_end(Char::kFullStop);
  } else if (unit_bytes_ >= detail::kMinLineUnitBytes && !is_prose_line()) {
    propose_end(Char::kNewline);
  }
  is_pending_spaced_ = is_pending_;
  word_bytes_ = 0;
  line_bytes_ = 0;
  line_is_indented_ = false;
  previous_ = Char::kNewline;
}

inline void SentenceBoundaryStream::take_quote(bool opens) {
  if (opens) {
    settle_before_content(Char::kOpenQuote);
    in_quote_ = true;
    return;
  }
  in_quote_ = false;
  if (is_after_stop() && !is_protected()) propose_end(previous_);
}

inline void SentenceBoundaryStream::take_bracket(bool opens) {
  if (opens) {
    settle_before_content(Char::kOpenBracket);
    if (bracket_depth_ == 0) bracket_starts_unit_ = !has_content_;
    add_saturating(bracket_depth_, 1);
    return;
  }
  if (bracket_depth_ > 0) --bracket_depth_;
  if (bracket_depth_ == 0 && bracket_starts_unit_ && is_after_stop() && !is_protected()) {
    propose_end(previous_);
  }
}

/// A pending end is certain once a new sentence begins after a space, and void if the text goes
/// on without one ("3.14", "a.b") or, after an ellipsis, with a small letter.
inline void SentenceBoundaryStream::settle_before_content(Char kind) {
  if (!is_pending_) return;
  const bool goes_on = !is_pending_spaced_ || (stop_ == Char::kEllipsis && kind == Char::kLower);
  if (goes_on && stop_ != Char::kFinalStop) {
    is_pending_ = is_pending_spaced_ = false;
    return;
  }
  is_reported_ = true;
  end_unit();
}

inline void SentenceBoundaryStream::end_unit() {
  has_content_ = is_pending_ = is_pending_spaced_ = false;
  unit_bytes_ = 0;
}

}  // namespace chunkllm
