// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "progress_bar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "interrupt.hpp"
#include "output.hpp"
#include "stopwatch.hpp"

namespace chunkllm::cli {
namespace {

/// 75 as "1:15", 3675 as "1:01:15".
std::string format_time(double seconds) {
  constexpr double kLongest = 99.0 * 3600.0;  // beyond it nobody counts minutes
  const auto whole = static_cast<std::int64_t>(std::min(seconds, kLongest) + 0.5);
  const std::int64_t hours = whole / 3600;
  if (hours == 0) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", hours, whole / 60 % 60, whole % 60);
}

}  // namespace

ProgressBar::ProgressBar(const CommonOptions& options, std::string label, std::int64_t total)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      shown_(!options.quiet && stderr_is_terminal()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) write_stderr("\r\x1b[K");
}

bool ProgressBar::update(std::int64_t done, std::int64_t total) {
  total_ = std::max<std::int64_t>(total, 1);
  return update(done);
}

bool ProgressBar::update(std::int64_t done) {
  done_ = done;
  constexpr auto kRedrawAfter = std::chrono::milliseconds(100);
  constexpr std::int64_t kWidth = 30;
  const Clock::time_point now = Clock::now();
  if (shown_ && (!drawn_ || now - last_draw_ >= kRedrawAfter)) {
    const double per_second = rate(done, std::chrono::duration<double>(now - start_).count());
    const auto filled =
        static_cast<std::size_t>(std::clamp<std::int64_t>(done * kWidth / total_, 0, kWidth));
    std::string line = fmt::format("\r\x1b[K{} [{:<{}}] {}/{}  {:.0f}/s", label_,
                                   std::string(filled, '#'), kWidth, done, total_, per_second);
    if (per_second > 0.0) {
      const auto rest = static_cast<double>(std::max<std::int64_t>(total_ - done, 0));
      line += fmt::format("  {} left", format_time(rest / per_second));
    }
    write_stderr(line);
    std::fflush(stderr);
    last_draw_ = now;
    drawn_ = true;
  }
  return !interrupted();
}

Status ProgressBar::with_progress(const Status& status, std::string_view unit) const {
  if (status.code() != StatusCode::kInterrupted) return status;
  return Status(StatusCode::kInterrupted,
                fmt::format("interrupted after {} of {}", done_, counted(total_, unit)));
}

}  // namespace chunkllm::cli
