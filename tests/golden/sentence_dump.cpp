// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// Prints the sentence boundaries of the text on standard input, one a line: byte offsets by the
// rules with look-ahead, or, with `--token-lengths FILE` (byte lengths of the text's tokens), the
// indices of the tokens at which the causal rules end a chunk.
#include <cstddef>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>

#include "chunkllm/text/sentence_boundary_stream.hpp"
#include "chunkllm/text/sentence_rules.hpp"

int main(int argc, char** argv) {
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  if (argc == 1) {
    for (const std::size_t end : chunkllm::sentence_ends(text)) std::cout << end << '\n';
    return 0;
  }
  if (argc != 3 || std::string_view(argv[1]) != "--token-lengths") {
    std::cerr << "usage: sentence_dump [--token-lengths FILE] < text\n";
    return 2;
  }
  std::ifstream lengths(argv[2]);
  chunkllm::SentenceBoundaryStream stream;
  std::size_t begin = 0;
  std::size_t length = 0;
  for (std::size_t token = 0; lengths >> length; ++token, begin += length) {
    if (begin > text.size() || length > text.size() - begin) {
      std::cerr << "sentence_dump: token " << token << " passes the end of the text\n";
      return 1;
    }
    if (stream.on_token(std::string_view(text).substr(begin, length))) std::cout << token << '\n';
  }
  return 0;
}
