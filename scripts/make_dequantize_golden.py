#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes tests/support/dequantize_golden.hpp: one block of each GGUF type and its values.

The oracle is the `gguf` package (pip install gguf==0.19.0 numpy). Usage:
    scripts/make_dequantize_golden.py tests/support/dequantize_golden.hpp
"""
import sys

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

TYPES = {"q8_0": (32, 34, [0]), "q4_0": (32, 18, [0]), "q4_1": (32, 20, [0, 2]),
         "q4_k": (256, 144, [0, 2]), "q6_k": (256, 210, [208])}


def random_block(rng, num_bytes, scale_offsets):
    block = rng.integers(0, 256, num_bytes, dtype=np.uint8)
    for offset in scale_offsets:  # finite halves of ordinary size, one of them negative
        value = np.float16(rng.normal(0, 0.05))
        block[offset:offset + 2] = np.frombuffer(value.tobytes(), np.uint8)
    return block


def array(ctype, name, values, text):
    lines, line = [], "   "
    for value in values:
        item = " " + text(value) + ","
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    body = "\n".join(lines)
    return f"inline constexpr std::array<{ctype}, {len(values)}> {name} = {{\n{body}\n}};\n"


def main():
    rng = np.random.default_rng(20)
    parts = []
    for name, (_, num_bytes, scale_offsets) in TYPES.items():
        qtype = gguf.GGMLQuantizationType[name.upper()]
        block = random_block(rng, num_bytes, scale_offsets)
        values = dequantize(block.reshape(1, -1), qtype).astype(np.float32).reshape(-1)
        title = "k" + name.title().replace("_", "")
        parts.append(array("std::uint8_t", title + "Block", block, lambda v: f"0x{v:02x}"))
        parts.append(array("std::uint32_t", title + "Values", values.view(np.uint32),
                           lambda v: f"0x{v:08x}"))
    values = rng.normal(0, 1, 32).astype(np.float32)
    parts.append(array("std::uint32_t", "kQuantizeInput", values.view(np.uint32),
                       lambda v: f"0x{v:08x}"))
    for name in ("q8_0", "q4_0", "q4_1"):
        block = quantize(values.reshape(1, -1), gguf.GGMLQuantizationType[name.upper()])
        title = "kQuantized" + name.title().replace("_", "")
        parts.append(array("std::uint8_t", title, block.reshape(-1), lambda v: f"0x{v:02x}"))
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0\n"
                   "// Written by scripts/make_dequantize_golden.py; floats as their bits.\n"
                   "// clang-format off\n#pragma once\n\n#include <array>\n#include <cstdint>\n\n"
                   "namespace chunkllm::testing {\n\n" + "\n".join(parts) +
                   "\n}  // namespace chunkllm::testing\n")


main()
