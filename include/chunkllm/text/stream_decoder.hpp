// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// Decodes token by token: an incomplete character at the end is held back until it is complete.
///
/// The outputs of `push` and the last one of `finish`, joined, equal `BpeTokenizer::decode` of all
/// ids; each output alone is valid UTF-8.
class StreamDecoder {
 public:
  /// \param tokenizer  must outlive the decoder
  explicit StreamDecoder(const BpeTokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  /// The text that is certain after one more token; may be empty.
  ///
  /// Errors: kOutOfRange where the id has no token; the decoder is then unchanged
  Result<std::string> push(std::int32_t id) {
    CHUNKLLM_RETURN_IF_ERROR(tokenizer_->check_id(id));
    pending_.append(tokenizer_->token_bytes(id));
    const std::size_t held = incomplete_tail(pending_);
    const std::size_t ready = pending_.size() - held;
    std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, ready));
    pending_.erase(0, ready);
    return text;
  }

  /// What was held back, as U+FFFD; the decoder then starts anew.
  std::string finish() {
    std::string text = replace_invalid_utf8(pending_);
    pending_.clear();
    return text;
  }

 private:
  /// Bytes at the end that begin a well-formed sequence without completing it, 0 to 3.
  static std::size_t incomplete_tail(std::string_view bytes) {
    for (std::size_t length = 1; length <= 3 && length <= bytes.size(); ++length) {
      const std::size_t start = bytes.size() - length;
      const Utf8Step step = decode_utf8_step(bytes, start);
      if (step.incomplete && step.num_bytes == length) return length;
    }
    return 0;
  }

  const BpeTokenizer* tokenizer_;
  std::string pending_;  // fewer than four bytes between calls
};

}  // namespace chunkllm
