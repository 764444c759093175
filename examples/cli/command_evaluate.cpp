// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/html_report.hpp"
#include "commands.hpp"
#include "evaluate_output.hpp"
#include "kv_runner.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "stopwatch.hpp"
#include "system_info.hpp"

namespace chunkllm::cli {
namespace {

/// Where the default length is long enough for chunks to be left out, and two show a slope.
constexpr const char* kDefaultBudgets = "512,1024";

struct EvaluateCommandOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::vector<std::string> texts;
  // Lists as given; empty ones fall back to the single flag of the same meaning.
  std::string tasks = "perplexity,passkey";
  std::string lengths = "4096";
  std::string budgets;  // empty: --budget, whose default here is kDefaultBudgets
  std::string scorers;
  std::string selections;
  std::string head_joins;
  std::string second_looks;
  std::string depths = "0.1,0.3,0.5,0.7,0.9";
  std::string seeds;
  std::int64_t windows = 2;
  std::int64_t only_window = -1;  // -1: all
  std::int64_t trials = 10;
  double time_limit = 0.0;  // seconds; 0: none
  EvaluateOutputs outputs;
};

/// A list in a flag; errors name the flag.
template <typename T, typename Parse>
Result<std::vector<T>> parse_flag(const char* flag, std::string_view text, Parse parse) {
  Result<std::vector<T>> values = parse_list<T>(text, parse);
  if (!values.ok()) return values.status().with_context(flag);
  return values;
}

Result<EvaluateTask> parse_task(std::string_view text) {
  using enum EvaluateTask;
  std::vector<std::pair<std::string, EvaluateTask>> words;
  for (const EvaluateTask task : {kPerplexity, kPasskey, kMultiKey, kBoundaryF1, kMassRecall}) {
    words.emplace_back(to_string(task), task);
  }
  return one_of(std::move(words))(text);
}

/// A scorer in a list: the names of --scorer, with the two oracles apart.
struct ScorerChoice {
  ScorerKind kind = ScorerKind::kMeanKey;
  MassRows oracle_rows = MassRows::kNext;
};
Result<ScorerChoice> parse_scorer(std::string_view text) {
  using enum ScorerKind;
  return one_of<ScorerChoice>({{"adapter", {kAdapter, {}}},
                               {"mean-key", {kMeanKey, {}}},
                               {"min-max-key", {kMinMaxKey, {}}},
                               {"recent", {kRecent, {}}},
                               {"random", {kRandom, {}}},
                               {"oracle-next", {kOracle, MassRows::kNext}},
                               {"oracle-same", {kOracle, MassRows::kSame}}})(text);
}

/// Adds a scorer to the list: the random one once for every seed.
Status add_scorers(const EvaluateCommandOptions& options, const BackboneConfig& config,
                   const Adapters& adapters, const ScorerChoice& choice,
                   std::vector<EvaluateScorer>& scorers) {
  EvaluateScorer scorer;
  scorer.name = to_string(choice.kind);
  scorer.ignores_scores = choice.kind == ScorerKind::kRecent;
  const auto make = [&](std::uint64_t seed) {
    return std::make_shared<const AnyScorer>(make_scorer(choice.kind, config, adapters, seed));
  };
  if (choice.kind == ScorerKind::kOracle) {
    scorer.name += choice.oracle_rows == MassRows::kNext ? "-next" : "-same";
    scorer.oracle_rows = choice.oracle_rows;
    scorers.push_back(std::move(scorer));
    return {};
  }
  if (choice.kind == ScorerKind::kRandom) {
    std::vector<std::uint64_t> seeds = {options.attention.seed};
    if (!options.seeds.empty()) {
      CHUNKLLM_ASSIGN_OR_RETURN(seeds,
                                parse_flag<std::uint64_t>("--seeds", options.seeds, parse_seed));
    }
    for (const std::uint64_t seed : seeds) {
      scorer.seed = seed;
      scorer.scorer = make(seed);
      scorers.push_back(scorer);
    }
    return {};
  }
  if (choice.kind == ScorerKind::kAdapter) {
    if (adapters.maybe_qk_adapter == nullptr) {
      return not_found("adapter: there are none for this model, expected --adapters FILE");
    }
    scorer.threshold = adapters.threshold;
    // As `generate` would run them, unless the flags say otherwise.
    if (options.selections.empty() && !options.attention.selection) {
      scorer.selections = {Selection::kLayer};
    }
    if (options.head_joins.empty() && !options.attention.is_head_join_given) {
      scorer.head_joins = {adapters.head_join};
    }
  }
  scorer.scorer = make(/*seed=*/0);
  scorers.push_back(std::move(scorer));
  return {};
}

/// Refuses a refresh that the device has not got for one of the selections.
Status check_refresh(const CommonOptions& common, const EvaluateOptions& evaluate,
                     bool has_chunk_adapter) {
  std::vector<Selection> selections = evaluate.selections;
  for (const EvaluateScorer& scorer : evaluate.scorers) {
    selections.insert(selections.end(), scorer.selections.begin(), scorer.selections.end());
  }
  for (const Selection selection : selections) {
    CHUNKLLM_RETURN_IF_ERROR(
        check_device_refresh(common, evaluate.chunk.refresh, selection, has_chunk_adapter));
  }
  return {};
}

/// Refuses what the device has not got; what the model's adapters say is not known yet.
Status check_on_device(const EvaluateCommandOptions& options, const EvaluateOptions& evaluate,
                       std::span<const ScorerChoice> scorers) {
  for (const ScorerChoice& choice : scorers) {
    CHUNKLLM_RETURN_IF_ERROR(check_device_scorer(options.common, choice.kind));
  }
  CHUNKLLM_RETURN_IF_ERROR(check_refresh(options.common, evaluate, /*has_chunk_adapter=*/false));
  return check_device_settings(options.common, options.attention);
}

/// Whether a task runs layers on the CPU, whatever the device.
bool runs_on_host(const EvaluateOptions& evaluate, const Adapters& adapters) {
  return std::any_of(evaluate.tasks.begin(), evaluate.tasks.end(), [&](EvaluateTask task) {
    return task == EvaluateTask::kMassRecall ||
           (task == EvaluateTask::kBoundaryF1 && adapters.maybe_chunk_adapter != nullptr);
  });
}

/// What does not need the model, so that wrong usage is told before it is loaded.
Result<EvaluateOptions> make_options(const EvaluateCommandOptions& options,
                                     std::vector<ScorerChoice>& scorers) {
  const AttentionOptions& attention = options.attention;
  EvaluateOptions evaluate;
  CHUNKLLM_ASSIGN_OR_RETURN(evaluate.tasks,
                            parse_flag<EvaluateTask>("--tasks", options.tasks, parse_task));
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.lengths,
      parse_flag<std::int64_t>("--lengths", options.lengths, [](std::string_view text) {
        return parse_int(text, 2, std::int64_t{1} << 24);
      }));
  const std::string budgets = options.budgets.empty() ? attention.budget_text : options.budgets;
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.budgets,
      parse_flag<EvaluateBudget>(
          "--budgets", budgets, [](std::string_view text) -> Result<EvaluateBudget> {
            CHUNKLLM_ASSIGN_OR_RETURN(const Budget budget, parse_budget(text));
            return EvaluateBudget{budget, std::string(text)};
          }));
  if (!options.scorers.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(scorers,
                              parse_flag<ScorerChoice>("--scorers", options.scorers, parse_scorer));
  } else if (attention.scorer) {
    scorers = {{*attention.scorer,
                attention.oracle == OracleKind::kNext ? MassRows::kNext : MassRows::kSame}};
  } else {
    scorers = {{ScorerKind::kRecent, {}}, {ScorerKind::kMeanKey, {}}};
  }
  if (!options.selections.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.selections,
        parse_flag<Selection>("--selections", options.selections, parse_selection));
  } else {
    evaluate.selections = {attention.selection.value_or(Selection::kMax)};
  }
  evaluate.head_joins = {attention.head_join};
  if (!options.head_joins.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.head_joins,
        parse_flag<HeadJoin>("--head-joins", options.head_joins, parse_head_join));
  }
  evaluate.second_looks = {attention.second_look};
  if (!options.second_looks.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.second_looks,
        parse_flag<std::int64_t>("--second-looks", options.second_looks, parse_second_look));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.depths, parse_flag<double>("--depths", options.depths, [](std::string_view text) {
        return parse_number(text, 0.0, 1.0);
      }));
  evaluate.num_windows = options.windows;
  if (options.only_window >= options.windows) {
    return invalid_argument("--only-window " + std::to_string(options.only_window) +
                            ": expected below --windows " + std::to_string(options.windows));
  }
  if (options.only_window >= 0) evaluate.only_window = options.only_window;
  evaluate.num_trials = options.trials;
  evaluate.seed = attention.seed;
  evaluate.chunk.refresh = attention.refresh;
  evaluate.positions = attention.positions;
  if (attention.dense_prefill == false) evaluate.read_mode = ReadMode::kLayerLocal;
  evaluate.dense_prefill = attention.dense_prefill.value_or(false);
  return evaluate;
}

