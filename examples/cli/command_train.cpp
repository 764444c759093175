// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/adapter_file_writer.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/eval/text_chunks.hpp"
#include "chunkllm/train/boundary_examples.hpp"
#include "chunkllm/train/boundary_trainer.hpp"
#include "chunkllm/train/initial_adapters.hpp"
#include "chunkllm/train/recent_reading.hpp"
#include "chunkllm/train/train_qk_adapters.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "stopwatch.hpp"

namespace chunkllm::cli {
namespace {

struct TrainCommandOptions {
  CommonOptions common;
  std::vector<std::string> texts;
  std::string out;
  QkTrainingOptions training;
  QkTrainerOptions trainer;
  TrainingTextOptions sequences;
  double learning_rate = 5e-4;
  double question_weight = 20.0;
  std::int64_t time_limit = 0;
  std::int64_t input_budget = 512;
  bool starts_random = false;
  bool trains_boundaries = false;
};

/// What there is to report, filled in as the work goes on.
struct TrainReport {
  TrainingProgress progress;
  std::shared_ptr<const ChunkAdapter> maybe_chunk_adapter;  ///< where one is trained
  QkEvaluation evaluation;
  BoundaryScore boundaries;  ///< against the sentence rules that know the whole text
  bool is_evaluated = false;
  bool resumed = false;
};

std::string checkpoint_path(const TrainCommandOptions& options) {
  return options.out + ".checkpoint";
}

/// What must not change between the starts of one run.
std::string describe_settings(const TrainCommandOptions& options, const std::string& fingerprint) {
  return fmt::format(
      "model {}, seed {}, steps {}, time limit {}, {} start, boundaries by {}, key_dim {}, "
      "learning rate {}, "
      "question "
      "weight {}, input budget {}, sequences of {} and {} ({} long, {} plain), texts {}",
      fingerprint, options.training.seed, options.training.num_steps, options.time_limit,
      options.starts_random ? "random" : "backbone",
      options.trains_boundaries ? "adapter" : "rules", options.trainer.key_dim,
      options.learning_rate, options.question_weight, options.input_budget,
      options.sequences.length, options.sequences.long_length, options.sequences.long_share,
      options.sequences.plain_share, options.texts.size());
}

Result<TrainingTexts> read_texts(const TrainCommandOptions& options, const OpenModel& model) {
  std::vector<std::vector<std::int32_t>> texts;
  for (const std::string& path : options.texts) {
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, read_utf8_file(path));
    auto ids = model.tokenizer.encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) return ids.status().with_context(path);
    texts.push_back(std::move(ids).value());
  }
  Result<TrainingTexts> result =
      TrainingTexts::create(model.tokenizer, std::move(texts), options.sequences);
  if (!result.ok()) return result.status().with_context("--text");
  return result;
}

/// Fits a Chunk Adapter to the sentence rules; on the CPU, where only the first layer runs.
Status train_chunk_adapter(const TrainCommandOptions& options, const OpenModel& model,
                           const TrainingTexts& texts, TrainReport& report, ThreadPool& pool) {
  const std::vector<std::span<const std::int32_t>> ids = texts.training_ids();
  const BoundarySampling sampling;
  ProgressBar bar(options.common, "boundaries, tokens",
                  std::min(texts.num_tokens(), sampling.max_tokens));
  const auto examples = read_boundary_examples(
      *model.maybe_backbone, ids, [&](std::int32_t id) { return model.tokenizer.token_bytes(id); },
      sampling, [&](std::int64_t done) { return bar.update(done); }, pool);
  if (!examples.ok()) return bar.with_progress(examples.status(), "token");
  CHUNKLLM_ASSIGN_OR_RETURN(BoundaryTraining training,
                            train_boundaries(examples.value(), {}, pool));
  report.maybe_chunk_adapter = std::make_shared<const ChunkAdapter>(std::move(training.adapter));
  return {};
}

