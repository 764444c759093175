// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "model_options.hpp"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "chunkllm/chunk/adapter_file.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "chunkllm/infer/position_limits.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"
#include "chunkllm/model/rope.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "chunkllm/text/utf8.hpp"
#include "output.hpp"
#include "progress_bar.hpp"
#include "system_info.hpp"

namespace chunkllm::cli {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 28;

std::int64_t kv_bytes_per_token(const BackboneConfig& config, KvKind kv) {
  const std::int64_t value_bytes = kv == KvKind::kF32 ? 4 : 2;
  return config.num_layers * 2 * config.kv_size() * value_bytes;
}

Result<Positions> choose_positions(const AttentionOptions& options, const ChunkOptions& chunk,
                                   const BackboneConfig& config, std::int64_t num_tokens,
                                   std::vector<std::string>& notes) {
  const std::int64_t window = config.context_length;
  const bool fits = num_tokens <= window;
  const std::string beyond = std::to_string(num_tokens) + " tokens (prompt and new) exceed the " +
                             "model's window of " + std::to_string(window);
  if (options.dense) {
    // Everything is attended, so a rank in the attended set is the position in the text.
    if (!fits) notes.push_back(beyond + "; dense attention reads them with original positions");
    return Positions::kOriginal;
  }
  const Positions positions = options.positions.value_or(default_positions(num_tokens, window));
  if (positions == Positions::kOriginal) {
    if (!fits) notes.push_back(beyond + "; read with original positions, as asked");
    return positions;
  }
  CHUNKLLM_RETURN_IF_ERROR(check_in_cache_positions(chunk, num_tokens, window)
                               .with_context("--budget " + options.budget_text));
  if (!options.positions) notes.push_back(beyond + "; positions are numbered in the cache");
  return positions;
}

Result<ScorerKind> choose_scorer(const AttentionOptions& options, const Adapters& adapters,
                                 Task task, std::int64_t num_tokens) {
  const bool has_adapter = adapters.maybe_qk_adapter != nullptr;
  const ScorerKind kind =
      options.scorer.value_or(has_adapter ? ScorerKind::kAdapter : ScorerKind::kMeanKey);
  if (kind == ScorerKind::kAdapter && !has_adapter) {
    return not_found("--scorer adapter: no adapters for this model, expected --adapters FILE");
  }
  if (kind == ScorerKind::kOracle) {
    if (task != Task::kTeacherForced) {
      return invalid_argument(
          "--scorer oracle: only for perplexity and evaluate, which know the "
          "text to come");
    }
    if (num_tokens > kMaxOracleTokens) {
      return invalid_argument("--scorer oracle: " + std::to_string(num_tokens) +
                              " tokens, expected at most " + std::to_string(kMaxOracleTokens));
    }
  }
  return kind;
}

/// The adapter file with this fingerprint in the folders where one is shipped; "" for none.
std::string shipped_adapters(const std::string& fingerprint) {
  constexpr int kLevels = 5;  // from build/preset/examples/cli up to the source tree's root
  std::filesystem::path place = executable_folder();
  for (int level = 0; level < kLevels && !place.empty(); ++level) {
    for (const char* name : {"adapters", CHUNKLLM_DATADIR "/chunkllm/adapters"}) {
      std::vector<std::string> paths;
      std::error_code error;
      for (std::filesystem::directory_iterator entry(place / name, error), end;
           !error && entry != end; entry.increment(error)) {
        if (entry->path().extension() == ".safetensors") paths.push_back(entry->path().string());
      }
      std::sort(paths.begin(), paths.end());
      for (const std::string& path : paths) {
        const Result<SafetensorsFile> file = SafetensorsFile::open(path);
        if (!file.ok()) continue;  // not ours to judge
        const auto entry = file->metadata().find("model.fingerprint");
        if (entry != file->metadata().end() && entry->second == fingerprint) return path;
      }
    }
    if (place == place.parent_path()) break;
    place = place.parent_path();
  }
  return "";
}

/// Bytes of a model's weights on the device: matrices of 16 bits, vectors f32.
std::int64_t device_weight_bytes(const BackboneConfig& config) {
  std::int64_t bytes = 0;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    bytes += tensor.rows * tensor.cols * (tensor.rows == 1 ? 4 : 2);
  }
  return bytes;
}

