// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chunkllm/text/sentence_abbreviations.hpp"
#include "chunkllm/text/sentence_characters.hpp"
#include "chunkllm/text/utf8.hpp"

/// Looking around in a paragraph, for the sentence rules. Not API.
namespace chunkllm::detail {

/// One character of a text.
struct SentenceTextChar {
  SentenceChar kind = SentenceChar::kSpace;  // also what stands past the end
  std::size_t num_bytes = 0;
};

/// "3." or "b)" that numbers a list: its running number and the offset past it.
struct ListMarker {
  unsigned number = 0;  // 0: none
  bool is_sentence_letter = false;
  bool has_bullet = false;
  std::size_t end = 0;
};

/// A paragraph of a document, with offsets into the document; nothing outside it is looked at.
class SentenceText {
 public:
  SentenceText() = default;

  /// \param document  any bytes
  /// \param begin     first byte of the paragraph
  /// \param end       past its last byte; trailing white space is taken off
  SentenceText(std::string_view document, std::size_t begin, std::size_t end)
      : text_(document.substr(0, end)), begin_(begin) {
    while (end > begin && is_sentence_space(kind_before(end))) {
      end = begin_of_last(end);
      text_ = document.substr(0, end);
    }
  }

  std::size_t end() const { return text_.size(); }

  /// At most `num_bytes` bytes from `pos` on.
  std::string_view bytes(std::size_t pos, std::size_t num_bytes) const {
    return text_.substr(pos, num_bytes);
  }

  bool starts_with(std::size_t pos, std::string_view prefix) const {
    return text_.substr(pos).starts_with(prefix);
  }

  /// Offset of the first `bytes` at or after `pos`; npos if there is none.
  std::size_t find(std::string_view bytes, std::size_t pos) const { return text_.find(bytes, pos); }

  SentenceTextChar char_at(std::size_t pos) const {
    if (pos >= text_.size()) return {};
    const auto byte = static_cast<unsigned char>(text_[pos]);
    if (byte < 0x80) return {kAsciiSentenceChars[byte], 1};
    const Utf8Step step = decode_utf8_step(text_, pos);
    return {wide_sentence_char(step.code_point), step.num_bytes};
  }

  /// Offset of the character that ends at `pos`.
  std::size_t begin_of_last(std::size_t pos) const {
    std::size_t begin = pos - 1;
    while (begin > begin_ && pos - begin < 4 &&
           (static_cast<unsigned char>(text_[begin]) & 0xC0U) == 0x80U) {
      --begin;
    }
    return begin + char_at(begin).num_bytes == pos ? begin : pos - 1;
  }

  /// Kind of the character that ends at `pos`; a line end in front of the paragraph.
  SentenceChar kind_before(std::size_t pos) const {
    return pos > begin_ ? char_at(begin_of_last(pos)).kind : SentenceChar::kNewline;
  }

  std::size_t skip_space(std::size_t pos) const {
    for (SentenceTextChar c = char_at(pos); pos < text_.size() && is_sentence_space(c.kind);
         c = char_at(pos)) {
      pos += c.num_bytes;
    }
    return pos;
  }

  std::size_t skip_closers(std::size_t pos) const {
    SentenceTextChar c = char_at(pos);
    while (pos < text_.size() && is_sentence_closer(c.kind)) {
      pos += c.num_bytes;
      c = char_at(pos);
    }
    return pos;
  }

  /// After "stop.[12]" the note belongs to the sentence it notes.
  std::size_t skip_note(std::size_t pos) const {
    if (!starts_with(pos, "[")) return pos;
    const std::size_t close = text_.substr(0, pos + 6).find(']', pos);
    return close == std::string_view::npos ? pos : close + 1;
  }

  std::size_t skip_dash(std::size_t pos) const {
    for (const std::string_view dash : {"--", "\xE2\x80\x94"}) {
      if (starts_with(pos, dash)) return pos + dash.size();
    }
    return pos;
  }

  /// Skips one bullet and the spaces after it.
  std::size_t skip_bullet(std::size_t pos) const {
    constexpr std::array<std::string_view, 5> kBullets = {
        "\xE2\x80\xA2", "\xE2\x81\x83", "\xE2\x96\xAA", "\xE2\x97\x8F", "\xC2\xB7"};
    for (const std::string_view bullet : kBullets) {
      if (starts_with(pos, bullet)) return skip_space(pos + bullet.size());
    }
    return pos;
  }