/// How this program was called, for the report; empty where the system does not tell.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text;
  for (std::string word; std::getline(file, word, '\0');) {
    if (text.empty()) word = std::filesystem::path(word).filename().string();
    const bool is_plain = !word.empty() && word.find_first_of(" \t\n'\"\\$*?&|;<>()") == word.npos;
    text += (text.empty() ? "" : " ") + (is_plain ? word : "'" + word + "'");
  }
  return text;
}

/// What ran the model, for the report.
Result<std::string> describe_device(const CommonOptions& options, KvKind kv) {
  const std::string threads = fmt::format("CPU, {} threads", options.threads);
  if (!options.cuda) return threads;
  CHUNKLLM_ASSIGN_OR_RETURN(const DeviceFacts device, device_facts());
  return fmt::format("{} (CUDA), weights, keys and values in {}", device.name,
                     kv == KvKind::kBF16 ? "bf16" : "f16");
}

HtmlReportHeader make_header(const CommonOptions& options, const OpenModel& model,
                             std::string device, std::span<const EvaluateText> texts) {
  const BackboneConfig& config = model.config();
  HtmlReportHeader header;
  header.title = "Quality of chunk-selective attention";
  header.model = fmt::format("{} ({}, {} layers, hidden size {})",
                             std::filesystem::path(options.model).filename().string(),
                             to_string(config.architecture), config.num_layers, config.hidden_size);
  header.device = std::move(device);
  header.date = today("%Y-%m-%d");
  header.command = command_line();
  for (const EvaluateText& text : texts) {
    header.text += fmt::format("{}{} ({})", header.text.empty() ? "" : ", ",
                               std::filesystem::path(text.name).filename().string(),
                               counted(static_cast<std::int64_t>(text.ids.size()), "token"));
  }
  return header;
}

