// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/text/unicode_classes.hpp"
#include "chunkllm/text/utf8.hpp"

namespace chunkllm {

/// One turn of a conversation; all text valid UTF-8.
struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// Families of chat templates that are rendered without a template engine.
enum class ChatFamily {
  kChatMl,   ///< <|im_start|>role\ncontent<|im_end|>\n: SmolLM2, Qwen2, Qwen2.5 and others
  kQwen3,    ///< ChatML whose assistant turns may hold a <think> block
  kLlama3,   ///< <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>
  kLlama31,  ///< Llama-3's, with a system turn that names the knowledge and today's date
};

namespace detail {

/// Removes white space at both ends, as Python's `str.strip` does.
inline std::string_view strip_white_space(std::string_view text) {
  const auto is_space = [](char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Utf8Step step = decode_utf8_step(text, 0);
    if (!step.valid || !is_space(step.code_point)) break;
    text.remove_prefix(step.num_bytes);
  }
  while (!text.empty()) {
    std::size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    const Utf8Step step = decode_utf8_step(text, start);
    if (!step.valid || !is_space(step.code_point)) break;
    text = text.substr(0, start);
  }
  return text;
}

inline std::string_view strip_newlines(std::string_view text, bool at_start, bool at_end) {
  while (at_start && text.starts_with('\n')) text.remove_prefix(1);
  while (at_end && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

/// The text of a ChatML turn that a template spells out in one string literal, from `begin` to its
/// end mark; nothing where a quote, an expression or another turn comes first. A newline may be
/// written as such or as backslash n.
inline std::optional<std::string> chat_ml_literal(std::string_view text, std::size_t begin) {
  std::string literal;
  for (std::size_t i = begin; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i);
    if (rest.starts_with("<|im_end|>")) return literal;
    // Stopping at the next turn keeps the search over all of a template's turns linear.
    if (rest.starts_with("<|im_start|>")) return std::nullopt;
    const char c = text[i];
    if (c == '\'' || c == '"' || c == '{' || c == '}') return std::nullopt;
    if (c == '\\') {
      if (!rest.starts_with("\\n")) return std::nullopt;
      literal += '\n';
      ++i;
      continue;
    }
    literal += c;
  }
  return std::nullopt;
}

/// The system turn that a ChatML template puts before a conversation that has none.
inline std::optional<std::string> default_system_message(std::string_view source) {
  for (const std::string_view start : {"<|im_start|>system\n", "<|im_start|>system\\n"}) {
    for (std::size_t pos = source.find(start); pos != std::string_view::npos;
         pos = source.find(start, pos + 1)) {
      auto message = chat_ml_literal(source, pos + start.size());
      if (message) return message;
    }
  }
  return std::nullopt;
}

}  // namespace detail

/// A model's chat template, recognised from its Jinja source by the marks of its family.
class ChatTemplate {
 public:
  /// \param source     the template of the model's files (`tokenizer.chat_template`)
  /// \param bos_token  text of the begin token, which Llama-3's templates write themselves
  /// Errors: kUnsupported, with the families that are, for any other template
  static Result<ChatTemplate> from_source(std::string_view source, std::string_view bos_token) {
    const auto has = [&](std::string_view mark) {
      return source.find(mark) != std::string_view::npos;
    };
    ChatTemplate result;
    result.bos_token_ = bos_token;
    const bool takes_content =
        has("message['content']") || has("message.content") || has("message[\"content\"]");
    if (takes_content && has("<|start_header_id|>") && has("<|eot_id|>") && has("trim")) {
      result.writes_current_date_ = has("strftime_now");
      result.family_ =
          has("Cutting Knowledge Date: December 2023") ? ChatFamily::kLlama31 : ChatFamily::kLlama3;
      return result;
    }
    // Templates that trim contents or open a <think> block themselves are other families.
    const bool is_chat_ml = takes_content && has("<|im_start|>") && has("<|im_end|>") &&
                            has("add_generation_prompt") && !has("|trim") && !has("| trim") &&
                            !has("assistant\\n<think>") && !has("assistant\n<think>");
    if (is_chat_ml) {
      const bool thinks = has("</think>");
      if (!thinks || (has("enable_thinking") && has("last_query_index"))) {
        result.family_ = thinks ? ChatFamily::kQwen3 : ChatFamily::kChatMl;
        if (!thinks) result.default_system_ = detail::default_system_message(source);
        return result;
      }
    }
    return unsupported(
        "chat template is none of the supported families: ChatML (SmolLM2, Qwen2, Qwen2.5), "
        "Qwen3, Llama-3, Llama-3.1");
  }

  [[nodiscard]] ChatFamily family() const { return family_; }
  /// True for Llama-3.2's template, whose system turn names the day of rendering.
  [[nodiscard]] bool writes_current_date() const { return writes_current_date_; }

