// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

/// The version as the second translation unit sees it.
std::string version_in_second_unit();

#if defined(CONSUMER_HAS_CUDA)
/// Bytes of a row of 64 Q8_0 values, computed in a .cu file.
int q8_0_row_bytes_in_cuda_unit();
#endif