/// Ends of chunks by the Chunk Adapter where one is trained, else by the sentence rules.
std::function<Result<std::vector<std::int64_t>>(std::span<const std::int32_t>)> find_chunk_ends(
    const TrainCommandOptions& options, const OpenModel& model,
    const std::shared_ptr<const ChunkAdapter>& maybe_adapter) {
  if (maybe_adapter == nullptr) {
    return [&model](std::span<const std::int32_t> ids) {
      return Result<std::vector<std::int64_t>>(rule_chunk_ends(
          ids, [&](std::int32_t id) { return model.tokenizer.token_bytes(id); }, ChunkGuards{}));
    };
  }
  // A pool of its own: the next text is read while the other pool learns.
  const auto pool = std::make_shared<ThreadPool>(options.common.threads);
  return [&model, maybe_adapter,
          pool](std::span<const std::int32_t> ids) -> Result<std::vector<std::int64_t>> {
    SessionOptions dense;
    dense.dense = true;
    CHUNKLLM_ASSIGN_OR_RETURN(
        TextChunks chunks, chunks_by_adapter<F16>(*model.maybe_backbone, maybe_adapter,
                                                  std::make_shared<const AnyScorer>(RecentScorer()),
                                                  dense, ids, {}, *pool));
    return std::move(chunks.ends);
  };
}

Result<QkTrainingHooks> make_hooks(const TrainCommandOptions& options, const OpenModel& model,
                                   const TrainReport& report, ThreadPool& pool) {
  QkTrainingHooks hooks;
  hooks.chunk_ends = find_chunk_ends(options, model, report.maybe_chunk_adapter);
  if (model.maybe_device != nullptr) {
    CHUNKLLM_ASSIGN_OR_RETURN(
        hooks.teach,
        model.maybe_device->make_teacher(options.sequences.long_length, options.input_budget));
    hooks.teaches_beside = true;
    return Result<QkTrainingHooks>(std::move(hooks));
  }
  hooks.teach = [&options, &model, &report, &pool](
                    std::span<const std::int32_t> ids, std::span<const std::int64_t> chunk_ends,
                    std::span<const std::int64_t> triggers) -> Result<TeacherRows> {
    CHUNKLLM_ASSIGN_OR_RETURN(
        TeacherRows rows,
        collect_teacher_rows<F16>(*model.maybe_backbone, ids, chunk_ends, triggers, ChunkOptions{},
                                  KeyPooling::kMean, pool, {}));
    if (options.input_budget > 0) {
      CHUNKLLM_RETURN_IF_ERROR(take_recent_inputs<F16>(
          *model.maybe_backbone, ids, report.maybe_chunk_adapter,
          [&](std::int32_t id) { return model.tokenizer.token_bytes(id); }, ChunkOptions{},
          options.input_budget, KeyPooling::kMean, pool, rows));
    }
    return Result<TeacherRows>(std::move(rows));
  };
  return Result<QkTrainingHooks>(std::move(hooks));
}

/// The adapters to begin with: the backbone's own maps where they are wanted and can be used.
Result<QkTrainer> new_trainer(const TrainCommandOptions& options, const OpenModel& model,
                              const TrainingTexts& texts, const QkTrainingHooks& hooks,
                              ThreadPool& pool) {
  constexpr std::int64_t kNumSamples = 8;
  const BackboneConfig& config = model.config();
  QkTrainerOptions trainer = options.trainer;
  trainer.key_dim = std::min(trainer.key_dim, config.head_dim);
  std::vector<QkAdapterLayer> layers;
  if (options.starts_random || config.qk_norm) {
    layers = make_random_adapters(config, trainer.key_dim, options.training.seed);
  } else {
    std::vector<TeacherRows> samples;
    for (std::int64_t i = 0; i < kNumSamples; ++i) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          TrainingSequence sequence,
          texts.sequence(options.training.seed, static_cast<std::uint64_t>(i)));
      CHUNKLLM_ASSIGN_OR_RETURN(TaughtSequence taught, teach_sequence(hooks, std::move(sequence)));
      samples.push_back(std::move(taught.rows));
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        layers, make_initial_adapters(*model.maybe_backbone, samples, trainer.key_dim, pool));
  }
  return QkTrainer::create(config, trainer, std::move(layers));
}

