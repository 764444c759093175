// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/eval/perplexity.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "stopwatch.hpp"

namespace chunkllm::cli {
namespace {

struct PerplexityCommandOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::string file;
  std::string ids_file;
  std::int64_t context = 0;  // 0: the whole text
  std::int64_t from = 1;
  bool per_token = false;
};

/// What there is to report, filled in as the work goes on, so that an interruption can show it.
struct PerplexityReport {
  PerplexityResult result;
  double attended_share = 1.0;
  std::int64_t kv_resident_bytes = 0;
  ChunkCounters counters;
  SessionMemory memory;
  OrderedJson attention;  // null until it is decided
  double seconds = 0.0;
};

Result<std::vector<std::int32_t>> read_ids(const PerplexityCommandOptions& options,
                                           const LoadedModel& model) {
  std::vector<std::int32_t> ids;
  if (!options.ids_file.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(ids, read_ids_file(options.ids_file, model.config().vocab_size));
  } else {
    CHUNKLLM_ASSIGN_OR_RETURN(ids, encode_file(model.tokenizer, options.file));
  }
  const auto context = static_cast<std::size_t>(options.context);
  if (context > 0 && ids.size() > context) ids.resize(context);
  return ids;
}

/// The first of the oracle's two passes. Chunks are those of the sentence rules, in both.
Status set_oracle(const PerplexityCommandOptions& options, const OpenModel& model,
                  std::span<const std::int32_t> ids, AttentionPlan& plan, ThreadPool& pool) {
  plan.maybe_chunk_adapter = nullptr;
  const MassRows rows =
      options.attention.oracle == OracleKind::kNext ? MassRows::kNext : MassRows::kSame;
  ProgressBar bar(options.common, "oracle", static_cast<std::int64_t>(ids.size()));
  auto scorer = runner_of(model.kv).make_oracle_scorer(
      model, ids, plan.session.chunk, rows, [&](std::int64_t done) { return bar.update(done); },
      pool);
  if (!scorer.ok()) {
    return bar.with_progress(scorer.status(), "token").with_context("the oracle's first pass");
  }
  plan.scorer = std::move(scorer).value();
  return {};
}

Status print_report(const PerplexityCommandOptions& options, const PerplexityReport& report,
                    bool is_complete) {
  const PerplexityResult& result = report.result;
  const bool is_scored = result.num_scored() > 0;
  if (!options.common.json) {
    if (!is_scored) return {};
    std::string text;
    if (options.per_token) {
      for (std::int64_t i = 0; i < result.num_scored(); ++i) {
        text += fmt::format("{}\t{:.6f}\n", result.score_from + i,
                            result.nll[static_cast<std::size_t>(i)]);
      }
    }
    text += fmt::format(
        "perplexity {:.4f} (mean negative log-likelihood {:.6f}) over {} of {}, {:.1f} % of the "
        "past attended, {:.1f} s\n",
        result.perplexity(), result.nll_mean(), result.num_scored(),
        counted(result.num_tokens, "token"), 100.0 * report.attended_share, report.seconds);
    return write_stdout(text);
  }
  OrderedJson json;
  json["tokens"] = result.num_tokens;
  json["scored"] = result.num_scored();
  json["nll_mean"] = nullptr;
  json["perplexity"] = nullptr;
  if (is_scored) {
    json["nll_mean"] = result.nll_mean();
    json["perplexity"] = result.perplexity();
  }
  if (options.per_token) json["nll"] = result.nll;
  json["kv"] = {{"attended_share", report.attended_share},
                {"resident_bytes", report.kv_resident_bytes}};
  json["refreshes"] = report.counters.refreshes;
  json["boundaries"] = report.counters.boundaries;
  json["forced_boundaries"] = report.counters.forced_boundaries;
  json["attention"] = report.attention;
  json["memory"] = to_json(report.memory);
  json["seconds"] = report.seconds;
  json["stop_reason"] = is_complete ? "end" : "interrupted";
  return print_json(json);
}

/// Fills `report` on every way out.
Status measure(const PerplexityCommandOptions& options, ThreadPool& pool,
               PerplexityReport& report) {
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, read_ids(options, model));
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  if (num_tokens < 2) {
    return invalid_file("the text has " + std::to_string(num_tokens) +
                        " tokens, expected at least 2");
  }
  if (options.from >= num_tokens) {
    return invalid_argument("--from " + std::to_string(options.from) + ": the text has " +
                            std::to_string(num_tokens) + " tokens, expected at most " +
                            std::to_string(num_tokens - 1));
  }
  report.result.num_tokens = num_tokens;
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  CHUNKLLM_ASSIGN_OR_RETURN(AttentionPlan plan,
                            plan_attention(options.common, options.attention, model, adapters,
                                           Task::kTeacherForced, num_tokens));
  report.attention = describe_attention(options.attention, plan);
  CHUNKLLM_RETURN_IF_ERROR(load_weights(options.common, WeightPlaces::kWhereItRuns, pool, model));
  print_notes(options.common, plan);
  const Stopwatch watch;
  if (plan.scorer_kind == ScorerKind::kOracle && !plan.session.dense) {
    CHUNKLLM_RETURN_IF_ERROR(set_oracle(options, model, ids, plan, pool));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const std::unique_ptr<AnySession> session,
                            make_session(model, plan, pool));
  ProgressBar bar(options.common, "reading", num_tokens);
  const Status status = measure_perplexity(
      *session, ids, {options.from, plan.read_mode},
      [&](std::int64_t done) { return bar.update(done); }, pool, report.result);
  report.seconds = watch.seconds();
  report.attended_share = session->attended().share();
  report.kv_resident_bytes = session->kv_resident_bytes();
  report.counters = session->counters();
  report.memory = session->memory();
  return as_model_fault(bar.with_progress(status, "token"), options.common);
}

