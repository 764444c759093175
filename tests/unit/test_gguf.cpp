// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/io/gguf.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/gguf_writer.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

using testing::append_gguf_string;
using testing::append_number;
using testing::Bytes;
using testing::GgufWriter;

Status parse_status(const Bytes& bytes) {
  return GgufFile::parse(bytes, "f").status();
}
Status parse_status(const GgufWriter& writer) {
  return parse_status(writer.finish());
}

/// Every value type and three tensors.
GgufWriter sample() {
  GgufWriter writer;
  writer.add("u8", std::uint8_t{200});
  writer.add("i8", std::int8_t{-100});
  writer.add("u16", std::uint16_t{60000});
  writer.add("i16", std::int16_t{-30000});
  writer.add("u32", std::uint32_t{4'000'000'000});
  writer.add("i32", std::int32_t{-2'000'000'000});
  writer.add("u64", std::uint64_t{1} << 40);
  writer.add("i64", -(std::int64_t{1} << 40));
  writer.add("huge", UINT64_MAX);
  writer.add("f32", 0.5F);
  writer.add("f64", 0.25);
  writer.add("nan", std::numeric_limits<float>::quiet_NaN());
  writer.add("yes", true);
  writer.add("no", false);
  writer.add_string("text", "hello");
  writer.add_string("empty", "");
  writer.add_array<std::int32_t>("ints", {1, -2, 3});
  writer.add_array<float>("floats", {0.5F, 1.5F});
  writer.add_array<std::uint32_t>("nothing", {});
  writer.add_string_array("strings", {"a", "", "ccc"});
  Bytes nested;  // [[1, 2], ["x"]] as an array of arrays of u8 and string
  append_number(nested, std::uint32_t{9});
  append_number(nested, std::uint64_t{2});
  append_number(nested, std::uint32_t{0});
  append_number(nested, std::uint64_t{2});
  append_number(nested, std::uint8_t{1});
  append_number(nested, std::uint8_t{2});
  append_number(nested, std::uint32_t{8});
  append_number(nested, std::uint64_t{1});
  append_gguf_string(nested, "x");
  writer.add_raw("nested", 9, nested);
  writer.add_f32_tensor("vector", {3}, {1, 2, 3});
  writer.add_tensor("matrix", {32, 2}, /*type_id=*/8, Bytes(2 * 34));
  writer.add_tensor("other", {32}, /*type_id=*/6, Bytes(22));
  return writer;
}

TEST(Gguf, ReadsAllValueTypes) {
  const Bytes bytes = sample().finish();
  const auto file = GgufFile::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto integer = [&](std::string_view key) {
    return file->require_int(key, INT64_MIN, INT64_MAX);
  };
  EXPECT_EQ(integer("u8").value(), 200);
  EXPECT_EQ(integer("i8").value(), -100);
  EXPECT_EQ(integer("u16").value(), 60000);
  EXPECT_EQ(integer("i16").value(), -30000);
  EXPECT_EQ(integer("u32").value(), 4'000'000'000);
  EXPECT_EQ(integer("i32").value(), -2'000'000'000);
  EXPECT_EQ(integer("u64").value(), std::int64_t{1} << 40);
  EXPECT_EQ(integer("i64").value(), -(std::int64_t{1} << 40));
  for (const std::string_view key : {"huge", "f32", "yes", "text", "ints", "missing"}) {
    EXPECT_EQ(integer(key).status().code(), StatusCode::kInvalidFile) << key;
  }
  EXPECT_EQ(file->require_double("f32", 0, 1).value(), 0.5);
  EXPECT_EQ(file->require_double("f64", 0, 1).value(), 0.25);
  EXPECT_EQ(file->require_double("u8", 0, 200).value(), 200.0);
  for (const std::string_view key : {"nan", "yes", "text", "huge", "missing"}) {
    EXPECT_FALSE(file->require_double(key, -1e30, 1e30).ok()) << key;
  }
  EXPECT_TRUE(file->optional_bool("yes")->value());
  EXPECT_FALSE(file->optional_bool("no")->value());
  EXPECT_FALSE(file->optional_bool("u8").ok());
  EXPECT_FALSE(file->optional_bool("missing")->has_value());
  EXPECT_EQ(file->require_string("text").value(), "hello");
  EXPECT_EQ(file->require_string("empty").value(), "");
  EXPECT_EQ(file->require_string("u8").status().message(),
            "f: field 'u8' is 200, expected a string");
  EXPECT_EQ(file->require_int("u8", 0, 9).status().message(),
            "f: field 'u8' is 200, expected an integer in [0, 9]");
  EXPECT_EQ(file->keys().size(), 21U);
}

TEST(Gguf, ReadsArrays) {
  const Bytes bytes = sample().finish();
  const auto file = GgufFile::parse(bytes, "f");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->int_array("ints", -2, 3).value(), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_FALSE(file->int_array("ints", -1, 3).ok());
  EXPECT_FALSE(file->int_array("floats", -1, 3).ok());
  EXPECT_FALSE(file->int_array("strings", -1, 3).ok());
  EXPECT_FALSE(file->int_array("u8", 0, 300).ok());
  EXPECT_TRUE(file->int_array("nothing", 0, 0)->empty());
  EXPECT_EQ(file->double_array("floats").value(), (std::vector<double>{0.5, 1.5}));
  EXPECT_EQ(file->double_array("ints").value(), (std::vector<double>{1, -2, 3}));
  EXPECT_EQ(file->string_array("strings").value(), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(file->string_array("ints").status().message(),
            "f: field 'ints' is an array of 3 i32, expected an array of strings");
  const auto outer = GgufFile::elements(*file->find("nested"));
  ASSERT_TRUE(outer.ok());
  ASSERT_EQ(outer->size(), 2U);
  EXPECT_EQ(outer->at(0).element_type, GgufType::kU8);
  const auto inner = GgufFile::elements(outer->at(1));
  ASSERT_TRUE(inner.ok());
  ASSERT_EQ(inner->size(), 1U);
  EXPECT_EQ(detail::as_text(inner->at(0).bytes), "x");
  EXPECT_FALSE(GgufFile::elements(*file->find("u8")).ok());
}

TEST(Gguf, ReadsTensors) {
  const testing::TempFolder folder;
  const auto file = GgufFile::open(folder.write("x.gguf", sample().finish()));
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->tensor_infos().size(), 3U);
  const auto vector = file->tensor("vector");
  ASSERT_TRUE(vector.ok());
  EXPECT_EQ(vector->rows, 1);
  EXPECT_EQ(vector->cols, 3);
  EXPECT_EQ(detail::read_as<float>(vector->bytes.data() + 8), 3.0F);
  const auto matrix = file->tensor("matrix");
  ASSERT_TRUE(matrix.ok());
  EXPECT_EQ(matrix->dtype, DType::kQ8_0);
  EXPECT_EQ(matrix->rows, 2);
  EXPECT_EQ(matrix->cols, 32);
  EXPECT_EQ(matrix->bytes.size(), 68U);
  EXPECT_EQ(file->tensor("other").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(file->tensor("missing").status().code(), StatusCode::kNotFound);
  file->drop_pages();
  EXPECT_EQ(detail::read_as<float>(vector->bytes.data()), 1.0F);
}

TEST(Gguf, EveryTruncationIsAnError) {
  const Bytes bytes = sample().finish();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(GgufFile::parse(cut, "f").ok()) << size;
  }
}

TEST(Gguf, NamesForeignFiles) {
  GgufWriter writer = sample();
  writer.version = 0x03000000;
  EXPECT_EQ(parse_status(writer).message(), "f: a big-endian GGUF file, expected little-endian");
  writer.version = 2;
  EXPECT_EQ(parse_status(writer).message(), "f: GGUF version 2, supported is 3");
  writer = GgufWriter();
  writer.magic = "PK-\x04";
  EXPECT_EQ(parse_status(writer).message(), "f: begins with 'PK-?', expected a GGUF file");
  writer = GgufWriter();
  writer.add("split.count", std::uint16_t{3});
  EXPECT_EQ(parse_status(writer).code(), StatusCode::kUnsupported);
  writer = GgufWriter();
  writer.add("split.count", std::uint16_t{1});
  EXPECT_TRUE(parse_status(writer).ok());
  EXPECT_TRUE(parse_status(GgufWriter()).ok());
}

TEST(Gguf, RefusesHugeCounts) {
  for (const std::uint64_t extra : {std::uint64_t{1}, std::uint64_t{1} << 32, UINT64_MAX - 100}) {
    GgufWriter writer = sample();
    writer.extra_tensors = extra;
    EXPECT_FALSE(parse_status(writer).ok());
    writer = sample();
    writer.extra_values = extra;
    EXPECT_FALSE(parse_status(writer).ok());
  }
  // Arrays and strings that claim more than the file holds, at several nesting depths.
  for (const std::uint32_t element_type : {0U, 8U, 9U, 12U}) {
    for (const std::uint64_t count :
         {std::uint64_t{1000}, std::uint64_t{1} << 29, UINT64_MAX / 8, UINT64_MAX}) {
      Bytes array;
      append_number(array, element_type);
      append_number(array, count);
      GgufWriter writer;
      writer.add_raw("a", 9, array);
      EXPECT_EQ(parse_status(writer).code(), StatusCode::kInvalidFile);
    }
  }
  for (const std::uint64_t count : {std::uint64_t{1000}, UINT64_MAX}) {
    Bytes text;
    append_number(text, count);
    GgufWriter writer;
    writer.add_raw("a", 8, text);
    EXPECT_EQ(parse_status(writer).code(), StatusCode::kInvalidFile);
    Bytes array;
    append_number(array, std::uint32_t{8});
    append_number(array, std::uint64_t{1});
    append_number(array, count);
    writer = GgufWriter();
    writer.add_raw("a", 9, array);
    EXPECT_EQ(parse_status(writer).code(), StatusCode::kInvalidFile);
  }
}

TEST(Gguf, RefusesDeepNesting) {
  const auto nested = [](int depth) {
    Bytes array;
    for (int i = 0; i + 1 < depth; ++i) {
      append_number(array, std::uint32_t{9});
      append_number(array, std::uint64_t{1});
    }
    append_number(array, std::uint32_t{0});
    append_number(array, std::uint64_t{0});
    GgufWriter writer;
    writer.add_raw("a", 9, array);
    return parse_status(writer);
  };
  EXPECT_TRUE(nested(8).ok());
  EXPECT_EQ(nested(9).message(), "f: metadata 'a' nests arrays deeper than 8 levels");
  EXPECT_FALSE(nested(100'000).ok());
}

TEST(Gguf, RefusesBrokenValues) {
  GgufWriter writer;
  writer.add_raw("a", 13, Bytes(8));
  EXPECT_EQ(parse_status(writer).message(), "f: metadata 'a' has type 13, expected 0 to 12");
  writer = GgufWriter();
  writer.add_raw("a", 7, Bytes(1, std::byte{2}));
  EXPECT_FALSE(parse_status(writer).ok());
  writer = GgufWriter();
  writer.add("a", 1.0F);
  writer.add("a", 2.0F);
  EXPECT_EQ(parse_status(writer).message(), "f: metadata 'a' stands twice");
  writer = GgufWriter();
  writer.add("", 1.0F);
  EXPECT_FALSE(parse_status(writer).ok());
  writer = GgufWriter();
  writer.add(std::string_view("a\0b", 3), 1.0F);
  EXPECT_FALSE(parse_status(writer).ok());
  writer = GgufWriter();
  writer.add(std::string(65536, 'k'), 1.0F);
  EXPECT_FALSE(parse_status(writer).ok());
}

TEST(Gguf, AlignmentIsAPowerOfTwo) {
  for (const std::uint32_t alignment : {1U, 8U, 64U, 4096U}) {
    GgufWriter writer;
    writer.alignment = alignment;
    writer.add("general.alignment", alignment);
    writer.add_f32_tensor("a", {3}, {1, 2, 3});
    writer.add_f32_tensor("b", {1}, {4});
    const Bytes bytes = writer.finish();
    const auto file = GgufFile::parse(bytes, "f");
    ASSERT_TRUE(file.ok()) << file.status().message();
    EXPECT_EQ(detail::read_as<float>(file->tensor("b")->bytes.data()), 4.0F);
  }
  for (const std::uint32_t alignment : {0U, 24U, 0x80000000U}) {
    GgufWriter writer;
    writer.add("general.alignment", alignment);
    writer.add_f32_tensor("a", {3}, {1, 2, 3});
    EXPECT_FALSE(parse_status(writer).ok()) << alignment;
  }
  GgufWriter writer;
  writer.add("general.alignment", std::uint64_t{32});
  EXPECT_FALSE(parse_status(writer).ok());
}

TEST(Gguf, RefusesBrokenTensors) {
  const auto status = [](std::string_view name, const std::vector<std::int64_t>& dims,
                         std::uint32_t type_id, std::size_t num_bytes) {
    GgufWriter writer;
    writer.add_tensor(name, dims, type_id, Bytes(num_bytes));
    return parse_status(writer);
  };
  EXPECT_TRUE(status("a", {4, 2}, 0, 32).ok());
  EXPECT_TRUE(status("a", {0, 2}, 0, 0).ok());
  EXPECT_EQ(status("a", {31, 2}, 8, 68).message(),
            "f: tensor 'a' has rows of 31 values, expected a multiple of 32 for type Q8_0");
  EXPECT_EQ(status("a", {4}, 99, 32).code(), StatusCode::kUnsupported);
  EXPECT_EQ(status("a", {4}, 4, 32).code(), StatusCode::kUnsupported);
  for (const std::vector<std::int64_t>& dims : {std::vector<std::int64_t>{4, 3},
                                                {-4, 2},
                                                {4, -1},
                                                {1, 1, 1, 1, 1},
                                                {INT64_MAX},
                                                {INT64_MAX, INT64_MAX},
                                                {std::int64_t{1} << 32, std::int64_t{1} << 32},
                                                {std::int64_t{1} << 62, 4},
                                                {1, INT64_MIN}}) {
    EXPECT_EQ(status("a", dims, 0, 32).code(), StatusCode::kInvalidFile);
  }
  EXPECT_FALSE(status("", {4}, 0, 16).ok());
  EXPECT_FALSE(status(std::string(65, 'n'), {4}, 0, 16).ok());
  EXPECT_TRUE(status(std::string(64, 'n'), {4}, 0, 16).ok());
}

TEST(Gguf, TensorsFollowEachOther) {
  GgufWriter writer;
  writer.first_offset = 32;  // past the end, and not where the first tensor must be
  writer.add_f32_tensor("a", {8}, std::vector<float>(8));
  EXPECT_EQ(parse_status(writer).message(),
            "f: tensor 'a' has offset 32, expected 0 (tensors follow each other, aligned to 32)");
  writer = GgufWriter();
  writer.add_f32_tensor("a", {8}, std::vector<float>(8));
  writer.first_offset = UINT64_MAX - 31;  // overlap: the second begins where the first does
  writer.add_f32_tensor("b", {8}, std::vector<float>(8));
  EXPECT_FALSE(parse_status(writer).ok());
  writer = GgufWriter();
  writer.add_f32_tensor("a", {8}, std::vector<float>(8));
  writer.add_f32_tensor("a", {8}, std::vector<float>(8));
  EXPECT_EQ(parse_status(writer).message(), "f: tensor 'a' stands twice");
}

}  // namespace
}  // namespace chunkllm
