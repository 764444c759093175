// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "second_unit.hpp"

#include <chunkllm/chunkllm.hpp>

std::string version_in_second_unit() {
  return CHUNKLLM_VERSION_STRING;
}
