// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "chunkllm/eval/evaluate_row.hpp"

/// Inline SVG of evaluation rows, as text. Colours are CSS variables of the page around it.
namespace chunkllm::detail {

/// `text` with what means something to HTML and XML written as references.
inline std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default:
        // Control characters have no place in a document.
        out += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return out;
}

/// `value` with a fixed number of decimals; "n/a" where it is not finite.
inline std::string fixed_decimals(double value, int decimals) {
  if (!std::isfinite(value)) return "n/a";
  std::array<char, 400> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                          std::chars_format::fixed, decimals);
  return error == std::errc() ? std::string(buffer.data(), end) : "n/a";
}

/// 4000 as "4,000".
inline std::string with_thousands(std::int64_t value) {
  const std::string digits = std::to_string(value);
  const std::size_t first = value < 0 ? 1 : 0;
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > first && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

/// What tells the curves of a chart apart: scorer, join of heads, selection.
inline std::string series_name(const EvaluateRow& row) {
  std::string name = row.scorer;
  if (!row.head_join.empty()) name += ", heads " + row.head_join;
  if (row.selection == "layer") name += ", each layer";
  if (!row.selection.empty() && row.selection != "layer") name += ", joined " + row.selection;
  return name;
}

/// Orders budgets as numbers where they are numbers.
inline std::pair<double, std::string> budget_key(const std::string& budget) {
  double value = 0.0;
  std::from_chars(budget.data(), budget.data() + budget.size(), value);
  return {value, budget};
}

/// The colour of a scorer, 1 to 8: the same in every chart.
inline int scorer_colour(std::string_view scorer) {
  constexpr std::array<std::string_view, 7> kKnown = {
      "mean-key", "oracle-next", "min-max-key", "oracle-same", "adapter", "random", "recent"};
  const auto at = std::find(kKnown.begin(), kKnown.end(), scorer);
  return at == kKnown.end() ? 8 : static_cast<int>(at - kKnown.begin()) + 1;
}
inline std::string_view selection_dash(std::string_view selection) {
  if (selection == "max") return "7 4";
  if (selection == "vote") return "2 4";
  if (selection == "soft") return "9 3 2 3";
  return "none";
}

/// Ticks of a step 1, 2 or 5 times a power of ten, about `count` of them, around [low, high].
inline std::vector<double> nice_ticks(double low, double high, int count) {
  const double rough = std::max(high - low, 1e-9) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double part = rough / power;
  const double step = power * (part <= 1.0 ? 1.0 : part <= 2.0 ? 2.0 : part <= 5.0 ? 5.0 : 10.0);
  std::vector<double> ticks;
  // A value a little below the lowest tick costs no step more.
  for (double i = std::floor(low / step + 0.15); i * step < high + step * (1.0 - 1e-9); i += 1.0) {
    ticks.push_back(i * step);
  }
  return ticks;
}

inline std::string svg_text(double x, double y, std::string_view anchor, std::string_view css,
                            std::string_view text) {
  return "<text x='" + fixed_decimals(x, 1) + "' y='" + fixed_decimals(y, 1) + "' text-anchor='" +
         std::string(anchor) + "' class='" + std::string(css) + "'>" + escape_html(text) +
         "</text>\n";
}

/// A point of a curve: filled for heads joined by maximum, hollow otherwise.
inline std::string svg_marker(double x, double y, int colour, bool hollow, std::string_view title) {
  return "<circle cx='" + fixed_decimals(x, 1) + "' cy='" + fixed_decimals(y, 1) +
         "' r='4' stroke='var(--s" + std::to_string(colour) + ")' stroke-width='2' fill='" +
         (hollow ? std::string("var(--surface)") : "var(--s" + std::to_string(colour) + ")") +
         "'><title>" + escape_html(title) + "</title></circle>\n";
}

/// Perplexity over that of dense attention against the budget, one curve a selector.
///
/// \param rows  of one length
inline std::string ratio_chart(std::span<const EvaluateRow> rows) {
  struct Point {
    double sum = 0.0;
    int count = 0;  // seeds
  };
  std::set<std::pair<double, std::string>> budgets;
  std::map<std::string, std::map<std::string, Point>> series;
  std::map<std::string, const EvaluateRow*> styles;
  double high = 1.0;
  double low = 1.0;
  for (const EvaluateRow& row : rows) {
    const auto ratio = row.ratio();
    if (!ratio || !std::isfinite(*ratio)) continue;
    budgets.insert(budget_key(row.budget));
    Point& point = series[series_name(row)][row.budget];
    point.sum += *ratio;
    ++point.count;
    styles.emplace(series_name(row), &row);
    high = std::max(high, *ratio);
    low = std::min(low, *ratio);
  }
  if (budgets.empty()) return {};
  constexpr double kWidth = 620.0;
  constexpr double kHeight = 360.0;
  constexpr double kLeft = 58.0;
  constexpr double kTop = 18.0;
  constexpr double kBottom = 310.0;
  constexpr double kRight = kWidth - 22.0;
  const std::vector<double> ticks = nice_ticks(low, std::max(high, low + 0.02), 5);
  const double bottom_value = ticks.front();
  const double top_value = ticks.back();
  const auto y_of = [&](double ratio) {
    return kBottom - (ratio - bottom_value) / (top_value - bottom_value) * (kBottom - kTop);
  };
  std::map<std::string, double> x_of;
  double index = 0.0;
  for (const auto& [value, text] : budgets) {
    const double steps = std::max<double>(1.0, static_cast<double>(budgets.size()) - 1.0);
    x_of[text] = budgets.size() == 1 ? (kLeft + kRight) / 2.0
                                     : kLeft + 24.0 + (kRight - kLeft - 48.0) * index / steps;
    index += 1.0;
  }
  std::string svg = "<svg viewBox='0 0 " + fixed_decimals(kWidth, 0) + " " +
                    fixed_decimals(kHeight, 0) +
                    "' role='img' aria-label='Perplexity over that of dense attention, against "
                    "the budget'>\n";
  const int decimals = ticks[1] - ticks[0] < 0.0099 ? 3 : 2;
  for (const double tick : ticks) {
    const bool is_dense = std::abs(tick - 1.0) < 1e-9;
    const std::string y = fixed_decimals(y_of(tick), 1);
    if (!is_dense) {
      svg += "<line x1='" + fixed_decimals(kLeft, 0) + "' x2='" + fixed_decimals(kRight, 0) +
             "' y1='" + y + "' y2='" + y + "' class='grid'/>\n";
    }
    svg += svg_text(kLeft - 8.0, y_of(tick) + 4.0, "end", "tick", fixed_decimals(tick, decimals));
  }
  const std::string dense_y = fixed_decimals(y_of(1.0), 1);
  svg += "<line x1='" + fixed_decimals(kLeft, 0) + "' x2='" + fixed_decimals(kRight, 0) + "' y1='" +
         dense_y + "' y2='" + dense_y + "' class='dense'/>\n";
  svg += svg_text(kLeft + 4.0, y_of(1.0) - 6.0, "start", "note", "dense attention");
  for (const auto& [text, x] : x_of) svg += svg_text(x, kBottom + 20.0, "middle", "tick", text);
  svg += svg_text((kLeft + kRight) / 2.0, kBottom + 42.0, "middle", "axis",
                  "budget (tokens attended at a refresh)");
  std::string legend = "<ul class='legend'>\n";
  for (const auto& [name, points] : series) {
    const EvaluateRow& style = *styles.at(name);
    const int colour = scorer_colour(style.scorer);
    const std::string stroke = "stroke='var(--s" + std::to_string(colour) +
                               ")' stroke-width='2' stroke-dasharray='" +
                               std::string(selection_dash(style.selection)) + "' fill='none'";
    const bool hollow = style.head_join == "mean";
    std::string path;
    std::string markers;
    for (const auto& [value, text] : budgets) {
      const auto point = points.find(text);
      if (point == points.end()) continue;
      const double ratio = point->second.sum / point->second.count;
      path += (path.empty() ? "M" : " L") + fixed_decimals(x_of.at(text), 1) + " " +
              fixed_decimals(y_of(ratio), 1);
      markers += svg_marker(x_of.at(text), y_of(ratio), colour, hollow,
                            name + ", budget " + text + ": " + fixed_decimals(ratio, 4));
    }
    svg += "<path d='" + path + "' " + stroke + "/>\n" + markers;
    legend +=
        "<li><svg viewBox='0 0 34 12' width='34' height='12' aria-hidden='true'><path d='M1 "
        "6 H33' " +
        stroke + "/>" + svg_marker(17.0, 6.0, colour, hollow, name) + "</svg>" + escape_html(name) +
        "</li>\n";
  }
  return svg + "</svg>\n" + legend + "</ul>\n";
}

/// "1 trial", "10 trials".
inline std::string trials_text(const EvaluateRow& row) {
  return with_thousands(row.trials) + (row.trials == 1 ? " trial" : " trials");
}

/// Room for a label of 12 px in a page's sans-serif font: the mean width of its characters and a
/// tenth. An estimate: the fonts are the reader's.
inline double label_width(std::string_view text) {
  const auto characters = std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;  // not of UTF-8's later bytes
  });
  return 7.0 * static_cast<double>(characters);
}

