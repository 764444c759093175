// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "chunkllm/cuda/backbone_shapes.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/infer/sampler.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "stopwatch.hpp"

namespace chunkllm::cli {
namespace {

struct BenchOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::vector<std::int64_t> depths = {8192, 32768, 122880};
  std::int64_t new_tokens = 32;
  std::string file;
  std::string random_weights;  // a published shape instead of a model
};

/// A line of the table: one speed at one depth.
struct BenchRow {
  std::string task;
  std::int64_t length = 0;  // tokens
  std::string budget;       // as given: "2048", "25%", "32c"
  std::string scorer;
  std::string selection;
  std::uint64_t seed = 0;
  double value = 0.0;
  std::optional<double> dense_value;
};

struct Speeds {
  double prefill = 0.0;  // tokens a second
  double decode = 0.0;
};

/// `depth` tokens of a file, or of made-up prose with numbers in it, repeated as often as needed.
Result<std::vector<std::int32_t>> sample_ids(const BenchOptions& options, const LoadedModel& model,
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

using MakeSession = std::function<Result<std::unique_ptr<AnySession>>()>;

/// Reads a prompt and decodes; on the device some tokens untimed first, behind which a step is a
/// graph that stands.
Result<Speeds> measure_once(const BenchOptions& options, const MakeSession& make_session,
                            bool is_dense, std::span<const std::int32_t> ids) {
  constexpr std::int64_t kUntimedSteps = 3;  // enqueued, captured, replayed
  CHUNKLLM_ASSIGN_OR_RETURN(const std::unique_ptr<AnySession> session, make_session());
  const auto depth = static_cast<std::int64_t>(ids.size());
  const std::int64_t untimed = options.common.cuda ? kUntimedSteps : 0;
  session->reserve(depth + untimed + options.new_tokens);
  ProgressBar bar(options.common, fmt::format("{} {}", is_dense ? "dense" : "chunk", depth), depth);
  Speeds speeds;
  Stopwatch watch;
  const Status status = session->prefill(ids, [&](std::int64_t done) { return bar.update(done); });
  CHUNKLLM_RETURN_IF_ERROR(bar.with_progress(status, "prompt token"));
  CHUNKLLM_ASSIGN_OR_RETURN(std::span<const float> logits, session->finish_prompt());
  speeds.prefill = rate(depth, watch.seconds());
  const auto decode = [&](std::int64_t count) -> Status {
    for (std::int64_t i = 0; i < count; ++i) {
      if (!bar.update(depth)) {
        return Status(StatusCode::kInterrupted,
                      fmt::format("interrupted after {} of {}", i, counted(count, "new token")));
      }
      const Result<std::int32_t> token = argmax_token(logits);
      if (!token.ok()) return as_model_fault(token.status(), options.common);
      CHUNKLLM_ASSIGN_OR_RETURN(logits, session->step(token.value()));
    }
    return {};
  };
  CHUNKLLM_RETURN_IF_ERROR(decode(untimed));
  watch = {};
  CHUNKLLM_RETURN_IF_ERROR(decode(options.new_tokens));
  speeds.decode = rate(options.new_tokens, watch.seconds());
  return speeds;
}

/// As above, on the device behind a shorter prompt of the same mode that is not counted: kernels
/// are loaded when they first run, and clocks rise.
Result<Speeds> measure(const BenchOptions& options, const MakeSession& make_session, bool is_dense,
                       std::span<const std::int32_t> ids) {
  constexpr std::size_t kWarmUpTokens = 8192;
  if (options.common.cuda) {
    const auto warm_up = measure_once(options, make_session, is_dense,
                                      ids.first(std::min(ids.size(), kWarmUpTokens)));
    if (!warm_up.ok()) return warm_up.status();
  }
  return measure_once(options, make_session, is_dense, ids);
}

OrderedJson to_json(const BenchRow& row) {
  OrderedJson json = {{"task", row.task},     {"length", row.length},       {"budget", row.budget},
                      {"scorer", row.scorer}, {"selection", row.selection}, {"seed", row.seed},
                      {"value", row.value},   {"dense_value", nullptr},     {"trials", 1}};
  if (row.dense_value) json["dense_value"] = *row.dense_value;
  return json;
}

std::string format_table(const std::vector<BenchRow>& rows) {
  std::string table = fmt::format("{:<18} {:>8} {:>8} {:<12} {:<9} {:>11} {:>11}\n", "task",
                                  "length", "budget", "scorer", "selection", "value", "dense");
  for (const BenchRow& row : rows) {
    table += fmt::format("{:<18} {:>8} {:>8} {:<12} {:<9} {:>11.4f} {:>11}\n", row.task, row.length,
                         row.budget, row.scorer, row.selection, row.value,
                         row.dense_value ? fmt::format("{:.4f}", *row.dense_value) : "-");
  }
  return table;
}

Status print_rows(const BenchOptions& options, const std::vector<BenchRow>& rows,
                  bool is_complete) {
  if (!options.common.json) return rows.empty() ? Status() : write_stdout(format_table(rows));
  OrderedJson list = OrderedJson::array();
  for (const BenchRow& row : rows) list.push_back(to_json(row));
  OrderedJson json = {{"rows", list}, {"threads", options.common.threads}};
  if (!is_complete) json["stop_reason"] = "interrupted";
  return print_json(json);
}

/// The two rows of a depth; `maybe_chunk` or `maybe_dense` is empty where --attention left it out.
void add_rows(const BenchOptions& options, const AttentionPlan& plan, std::int64_t depth,
              const std::optional<Speeds>& maybe_chunk, const std::optional<Speeds>& maybe_dense,
              std::vector<BenchRow>& rows) {
  for (double Speeds::*speed : {&Speeds::prefill, &Speeds::decode}) {
    BenchRow row;
    row.task = speed == &Speeds::prefill ? "prefill tokens/s" : "decode tokens/s";
    row.length = depth;
    row.budget = maybe_chunk ? options.attention.budget_text : "all";
    row.scorer = maybe_chunk ? to_string(plan.scorer_kind) : "dense";
    row.selection = maybe_chunk ? selection_name(plan.session.chunk.selection) : "dense";
    row.seed = options.attention.seed;
    row.value = maybe_chunk ? (*maybe_chunk).*speed : (*maybe_dense).*speed;
    if (maybe_dense) row.dense_value = (*maybe_dense).*speed;
    rows.push_back(std::move(row));
  }
}

/// The modes to measure: what --attention names, or both.
struct BenchModes {
  bool chunk = true;
  bool dense = true;
};

/// What there is to read at one depth, and how: a plan for each mode that is measured.
struct BenchDepth {
  std::int64_t tokens = 0;
  std::optional<AttentionPlan> maybe_chunk;
  std::optional<AttentionPlan> maybe_dense;
};

/// All plans first: wrong settings should show at once.
Result<std::vector<BenchDepth>> plan_depths(const BenchOptions& options, const BenchModes& modes,
                                            const OpenModel& model) {
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  std::vector<BenchDepth> depths;
  for (const std::int64_t tokens : options.depths) {
    BenchDepth& depth = depths.emplace_back();
    depth.tokens = tokens;
    for (const bool dense : {false, true}) {
      if (!(dense ? modes.dense : modes.chunk)) continue;
      AttentionOptions attention = options.attention;
      attention.dense = dense;
      CHUNKLLM_ASSIGN_OR_RETURN((dense ? depth.maybe_dense : depth.maybe_chunk),
                                plan_attention(options.common, attention, model, adapters,
                                               Task::kGenerate, tokens + options.new_tokens));
    }
  }
  return depths;
}

/// Says what is to be known of the plans, each thing once.
void print_plan_notes(const BenchOptions& options, std::span<const BenchDepth> depths) {
  std::vector<std::string> said;
  for (const BenchDepth& depth : depths) {
    for (const auto* maybe_plan : {&depth.maybe_chunk, &depth.maybe_dense}) {
      if (!maybe_plan->has_value()) continue;
      for (const std::string& note : maybe_plan->value().notes) {
        if (std::find(said.begin(), said.end(), note) != said.end()) continue;
        said.push_back(note);
        if (!options.common.quiet) print_note(note);
      }
    }
  }
}

/// Appends two rows a depth; those measured before an error stay.
Status measure_depths(const BenchOptions& options, const BenchModes& modes, ThreadPool& pool,
                      std::vector<BenchRow>& rows) {
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<BenchDepth> depths,
                            plan_depths(options, modes, model));
  CHUNKLLM_RETURN_IF_ERROR(load_weights(options.common, WeightPlaces::kWhereItRuns, pool, model));
  print_plan_notes(options, depths);
  for (const BenchDepth& depth : depths) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                              sample_ids(options, model, depth.tokens));
    const auto measure_plan = [&](const AttentionPlan& plan) {
      return measure(
          options, [&] { return make_session(model, plan, pool); }, plan.session.dense, ids);
    };
    std::optional<Speeds> chunk;
    std::optional<Speeds> dense;
    if (depth.maybe_chunk) {
      CHUNKLLM_ASSIGN_OR_RETURN(chunk, measure_plan(*depth.maybe_chunk));
    }
    if (depth.maybe_dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(dense, measure_plan(*depth.maybe_dense));
    }
    add_rows(options, depth.maybe_chunk ? *depth.maybe_chunk : *depth.maybe_dense, depth.tokens,
             chunk, dense, rows);
  }
  return {};
}

