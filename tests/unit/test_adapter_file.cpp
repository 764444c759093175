// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/adapter_file.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/adapter_file_writer.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

using testing::TempFolder;

BackboneConfig config() {
  BackboneConfig config;
  config.num_layers = 2;
  config.hidden_size = 6;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 4;
  config.vocab_size = 100;
  return config;
}

std::vector<float> numbers(std::size_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random() % 64) / 32.0F - 1.0F;
  return values;
}

/// Small multiples of 1/32, which all three element types hold exactly.
AdapterFile adapters(bool has_bias = true, bool has_null = true) {
  AdapterFile file;
  file.model = describe_adapter_model(config(), "0123456789abcdef");
  auto chunk = std::make_shared<ChunkAdapter>();
  chunk->weight = numbers(6, 1);
  chunk->bias = -0.5F;
  chunk->threshold = 0.375F;
  file.maybe_chunk_adapter = chunk;
  std::vector<QkAdapterLayer> layers(2);
  for (std::uint32_t l = 0; l < 2; ++l) {
    layers[l].query_weight = numbers(4 * 3 * 6, 10 + l);
    layers[l].key_weight = numbers(2 * 3 * 6, 20 + l);
    if (has_bias) layers[l].distance_bias = numbers(4 * 34, 30 + l);
    if (has_null) {
      layers[l].null_weight = numbers(4 * 6, 40 + l);
      layers[l].null_bias = numbers(4, 50 + l);
    }
  }
  file.maybe_qk_adapter =
      std::make_shared<const QkAdapter>(std::move(layers), 6, 4, 2, 3, KeyPooling::kEndToken, true);
  file.guards = {3, 77};
  file.head_join = HeadJoin::kMean;
  file.null_threshold = 0.01F;
  return file;
}

std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  const auto bytes = std::as_bytes(std::span<const char>(text));
  return {bytes.begin(), bytes.end()};
}

TEST(AdapterFile, ComesBackAsWritten) {
  const TempFolder folder;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool has_bias : {false, true}) {
      for (const bool has_null : {false, true}) {
        const AdapterFile file = adapters(has_bias, has_null);
        const std::string path = folder.file("adapters.safetensors");
        const Status written = write_adapter_file(path, file, dtype, {{"trained.steps", "100"}});
        ASSERT_TRUE(written.ok()) << written.message();
        const Result<AdapterFile> read = load_adapter_file(path);
        ASSERT_TRUE(read.ok()) << read.status().message();
        EXPECT_EQ(read->maybe_chunk_adapter->weight, file.maybe_chunk_adapter->weight);
        EXPECT_EQ(read->maybe_chunk_adapter->bias, -0.5F);
        EXPECT_EQ(read->maybe_chunk_adapter->threshold, 0.375F);
        EXPECT_EQ(read->guards.min_len, 3);
        EXPECT_EQ(read->guards.max_len, 77);
        EXPECT_EQ(read->head_join, HeadJoin::kMean);
        EXPECT_EQ(read->null_threshold, 0.01F);
        EXPECT_EQ(read->maybe_qk_adapter->pooling(), KeyPooling::kEndToken);
        const ScorerShape shape = read->maybe_qk_adapter->shape();
        EXPECT_EQ(shape.num_heads, 4);
        EXPECT_EQ(shape.num_key_heads, 2);
        EXPECT_EQ(shape.key_dim, 3);
        EXPECT_TRUE(shape.adds_log_length);
        EXPECT_EQ(shape.has_null_logits, has_null);
        for (std::size_t l = 0; l < 2; ++l) {
          const QkAdapterLayer& a = read->maybe_qk_adapter->layers()[l];
          const QkAdapterLayer& b = file.maybe_qk_adapter->layers()[l];
          EXPECT_EQ(a.query_weight, b.query_weight);
          EXPECT_EQ(a.key_weight, b.key_weight);
          EXPECT_EQ(a.distance_bias, b.distance_bias);
          EXPECT_EQ(a.null_weight, b.null_weight);
          EXPECT_EQ(a.null_bias, b.null_bias);
        }
        EXPECT_TRUE(check_fits(read.value(), config(), "0123456789abcdef").ok());
      }
    }
  }
}