/// Share of digits right by depth (down) and length (across), shaded; dense in small below.
///
/// \param rows  with a depth, of one configuration
inline std::string depth_heat_map(std::span<const EvaluateRow* const> rows) {
  std::set<double> depths;
  std::set<std::int64_t> lengths;
  std::map<std::pair<double, std::int64_t>, const EvaluateRow*> cells;
  for (const EvaluateRow* row : rows) {
    depths.insert(*row->depth);
    lengths.insert(row->length);
    cells[{*row->depth, row->length}] = row;
  }
  constexpr double kCellWidth = 74.0;
  constexpr double kCellHeight = 46.0;
  constexpr double kLeft = 50.0;
  constexpr double kTop = 6.0;
  const double width = kLeft + kCellWidth * static_cast<double>(lengths.size()) + 4.0;
  const double height = kTop + kCellHeight * static_cast<double>(depths.size()) + 24.0;
  std::string svg = "<svg viewBox='0 0 " + fixed_decimals(width, 0) + " " +
                    fixed_decimals(height, 0) + "' width='" + fixed_decimals(width, 0) +
                    "' role='img' aria-label='Share of digits right by depth and length'>\n";
  double y = kTop;
  for (const double depth : depths) {
    svg += svg_text(kLeft - 8.0, y + kCellHeight / 2.0 + 4.0, "end", "tick",
                    fixed_decimals(100.0 * depth, 0) + " %");
    double x = kLeft;
    for (const std::int64_t length : lengths) {
      const auto cell = cells.find({depth, length});
      if (cell != cells.end()) {
        const EvaluateRow& row = *cell->second;
        const double shade = std::clamp(row.value, 0.0, 1.0);
        const std::string dense =
            row.dense_value ? "dense " + fixed_decimals(*row.dense_value, 2) : std::string();
        svg += "<g><title>" +
               escape_html("depth " + fixed_decimals(100.0 * depth, 0) + " %, " +
                           with_thousands(length) + " tokens: " + fixed_decimals(row.value, 3) +
                           " of the digits; " + (dense.empty() ? "" : dense + "; ") +
                           trials_text(row)) +
               "</title><rect x='" + fixed_decimals(x + 1.0, 1) + "' y='" +
               fixed_decimals(y + 1.0, 1) + "' width='" + fixed_decimals(kCellWidth - 2.0, 1) +
               "' height='" + fixed_decimals(kCellHeight - 2.0, 1) +
               "' rx='3' fill='var(--heat)' fill-opacity='" +
               fixed_decimals(0.06 + 0.94 * shade, 3) + "'/>";
        const std::string ink = shade > 0.7 ? "cell on" : "cell";
        const double middle = x + kCellWidth / 2.0;
        svg += svg_text(middle, y + (dense.empty() ? 21.0 : 16.0), "middle", ink,
                        fixed_decimals(row.value, 2));
        if (!dense.empty()) svg += svg_text(middle, y + 28.0, "middle", ink + " small", dense);
        svg += svg_text(middle, y + 39.0, "middle", ink + " small", trials_text(row));
        svg += "</g>\n";
      }
      x += kCellWidth;
    }
    y += kCellHeight;
  }
  double x = kLeft;
  for (const std::int64_t length : lengths) {
    svg += svg_text(x + kCellWidth / 2.0, y + 17.0, "middle", "tick", with_thousands(length));
    x += kCellWidth;
  }
  return svg + "</svg>\n";
}

