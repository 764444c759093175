// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/html_report.hpp"
#include "output.hpp"

namespace chunkllm::cli {

/// Where rows go beside stdout; empty: nowhere.
struct EvaluateOutputs {
  std::string report;  ///< an HTML page
  std::string rows;    ///< JSON lines
};

/// Shows rows as they come, as a table unless they are to be one JSON object in the end, and keeps
/// every output file whole after each of them.
class RowSink {
 public:
  RowSink(EvaluateOutputs outputs, HtmlReportHeader header, bool prints_table)
      : outputs_(std::move(outputs)), header_(std::move(header)), prints_table_(prints_table) {}

  Status add(const EvaluateRow& row);

  [[nodiscard]] const std::vector<EvaluateRow>& rows() const { return rows_; }

 private:
  EvaluateOutputs outputs_;
  HtmlReportHeader header_;
  bool prints_table_;
  std::vector<EvaluateRow> rows_;
  std::string lines_;
};

/// A flat object; null where a setting does not apply to the task.
OrderedJson to_json(const EvaluateRow& row);

}  // namespace chunkllm::cli
