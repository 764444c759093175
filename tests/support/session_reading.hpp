// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/infer/session.hpp"
#include "support/tiny_backbone.hpp"

/// Ways to read a text with a `Session` on the tiny backbone, and what can be told of the result.
namespace chunkllm::testing {

inline constexpr std::int64_t kPrompt = 300;
inline constexpr std::int64_t kSteps = 20;

inline const DecoderBackbone& backbone(bool windowed = false) {
  static const DecoderBackbone plain = tiny_backbone();
  static const DecoderBackbone with_windows = [] {
    BackboneConfig config = tiny_config();
    config.architecture = Architecture::kMistral;
    config.sliding_window = {40, 0, 40};  // the first layer, which finds boundaries, among them
    return tiny_backbone(config, /*seed=*/2);
  }();
  return windowed ? with_windows : plain;
}

inline QkAdapter random_adapter(std::uint32_t seed, KeyPooling pooling) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.4F);
  const auto fill = [&](std::size_t size) {
    std::vector<float> values(size);
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<QkAdapterLayer> layers(3);
  for (QkAdapterLayer& layer : layers) {
    layer.query_weight = fill(2 * 8 * 32);
    layer.key_weight = fill(1 * 8 * 32);
    layer.distance_bias = fill(2 * static_cast<std::size_t>(kNumDistanceBins));
    layer.null_weight = fill(2 * 32);
    layer.null_bias = fill(2);
  }
  return QkAdapter(std::move(layers), /*hidden_size=*/32, /*num_heads=*/2, /*num_key_heads=*/1,
                   /*key_dim=*/8, pooling, /*adds_log_length=*/true);
}

inline AnyScorer make_scorer(const std::string& name) {
  const BackboneConfig& config = backbone().config();
  const float scale = softmax_scale(config);
  if (name == "minmax") {
    return AnyScorer(
        MinMaxKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, scale));
  }
  if (name == "recent") return AnyScorer(RecentScorer());
  if (name == "random") return AnyScorer(RandomScorer(/*seed=*/5));
  if (name == "adapter") return AnyScorer(random_adapter(11, KeyPooling::kMean));
  if (name == "adapter_end") return AnyScorer(random_adapter(12, KeyPooling::kEndToken));
  return AnyScorer(MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, scale));
}

/// Ends a chunk at about one token in twelve of the tiny model.
inline std::shared_ptr<const ChunkAdapter> boundary_adapter() {
  auto adapter = std::make_shared<ChunkAdapter>();
  std::mt19937 random(21);
  std::normal_distribution<float> normal;
  adapter->weight.resize(32);
  for (float& weight : adapter->weight) weight = normal(random);
  adapter->bias = -1.2F;
  adapter->threshold = 0.9F;
  return adapter;
}

/// One way to read a text.
struct Reading {
  std::string scorer = "mean";
  bool windowed = false;
  bool finds_boundaries = false;  // by a Chunk Adapter instead of the sentence rules
  SessionOptions options;
};

inline SessionOptions small_budget() {
  SessionOptions options;
  options.chunk.budget.tokens = 120;
  options.chunk.local_min_tokens = 24;
  options.chunk.guards = {2, 24};
  options.chunk.second_look = 32;
  options.chunk.journal_len = 64;
  return options;
}

template <typename KvType>
using TestSession = Session<DecoderBackbone, AnyScorer, KvType>;

template <typename KvType>
TestSession<KvType> make_session(const Reading& reading, ThreadPool& pool) {
  auto session = TestSession<KvType>::create(
      backbone(reading.windowed), std::make_shared<const AnyScorer>(make_scorer(reading.scorer)),
      reading.finds_boundaries ? boundary_adapter() : nullptr, tiny_token_bytes, reading.options,
      pool);
  EXPECT_TRUE(session.ok()) << session.status().message();
  return std::move(session).value();
}

inline void append(std::vector<float>& all, const Result<std::span<const float>>& logits) {
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  all.insert(all.end(), logits.value().begin(), logits.value().end());
}

/// What can be told of a session from outside, for comparing two of them.
struct Trace {
  std::vector<float> logits;  // behind the prompt and each step
  std::vector<std::int64_t> chunk_ends;
  std::vector<TokenSpan> segments;  // of the next token in each layer
  std::int64_t boundaries = 0;
  std::int64_t forced = 0;
  std::int64_t refreshes = 0;
  std::int64_t nan_scores = 0;

  friend bool operator==(const Trace&, const Trace&) = default;
};

template <typename S>
void describe(const S& session, Trace& trace) {
  trace.chunk_ends = session.chunks().table().ends();
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    for (const TokenSpan& span : session.chunks().segments(layer, session.num_tokens())) {
      trace.segments.push_back(span);
    }
  }
  const ChunkCounters& counters = session.chunks().counters();
  trace.boundaries = counters.boundaries;
  trace.forced = counters.forced_boundaries;
  trace.refreshes = counters.refreshes;
  trace.nan_scores = counters.nan_scores;
}

template <typename S>
void decode(S& session, std::span<const std::int32_t> tokens, Trace& trace) {
  for (const std::int32_t token : tokens) append(trace.logits, session.step(token));
}

/// Reads a prompt in blocks and calls of `block` tokens, then decodes.
template <typename KvType>
Trace read_in_blocks(Reading reading, std::int64_t block, int threads = 1) {
  ThreadPool pool(threads);
  reading.options.block_len = block;
  auto session = make_session<KvType>(reading, pool);
  const std::vector<std::int32_t> text = tiny_text(kPrompt + kSteps);
  const std::span<const std::int32_t> all(text);
  Trace trace;
  EXPECT_TRUE(session.prefill(all.first(kPrompt)).ok());
  append(trace.logits, session.finish_prompt());
  decode(session, all.subspan(kPrompt), trace);
  describe(session, trace);
  return trace;
}

}  // namespace chunkllm::testing