Status check_outputs(const EvaluateOutputs& outputs) {
  if (!outputs.rows.empty() && outputs.rows == outputs.report) {
    return invalid_argument("--rows and --report: both are '" + outputs.rows +
                            "', expected two files");
  }
  for (const std::string* path : {&outputs.rows, &outputs.report}) {
    if (!path->empty()) CHUNKLLM_RETURN_IF_ERROR(check_output_path(*path));
  }
  return {};
}

/// A length that no text has is told with the names of the flag and the text.
Status check_lengths(const EvaluateOptions& evaluate, std::span<const EvaluateText> texts) {
  const bool has_lengths =
      std::any_of(evaluate.tasks.begin(), evaluate.tasks.end(),
                  [](EvaluateTask task) { return task != EvaluateTask::kBoundaryF1; });
  const auto longest =
      std::max_element(texts.begin(), texts.end(),
                       [](const auto& a, const auto& b) { return a.ids.size() < b.ids.size(); });
  const auto most = static_cast<std::int64_t>(longest->ids.size());
  for (const std::int64_t length : evaluate.lengths) {
    if (!has_lengths || length <= most) continue;
    return invalid_argument(
        fmt::format("--lengths {}: {} has {}, expected 2 to {}, or a longer --text", length,
                    longest->name, counted(most, "token"), most));
  }
  return {};
}

/// Draws the progress of all tasks and watches the clock.
class EvaluateProgress {
 public:
  explicit EvaluateProgress(const EvaluateCommandOptions& options) : options_(options) {}

  /// \return false once the user or the clock asks to stop
  bool update(std::int64_t done, std::int64_t total) {
    if (!bar_) {
      bar_start_ = done;
      bar_.emplace(options_.common, "evaluating", total - bar_start_);
    }
    out_of_time_ = options_.time_limit > 0.0 && watch_.seconds() > options_.time_limit;
    return bar_->update(done - bar_start_) && !out_of_time_;
  }
  /// Takes the bar away, so that nothing is written into it.
  void hide() { bar_.reset(); }

  [[nodiscard]] bool out_of_time() const { return out_of_time_; }
  [[nodiscard]] double seconds() const { return watch_.seconds(); }

 private:
  const EvaluateCommandOptions& options_;
  Stopwatch watch_;
  std::optional<ProgressBar> bar_;
  std::int64_t bar_start_ = 0;  // what was done when the bar was drawn anew
  bool out_of_time_ = false;
};

