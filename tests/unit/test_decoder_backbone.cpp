// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/decoder_backbone.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "reference/decoder_oracle.hpp"
#include "support/dense_forward.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/random_values.hpp"

namespace chunkllm {
namespace {

using testing::MemoryTensorSource;
using testing::random_values;
using testing::small_config;

std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab_size) {
  std::mt19937 random(11);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab_size));
  }
  return tokens;
}

DecoderBackbone load(const MemoryTensorSource& source) {
  ThreadPool pool(2);
  Result<DecoderBackbone> backbone = DecoderBackbone::load(source, WeightFormat::kKeep, pool);
  EXPECT_TRUE(backbone.ok()) << backbone.status().message();
  return std::move(backbone).value();
}

struct Variant {
  std::string name;
  BackboneConfig config;
};

/// Each kind of decoder, all switches on and off.
std::vector<Variant> variants() {
  std::vector<Variant> all = {{"llama", small_config()}};
  const auto add = [&](const std::string& name, const auto& change) {
    all.push_back({name, small_config()});
    change(all.back().config);
  };
  add("llama_biases", [](BackboneConfig& c) { c.qkv_bias = c.output_bias = c.mlp_bias = true; });
  add("llama_linear", [](BackboneConfig& c) {
    c.rope_scaling.kind = RopeScaling::Kind::kLinear;
    c.rope_scaling.factor = 4.0;
  });
  add("llama3", [](BackboneConfig& c) {
    c.rope_scaling.kind = RopeScaling::Kind::kLlama3;
    c.rope_scaling.factor = 8.0;
    c.rope_scaling.original_context_length = 16.0;
  });
  add("llama_divisors", [](BackboneConfig& c) { c.rope_frequency_divisors = {1, 1, 2, 3, 8, 8}; });
  add("yarn", [](BackboneConfig& c) {
    c.rope_scaling.kind = RopeScaling::Kind::kYarn;
    c.rope_scaling.factor = 4.0;
    c.rope_scaling.original_context_length = 16.0;
    c.rope_scaling.attention_factor = 1.1386;
  });
  add("qwen2", [](BackboneConfig& c) {
    c.architecture = Architecture::kQwen2;
    c.qkv_bias = true;
    c.tied_embeddings = true;
    c.sliding_window = {0, 5};
  });
  add("qwen3", [](BackboneConfig& c) {
    c.architecture = Architecture::kQwen3;
    c.qk_norm = true;
    c.rms_norm_eps = 1e-2;  // large enough to be seen
  });
  add("mistral", [](BackboneConfig& c) {
    c.architecture = Architecture::kMistral;
    c.num_kv_heads = 1;
    c.sliding_window = {7, 7};
  });
  return all;
}

class DecoderOf : public ::testing::TestWithParam<Variant> {};

