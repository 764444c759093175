// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "chunkllm/infer/generate.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/text/stream_decoder.hpp"
#include "chunkllm/text/utf8.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "model_options.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "stopwatch.hpp"
#include "system_info.hpp"

namespace chunkllm::cli {
namespace {

struct GenerateOptions {
  CommonOptions common;
  AttentionOptions attention;
  std::optional<std::string> prompt;
  std::string file;
  std::string ids_file;
  bool chat = false;
  std::int64_t max_new_tokens = 128;
  SamplerOptions sampler;
};

/// What there is to report, filled in as the work goes on, so that an interruption can show it.
struct GenerateReport {
  std::int64_t prompt_tokens = 0;
  std::vector<std::int32_t> ids;
  StopReason stop_reason = StopReason::kInterrupted;
  std::int64_t prefilled_tokens = 0;
  double prefill_seconds = 0.0;
  std::int64_t decode_steps = 0;
  double decode_seconds = 0.0;
  AttendedStats attended;
  std::int64_t kv_resident_bytes = 0;
  double attended_bytes_per_step = 0.0;
  ChunkCounters counters;
  std::int64_t num_chunks = 0;
  SessionMemory memory;
  std::string text;       // of `ids`
  OrderedJson attention;  // null until it is decided
};

/// The bytes of --file and then of --prompt, unchanged.
Result<std::string> joined_text(const GenerateOptions& options) {
  std::string text;
  if (!options.file.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(text, read_utf8_file(options.file));
  }
  const std::string prompt = options.prompt.value_or("");
  const std::size_t wrong = find_invalid_utf8(prompt);
  if (wrong != prompt.size()) {
    return invalid_argument("--prompt: byte " + std::to_string(wrong) +
                            " is not UTF-8, expected text");
  }
  text += prompt;
  if (text.empty()) return invalid_argument("--prompt: is empty, expected text");
  return text;
}

Status check_input_flags(const GenerateOptions& options) {
  const bool has_text = options.prompt || !options.file.empty();
  if (options.ids_file.empty() && !has_text) {
    return invalid_argument("generate: no input, expected --prompt, --file or --ids-file");
  }
  if (!options.ids_file.empty() && (has_text || options.chat)) {
    return invalid_argument("--ids-file: cannot be combined with --prompt, --file or --chat");
  }
  return {};
}

Result<std::vector<std::int32_t>> prompt_ids(const GenerateOptions& options,
                                             const LoadedModel& model, const std::string& text) {
  if (!options.ids_file.empty()) {
    return read_ids_file(options.ids_file, model.config().vocab_size);
  }
  if (!options.chat) return encode_prompt(model.tokenizer, text, "the prompt");
  CHUNKLLM_ASSIGN_OR_RETURN(const ChatTemplate chat,
                            load_chat_template(model.files, model.tokenizer));
  const ChatMessage message{"user", text};
  const Result<std::string> rendered = chat.writes_current_date()
                                           ? chat.render({&message, 1}, today("%d %b %Y"))
                                           : chat.render({&message, 1});
  if (!rendered.ok()) return rendered.status();
  return model.tokenizer.encode(rendered.value(), /*add_special_tokens=*/false);
}

void take_figures(const AnySession& session, GenerateReport& report) {
  report.attended = session.attended();
  report.kv_resident_bytes = session.kv_resident_bytes();
  if (report.decode_steps > 0) {
    const auto layers = static_cast<double>(session.backbone().config().num_layers);
    report.attended_bytes_per_step = session.attended().attended_sum /
                                     static_cast<double>(report.decode_steps) *
                                     static_cast<double>(session.kv_bytes_per_token()) / layers;
  }
  report.counters = session.counters();
  report.num_chunks = session.num_chunks();
  report.memory = session.memory();
}

/// Reads the prompt, chooses tokens, streams their text. Fills `report` on every way out.
Status run_session(const GenerateOptions& options, const LoadedModel& model,
                   std::span<const std::int32_t> prompt, Sampler& sampler, AnySession& session,
                   GenerateReport& report) {
  const auto num_prompt = static_cast<std::int64_t>(prompt.size());
  // What is asked for may be far more than what comes; the CPU's cache grows by halves behind this.
  constexpr std::int64_t kReservedNewTokens = 1024;
  session.reserve(num_prompt + (options.common.cuda
                                    ? options.max_new_tokens
                                    : std::min(options.max_new_tokens, kReservedNewTokens)));

  Stopwatch watch;
  {
    ProgressBar bar(options.common, "reading", num_prompt);
    const Status status =
        session.prefill(prompt, [&](std::int64_t done) { return bar.update(done); });
    report.prefilled_tokens = session.num_tokens();
    report.prefill_seconds = watch.seconds();
    take_figures(session, report);
    if (!status.ok()) return bar.with_progress(status, "prompt token");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const std::span<const float> logits, session.finish_prompt());
  report.prefill_seconds = watch.seconds();

  session.count_attended_from(session.num_tokens());
  StreamDecoder decoder(model.tokenizer);
  Status output;
  const auto show = [&](std::string_view text) {
    if (!options.common.json && output.ok() && !text.empty()) output = write_stdout(text);
  };
  watch = {};
  const Result<StopReason> stop = generate(
      session, logits, sampler, {options.max_new_tokens, model.end_ids}, report.ids,
      [&](std::int32_t token) {
        const bool ends = std::binary_search(model.end_ids.begin(), model.end_ids.end(), token);
        // The end token's own text is of no use to a reader. Ids beyond the tokenizer have none.
        if (!ends && model.tokenizer.check_id(token).ok()) show(decoder.push(token).value());
        return output.ok() && !interrupted();
      });
  report.decode_seconds = watch.seconds();
  report.decode_steps = std::max<std::int64_t>(0, static_cast<std::int64_t>(report.ids.size()) - 1);
  take_figures(session, report);
  show(decoder.finish());
  if (!report.ids.empty()) show("\n");
  CHUNKLLM_RETURN_IF_ERROR(output);
  if (!stop.ok()) return as_model_fault(stop.status(), options.common);
  report.stop_reason = stop.value();
  if (stop.value() != StopReason::kInterrupted) return {};
  return Status(
      StatusCode::kInterrupted,
      "interrupted after " + counted(static_cast<std::int64_t>(report.ids.size()), "new token"));
}

Result<std::string> decode_known(const BpeTokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::vector<std::int32_t> known;
  for (const std::int32_t id : ids) {
    if (tokenizer.check_id(id).ok()) known.push_back(id);
  }
  return tokenizer.decode(known);
}

std::string format_report(const GenerateReport& report, double prefill_rate, double decode_rate) {
  const bool is_read = report.prefilled_tokens == report.prompt_tokens;
  std::string text = fmt::format("\n{}{} in {:.2f} s ({:.1f}/s)",
                                 is_read ? "" : fmt::format("{} of ", report.prefilled_tokens),
                                 counted(report.prompt_tokens, "prompt token"),
                                 report.prefill_seconds, prefill_rate);
  if (is_read) {
    text += fmt::format(", {} new in {:.2f} s ({:.1f}/s)", report.ids.size(), report.decode_seconds,
                        decode_rate);
  }
  text += fmt::format(", stopped: {}\n", to_string(report.stop_reason));
  if (report.attended.count > 0) {
    text += fmt::format("attended {:.1f} % of the past; ", 100.0 * report.attended.share());
  }
  return text + fmt::format(
                    "{}, {} ({} forced), {}\nmemory: weights {}, kv {}, chunk keys {}, workspace "
                    "{}, total "
                    "{}; peak resident {}\n",
                    counted(report.num_chunks, "chunk"),
                    counted(report.counters.boundaries, "boundary", "boundaries"),
                    report.counters.forced_boundaries,
                    counted(report.counters.refreshes, "refresh", "refreshes"),
                    format_bytes(report.memory.weights), format_bytes(report.memory.kv),
                    format_bytes(report.memory.chunk_keys), format_bytes(report.memory.workspace),
                    format_bytes(report.memory.total()), format_bytes(peak_rss_bytes()));
}

Status print_report(const GenerateOptions& options, const GenerateReport& report) {
  const double prefill_rate = rate(report.prefilled_tokens, report.prefill_seconds);
  const double decode_rate = rate(report.decode_steps, report.decode_seconds);
  if (!options.common.json) {
    if (!options.common.quiet) write_stderr(format_report(report, prefill_rate, decode_rate));
    return {};
  }
  OrderedJson json;
  json["prompt_tokens"] = report.prompt_tokens;
  json["ids"] = report.ids;
  json["text"] = report.text;
  json["stop_reason"] = to_string(report.stop_reason);
  json["prefill"] = {{"seconds", report.prefill_seconds},
                     {"tokens_per_second", prefill_rate},
                     {"tokens", report.prefilled_tokens}};
  json["decode"] = {{"seconds", report.decode_seconds}, {"tokens_per_second", decode_rate}};
  json["kv"] = {{"attended_share", report.attended.share()},
                {"resident_bytes", report.kv_resident_bytes},
                {"attended_bytes_per_step", report.attended_bytes_per_step}};
  json["refreshes"] = report.counters.refreshes;
  json["boundaries"] = report.counters.boundaries;
  json["forced_boundaries"] = report.counters.forced_boundaries;
  json["attention"] = report.attention;
  json["memory"] = to_json(report.memory);
  json["peak_rss_bytes"] = peak_rss_bytes();
  return print_json(json);
}

/// Fills `report` on every way out.
Status generate_text(const GenerateOptions& options, const std::string& text, Sampler& sampler,
                     ThreadPool& pool, GenerateReport& report) {
  CHUNKLLM_ASSIGN_OR_RETURN(OpenModel model, open_model(options.common));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> prompt,
                            prompt_ids(options, model, text));
  report.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  CHUNKLLM_ASSIGN_OR_RETURN(const Adapters adapters, find_adapters(options.attention, model.files));
  CHUNKLLM_ASSIGN_OR_RETURN(
      const AttentionPlan plan,
      plan_attention(options.common, options.attention, model, adapters, Task::kGenerate,
                     report.prompt_tokens + options.max_new_tokens));
  report.attention = describe_attention(options.attention, plan);
  CHUNKLLM_RETURN_IF_ERROR(load_weights(options.common, WeightPlaces::kWhereItRuns, pool, model));
  print_notes(options.common, plan);
  CHUNKLLM_ASSIGN_OR_RETURN(const std::unique_ptr<AnySession> session,
                            make_session(model, plan, pool));
  const Status status = run_session(options, model, prompt, sampler, *session, report);
  CHUNKLLM_ASSIGN_OR_RETURN(report.text, decode_known(model.tokenizer, report.ids));
  return status;
}

Status run_generate(GenerateOptions& options) {
  CHUNKLLM_RETURN_IF_ERROR(check_input_flags(options));
  CHUNKLLM_RETURN_IF_ERROR(check_device_settings(options.common, options.attention));
  options.sampler.seed = options.attention.seed;
  CHUNKLLM_ASSIGN_OR_RETURN(Sampler sampler, Sampler::create(options.sampler));
  std::string text;  // read before the model: a wrong name should not cost the loading time
  if (options.ids_file.empty()) {
    CHUNKLLM_ASSIGN_OR_RETURN(text, joined_text(options));
  }
  ThreadPool pool(options.common.threads);
  GenerateReport report;
  const Status status = generate_text(options, text, sampler, pool, report);
  // In text mode there is nothing to say of a session that was never made.
  const bool has_report = status.ok() || (status.code() == StatusCode::kInterrupted &&
                                          (options.common.json || report.prefilled_tokens > 0));
  if (has_report) CHUNKLLM_RETURN_IF_ERROR(print_report(options, report));
  return status;
}

}  // namespace

