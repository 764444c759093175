// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/html_report.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/version.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

EvaluateRow perplexity_row(const std::string& scorer, const std::string& budget, double ratio) {
  EvaluateRow row;
  row.task = row.metric = "perplexity";
  row.length = 8192;
  row.budget = budget;
  row.scorer = scorer;
  row.head_join = "max";
  row.selection = "layer";
  row.value = 20.0 * ratio;
  row.dense_value = 20.0;
  row.attended_share = 0.25;
  row.trials = 9;
  return row;
}

EvaluateRow passkey_row(double depth, double digits) {
  EvaluateRow row = perplexity_row("mean-key", "1024", 1.0);
  row.task = "passkey";
  row.metric = "digits";
  row.length = 4000;
  row.depth = depth;
  row.second_look = 64;
  row.value = digits;
  row.dense_value = 0.95;
  return row;
}

HtmlReportHeader titled(const std::string& title) {
  HtmlReportHeader header;
  header.title = title;
  return header;
}

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// Every element is closed by its own name, in order: what any parser can read.
void expect_well_formed(const std::string& html) {
  std::vector<std::string> open;
  std::size_t at = html.find("<html");
  while ((at = html.find('<', at)) != html.npos) {
    const std::size_t end = html.find('>', at);
    ASSERT_NE(end, html.npos);
    const bool closes = html[at + 1] == '/';
    const std::size_t name_begin = at + (closes ? 2 : 1);
    const std::string name =
        html.substr(name_begin, html.find_first_of(" >/", name_begin) - name_begin);
    if (closes) {
      ASSERT_FALSE(open.empty()) << name;
      EXPECT_EQ(open.back(), name);
      open.pop_back();
    } else if (html[end - 1] != '/' && name != "meta") {
      open.push_back(name);
      if (name == "style") {
        at = html.find("</style", end);
        continue;
      }
    }
    at = end;
  }
  EXPECT_TRUE(open.empty());
}

TEST(HtmlReport, EscapesAllText) {
  EXPECT_EQ(detail::escape_html("a<b>&\"'\x01"), "a&lt;b&gt;&amp;&quot;&#39; ");
  const std::string evil = "<script>alert('x')</script>";
  EvaluateRow row = perplexity_row(evil, evil, 1.5);
  row.head_join = row.selection = evil;
  EvaluateRow key = passkey_row(0.5, 0.5);
  key.scorer = key.budget = evil;
  EvaluateRow all = key;
  all.depth.reset();
  const std::vector<EvaluateRow> rows = {row, key, all};
  const std::string html = render_html_report({evil, evil, evil, evil, evil, evil, evil}, rows);
  EXPECT_EQ(html.find("<script"), html.npos);
  EXPECT_GE(count(html, "&lt;script&gt;"), 16U);
  expect_well_formed(html);
}

TEST(HtmlReport, HoldsCurvesMapsBarsAndTheTable) {
  std::vector<EvaluateRow> rows;
  for (const char* budget : {"512", "1024", "2048"}) {
    rows.push_back(perplexity_row("recent", budget, 1.1));
    rows.push_back(perplexity_row("oracle-next", budget, 1.02));
  }
  for (const double depth : {0.1, 0.9}) rows.push_back(passkey_row(depth, depth));
  EvaluateRow all = passkey_row(0.0, 0.5);
  all.depth.reset();
  rows.push_back(all);
  const std::string html =
      render_html_report({"A title", "a model", "a device", "a day", "x y", "a text", ""}, rows);
  expect_well_formed(html);
  EXPECT_EQ(count(html, "<path"), 4U);  // two curves, two lines in the legend
  EXPECT_EQ(count(html, "budget 1024: 1.0200"), 1U);
  EXPECT_EQ(count(html, "fill='var(--heat)'"), 2U);
  EXPECT_EQ(count(html, "class='mark'"), 1U);
  EXPECT_EQ(count(html, "<tr>"), 1U + rows.size());
  EXPECT_NE(html.find("A title"), html.npos);
  // Nothing is loaded from elsewhere and nothing runs.
  for (const char* part : {"http", "src=", "href", "@import", "url(", "<script"}) {
    EXPECT_EQ(html.find(part), html.npos) << part;
  }
}

TEST(HtmlReport, ShowsDigitsWholeKeysAndForcedDigits) {
  std::vector<EvaluateRow> rows;
  for (const char* budget : {"512", "1024"}) {
    for (const auto& [metric, value] :
         {std::pair<const char*, double>{"digits", 0.61}, {"full", 0.42}, {"forced", 0.83}}) {
      EvaluateRow row = passkey_row(0.0, value);
      row.depth.reset();
      row.budget = budget;
      row.metric = metric;
      rows.push_back(row);
    }
  }
  const std::string html = render_html_report(titled("t"), rows);
  expect_well_formed(html);
  EXPECT_EQ(count(html, "class='mark'"), 6U);
  EXPECT_EQ(count(html, "<rect "), 6U);
  // A configuration's name stands once, in front of its bars.
  EXPECT_EQ(count(html, ">mean-key, heads max, each layer, B 512, look 64<"), 1U);
  for (const char* part :
       {"0.610 of digits,", "0.420 of whole keys,", "0.830 of digits, forced,"}) {
    EXPECT_EQ(count(html, part), 2U) << part;
  }
  for (const char* label : {">0.61 (dense 0.95), 9 trials<", ">0.42 (dense 0.95), 9 trials<",
                            ">0.83 (dense 0.95), 9 trials<"}) {
    EXPECT_EQ(count(html, label), 2U) << label;
  }
}