  /// The numbering at `pos`: one or two digits or one small letter, then ".", ")" or ".)" and a
  /// space.
  ListMarker list_marker_at(std::size_t pos) const {
    ListMarker marker;
    const std::size_t bullet_end = skip_bullet(pos);
    marker.has_bullet = bullet_end != pos;
    pos = bullet_end;
    std::size_t end = pos;
    unsigned number = 0;
    while (end < text_.size() && end < pos + 2 && char_at(end).kind == SentenceChar::kDigit) {
      number = number * 10 + static_cast<unsigned>(text_[end++] - '0');
    }
    if (end == pos && end < text_.size() && text_[end] >= 'a' && text_[end] <= 'z') {
      number = static_cast<unsigned>(text_[end++] - 'a') + 1;
      marker.is_sentence_letter = true;
    }
    const std::size_t mark = end;
    if (end < text_.size() && text_[end] == '.') ++end;
    if (end < text_.size() && text_[end] == ')') ++end;
    if (number == 0 || end == mark || end >= text_.size() || !is_ascii_space(text_[end])) return {};
    marker.number = number;
    marker.end = end;
    return marker;
  }

  /// ". . ." at `pos`: the number of stops with one space between, and the offset past the last.
  std::size_t count_spaced_stops(std::size_t pos, std::size_t& end) const {
    std::size_t num_stops = 1;
    end = pos + 1;
    while (text_.substr(end, 2) == " ." && !text_.substr(end + 2, 1).starts_with('.')) {
      end += 2;
      ++num_stops;
    }
    return num_stops;
  }

  /// The word that ends at `pos`.
  StopWord word_before(std::size_t pos) const {
    constexpr std::size_t kMaxWordBytes = 24;
    StopWord word;
    std::size_t begin = pos;
    word.is_number = true;
    while (begin > begin_ && pos - begin < kMaxWordBytes) {
      const auto byte = static_cast<unsigned char>(text_[begin - 1]);
      if (byte >= 0x80) break;
      const SentenceChar kind = kAsciiSentenceChars[byte];
      if (!is_sentence_letter(kind) && kind != SentenceChar::kDigit && byte != '.') break;
      word.is_number = word.is_number && kind == SentenceChar::kDigit;
      --begin;
    }
    if (begin > begin_ && text_.substr(0, begin).ends_with("\xC2\xB0")) {
      // "No." may also be written with a degree sign.
      begin -= 2;
      if (begin > begin_ && (text_[begin - 1] == 'N' || text_[begin - 1] == 'n')) {
        word.packed = pack_word("no");
        word.is_number = false;
        word.num_bytes = 2;
        return word;
      }
      return {};
    }
    if (is_sentence_letter(kind_before(begin))) return {};  // part of a word outside ASCII
    while (begin < pos && text_[begin] == '.') ++begin;
    word.num_bytes = static_cast<std::uint32_t>(pos - begin);
    if (begin == pos) return {};
    word.starts_upper = text_[begin] >= 'A' && text_[begin] <= 'Z';
    word.packed = packed_lower(begin, pos);
    word.has_stop = text_.substr(begin, pos - begin).find('.') != std::string_view::npos;
    return word;
  }

  /// Past the ASCII letters at `pos`.
  std::size_t letters_end(std::size_t pos) const {
    while (pos < text_.size() &&
           ((text_[pos] >= 'a' && text_[pos] <= 'z') || (text_[pos] >= 'A' && text_[pos] <= 'Z'))) {
      ++pos;
    }
    return pos;
  }

  /// `pack_word` of the bytes, capitals made small.
  std::uint64_t packed_lower(std::size_t begin, std::size_t end) const {
    if (end - begin > kPackedWordBytes) return 0;
    std::uint64_t packed = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const auto byte = static_cast<unsigned char>(text_[i]);
      const bool is_upper = byte >= 'A' && byte <= 'Z';
      packed |= std::uint64_t{is_upper ? byte | 0x20U : byte} << (8 * (i - begin));
    }
    return packed;
  }

  /// Whether a word stands at `pos` that usually starts a sentence.
  bool is_starter_at(std::size_t pos) const {
    return char_at(pos).kind == SentenceChar::kUpper &&
           contains_word(kSentenceStarters, packed_lower(pos, letters_end(pos)));
  }

  /// Whether a number stands at `pos`, Arabic or Roman, perhaps in brackets.
  bool is_number_at(std::size_t pos) const {
    const std::size_t begin = starts_with(pos, "(") ? pos + 1 : pos;
    if (char_at(begin).kind == SentenceChar::kDigit) return true;
    const std::size_t end = letters_end(begin);
    const std::string_view word = text_.substr(begin, end - begin);
    return !word.empty() && word.find_first_not_of("IVXLCDMivxlcdm") == std::string_view::npos;
  }

  bool starts_like_sentence(std::size_t pos) const {
    const SentenceChar kind = char_at(pos).kind;
    return kind == SentenceChar::kUpper || kind == SentenceChar::kUncased || pos == text_.size();
  }

  /// Whether the apostrophe at `pos` may close a quotation: not in front of a letter or digit,
  /// nor after a space.
  bool closes_quotation(std::size_t pos) const {
    const SentenceChar after = char_at(pos + char_at(pos).num_bytes).kind;
    return !is_sentence_letter(after) && after != SentenceChar::kDigit &&
           !is_sentence_space(kind_before(pos));
  }

 private:
  std::string_view text_;  // the document up to the end of the paragraph
  std::size_t begin_ = 0;
};

}  // namespace chunkllm::detail
