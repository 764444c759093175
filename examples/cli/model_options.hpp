// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/infer/session.hpp"
#include "device_runner.hpp"
#include "kv_runner.hpp"
#include "options.hpp"
#include "output.hpp"

namespace chunkllm::cli {

/// Whether the common flags fit the device, and the device is there: to be asked before any work.
///
/// Errors: kInvalidArgument for --weights and --kv that the device has not; kUnsupported for
///         --device cuda in a build or on a machine without it.
Status check_device(const CommonOptions& options);

/// As above with the flags for attention. Errors: kInvalidArgument, too, for a scorer or a refresh
/// that the device has not.
Status check_device_settings(const CommonOptions& common, const AttentionOptions& attention);

/// One of several scorers. Errors: kInvalidArgument where the device has not got it.
Status check_device_scorer(const CommonOptions& options, ScorerKind scorer);

/// A refresh, once it is known who finds the boundaries. Errors: kInvalidArgument.
Status check_device_refresh(const CommonOptions& options, const RefreshPolicy& refresh,
                            Selection selection, bool has_chunk_adapter);

/// The type of keys and values, and on the device of the weights: `--kv`; else f16, but on the
/// device bf16 where the file's embedding is, whose range f16 does not hold.
KvKind choose_kv(const CommonOptions& options, const ModelFiles& files);

/// A model and where it runs.
struct OpenModel : LoadedModel {
  KvKind kv = KvKind::kF16;
  std::unique_ptr<const DeviceRunner> maybe_device;  ///< --device cuda

  [[nodiscard]] const ModelRunner& runner() const {
    if (maybe_device != nullptr) return *maybe_device;
    return runner_of(kv);
  }
};

/// Opens the files of `--model`; `load_weights` brings the rest.
///
/// Errors: those of `ModelFiles::open` and `load_tokenizer`.
Result<OpenModel> open_model(const CommonOptions& options);

/// Whose memory the weights go to.
enum class WeightPlaces : std::uint8_t {
  kWhereItRuns,  ///< --device's
  kHostToo       ///< with --device cuda the host's besides, for what runs on the CPU
};

/// Loads the weights with a progress bar; Ctrl-C stops it with kInterrupted.
///
/// Errors: those of `DecoderBackbone::load` and `load_device_runner`.
Status load_weights(const CommonOptions& options, WeightPlaces places, ThreadPool& pool,
                    OpenModel& model);

/// Trained adapters for a model; empty members where there are none.
struct Adapters {
  std::string path;  ///< empty: no adapter file
  std::shared_ptr<const ChunkAdapter> maybe_chunk_adapter;
  std::shared_ptr<const QkAdapter> maybe_qk_adapter;
  std::optional<ChunkGuards> guards;
  HeadJoin head_join = HeadJoin::kMax;
  float threshold = 0.0F;  ///< of the null class
};

/// Loads `--adapters`, or without it the shipped file whose fingerprint is the model's: one of
/// adapters/*.safetensors or share/chunkllm/adapters/*.safetensors beside the program or in a
/// folder above it, as a build tree and an installation have them.
///
/// Errors: those of the file's reader, and kInvalidFile where `--adapters` names a file that was
/// made for another model. No shipped file is no error.
Result<Adapters> find_adapters(const AttentionOptions& options, const ModelFiles& files);

/// What a plan is for.
enum class Task : std::uint8_t {
  kGenerate,      ///< prompt, then new tokens
  kTeacherForced  ///< `perplexity`, `evaluate`: the oracle is allowed, there is no second look
};

/// Everything that a `Session` needs, decided once from the flags, the model and the length.
struct AttentionPlan {
  SessionOptions session;
  ScorerKind scorer_kind = ScorerKind::kMeanKey;
  /// Null for the oracle until its scores are known, unless attention is dense: set it before
  /// `make_session`.
  std::shared_ptr<const AnyScorer> scorer;
  std::shared_ptr<const ChunkAdapter> maybe_chunk_adapter;
  std::string adapters_path;  ///< empty: training-free
  /// What the user should know: positions, training-free scoring. See `print_notes`.
  std::vector<std::string> notes;

  /// How teacher-forced commands read: as decoding does, or layer-local under --prefill chunk.
  ReadMode read_mode = ReadMode::kAsDecode;
};

/// Decides scorer, selection, positions and prefill. Needs no weights, and on the device must come
/// before them: it asks for the memory that is free.
///
/// \param num_tokens  prompt and new tokens
/// Errors: kInvalidArgument for settings that contradict each other, the device or the model's
///         window; kResourceExhausted where the KV cache of `num_tokens` exceeds the machine's
///         memory, or with the weights what is free of the device's.
Result<AttentionPlan> plan_attention(const CommonOptions& common, const AttentionOptions& options,
                                     const OpenModel& model, const Adapters& adapters, Task task,
                                     std::int64_t num_tokens);

/// Who ranks the chunks; not for the oracle, whose scores `KvRunner::make_oracle_scorer` finds.
///
/// \param kind  kAdapter only where `adapters` has a QK Adapter
/// \param seed  of the random scorer
AnyScorer make_scorer(ScorerKind kind, const BackboneConfig& config, const Adapters& adapters,
                      std::uint64_t seed);

/// Whether there are adapters, and how chunks end.
std::string boundary_note(const Adapters& adapters);

/// The plan as a JSON object: mode, budget, scorer, selection, positions, adapters.
OrderedJson describe_attention(const AttentionOptions& options, const AttentionPlan& plan);

/// The plan's notes on stderr, one line each, unless --quiet.
void print_notes(const CommonOptions& common, const AttentionPlan& plan);

/// A session by the plan; the model and the pool must outlive it.
Result<std::unique_ptr<AnySession>> make_session(const OpenModel& model, const AttentionPlan& plan,
                                                 ThreadPool& pool);

/// The same status, where reading or choosing tokens failed, as a fault of the model's file: its
/// ids and flags were checked before, so what is left are weights that give no finite numbers.
Status as_model_fault(const Status& status, const CommonOptions& options);

/// Text of a file, at most 256 MiB, checked to be UTF-8 and not empty.
Result<std::string> read_utf8_file(const std::string& path);

/// A JSON array of token ids, each in [0, vocab_size), at least one.
Result<std::vector<std::int32_t>> read_ids_file(const std::string& path, std::int64_t vocab_size);

/// Ids of a prompt's text: with the tokenizer's begin token, without its end token.
///
/// \param origin  where the text came from, for messages
/// Errors: kInvalidFile where it gives no token.
Result<std::vector<std::int32_t>> encode_prompt(const BpeTokenizer& tokenizer,
                                                std::string_view text, std::string_view origin);

/// `encode_prompt` of a file's text.
Result<std::vector<std::int32_t>> encode_file(const BpeTokenizer& tokenizer,
                                              const std::string& path);

}  // namespace chunkllm::cli
