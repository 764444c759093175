// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/text/sentence_boundary_stream.hpp"
#include "chunkllm/text/sentence_rules.hpp"
#include "commands.hpp"
#include "first_layer_backbone.hpp"
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
  std::optional<double> probability;
};

/// Chunks by the sentence rules, as `ChunkState` finds them without an adapter.
std::vector<Chunk> chunks_by_rules(const BpeTokenizer& tokenizer,
                                   std::span<const std::int32_t> ids) {
  std::vector<Chunk> chunks;
  SentenceBoundaryStream sentences;
  std::int64_t begin = 0;
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const bool wanted =
        sentences.on_token(tokenizer.token_bytes(ids[static_cast<std::size_t>(token)]));
    if (decide_boundary(token + 1 - begin, wanted, ChunkGuards{}).boundary) {
      chunks.push_back({begin, token + 1, std::nullopt});
      begin = token + 1;
    }
  }
  if (begin < num_tokens) chunks.push_back({begin, num_tokens, std::nullopt});
  return chunks;
}

/// Chunks by a Chunk Adapter, from the first layer of a session that reads the text as a prompt.
Result<std::vector<Chunk>> chunks_by_adapter(const ChunksOptions& options, const ModelBundle& model,
                                             const Adapters& adapters,
                                             std::span<const std::int32_t> ids, ThreadPool& pool) {
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  CHUNKLLM_ASSIGN_OR_RETURN(const AttentionPlan plan,
                            plan_attention(options.common, options.attention, model, adapters,
                                           Task::kGenerate, num_tokens));
  const FirstLayerBackbone backbone(model.backbone);
  using FirstLayerSession = Session<FirstLayerBackbone, AnyScorer, F16>;
  CHUNKLLM_ASSIGN_OR_RETURN(
      FirstLayerSession session,
      FirstLayerSession::create(backbone, plan.scorer, plan.maybe_chunk_adapter, {}, plan.session,
                                pool));
  std::vector<float> probabilities;
  ProgressBar bar(options.common, "reading", num_tokens);
  CHUNKLLM_RETURN_IF_ERROR(session.read(
      ids, ReadMode::kLayerLocal, [&](std::int64_t done) { return bar.update(done); },
      [&](std::int64_t, MatrixView<const float> hidden) {
        for (std::int64_t r = 0; r < hidden.rows; ++r) {
          probabilities.push_back(plan.maybe_chunk_adapter->probability(hidden.row(r)));
        }
      }));
  std::vector<Chunk> chunks;
  std::int64_t begin = 0;
  const auto add = [&](std::int64_t end) {
    chunks.push_back(
        {begin, end, static_cast<double>(probabilities[static_cast<std::size_t>(end - 1)])});
    begin = end;
  };
  for (const std::int64_t end : session.chunks().table().ends()) add(end);
  if (begin < num_tokens) add(num_tokens);
  return chunks;
}

/// F1 of the chunks' ends against the sentence ends that the rules find knowing the whole text.
Result<double> score_against_rules(const BpeTokenizer& tokenizer, std::span<const std::int32_t> ids,
                                   const std::vector<Chunk>& chunks) {
  // Over the tokens' own bytes: they are what the tokenizer's normaliser left of the text.
  std::string bytes;
  std::vector<std::size_t> token_ends;
  for (const std::int32_t id : ids) {
    if (!tokenizer.is_special(id)) bytes.append(tokenizer.token_bytes(id));
    token_ends.push_back(bytes.size());
  }
  std::vector<std::size_t> labelled;
  for (const std::size_t end : sentence_ends(bytes)) {
    const auto token = static_cast<std::size_t>(
        std::lower_bound(token_ends.begin(), token_ends.end(), end) - token_ends.begin());
    if (labelled.empty() || token > labelled.back()) labelled.push_back(token);
  }
  std::vector<std::size_t> predicted;
  for (const Chunk& chunk : chunks) predicted.push_back(static_cast<std::size_t>(chunk.end - 1));
  CHUNKLLM_ASSIGN_OR_RETURN(const BoundaryScore score,
                            score_boundaries(predicted, labelled, ids.size()));
  return score.f1();
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

Status print_chunks(const BpeTokenizer& tokenizer, std::span<const std::int32_t> ids,
                    const std::vector<Chunk>& chunks) {
  constexpr const char* kColours[] = {"\x1b[30;46m", "\x1b[30;43m"};
  const bool is_coloured = stdout_is_terminal();
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const Chunk& chunk = chunks[i];
    const auto tokens = ids.subspan(static_cast<std::size_t>(chunk.begin),
                                    static_cast<std::size_t>(chunk.end - chunk.begin));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, tokenizer.decode(tokens));
    const std::string probability =
        chunk.probability ? fmt::format("{:.2f}", *chunk.probability) : "";
    if (is_coloured) {
      CHUNKLLM_RETURN_IF_ERROR(write_stdout(
          fmt::format("{}{}\x1b[0m\x1b[2m{}\x1b[0m", kColours[i % 2], text, probability)));
    } else {
      CHUNKLLM_RETURN_IF_ERROR(write_stdout(fmt::format("{}\t{}\t{}\t{}\n", chunk.begin, chunk.end,
                                                        chunk.probability ? probability : "-",
                                                        OrderedJson(text).dump())));
    }
  }
  return write_stdout(is_coloured ? "\n" : "");
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
  std::vector<Chunk> chunks;
  if (adapters.maybe_chunk_adapter) {
    ThreadPool pool(options.common.threads);
    CHUNKLLM_ASSIGN_OR_RETURN(const ModelBundle model, open_model(options.common, pool));
    CHUNKLLM_ASSIGN_OR_RETURN(chunks, chunks_by_adapter(options, model, adapters, ids, pool));
  } else {
    chunks = chunks_by_rules(tokenizer, ids);
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const double f1, score_against_rules(tokenizer, ids, chunks));
  if (!options.common.quiet && !adapters.maybe_chunk_adapter) {
    print_note("no Chunk Adapter for this model: chunks end by the sentence rules");
  }
  if (options.common.json) {
    OrderedJson json = {{"tokens", ids.size()},
                        {"chunks", chunks_json(chunks)},
                        {"boundary_f1", f1},
                        {"adapters", nullptr}};
    if (!adapters.path.empty()) json["adapters"] = adapters.path;
    return print_json(json);
  }
  CHUNKLLM_RETURN_IF_ERROR(print_chunks(tokenizer, ids, chunks));
  if (!options.common.quiet) {
    fmt::print(stderr, "{} tokens, {} chunks, boundary F1 against the sentence rules {:.3f}\n",
               ids.size(), chunks.size(), f1);
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
  app.add_option("--adapters", options->attention.adapters,
                 "Trained adapters [those shipped for the model, else the sentence rules]")
      ->type_name("FILE");
  add_common_options(app, options->common);
  app.footer(
      "Examples:\n"
      "  chunkllm chunks --model smollm2.gguf --file book.txt | less\n"
      "  chunkllm chunks --model smollm2.gguf --text 'One sentence. And another.' --json");
  return {&app, [options] { return run_chunks(*options); }};
}

}  // namespace chunkllm::cli