  /// The prompt of a conversation, ending with the start of the assistant's turn.
  ///
  /// It holds all special tokens: encode it without adding a begin token.
  ///
  /// \param today  of Llama-3.1's system turn, in the form of "26 Jul 2024", which is that
  ///               template's default; the current day where `writes_current_date()`
  /// Errors: kInvalidArgument for no messages, or a role other than system, user and assistant
  /// Source: equals `apply_chat_template(messages, add_generation_prompt=True)` of Hugging Face
  ///         `transformers` for the families' templates, without tools
  Result<std::string> render(std::span<const ChatMessage> messages,
                             std::string_view today = "26 Jul 2024") const {
    if (messages.empty()) return invalid_argument("chat: no messages, expected at least one");
    for (const ChatMessage& message : messages) {
      if (message.role != "system" && message.role != "user" && message.role != "assistant") {
        return invalid_argument("chat: role \"" + message.role.substr(0, 32) +
                                "\", expected system, user or assistant");
      }
    }
    switch (family_) {
      case ChatFamily::kChatMl: return render_chat_ml(messages);
      case ChatFamily::kQwen3: return render_qwen3(messages);
      case ChatFamily::kLlama3:
      case ChatFamily::kLlama31: break;
    }
    return render_llama3(messages, today);
  }

 private:
  ChatTemplate() = default;

  static void append_chat_ml(std::string_view role, std::string_view content, std::string& out) {
    out.append("<|im_start|>").append(role).append("\n").append(content).append("<|im_end|>\n");
  }

  [[nodiscard]] std::string render_chat_ml(std::span<const ChatMessage> messages) const {
    std::string out;
    if (default_system_ && messages.front().role != "system") {
      append_chat_ml("system", *default_system_, out);
    }
    for (const ChatMessage& message : messages) {
      append_chat_ml(message.role, message.content, out);
    }
    return out.append("<|im_start|>assistant\n");
  }

  /// Earlier answers lose their <think> block; those after the last question keep it.
  static std::string render_qwen3(std::span<const ChatMessage> messages) {
    std::size_t last_query = messages.size() - 1;
    for (std::size_t i = messages.size(); i-- > 0;) {
      const std::string_view content = messages[i].content;
      const bool is_tool_response =
          content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
      if (messages[i].role == "user" && !is_tool_response) {
        last_query = i;
        break;
      }
    }
    std::string out;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      std::string_view content = messages[i].content;
      if (messages[i].role != "assistant") {
        append_chat_ml(messages[i].role, content, out);
        continue;
      }
      constexpr std::string_view kOpen = "<think>";
      constexpr std::string_view kClose = "</think>";
      std::string_view reasoning;
      if (const std::size_t close = content.find(kClose); close != std::string_view::npos) {
        reasoning = detail::strip_newlines(content.substr(0, close), false, true);
        if (const std::size_t open = reasoning.rfind(kOpen); open != std::string_view::npos) {
          reasoning.remove_prefix(open + kOpen.size());
        }
        reasoning = detail::strip_newlines(reasoning, true, true);
        content = content.substr(content.rfind(kClose) + kClose.size());
        content = detail::strip_newlines(content, true, false);
      }
      if (i > last_query && (i + 1 == messages.size() || !reasoning.empty())) {
        std::string turn = "<think>\n";
        turn.append(reasoning).append("\n</think>\n\n");
        turn.append(detail::strip_newlines(content, true, false));
        append_chat_ml("assistant", turn, out);
      } else {
        append_chat_ml("assistant", content, out);
      }
    }
    return out.append("<|im_start|>assistant\n");
  }

  [[nodiscard]] std::string render_llama3(std::span<const ChatMessage> messages,
                                          std::string_view today) const {
    const auto header = [](std::string_view role) {
      return "<|start_header_id|>" + std::string(role) + "<|end_header_id|>\n\n";
    };
    std::string out = bos_token_;
    if (family_ == ChatFamily::kLlama31) {
      out.append(header("system")).append("Cutting Knowledge Date: December 2023\nToday Date: ");
      out.append(today).append("\n\n");
      if (messages.front().role == "system") {
        out.append(detail::strip_white_space(messages.front().content));
        messages = messages.subspan(1);
      }
      out.append("<|eot_id|>");
    }
    for (const ChatMessage& message : messages) {
      out.append(header(message.role));
      out.append(detail::strip_white_space(message.content)).append("<|eot_id|>");
    }
    return out.append(header("assistant"));
  }

  ChatFamily family_ = ChatFamily::kChatMl;
  std::optional<std::string> default_system_;
  std::string bos_token_;
  bool writes_current_date_ = false;
};

}  // namespace chunkllm
