// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Ids and decoded texts of the reference tokenizers, written by scripts/make_tokenizer_goldens.py.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "chunkllm/io/gguf.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/stream_decoder.hpp"
#include "chunkllm/text/tokenizer_gguf.hpp"
#include "chunkllm/text/tokenizer_json.hpp"
#include "support/test_paths.hpp"

namespace chunkllm {
namespace {

std::vector<Json> golden_rows() {
  std::vector<Json> rows;
  std::ifstream file(testing::golden_dir() + "/tokenizer_golden.jsonl");
  for (std::string line; std::getline(file, line);) rows.push_back(Json::parse(line));
  return rows;
}

void expect_golden(const BpeTokenizer& tokenizer, const std::string& name) {
  EncodeScratch scratch;
  std::size_t num_texts = 0;
  std::size_t num_id_lists = 0;
  for (const Json& row : golden_rows()) {
    if (!row.contains(name)) continue;
    const auto ids = row.at(name).get<std::vector<std::int32_t>>();
    if (row.contains("text")) {
      const auto text = row.at("text").get<std::string>();
      const auto actual = tokenizer.encode(text, /*add_special_tokens=*/true, scratch);
      ASSERT_TRUE(actual.ok()) << actual.status().message();
      EXPECT_EQ(actual.value(), ids) << row.at("text").dump(-1, ' ', /*ensure_ascii=*/true);
      EXPECT_EQ(tokenizer.encode(text, true).value(), ids) << "with an empty cache";
      ++num_texts;
    } else {
      const auto expected = row.at("decoded").get<std::string>();
      const auto actual = tokenizer.decode(ids);
      ASSERT_TRUE(actual.ok()) << actual.status().message();
      EXPECT_EQ(actual.value(), expected) << row.dump(-1, ' ', /*ensure_ascii=*/true);
      StreamDecoder stream(tokenizer);
      std::string streamed;
      for (const std::int32_t id : ids) streamed += stream.push(id).value();
      EXPECT_EQ(streamed + stream.finish(), expected);
      ++num_id_lists;
    }
  }
  EXPECT_EQ(num_texts, 1500u);
  EXPECT_EQ(num_id_lists, 50u);
}

void expect_golden_of_json(const std::string& name) {
  const std::string path = testing::golden_dir() + "/tokenizer_" + name + ".json";
  const auto text = read_text_file(path, 1 << 24);
  ASSERT_TRUE(text.ok()) << text.status().message();
  const auto tokenizer = load_tokenizer_json(text.value(), "", path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  expect_golden(tokenizer.value(), name);
}

TEST(TokenizerGolden, Llama3Style) {
  expect_golden_of_json("llama3_style");
}
TEST(TokenizerGolden, Qwen2Style) {
  expect_golden_of_json("qwen2_style");
}

TEST(TokenizerGolden, SmolLm2FromGguf) {
  ASSERT_FALSE(testing::model_path().empty()) << "no model file: set CHUNKLLM_TEST_MODEL";
  const auto file = GgufFile::open(testing::model_path());
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto tokenizer = load_tokenizer_gguf(file.value());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  expect_golden(tokenizer.value(), "smollm2");
}

}  // namespace
}  // namespace chunkllm