/// Says once for each task and length that positions are re-numbered though nobody asked for it.
class PositionNotes {
 public:
  explicit PositionNotes(const EvaluateCommandOptions& options)
      : is_wanted_(!options.common.quiet && !options.attention.positions) {}

  void look_at(const EvaluateRow& row) {
    if (!is_wanted_ || row.positions != positions_name(Positions::kInCache)) return;
    if (!said_.emplace(row.task, row.length).second) return;
    print_note(fmt::format(
        "{} at length {} exceeds the model's window; positions are numbered in the cache, dense "
        "attention has the original ones",
        row.task, row.length));
  }

 private:
  bool is_wanted_;
  std::set<std::pair<std::string, std::int64_t>> said_;
};

/// Fills `rows` on every way out.
Status measure(const EvaluateCommandOptions& options, EvaluateOptions& evaluate,
               std::vector<ScorerChoice> choices, const std::vector<std::string>& files,
               EvaluateProgress& progress, ThreadPool& pool, std::vector<EvaluateRow>& rows) {
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  if (options.scorers.empty() && !options.attention.scorer && adapters.maybe_qk_adapter) {
    choices.push_back({ScorerKind::kAdapter, {}});
  }
  for (const ScorerChoice& choice : choices) {
    CHUNKLLM_RETURN_IF_ERROR(
        add_scorers(options, model.config(), adapters, choice, evaluate.scorers));
  }
  CHUNKLLM_RETURN_IF_ERROR(
      check_refresh(options.common, evaluate, adapters.maybe_chunk_adapter != nullptr));
  if (adapters.guards) evaluate.chunk.guards = *adapters.guards;
  std::vector<EvaluateText> texts;
  for (std::size_t i = 0; i < files.size(); ++i) {
    CHUNKLLM_ASSIGN_OR_RETURN(std::vector<std::int32_t> ids,
                              model.tokenizer.encode(files[i], /*add_special_tokens=*/false));
    texts.push_back({options.texts[i], std::move(ids)});
  }
  CHUNKLLM_RETURN_IF_ERROR(check_lengths(evaluate, texts));
  CHUNKLLM_ASSIGN_OR_RETURN(std::string device, describe_device(options.common, model.kv));
  CHUNKLLM_RETURN_IF_ERROR(load_weights(
      options.common,
      runs_on_host(evaluate, adapters) ? WeightPlaces::kHostToo : WeightPlaces::kWhereItRuns, pool,
      model));
  if (!options.common.quiet) print_note(boundary_note(adapters));
  RowSink sink(options.outputs, make_header(options.common, model, std::move(device), texts),
               !options.common.json, count_rows(evaluate));
  PositionNotes notes(options);
  const Status status = model.runner().evaluate(
      model, adapters.maybe_chunk_adapter, evaluate, texts,
      [&](const EvaluateRow& row) {
        progress.hide();
        notes.look_at(row);
        return sink.add(row);
      },
      [&](std::string_view, std::int64_t done, std::int64_t total) {
        return progress.update(done, total);
      },
      pool);
  progress.hide();
  rows = sink.rows();
  if (status.ok() || status.code() == StatusCode::kInterrupted) {
    const std::string_view reason = status.ok()              ? ""
                                    : progress.out_of_time() ? "the time limit was reached"
                                                             : "interrupted";
    CHUNKLLM_RETURN_IF_ERROR(sink.finish(reason));
    if (status.ok()) return {};
    return Status(StatusCode::kInterrupted, fmt::format("{} after {}", reason, sink.how_far()));
  }
  return status.code() == StatusCode::kInvalidFile ? as_model_fault(status, options.common)
                                                   : status;
}

Status print_rows(const std::vector<EvaluateRow>& rows, double seconds,
                  std::string_view stop_reason) {
  OrderedJson list = OrderedJson::array();
  for (const EvaluateRow& row : rows) list.push_back(to_json(row));
  return print_json({{"rows", list}, {"seconds", seconds}, {"stop_reason", stop_reason}});
}

