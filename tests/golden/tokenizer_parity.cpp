// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// The library's side of scripts/compare_tokenizers.py:
//   tokenizer_parity MODEL.gguf|tokenizer.json < requests.jsonl > answers.jsonl
// A request {"text": ...} is answered by {"ids": [...]}, a request {"ids": [...]} by {"text": ...}.

#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/io/gguf.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/tokenizer_gguf.hpp"
#include "chunkllm/text/tokenizer_json.hpp"

namespace {

chunkllm::Result<chunkllm::BpeTokenizer> load(const std::string& path) {
  if (path.ends_with(".gguf")) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto file, chunkllm::GgufFile::open(path));
    return chunkllm::load_tokenizer_gguf(file);
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const auto text, chunkllm::read_text_file(path, 1 << 28));
  return chunkllm::load_tokenizer_json(text, "", path);
}

chunkllm::Result<chunkllm::Json> answer(const chunkllm::BpeTokenizer& tokenizer,
                                        const chunkllm::Json& request,
                                        chunkllm::EncodeScratch& scratch) {
  if (const chunkllm::Json* text = chunkllm::find_json(request, "text")) {
    CHUNKLLM_ASSIGN_OR_RETURN(const auto ids,
                              tokenizer.encode(text->get<std::string>(),
                                               /*add_special_tokens=*/true, scratch));
    return chunkllm::Json{{"ids", ids}};
  }
  const auto ids = request.at("ids").get<std::vector<std::int32_t>>();
  CHUNKLLM_ASSIGN_OR_RETURN(const auto text, tokenizer.decode(ids));
  return chunkllm::Json{{"text", text}};
}

int run(const std::string& path) {
  const auto tokenizer = load(path);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << '\n';
    return 1;
  }
  chunkllm::EncodeScratch scratch;
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto reply = answer(tokenizer.value(), chunkllm::Json::parse(line), scratch);
    if (!reply.ok()) {
      std::cerr << reply.status().message() << '\n';
      return 1;
    }
    std::cout << reply.value().dump() << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenizer_parity MODEL.gguf|tokenizer.json < requests.jsonl\n";
    return 2;
  }
  try {
    return run(argv[1]);
  } catch (const std::exception& error) {  // of nlohmann-json, on a malformed request
    std::cerr << error.what() << '\n';
    return 2;
  }
}
