// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/text/bpe_tokenizer.hpp"
#include "chunkllm/text/nfc.hpp"
#include "chunkllm/text/stream_decoder.hpp"
#include "chunkllm/text/tokenizer_json.hpp"

using namespace chunkllm;

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

void encode_and_decode(const BpeTokenizer& tokenizer, std::string_view text) {
  EncodeScratch scratch(/*num_cached_words=*/64);
  const auto ids = tokenizer.encode(text, /*add_special_tokens=*/true, scratch);
  require(ids.ok() == is_valid_utf8(text));
  if (!ids.ok()) return;
  require(tokenizer.encode(text, true, scratch).value() == ids.value());
  const auto decoded = tokenizer.decode(ids.value());
  require(decoded.ok() && is_valid_utf8(decoded.value()));
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const std::int32_t id : ids.value()) streamed += stream.push(id).value();
  require(streamed + stream.finish() == decoded.value());
}

}  // namespace

/// The input is a tokenizer.json and, after a NUL byte, a text.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = input.find('\0');
  const std::string_view text = cut == std::string_view::npos ? "" : input.substr(cut + 1);
  const std::string normalized = to_nfc(text);
  require(to_nfc(normalized) == normalized);
  const auto tokenizer = load_tokenizer_json(input.substr(0, cut), "", "fuzz");
  if (!tokenizer.ok()) {
    require(!tokenizer.status().message().empty());
    return 0;
  }
  encode_and_decode(tokenizer.value(), text);
  encode_and_decode(tokenizer.value(), normalized);
  return 0;
}
