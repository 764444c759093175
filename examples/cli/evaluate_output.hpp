// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/html_report.hpp"
#include "output.hpp"

namespace chunkllm::cli {

/// Where rows go beside stdout; empty: nowhere.
struct EvaluateOutputs {
  std::string report;  ///< an HTML page
  std::string rows;    ///< JSON lines
};

/// Rows that a run of these options makes when nothing stops it; mass recall makes fewer where the
/// windows hold no chunk to rank.
std::int64_t count_rows(const EvaluateOptions& options);

/// Shows rows as they come, as a table unless they are to be one JSON object in the end, and keeps
/// every output file whole after each of them. Until `finish` the page says that it is partial.
class RowSink {
 public:
  /// \param num_planned  rows that are to come, `count_rows`
  RowSink(EvaluateOutputs outputs, HtmlReportHeader header, bool prints_table,
          std::int64_t num_planned)
      : outputs_(std::move(outputs)),
        header_(std::move(header)),
        prints_table_(prints_table),
        num_planned_(num_planned) {}

  Status add(const EvaluateRow& row);

  /// Says in the page why rows are missing; no reason: all are there. Writes none without rows.
  Status finish(std::string_view reason);

  /// "3 of 8 rows".
  [[nodiscard]] std::string how_far() const;
  [[nodiscard]] const std::vector<EvaluateRow>& rows() const { return rows_; }

 private:
  Status write_report();

  EvaluateOutputs outputs_;
  HtmlReportHeader header_;
  bool prints_table_;
  std::int64_t num_planned_;
  std::vector<EvaluateRow> rows_;
  std::string lines_;
};

/// A flat object; null where a setting does not apply to the task.
OrderedJson to_json(const EvaluateRow& row);

}  // namespace chunkllm::cli
