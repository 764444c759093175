// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/io/json.hpp"

#include <gtest/gtest.h>

#include <string>

namespace chunkllm {
namespace {

Json parsed(std::string_view text) {
  auto result = parse_json(text, "f.json");
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? std::move(result).value() : Json();
}

TEST(ParseJson, BuildsWhatTheLibraryItselfBuilds) {
  for (const std::string_view text :
       {R"({"a":[1,-2,3.5,true,false,null,"x\u00e9",{"b":{}}],"c":[],"d":18446744073709551615})",
        "[]", "3", "\"s\"", " null ", R"([[[1],[2]],[[3]]])", R"({"k":{"k":{"k":[{}]}},"l":1})"}) {
    EXPECT_EQ(parsed(text), Json::parse(text)) << text;
  }
}

TEST(ParseJson, SyntaxErrorsNameLineAndByte) {
  const auto broken = parse_json("{\n\"a\": 1,\n\"b\": ?}", "f.json");
  ASSERT_FALSE(broken.ok());
  EXPECT_EQ(broken.status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(broken.status().message().find("f.json: JSON line 3, byte 16: "), 0U)
      << broken.status().message();
  EXPECT_EQ(parse_json("[1e999]", "f").status().message().find("f: JSON line 1, byte 6: number"),
            0U);
  for (const std::string_view text :
       {"", " ", "{", "[1,", "{\"a\"}", "{\"a\":1}x", "[1e999]", "NaN", "[Infinity]", "'a'", "[1,]",
        "{\"a\":1,}", "\"\\ud800\"", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\n\"", "01",
        "tru"}) {
    const auto result = parse_json(text, "f");
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidFile) << text;
    EXPECT_LT(result.status().message().size(), 250U);
    EXPECT_EQ(result.status().message().find('\n'), std::string::npos);
  }
}

TEST(ParseJson, EveryTruncationIsAnError) {
  const std::string text = R"({"a":[1,2.5,"x\u00e9",{"b":null}],"c":true})";
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(parse_json(std::string_view(text).substr(0, size), "f").ok()) << size;
  }
}

TEST(ParseJson, LimitsHold) {
  const auto code = [](const std::string& text, const JsonLimits& limits) {
    return parse_json(text, "f", limits).status().code();
  };
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(code(nested(64), {}), StatusCode::kOk);
  EXPECT_EQ(code(nested(65), {}), StatusCode::kResourceExhausted);
  EXPECT_EQ(code(std::string(1'000'000, '['), {}), StatusCode::kResourceExhausted);
  EXPECT_EQ(code("[1,2,3]", {.max_values = 4}), StatusCode::kOk);
  EXPECT_EQ(code("[1,2,3]", {.max_values = 3}), StatusCode::kResourceExhausted);
  EXPECT_EQ(code("[1,2,3]", {.max_bytes = 6}), StatusCode::kResourceExhausted);
}

TEST(ParseJson, DuplicateKeys) {
  const std::string_view text = R"({"a":1,"b":{"a":2},"a":3})";
  EXPECT_EQ(parsed(text)["a"], 3);
  const auto refused = parse_json(text, "f", {.duplicate_keys = DuplicateKeys::kRefuse});
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(refused.status().message(), "f: JSON: key 'a' stands twice in one object");
}

TEST(JsonFields, Integers) {
  const Json json =
      parsed(R"({"i":7,"n":-7,"f":7.0,"s":"7","b":true,"z":null,"u":18446744073709551615})");
  EXPECT_EQ(require_int(json, "i", 0, 7, "f").value(), 7);
  EXPECT_EQ(require_int(json, "n", -7, 0, "f").value(), -7);
  EXPECT_EQ(require_int(json, "i", 8, 9, "c.json").status().message(),
            "c.json: field 'i' is 7, expected an integer in [8, 9]");
  for (const std::string_view key : {"f", "s", "b", "z", "u", "missing"}) {
    EXPECT_EQ(require_int(json, key, INT64_MIN, INT64_MAX, "f").status().code(),
              StatusCode::kInvalidFile)
        << key;
  }
  EXPECT_FALSE(optional_int(json, "z", 0, 9, "f").value().has_value());
  EXPECT_FALSE(optional_int(json, "missing", 0, 9, "f").value().has_value());
  EXPECT_FALSE(optional_int(json, "f", 0, 9, "f").ok());
  EXPECT_EQ(require_int(json, "missing", 0, 9, "f").status().message(),
            "f: field 'missing' is missing, expected an integer");
  EXPECT_FALSE(require_int(parsed("[1]"), "i", 0, 9, "f").ok());
}

TEST(JsonFields, OtherTypes) {
  const Json json = parsed(R"({"d":0.5,"i":2,"n":-3,"s":"text","b":false,"l":[1,2],"o":{}})");
  EXPECT_EQ(require_double(json, "d", 0, 1, "f").value(), 0.5);
  EXPECT_EQ(require_double(json, "i", 0, 3, "f").value(), 2.0);
  EXPECT_EQ(require_double(json, "n", -3, 3, "f").value(), -3.0);
  EXPECT_EQ(require_double(json, "i", 0, 1, "f").status().message(),
            "f: field 'i' is 2, expected a number in [0, 1]");
  EXPECT_FALSE(require_double(json, "s", 0, 1, "f").ok());
  EXPECT_EQ(require_string(json, "s", "f").value(), "text");
  EXPECT_EQ(require_string(json, "l", "f").status().message(),
            "f: field 'l' is a list of 2 elements, expected a string");
  EXPECT_FALSE(require_bool(json, "b", "f").value());
  EXPECT_EQ(require_bool(json, "s", "f").status().message(),
            "f: field 's' is \"text\", expected true or false");
  EXPECT_EQ(describe(*find_json(json, "o")), "an object");
  EXPECT_EQ(describe(Json(std::string(500, 'a'))).size(), 85U);
}

}  // namespace
}  // namespace chunkllm