Command add_generate(CLI::App& program) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App& app = *program.add_subcommand("generate", "Continues a text, streaming it as it comes");
  app.add_option("--prompt", options->prompt, "Text to continue; comes after --file's")
      ->type_name("TEXT");
  app.add_option("--file", options->file, "A text file to read first")->type_name("FILE");
  app.add_option("--ids-file", options->ids_file, "A JSON array of token ids instead of text")
      ->type_name("FILE");
  app.add_flag("--chat", options->chat, "The text is a message; the model's chat template applies");
  add_int_option(app, "--max-new-tokens", options->max_new_tokens, 0, 1 << 20,
                 "New tokens at the most [128]")
      ->type_name("N");
  add_number_option(app, "--temperature", options->sampler.temperature, 0.0, 100.0,
                    "Sampling temperature; 0: greedy [0]")
      ->type_name("T")
      ->group("Sampling");
  add_int_option(app, "--top-k", options->sampler.top_k, 0, 1 << 24,
                 "Sample among the K likeliest; 0: all [0]")
      ->type_name("K")
      ->group("Sampling");
  add_number_option(app, "--top-p", options->sampler.top_p, 0.0, 1.0,
                    "Sample among the likeliest of this total probability [1]")
      ->type_name("P")
      ->group("Sampling");
  add_number_option(app, "--min-p", options->sampler.min_p, 0.0, 1.0,
                    "Sample among tokens of this share of the likeliest's probability [0]")
      ->type_name("P")
      ->group("Sampling");
  add_attention_options(app, options->attention);
  add_common_options(app, options->common);
  app.footer(
      "Examples:\n"
      "  chunkllm generate --model smollm2.gguf --prompt 'The capital of France is'\n"
      "  chunkllm generate --model smollm2.gguf --file book.txt --chat --prompt 'Who wrote this?'\n"
      "  chunkllm generate --model smollm2.gguf --prompt 'Once' --temperature 0.8 --top-p 0.9 \\\n"
      "    --seed 7 --json");
  return {&app, [options] { return run_generate(*options); }};
}

}  // namespace chunkllm::cli
