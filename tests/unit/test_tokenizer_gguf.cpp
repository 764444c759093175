// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/tokenizer_gguf.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "support/gguf_writer.hpp"
#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

using Ids = std::vector<std::int32_t>;

/// The fields of a small vocabulary: 256 bytes, the merge "a b", <s> (257), </s> (258), "12" (259).
struct Fields {
  std::string model = "gpt2";
  std::string pre = "smollm";
  std::vector<std::string> tokens = testing::tiny_spec({{"a", "b"}}).tokens;
  std::vector<std::int32_t> types;
  std::vector<std::string> merges = {"a b"};
  std::int32_t bos = 257;

  Fields() {
    for (const char* token : {"<s>", "</s>", "12"}) tokens.emplace_back(token);
    types.assign(tokens.size(), 1);
    types[257] = types[258] = 3;
    types[259] = 4;
  }

  [[nodiscard]] testing::GgufWriter writer() const {
    testing::GgufWriter result;
    result.add_string("tokenizer.ggml.model", model);
    result.add_string("tokenizer.ggml.pre", pre);
    result.add_string_array("tokenizer.ggml.tokens", tokens);
    result.add_array("tokenizer.ggml.token_type", types);
    result.add_string_array("tokenizer.ggml.merges", merges);
    result.add("tokenizer.ggml.bos_token_id", bos);
    result.add("tokenizer.ggml.eos_token_id", std::uint32_t{258});
    return result;
  }
};

Result<BpeTokenizer> load(const testing::GgufWriter& writer) {
  const testing::Bytes bytes = writer.finish();
  const auto file = GgufFile::parse(bytes, "model.gguf");
  if (!file.ok()) return file.status();
  return load_tokenizer_gguf(file.value());
}

Ids encode(const testing::GgufWriter& writer, std::string_view text) {
  const auto tokenizer = load(writer);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.value().encode(text, /*add_special_tokens=*/true).value();
}

TEST(TokenizerGguf, SmolLm) {
  const auto writer = Fields().writer();
  EXPECT_EQ(encode(writer, "ab<s>12 3"), (Ids{256, 257, 259, ' ', '3'}));
  const auto tokenizer = load(writer);
  EXPECT_EQ(tokenizer.value().bos_id(), 257);
  EXPECT_EQ(tokenizer.value().eos_ids()[0], 258);
  EXPECT_TRUE(tokenizer.value().is_special(257));
  EXPECT_FALSE(tokenizer.value().is_special(259));
}

TEST(TokenizerGguf, Qwen2NormalizesAndLlama3AddsItsBeginToken) {
  Fields fields;
  fields.pre = "qwen2";
  EXPECT_EQ(encode(fields.writer(), "e\xCC\x81"), (Ids{0xC3, 0xA9}));
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3"}) {
    fields.pre = pre;
    EXPECT_EQ(encode(fields.writer(), "e\xCC\x81"), (Ids{257, 'e', 0xCC, 0x81}));
  }
  auto writer = fields.writer();
  writer.add("tokenizer.ggml.add_bos_token", false);
  writer.add("tokenizer.ggml.add_eos_token", true);
  EXPECT_EQ(encode(writer, "ab"), (Ids{256, 258}));
}

void expect_refusal(const Fields& fields, StatusCode code, std::string_view part) {
  const auto tokenizer = load(fields.writer());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status().message();
  EXPECT_NE(tokenizer.status().message().find(part), std::string::npos)
      << tokenizer.status().message();
  EXPECT_EQ(tokenizer.status().message().find("model.gguf"), 0u);
}

TEST(TokenizerGguf, Refusals) {
  Fields fields;
  fields.model = "llama";
  expect_refusal(fields, StatusCode::kUnsupported, "SentencePiece");
  fields = Fields();
  fields.pre = "tekken";
  expect_refusal(fields, StatusCode::kUnsupported, "smollm");
  fields = Fields();
  fields.types.pop_back();
  expect_refusal(fields, StatusCode::kInvalidFile, "token_type");
  fields = Fields();
  fields.types[5] = 9;
  expect_refusal(fields, StatusCode::kInvalidFile, "token_type");
  fields = Fields();
  fields.merges = {"ab"};
  expect_refusal(fields, StatusCode::kInvalidFile, "merges");
  fields.merges = {""};
  expect_refusal(fields, StatusCode::kInvalidFile, "merges");
  fields.merges = {"a c"};
  expect_refusal(fields, StatusCode::kInvalidFile, "merge 0");
  fields = Fields();
  fields.bos = 260;
  expect_refusal(fields, StatusCode::kInvalidFile, "bos_token_id");
  fields.bos = -1;
  expect_refusal(fields, StatusCode::kInvalidFile, "bos_token_id");
  fields = Fields();
  fields.tokens[3] = fields.tokens[4];
  expect_refusal(fields, StatusCode::kInvalidFile, "one text");
}

TEST(TokenizerGguf, MissingFields) {
  testing::GgufWriter writer;
  EXPECT_EQ(load(writer).status().code(), StatusCode::kInvalidFile);
  writer.add_string("tokenizer.ggml.model", "gpt2");
  EXPECT_EQ(load(writer).status().code(), StatusCode::kInvalidFile);
  writer.add_string("tokenizer.ggml.pre", "gpt-2");
  EXPECT_EQ(load(writer).status().code(), StatusCode::kInvalidFile);
}

}  // namespace
}  // namespace chunkllm