TEST(AdapterFile, EitherPartMayBeMissing) {
  const TempFolder folder;
  const std::string path = folder.file("a");
  AdapterFile file = adapters();
  file.maybe_qk_adapter = nullptr;
  ASSERT_TRUE(write_adapter_file(path, file, DType::kF32).ok());
  Result<AdapterFile> read = load_adapter_file(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_NE(read->maybe_chunk_adapter, nullptr);
  EXPECT_EQ(read->maybe_qk_adapter, nullptr);
  file = adapters();
  file.maybe_chunk_adapter = nullptr;
  ASSERT_TRUE(write_adapter_file(path, file, DType::kF32).ok());
  read = load_adapter_file(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->maybe_chunk_adapter, nullptr);
  EXPECT_NE(read->maybe_qk_adapter, nullptr);
}

TEST(AdapterFile, FitsOneModelOnly) {
  const AdapterFile file = adapters();
  const auto message = [&](const std::function<void(BackboneConfig&)>& change,
                           std::string_view fingerprint = "0123456789abcdef") {
    BackboneConfig other = config();
    change(other);
    const Status status = check_fits(file, other, fingerprint);
    EXPECT_EQ(status.code(), StatusCode::kInvalidFile);
    return status.message();
  };
  EXPECT_NE(message([](auto& c) { c.num_layers = 3; }).find("num_layers 2, this one has 3"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.hidden_size = 8; }).find("hidden_size"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.num_heads = 8; }).find("num_heads"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.num_kv_heads = 1; }).find("num_kv_heads"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.head_dim = 8; }).find("head_dim"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.vocab_size = 99; }).find("vocab_size"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.architecture = Architecture::kQwen2; }).find("qwen2"),
            std::string::npos);
  EXPECT_NE(message([](auto&) {}, "fedcba9876543210").find("fingerprint"), std::string::npos);
}

/// The parts of a valid file, for making invalid ones of them.
struct Draft {
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::pair<std::vector<std::int64_t>, std::vector<float>>> tensors;
  DType dtype = DType::kF32;

  Draft() {
    const TempFolder folder;
    const std::string path = folder.file("good");
    EXPECT_TRUE(write_adapter_file(path, adapters(), DType::kF32).ok());
    const Result<SafetensorsFile> file = SafetensorsFile::open(path);
    metadata = file->metadata();
    for (const std::string& name : file->tensor_names()) {
      const SafetensorsEntry* entry = file->find(name);
      std::vector<float> values(entry->bytes.size() / sizeof(float));
      std::memcpy(values.data(), entry->bytes.data(), entry->bytes.size());
      tensors[name] = {entry->shape, values};
    }
  }

  [[nodiscard]] Result<AdapterFile> read() const {
    const TempFolder folder;
    std::vector<SafetensorsTensor> list;
    for (const auto& [name, tensor] : tensors) {
      list.push_back({name, dtype, tensor.first, std::as_bytes(std::span(tensor.second))});
    }
    const std::string path = folder.file("draft");
    EXPECT_TRUE(write_safetensors(path, list, metadata).ok());
    return parse_adapter_bytes(bytes_of(path), "draft");
  }
};

