#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes Jane Austen's novels, kept in an R package's lazy-load database, as plain text files.

usage: extract_austen.py Rdata.rdb OUTPUT_FOLDER

The database is a row of records: the unpacked size (big-endian uint32), then a zlib stream of R's
XDR serialisation. Records that hold a character vector are the novels, one string a line.
"""
import pathlib
import struct
import sys
import zlib

STRSXP, CHARSXP = 16, 9


def read_lines(data):
    """The strings of a serialised character vector, or None for any other R object."""
    if data[:2] != b"X\n":
        return None
    version = struct.unpack_from(">i", data, 2)[0]
    pos = 14
    if version >= 3:  # the name of the native encoding follows
        pos += 4 + struct.unpack_from(">i", data, pos)[0]
    flags, count = struct.unpack_from(">ii", data, pos)
    if flags & 0xFF != STRSXP:
        return None
    pos += 8
    lines = []
    for _ in range(count):
        flags, size = struct.unpack_from(">ii", data, pos)
        if flags & 0xFF != CHARSXP:
            raise ValueError(f"R object type {flags & 0xFF} inside a character vector, expected 9")
        pos += 8
        lines.append(data[pos : pos + max(size, 0)].decode("utf-8"))
        pos += max(size, 0)
    return lines


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    database = pathlib.Path(sys.argv[1]).read_bytes()
    folder = pathlib.Path(sys.argv[2])
    pos = 0
    while pos + 4 < len(database):
        stream = zlib.decompressobj()
        record = stream.decompress(database[pos + 4 :])
        pos = len(database) - len(stream.unused_data)
        lines = read_lines(record)
        if lines is None:
            continue
        title = next(line for line in lines if line.strip()).strip()
        name = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
        (folder / f"austen-{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
