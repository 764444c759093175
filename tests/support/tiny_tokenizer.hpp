// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/byte_alphabet.hpp"

namespace chunkllm::testing {

/// Raw bytes as the byte alphabet writes them.
inline std::string in_byte_alphabet(std::string_view raw) {
  std::string text;
  for (const char c : raw) append_utf8(detail::kByteAlphabet[static_cast<unsigned char>(c)], text);
  return text;
}

/// A vocabulary of the 256 bytes, id = byte, and one token more a merge of two raw byte strings,
/// from id 256 on; GPT-2's splits.
inline BpeTokenizerSpec tiny_spec(
    const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  BpeTokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(in_byte_alphabet(std::string(1, static_cast<char>(byte))));
  }
  for (const auto& [left, right] : merges) {
    spec.merges.emplace_back(in_byte_alphabet(left), in_byte_alphabet(right));
    spec.tokens.push_back(in_byte_alphabet(left + right));
  }
  spec.split_rules = {SplitRule::kGpt2};
  return spec;
}

}  // namespace chunkllm::testing
