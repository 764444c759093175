// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// Speed of the tokenizer on one core. CHUNKLLM_TEST_MODEL names a GGUF file with its vocabulary,
// CHUNKLLM_BENCH_TEXT an English text; bytes/s count the text's bytes.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "chunkllm/io/gguf.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/nfc.hpp"
#include "chunkllm/text/pre_tokenizer.hpp"
#include "chunkllm/text/tokenizer_gguf.hpp"

namespace {

using chunkllm::BpeTokenizer;
using chunkllm::Result;

const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// An input that is read once; the benchmark is skipped with its error where it is missing.
template <typename T>
const T* require(benchmark::State& state, const Result<T>& input) {
  if (input.ok()) return &input.value();
  state.SkipWithError(input.status().message().c_str());
  return nullptr;
}

const Result<chunkllm::GgufFile>& model_file() {
  static const auto file = chunkllm::GgufFile::open(environment("CHUNKLLM_TEST_MODEL"));
  return file;
}

const Result<BpeTokenizer>& tokenizer() {
  static const Result<BpeTokenizer> result = []() -> Result<BpeTokenizer> {
    if (!model_file().ok()) return model_file().status();
    return chunkllm::load_tokenizer_gguf(model_file().value());
  }();
  return result;
}

const Result<std::string>& english() {
  static const auto text = chunkllm::read_text_file(environment("CHUNKLLM_BENCH_TEXT"), 1 << 28);
  return text;
}

void count_bytes(benchmark::State& state, std::size_t bytes) {
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
}

void load_vocabulary(benchmark::State& state) {
  const auto* file = require(state, model_file());
  if (file == nullptr) return;
  for (auto _ : state) benchmark::DoNotOptimize(chunkllm::load_tokenizer_gguf(*file));
}
BENCHMARK(load_vocabulary)->Unit(benchmark::kMillisecond);

void encode_english(benchmark::State& state, bool warm) {
  const auto* bpe = require(state, tokenizer());
  const auto* text = require(state, english());
  if (bpe == nullptr || text == nullptr) return;
  chunkllm::EncodeScratch scratch;
  std::size_t num_ids = 0;
  for (auto _ : state) {
    if (!warm) scratch = chunkllm::EncodeScratch();
    num_ids = bpe->encode(*text, /*add_special_tokens=*/false, scratch).value().size();
  }
  count_bytes(state, text->size());
  state.counters["ids"] = static_cast<double>(num_ids);
}
BENCHMARK_CAPTURE(encode_english, warm_cache, true)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode_english, cold_cache, false)->Unit(benchmark::kMillisecond);

void decode_english(benchmark::State& state) {
  const auto* bpe = require(state, tokenizer());
  const auto* text = require(state, english());
  if (bpe == nullptr || text == nullptr) return;
  const auto ids = bpe->encode(*text, /*add_special_tokens=*/false).value();
  for (auto _ : state) benchmark::DoNotOptimize(bpe->decode(ids));
  count_bytes(state, text->size());
}
BENCHMARK(decode_english)->Unit(benchmark::kMillisecond);

void split_english(benchmark::State& state, chunkllm::SplitRule rule) {
  const auto* text = require(state, english());
  if (text == nullptr) return;
  for (auto _ : state) {
    std::size_t num_pieces = 0;
    chunkllm::split_text({&rule, 1}, *text, [&](std::string_view) { ++num_pieces; });
    benchmark::DoNotOptimize(num_pieces);
  }
  count_bytes(state, text->size());
}
BENCHMARK_CAPTURE(split_english, gpt2, chunkllm::SplitRule::kGpt2);
BENCHMARK_CAPTURE(split_english, llama3, chunkllm::SplitRule::kLlama3);

/// One word of equal letters: n log n, not quadratic.
void encode_one_word(benchmark::State& state) {
  const auto* bpe = require(state, tokenizer());
  if (bpe == nullptr) return;
  const std::string word(static_cast<std::size_t>(state.range(0)), 'a');
  for (auto _ : state) benchmark::DoNotOptimize(bpe->encode(word, /*add_special_tokens=*/false));
  count_bytes(state, word.size());
}
BENCHMARK(encode_one_word)
    ->RangeMultiplier(10)
    ->Range(1000, 1000000)
    ->Unit(benchmark::kMillisecond);

void normalize_nfc(benchmark::State& state) {
  const auto* text = require(state, english());
  if (text == nullptr) return;
  for (auto _ : state) benchmark::DoNotOptimize(chunkllm::to_nfc(*text));
  count_bytes(state, text->size());
}
BENCHMARK(normalize_nfc);

}  // namespace

BENCHMARK_MAIN();
