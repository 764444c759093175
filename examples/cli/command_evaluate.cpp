// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/eval/evaluate.hpp"
#include "chunkllm/eval/html_report.hpp"
#include "chunkllm/io/atomic_file.hpp"
#include "chunkllm/model/rope.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"

namespace chunkllm::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct EvaluateCommandOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::vector<std::string> texts;
  // Lists as given; empty ones fall back to the single flag of the same meaning.
  std::string tasks = "perplexity,passkey";
  std::string lengths = "4096";
  std::string budgets;
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
  std::string report;
  std::string rows;
};

/// The parts of a list that commas separate, each parsed; an empty part is an error.
template <typename T, typename Parse>
Result<std::vector<T>> parse_list(const std::string& flag, std::string_view text, Parse parse) {
  std::vector<T> values;
  for (;;) {
    const std::size_t comma = std::min(text.find(','), text.size());
    auto value = parse(text.substr(0, comma));
    if (!value.ok()) return value.status().with_context(flag);
    values.push_back(std::move(value).value());
    if (comma == text.size()) return values;
    text.remove_prefix(comma + 1);
  }
}

/// Finds a name among (name, value) pairs; the error lists them.
template <typename T>
Result<T> parse_name(std::string_view text,
                     std::initializer_list<std::pair<std::string_view, T>> names) {
  std::string expected;
  for (const auto& [name, value] : names) {
    if (text == name) return value;
    expected += (expected.empty() ? "" : ", ") + std::string(name);
  }
  return invalid_argument("'" + std::string(text) + "' is unknown, expected " + expected);
}

Result<EvaluateTask> parse_task(std::string_view text) {
  using enum EvaluateTask;
  return parse_name<EvaluateTask>(text, {{"perplexity", kPerplexity},
                                         {"passkey", kPasskey},
                                         {"multi-key", kMultiKey},
                                         {"boundary-f1", kBoundaryF1},
                                         {"mass-recall", kMassRecall}});
}
Result<Selection> parse_selection(std::string_view text) {
  using enum Selection;
  return parse_name<Selection>(
      text, {{"layer", kLayer}, {"max", kMax}, {"vote", kVote}, {"soft", kSoft}});
}
Result<HeadJoin> parse_head_join(std::string_view text) {
  return parse_name<HeadJoin>(text, {{"max", HeadJoin::kMax}, {"mean", HeadJoin::kMean}});
}

/// A scorer in a list: the names of --scorer, with the two oracles apart.
struct ScorerChoice {
  ScorerKind kind = ScorerKind::kMeanKey;
  MassRows oracle_rows = MassRows::kNext;
};
Result<ScorerChoice> parse_scorer(std::string_view text) {
  using enum ScorerKind;
  return parse_name<ScorerChoice>(text, {{"adapter", {kAdapter, {}}},
                                         {"mean-key", {kMeanKey, {}}},
                                         {"min-max-key", {kMinMaxKey, {}}},
                                         {"recent", {kRecent, {}}},
                                         {"random", {kRandom, {}}},
                                         {"oracle-next", {kOracle, MassRows::kNext}},
                                         {"oracle-same", {kOracle, MassRows::kSame}}});
}