/// Trains with a checkpoint now and then, and one on every way out.
Status train(const TrainCommandOptions& options, const std::string& settings,
             const TrainingTexts& texts, QkTrainingHooks hooks, QkTrainer& trainer,
             TrainReport& report, ThreadPool& pool) {
  constexpr double kCheckpointSeconds = 60.0;
  const bool by_steps = options.training.num_steps > 0;
  ProgressBar bar(options.common, by_steps ? "training, steps" : "training, seconds",
                  by_steps ? options.training.num_steps : options.time_limit);
  Status saved;
  double saved_at = report.progress.seconds;
  hooks.on_step = [&](const TrainingProgress& progress, double kl) {
    bar.set_label(fmt::format("training, KL {:.4f}, {}", kl, by_steps ? "steps" : "seconds"));
    if (progress.seconds - saved_at >= kCheckpointSeconds) {
      saved_at = progress.seconds;
      saved = write_checkpoint(checkpoint_path(options), trainer, progress, settings);
    }
    return bar.update(by_steps ? progress.num_steps
                               : static_cast<std::int64_t>(progress.seconds)) &&
           saved.ok();
  };
  QkTrainingOptions training = options.training;
  training.time_limit = static_cast<double>(options.time_limit);
  const Status status = train_qk_adapters(trainer, texts, training, hooks, pool, report.progress);
  CHUNKLLM_RETURN_IF_ERROR(saved);
  if (status.code() == StatusCode::kInterrupted) {
    CHUNKLLM_RETURN_IF_ERROR(
        write_checkpoint(checkpoint_path(options), trainer, report.progress, settings));
    return Status(
        StatusCode::kInterrupted,
        fmt::format("interrupted after {}; the same command goes on from {}",
                    counted(report.progress.num_steps, "step"), checkpoint_path(options)));
  }
  return status;
}

/// Boundaries of the validation sequences.
Status score_validation_boundaries(const TrainCommandOptions& options, const OpenModel& model,
                                   const TrainingTexts& texts, const QkTrainingHooks& hooks,
                                   TrainReport& report) {
  for (std::int64_t i = 0; i < options.training.num_validation; ++i) {
    CHUNKLLM_ASSIGN_OR_RETURN(const TrainingSequence sequence,
                              texts.validation_sequence(static_cast<std::uint64_t>(i)));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int64_t> ends, hooks.chunk_ends(sequence.ids));
    CHUNKLLM_ASSIGN_OR_RETURN(const BoundaryScore score,
                              score_chunk_ends(model.tokenizer, sequence.ids, ends));
    report.boundaries.num_predicted += score.num_predicted;
    report.boundaries.num_labelled += score.num_labelled;
    report.boundaries.num_matched += score.num_matched;
  }
  return {};
}

Status write_adapters(const TrainCommandOptions& options, const OpenModel& model,
                      const QkTrainer& trainer, const TrainReport& report,
                      const std::string& settings) {
  AdapterFile file;
  file.model = describe_adapter_model(model.config(), model.files.fingerprint());
  file.maybe_chunk_adapter = report.maybe_chunk_adapter;
  file.maybe_qk_adapter = std::make_shared<const QkAdapter>(trainer.adapter());
  return write_adapter_file(
      options.out, file, DType::kF16,
      {{"training.settings", settings},
       {"training.steps", std::to_string(report.progress.num_steps)},
       {"training.tokens", std::to_string(report.progress.num_tokens)},
       {"training.seconds", fmt::format("{:.0f}", report.progress.seconds)},
       {"training.kl", fmt::format("{:.4f}", report.evaluation.kl)},
       {"training.mass_recall", fmt::format("{:.4f}", report.evaluation.mass_recall)},
       {"training.boundary_f1", fmt::format("{:.4f}", report.boundaries.f1())}});
}

