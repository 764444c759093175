// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "typed_kv_runner.hpp"

namespace chunkllm::cli {

const KvRunner& bf16_runner() {
  static const TypedKvRunner<BF16> runner;
  return runner;
}

}  // namespace chunkllm::cli
