// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "options.hpp"

namespace chunkllm::cli {

/// A line on stderr that is drawn over and over, and removed at the end: how much is done, the
/// rate, and the time left at that rate. Nothing is shown under --quiet or where stderr is no
/// terminal.
class ProgressBar {
 public:
  ProgressBar(const CommonOptions& options, std::string label, std::int64_t total);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();

  /// \return false once the user has asked to stop: what progress callbacks of the library expect
  bool update(std::int64_t done);
  /// The same where the total is known only now.
  bool update(std::int64_t done, std::int64_t total);

  /// Another text in front of the bar, from the next update on.
  void set_label(std::string label) { label_ = std::move(label); }

  /// `status`, and where the work was interrupted, how far it came: "interrupted after 3 of 8
  /// tokens".
  ///
  /// \param unit  of the total, in the singular
  [[nodiscard]] Status with_progress(const Status& status, std::string_view unit) const;

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  std::int64_t done_ = 0;
  std::int64_t total_;
  bool shown_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_draw_;
};

}  // namespace chunkllm::cli
