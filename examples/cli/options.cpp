// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include <charconv>
#include <limits>

#include "chunkllm/io/error_text.hpp"
#include "system_info.hpp"

namespace chunkllm::cli {
namespace {

constexpr std::int64_t kMaxThreads = 1024;
constexpr std::int64_t kMaxBudget = std::int64_t{1} << 24;
constexpr std::int64_t kMaxStride = 65536;

std::string quoted(std::string_view text) {
  return "'" + detail::printable(text, 40) + "'";
}

}  // namespace

Result<std::int64_t> parse_int(std::string_view text, std::int64_t min, std::int64_t max) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  if (!is_whole || value < min || value > max) {
    return invalid_argument(quoted(text) + ", expected an integer from " + std::to_string(min) +
                            " to " + std::to_string(max));
  }
  return value;
}

Result<double> parse_number(std::string_view text, double min, double max) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  if (!is_whole || !(value >= min && value <= max)) {  // NaN fails
    return invalid_argument(quoted(text) + ", expected a number from " + detail::number_text(min) +
                            " to " + detail::number_text(max));
  }
  return value;
}

Result<Budget> parse_budget(std::string_view text) {
  const auto refused = [&](const std::string& expected) {
    return invalid_argument(quoted(text) + ", expected " + expected);
  };
  const std::string most = std::to_string(kMaxBudget);
  Budget budget;
  if (text.ends_with('%')) {
    const auto percent = parse_number(text.substr(0, text.size() - 1), 0.0, 100.0);
    if (!percent.ok() || percent.value() == 0.0) {
      return refused("a share of the past above 0% and up to 100%");
    }
    budget.kind = Budget::Kind::kShare;
    budget.share = percent.value() / 100.0;
    return budget;
  }
  if (text.ends_with('c')) {
    const auto chunks = parse_int(text.substr(0, text.size() - 1), 0, kMaxBudget);
    if (!chunks.ok()) return refused("chunks from 0c to " + most + "c");
    budget.kind = Budget::Kind::kChunks;
    budget.chunks = chunks.value();
    return budget;
  }
  const auto tokens = parse_int(text, 1, kMaxBudget);
  if (!tokens.ok()) {
    return refused("tokens from 1 to " + most +
                   " such as 2048, a share such as 25%, or chunks such as 32c");
  }
  budget.tokens = tokens.value();
  return budget;
}

Result<RefreshPolicy> parse_refresh(std::string_view text) {
  constexpr std::string_view kStride = "stride:";
  if (text == "boundary") return RefreshPolicy{RefreshPolicy::Kind::kBoundary, 0};
  if (text == "every") return RefreshPolicy{RefreshPolicy::Kind::kEvery, 0};
  if (text.starts_with(kStride)) {
    const auto stride = parse_int(text.substr(kStride.size()), 1, kMaxStride);
    if (stride.ok()) return RefreshPolicy{RefreshPolicy::Kind::kStride, stride.value()};
  }
  return invalid_argument(quoted(text) +
                          ", expected boundary, every or stride:N with N from 1 to " +
                          std::to_string(kMaxStride));
}

Result<Selection> parse_selection(std::string_view text) {
  return one_of<Selection>({{"layer", Selection::kLayer},
                            {"max", Selection::kMax},
                            {"vote", Selection::kVote},
                            {"soft", Selection::kSoft}})(text);
}

Result<HeadJoin> parse_head_join(std::string_view text) {
  return one_of<HeadJoin>({{"max", HeadJoin::kMax}, {"mean", HeadJoin::kMean}})(text);
}

Result<std::int64_t> parse_second_look(std::string_view text) {
  return parse_int(text, 0, 4096);
}

Result<std::uint64_t> parse_seed(std::string_view text) {
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t seed,
                            parse_int(text, 0, std::numeric_limits<std::int64_t>::max()));
  return static_cast<std::uint64_t>(seed);
}

std::string_view to_string(ScorerKind scorer) {
  switch (scorer) {
    case ScorerKind::kAdapter: return "adapter";
    case ScorerKind::kMeanKey: return "mean-key";
    case ScorerKind::kMinMaxKey: return "min-max-key";
    case ScorerKind::kRecent: return "recent";
    case ScorerKind::kRandom: return "random";
    case ScorerKind::kOracle: return "oracle";
  }
  return "?";
}

