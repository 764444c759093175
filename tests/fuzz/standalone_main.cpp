// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// usage: fuzz_NAME [--mutants N] FILE_OR_FOLDER...
// Runs a fuzz target without libFuzzer: over each file as it is, then over N (default 300) mutants
// of it, the same ones in every run. A failure is a crash or a sanitizer's report.
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

void run(const Bytes& bytes) {
  // A copy of exactly this size: reading past its end is then an error that ASan sees.
  const Bytes exact(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

/// One to four edits: cut the end off, flip a bit, set an extreme integer, repeat or drop a piece.
Bytes mutant_of(const Bytes& original, std::mt19937_64& random) {
  static constexpr std::uint64_t kExtremes[] = {0,
                                                1,
                                                0x7f,
                                                0xff,
                                                0x7fff'ffff,
                                                0xffff'ffff,
                                                0x7fff'ffff'ffff'ffff,
                                                0xffff'ffff'ffff'ffff,
                                                0x8000'0000'0000'0000};
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  Bytes bytes = original;
  for (std::size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
    // Half of the edits fall into the first 256 bytes, where headers keep counts and offsets.
    const std::size_t reach =
        below(2) == 0 ? std::min<std::size_t>(bytes.size(), 256) : bytes.size();
    const std::size_t at = below(reach);
    const std::size_t length = std::min(bytes.size() - at, 1 + below(16));
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(length);
    switch (below(5)) {
      case 0: bytes.resize(at); break;
      case 1: bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1u << below(8))); break;
      case 2: {
        const std::uint64_t value = kExtremes[below(std::size(kExtremes))];
        std::memcpy(&bytes[at], &value, std::min<std::size_t>(sizeof value, bytes.size() - at));
        break;
      }
      case 3: {
        const Bytes piece(begin, end);
        bytes.insert(begin, piece.begin(), piece.end());
        break;
      }
      default: bytes.erase(begin, end); break;
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  int num_mutants = 300;
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--mutants" && i + 1 < argc) {
      const std::string_view count = argv[++i];
      std::from_chars(count.data(), count.data() + count.size(), num_mutants);
    } else if (std::filesystem::is_directory(argument)) {
      for (const auto& entry : std::filesystem::directory_iterator(argument)) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    } else {
      files.emplace_back(argument);
    }
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    std::fprintf(stderr, "%s: no corpus file given or found\n", argv[0]);
    return 1;
  }
  std::mt19937_64 random(20260101);
  for (const std::filesystem::path& path : files) {
    std::ifstream stream(path, std::ios::binary);
    const Bytes bytes{std::istreambuf_iterator<char>(stream), {}};
    if (!stream.good() && !stream.eof()) {
      std::fprintf(stderr, "%s: cannot read %s\n", argv[0], path.c_str());
      return 1;
    }
    run(bytes);
    for (int i = 0; i < num_mutants; ++i) run(mutant_of(bytes, random));
  }
  std::printf("%zu files, %d mutants of each\n", files.size(), num_mutants);
  return 0;
}
