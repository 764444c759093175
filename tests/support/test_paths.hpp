// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <string>

namespace chunkllm::testing {

/// tests/golden/data of the source tree.
inline std::string golden_dir() {
#ifdef CHUNKLLM_GOLDEN_DIR
  return CHUNKLLM_GOLDEN_DIR;
#else
  return "tests/golden/data";
#endif
}

/// The SmolLM2 model file: the environment's CHUNKLLM_TEST_MODEL, else the one the build was told
/// of; "" where there is none.
inline std::string model_path() {
  if (const char* path = std::getenv("CHUNKLLM_TEST_MODEL")) return path;
#ifdef CHUNKLLM_MODEL_PATH
  return CHUNKLLM_MODEL_PATH;
#else
  return "";
#endif
}

}  // namespace chunkllm::testing