TEST(AdapterFile, RefusesEachWrongPartByName) {
  ASSERT_TRUE(Draft().read().ok()) << Draft().read().status().message();
  struct Wrong {
    std::string part;  // of the message
    std::function<void(Draft&)> change;
  };
  const auto set = [](std::string key, std::string value) {
    return Wrong{key, [=](Draft& d) { d.metadata[key] = value; }};
  };
  const auto drop = [](std::string key) {
    return Wrong{key, [=](Draft& d) { d.metadata.erase(key); }};
  };
  std::vector<Wrong> cases = {
      set("format", "chunkllm"),
      set("format_version", "0"),
      set("format_version", "one"),
      set("model.fingerprint", ""),
      set("model.fingerprint", "a b"),
      set("model.fingerprint", std::string(129, 'a')),
      set("model.num_layers", "0"),
      set("model.num_layers", "99999999999999999999"),
      set("model.num_layers", "2 "),
      set("model.num_layers", "+2"),
      set("model.hidden_size", "-6"),
      set("guards.min_len", "0"),
      set("guards.max_len", "2"),
      set("chunk_adapter.threshold", "nan"),
      set("chunk_adapter.threshold", "1.01"),
      set("chunk_adapter.threshold", "-0.5"),
      set("chunk_adapter.threshold", "inf"),
      set("chunk_adapter.threshold", ""),
      set("qk_adapter.num_heads", "0"),
      set("qk_adapter.num_key_heads", "3"),
      set("qk_adapter.num_key_heads", "8"),
      set("qk_adapter.key_dim", "0"),
      set("qk_adapter.pooling", "attention"),
      set("qk_adapter.log_length", "yes"),
      set("qk_adapter.head_join", "sum"),
      set("qk_adapter.null_threshold", "2"),
      drop("format"),
      drop("format_version"),
      drop("model.fingerprint"),
      drop("model.architecture"),
      drop("model.vocab_size"),
      drop("guards.min_len"),
      drop("chunk_adapter.threshold"),
      drop("qk_adapter.pooling"),
      drop("qk_adapter.null_threshold"),
      // Numbers that contradict the tensors.
      {"layers.2.query.weight", [](Draft& d) { d.metadata["model.num_layers"] = "3"; }},
      {"layers.1.", [](Draft& d) { d.metadata["model.num_layers"] = "1"; }},
      {"chunk_adapter.weight", [](Draft& d) { d.metadata["model.hidden_size"] = "7"; }},
      {"layers.0.query.weight", [](Draft& d) { d.metadata["qk_adapter.key_dim"] = "4"; }},
      {"layers.0.key.weight", [](Draft& d) { d.metadata["qk_adapter.num_key_heads"] = "4"; }},
  };
  for (const std::string name :
       {"chunk_adapter.bias", "layers.0.key.weight", "layers.1.query.weight",
        "layers.1.distance_bias", "layers.0.null.bias", "layers.1.null.weight"}) {
    cases.push_back({name, [=](Draft& d) { d.tensors.erase(name); }});
    cases.push_back({name, [=](Draft& d) { d.tensors[name] = {{2, 2}, {1, 2, 3, 4}}; }});
    cases.push_back({name, [=](Draft& d) { d.tensors[name] = {{0}, {}}; }});
  }
  cases.push_back({"layers.0.distance_bias", [](Draft& d) {
                     d.tensors["layers.0.distance_bias"].second[7] =
                         std::numeric_limits<float>::quiet_NaN();
                   }});
  cases.push_back({"chunk_adapter.weight", [](Draft& d) {
                     d.tensors["chunk_adapter.weight"].second[0] =
                         std::numeric_limits<float>::infinity();
                   }});
  cases.push_back({"layers.0.extra", [](Draft& d) { d.tensors["layers.0.extra"] = {{1}, {1}}; }});
  cases.push_back({"layers.01.key.weight", [](Draft& d) {
                     d.tensors["layers.01.key.weight"] = d.tensors["layers.1.key.weight"];
                   }});
  cases.push_back({"neither", [](Draft& d) { d.tensors = {}; }});
  for (const Wrong& wrong : cases) {
    Draft draft;
    wrong.change(draft);
    const Result<AdapterFile> read = draft.read();
    ASSERT_FALSE(read.ok()) << wrong.part;
    EXPECT_TRUE(read.status().code() == StatusCode::kInvalidFile ||
                read.status().code() == StatusCode::kNotFound)
        << read.status().message();
    EXPECT_NE(read.status().message().find(wrong.part), std::string::npos)
        << wrong.part << ": " << read.status().message();
    EXPECT_TRUE(read.status().message().starts_with("draft: ")) << read.status().message();
    EXPECT_EQ(read.status().message().find('\n'), std::string::npos);
  }
}