Status print_report(const TrainCommandOptions& options, const TrainReport& report,
                    const Status& status) {
  if (!options.common.json) {
    if (!report.is_evaluated) return {};
    return write_stdout(fmt::format(
        "{}: KL {:.4f}, mass recall {:.4f}, boundary F1 {:.4f} on text kept aside; {} of {} "
        "tokens in {:.0f} s\n",
        options.out, report.evaluation.kl, report.evaluation.mass_recall, report.boundaries.f1(),
        counted(report.progress.num_steps, "step"), report.progress.num_tokens,
        report.progress.seconds));
  }
  OrderedJson json;
  json["boundary_f1"] = nullptr;
  json["mass_recall"] = nullptr;
  json["kl"] = nullptr;
  if (report.is_evaluated) {
    json["boundary_f1"] = report.boundaries.f1();
    json["mass_recall"] = report.evaluation.mass_recall;
    json["kl"] = report.evaluation.kl;
  }
  json["seconds"] = report.progress.seconds;
  json["tokens"] = report.progress.num_tokens;
  json["steps"] = report.progress.num_steps;
  json["resumed"] = report.resumed;
  json["out"] = options.out;
  json["stop_reason"] = status.ok() ? "end" : "interrupted";
  return print_json(json);
}

Status run(const TrainCommandOptions& options, TrainReport& report) {
  ThreadPool pool(options.common.threads);
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const TrainingTexts texts, read_texts(options, model));
  CHUNKLLM_RETURN_IF_ERROR(load_weights(options.common, WeightPlaces::kHostToo, pool, model));
  if (options.trains_boundaries) {
    CHUNKLLM_RETURN_IF_ERROR(train_chunk_adapter(options, model, texts, report, pool));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const QkTrainingHooks hooks, make_hooks(options, model, report, pool));
  if (!texts.has_validation() && !options.common.quiet) {
    print_note("the texts are too short to keep a part aside: figures are of text trained on");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(QkTrainer trainer, new_trainer(options, model, texts, hooks, pool));
  const std::string settings = describe_settings(options, model.files.fingerprint());
  if (::access(checkpoint_path(options).c_str(), F_OK) == 0) {
    CHUNKLLM_ASSIGN_OR_RETURN(report.progress,
                              read_checkpoint(checkpoint_path(options), trainer, settings));
    report.resumed = true;
    if (!options.common.quiet) {
      print_note(fmt::format("going on from {} after {}", checkpoint_path(options),
                             counted(report.progress.num_steps, "step")));
    }
  }
  if (!options.common.quiet) {
    print_note(fmt::format("training on {} of {}", counted(texts.num_tokens(), "token"),
                           counted(static_cast<std::int64_t>(options.texts.size()), "text")));
  }
  CHUNKLLM_RETURN_IF_ERROR(train(options, settings, texts, hooks, trainer, report, pool));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<TeacherRows> validation,
                            read_validation_rows(texts, hooks, options.training.num_validation));
  CHUNKLLM_ASSIGN_OR_RETURN(report.evaluation, trainer.evaluate(validation, pool));
  CHUNKLLM_RETURN_IF_ERROR(score_validation_boundaries(options, model, texts, hooks, report));
  report.is_evaluated = true;
  CHUNKLLM_RETURN_IF_ERROR(write_adapters(options, model, trainer, report, settings));
  ::unlink(checkpoint_path(options).c_str());
  return {};
}

Status run_train(TrainCommandOptions options) {
  if (options.training.num_steps == 0 && options.time_limit == 0) options.time_limit = 1800;
  options.trainer.learning_rate = static_cast<float>(options.learning_rate);
  options.trainer.question_weight = static_cast<float>(options.question_weight);
  options.sequences.long_length = std::max(options.sequences.long_length, options.sequences.length);
  options.trainer.max_distance = options.sequences.long_length;
  CHUNKLLM_RETURN_IF_ERROR(check_device(options.common));
  CHUNKLLM_RETURN_IF_ERROR(check_output_path(options.out));
  TrainReport report;
  const Status status = run(options, report);
  if (status.ok() || status.code() == StatusCode::kInterrupted) {
    CHUNKLLM_RETURN_IF_ERROR(print_report(options, report, status));
  }
  return status;
}

}  // namespace

