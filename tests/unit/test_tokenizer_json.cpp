// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/tokenizer_json.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

using Ids = std::vector<std::int32_t>;

/// A complete document of the 256 bytes, the merge "a b" and GPT-2's splits.
Json document() {
  Json vocab = Json::object();
  const BpeTokenizerSpec spec = testing::tiny_spec({{"a", "b"}});
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) vocab[spec.tokens[id]] = id;
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", ""},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", Json::array({"a b"})}}}};
}

Result<BpeTokenizer> load(const Json& json, std::string_view config = "") {
  return load_tokenizer_json(json.dump(), config, "tokenizer.json");
}

Ids encode(const Json& json, std::string_view text, std::string_view config = "") {
  const auto tokenizer = load(json, config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.value().encode(text, /*add_special_tokens=*/true).value();
}

Json split_step(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json sequence(std::string_view list_key, std::vector<Json> steps) {
  return {{"type", "Sequence"}, {list_key, std::move(steps)}};
}

const Json kByteLevel = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};

TEST(TokenizerJson, LoadsMergesAsStringsAndPairs) {
  Json json = document();
  EXPECT_EQ(encode(json, "ab"), (Ids{256}));
  json["model"]["merges"] = Json::array({Json::array({"a", "b"})});
  EXPECT_EQ(encode(json, "ab"), (Ids{256}));
  json["model"].erase("type");
  EXPECT_EQ(encode(json, "ab"), (Ids{256}));
}

TEST(TokenizerJson, RecognisesThePatterns) {
  Json json = document();
  // "a" and "b" merge where a rule leaves them together.
  const auto pieces = [&](std::vector<Json> steps, std::string_view text) {
    json["pre_tokenizer"] = sequence("pretokenizers", std::move(steps));
    return encode(json, text);
  };
  json["model"]["vocab"]["12"] = 257;
  json["model"]["merges"].push_back("1 2");
  EXPECT_EQ(pieces({split_step(kLlama3Pattern), kByteLevel}, "12"), (Ids{257}));
  EXPECT_EQ(pieces({split_step(kQwen2Pattern), kByteLevel}, "12"), (Ids{'1', '2'}));
  EXPECT_EQ(pieces({split_step(kGpt2Pattern), kByteLevel}, "12"), (Ids{257}));
  Json removed = split_step(kQwen2Pattern);
  removed["behavior"] = "Removed";
  removed["invert"] = true;
  EXPECT_EQ(pieces({removed, kByteLevel}, "12"), (Ids{'1', '2'}));
  EXPECT_EQ(pieces({Json{{"type", "Digits"}, {"individual_digits", true}}, kByteLevel}, "12"),
            (Ids{'1', '2'}));
  EXPECT_EQ(pieces({Json{{"type", "Digits"}, {"individual_digits", false}}, kByteLevel}, "12"),
            (Ids{257}));
  // ByteLevel runs GPT-2's pattern unless told not to.
  EXPECT_EQ(pieces({Json{{"type", "ByteLevel"}, {"add_prefix_space", true}}}, "12"),
            (Ids{' ', 257}));
}

TEST(TokenizerJson, AddedTokensAndNormalizer) {
  Json json = document();
  json["normalizer"] = sequence("normalizers", {Json{{"type", "NFC"}}});
  json["added_tokens"] = {{{"id", 300}, {"content", "<x>"}, {"special", true}, {"lstrip", true}},
                          {{"id", 301}, {"content", "e\xCC\x81"}, {"normalized", true}}};
  EXPECT_EQ(encode(json, "a <x>\xC3\xA9"), (Ids{'a', 300, 301}));
  const auto tokenizer = load(json);
  EXPECT_TRUE(tokenizer.value().is_special(300));
  EXPECT_FALSE(tokenizer.value().is_special(301));
  EXPECT_EQ(tokenizer.value().vocab_size(), 302);
  EXPECT_EQ(tokenizer.value().decode(Ids{300}).value(), "<x>");
  EXPECT_EQ(tokenizer.value().decode(Ids{299}).status().code(), StatusCode::kOutOfRange);
}

Json template_processor(std::string_view before, std::string_view after) {
  Json single = Json::array();
  single.push_back({{"SpecialToken", {{"id", before}, {"type_id", 0}}}});
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  single.push_back({{"SpecialToken", {{"id", after}, {"type_id", 0}}}});
  const auto token = [](std::string_view name, std::int32_t id) {
    return Json{{"id", name}, {"ids", {id}}, {"tokens", {name}}};
  };
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"special_tokens", {{"<s>", token("<s>", 257)}, {"</s>", token("</s>", 258)}}}};
}

