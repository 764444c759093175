// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/eval/text_chunks.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"

namespace chunkllm::cli {
namespace {

struct ChunksOptions {
  CommonOptions common;
  AttentionOptions attention;  // --adapters only
  std::optional<std::string> text;
  std::string file;
  std::string ids_file;
};

/// A chunk's tokens, and where an adapter gave it, the probability of the boundary at its end.
struct Chunk {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool open = false;  // the text ended before the chunk did
  std::optional<double> probability;
};

/// The closed chunks and then the open one.
std::vector<Chunk> list_chunks(const TextChunks& found, std::int64_t num_tokens) {
  std::vector<Chunk> chunks;
  std::int64_t begin = 0;
  const auto add = [&](std::int64_t end) {
    Chunk& chunk = chunks.emplace_back(Chunk{begin, end, false, std::nullopt});
    if (!found.probabilities.empty()) {
      chunk.probability = found.probabilities[static_cast<std::size_t>(end - 1)];
    }
    begin = end;
  };
  for (const std::int64_t end : found.ends) add(end);
  if (begin < num_tokens) {
    add(num_tokens);
    chunks.back().open = true;
  }
  return chunks;
}

/// Chunks as `generate` finds them in a prompt.
Result<TextChunks> find_chunks(const ChunksOptions& options, const BpeTokenizer& tokenizer,
                               const Adapters& adapters, std::span<const std::int32_t> ids) {
  if (adapters.maybe_chunk_adapter == nullptr) {
    const auto bytes = [&](std::int32_t id) { return tokenizer.token_bytes(id); };
    return TextChunks{rule_chunk_ends(ids, bytes, adapters.guards.value_or(ChunkGuards{})), {}};
  }
  ThreadPool pool(options.common.threads);
  CommonOptions on_host = options.common;
  on_host.cuda = false;
  if (options.common.cuda && !options.common.quiet) {
    print_note("chunks are found on the CPU, with --device cuda, too");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(on_host));
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  CHUNKLLM_ASSIGN_OR_RETURN(
      const AttentionPlan plan,
      plan_attention(on_host, options.attention, model, adapters, Task::kGenerate, num_tokens));
  CHUNKLLM_RETURN_IF_ERROR(load_weights(on_host, WeightPlaces::kWhereItRuns, pool, model));
  ProgressBar bar(options.common, "reading", num_tokens);
  Result<TextChunks> found = runner_of(model.kv).chunks_by_adapter(
      model, plan.maybe_chunk_adapter, plan.scorer, plan.session, ids,
      [&](std::int64_t done) { return bar.update(done); }, pool);
  if (!found.ok()) return bar.with_progress(found.status(), "token");
  return found;
}

OrderedJson chunks_json(const std::vector<Chunk>& chunks) {
  OrderedJson list = OrderedJson::array();
  for (const Chunk& chunk : chunks) {
    OrderedJson item = {chunk.begin, chunk.end, nullptr};
    if (chunk.probability) item[2] = *chunk.probability;
    list.push_back(std::move(item));
  }
  return list;
}

/// One line a chunk, or in a terminal the text in two colours.
Status print_chunks(const BpeTokenizer& tokenizer, std::span<const std::int32_t> ids,
                    const std::vector<Chunk>& chunks) {
  constexpr const char* kColours[] = {"\x1b[30;46m", "\x1b[30;43m"};
  const bool is_coloured = stdout_is_terminal();
  if (!is_coloured) {
    CHUNKLLM_RETURN_IF_ERROR(write_stdout("begin\tend\tprobability\tstate\ttext\n"));
  }
  const auto num_chunks = static_cast<std::int64_t>(chunks.size());
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (interrupted()) {
      return Status(StatusCode::kInterrupted,
                    fmt::format("interrupted after {} of {}", i, counted(num_chunks, "chunk")));
    }
    const Chunk& chunk = chunks[i];
    const auto tokens = ids.subspan(static_cast<std::size_t>(chunk.begin),
                                    static_cast<std::size_t>(chunk.end - chunk.begin));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, tokenizer.decode(tokens));
    const std::string probability =
        chunk.probability ? fmt::format("{:.2f}", *chunk.probability) : "";
    if (is_coloured) {
      CHUNKLLM_RETURN_IF_ERROR(
          write_stdout(fmt::format("{}{}\x1b[0m\x1b[2m{}{}\x1b[0m", kColours[i % 2], text,
                                   probability, chunk.open ? " (open)" : "")));
    } else {
      CHUNKLLM_RETURN_IF_ERROR(write_stdout(fmt::format(
          "{}\t{}\t{}\t{}\t{}\n", chunk.begin, chunk.end, chunk.probability ? probability : "-",
          chunk.open ? "open" : "closed", OrderedJson(text).dump())));
    }
  }
  return write_stdout(is_coloured ? "\n" : "");
}

