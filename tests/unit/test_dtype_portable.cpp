// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// test_dtype.cpp over the code for targets without F16C. The namespace gets another name, so that
// both versions of the same inline functions can live in one program.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#undef __F16C__
#define chunkllm chunkllm_portable
#define CHUNKLLM_DTYPE_SUITE DTypeConversionPortable
#include "test_dtype.cpp"
