// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The only version numbers of the project; CMakeLists.txt parses them.
#define CHUNKLLM_VERSION_MAJOR 0
#define CHUNKLLM_VERSION_MINOR 1
#define CHUNKLLM_VERSION_PATCH 0
#define CHUNKLLM_VERSION_STRING "0.1.0"