Status run_evaluate(const EvaluateCommandOptions& options) {
  if (options.attention.dense) {
    return invalid_argument(
        "--attention dense: evaluate measures dense attention beside every row, expected chunk");
  }
  std::vector<ScorerChoice> choices;
  CHUNKLLM_ASSIGN_OR_RETURN(EvaluateOptions evaluate, make_options(options, choices));
  CHUNKLLM_RETURN_IF_ERROR(check_on_device(options, evaluate, choices));
  CHUNKLLM_RETURN_IF_ERROR(check_outputs(options.outputs));
  std::vector<std::string> files;  // read before the model is loaded
  for (const std::string& path : options.texts) {
    CHUNKLLM_ASSIGN_OR_RETURN(files.emplace_back(), read_utf8_file(path));
  }
  ThreadPool pool(options.common.threads);
  EvaluateProgress progress(options);
  std::vector<EvaluateRow> rows;
  const Status status = measure(options, evaluate, std::move(choices), files, progress, pool, rows);
  if (!status.ok() && status.code() != StatusCode::kInterrupted) return status;
  const bool out_of_time = !status.ok() && progress.out_of_time();
  if (out_of_time && !options.common.quiet) {
    print_note(status.message());
  }
  if (options.common.json) {
    const char* reason = status.ok() ? "end" : (out_of_time ? "time-limit" : "interrupted");
    CHUNKLLM_RETURN_IF_ERROR(print_rows(rows, progress.seconds(), reason));
  }
  return out_of_time ? Status() : status;
}

}  // namespace

Command add_evaluate(CLI::App& program) {
  auto options = std::make_shared<EvaluateCommandOptions>();
  CLI::App& app = *program.add_subcommand(
      "evaluate", "Measures quality against dense attention: perplexity, passkey and others");
  add_common_options(app, options->common);
  add_attention_options(app, options->attention);
  options->attention.budget_text = kDefaultBudgets;
  app.get_option("--budget")
      ->description(
          "As --budgets, one of them: tokens attended (2048), share of the past (25%), "
          "or chunks (32c)");
  app.add_option("--text,--file", options->texts, "Text files to measure on")
      ->required()
      ->type_name("FILE");
  const auto list = [&](const char* name, std::string& target, const char* help) {
    app.add_option(name, target, help)->type_name("LIST");
  };
  list("--tasks", options->tasks,
       "perplexity, passkey, multi-key, boundary-f1, mass-recall [perplexity,passkey]");
  list("--lengths", options->lengths, "Tokens of a window, or in front of a question [4096]");
  list("--budgets", options->budgets, "As --budget, several [--budget, else 512,1024]");
  list("--scorers", options->scorers,
       "adapter, mean-key, min-max-key, recent, random, oracle-next, oracle-same "
       "[recent,mean-key, and adapter where there is one]");
  list("--selections", options->selections,
       "As --selection [its value, else max; layer for adapters]");
  list("--head-joins", options->head_joins, "As --head-join [its value]");
  list("--second-looks", options->second_looks,
       "As --second-look, for passkey and multi-key [its value]");
  list("--depths", options->depths, "Where facts stand in the text, in turn [0.1,0.3,0.5,0.7,0.9]");
  list("--seeds", options->seeds, "Of the random scorer [--seed]");
  add_int_option(app, "--windows", options->windows, 1, 1 << 16,
                 "Windows of each length, over all texts [2]")
      ->type_name("N");
  add_int_option(app, "--only-window", options->only_window, 0, 1 << 16,
                 "Only this one of the windows, from 0, to spread a table over machines")
      ->type_name("I");
  add_int_option(app, "--trials", options->trials, 1, 1 << 16, "Questions for each length [10]")
      ->type_name("N");
  add_number_option(app, "--time-limit", options->time_limit, 0.0, 1e9,
                    "Stop after this many seconds, with the rows so far; 0: none [0]")
      ->type_name("S");
  app.add_option("--report", options->outputs.report, "Draw the rows into an HTML page")
      ->type_name("F.html");
  app.add_option("--rows", options->outputs.rows, "Write the rows as JSON lines, as they come")
      ->type_name("F.jsonl");
  app.footer(
      "Metrics of passkey and multi-key, shares from 0 to 1:\n"
      "  digits   of a key's digits, those that the greedy answer has right in their place\n"
      "  full     of the keys, those with every digit right\n"
      "  forced   of a key's digits, those right when all digits before them were given\n"
      "\n"
      "Examples:\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --report quality.html\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --tasks passkey \\\n"
      "    --lengths 4000,8000 --budgets 512,1024 --second-looks 0,64\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --tasks perplexity --lengths 8192 "
      "\\\n"
      "    --scorers recent,random,oracle-next --budgets 512,1024,2048 --json");
  return {&app, [options] { return run_evaluate(*options); }};
}

}  // namespace chunkllm::cli
