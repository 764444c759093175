// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

/// Marks functions that host and device code share; nothing where no CUDA compiler is at work.
#if defined(__CUDACC__)
#define CHUNKLLM_HD __host__ __device__
#else
#define CHUNKLLM_HD
#endif
