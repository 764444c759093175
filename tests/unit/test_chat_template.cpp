// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/chat_template.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace chunkllm {
namespace {

constexpr std::string_view kSmolLm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}";

// The parts of the families' templates that tell them apart.
constexpr std::string_view kQwen25 =
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are "
    "Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
constexpr std::string_view kQwen3 =
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- set ns = "
    "namespace(last_query_index=messages|length - 1) %}{%- if '</think>' in message.content %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is "
    "defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}";
constexpr std::string_view kLlama3 =
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = "
    "bos_token + content %}{% endif %}{{ content }}";
constexpr std::string_view kLlama31 =
    "{{- bos_token }}{{- \"Cutting Knowledge Date: December 2023\\n\" }}{{- "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | "
    "trim + '<|eot_id|>' }}";

std::string render(std::string_view source, const std::vector<ChatMessage>& messages) {
  const auto chat = ChatTemplate::from_source(source, "<|begin_of_text|>");
  EXPECT_TRUE(chat.ok()) << chat.status().message();
  const auto text = chat.value().render(messages);
  EXPECT_TRUE(text.ok()) << text.status().message();
  return text.value();
}

TEST(ChatTemplate, SmolLm2PutsItsSystemMessageInFront) {
  EXPECT_EQ(render(kSmolLm2, {{"user", " Hi\n"}}),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render(kSmolLm2, {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Yo"}}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, Qwen25) {
  EXPECT_EQ(render(kQwen25, {{"user", "Hi"}}),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, Qwen3DropsEarlierThoughts) {
  EXPECT_EQ(
      render(kQwen3, {{"user", "a"}, {"assistant", "<think>\nwhy\n</think>\n\nb"}, {"user", "c"}}),
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
      "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render(kQwen3, {{"user", "a"}, {"assistant", "<think>\nwhy\n</think>\n\nb"}}),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nwhy\n</think>\n\nb"
            "<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, Llama3TrimsContents) {
  EXPECT_EQ(render(kLlama3, {{"user", " \n Hi\xE3\x80\x80"}}),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplate, Llama31NamesTheDates) {
  EXPECT_EQ(render(kLlama31, {{"system", " Be brief. "}, {"user", "Hi"}}),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge "
            "Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplate, RefusesOtherTemplates) {
  const std::string trimmed =
      "{{'<|im_start|>' + message['role'] + message['content'] | trim + '<|im_end|>'}}"
      "{% if add_generation_prompt %}";
  for (const std::string_view source :
       {std::string_view(""), std::string_view("[INST] {{ message['content'] }} [/INST]"),
        std::string_view(trimmed)}) {
    const auto chat = ChatTemplate::from_source(source, "");
    ASSERT_FALSE(chat.ok());
    EXPECT_EQ(chat.status().code(), StatusCode::kUnsupported);
    EXPECT_NE(chat.status().message().find("Llama-3"), std::string::npos);
  }
}

TEST(ChatTemplate, ATemplateOfManyTurnsIsNotQuadratic) {
  std::string source = "{{ message['content'] }}{% if add_generation_prompt %}";
  for (int i = 0; i < 100'000; ++i) source += "<|im_start|>system\n";
  EXPECT_EQ(render(source + "Be brief.<|im_end|>", {{"user", "Hi"}}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(render(source + "'<|im_end|>", {{"user", "Hi"}}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, RefusesEmptyConversationsAndUnknownRoles) {
  const auto chat = ChatTemplate::from_source(kSmolLm2, "");
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat.value().render({}).status().code(), StatusCode::kInvalidArgument);
  const std::vector<ChatMessage> messages = {{"tool", "x"}};
  EXPECT_EQ(chat.value().render(messages).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
