// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "chunkllm/infer/sampler.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"

namespace chunkllm::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::vector<std::int64_t> depths = {8192, 32768, 122880};
  std::int64_t new_tokens = 32;
  std::string file;
};

struct Speeds {
  double prefill = 0.0;  // tokens a second
  double decode = 0.0;
};

/// `depth` tokens of a file, or of made-up prose with numbers in it, repeated as often as needed.
Result<std::vector<std::int32_t>> sample_ids(const BenchOptions& options, const ModelBundle& model,
                                             std::int64_t depth) {
  const auto wanted = static_cast<std::size_t>(depth);
  std::vector<std::int32_t> ids;
  if (!options.file.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(ids, encode_file(model.tokenizer, options.file));
    const std::size_t period = ids.size();
    while (ids.size() < wanted) ids.push_back(ids[ids.size() - period]);
  }
  for (std::int64_t page = 1; ids.size() < wanted; ++page) {
    const std::string text = fmt::format(
        "Page {} of the log begins here. The ship left harbour {} days ago, and the wind has "
        "turned to the north. We counted {} sails on the horizon before noon; by evening they "
        "were gone. The cook says that flour will last for {} more weeks.\n",
        page, page * 3, page % 17, page % 29);
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> more,
                              model.tokenizer.encode(text, /*add_special_tokens=*/false));
    if (more.empty()) return invalid_file("the tokenizer gives no tokens for English text");
    ids.insert(ids.end(), more.begin(), more.end());
  }
  ids.resize(wanted);
  return ids;
}

double per_second(std::int64_t tokens, Clock::time_point start) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0;
}

Result<Speeds> measure(const BenchOptions& options, const ModelBundle& model,
                       const AttentionPlan& plan, std::span<const std::int32_t> ids,
                       ThreadPool& pool) {
  Speeds speeds;
  const Status status = with_session(model, plan, pool, [&](auto& session) -> Status {
    const auto depth = static_cast<std::int64_t>(ids.size());
    session.reserve(depth + options.new_tokens);
    ProgressBar bar(options.common,
                    fmt::format("{} {}", plan.session.dense ? "dense" : "chunk", depth), depth);
    Clock::time_point start = Clock::now();
    CHUNKLLM_RETURN_IF_ERROR(
        session.prefill(ids, [&](std::int64_t done) { return bar.update(done); }));
    CHUNKLLM_ASSIGN_OR_RETURN(std::span<const float> logits, session.finish_prompt());
    speeds.prefill = per_second(depth, start);
    start = Clock::now();
    for (std::int64_t i = 0; i < options.new_tokens; ++i) {
      if (!bar.update(depth)) return Status(StatusCode::kInterrupted, "stopped while decoding");
      CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t token, argmax_token(logits));
      CHUNKLLM_ASSIGN_OR_RETURN(logits, session.step(token));
    }
    speeds.decode = per_second(options.new_tokens, start);
    return {};
  });
  if (!status.ok()) return status;
  return speeds;
}

Status print_rows(const BenchOptions& options, const std::vector<ResultRow>& rows,
                  bool is_complete) {
  if (!options.common.json) return write_stdout(format_table(rows));
  OrderedJson list = OrderedJson::array();
  for (const ResultRow& row : rows) list.push_back(to_json(row));
  OrderedJson json = {{"rows", list}, {"threads", options.common.threads}};
  if (!is_complete) json["stop_reason"] = "interrupted";
  return print_json(json);
}

/// The two rows of a depth; `maybe_chunk` or `maybe_dense` is empty where --attention left it out.
void add_rows(const BenchOptions& options, const AttentionPlan& plan, std::int64_t depth,
              const std::optional<Speeds>& maybe_chunk, const std::optional<Speeds>& maybe_dense,
              std::vector<ResultRow>& rows) {
  for (double Speeds::*speed : {&Speeds::prefill, &Speeds::decode}) {
    ResultRow row;
    row.task = speed == &Speeds::prefill ? "prefill tokens/s" : "decode tokens/s";
    row.length = depth;
    row.budget = maybe_chunk ? options.attention.budget_text : "all";
    row.scorer = maybe_chunk ? to_string(plan.scorer_kind) : "dense";
    row.selection = maybe_chunk ? to_string(plan.session.chunk.selection) : "dense";
    row.seed = options.attention.seed;
    row.value = maybe_chunk ? (*maybe_chunk).*speed : (*maybe_dense).*speed;
    if (maybe_dense) row.dense_value = (*maybe_dense).*speed;
    rows.push_back(std::move(row));
  }
}

Status run_bench(const BenchOptions& options, bool is_mode_given) {
  ThreadPool pool(options.common.threads);
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelBundle model, open_model(options.common, pool));
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  std::vector<AttentionPlan> plans;  // all of them first: wrong settings should show at once
  AttentionOptions attention = options.attention;
  for (const std::int64_t depth : options.depths) {
    for (const bool dense : {false, true}) {
      attention.dense = dense;
      CHUNKLLM_ASSIGN_OR_RETURN(AttentionPlan plan,
                                plan_attention(options.common, attention, model, adapters,
                                               Task::kGenerate, depth + options.new_tokens));
      plans.push_back(std::move(plan));
    }
  }
  print_notes(options.common, plans.front());
  std::vector<ResultRow> rows;
  Status status;
  for (std::size_t i = 0; i < options.depths.size() && status.ok(); ++i) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                              sample_ids(options, model, options.depths[i]));
    std::optional<Speeds> speeds[2];
    for (const bool dense : {false, true}) {
      if (is_mode_given && dense != options.attention.dense) continue;
      const AttentionPlan& plan = plans[2 * i + (dense ? 1 : 0)];
      const Result<Speeds> measured = measure(options, model, plan, ids, pool);
      status = measured.status();
      if (!status.ok()) break;
      speeds[dense ? 1 : 0] = measured.value();
    }
    if (!status.ok()) break;
    add_rows(options, plans[2 * i], options.depths[i], speeds[0], speeds[1], rows);
  }
  const bool has_rows = status.ok() || status.code() == StatusCode::kInterrupted;
  if (has_rows) CHUNKLLM_RETURN_IF_ERROR(print_rows(options, rows, status.ok()));
  return status;
}

}  // namespace

Command add_bench(CLI::App& program) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App& app = *program.add_subcommand(
      "bench", "Measures prefill and decode speed by depth, chunk and dense in turn");
  add_parsed_option(
      app, "--depths",
      [](std::string_view text) { return parse_int_list(text, 1, std::int64_t{1} << 24); },
      options->depths, "Prompt lengths in tokens [8192,32768,122880]")
      ->type_name("LIST");
  add_int_option(app, "--new-tokens", options->new_tokens, 1, 1 << 16,
                 "Tokens decoded behind each prompt [32]")
      ->type_name("N");
  app.add_option("--file", options->file, "A text file to read [made-up prose]")->type_name("FILE");
  add_attention_options(app, options->attention);
  add_common_options(app, options->common);
  app.footer(
      "With --attention only that mode is measured.\n"
      "Examples:\n"
      "  chunkllm bench --model smollm2.gguf --depths 2048,8192\n"
      "  chunkllm bench --model smollm2.gguf --depths 122880 --attention chunk --budget 2048");
  return {&app, [options, &app] { return run_bench(*options, app.count("--attention") > 0); }};
}

}  // namespace chunkllm::cli