/// Adds a scorer to the list: the random one once for every seed.
Status add_scorers(const EvaluateCommandOptions& options, const BackboneConfig& config,
                   const Adapters& adapters, const ScorerChoice& choice,
                   std::vector<EvaluateScorer>& scorers) {
  EvaluateScorer scorer;
  scorer.name = to_string(choice.kind);
  const auto wrap = [](auto made) { return std::make_shared<const AnyScorer>(std::move(made)); };
  switch (choice.kind) {
    case ScorerKind::kOracle:
      scorer.name = choice.oracle_rows == MassRows::kNext ? "oracle-next" : "oracle-same";
      scorer.oracle_rows = choice.oracle_rows;
      break;
    case ScorerKind::kAdapter:
      if (adapters.maybe_qk_adapter == nullptr) {
        return not_found("adapter: there are none for this model, expected --adapters FILE");
      }
      scorer.scorer = wrap(QkAdapter(*adapters.maybe_qk_adapter));
      scorer.threshold = adapters.threshold;
      break;
    case ScorerKind::kMeanKey:
      scorer.scorer = wrap(MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim,
                                         softmax_scale(config)));
      break;
    case ScorerKind::kMinMaxKey:
      scorer.scorer = wrap(MinMaxKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim,
                                           softmax_scale(config)));
      break;
    case ScorerKind::kRecent:
      scorer.scorer = wrap(RecentScorer());
      scorer.ignores_scores = true;
      break;
    case ScorerKind::kRandom: {
      std::vector<std::int64_t> seeds = {static_cast<std::int64_t>(options.attention.seed)};
      if (!options.seeds.empty()) {
        CHUNKLLM_ASSIGN_OR_RETURN(
            seeds, parse_list<std::int64_t>("--seeds", options.seeds, [](std::string_view text) {
              return parse_int(text, 0, std::int64_t{1} << 62);
            }));
      }
      for (const std::int64_t seed : seeds) {
        scorer.seed = static_cast<std::uint64_t>(seed);
        scorer.scorer = wrap(RandomScorer(*scorer.seed));
        scorers.push_back(scorer);
      }
      return {};
    }
  }
  scorers.push_back(std::move(scorer));
  return {};
}

