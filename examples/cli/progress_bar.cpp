// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "progress_bar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "interrupt.hpp"
#include "output.hpp"
#include "stopwatch.hpp"

namespace chunkllm::cli {

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
  constexpr auto kRedrawAfter = std::chrono::milliseconds(100);
  constexpr std::int64_t kWidth = 30;
  const Clock::time_point now = Clock::now();
  if (shown_ && (!drawn_ || now - last_draw_ >= kRedrawAfter)) {
    const double per_second = rate(done, std::chrono::duration<double>(now - start_).count());
    const auto filled =
        static_cast<std::size_t>(std::clamp<std::int64_t>(done * kWidth / total_, 0, kWidth));
    write_stderr(fmt::format("\r\x1b[K{} [{:<{}}] {}/{}  {:.0f}/s", label_,
                             std::string(filled, '#'), kWidth, done, total_, per_second));
    std::fflush(stderr);
    last_draw_ = now;
    drawn_ = true;
  }
  return !interrupted();
}

}  // namespace chunkllm::cli