Command add_train(CLI::App& program) {
  auto options = std::make_shared<TrainCommandOptions>();
  CLI::App& app = *program.add_subcommand("train", "Trains adapters for a frozen model on texts");
  app.add_option("--text,--file", options->texts, "Text files to train on")
      ->type_name("FILE ...")
      ->required();
  app.add_option("--out", options->out, "The adapter file to write")->type_name("FILE")->required();
  add_int_option(app, "--steps", options->training.num_steps, 1, std::int64_t{1} << 32,
                 "Steps to train [until the time limit]")
      ->type_name("N");
  add_int_option(app, "--time-limit", options->time_limit, 1, std::int64_t{1} << 24,
                 "Seconds to train, over all starts [1800 without --steps]")
      ->type_name("S");
  add_parsed_option(app, "--seed", parse_seed, options->training.seed,
                    "Of the sequences that are cut from the texts [0]")
      ->type_name("N");
  add_common_options(app, options->common);
  const std::string detail = "Training in detail";
  add_int_option(app, "--key-dim", options->trainer.key_dim, 1, 4096,
                 "Features of a head's chunk keys [48, at most the model's head size]")
      ->type_name("N")
      ->group(detail);
  add_parsed_option(app, "--start", one_of<bool>({{"backbone", false}, {"random", true}}),
                    options->starts_random,
                    "What training starts with: the model's own query and key maps, or random\n"
                    "ones [backbone; random where the model normalises queries and keys]")
      ->type_name("WHAT")
      ->group(detail);
  add_parsed_option(app, "--boundaries", one_of<bool>({{"rules", false}, {"adapter", true}}),
                    options->trains_boundaries,
                    "Where chunks end: the sentence rules, or a Chunk Adapter that is fitted to\n"
                    "them first and written, too [rules]")
      ->type_name("WHAT")
      ->group(detail);
  add_int_option(app, "--input-budget", options->input_budget, 0, 1 << 20,
                 "Recent tokens attended in the reading that the adapters see; 0: all, as the\n"
                 "teacher does [512]")
      ->type_name("N")
      ->group(detail);
  add_int_option(app, "--sequence", options->sequences.length, 512, 65536,
                 "Tokens of a sequence [4096]")
      ->type_name("N")
      ->group(detail);
  add_int_option(app, "--long-sequence", options->sequences.long_length, 512, 65536,
                 "Tokens of the long sequences [8192]")
      ->type_name("N")
      ->group(detail);
  add_number_option(app, "--long-share", options->sequences.long_share, 0.0, 1.0,
                    "Share of sequences that are long [0.25]")
      ->type_name("X")
      ->group(detail);
  add_number_option(app, "--plain-share", options->sequences.plain_share, 0.0, 1.0,
                    "Share of sequences without inserted facts and questions [0.25]")
      ->type_name("X")
      ->group(detail);
  add_number_option(app, "--question-weight", options->question_weight, 0.0, 1e6,
                    "Weight of a question's row, against 1 of a chunk's end [20]")
      ->type_name("X")
      ->group(detail);
  add_number_option(app, "--learning-rate", options->learning_rate, 1e-8, 1.0,
                    "Adam's, at its highest [0.0005]")
      ->type_name("X")
      ->group(detail);
  app.footer(
      "The model is not changed. Interrupted or killed, the same command goes on from the\n"
      "checkpoint beside the output; equal --seed and --steps give equal files.\n"
      "\n"
      "Examples:\n"
      "  chunkllm train --model smollm2.gguf --text novel.txt manual.txt --out "
      "adapters.safetensors\n"
      "  chunkllm train --model smollm2.gguf --text *.txt --steps 2000 --seed 1 --device cuda \\\n"
      "    --out adapters.safetensors\n"
      "  chunkllm evaluate --model smollm2.gguf --text book.txt --adapters adapters.safetensors");
  return {&app, [options] { return run_train(*options); }};
}

}  // namespace chunkllm::cli