/// What does not need the model, so that wrong usage is told before it is loaded.
Result<EvaluateOptions> make_options(const EvaluateCommandOptions& options,
                                     std::vector<ScorerChoice>& scorers) {
  const AttentionOptions& attention = options.attention;
  EvaluateOptions evaluate;
  CHUNKLLM_ASSIGN_OR_RETURN(evaluate.tasks,
                            parse_list<EvaluateTask>("--tasks", options.tasks, parse_task));
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.lengths,
      parse_list<std::int64_t>("--lengths", options.lengths, [](std::string_view text) {
        return parse_int(text, 2, std::int64_t{1} << 24);
      }));
  const std::string budgets = options.budgets.empty() ? attention.budget_text : options.budgets;
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.budgets,
      parse_list<EvaluateBudget>(
          "--budgets", budgets, [](std::string_view text) -> Result<EvaluateBudget> {
            CHUNKLLM_ASSIGN_OR_RETURN(const Budget budget, parse_budget(text));
            return EvaluateBudget{budget, std::string(text)};
          }));
  if (!options.scorers.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(scorers,
                              parse_list<ScorerChoice>("--scorers", options.scorers, parse_scorer));
  } else if (attention.scorer) {
    scorers = {{*attention.scorer,
                attention.oracle == OracleKind::kNext ? MassRows::kNext : MassRows::kSame}};
  } else {
    scorers = {{ScorerKind::kRecent, {}}, {ScorerKind::kMeanKey, {}}};
  }
  if (!options.selections.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.selections,
        parse_list<Selection>("--selections", options.selections, parse_selection));
  } else {
    evaluate.selections = {attention.selection.value_or(Selection::kMax)};
  }
  evaluate.head_joins = {attention.head_join};
  if (!options.head_joins.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.head_joins,
        parse_list<HeadJoin>("--head-joins", options.head_joins, parse_head_join));
  }
  evaluate.second_looks = {attention.second_look};
  if (!options.second_looks.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        evaluate.second_looks,
        parse_list<std::int64_t>("--second-looks", options.second_looks,
                                 [](std::string_view text) { return parse_int(text, 0, 4096); }));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(
      evaluate.depths, parse_list<double>("--depths", options.depths, [](std::string_view text) {
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
  return evaluate;
}

template <typename T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}
OrderedJson or_null(const std::string& text) {
  return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
}

OrderedJson to_json(const EvaluateRow& row) {
  OrderedJson json;
  json["task"] = row.task;
  json["metric"] = row.metric;
  json["length"] = row.length;
  json["budget"] = or_null(row.budget);
  json["scorer"] = or_null(row.scorer);
  json["head_join"] = or_null(row.head_join);
  json["selection"] = or_null(row.selection);
  json["seed"] = or_null(row.seed);
  json["second_look"] = or_null(row.second_look);
  json["depth"] = or_null(row.depth);
  json["value"] = row.value;
  json["dense_value"] = or_null(row.dense_value);
  json["ratio"] = or_null(row.ratio());
  json["attended_share"] = or_null(row.attended_share);
  json["trials"] = row.trials;
  return json;
}

constexpr std::string_view kTableHead =
    "task         metric      length  budget  scorer       heads  select  look  depth     value  "
    "   dense    ratio  attended  trials\n";

std::string table_line(const EvaluateRow& row) {
  const auto number = [](const std::optional<double>& value, int decimals) {
    return value ? fmt::format("{:.{}f}", *value, decimals) : std::string();
  };
  std::string scorer = row.scorer;
  if (row.seed) scorer += fmt::format("#{}", *row.seed);
  return fmt::format(
      "{:<12} {:<10} {:>7} {:>7}  {:<12} {:<6} {:<7} {:>4}  {:>5} {:>9.4f} {:>9} {:>8} {:>9} "
      "{:>7}\n",
      row.task, row.metric, row.length, row.budget, scorer, row.head_join, row.selection,
      row.second_look ? std::to_string(*row.second_look) : "", number(row.depth, 2), row.value,
      number(row.dense_value, 4), number(row.ratio(), 4), number(row.attended_share, 3),
      row.trials);
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm calendar{};
  char text[32] = "";
  if (::localtime_r(&now, &calendar) != nullptr) {
    std::strftime(text, sizeof(text), "%Y-%m-%d", &calendar);
  }
  return text;
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

/// Shows rows as they come and keeps every output file whole after each of them.
class RowSink {
 public:
  RowSink(const EvaluateCommandOptions& options, const ModelBundle& model) : options_(options) {
    const BackboneConfig& config = model.backbone.config();
    header_.title = "Quality of chunk-selective attention";
    header_.model =
        fmt::format("{} ({}, {} layers, hidden size {})",
                    std::filesystem::path(options.common.model).filename().string(),
                    to_string(config.architecture), config.num_layers, config.hidden_size);
    header_.device = fmt::format("CPU, {} threads", options.common.threads);
    header_.date = today();
    header_.command = command_line();
  }

  Status add(const EvaluateRow& row) {
    rows_.push_back(row);
    if (!options_.common.json) {
      CHUNKLLM_RETURN_IF_ERROR(
          write_stdout((rows_.size() == 1 ? std::string(kTableHead) : "") + table_line(row)));
    }
    if (!options_.rows.empty()) {
      lines_ += to_json(row).dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
      CHUNKLLM_RETURN_IF_ERROR(write_file_atomically(options_.rows, lines_));
    }
    if (options_.report.empty()) return {};
    return write_html_report(options_.report, header_, rows_);
  }

  [[nodiscard]] OrderedJson rows() const {
    OrderedJson json = OrderedJson::array();
    for (const EvaluateRow& row : rows_) json.push_back(to_json(row));
    return json;
  }

 private:
  const EvaluateCommandOptions& options_;
  HtmlReportHeader header_;
  std::vector<EvaluateRow> rows_;
  std::string lines_;
};

Result<std::vector<EvaluateText>> read_texts(const EvaluateCommandOptions& options,
                                             const BpeTokenizer& tokenizer) {
  std::vector<EvaluateText> texts;
  for (const std::string& path : options.texts) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, read_utf8_file(path));
    CHUNKLLM_ASSIGN_OR_RETURN(std::vector<std::int32_t> ids,
                              tokenizer.encode(text, /*add_special_tokens=*/false));
    texts.push_back({path, std::move(ids)});
  }
  return texts;
}