Status check_memory(const CommonOptions& options, const OpenModel& model, std::int64_t num_tokens) {
  const std::int64_t per_token = kv_bytes_per_token(model.config(), model.kv);
  const auto too_many = [&](const std::string& limit) {
    return resource_exhausted(std::to_string(num_tokens) + " tokens: their keys and values take " +
                              format_bytes(per_token) + " each, more than " + limit);
  };
  if (!options.cuda) {
    const std::int64_t memory = physical_memory_bytes();
    if (memory <= 0 || num_tokens <= memory / per_token) return {};
    return too_many("the machine's " + format_bytes(memory) + " in all");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const DeviceFacts device, device_facts());
  const std::int64_t weights = device_weight_bytes(model.config());
  if (num_tokens <= std::max<std::int64_t>(0, device.free_bytes - weights) / per_token) return {};
  return too_many("the device's " + format_bytes(device.free_bytes) +
                  " that are free, less weights of " + format_bytes(weights) +
                  ": expected fewer tokens, or a smaller model");
}

}  // namespace

Status check_device(const CommonOptions& options) {
  if (!options.cuda) return {};
  if (options.weights != WeightFormat::kKeep) {
    return invalid_argument(
        "--weights: with --device cuda weights are held as --kv says, f16 or bf16; expected keep");
  }
  if (options.maybe_kv == KvKind::kF32) {
    return invalid_argument(
        "--kv f32: with --device cuda weights, keys and values are of 16 bits, expected f16 or "
        "bf16");
  }
  return check_cuda();
}

Status check_device_scorer(const CommonOptions& options, ScorerKind scorer) {
  using enum ScorerKind;
  if (!options.cuda || scorer == kAdapter || scorer == kMeanKey || scorer == kRecent) return {};
  return invalid_argument("--scorer " + std::string(to_string(scorer)) +
                          ": not with --device cuda, expected " + std::string(kDeviceScorers));
}

Status check_device_refresh(const CommonOptions& options, const RefreshPolicy& refresh,
                            Selection selection, bool has_chunk_adapter) {
  if (!options.cuda || refresh.kind == RefreshPolicy::Kind::kBoundary) return {};
  if (selection != Selection::kLayer && !has_chunk_adapter) return {};
  return invalid_argument(
      std::string("--refresh: with --device cuda ") +
      (has_chunk_adapter ? "boundaries of a Chunk Adapter" : "layers with sets of their own") +
      " refresh at boundaries only, expected boundary" +
      (has_chunk_adapter ? "" : ", or --selection max, vote or soft"));
}

Status check_device_settings(const CommonOptions& common, const AttentionOptions& attention) {
  if (!attention.dense) {
    if (attention.scorer) CHUNKLLM_RETURN_IF_ERROR(check_device_scorer(common, *attention.scorer));
    CHUNKLLM_RETURN_IF_ERROR(check_device_refresh(common, attention.refresh,
                                                  attention.selection.value_or(Selection::kMax),
                                                  /*has_chunk_adapter=*/false));
  }
  return check_device(common);
}

KvKind choose_kv(const CommonOptions& options, const ModelFiles& files) {
  if (options.maybe_kv) return *options.maybe_kv;
  const Result<TensorBytes> embedding = files.tensor("model.embed_tokens.weight");
  const bool is_bf16 = embedding.ok() && embedding->dtype == DType::kBF16;
  return options.cuda && is_bf16 ? KvKind::kBF16 : KvKind::kF16;
}

Result<OpenModel> open_model(const CommonOptions& options) {
  CHUNKLLM_ASSIGN_OR_RETURN(ModelFiles files, ModelFiles::open(options.model));
  CHUNKLLM_ASSIGN_OR_RETURN(BpeTokenizer tokenizer, load_tokenizer(files));
  const KvKind kv = choose_kv(options, files);
  std::vector<std::int32_t> end_ids = end_token_ids(files, tokenizer);
  return Result<OpenModel>(OpenModel{
      {std::move(files), std::move(tokenizer), std::move(end_ids), nullptr}, kv, nullptr});
}

