// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// expect: no matching function|no viable conversion|conversion from|could not convert

#include "chunkllm/core/tensor_view.hpp"

// A frozen weight must not become writable by taking a view of a view.
float first(chunkllm::MatrixView<const float> weights) {
#if defined(CHUNKLLM_COMPILE_FAIL)
  chunkllm::MatrixView<float> view = weights;
#else
  chunkllm::MatrixView<const float> view = weights;
#endif
  return view.row(0)[0];
}