Status run_perplexity(const PerplexityCommandOptions& options) {
  if (options.file.empty() == options.ids_file.empty()) {
    return invalid_argument("perplexity: expected either --file or --ids-file");
  }
  CHUNKLLM_RETURN_IF_ERROR(check_device_settings(options.common, options.attention));
  ThreadPool pool(options.common.threads);
  PerplexityReport report;
  const Status status = measure(options, pool, report);
  if (status.ok() || status.code() == StatusCode::kInterrupted) {
    CHUNKLLM_RETURN_IF_ERROR(print_report(options, report, status.ok()));
  }
  return status;
}

}  // namespace

Command add_perplexity(CLI::App& program) {
  auto options = std::make_shared<PerplexityCommandOptions>();
  CLI::App& app =
      *program.add_subcommand("perplexity", "Scores the tokens of a text, teacher-forced");
  add_common_options(app, options->common);
  add_attention_options(app, options->attention);
  app.add_option("--file", options->file, "A text file to score")->type_name("FILE");
  app.add_option("--ids-file", options->ids_file, "A JSON array of token ids instead of text")
      ->type_name("FILE");
  add_int_option(app, "--context", options->context, 2, std::int64_t{1} << 24,
                 "Read at most N tokens [all]")
      ->type_name("N");
  add_int_option(app, "--from", options->from, 1, std::int64_t{1} << 24,
                 "Score tokens from I on; all before it are read [1]")
      ->type_name("I");
  app.add_flag("--per-token", options->per_token, "List every scored token's likelihood, too");
  app.footer(
      "Examples:\n"
      "  chunkllm perplexity --model smollm2.gguf --file book.txt --context 8192 --from 4096\n"
      "  chunkllm perplexity --model smollm2.gguf --file book.txt --context 8192 \\\n"
      "    --budget 1024 --scorer oracle --oracle next\n"
      "  chunkllm perplexity --model smollm2.gguf --ids-file ids.json --attention dense \\\n"
      "    --per-token --json");
  return {&app, [options] { return run_perplexity(*options); }};
}

}  // namespace chunkllm::cli