void add_common_options(CLI::App& command, CommonOptions& options) {
  options.threads = physical_cores();
  const std::string group = "Common";
  command
      .add_option("--model", options.model,
                  "A .gguf file, or a folder with config.json, model.safetensors and "
                  "tokenizer.json")
      ->required()
      ->type_name("PATH")
      ->group(group);
  add_int_option(command, "--threads", options.threads, 1, kMaxThreads,
                 "CPU threads [the physical cores: " + std::to_string(options.threads) + "]")
      ->type_name("N")
      ->group(group);
  add_parsed_option(command, "--device", one_of<bool>({{"cpu", false}, {"cuda", true}}),
                    options.cuda, "Where the model runs: cpu or cuda [cpu]")
      ->type_name("NAME")
      ->group(group);
  add_parsed_option(
      command, "--weights",
      one_of<WeightFormat>({{"keep", WeightFormat::kKeep},
                            {"f32", WeightFormat::kF32},
                            {"bf16", WeightFormat::kBF16},
                            {"int8", WeightFormat::kInt8}}),
      options.weights,
      "How matrix weights are held: keep (as in the file), f32, bf16, int8 [keep]; with "
      "--device cuda only keep")
      ->type_name("TYPE")
      ->group(group);
  add_parsed_option(
      command, "--kv",
      one_of<KvKind>({{"f16", KvKind::kF16}, {"bf16", KvKind::kBF16}, {"f32", KvKind::kF32}}),
      options.maybe_kv,
      "Type of the cached keys and values: f16, bf16, f32 [f16]; with --device cuda of the "
      "weights, "
      "too, and not f32 [bf16 where the file's are, else f16]")
      ->type_name("TYPE")
      ->group(group);
  command.add_flag("--json", options.json, "One JSON object on stdout and nothing else there")
      ->group(group);
  command.add_flag("--quiet", options.quiet, "No progress and no notes")->group(group);
}

CLI::Option* add_adapters_option(CLI::App& command, std::string& target,
                                 const std::string& otherwise) {
  return command
      .add_option("--adapters", target,
                  "Trained adapters [the ones in an adapters folder beside the program that fit "
                  "the model, as those for SmolLM2-135M-Instruct do, else " +
                      otherwise + "]")
      ->type_name("FILE");
}

void add_attention_options(CLI::App& command, AttentionOptions& options) {
  std::string group = "Attention: what matters first";
  const auto add = [&](const std::string& name, auto parse, auto& target, const std::string& help,
                       const std::string& type) {
    add_parsed_option(command, name, std::move(parse), target, help)->type_name(type)->group(group);
  };
  add("--attention", one_of<bool>({{"dense", true}, {"chunk", false}}), options.dense,
      "dense, or chunk: over selected chunks of the past [chunk]", "MODE");
  add(
      "--budget",
      [&options](std::string_view text) -> Result<Budget> {
        CHUNKLLM_ASSIGN_OR_RETURN(const Budget budget, parse_budget(text));
        options.budget_text = std::string(text);
        return budget;
      },
      options.budget, "Tokens attended (2048), share of the past (25%), or chunks (32c) [2048]",
      "N|P%|Nc");
  add("--scorer",
      one_of<std::optional<ScorerKind>>({{"adapter", ScorerKind::kAdapter},
                                         {"mean-key", ScorerKind::kMeanKey},
                                         {"min-max-key", ScorerKind::kMinMaxKey},
                                         {"recent", ScorerKind::kRecent},
                                         {"random", ScorerKind::kRandom},
                                         {"oracle", ScorerKind::kOracle}}),
      options.scorer,
      "Who ranks the chunks: adapter, mean-key, min-max-key, recent, random, oracle [adapter with "
      "adapters, mean-key without]",
      "NAME");

  group = "Attention in detail";
  add_adapters_option(command, options.adapters, "training-free")->group(group);
  add("--refresh", parse_refresh, options.refresh,
      "When chunks are selected anew: boundary, every, stride:N [boundary]", "WHEN");
  add("--selection", parse_selection, options.selection,
      "Each layer its own set, or one for all: layer, max, vote, soft [layer with adapters, max "
      "without]",
      "HOW");
  add("--oracle", one_of<OracleKind>({{"next", OracleKind::kNext}, {"same", OracleKind::kSame}}),
      options.oracle, "Whose attention --scorer oracle knows: next chunk's or same token's [next]",
      "WHOSE");
  add(
      "--head-join",
      [&options](std::string_view text) -> Result<HeadJoin> {
        options.is_head_join_given = true;
        return parse_head_join(text);
      },
      options.head_join, "How heads' scores are joined: max, mean [max, or as the adapters say]",
      "HOW");
  add("--prefill", one_of<std::optional<bool>>({{"dense", true}, {"chunk", false}}),
      options.dense_prefill, "How the prompt is read: dense, chunk [chunk beyond the budget]",
      "MODE");
  add("--second-look", parse_second_look, options.second_look,
      "Last prompt tokens that are evaluated once more; 0: off [64]", "N");
  add("--positions",
      one_of<std::optional<Positions>>(
          {{"original", Positions::kOriginal}, {"in-cache", Positions::kInCache}}),
      options.positions,
      "original, or in-cache: re-numbered inside the attended set [original where the text fits "
      "the model's window]",
      "WHICH");
  add("--seed", parse_seed, options.seed, "Of the random scorer and of sampling [0]", "N");
}

}  // namespace chunkllm::cli
