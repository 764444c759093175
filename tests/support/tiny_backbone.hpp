// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "support/memory_tensor_source.hpp"

namespace chunkllm::testing {

/// Shapes of the tiny backbone: 3 layers, 2 query heads a key-value head.
inline BackboneConfig tiny_config(std::int64_t vocab_size = 64) {
  BackboneConfig config;
  config.num_layers = 3;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = vocab_size;
  config.context_length = 4096;
  config.sliding_window = {0, 0, 0};
  return config;
}

/// A decoder with deterministic random weights in f32 that tests can run in milliseconds.
inline DecoderBackbone tiny_backbone(const BackboneConfig& config, std::uint32_t seed = 1) {
  ThreadPool pool(1);
  auto backbone =
      DecoderBackbone::load(MemoryTensorSource::random(config, seed), WeightFormat::kF32, pool);
  EXPECT_TRUE(backbone.ok()) << backbone.status().message();
  return std::move(backbone).value();
}
inline DecoderBackbone tiny_backbone(std::int64_t vocab_size = 64, std::uint32_t seed = 1) {
  return tiny_backbone(tiny_config(vocab_size), seed);
}

/// Bytes of the tiny backbone's 64 tokens: 0 is a full stop, 1 a line break, 2 to 9 words that
/// begin a sentence, the others words within one; 63 is the only word without a leading space, as
/// a text begins (an indented line would be taken for code).
inline std::string_view tiny_token_bytes(std::int32_t id) {
  static const std::vector<std::string> tokens = [] {
    std::vector<std::string> made = {".", "\n"};
    for (int i = 2; i < 63; ++i) {
      const auto letter = static_cast<char>('a' + i % 26);
      const std::string tail(static_cast<std::size_t>(2 + i / 26), letter);
      made.push_back((i < 10 ? std::string(" S") : std::string(" w")) + tail);
    }
    made.push_back("Start");
    return made;
  }();
  return tokens[static_cast<std::size_t>(id)];
}

/// Ids that read as sentences of 5 to 13 tokens, so that the sentence rules find chunks.
inline std::vector<std::int32_t> tiny_text(std::int64_t num_tokens, std::uint32_t seed = 7) {
  std::uint32_t state = seed * 2654435761U + 1;
  const auto draw = [&](std::uint32_t below) {
    state = state * 1664525U + 1013904223U;
    return static_cast<std::int32_t>((state >> 8) % below);
  };
  std::vector<std::int32_t> ids = {63};
  while (static_cast<std::int64_t>(ids.size()) < num_tokens) {
    ids.push_back(2 + draw(8));
    for (std::int32_t words = 3 + draw(9); words > 0; --words) ids.push_back(10 + draw(53));
    ids.push_back(0);
  }
  ids.resize(static_cast<std::size_t>(num_tokens));
  return ids;
}

}  // namespace chunkllm::testing