/// Made-up words, and a full stop at every 24th id, so that the sentence rules find chunks.
std::string_view made_up_bytes(std::int32_t id) {
  return id % 24 == 0 ? "." : (id % 24 == 1 ? " Word" : " word");
}

/// Wrong usage of --random-weights.
Status check_random_weights(const BenchOptions& options) {
  if (!options.common.cuda) return invalid_argument("--random-weights: only with --device cuda");
  const Status known = cuda::backbone_shape(options.random_weights).status();
  if (!known.ok()) return invalid_argument("--random-weights: " + known.message());
  if (options.attention.scorer == ScorerKind::kAdapter) {
    return invalid_argument("--random-weights: no adapters fit them, expected --scorer mean-key");
  }
  return {};
}

/// As `measure_depths`, on random weights of a published model's shape.
Status measure_random_weights(const BenchOptions& options, const BenchModes& modes,
                              std::vector<BenchRow>& rows) {
  CHUNKLLM_ASSIGN_OR_RETURN(const BackboneConfig config,
                            cuda::backbone_shape(options.random_weights));
  AttentionPlan plan;  // of what the rows say
  plan.scorer_kind = options.attention.scorer.value_or(ScorerKind::kMeanKey);
  SessionOptions& session = plan.session;
  session.dense_prefill = options.attention.dense_prefill.value_or(false);
  session.positions = options.attention.positions.value_or(Positions::kOriginal);
  session.chunk.budget = options.attention.budget;
  session.chunk.selection = options.attention.selection.value_or(Selection::kMax);
  session.chunk.refresh = options.attention.refresh;
  session.chunk.head_join = options.attention.head_join;
  session.chunk.second_look = options.attention.second_look;
  CHUNKLLM_RETURN_IF_ERROR(validate(session.chunk));
  CHUNKLLM_ASSIGN_OR_RETURN(
      const std::unique_ptr<const DeviceRunner> device,
      random_device_runner(config, options.common.maybe_kv.value_or(KvKind::kF16)));
  const AnyScorer scorer = make_scorer(plan.scorer_kind, config, {}, options.attention.seed);
  for (const std::int64_t depth : options.depths) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(depth));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(config.vocab_size));
    }
    std::optional<Speeds> speeds[2];
    for (const bool is_dense : {false, true}) {
      if (!(is_dense ? modes.dense : modes.chunk)) continue;
      session.dense = is_dense;
      CHUNKLLM_ASSIGN_OR_RETURN(
          speeds[is_dense ? 1 : 0],
          measure(
              options,
              [&] { return device->make_session(scorer, nullptr, made_up_bytes, session); },
              is_dense, ids));
    }
    add_rows(options, plan, depth, speeds[0], speeds[1], rows);
  }
  return {};
}

