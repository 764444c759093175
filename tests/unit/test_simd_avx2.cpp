// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// test_simd.cpp over the AVX2 code, where the compiler targets AVX2 or more. The namespace gets
// another name, so that several versions of the same inline functions can live in one program.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#undef __AVX512F__
#define chunkllm chunkllm_avx2
#define CHUNKLLM_SIMD_SUITE SimdAvx2
#include "test_simd.cpp"