/// What a retrieval row's value counts, as a reader may know it.
inline std::string_view retrieval_metric_name(std::string_view metric) {
  if (metric == "digits") return "digits";
  if (metric == "full") return "whole keys";
  if (metric == "forced") return "digits, forced";
  return metric;
}

/// The rows of one configuration together, in the order in which they first come.
inline std::vector<std::pair<std::string, std::vector<const EvaluateRow*>>> by_configuration(
    std::span<const EvaluateRow* const> rows) {
  std::vector<std::pair<std::string, std::vector<const EvaluateRow*>>> groups;
  for (const EvaluateRow* row : rows) {
    std::string name = series_name(*row) + ", B " + row->budget;
    if (row->second_look) name += ", look " + std::to_string(*row->second_look);
    auto at = std::find_if(groups.begin(), groups.end(),
                           [&](const auto& group) { return group.first == name; });
    if (at == groups.end()) at = groups.insert(groups.end(), {name, {}});
    at->second.push_back(row);
  }
  return groups;
}

/// Bars of the shares that are right, a group of them for each configuration and one for each
/// metric, with dense attention's share as a mark. Long names make the picture wider.
///
/// \param rows  over all depths, of one task and length
inline std::string retrieval_bars(std::span<const EvaluateRow* const> rows) {
  constexpr double kBars = 340.0;
  constexpr double kBar = 18.0;
  constexpr double kGap = 10.0;
  const auto groups = by_configuration(rows);
  double name_width = 0.0;
  double metric_width = 0.0;
  double value_width = 0.0;
  const auto value_text = [](const EvaluateRow& row) {
    std::string text = fixed_decimals(row.value, 2);
    if (row.dense_value) text += " (dense " + fixed_decimals(*row.dense_value, 2) + ")";
    return text + ", " + trials_text(row);
  };
  for (const auto& [name, group] : groups) {
    name_width = std::max(name_width, label_width(name));
    for (const EvaluateRow* row : group) {
      metric_width = std::max(metric_width, label_width(retrieval_metric_name(row->metric)));
      value_width = std::max(value_width, label_width(value_text(*row)));
    }
  }
  const double names_end = 8.0 + name_width;
  const double left = names_end + 16.0 + metric_width + 10.0;
  const double right = left + kBars;
  const double width = right + 10.0 + value_width + 8.0;
  const double height =
      kBar * static_cast<double>(rows.size()) + kGap * static_cast<double>(groups.size()) + 30.0;
  const auto x_of = [&](double share) { return left + share * kBars; };
  std::string svg = "<svg viewBox='0 0 " + fixed_decimals(width, 0) + " " +
                    fixed_decimals(height, 0) +
                    "' role='img' aria-label='Shares of digits and of whole keys right'>\n";
  for (int i = 0; i <= 4; ++i) {
    const double share = 0.25 * i;
    const std::string x = fixed_decimals(x_of(share), 1);
    svg += "<line x1='" + x + "' x2='" + x + "' y1='4' y2='" + fixed_decimals(height - 22.0, 1) +
           "' class='grid'/>\n";
    svg += svg_text(x_of(share), height - 6.0, "middle", "tick", fixed_decimals(share, 2));
  }
  double y = 6.0;
  for (const auto& [name, group] : groups) {
    svg += svg_text(names_end, y + 13.0, "end", "tick", name);
    for (const EvaluateRow* row : group) {
      const std::string metric(retrieval_metric_name(row->metric));
      svg += svg_text(left - 10.0, y + 13.0, "end", "axis", metric);
      svg += "<g><title>" +
             escape_html(name + ": " + fixed_decimals(row->value, 3) + " of " + metric + ", " +
                         trials_text(*row)) +
             "</title><rect x='" + fixed_decimals(left, 1) + "' y='" + fixed_decimals(y + 3.0, 1) +
             "' width='" +
             fixed_decimals(std::max(1.0, x_of(std::clamp(row->value, 0.0, 1.0)) - left), 1) +
             "' height='12' rx='2' fill='var(--s" + std::to_string(scorer_colour(row->scorer)) +
             ")' fill-opacity='" + (row->metric == "digits" ? "1" : "0.55") + "'/></g>\n";
      if (row->dense_value) {
        const std::string x = fixed_decimals(x_of(*row->dense_value), 1);
        svg += "<line x1='" + x + "' x2='" + x + "' y1='" + fixed_decimals(y + 1.0, 1) + "' y2='" +
               fixed_decimals(y + 17.0, 1) + "' class='mark'/>\n";
      }
      svg += svg_text(right + 10.0, y + 13.0, "start", "tick", value_text(*row));
      y += kBar;
    }
    y += kGap;
  }
  return svg + "</svg>\n";
}

}  // namespace chunkllm::detail
