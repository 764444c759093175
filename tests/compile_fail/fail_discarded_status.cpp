// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// expect: nodiscard

#include "chunkllm/core/status.hpp"

chunkllm::Status parse() {
  return chunkllm::invalid_file("expected 4 bytes");
}

int main() {
#if defined(CHUNKLLM_COMPILE_FAIL)
  parse();
#else
  return parse().ok() ? 0 : 1;
#endif
}
