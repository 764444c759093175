// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <map>
#include <memory>

#include "chunkllm/infer/model_bundle.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "output.hpp"

namespace chunkllm::cli {
namespace {

struct InspectOptions {
  CommonOptions common;
  AttentionOptions attention;  // --adapters only
  std::int64_t context = 0;    // 0: the model's window
};

struct WeightFigures {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;  // once loaded
};

/// \param on_device  where matrices are of 16 bits
WeightFigures weigh(const ModelFiles& files, WeightFormat format, bool on_device) {
  WeightFigures figures;
  for (const ExpectedTensor& tensor : expected_tensors(files.config())) {
    const std::int64_t count = tensor.rows * tensor.cols;
    figures.parameters += count;
    if (on_device) {
      figures.bytes += count * (tensor.rows == 1 ? 4 : 2);
      continue;
    }
    const Result<TensorBytes> found = files.tensor(tensor.name);
    figures.bytes += tensor.rows == 1 || !found.ok()
                         ? count * 4  // vectors are f32
                         : PackedWeights::bytes_of(found->dtype, tensor.rows, tensor.cols, format);
  }
  return figures;
}

/// Memory of a session of `context` tokens with the training-free scorer.
SessionMemory estimate_memory(const BackboneConfig& config, KvKind kv, std::int64_t weights,
                              std::int64_t context) {
  constexpr std::int64_t kTokensPerChunk = 40;  // sentences of English prose, about
  constexpr std::int64_t kBlockLen = 512;
  const std::int64_t key_bytes = config.kv_size() * 4;
  SessionMemory memory;
  memory.weights = weights;
  memory.kv = context * config.num_layers * 2 * config.kv_size() * (kv == KvKind::kF32 ? 4 : 2);
  memory.chunk_keys =
      config.num_layers * key_bytes * (context / kTokensPerChunk + ChunkOptions{}.journal_len);
  const std::int64_t row = 3 * config.hidden_size + 2 * config.query_size() + 2 * config.kv_size();
  memory.workspace = 4 * (kBlockLen * row + config.vocab_size);
  return memory;
}

OrderedJson describe_tokenizer(const BpeTokenizer& tokenizer, const ModelFiles& files) {
  OrderedJson json = {{"kind", "byte-level BPE"},
                      {"vocab_size", tokenizer.vocab_size()},
                      {"bos_id", nullptr},
                      {"end_ids", end_token_ids(files, tokenizer)},
                      {"adds_bos", !tokenizer.prefix_ids().empty()},
                      {"chat_template", nullptr}};
  if (tokenizer.bos_id()) json["bos_id"] = *tokenizer.bos_id();
  if (const auto chat = load_chat_template(files, tokenizer); chat.ok()) {
    switch (chat->family()) {
      case ChatFamily::kChatMl: json["chat_template"] = "chatml"; break;
      case ChatFamily::kQwen3: json["chat_template"] = "qwen3"; break;
      case ChatFamily::kLlama3: json["chat_template"] = "llama3"; break;
      case ChatFamily::kLlama31: json["chat_template"] = "llama3.1"; break;
    }
  } else if (chat.status().code() != StatusCode::kNotFound) {
    json["chat_template"] = "unsupported";
  }
  return json;
}

std::string format_text(const OrderedJson& json) {
  std::string text;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_object()) {
      text += fmt::format("{:<18} {}\n", key,
                          value.is_string() ? value.get<std::string>() : value.dump());
      continue;
    }
    text += fmt::format("{}\n", key);
    for (const auto& [name, part] : value.items()) {
      const bool is_bytes = key == "memory" || key == "tensor_types";
      text += fmt::format("  {:<16} {}\n", name,
                          is_bytes && part.is_number_integer()
                              ? format_bytes(part.get<std::int64_t>())
                              : (part.is_string() ? part.get<std::string>() : part.dump()));
    }
  }
  return text;
}

Status run_inspect(const InspectOptions& options) {
  CHUNKLLM_RETURN_IF_ERROR(check_device(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelFiles files, ModelFiles::open(options.common.model));
  CHUNKLLM_ASSIGN_OR_RETURN(const BpeTokenizer tokenizer, load_tokenizer(files));
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, files));
  const BackboneConfig& config = files.config();
  const WeightFigures weights = weigh(files, options.common.weights, options.common.cuda);
  const std::int64_t context = options.context > 0 ? options.context : config.context_length;

  std::map<std::string, std::int64_t> type_bytes;
  for (const ModelTensorInfo& info : files.tensor_infos()) {
    type_bytes[info.dtype] += static_cast<std::int64_t>(info.num_bytes);
  }
  const bool has_windows = std::any_of(config.sliding_window.begin(), config.sliding_window.end(),
                                       [](std::int64_t window) { return window > 0; });
  OrderedJson json;
  json["architecture"] = to_string(config.architecture);
  json["layers"] = config.num_layers;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_heads"] = config.num_heads;
  json["num_kv_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["vocab_size"] = config.vocab_size;
  json["context_length"] = config.context_length;
  json["parameters"] = weights.parameters;
  json["tied_embeddings"] = config.tied_embeddings;
  json["rope_theta"] = config.rope_theta;
  json["sliding_window"] = has_windows;
  json["fingerprint"] = files.fingerprint();
  json["adapters"] = nullptr;
  if (!adapters.path.empty()) json["adapters"] = adapters.path;
  json["tokenizer"] = describe_tokenizer(tokenizer, files);
  json["tensor_types"] = type_bytes;
  json["memory_context"] = context;
  json["memory"] =
      to_json(estimate_memory(config, choose_kv(options.common, files), weights.bytes, context));
  if (options.common.json) return print_json(json);
  return write_stdout(format_text(json));
}

}  // namespace

Command add_inspect(CLI::App& program) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App& app = *program.add_subcommand(
      "inspect", "Shows a model's shapes, tokenizer, adapters and memory needs");
  add_int_option(app, "--context", options->context, 1, 1 << 24,
                 "Tokens that the memory figures are for [the model's window]")
      ->type_name("N");
  add_adapters_option(app, options->attention.adapters, "none");
  add_common_options(app, options->common);
  app.footer(
      "Examples:\n"
      "  chunkllm inspect --model smollm2.gguf\n"
      "  chunkllm inspect --model smollm2.gguf --context 120000 --kv bf16 --json");
  return {&app, [options] { return run_inspect(*options); }};
}

}  // namespace chunkllm::cli
