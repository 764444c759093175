// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

namespace chunkllm::cli {

/// From here on the first SIGINT or SIGTERM only sets the flag below, so that work ends cleanly;
/// a second one ends the program at once. A closed pipe becomes a write error, not a signal.
void install_signal_handlers();

/// Whether the user has asked to stop.
bool interrupted();

}  // namespace chunkllm::cli
