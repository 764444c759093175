// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include <chunkllm/chunkllm.hpp>

#include "second_unit.hpp"

int main() {
  if (version_in_second_unit() != CHUNKLLM_VERSION_STRING) return 1;
  if (chunkllm::invalid_file("x").code() != chunkllm::StatusCode::kInvalidFile) return 2;
#if defined(CONSUMER_HAS_CUDA)
  if (q8_0_row_bytes_in_cuda_unit() != 68) return 3;
#endif
  return 0;
}
