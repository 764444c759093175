// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

/// Asks for a host loop to be unrolled; nvcc's front end does not know the pragma.
#if defined(__CUDACC__)
#define CHUNKLLM_UNROLL(count)
#else
#define CHUNKLLM_DETAIL_PRAGMA(text) _Pragma(#text)
#define CHUNKLLM_UNROLL(count) CHUNKLLM_DETAIL_PRAGMA(GCC unroll count)
#endif
