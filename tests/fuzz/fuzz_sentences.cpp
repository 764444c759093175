// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// Both sentence splitters on any bytes. The input is the text; its own bytes also say how it is
// cut into tokens. Properties: offsets ascend and stay inside; a copied stream that is taken back
// to an earlier token repeats its decisions, so that they depend on the tokens so far alone.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "chunkllm/text/sentence_boundary_stream.hpp"
#include "chunkllm/text/sentence_rules.hpp"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_ends(std::string_view text) {
  std::size_t previous = 0;
  for (const std::size_t end : chunkllm::sentence_ends(text)) {
    require(end > previous && end <= text.size());
    previous = end;
  }
}

std::vector<std::string_view> cut_into_tokens(std::string_view text) {
  std::vector<std::string_view> tokens;
  std::size_t pos = 0;
  while (pos < text.size()) {
    const std::size_t length = static_cast<unsigned char>(text[pos]) % 7;
    tokens.push_back(text.substr(pos, length));
    // A token without bytes does not advance; the next one does.
    if (length == 0) tokens.push_back(text.substr(pos, 1));
    pos += length == 0 ? 1 : length;
  }
  return tokens;
}

void check_stream(std::string_view text) {
  const std::vector<std::string_view> tokens = cut_into_tokens(text);
  std::vector<bool> decisions;
  std::vector<chunkllm::SentenceBoundaryStream> states;
  chunkllm::SentenceBoundaryStream stream;
  for (const std::string_view token : tokens) {
    states.push_back(stream);
    decisions.push_back(stream.on_token(token));
  }
  chunkllm::SentenceBoundaryStream again;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    require(again == states[i]);
    // A detour over other tokens, undone by an assignment.
    again.on_token(tokens[tokens.size() - 1 - i]);
    again = states[i];
    require(again.on_token(tokens[i]) == decisions[i]);
  }
  require(again == stream);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_ends(text);
  check_stream(text);
  return 0;
}