Status load_weights(const CommonOptions& options, WeightPlaces places, ThreadPool& pool,
                    OpenModel& model) {
  ProgressBar bar(options, "loading", 0);
  const auto progress = [&](std::int64_t done, std::int64_t total) {
    return bar.update(done, total);
  };
  const auto named = [&](const Status& status) {
    return status.code() == StatusCode::kInterrupted ? status : status.with_context(options.model);
  };
  if (!options.cuda || places == WeightPlaces::kHostToo) {
    Result<DecoderBackbone> backbone =
        DecoderBackbone::load(model.files, options.weights, pool, progress);
    if (!backbone.ok()) return named(backbone.status());
    model.maybe_backbone = std::make_unique<const DecoderBackbone>(std::move(backbone).value());
  }
  if (options.cuda) {
    auto device = load_device_runner(model.files, model.kv, pool, progress);
    if (!device.ok()) return named(device.status());
    model.maybe_device = std::move(device).value();
  }
  model.files.drop_pages();
  return {};
}

Result<Adapters> find_adapters(const AttentionOptions& options, const ModelFiles& files) {
  const std::string fingerprint = files.fingerprint();
  const std::string path =
      options.adapters.empty() ? shipped_adapters(fingerprint) : options.adapters;
  if (path.empty()) return Adapters{};
  CHUNKLLM_ASSIGN_OR_RETURN(const AdapterFile file, load_adapter_file(path));
  CHUNKLLM_RETURN_IF_ERROR(check_fits(file, files.config(), fingerprint).with_context(path));
  return Adapters{path,        file.maybe_chunk_adapter, file.maybe_qk_adapter,
                  file.guards, file.head_join,           file.null_threshold};
}

AnyScorer make_scorer(ScorerKind kind, const BackboneConfig& config, const Adapters& adapters,
                      std::uint64_t seed) {
  switch (kind) {
    case ScorerKind::kAdapter: return AnyScorer(*adapters.maybe_qk_adapter);
    case ScorerKind::kMinMaxKey:
      return AnyScorer(MinMaxKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim,
                                       softmax_scale(config)));
    case ScorerKind::kRandom: return AnyScorer(RandomScorer(seed));
    case ScorerKind::kMeanKey:
      return AnyScorer(MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim,
                                     softmax_scale(config)));
    case ScorerKind::kRecent:
    case ScorerKind::kOracle: break;
  }
  return AnyScorer(RecentScorer());
}

std::string boundary_note(const Adapters& adapters) {
  if (adapters.path.empty()) {
    return "no adapters for this model: chunks end by the sentence rules";
  }
  return "adapters " + adapters.path + ": chunks end by " +
         (adapters.maybe_chunk_adapter ? "the Chunk Adapter" : "the sentence rules");
}

Result<AttentionPlan> plan_attention(const CommonOptions& common, const AttentionOptions& options,
                                     const OpenModel& model, const Adapters& adapters, Task task,
                                     std::int64_t num_tokens) {
  const BackboneConfig& config = model.config();
  AttentionPlan plan;
  plan.adapters_path = adapters.path;
  plan.maybe_chunk_adapter = adapters.maybe_chunk_adapter;
  CHUNKLLM_ASSIGN_OR_RETURN(plan.scorer_kind, choose_scorer(options, adapters, task, num_tokens));
  if (plan.scorer_kind != ScorerKind::kOracle || options.dense) {
    plan.scorer = std::make_shared<const AnyScorer>(
        make_scorer(plan.scorer_kind, config, adapters, options.seed));
  }
  const bool is_trained = plan.scorer_kind == ScorerKind::kAdapter;

  SessionOptions& session = plan.session;
  session.dense = options.dense;
  session.dense_prefill = options.dense_prefill.value_or(false);
  session.chunk.budget = options.budget;
  session.chunk.selection =
      options.selection.value_or(is_trained ? Selection::kLayer : Selection::kMax);
  session.chunk.refresh = options.refresh;
  session.chunk.head_join = options.head_join;
  session.chunk.second_look = options.second_look;
  session.chunk.guards = adapters.guards.value_or(ChunkGuards{});
  if (is_trained) {
    session.chunk.threshold = adapters.threshold;
    if (!options.is_head_join_given) session.chunk.head_join = adapters.head_join;
  }
  CHUNKLLM_RETURN_IF_ERROR(validate(session.chunk));
  if (!options.dense) {
    CHUNKLLM_RETURN_IF_ERROR(check_device_refresh(common, session.chunk.refresh,
                                                  session.chunk.selection,
                                                  adapters.maybe_chunk_adapter != nullptr));
  }
  // Teacher-forced reading is decoding, unless --prefill chunk asks for the sets of a prompt.
  if (options.dense_prefill == false) plan.read_mode = ReadMode::kLayerLocal;

  if (!options.dense) {
    plan.notes.push_back(boundary_note(adapters) + ", ranked by " +
                         std::string(to_string(plan.scorer_kind)) +
                         (is_trained ? "" : ", training-free"));
  }
  CHUNKLLM_ASSIGN_OR_RETURN(
      session.positions, choose_positions(options, session.chunk, config, num_tokens, plan.notes));
  CHUNKLLM_RETURN_IF_ERROR(check_memory(common, model, num_tokens));
  return plan;
}

