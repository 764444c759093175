#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes include/chunkllm/text/unicode_classes_generated.hpp from the Unicode Character Database.

Usage: scripts/generate_unicode_tables.py [--ucd /usr/share/unicode] [--output FILE]

The UCD files come from Debian's package unicode-data. The output depends only on them.
"""
import argparse
import pathlib
import re

NUM_CODE_POINTS = 0x110000
BLOCK_SIZE = 128
# Bits of a class byte; unicode_classes.hpp names the same values.
LETTER, NUMBER, WHITE_SPACE, WORD, MARK, NFC_INERT = 1, 2, 4, 8, 16, 32
LINE_WIDTH = 100


def read_property(path, wanted):
    """Code points of each property in `wanted` from a "range ; name [; value]" file."""
    found = {name: set() for name in wanted}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = [field.strip() for field in line.split("#")[0].split(";")]
        if len(fields) < 2:
            continue
        name = ";".join(fields[1:])
        if name in found:
            first, _, last = fields[0].partition("..")
            found[name].update(range(int(first, 16), int(last or first, 16) + 1))
    return found


def read_unicode_data(path):
    """Per code point: general category, canonical combining class, canonical decomposition."""
    category = ["Cn"] * NUM_CODE_POINTS
    combining_class = [0] * NUM_CODE_POINTS
    decomposition = {}
    range_start = None
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.split(";")
        code_point = int(fields[0], 16)
        if fields[1].endswith(", First>"):
            range_start = code_point
            continue
        first = code_point if range_start is None else range_start
        range_start = None
        for c in range(first, code_point + 1):
            category[c] = fields[2]
            combining_class[c] = int(fields[3])
        if fields[5] and not fields[5].startswith("<"):
            decomposition[code_point] = [int(c, 16) for c in fields[5].split()]
    return category, combining_class, decomposition


def full_decomposition(code_point, decomposition):
    if code_point not in decomposition:
        return [code_point]
    return [d for c in decomposition[code_point] for d in full_decomposition(c, decomposition)]


def two_stage(values):
    """Splits a table into the index of each block of BLOCK_SIZE and the distinct blocks."""
    index, blocks, position = [], [], {}
    for start in range(0, NUM_CODE_POINTS, BLOCK_SIZE):
        block = tuple(values[start : start + BLOCK_SIZE])
        if block not in position:
            position[block] = len(position)
            blocks.extend(block)
        index.append(position[block])
    assert len(position) <= 256, "a block index no longer fits a byte"
    return index, blocks


def array(declaration, values, hexadecimal=False):
    lines, line = [], ""
    for value in values:
        text = (f"0x{value:X}" if hexadecimal else str(value)) + ","
        if len(line) + len(text) > LINE_WIDTH:
            lines.append(line)
            line = ""
        line += text
    lines.append(line)
    body = "\n".join(lines)
    return f"inline constexpr {declaration}[{len(values)}] = {{\n{body}}};\n"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ucd", type=pathlib.Path, default=pathlib.Path("/usr/share/unicode"))
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=root / "include/chunkllm/text/unicode_classes_generated.hpp",
    )
    args = parser.parse_args()

    category, combining_class, decomposition = read_unicode_data(args.ucd / "UnicodeData.txt")
    properties = read_property(args.ucd / "PropList.txt", ["White_Space", "Join_Control"])
    alphabetic = read_property(args.ucd / "DerivedCoreProperties.txt", ["Alphabetic"])["Alphabetic"]
    normalization = read_property(
        args.ucd / "DerivedNormalizationProps.txt",
        ["NFC_QC;N", "NFC_QC;M", "Full_Composition_Exclusion"],
    )
    version = re.search(
        r"-(\d+\.\d+\.\d+)\.txt", (args.ucd / "PropList.txt").read_text(encoding="utf-8")
    ).group(1)

    classes = []
    for c in range(NUM_CODE_POINTS):
        bits = 0
        if category[c][0] == "L":
            bits |= LETTER
        if category[c][0] == "N":
            bits |= NUMBER
        if category[c][0] == "M":
            bits |= MARK
        if c in properties["White_Space"]:
            bits |= WHITE_SPACE
        if (
            c in alphabetic
            or category[c][0] == "M"
            or category[c] in ("Nd", "Pc")
            or c in properties["Join_Control"]
        ):
            bits |= WORD
        changes = c in normalization["NFC_QC;N"] or c in normalization["NFC_QC;M"]
        if combining_class[c] == 0 and not changes:
            bits |= NFC_INERT
        classes.append(bits)

    class_index, class_blocks = two_stage(classes)
    ccc_index, ccc_blocks = two_stage(combining_class)

    decomposed = sorted(decomposition)
    pool, offsets = [], []
    for c in decomposed:
        offsets.append(len(pool))
        pool.extend(full_decomposition(c, decomposition))
    offsets.append(len(pool))

    compositions = sorted(
        (*parts, c)
        for c, parts in decomposition.items()
        if len(parts) == 2 and c not in normalization["Full_Composition_Exclusion"]
    )

    parts = [
        "// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0\n"
        f"// Generated by scripts/generate_unicode_tables.py from Unicode {version}; do not edit.\n"
        "#pragma once\n\n#include <cstdint>\n\n// clang-format off\n"
        "namespace chunkllm::detail {\n\n"
        f'inline constexpr char kUnicodeVersion[] = "{version}";\n'
        f"inline constexpr std::uint32_t kUnicodeBlockSize = {BLOCK_SIZE};\n",
        "// Class bits of code point c: blocks[index[c / block size] * block size + c % block size].\n"
        + array("std::uint8_t kUnicodeClassIndex", class_index),
        array("std::uint8_t kUnicodeClassBlocks", class_blocks),
        "// Canonical combining classes, laid out in the same way.\n"
        + array("std::uint8_t kCombiningClassIndex", ccc_index),
        array("std::uint8_t kCombiningClassBlocks", ccc_blocks),
        "// Full canonical decompositions without Hangul: code points ascending, their pool ranges.\n"
        + array("std::uint32_t kDecomposedCodePoints", decomposed, True),
        array("std::uint16_t kDecompositionOffsets", offsets),
        array("std::uint32_t kDecompositionPool", pool, True),
        "// Primary composites without Hangul as (first, second, composite), ascending.\n"
        + array("std::uint32_t kCompositions", [c for row in compositions for c in row], True),
        "}  // namespace chunkllm::detail\n// clang-format on\n",
    ]
    args.output.write_text("\n".join(parts), encoding="ascii")
    print(f"{args.output}: Unicode {version}, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