TEST(HtmlReport, SaysWhatWasMeasuredAndWithWhichVersion) {
  std::vector<EvaluateRow> rows = {perplexity_row("recent", "512", 1.1),
                                   perplexity_row("mean-key", "1024", 1.0), passkey_row(0.5, 0.5)};
  rows[2].trials = 1;
  EvaluateRow f1;
  f1.task = "boundary-f1";
  f1.metric = "f1";
  f1.length = 77777;  // of the whole text: no length that was asked for
  rows.push_back(f1);
  HtmlReportHeader header = titled("t");
  header.model = "a model";
  header.text = "a text";
  const std::string html = render_html_report(header, rows);
  expect_well_formed(html);
  EXPECT_EQ(count(html,
                  ">Measured: perplexity, passkey and boundary-f1 of a model on a text, at 8,192 "
                  "and 4,000 tokens, budget 512 and 1024, chunks ranked by recent and mean-key; "
                  "dense attention on the same tokens stands beside.<"),
            1U);
  EXPECT_EQ(count(html, ">chunkllm " CHUNKLLM_VERSION_STRING "<"), 1U);
  EXPECT_EQ(count(html, ">1 trial<"), 1U);
  for (const char* metric :
       {"<dt>digits</dt>", "<dt>whole keys (full)</dt>", "<dt>digits, forced (forced)</dt>"}) {
    EXPECT_EQ(count(html, metric), 1U) << metric;
  }
  EXPECT_EQ(count(html, "<p class='notice'>"), 0U);
  header.notice = "Partial: 3 of 8 rows so far.";
  EXPECT_EQ(
      count(render_html_report(header, rows), "<p class='notice'>Partial: 3 of 8 rows so far.</p>"),
      1U);
}

/// The number in front of which `text` has `key`, from `at` on.
double number_behind(const std::string& text, std::string_view key, std::size_t at) {
  const std::size_t found = text.find(key, at);
  return found == text.npos ? std::numeric_limits<double>::quiet_NaN()
                            : std::stod(text.substr(found + key.size()));
}

TEST(HtmlReport, LongLabelsStayInsideThePicture) {
  for (const std::size_t length : {1U, 40U, 200U}) {
    EvaluateRow row = passkey_row(0.0, 0.5);
    row.depth.reset();
    row.scorer = std::string(length, 'w');
    const EvaluateRow* const rows[] = {&row};
    const std::string svg = detail::retrieval_bars(rows);
    const double width = number_behind(svg, "viewBox='0 0 ", 0);
    // The name ends at its x and reaches to the left; 12 px letters are 6 to 7 px wide on average.
    const std::size_t name = svg.rfind("<text", svg.find(">" + detail::series_name(row)));
    ASSERT_NE(name, svg.npos);
    const auto characters = static_cast<double>(detail::series_name(row).size() + 17);
    EXPECT_GE(number_behind(svg, "x='", name), 6.5 * characters) << length;
    // The value begins at its x and reaches to the right.
    const std::string value = "0.50 (dense 0.95), 9 trials";
    const std::size_t label = svg.rfind("<text", svg.find(">" + value));
    ASSERT_NE(label, svg.npos);
    EXPECT_GE(width - number_behind(svg, "x='", label), 6.5 * static_cast<double>(value.size()))
        << length;
    // No bar begins on a name.
    EXPECT_GT(number_behind(svg, "<rect x='", 0), number_behind(svg, "x='", name)) << length;
  }
}

TEST(HtmlReport, SurvivesNoRowsAndOddValues) {
  expect_well_formed(render_html_report(titled("t"), {}));
  std::vector<EvaluateRow> rows = {
      perplexity_row("recent", "512", std::numeric_limits<double>::quiet_NaN()),
      perplexity_row("recent", "512", std::numeric_limits<double>::infinity()),
      perplexity_row("mean-key", "25%", 1.0), passkey_row(0.5, 7.0)};
  rows[2].dense_value = 0.0;
  const std::string html = render_html_report(titled("t"), rows);
  expect_well_formed(html);
  EXPECT_EQ(html.find("nan"), html.npos);
  EXPECT_EQ(html.find("='inf"), html.npos);
}

TEST(HtmlReport, FormatsNumbersWithoutTheLocale) {
  EXPECT_EQ(detail::fixed_decimals(1.25, 2), "1.25");
  EXPECT_EQ(detail::fixed_decimals(-0.5, 0), "-0");
  EXPECT_EQ(detail::fixed_decimals(std::numeric_limits<double>::infinity(), 2), "n/a");
  EXPECT_EQ(detail::with_thousands(999), "999");
  EXPECT_EQ(detail::with_thousands(1000), "1,000");
  EXPECT_EQ(detail::with_thousands(1234567), "1,234,567");
  EXPECT_EQ(detail::with_thousands(-1234), "-1,234");
  const std::vector<double> ticks = detail::nice_ticks(0.9997, 1.33, 5);
  ASSERT_EQ(ticks.size(), 5U);
  EXPECT_NEAR(ticks.front(), 1.0, 1e-12);
  EXPECT_NEAR(ticks.back(), 1.4, 1e-12);
}

TEST(HtmlReport, WritesTheFileWhole) {
  const testing::TempFolder folder;
  const std::vector<EvaluateRow> rows = {perplexity_row("recent", "512", 1.1)};
  const HtmlReportHeader header{"t", "m", "d", "day", "c", "text", ""};
  ASSERT_TRUE(write_html_report(folder.file("r.html"), header, rows).ok());
  std::stringstream text;
  text << std::ifstream(folder.file("r.html")).rdbuf();
  EXPECT_EQ(text.str(), render_html_report(header, rows));
  EXPECT_EQ(folder.num_entries(), 1U);
  EXPECT_FALSE(write_html_report(folder.path(), header, rows).ok());
}

}  // namespace
}  // namespace chunkllm