Json document_with_template() {
  Json json = document();
  json["added_tokens"] = {{{"id", 257}, {"content", "<s>"}, {"special", true}},
                          {{"id", 258}, {"content", "</s>"}, {"special", true}}};
  json["post_processor"] =
      sequence("processors", {Json{{"type", "ByteLevel"}}, template_processor("<s>", "</s>")});
  return json;
}

TEST(TokenizerJson, TemplatesPutTokensAroundTheText) {
  EXPECT_EQ(encode(document_with_template(), "ab"), (Ids{257, 256, 258}));
}

TEST(TokenizerJson, TheConfigOverridesTheTemplate) {
  const Json json = document_with_template();
  const std::string names = R"("bos_token": {"content": "<s>"}, "eos_token": "</s>")";
  EXPECT_EQ(encode(json, "ab", "{" + names + "}"), (Ids{257, 256, 258}));
  EXPECT_EQ(encode(json, "ab", "{" + names + R"(, "add_bos_token": true})"), (Ids{257, 256, 258}));
  EXPECT_EQ(encode(json, "ab", "{" + names + R"(, "add_bos_token": false})"), (Ids{256, 258}));
  EXPECT_EQ(encode(json, "ab", "{" + names + R"(, "add_eos_token": false})"), (Ids{257, 256}));
  Json plain = json;
  plain["post_processor"] = nullptr;
  EXPECT_EQ(encode(plain, "ab", "{" + names + R"(, "add_bos_token": true})"), (Ids{257, 256}));
  const auto tokenizer = load(json, "{" + names + "}");
  EXPECT_EQ(tokenizer.value().bos_id(), 257);
  ASSERT_EQ(tokenizer.value().eos_ids().size(), 1u);
  EXPECT_EQ(tokenizer.value().eos_ids()[0], 258);

  const auto missing = load(json, R"({"bos_token": "<none>"})");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), StatusCode::kInvalidFile);
}

struct Refusal {
  std::string name;
  StatusCode code;
  std::string message_part;
  std::function<void(Json&)> change;
};