/// \param by_adapter  whether a Chunk Adapter found the boundaries
std::string format_summary(std::int64_t num_tokens, const std::vector<Chunk>& chunks, double f1,
                           bool by_adapter) {
  const bool is_open = !chunks.empty() && chunks.back().open;
  return fmt::format("{}, {}{}\nboundary F1 {:.3f} of the {} against the look-ahead rules\n",
                     counted(num_tokens, "token"),
                     counted(static_cast<std::int64_t>(chunks.size()), "chunk"),
                     is_open ? ", the last one open" : "", f1,
                     by_adapter ? "Chunk Adapter" : "streaming rules, which generation uses,");
}

Result<std::vector<std::int32_t>> input_ids(const ChunksOptions& options,
                                            const BpeTokenizer& tokenizer,
                                            const BackboneConfig& config) {
  const int num_inputs =
      (options.text ? 1 : 0) + (options.file.empty() ? 0 : 1) + (options.ids_file.empty() ? 0 : 1);
  if (num_inputs != 1) {
    return invalid_argument("chunks: " + std::to_string(num_inputs) +
                            " inputs, expected one of --text, --file and --ids-file");
  }
  if (!options.ids_file.empty()) return read_ids_file(options.ids_file, config.vocab_size);
  if (options.file.empty()) return encode_prompt(tokenizer, *options.text, "--text");
  return encode_file(tokenizer, options.file);
}

Status run_chunks(const ChunksOptions& options) {
  CHUNKLLM_RETURN_IF_ERROR(check_device(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelFiles files, ModelFiles::open(options.common.model));
  CHUNKLLM_ASSIGN_OR_RETURN(const BpeTokenizer tokenizer, load_tokenizer(files));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                            input_ids(options, tokenizer, files.config()));
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, files));
  const Result<TextChunks> found = find_chunks(options, tokenizer, adapters, ids);
  if (found.status().code() == StatusCode::kInterrupted && options.common.json) {
    CHUNKLLM_RETURN_IF_ERROR(print_json({{"tokens", ids.size()},
                                         {"chunks", OrderedJson::array()},
                                         {"boundary_f1", nullptr},
                                         {"stop_reason", "interrupted"}}));
  }
  if (!found.ok()) return found.status();
  const std::vector<Chunk> chunks =
      list_chunks(found.value(), static_cast<std::int64_t>(ids.size()));
  CHUNKLLM_ASSIGN_OR_RETURN(const BoundaryScore score,
                            score_chunk_ends(tokenizer, ids, found->ends));
  if (!options.common.quiet && !adapters.maybe_chunk_adapter) {
    print_note("no Chunk Adapter for this model: chunks end by the streaming sentence rules");
  }
  if (options.common.json) {
    OrderedJson json = {{"tokens", ids.size()},
                        {"chunks", chunks_json(chunks)},
                        {"boundary_f1", score.f1()},
                        {"adapters", nullptr}};
    if (!adapters.path.empty()) json["adapters"] = adapters.path;
    return print_json(json);
  }
  CHUNKLLM_RETURN_IF_ERROR(print_chunks(tokenizer, ids, chunks));
  if (!options.common.quiet) {
    write_stderr(format_summary(static_cast<std::int64_t>(ids.size()), chunks, score.f1(),
                                adapters.maybe_chunk_adapter != nullptr));
  }
  return {};
}

}  // namespace

Command add_chunks(CLI::App& program) {
  auto options = std::make_shared<ChunksOptions>();
  CLI::App& app = *program.add_subcommand("chunks", "Shows the chunks of a text");
  app.add_option("--text,--prompt", options->text, "Text to cut")->type_name("TEXT");
  app.add_option("--file", options->file, "A text file to cut")->type_name("FILE");
  app.add_option("--ids-file", options->ids_file, "A JSON array of token ids instead of text")
      ->type_name("FILE");
  add_adapters_option(app, options->attention.adapters, "the sentence rules");
  add_common_options(app, options->common);
  app.footer(
      "Examples:\n"
      "  chunkllm chunks --model smollm2.gguf --file book.txt | less\n"
      "  chunkllm chunks --model smollm2.gguf \\\n"
      "    --text 'The rain fell on the hill all day. By the evening it had stopped.'");
  return {&app, [options] { return run_chunks(*options); }};
}

}  // namespace chunkllm::cli
