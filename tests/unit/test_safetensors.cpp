// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/io/safetensors.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "chunkllm/io/safetensors_writer.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

using testing::TempFolder;

const std::array<float, 6> kSingles = {1, 2, 3, 4, 5, 6};
const std::array<std::uint16_t, 3> kHalves = {0x3c00, 0x4000, 0x4200};

std::vector<SafetensorsTensor> some_tensors() {
  return {{"b.half", DType::kF16, {3}, std::as_bytes(std::span(kHalves))},
          {"a.matrix", DType::kF32, {2, 3}, std::as_bytes(std::span(kSingles))},
          {"c.brain", DType::kBF16, {1, 3}, std::as_bytes(std::span(kHalves))},
          {"d.scalar", DType::kF32, {}, std::as_bytes(std::span(kSingles)).first(4)},
          {"e.none", DType::kF32, {0, 7}, {}}};
}

/// A file of the given header and `data_bytes` zero bytes.
std::vector<std::byte> file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t size = header.size();
  std::vector<std::byte> bytes(sizeof(size) + header.size() + data_bytes);
  std::memcpy(bytes.data(), &size, sizeof(size));
  std::memcpy(bytes.data() + sizeof(size), header.data(), header.size());
  return bytes;
}

Status parse_status(const std::string& header, std::size_t data_bytes) {
  const std::vector<std::byte> bytes = file_of(header, data_bytes);
  return SafetensorsFile::parse(bytes, "f").status();
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  const TempFolder folder;
  const std::string path = folder.file("x.safetensors");
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"q", "\"\\\n\xc3\xa9"}};
  ASSERT_TRUE(write_safetensors(path, some_tensors(), metadata).ok());
  const auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensor_names(),
            (std::vector<std::string>{"a.matrix", "b.half", "c.brain", "d.scalar", "e.none"}));
  EXPECT_EQ(file->metadata(), metadata);
  const auto matrix = file->tensor("a.matrix");
  ASSERT_TRUE(matrix.ok());
  EXPECT_EQ(matrix->dtype, DType::kF32);
  EXPECT_EQ(matrix->rows, 2);
  EXPECT_EQ(matrix->cols, 3);
  EXPECT_EQ(std::memcmp(matrix->bytes.data(), kSingles.data(), 24), 0);
  const auto half = file->tensor("b.half");
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(half->dtype, DType::kF16);
  EXPECT_EQ(half->rows, 1);
  EXPECT_EQ(half->cols, 3);
  EXPECT_EQ(file->tensor("c.brain")->dtype, DType::kBF16);
  EXPECT_EQ(file->tensor("e.none")->rows, 0);
  EXPECT_EQ(file->find("d.scalar")->shape, std::vector<std::int64_t>());
  EXPECT_EQ(file->tensor("d.scalar").status().code(), StatusCode::kUnsupported);
  EXPECT_FALSE(file->contains("z"));
  EXPECT_EQ(file->tensor("z").status().message(), path + ": there is no tensor 'z'");
  file->drop_pages();
  EXPECT_EQ(std::memcmp(file->tensor("b.half")->bytes.data(), kHalves.data(), 6), 0);
}

TEST(Safetensors, BytesDoNotDependOnTheOrderOfTensors) {
  const TempFolder folder;
  auto tensors = some_tensors();
  ASSERT_TRUE(write_safetensors(folder.file("a"), tensors, {}).ok());
  std::reverse(tensors.begin(), tensors.end());
  ASSERT_TRUE(write_safetensors(folder.file("b"), tensors, {}).ok());
  const auto a = read_text_file(folder.file("a"), 10000);
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a.value(), read_text_file(folder.file("b"), 10000).value());
  EXPECT_EQ(a->size() % 2, 0U);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, a->data(), 8);
  EXPECT_EQ(header_bytes % 8, 0U);
}

