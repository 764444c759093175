// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "evaluate_output.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <set>

#include "chunkllm/io/atomic_file.hpp"

namespace chunkllm::cli {
namespace {

template <typename T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}
OrderedJson or_null(const std::string& text) {
  return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
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

}  // namespace

std::int64_t count_rows(const EvaluateOptions& options) {
  std::int64_t count = 0;
  const auto num_lengths = static_cast<std::int64_t>(options.lengths.size());
  for (const EvaluateTask task : options.tasks) {
    if (task == EvaluateTask::kBoundaryF1) {
      ++count;
      continue;
    }
    // Retrieval: digits at each depth that the trials reach, then digits, full and forced over all.
    std::int64_t per_configuration = 1;
    if (is_retrieval(task)) {
      const auto reached =
          std::min(options.depths.size(), static_cast<std::size_t>(options.num_trials));
      const std::set<double> depths(options.depths.begin(),
                                    options.depths.begin() + static_cast<std::ptrdiff_t>(reached));
      per_configuration = static_cast<std::int64_t>(depths.size()) + 3;
    }
    for (const EvaluateGroup& group : plan_groups(options, is_retrieval(task))) {
      if (task != EvaluateTask::kMassRecall) {
        count += num_lengths * per_configuration *
                 static_cast<std::int64_t>(group.configurations.size());
      } else if (group.scorer->scorer != nullptr) {  // the oracle is the teacher
        count += num_lengths;
      }
    }
  }
  return count;
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
  json["positions"] = or_null(row.positions);
  json["value"] = row.value;
  json["dense_value"] = or_null(row.dense_value);
  json["ratio"] = or_null(row.ratio());
  json["attended_share"] = or_null(row.attended_share);
  json["trials"] = row.trials;
  return json;
}

Status RowSink::add(const EvaluateRow& row) {
  rows_.push_back(row);
  if (prints_table_) {
    CHUNKLLM_RETURN_IF_ERROR(
        write_stdout((rows_.size() == 1 ? std::string(kTableHead) : "") + table_line(row)));
  }
  if (!outputs_.rows.empty()) {
    lines_ += to_json(row).dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
    CHUNKLLM_RETURN_IF_ERROR(write_file_atomically(outputs_.rows, lines_));
  }
  header_.notice = fmt::format("Partial: {} so far.", how_far());
  return write_report();
}

Status RowSink::finish(std::string_view reason) {
  header_.notice = reason.empty() ? "" : fmt::format("Partial: {} after {}.", reason, how_far());
  return rows_.empty() ? Status() : write_report();
}

std::string RowSink::how_far() const {
  return fmt::format("{} of {}", rows_.size(), counted(num_planned_, "row"));
}

Status RowSink::write_report() {
  if (outputs_.report.empty()) return {};
  return write_html_report(outputs_.report, header_, rows_);
}

}  // namespace chunkllm::cli