TEST(TokenizerJson, RefusesWhatItDoesNotImplementAndWhatIsBroken) {
  constexpr auto kUnsupported = StatusCode::kUnsupported;
  constexpr auto kInvalidFile = StatusCode::kInvalidFile;
  const std::vector<Refusal> refusals = {
      {"no object", kInvalidFile, "expected an object", [](Json& j) { j = Json::array(); }},
      {"truncation", kUnsupported, "truncation",
       [](Json& j) {
         j["truncation"] = {{"a", 1}};
       }},
      {"padding", kUnsupported, "padding",
       [](Json& j) {
         j["padding"] = {{"a", 1}};
       }},
      {"no model", kInvalidFile, "model", [](Json& j) { j.erase("model"); }},
      {"Unigram", kUnsupported, "Unigram", [](Json& j) { j["model"]["type"] = "Unigram"; }},
      {"dropout", kUnsupported, "dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }},
      {"byte_fallback", kUnsupported, "byte_fallback",
       [](Json& j) { j["model"]["byte_fallback"] = true; }},
      {"prefix", kUnsupported, "continuing_subword_prefix",
       [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }},
      {"suffix", kUnsupported, "end_of_word_suffix",
       [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }},
      {"unknown token", kInvalidFile, "unk_token",
       [](Json& j) { j["model"]["unk_token"] = "<unk>"; }},
      {"vocab list", kInvalidFile, "vocab",
       [](Json& j) {
         j["model"]["vocab"] = {1, 2};
       }},
      {"negative id", kInvalidFile, "vocab", [](Json& j) { j["model"]["vocab"]["q"] = -1; }},
      {"huge id", kInvalidFile, "4194304", [](Json& j) { j["model"]["vocab"]["q"] = 4194304; }},
      {"fractional id", kInvalidFile, "vocab", [](Json& j) { j["model"]["vocab"]["q"] = 1.5; }},
      {"id twice", kInvalidFile, "no other token", [](Json& j) { j["model"]["vocab"]["qq"] = 5; }},
      {"empty token", kInvalidFile, "empty", [](Json& j) { j["model"]["vocab"][""] = 400; }},
      {"merge of one", kInvalidFile, "merges[1]",
       [](Json& j) { j["model"]["merges"].push_back("a"); }},
      {"merge of three", kInvalidFile, "merges[1]",
       [](Json& j) { j["model"]["merges"].push_back("a b c"); }},
      {"merge of a number", kInvalidFile, "merges[1]",
       [](Json& j) { j["model"]["merges"].push_back(7); }},
      {"merge unknown", kInvalidFile, "merge 1",
       [](Json& j) { j["model"]["merges"].push_back("b a"); }},
      {"normalizer", kUnsupported, "Lowercase",
       [](Json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       }},
      {"no pre-tokenizer", kUnsupported, "ByteLevel",
       [](Json& j) { j["pre_tokenizer"] = nullptr; }},
      {"Whitespace", kUnsupported, "Whitespace",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Whitespace"}};
       }},
      {"ByteLevel first", kUnsupported, "last step",
       [](Json& j) {
         j["pre_tokenizer"] = sequence("pretokenizers", {kByteLevel, Json{{"type", "Digits"}}});
       }},
      {"pattern", kUnsupported, "pattern",
       [](Json& j) {
         j["pre_tokenizer"] = sequence("pretokenizers", {split_step("\\w+"), kByteLevel});
       }},
      {"behavior", kUnsupported, "behavior",
       [](Json& j) {
         Json step = split_step(kGpt2Pattern);
         step["behavior"] = "MergedWithNext";
         j["pre_tokenizer"] = sequence("pretokenizers", {step, kByteLevel});
       }},
      {"prefix space after a step", kUnsupported, "add_prefix_space",
       [](Json& j) {
         j["pre_tokenizer"] =
             sequence("pretokenizers", {Json{{"type", "Digits"}}, Json{{"type", "ByteLevel"}}});
       }},
      {"many steps", kUnsupported, "8 steps",
       [](Json& j) {
         std::vector<Json> steps(20, Json{{"type", "Digits"}});
         j["pre_tokenizer"] = sequence("pretokenizers", std::move(steps));
       }},
      {"post-processor", kUnsupported, "BertProcessing",
       [](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}};
       }},
      {"template without text", kInvalidFile, "sequences",
       [](Json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", Json::array()}};
       }},
      {"template token unknown", kInvalidFile, "special_tokens",
       [](Json& j) { j["post_processor"] = template_processor("<s>", "<other>"); }},
      {"many templates", kInvalidFile, "64 a side",
       [](Json& j) {
         std::vector<Json> steps(65, template_processor("<s>", "</s>"));
         j = document_with_template();
         j["post_processor"] = sequence("processors", std::move(steps));
       }},
      {"template id out of range", kInvalidFile, "257",
       [](Json& j) { j["post_processor"] = template_processor("<s>", "</s>"); }},
      {"no decoder", kUnsupported, "decoder", [](Json& j) { j["decoder"] = nullptr; }},
      {"decoder", kUnsupported, "Metaspace",
       [](Json& j) {
         j["decoder"] = {{"type", "Metaspace"}};
       }},
      {"added token without id", kInvalidFile, "id",
       [](Json& j) {
         j["added_tokens"] = {{{"content", "x"}}};
       }},
      {"added token of a wrong type", kInvalidFile, "lstrip",
       [](Json& j) {
         j["added_tokens"] = {{{"id", 300}, {"content", "x"}, {"lstrip", 1}}};
       }},
      {"added token's id twice", kInvalidFile, "twice",
       [](Json& j) {
         j["added_tokens"] = {{{"id", 300}, {"content", "x"}}, {{"id", 300}, {"content", "y"}}};
       }},
  };
  for (const Refusal& refusal : refusals) {
    Json json = document();
    refusal.change(json);
    const auto tokenizer = load(json);
    ASSERT_FALSE(tokenizer.ok()) << refusal.name;
    EXPECT_EQ(tokenizer.status().code(), refusal.code)
        << refusal.name << ": " << tokenizer.status().message();
    EXPECT_NE(tokenizer.status().message().find(refusal.message_part), std::string::npos)
        << refusal.name << ": " << tokenizer.status().message();
    EXPECT_EQ(tokenizer.status().message().find("tokenizer.json"), 0u) << refusal.name;
    EXPECT_EQ(tokenizer.status().message().find('\n'), std::string::npos) << refusal.name;
  }
}

TEST(TokenizerJson, RefusesBrokenAndDeepJson) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("\xFF"), std::string(100000, '[')}) {
    EXPECT_FALSE(load_tokenizer_json(text, "", "tokenizer.json").ok());
  }
  EXPECT_FALSE(load_tokenizer_json(document().dump(), "[]", "tokenizer.json").ok());
}

}  // namespace
}  // namespace chunkllm