TEST_P(DecoderOf, LogitsEqualTheOracle) {
  const BackboneConfig& config = GetParam().config;
  const MemoryTensorSource source = MemoryTensorSource::random(config, 21);
  const DecoderBackbone backbone = load(source);
  const std::vector<std::int32_t> tokens = random_tokens(24, config.vocab_size);
  ThreadPool pool(2);
  const std::vector<float> logits = testing::DenseForward(backbone, pool).append(tokens);
  const oracle::Matrix exact = oracle::decoder_logits(config, source.to_double(), tokens);
  // Sums of some 50 products in f32, through two layers whose residual has a norm near 1: some
  // units in the last place of the row's largest logit for each sum. Seen: at most 27.
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    double largest = 0.0;
    for (const double logit : exact[t]) largest = std::max(largest, std::abs(logit));
    for (std::size_t i = 0; i < exact[t].size(); ++i) {
      const auto logit = static_cast<double>(logits[t * exact[t].size() + i]);
      ASSERT_TRUE(std::abs(logit - exact[t][i]) <= 150.0 * 0x1p-24 * largest)
          << "token " << t << ", id " << i << ": " << logit << " instead of " << exact[t][i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DecoderOf, ::testing::ValuesIn(variants()),
                         [](const auto& instance) { return instance.param.name; });

/// What every step makes of `rows` rows of random input, one after the other.
std::vector<float> all_steps(const DecoderBackbone& backbone, std::int64_t first, std::int64_t rows,
                             ThreadPool& pool) {
  const BackboneConfig& config = backbone.config();
  const auto slice = [&](std::int64_t width, std::uint32_t seed) {
    const std::vector<float> values = random_values(40 * width, seed);
    return std::vector<float>(values.begin() + first * width,
                              values.begin() + (first + rows) * width);
  };
  std::vector<float> hidden = slice(config.hidden_size, 31);
  const std::vector<float> attended = slice(config.query_size(), 32);
  std::vector<float> normed(hidden.size());
  std::vector<float> q(attended.size());
  std::vector<float> k(static_cast<std::size_t>(rows * config.kv_size()));
  std::vector<float> v(k.size());
  std::vector<float> logits(static_cast<std::size_t>(rows * config.vocab_size));
  const MatrixView<float> hidden_view(hidden.data(), rows, config.hidden_size);
  backbone.attention_input(1, hidden_view, {normed.data(), rows, config.hidden_size});
  backbone.project_qkv(1, {normed.data(), rows, config.hidden_size},
                       {q.data(), rows, config.query_size()}, {k.data(), rows, config.kv_size()},
                       {v.data(), rows, config.kv_size()}, pool);
  backbone.finish_layer(1, {attended.data(), rows, config.query_size()}, hidden_view, pool);
  backbone.logits(hidden_view, {logits.data(), rows, config.vocab_size}, pool);
  std::vector<float> all;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto append = [&](const std::vector<float>& values, std::int64_t width) {
      all.insert(all.end(), values.begin() + r * width, values.begin() + (r + 1) * width);
    };
    append(normed, config.hidden_size);
    append(q, config.query_size());
    append(k, config.kv_size());
    append(v, config.kv_size());
    append(hidden, config.hidden_size);
    append(logits, config.vocab_size);
  }
  return all;
}

TEST(DecoderBackbone, ARowDependsOnItselfAlone) {
  BackboneConfig config = small_config();
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
  const DecoderBackbone backbone = load(MemoryTensorSource::random(config, 22));
  ThreadPool one(1);
  std::vector<float> single;
  for (std::int64_t r = 0; r < 40; ++r) {
    const std::vector<float> row = all_steps(backbone, r, 1, one);
    single.insert(single.end(), row.begin(), row.end());
  }
  const auto width = static_cast<std::ptrdiff_t>(single.size() / 40);
  for (int num_threads = 1; num_threads <= 3; ++num_threads) {
    ThreadPool pool(num_threads);
    for (std::int64_t rows = 1; rows <= 40; ++rows) {
      ASSERT_EQ(all_steps(backbone, 40 - rows, rows, pool),
                std::vector<float>(single.end() - rows * width, single.end()))
          << rows << " rows, " << num_threads << " threads";
    }
  }
}

TEST(DecoderBackbone, MoreRowsThanOnePassHolds) {
  const DecoderBackbone backbone = load(MemoryTensorSource::random(small_config(), 23));
  const BackboneConfig& config = backbone.config();
  ThreadPool pool(2);
  constexpr std::int64_t kRows = 1030;
  const std::vector<float> attended = random_values(kRows * config.query_size(), 33);
  const std::vector<float> input = random_values(kRows * config.hidden_size, 34);
  std::vector<float> hidden = input;
  std::vector<float> logits(static_cast<std::size_t>(kRows * config.vocab_size));
  const MatrixView<float> view(hidden.data(), kRows, config.hidden_size);
  backbone.finish_layer(0, {attended.data(), kRows, config.query_size()}, view, pool);
  backbone.logits(view, {logits.data(), kRows, config.vocab_size}, pool);
  for (const std::int64_t r : {0, 511, 512, 1024, 1029}) {
    std::vector<float> row(input.begin() + r * config.hidden_size,
                           input.begin() + (r + 1) * config.hidden_size);
    const MatrixView<float> row_view(row.data(), 1, config.hidden_size);
    backbone.finish_layer(0, {attended.data() + r * config.query_size(), 1, config.query_size()},
                          row_view, pool);
    std::vector<float> row_logits(static_cast<std::size_t>(config.vocab_size));
    backbone.logits(row_view, {row_logits.data(), 1, config.vocab_size}, pool);
    ASSERT_EQ(row_logits, std::vector<float>(logits.begin() + r * config.vocab_size,
                                             logits.begin() + (r + 1) * config.vocab_size));
  }
}

TEST(DecoderBackbone, PrefillInBlocksEqualsOneByOne) {
  BackboneConfig config = small_config();
  config.sliding_window = {0, 6};
  const DecoderBackbone backbone = load(MemoryTensorSource::random(config, 24));
  const std::vector<std::int32_t> tokens = random_tokens(30, config.vocab_size);
  ThreadPool pool(2);
  testing::DenseForward by_one(backbone, pool);
  std::vector<float> last;
  for (const std::int32_t token : tokens) last = by_one.append(std::span(&token, 1));
  const std::vector<float> all = testing::DenseForward(backbone, pool).append(tokens);
  // The helper's attention divides by sums of another width, so equal to rounding only.
  for (std::size_t i = 0; i < last.size(); ++i) {
    ASSERT_TRUE(std::abs(all[all.size() - last.size() + i] - last[i]) <= 1e-4F);
  }
}

TEST(DecoderBackbone, EmbedReadsRows) {
  MemoryTensorSource source = MemoryTensorSource::random(small_config(), 25);
  const DecoderBackbone backbone = load(source);
  const std::vector<float>& embedding = source.values("model.embed_tokens.weight");
  const std::vector<std::int32_t> tokens = {69, 0, 33};
  std::vector<float> hidden(3 * 43);  // rows further apart than they are wide
  backbone.embed(tokens, {hidden.data(), 3, 40, 43});
  for (std::size_t t = 0; t < 3; ++t) {
    for (std::size_t i = 0; i < 40; ++i) {
      ASSERT_EQ(hidden[t * 43 + i], embedding[static_cast<std::size_t>(tokens[t]) * 40 + i]);
    }
  }
}

TEST(DecoderBackbone, WeightBytesCoverMatricesAndVectors) {
  const BackboneConfig config = small_config();
  const DecoderBackbone backbone = load(MemoryTensorSource::random(config, 26));
  std::int64_t expected = 0;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    // A matrix's last panel of 32 rows is whole in memory.
    const std::int64_t rows = tensor.rows == 1 ? 1 : (tensor.rows + 31) / 32 * 32;
    expected += rows * tensor.cols * 4;
  }
  EXPECT_EQ(backbone.weight_bytes(), expected);
}