Status run_evaluate(EvaluateCommandOptions& options) {
  if (options.attention.dense) {
    return invalid_argument(
        "--attention dense: evaluate measures dense attention beside every row, expected chunk");
  }
  std::vector<ScorerChoice> choices;
  CHUNKLLM_ASSIGN_OR_RETURN(EvaluateOptions evaluate, make_options(options, choices));
  for (const std::string& path : options.texts) {  // before the model is loaded
    CHUNKLLM_RETURN_IF_ERROR(read_utf8_file(path).status());
  }
  ThreadPool pool(options.common.threads);
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelBundle model, open_model(options.common, pool));
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  if (options.scorers.empty() && !options.attention.scorer && adapters.maybe_qk_adapter) {
    choices.push_back({ScorerKind::kAdapter, {}});
  }
  for (const ScorerChoice& choice : choices) {
    CHUNKLLM_RETURN_IF_ERROR(
        add_scorers(options, model.backbone.config(), adapters, choice, evaluate.scorers));
  }
  if (adapters.guards) evaluate.chunk.guards = *adapters.guards;
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<EvaluateText> texts,
                            read_texts(options, model.tokenizer));

  RowSink sink(options, model);
  const Clock::time_point start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  bool out_of_time = false;
  std::optional<ProgressBar> bar;
  std::int64_t bar_start = 0;  // what was done when the bar was drawn anew
  const auto on_progress = [&](std::string_view, std::int64_t done, std::int64_t total) {
    if (!bar) {
      bar_start = done;
      bar.emplace(options.common, "evaluating", total - bar_start);
    }
    out_of_time = options.time_limit > 0.0 && seconds() > options.time_limit;
    return bar->update(done - bar_start) && !out_of_time;
  };
  Status status = with_kv_type(options.common.kv, [&]<typename KvType>() -> Status {
    Evaluator<DecoderBackbone, KvType> evaluator(model.backbone, model.tokenizer,
                                                 adapters.maybe_chunk_adapter, evaluate, pool);
    return evaluator.run(
        texts,
        [&](const EvaluateRow& row) {
          bar.reset();  // a row must not be written into the bar
          return sink.add(row);
        },
        on_progress);
  });
  bar.reset();
  if (!status.ok() && status.code() != StatusCode::kInterrupted) return status;
  std::string stop_reason = "end";
  if (!status.ok()) stop_reason = out_of_time ? "time-limit" : "interrupted";
  if (out_of_time) {
    if (!options.common.quiet) print_note("the time limit is reached; the rows are those so far");
    status = {};
  }
  if (options.common.json) {
    OrderedJson json;
    json["rows"] = sink.rows();
    json["seconds"] = seconds();
    json["stop_reason"] = stop_reason;
    CHUNKLLM_RETURN_IF_ERROR(print_json(json));
  }
  return status;
}

}  // namespace

Command add_evaluate(CLI::App& program) {
  auto options = std::make_shared<EvaluateCommandOptions>();
  CLI::App& app = *program.add_subcommand(
      "evaluate", "Measures quality against dense attention: perplexity, passkey and others");
  add_common_options(app, options->common);
  add_attention_options(app, options->attention);
  app.add_option("--text,--file", options->texts, "Text files to measure on")
      ->required()
      ->type_name("FILE...");
  const auto list = [&](const char* name, std::string& target, const char* help) {
    app.add_option(name, target, help)->type_name("LIST");
  };
  list("--tasks", options->tasks,
       "perplexity, passkey, multi-key, boundary-f1, mass-recall [perplexity,passkey]");
  list("--lengths", options->lengths, "Tokens of a window, or in front of a question [4096]");
  list("--budgets", options->budgets, "As --budget [its value]");
  list("--scorers", options->scorers,
       "adapter, mean-key, min-max-key, recent, random, oracle-next, oracle-same "
       "[recent,mean-key, and adapter where there is one]");
  list("--selections", options->selections, "As --selection [its value, else max]");
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
  app.add_option("--report", options->report, "Draw the rows into an HTML page")
      ->type_name("F.html");
  app.add_option("--rows", options->rows, "Write the rows as JSON lines, as they come")
      ->type_name("F.jsonl");
  app.footer(
      "Examples:\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --report quality.html\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --tasks passkey --lengths "
      "4000,8000 --budgets 512,1024 --second-looks 0,64\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --tasks perplexity --lengths 8192 "
      "--scorers recent,random,oracle-next --budgets 512,1024,2048 --json");
  return {&app, [options] { return run_evaluate(*options); }};
}

}  // namespace chunkllm::cli
