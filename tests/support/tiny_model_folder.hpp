// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "chunkllm/io/json.hpp"
#include "support/temp_folder.hpp"
#include "support/test_paths.hpp"

namespace chunkllm::testing {

/// Writes a tokenizer.json without merges: `<unk>`, `<s>`, `</s>`, then single bytes from the
/// space and the newline on, '!' and so forth; 99 tokens are all printable ASCII.
inline void write_byte_tokenizer(const TempFolder& folder, int num_tokens) {
  Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {"\u0120", 3}, {"\u010A", 4}};
  for (int id = 5; id < num_tokens; ++id)
    vocab[std::string(1, static_cast<char>('!' + id - 5))] = id;
  Json added = Json::array();
  for (const char* content : {"<unk>", "<s>", "</s>"}) {
    added.push_back({{"id", vocab[content]},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  folder.write("tokenizer.json", tokenizer.dump());
}

/// A folder with a tiny random model of tests/golden/data and a tokenizer for its 99 ids.
class TinyModelFolder : public TempFolder {
 public:
  explicit TinyModelFolder(const std::string& name = "llama") {
    for (const char* part : {"config.json", "model.safetensors"}) {
      std::filesystem::copy_file(golden_dir() + "/" + name + "/" + part, file(part));
    }
    write_byte_tokenizer(*this, 99);
  }
};

}  // namespace chunkllm::testing
