// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/io/gguf.hpp"
#include "chunkllm/io/gguf_config.hpp"
#include "chunkllm/text/chat_template.hpp"
#include "chunkllm/text/tokenizer_gguf.hpp"

using namespace chunkllm;

namespace {

void read_tokenizer(const GgufFile& file) {
  const Result<BpeTokenizer> tokenizer = load_tokenizer_gguf(file);
  if (!tokenizer.ok()) return;
  const auto ids = tokenizer->encode("ab <s>ab", /*add_special_tokens=*/true);
  if (!ids.ok() || !tokenizer->decode(ids.value()).ok()) __builtin_trap();
}

void render_chat(const GgufFile& file) {
  const auto source = file.optional_string("tokenizer.chat_template");
  if (!source.ok() || !source.value()) return;
  const Result<ChatTemplate> chat = ChatTemplate::from_source(*source.value(), "<s>");
  const ChatMessage message = {"user", "Hi"};
  if (chat.ok() && !chat->render({&message, 1}).ok()) __builtin_trap();
}

}  // namespace

/// Every value through every getter, every tensor's last row dequantised, the configuration, the
/// tokenizer and the chat template.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span<const std::uint8_t>(data, size));
  const Result<GgufFile> file = GgufFile::parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  for (const std::string_view key : file->keys()) {
    (void)file->optional_int(key, INT64_MIN, INT64_MAX);
    (void)file->optional_double(key, -1e300, 1e300);
    (void)file->optional_bool(key);
    (void)file->optional_string(key);
    (void)file->string_array(key);
    (void)file->int_array(key, INT64_MIN, INT64_MAX);
    (void)file->double_array(key);
    std::vector<GgufValue> open = {*file->find(key)};
    while (!open.empty()) {
      const auto elements = GgufFile::elements(open.back());
      open.pop_back();
      if (!elements.ok()) continue;
      for (const GgufValue& element : elements.value()) {
        if (element.type == GgufType::kArray) open.push_back(element);
      }
    }
  }
  for (const GgufTensorInfo& info : file->tensor_infos()) {
    const Result<TensorBytes> tensor = file->tensor(info.name);
    if (!tensor.ok() || tensor->rows == 0 || tensor->bytes.empty()) continue;
    std::vector<float> row(static_cast<std::size_t>(tensor->cols));
    if (!dequantize_row(tensor.value(), tensor->rows - 1, row).ok()) __builtin_trap();
  }
  const Result<BackboneConfig> config = backbone_config_from_gguf(file.value());
  if (config.ok() && !validate(config.value(), "fuzz").ok()) __builtin_trap();
  read_tokenizer(file.value());
  render_chat(file.value());
  return 0;
}
