#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Checks rules of the source tree that no compiler checks.

usage: check_purity.py SOURCE_FOLDER

Headers never print, exit, abort or read the environment; parameters named in a docstring exist;
source files are ASCII, carry the licence line, stay below 900 lines and hold no unfinished work;
relative links in Markdown files resolve.
"""
import pathlib
import re
import sys

FOLDERS = ("include", "kernels", "tests", "benchmarks", "examples", "docs", "cmake", "scripts")
CODE = {".hpp", ".cpp", ".cu", ".cuh"}
LICENCE = "Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0"
MAX_LINES = 900

FORBIDDEN_IN_HEADERS = {
    r"\b(?:std::)?abort\s*\(": "abort",
    r"(?<![\w.>])(?:std::|::)?(?:_exit|quick_exit|exit)\s*\(": "exit",
    r"(?<![\w.>])(?:std::)?f?printf\s*\(": "printf",
    r"(?<![\w.>])(?:std::)?f?puts\s*\(": "puts",
    r"\bstd::(?:cout|cerr|clog|wcout|wcerr)\b": "standard streams",
    r"\b(?:secure_)?getenv\b": "getenv",
    r"#\s*include\s*<(?:iostream|regex|format|print|expected|ranges)>": "that standard header",
    r"\bstd::(?:views|ranges::views)\b": "std::views",
    r"\busing\s+namespace\b": "using namespace",
    r"\bnamespace\s*\{": "an anonymous namespace",
    r"\bthrow\b(?!\s*\()": "throw",
}
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
COMMENT_OR_LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)


def without_comments_and_literals(text):
    """The text with comments and literals blanked, its line numbers unchanged."""
    return COMMENT_OR_LITERAL.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def check_header(text):
    # Include lines keep their names: they are matched on the text with comments blanked too.
    code = without_comments_and_literals(text)
    for pattern, what in FORBIDDEN_IN_HEADERS.items():
        for match in re.finditer(pattern, code):
            yield code.count("\n", 0, match.start()) + 1, f"a header must not use {what}"
    if "#pragma once" not in text:
        yield 1, "no #pragma once"


def check_docstrings(text):
    """Each \\param of a docstring must stand in the declaration that follows it."""
    for match in re.finditer(r"(?:^[ \t]*///[^\n]*\n)+", text, re.MULTILINE):
        declaration = re.split(r";|\{(?!\})", without_comments_and_literals(text[match.end() :]), 1)[0]
        names = set(re.findall(r"\w+", declaration))
        for param in re.finditer(r"\\t?param(?:\[[a-z, ]+\])?\s+(\w+(?:, \w+)*)", match.group()):
            line = text.count("\n", 0, match.start() + param.start()) + 1
            for name in param.group(1).split(", "):
                if name not in names:
                    yield line, f"the docstring's parameter {name} is not in the declaration"


def check_code(path, text, raw):
    for number, line in enumerate(raw.split(b"\n"), 1):
        if any(byte > 126 or (byte < 32 and byte != 9) for byte in line):
            yield number, "not printable ASCII"
    if LICENCE not in text[:200]:
        yield 1, f"the licence line is missing: {LICENCE}"
    num_lines = text.count("\n")
    if num_lines > MAX_LINES and "generated" not in path.name:
        yield num_lines, f"more than {MAX_LINES} lines"


def check_links(path, text):
    text = re.sub(r"```.*?```", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", lambda m: " " * len(m.group()), text)
    for match in re.finditer(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text):
        target = match.group(1)
        if re.match(r"[a-z]+:", target):
            continue
        if not (path.parent / target).exists():
            yield text.count("\n", 0, match.start()) + 1, f"link to {target}, which does not exist"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = pathlib.Path(sys.argv[1])
    paths = [p for folder in FOLDERS for p in sorted((root / folder).rglob("*")) if p.is_file()]
    paths += sorted(root.glob("*.md"))
    num_checked = num_problems = 0
    for path in paths:
        relative = path.relative_to(root)
        raw = path.read_bytes()
        is_script = raw.startswith(b"#!")
        if path.suffix not in CODE | {".md"} and not is_script:
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        num_checked += 1
        problems = []
        if path.suffix in CODE or is_script:
            problems += check_code(path, text, raw)
        if path.suffix in CODE and relative.parts[0] in ("include", "kernels"):
            problems += check_header(text)
            problems += check_docstrings(text)
        if relative.parts[0] in ("include", "kernels", "examples", "benchmarks"):
            problems += [
                (text.count("\n", 0, m.start()) + 1, f"unfinished work: {m.group()}")
                for m in UNFINISHED.finditer(text)
            ]
        if path.suffix == ".md":
            problems += check_links(path, text)
        for line, problem in problems:
            print(f"{relative}:{line}: {problem}")
        num_problems += len(problems)
    print(f"{num_checked} files checked, {num_problems} problems")
    sys.exit(num_problems > 0 or num_checked == 0)


if __name__ == "__main__":
    main()