TEST(RmsNorm, IsScaledToUnitMeanSquare) {
  for (std::int64_t size = 1; size <= 70; ++size) {
    std::vector<float> x = random_values(size, 41);
    const std::vector<float> weight = random_values(size, 42);
    const oracle::Vector exact = oracle::rms_norm(
        oracle::Vector(x.begin(), x.end()), oracle::Vector(weight.begin(), weight.end()), 1e-5);
    detail::rms_norm(x.data(), weight, 1e-5, x.data());  // in place
    for (std::size_t i = 0; i < x.size(); ++i) {
      // The mean of up to 70 squares, its root, and two products.
      ASSERT_TRUE(std::abs(static_cast<double>(x[i]) - exact[i]) <=
                  (static_cast<double>(size) + 6.0) * 0x1p-24 * std::abs(exact[i]));
    }
  }
}

TEST(SiluGate, EqualsTheDefinitionOverTheWholeRange) {
  std::vector<float> gates;
  for (float x = 1e-6F; x < 1e4F; x *= 1.3F) {
    gates.push_back(x);
    gates.push_back(-x);
  }
  gates.push_back(0.0F);
  const auto size = static_cast<std::int64_t>(gates.size());
  const std::vector<float> up = random_values(size, 43);
  std::vector<float> out = gates;
  detail::silu_gate(out.data(), up.data(), size);
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const auto gate = static_cast<double>(gates[i]);
    const double exact = gate / (1.0 + std::exp(-gate)) * static_cast<double>(up[i]);
    // Two units of the exponential, three operations; the bound at -88 replaces zeros by less than
    // 1e-30.
    ASSERT_TRUE(std::abs(static_cast<double>(out[i]) - exact) <=
                8.0 * 0x1p-24 * std::abs(exact) + 1e-30)
        << gates[i];
  }
}

TEST(SiluGate, AValueDoesNotDependOnItsPlace) {
  const std::vector<float> gate = random_values(37, 44);
  const std::vector<float> up = random_values(37, 45);
  std::vector<float> together = gate;
  detail::silu_gate(together.data(), up.data(), 37);
  for (std::size_t i = 0; i < gate.size(); ++i) {
    float alone = gate[i];
    detail::silu_gate(&alone, &up[i], 1);
    ASSERT_EQ(alone, together[i]);
  }
}

TEST(SiluGate, KeepsNaN) {
  std::vector<float> gate(20, 1.0F);
  gate[2] = gate[18] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> up(20, 1.0F);
  detail::silu_gate(gate.data(), up.data(), 20);
  EXPECT_TRUE(std::isnan(gate[2]));
  EXPECT_TRUE(std::isnan(gate[18]));
  EXPECT_FALSE(std::isnan(gate[3]));
}

}  // namespace
}  // namespace chunkllm
