// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// expect: nodiscard

#include "chunkllm/core/status.hpp"

chunkllm::Result<int> count() {
  return 3;
}

int main() {
#if defined(CHUNKLLM_COMPILE_FAIL)
  count();
#else
  return count().ok() ? 0 : 1;
#endif
}