Status run_bench(const BenchOptions& options, bool is_mode_given) {
  if (options.common.model.empty() == options.random_weights.empty()) {
    return invalid_argument("bench: expected either --model or --random-weights");
  }
  if (!options.random_weights.empty()) CHUNKLLM_RETURN_IF_ERROR(check_random_weights(options));
  CHUNKLLM_RETURN_IF_ERROR(check_device_settings(options.common, options.attention));
  BenchModes modes;
  if (is_mode_given) modes = {!options.attention.dense, options.attention.dense};
  ThreadPool pool(options.common.threads);
  std::vector<BenchRow> rows;
  const Status status = options.random_weights.empty()
                            ? measure_depths(options, modes, pool, rows)
                            : measure_random_weights(options, modes, rows);
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
      [](std::string_view text) {
        return parse_list<std::int64_t>(
            text, [](std::string_view part) { return parse_int(part, 1, std::int64_t{1} << 24); });
      },
      options->depths, "Prompt lengths in tokens [8192,32768,122880]")
      ->type_name("LIST");
  add_int_option(app, "--new-tokens", options->new_tokens, 1, 1 << 16,
                 "Tokens decoded behind each prompt [32]")
      ->type_name("N");
  app.add_option("--file", options->file, "A text file to read [made-up prose]")->type_name("FILE");
  add_attention_options(app, options->attention);
  add_common_options(app, options->common);
  app.get_option("--model")->required(false);
  app.add_option("--random-weights", options->random_weights,
                 "Instead of --model, with --device cuda: random weights of this shape, such as "
                 "llama-3.1-8b or qwen2.5-7b, in f16 or as --kv says")
      ->type_name("NAME")
      ->excludes(app.get_option("--file"))
      ->excludes(app.get_option("--adapters"))
      ->excludes(app.get_option("--oracle"));
  app.footer(
      "With --attention only that mode is measured.\n"
      "Examples:\n"
      "  chunkllm bench --model smollm2.gguf --depths 2048,8192\n"
      "  chunkllm bench --model smollm2.gguf --depths 122880 --attention chunk --budget 2048\n"
      "  chunkllm bench --device cuda --random-weights llama-3.1-8b --kv bf16 --budget 10%");
  return {&app, [options, &app] { return run_bench(*options, app.count("--attention") > 0); }};
}

}  // namespace chunkllm::cli