TEST(AdapterFile, OtherVersionsAreUnsupported) {
  Draft draft;
  draft.metadata["format_version"] = "2";
  EXPECT_EQ(draft.read().status().code(), StatusCode::kUnsupported);
}

TEST(AdapterFile, EveryTruncationIsRefused) {
  const TempFolder folder;
  const std::string path = folder.file("good");
  ASSERT_TRUE(write_adapter_file(path, adapters(), DType::kBF16).ok());
  const std::vector<std::byte> bytes = bytes_of(path);
  for (std::size_t size = 0; size < bytes.size(); size += size < 16 ? 1 : 53) {
    EXPECT_FALSE(parse_adapter_bytes(std::span(bytes).first(size), "cut").ok()) << size;
  }
}

TEST(AdapterFileWriter, RefusesWhatItCouldNotRead) {
  const TempFolder folder;
  const std::string path = folder.file("out");
  const auto code = [&](const AdapterFile& file, DType dtype = DType::kF32,
                        const std::map<std::string, std::string>& notes = {}) {
    return write_adapter_file(path, file, dtype, notes).code();
  };
  AdapterFile file = adapters();
  EXPECT_EQ(code(file, DType::kQ8_0), StatusCode::kUnsupported);
  EXPECT_EQ(code(file, DType::kF32, {{"format", "mine"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(AdapterFile{}), StatusCode::kInvalidArgument);
  file.model.num_layers = 3;
  EXPECT_EQ(code(file), StatusCode::kInvalidArgument);
  file = adapters();
  file.model.hidden_size = 7;
  EXPECT_EQ(code(file), StatusCode::kInvalidArgument);
  file = adapters();
  auto large = std::make_shared<ChunkAdapter>(*file.maybe_chunk_adapter);
  large->weight[2] = 1e6F;
  file.maybe_chunk_adapter = large;
  EXPECT_EQ(code(file, DType::kF16), StatusCode::kInvalidArgument);  // infinite in f16
  const auto refused = [&](const std::string& part, const auto& change) {
    AdapterFile wrong = adapters();
    change(wrong);
    const Status status = write_adapter_file(path, wrong, DType::kF32);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << part;
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  };
  refused("model.fingerprint", [](AdapterFile& f) { f.model.fingerprint = "a b"; });
  refused("model.vocab_size", [](AdapterFile& f) { f.model.vocab_size = 0; });
  refused("guards.min_len", [](AdapterFile& f) { f.guards.min_len = 0; });
  refused("guards.max_len", [](AdapterFile& f) { f.guards.max_len = 2; });
  refused("qk_adapter.null_threshold",
          [](AdapterFile& f) { f.null_threshold = std::numeric_limits<float>::quiet_NaN(); });
  refused("chunk_adapter.threshold", [](AdapterFile& f) {
    auto chunk = std::make_shared<ChunkAdapter>(*f.maybe_chunk_adapter);
    chunk->threshold = 2.0F;
    f.maybe_chunk_adapter = chunk;
  });
  refused("layer 1", [](AdapterFile& f) {
    std::vector<QkAdapterLayer> layers = f.maybe_qk_adapter->layers();
    layers[1].distance_bias.clear();
    f.maybe_qk_adapter =
        std::make_shared<const QkAdapter>(std::move(layers), 6, 4, 2, 3, KeyPooling::kMean, true);
  });
  EXPECT_EQ(folder.num_entries(), 0U);
  EXPECT_EQ(code(file, DType::kBF16), StatusCode::kOk);
  EXPECT_EQ(folder.num_entries(), 1U);
}

}  // namespace
}  // namespace chunkllm
