// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <memory>

#include "chunkllm/infer/model_bundle.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "model_options.hpp"
#include "output.hpp"

namespace chunkllm::cli {
namespace {

struct TokenizeOptions {
  CommonOptions common;
  std::optional<std::string> text;
  std::string file;
  std::string jsonl;
  std::optional<std::vector<std::int64_t>> ids;
  bool no_bos = false;
};

Status print_ids(const TokenizeOptions& options, const std::vector<std::int32_t>& ids) {
  // Not through a JSON document: that would take 16 bytes an id beside the text.
  if (options.common.json) {
    return write_stdout(
        fmt::format("{{\"count\":{},\"ids\":[{}]}}\n", ids.size(), fmt::join(ids, ",")));
  }
  return write_stdout(fmt::format("{}\n", fmt::join(ids, ",")));
}

Status decode(const TokenizeOptions& options, const BpeTokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : *options.ids) ids.push_back(static_cast<std::int32_t>(id));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, tokenizer.decode(ids));
  if (options.common.json) return print_json({{"count", ids.size()}, {"text", text}});
  return write_stdout(text + "\n");
}

/// A line {"ids": [...]} for each line {"text": "..."}.
Status tokenize_lines(const TokenizeOptions& options, const BpeTokenizer& tokenizer) {
  constexpr std::size_t kFlushBytes = std::size_t{1} << 20;
  CHUNKLLM_ASSIGN_OR_RETURN(const std::string content, read_utf8_file(options.jsonl));
  EncodeScratch scratch;
  std::string out;
  std::string_view rest = content;
  for (std::int64_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string origin = options.jsonl + ": line " + std::to_string(number);
    CHUNKLLM_ASSIGN_OR_RETURN(const Json json, parse_json(line, origin));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, require_string(json, "text", origin));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                              tokenizer.encode(text, !options.no_bos, scratch));
    fmt::format_to(std::back_inserter(out), "{{\"ids\": [{}]}}\n", fmt::join(ids, ", "));
    if (out.size() >= kFlushBytes) {
      CHUNKLLM_RETURN_IF_ERROR(write_stdout(out));
      out.clear();
      if (interrupted()) {
        return Status(StatusCode::kInterrupted, "interrupted after line " + std::to_string(number));
      }
    }
  }
  return write_stdout(out);
}

Status run_tokenize(const TokenizeOptions& options) {
  const int num_inputs = (options.text ? 1 : 0) + (options.file.empty() ? 0 : 1) +
                         (options.jsonl.empty() ? 0 : 1) + (options.ids ? 1 : 0);
  if (num_inputs != 1) {
    return invalid_argument("tokenize: " + std::to_string(num_inputs) +
                            " inputs, expected one of --text, --file, --jsonl and --ids");
  }
  CHUNKLLM_RETURN_IF_ERROR(check_device(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelFiles files, ModelFiles::open(options.common.model));
  CHUNKLLM_ASSIGN_OR_RETURN(const BpeTokenizer tokenizer, load_tokenizer(files));
  if (options.ids) return decode(options, tokenizer);
  if (!options.jsonl.empty()) return tokenize_lines(options, tokenizer);
  std::string text;
  if (options.text) {
    text = *options.text;
  } else {
    CHUNKLLM_ASSIGN_OR_RETURN(text, read_utf8_file(options.file));
  }
  const auto ids = tokenizer.encode(text, !options.no_bos);
  if (!ids.ok()) return ids.status().with_context("--text");  // a file's text was checked above
  return print_ids(options, ids.value());
}

}  // namespace

Command add_tokenize(CLI::App& program) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App& app =
      *program.add_subcommand("tokenize", "Turns text into token ids, and ids into text");
  app.add_option("--text", options->text, "Text to tokenize")->type_name("TEXT");
  app.add_option("--file", options->file, "A text file to tokenize")->type_name("FILE");
  app.add_option("--jsonl", options->jsonl, "A file with a {\"text\": ...} on each line")
      ->type_name("FILE");
  add_parsed_option(
      app, "--ids",
      [](std::string_view text) -> Result<std::optional<std::vector<std::int64_t>>> {
        CHUNKLLM_ASSIGN_OR_RETURN(auto ids,
                                  parse_list<std::int64_t>(text, [](std::string_view part) {
                                    return parse_int(part, std::numeric_limits<std::int32_t>::min(),
                                                     std::numeric_limits<std::int32_t>::max());
                                  }));
        return std::optional(std::move(ids));
      },
      options->ids, "Ids to turn into text, such as 1,2,3")
      ->type_name("LIST");
  app.add_flag("--no-bos", options->no_bos, "Add no begin token");
  add_common_options(app, options->common);
  app.footer(
      "Examples:\n"
      "  chunkllm tokenize --model smollm2.gguf --text 'Hello world'\n"
      "  chunkllm tokenize --model smollm2.gguf --ids 19556,905\n"
      "  chunkllm tokenize --model smollm2.gguf --jsonl texts.jsonl > ids.jsonl");
  return {&app, [options] { return run_tokenize(*options); }};
}

}  // namespace chunkllm::cli
