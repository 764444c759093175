// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "help_formatter.hpp"

#include <cstddef>
#include <sstream>
#include <utility>

namespace chunkllm::cli {
namespace {

constexpr std::size_t kColumns = 100;

/// `text` in a column of its own to the right of `name`, or below it where the name is too long.
std::string two_columns(const std::string& name, const std::string& text, std::size_t left) {
  std::string lines;
  std::string line = "  " + name;
  if (line.size() >= left) {
    lines = line + "\n";
    line.clear();
  }
  line.resize(left, ' ');
  bool is_fresh = true;  // no word of the text is in the line
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!is_fresh && line.size() + 1 + word.size() > kColumns) {
      lines += line + "\n";
      line.assign(left, ' ');
      is_fresh = true;
    }
    line += (is_fresh ? "" : " ") + word;
    is_fresh = false;
  }
  line.resize(line.find_last_not_of(' ') + 1);
  return lines + line + "\n";
}

}  // namespace

std::string HelpFormatter::make_usage(const CLI::App* app, std::string name) const {
  return Formatter::make_usage(app, std::move(name)) + "\n";
}

std::string HelpFormatter::make_group(std::string group, bool is_positional,
                                      std::vector<const CLI::Option*> options) const {
  // Without the empty line of the base class in front: it puts one behind each group, too.
  std::string text = group + ":\n";
  for (const CLI::Option* option : options) text += make_option(option, is_positional);
  return text;
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  return two_columns(make_option_name(option, is_positional) + make_option_opts(option),
                     make_option_desc(option), get_column_width());
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  return two_columns(command->get_display_name(true), command->get_description(),
                     get_column_width());
}

}  // namespace chunkllm::cli