Result<std::unique_ptr<AnySession>> make_session(const OpenModel& model, const AttentionPlan& plan,
                                                 ThreadPool& pool) {
  return model.runner().make_session(model, plan.scorer, plan.maybe_chunk_adapter, plan.session,
                                     pool);
}

Status as_model_fault(const Status& status, const CommonOptions& options) {
  if (status.code() != StatusCode::kInvalidArgument && status.code() != StatusCode::kInvalidFile) {
    return status;
  }
  return invalid_file(options.model + ": " + status.message());
}

OrderedJson describe_attention(const AttentionOptions& options, const AttentionPlan& plan) {
  if (plan.session.dense) return {{"mode", "dense"}, {"positions", "original"}};
  OrderedJson json = {{"mode", "chunk"},
                      {"budget", options.budget_text},
                      {"scorer", to_string(plan.scorer_kind)},
                      {"selection", selection_name(plan.session.chunk.selection)},
                      {"positions", positions_name(plan.session.positions)},
                      {"prefill", plan.session.dense_prefill ? "dense" : "chunk"},
                      {"adapters", nullptr}};
  if (!plan.adapters_path.empty()) json["adapters"] = plan.adapters_path;
  return json;
}

void print_notes(const CommonOptions& common, const AttentionPlan& plan) {
  if (common.quiet) return;
  for (const std::string& note : plan.notes) print_note(note);
}

Result<std::string> read_utf8_file(const std::string& path) {
  CHUNKLLM_ASSIGN_OR_RETURN(std::string text, read_text_file(path, kMaxTextBytes));
  if (text.empty()) return invalid_file(path + ": the file is empty, expected text");
  const std::size_t wrong = find_invalid_utf8(text);
  if (wrong != text.size()) {
    return invalid_file(path + ": byte " + std::to_string(wrong) + " is not UTF-8, expected text");
  }
  return text;
}

Result<std::vector<std::int32_t>> read_ids_file(const std::string& path, std::int64_t vocab_size) {
  CHUNKLLM_ASSIGN_OR_RETURN(const Json json, read_json_file(path, JsonLimits{}));
  const auto* list = json.get_ptr<const Json::array_t*>();
  if (list == nullptr || list->empty()) {
    return invalid_file(path + ": is " + describe(json) + ", expected a list of token ids");
  }
  std::vector<std::int32_t> ids;
  ids.reserve(list->size());
  for (const Json& value : *list) {
    const auto* id = value.get_ptr<const Json::number_unsigned_t*>();
    if (id == nullptr || *id >= static_cast<std::uint64_t>(vocab_size)) {
      return invalid_file(path + ": element " + std::to_string(ids.size()) + " is " +
                          describe(value) + ", expected a token id from 0 to " +
                          std::to_string(vocab_size - 1));
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

Result<std::vector<std::int32_t>> encode_prompt(const BpeTokenizer& tokenizer,
                                                std::string_view text, std::string_view origin) {
  CHUNKLLM_ASSIGN_OR_RETURN(const std::vector<std::int32_t> words,
                            tokenizer.encode(text, /*add_special_tokens=*/false));
  std::vector<std::int32_t> ids(tokenizer.prefix_ids().begin(), tokenizer.prefix_ids().end());
  ids.insert(ids.end(), words.begin(), words.end());
  if (ids.empty()) return invalid_file(std::string(origin) + ": the text has no tokens");
  return ids;
}

Result<std::vector<std::int32_t>> encode_file(const BpeTokenizer& tokenizer,
                                              const std::string& path) {
  CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, read_utf8_file(path));
  return encode_prompt(tokenizer, text, path);
}

}  // namespace chunkllm::cli