TEST(Safetensors, WriterRefusesBadTensors) {
  const TempFolder folder;
  const auto code = [&](std::vector<SafetensorsTensor> tensors) {
    return write_safetensors(folder.file("x"), tensors, {}).code();
  };
  const auto bytes = std::as_bytes(std::span(kSingles));
  EXPECT_EQ(code({{"a", DType::kF32, {5}, bytes}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", DType::kF32, {-6}, bytes}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", DType::kF32, {INT64_MAX, 8}, bytes}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"", DType::kF32, {6}, bytes}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"\xff", DType::kF32, {6}, bytes}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", DType::kF32, {6}, bytes}, {"a", DType::kF32, {6}, bytes}}),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", DType::kQ8_0, {32}, bytes}}), StatusCode::kUnsupported);
  EXPECT_EQ(write_safetensors(folder.file("x"), {}, {{"a", "\xff"}}).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(folder.num_entries(), 0U);
}

TEST(Safetensors, ReadsAllElementTypesButViewsThree) {
  const std::string header = R"({"i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
                             R"("f4":{"dtype":"F4","shape":[2,3],"data_offsets":[16,19]},)"
                             R"("cube":{"dtype":"F32","shape":[1,1,1],"data_offsets":[19,23]}}   )";
  const auto bytes = file_of(header, 23);
  const auto file = SafetensorsFile::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->find("i")->bytes.size(), 16U);
  EXPECT_EQ(file->tensor("i").status().message(),
            "f: tensor 'i' is I64 of rank 1, supported are F32, F16 and BF16 of rank 1 and 2");
  EXPECT_EQ(file->tensor("f4").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(file->tensor("cube").status().code(), StatusCode::kUnsupported);
}

TEST(Safetensors, RefusesBrokenHeaders) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  ASSERT_TRUE(parse_status(entry("\"F32\"", "[2]", "[0,8]"), 8).ok());
  EXPECT_EQ(parse_status(entry("\"F32\"", "[2]", "[0,8]"), 9).message(),
            "f: the tensors end at data byte 8, the file at 9");
  EXPECT_EQ(parse_status(entry("\"F32\"", "[3]", "[0,8]"), 8).message(),
            "f: tensor 't': field 'data_offsets' is [0, 8], expected 12 bytes within the 8 of the "
            "file's data");
  EXPECT_EQ(parse_status(R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
                         R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                         8)
                .message(),
            "f: tensor 'b' begins at data byte 4, expected 5 (tensors must neither overlap nor "
            "leave holes)");
  EXPECT_EQ(parse_status(entry("\"F31\"", "[2]", "[0,8]"), 8).message(),
            "f: tensor 't': field 'dtype' is \"F31\", expected a safetensors element type such as "
            "F32, F16 or BF16");
  for (const std::string& header :
       {entry("\"F32\"", "[2]", "[8,0]"),
        entry("\"F32\"", "[2]", "[4,12]"),
        entry("\"F32\"", "[2]", "[-1,7]"),
        entry("\"F32\"", "[2]", "[0,8,8]"),
        entry("\"F32\"", "[2.0]", "[0,8]"),
        entry("\"F32\"", "[-2]", "[0,8]"),
        entry("\"F32\"", "\"2\"", "[0,8]"),
        entry("\"F32\"", "null", "[0,8]"),
        entry("\"F32\"", "[4611686018427387906]", "[0,8]"),
        entry("\"F32\"", "[4294967296,4294967296,0]", "[0,8]"),
        entry("\"F32\"", "[18446744073709551615]", "[0,8]"),
        entry("\"F4\"", "[15]", "[0,8]"),
        entry("3", "[2]", "[0,8]"),
        std::string(R"({"t":[]})"),
        std::string(R"({"t":7})"),
        std::string("[]"),
        std::string(" {}"),
        std::string("{"),
        std::string(""),
        std::string(R"({"__metadata__":{"a":1}})"),
        std::string(R"({"__metadata__":"a"})"),
        std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}})"),
        std::string(R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
                    R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
        std::string(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                    R"("a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})")}) {
    EXPECT_EQ(parse_status(header, 8).code(), StatusCode::kInvalidFile) << header;
  }
}

