// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/model/packed_weights.hpp"
#include "kv_kind.hpp"

namespace chunkllm::cli {

/// Who ranks the chunks (`--scorer`).
enum class ScorerKind : std::uint8_t { kAdapter, kMeanKey, kMinMaxKey, kRecent, kRandom, kOracle };

/// Whose attention the oracle knows (`--oracle`): the next chunk's or the trigger's own.
enum class OracleKind : std::uint8_t { kNext, kSame };

/// What every command takes.
struct CommonOptions {
  std::string model;
  int threads = 1;  ///< set to the physical cores before parsing
  bool json = false;
  bool quiet = false;
  bool cuda = false;  ///< --device cuda
  WeightFormat weights = WeightFormat::kKeep;
  std::optional<KvKind> maybe_kv;  ///< not given: see `choose_kv`
};

/// What `generate`, `perplexity`, `evaluate` and `bench` take. Empty optionals: not given, decided
/// by `plan_attention`.
struct AttentionOptions {
  bool dense = false;
  std::string adapters;  ///< a file; empty: look for the one that fits the model
  Budget budget;
  std::string budget_text = "2048";  ///< as given, for reports
  RefreshPolicy refresh;
  std::optional<Selection> selection;
  std::optional<ScorerKind> scorer;
  OracleKind oracle = OracleKind::kNext;
  HeadJoin head_join = HeadJoin::kMax;
  bool is_head_join_given = false;  ///< without it trained adapters say how heads are joined
  std::optional<bool> dense_prefill;
  std::int64_t second_look = 64;
  std::optional<Positions> positions;
  std::uint64_t seed = 0;  ///< of the random scorer, and of sampling in `generate`
};

/// Adds --model, --threads, --json, --quiet, --weights, --kv and --device.
void add_common_options(CLI::App& command, CommonOptions& options);

/// Adds --adapters.
///
/// \param otherwise  what is done without adapters, for the help
CLI::Option* add_adapters_option(CLI::App& command, std::string& target,
                                 const std::string& otherwise);

/// Adds --attention, --adapters, --budget and the others, and --seed.
void add_attention_options(CLI::App& command, AttentionOptions& options);

/// Parsers of single values; kInvalidArgument says what is expected, without the flag's name.
Result<std::int64_t> parse_int(std::string_view text, std::int64_t min, std::int64_t max);
Result<double> parse_number(std::string_view text, double min, double max);
Result<Budget> parse_budget(std::string_view text);
Result<RefreshPolicy> parse_refresh(std::string_view text);

/// The parts of a list that commas separate, each parsed; an empty part is an error.
template <typename T, typename Parse>
Result<std::vector<T>> parse_list(std::string_view text, Parse parse) {
  std::vector<T> values;
  for (;;) {
    const std::size_t comma = std::min(text.find(','), text.size());
    CHUNKLLM_ASSIGN_OR_RETURN(T value, parse(text.substr(0, comma)));
    values.push_back(std::move(value));
    if (comma == text.size()) return values;
    text.remove_prefix(comma + 1);
  }
}

/// A parser for a fixed list of words.
template <typename T>
auto one_of(std::vector<std::pair<std::string, T>> words) {
  return [words = std::move(words)](std::string_view text) -> Result<T> {
    std::string expected;
    for (const auto& [word, value] : words) {
      if (word == text) return value;
      expected += (expected.empty() ? "" : ", ") + word;
    }
    return invalid_argument("'" + chunkllm::detail::printable(text, 40) + "', expected one of " +
                            expected);
  };
}

Result<Selection> parse_selection(std::string_view text);
Result<HeadJoin> parse_head_join(std::string_view text);
Result<std::int64_t> parse_second_look(std::string_view text);
Result<std::uint64_t> parse_seed(std::string_view text);

std::string_view to_string(ScorerKind scorer);

/// An option whose text is parsed by `parse(text) -> Result<T>`; what it refuses is wrong usage.
template <typename Parse, typename Target>
CLI::Option* add_parsed_option(CLI::App& command, const std::string& name, Parse parse,
                               Target& target, const std::string& help) {
  return command.add_option_function<std::string>(
      name,
      [name, parse, &target](const std::string& text) {
        auto value = parse(text);
        if (!value.ok()) throw CLI::ValidationError(name, value.status().message());
        target = std::move(value).value();
      },
      help);
}

/// An integer option in [min, max].
template <typename Target>
CLI::Option* add_int_option(CLI::App& command, const std::string& name, Target& target,
                            std::int64_t min, std::int64_t max, const std::string& help) {
  return add_parsed_option(
      command, name,
      [min, max](std::string_view text) -> Result<Target> {
        CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t value, parse_int(text, min, max));
        return static_cast<Target>(value);
      },
      target, help);
}

/// A finite number option in [min, max].
inline CLI::Option* add_number_option(CLI::App& command, const std::string& name, double& target,
                                      double min, double max, const std::string& help) {
  return add_parsed_option(
      command, name, [min, max](std::string_view text) { return parse_number(text, min, max); },
      target, help);
}

}  // namespace chunkllm::cli
