// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/io/mapped_file.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <string>
#include <type_traits>
#include <utility>

#include "chunkllm/io/atomic_file.hpp"
#include "chunkllm/io/byte_reader.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

using testing::TempFolder;

static_assert(!std::is_copy_constructible_v<MappedFile>);
static_assert(std::is_nothrow_move_constructible_v<MappedFile>);

TEST(MappedFile, MapsAllBytesAndSurvivesMoves) {
  const TempFolder folder;
  std::string text(100'000, 'x');
  text.back() = 'y';
  auto opened = MappedFile::open(folder.write("a", text));
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const std::byte* address = opened->bytes().data();
  MappedFile moved = std::move(opened).value();
  EXPECT_EQ(moved.bytes().data(), address);
  moved.drop_pages();
  EXPECT_EQ(detail::as_text(moved.bytes()), text);
  auto other = MappedFile::open(folder.write("b", "other"));
  ASSERT_TRUE(other.ok());
  moved = std::move(other).value();
  EXPECT_EQ(detail::as_text(moved.bytes()), "other");
  EXPECT_EQ(moved.path(), folder.file("b"));
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TempFolder folder;
  const auto missing = MappedFile::open(folder.file("missing"));
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(missing.status().message(),
            folder.file("missing") + ": cannot open: No such file or directory");
  const auto is_folder = MappedFile::open(folder.path());
  EXPECT_EQ(is_folder.status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(is_folder.status().message(), folder.path() + ": is a folder, expected a file");
  const auto empty = MappedFile::open(folder.write("empty", ""));
  EXPECT_EQ(empty.status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(empty.status().message(), folder.file("empty") + ": the file is empty");
  EXPECT_EQ(MappedFile::open("/dev/null").status().code(), StatusCode::kInvalidFile);
  // Must neither wait for a writer nor be mapped.
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_EQ(MappedFile::open(folder.file("pipe")).status().code(), StatusCode::kInvalidFile);
}

TEST(ReadTextFile, ReadsWholeFilesUpToTheLimit) {
  const TempFolder folder;
  const std::string text(3'000'000, 'z');
  const std::string path = folder.write("a", text);
  const auto whole = read_text_file(path, text.size());
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  EXPECT_EQ(whole.value(), text);
  EXPECT_EQ(read_text_file(path, text.size() - 1).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(read_text_file("/dev/zero", 1000).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(read_text_file(folder.write("empty", ""), 0).value(), "");
  EXPECT_EQ(read_text_file(folder.path(), 10).status().code(), StatusCode::kInvalidFile);
  EXPECT_EQ(read_text_file(folder.file("no"), 10).status().code(), StatusCode::kNotFound);
}

TEST(AtomicFile, ReplacesAndLeavesNothingBeside) {
  const TempFolder folder;
  const std::string path = folder.write("out", "old");
  const std::array<std::byte, 2> first = {std::byte{'n'}, std::byte{'e'}};
  const std::array<std::byte, 1> second = {std::byte{'w'}};
  const std::array<std::span<const std::byte>, 3> parts = {first, std::span<const std::byte>(),
                                                           second};
  ASSERT_TRUE(write_file_atomically(path, parts).ok());
  EXPECT_EQ(read_text_file(path, 100).value(), "new");
  ASSERT_TRUE(write_file_atomically(path, std::string_view("newer")).ok());
  EXPECT_EQ(read_text_file(path, 100).value(), "newer");
  EXPECT_EQ(folder.num_entries(), 1U);
}

TEST(AtomicFile, RefusesTargetsThatAreNoFiles) {
  const TempFolder folder;
  const std::string_view text = "text";
  EXPECT_EQ(write_file_atomically(folder.path(), text).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(write_file_atomically("/dev/null", text).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_EQ(write_file_atomically(folder.file("no/such"), text).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(folder.num_entries(), 0U);
}

}  // namespace
}  // namespace chunkllm