TEST(Safetensors, RefusesHugeHeaderLengths) {
  auto bytes = file_of("{}", 0);
  std::uint64_t size = 3;
  std::memcpy(bytes.data(), &size, sizeof(size));
  EXPECT_EQ(SafetensorsFile::parse(bytes, "f").status().message(),
            "f: safetensors header length is 3, but only 2 bytes follow");
  for (const std::uint64_t huge : {std::uint64_t{100'000'001}, UINT64_MAX}) {
    size = huge;
    std::memcpy(bytes.data(), &size, sizeof(size));
    EXPECT_EQ(SafetensorsFile::parse(bytes, "f").status().code(), StatusCode::kResourceExhausted);
  }
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const TempFolder folder;
  ASSERT_TRUE(write_safetensors(folder.file("x"), some_tensors(), {{"k", "v"}}).ok());
  const auto text = read_text_file(folder.file("x"), 10000);
  ASSERT_TRUE(text.ok());
  const auto bytes = std::as_bytes(std::span<const char>(text.value()));
  ASSERT_TRUE(SafetensorsFile::parse(bytes, "f").ok());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(SafetensorsFile::parse(bytes.first(size), "f").ok()) << size;
  }
}

/// Two shards and an index with this weight map.
void write_shards(const TempFolder& folder, const std::string& weight_map) {
  const auto tensors = some_tensors();
  const std::span<const SafetensorsTensor> all(tensors);
  ASSERT_TRUE(write_safetensors(folder.file("s1.safetensors"), all.first(1), {}).ok());
  ASSERT_TRUE(write_safetensors(folder.file("s2.safetensors"), all.subspan(1, 2), {}).ok());
  folder.write("model.safetensors.index.json",
               R"({"metadata":{"total_size":1},"weight_map":)" + weight_map + "}");
}

TEST(SafetensorsModel, ReadsShards) {
  const TempFolder folder;
  write_shards(folder, R"({"b.half":"s1.safetensors","a.matrix":"s2.safetensors",)"
                       R"("c.brain":"s2.safetensors"})");
  const auto model = SafetensorsModel::open(folder.path());
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->tensor_names(), (std::vector<std::string>{"a.matrix", "b.half", "c.brain"}));
  EXPECT_EQ(model->tensor("a.matrix")->rows, 2);
  EXPECT_EQ(model->tensor("b.half")->cols, 3);
  EXPECT_EQ(model->tensor("nope").status().code(), StatusCode::kNotFound);
}

TEST(SafetensorsModel, RefusesBadIndices) {
  for (const std::string weight_map :
       {R"({"b.half":"../s1.safetensors"})", R"({"b.half":"/etc/passwd"})", R"({"b.half":".."})",
        R"({"b.half":""})", R"({"b.half":7})", R"({"b.half":"s2.safetensors"})", R"({})", R"([])",
        R"({"b.half":"s1.safetensors","b.half":"s1.safetensors"})",
        R"({"b.half":"s1.safetensors\u0000x"})", R"({"b.half":"two\nlines"})",
        R"({"b.half":"\u001b[31mred"})", R"({"b.half":"\u007f"})"}) {
    const TempFolder folder;
    write_shards(folder, weight_map);
    const Status status = SafetensorsModel::open(folder.path()).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidFile) << weight_map;
    for (const char c : status.message()) EXPECT_TRUE(c >= ' ' && c <= '~') << weight_map;
  }
  const TempFolder folder;
  write_shards(folder, R"({"b.half":"s3.safetensors"})");
  EXPECT_EQ(SafetensorsModel::open(folder.path()).status().code(), StatusCode::kNotFound);
  const TempFolder empty;
  EXPECT_EQ(SafetensorsModel::open(empty.path()).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace chunkllm
