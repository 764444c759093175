// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/report_charts.hpp"
#include "chunkllm/io/atomic_file.hpp"
#include "chunkllm/version.hpp"

namespace chunkllm {

/// What stands above the figures. All of it is the caller's word.
struct HtmlReportHeader {
  std::string title;
  std::string model;
  std::string device;
  std::string date;
  std::string command;  ///< that made the rows
  std::string text;     ///< what was measured on
  std::string notice;   ///< what the reader must know first: that rows are missing, and why
};

namespace detail {

// Colours tell scorers apart in both schemes at 3:1 or more against the surface, and never alone:
// dashes, markers and labels say the same.
inline constexpr std::string_view kReportStyle = R"css(
:root { color-scheme: light dark; --surface: #ffffff; --page: #f4f5f7; --ink: #1b1f26;
  --soft: #5a6270; --line: #dfe2e8; --on: #ffffff; --heat: #174a9c; --s1: #2463c4; --s2: #0c7f54; --s3: #c2570c;
  --s4: #0b8294; --s5: #b02a86; --s6: #8a6414; --s7: #68707e; --s8: #6d48bd; }
@media (prefers-color-scheme: dark) {
  :root { --surface: #171b22; --page: #0e1116; --ink: #e7eaf0; --soft: #a0a8b6; --line: #2b313c;
    --on: #0e1116; --heat: #6ea8fe; --s1: #6ea8fe; --s2: #4cc796; --s3: #f59e4c; --s4: #45c5d8; --s5: #ef82cc;
    --s6: #d9b25a; --s7: #a6aebb; --s8: #b59bf5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0 0 10px; font-weight: 600; }
p { margin: 0 0 14px; color: var(--soft); max-width: 76ch; }
.summary { color: var(--ink); font-size: 16px; overflow-wrap: anywhere; }
.notice { color: var(--ink); font-weight: 600; border-left: 4px solid var(--s3); padding-left: 10px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; margin: 0 0 16px; }
.chart { display: grid; grid-template-columns: minmax(0, 1fr) 250px; gap: 20px; align-items: center; }
.chart > svg, .bars > svg { width: 100%; height: auto; display: block; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; }
.maps .card { margin: 0; }
.maps svg { display: block; max-width: 100%; height: auto; }
.legend { list-style: none; margin: 0; padding: 0; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 8px; padding: 3px 0; }
.legend svg { flex: none; }
.grid { stroke: var(--line); stroke-width: 1; }
.dense { stroke: var(--ink); stroke-width: 1.25; }
.mark { stroke: var(--ink); stroke-width: 2; }
.tick { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.axis, .note { font-size: 12px; fill: var(--soft); }
.note { fill: var(--ink); }
.cell { font-size: 13px; font-weight: 600; fill: var(--ink); font-variant-numeric: tabular-nums; }
.cell.small { font-size: 10px; font-weight: 400; }
.cell.on { fill: var(--on); }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 9px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; }
@media (max-width: 760px) { .chart { grid-template-columns: 1fr; } }
@media print { body { background: none; } .card { break-inside: avoid; } }
)css";

/// Words in the order of their first coming, each once: "a, b and c".
class WordList {
 public:
  void add(const std::string& word) {
    if (word.empty() || std::find(words_.begin(), words_.end(), word) != words_.end()) return;
    words_.push_back(word);
  }
  [[nodiscard]] std::string text() const {
    std::string text;
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if (i > 0) text += i + 1 == words_.size() ? " and " : ", ";
      text += words_[i];
    }
    return text;
  }
  [[nodiscard]] bool empty() const { return words_.empty(); }

 private:
  std::vector<std::string> words_;
};

/// One sentence: what was measured, of which model, on which text, with which settings.
inline std::string report_summary(const HtmlReportHeader& header,
                                  std::span<const EvaluateRow> rows) {
  WordList tasks;
  WordList lengths;
  WordList budgets;
  WordList scorers;
  bool has_dense = false;
  for (const EvaluateRow& row : rows) {
    tasks.add(row.task);
    if (!row.scorer.empty()) lengths.add(with_thousands(row.length));  // not of whole texts
    budgets.add(row.budget);
    scorers.add(row.scorer);
    has_dense = has_dense || row.dense_value.has_value();
  }
  if (tasks.empty()) return {};
  std::string text = "Measured: " + tasks.text();
  if (!header.model.empty()) text += " of " + header.model;
  if (!header.text.empty()) text += " on " + header.text;
  if (!lengths.empty()) text += ", at " + lengths.text() + " tokens";
  if (!budgets.empty()) text += ", budget " + budgets.text();
  if (!scorers.empty()) text += ", chunks ranked by " + scorers.text();
  text += has_dense ? "; dense attention on the same tokens stands beside." : ".";
  return "<p class='summary'>" + escape_html(text) + "</p>\n";
}

inline std::string report_header(const HtmlReportHeader& header,
                                 std::span<const EvaluateRow> rows) {
  std::string html = "<h1>" + escape_html(header.title) + "</h1>\n";
  if (!header.notice.empty()) {
    html += "<p class='notice'>" + escape_html(header.notice) + "</p>\n";
  }
  html += report_summary(header, rows) + "<div class='card'><dl>\n";
  const auto add = [&](std::string_view name, const std::string& value) {
    if (value.empty()) return;
    html += "<dt>" + std::string(name) + "</dt><dd>" + escape_html(value) + "</dd>\n";
  };
  add("Model", header.model);
  add("Text", header.text);
  add("Device", header.device);
  add("Date", header.date);
  add("Made by", "chunkllm " CHUNKLLM_VERSION_STRING);
  if (!header.command.empty()) {
    html += "<dt>Command</dt><dd><code>" + escape_html(header.command) + "</code></dd>\n";
  }
  return html + "</dl></div>\n";
}

inline std::string perplexity_section(std::span<const EvaluateRow> rows) {
  std::map<std::int64_t, std::vector<EvaluateRow>> by_length;
  for (const EvaluateRow& row : rows) {
    if (row.metric == "perplexity") by_length[row.length].push_back(row);
  }
  std::string charts;
  for (const auto& [length, of_length] : by_length) {
    const std::string chart = ratio_chart(of_length);
    if (chart.empty()) continue;
    charts += "<div class='card'><h3>Windows of " + with_thousands(length) +
              " tokens</h3><div class='chart'>\n" + chart + "</div></div>\n";
  }
  if (charts.empty()) return {};
  return "<h2>Perplexity against the budget</h2>\n<p>Perplexity of each window&#39;s second half, "
         "divided by that of dense attention on the same tokens. 1.00 is no loss. Colour: who "
         "ranks the chunks; dashes: which layers share a set; hollow points: the mean over heads "
         "instead of the maximum.</p>\n" +
         charts;
}

/// What the metrics of passkey and multi-key count.
inline constexpr std::string_view kRetrievalMetrics =
    "<div class='card'><dl>\n"
    "<dt>digits</dt><dd>of a key&#39;s digits, the share that the greedy answer has right in their "
    "place</dd>\n"
    "<dt>whole keys (full)</dt><dd>of the keys, the share with every digit right</dd>\n"
    "<dt>digits, forced (forced)</dt><dd>of a key&#39;s digits, the share right when all digits "
    "before them were given</dd>\n"
    "</dl></div>\n";

inline std::string retrieval_section(std::span<const EvaluateRow> rows, std::string_view task,
                                     std::string_view heading, std::string_view explanation) {
  // A configuration each, in the order of the rows.
  std::vector<std::pair<std::string, std::vector<const EvaluateRow*>>> maps;
  std::map<std::int64_t, std::vector<const EvaluateRow*>> bars;
  for (const EvaluateRow& row : rows) {
    if (row.task != task) continue;
    if (!row.depth) {
      bars[row.length].push_back(&row);
      continue;
    }
    std::string name = series_name(row) + ", budget " + row.budget;
    if (row.second_look) name += ", second look " + std::to_string(*row.second_look);
    auto at =
        std::find_if(maps.begin(), maps.end(), [&](const auto& map) { return map.first == name; });
    if (at == maps.end()) at = maps.insert(maps.end(), {name, {}});
    at->second.push_back(&row);
  }
  if (maps.empty() && bars.empty()) return {};
  std::string html = "<h2>" + std::string(heading) + "</h2>\n<p>" + std::string(explanation) +
                     "</p>\n" + std::string(kRetrievalMetrics);
  for (const auto& [length, of_length] : bars) {
    html += "<div class='card bars'><h3>Right after " + with_thousands(length) +
            " tokens; the upright mark is dense attention</h3>\n" + retrieval_bars(of_length) +
            "</div>\n";
  }
  html += "<div class='maps'>\n";
  for (const auto& [name, cells] : maps) {
    html += "<div class='card'><h3>" + escape_html(name) + "</h3>\n" + depth_heat_map(cells) +
            "</div>\n";
  }
  return html + "</div>\n";
}

inline std::string table_section(std::span<const EvaluateRow> rows) {
  std::string html =
      "<h2>All rows</h2>\n<div class='card scroll'><table>\n<thead><tr><th>Task</th><th>Metric</th>"
      "<th class='number'>Length</th><th class='number'>Budget</th><th>Scorer</th><th>Heads</th>"
      "<th>Selection</th><th class='number'>Seed</th><th class='number'>Look</th>"
      "<th class='number'>Depth</th><th>Positions</th><th class='number'>Value</th><th "
      "class='number'>Dense</th>"
      "<th class='number'>Ratio</th><th class='number'>Attended</th>"
      "<th class='number'>Trials</th></tr></thead>\n<tbody>\n";
  const auto text = [&](const std::string& value) {
    html += "<td>" + escape_html(value) + "</td>";
  };
  const auto number = [&](const std::string& value) {
    html += "<td class='number'>" + escape_html(value) + "</td>";
  };
  const auto maybe = [&](const std::optional<double>& value, int decimals) {
    number(value ? fixed_decimals(*value, decimals) : "");
  };
  for (const EvaluateRow& row : rows) {
    html += "<tr>";
    text(row.task);
    text(row.metric);
    number(with_thousands(row.length));
    number(row.budget);
    text(row.scorer);
    text(row.head_join);
    text(row.selection);
    number(row.seed ? std::to_string(*row.seed) : "");
    number(row.second_look ? std::to_string(*row.second_look) : "");
    maybe(row.depth, 2);
    text(row.positions);
    number(fixed_decimals(row.value, 4));
    maybe(row.dense_value, 4);
    maybe(row.ratio(), 4);
    maybe(row.attended_share, 3);
    number(std::to_string(row.trials));
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

}  // namespace detail

/// The rows as one self-contained page: inline SVG, no script, nothing loaded from elsewhere.
///
/// What was measured in a sentence, and a notice where the header has one; perplexity ratio against
/// budget with a curve for each selector; digits, whole keys and forced
/// digits right as bars, digits as a heat map of depth and length; then a table of all rows.
/// Follows the reader's light or dark scheme. All text of the header and the rows is escaped; it
/// should be UTF-8.
inline std::string render_html_report(const HtmlReportHeader& header,
                                      std::span<const EvaluateRow> rows) {
  std::string html =
      "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<meta "
      "name='viewport' content='width=device-width, initial-scale=1'>\n<title>" +
      detail::escape_html(header.title) + "</title>\n<style>" + std::string(detail::kReportStyle) +
      "</style>\n</head>\n<body>\n<main>\n";
  html += detail::report_header(header, rows);
  html += detail::perplexity_section(rows);
  html += detail::retrieval_section(
      rows, "passkey", "Passkey",
      "Five digits are stated at a depth of plain text and asked for at its end, greedily. Bars: "
      "the shares that are right, as named below. Each cell: the share of digits right "
      "at its place, with dense attention on the same prompts and the number of trials below. "
      "Down: depth in the text; across: its length in tokens.");
  html += detail::retrieval_section(rows, "multi-key", "Multi-key",
                                    "Eight facts alike are spread over plain text and one of them "
                                    "is asked for. Bars and cells as for the passkey: shares that "
                                    "are right, by depth down and length across.");
  html += detail::table_section(rows);
  return html + "</main>\n</body>\n</html>\n";
}

/// Writes `render_html_report` to `path`: whole or not at all.
///
/// Errors: those of `write_file_atomically`.
inline Status write_html_report(const std::string& path, const HtmlReportHeader& header,
                                std::span<const EvaluateRow> rows) {
  return write_file_atomically(path, render_html_report(header, rows));
}

}  // namespace chunkllm
