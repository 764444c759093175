// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "typed_kv_runner.hpp"

namespace chunkllm::cli {

const KvRunner& f32_runner() {
  static const TypedKvRunner<float> runner;
  return runner;
}

}  // namespace chunkllm::cli
