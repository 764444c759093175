#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Compares the library's token ids and decoded texts with the reference's, on generated strings.

Usage: scripts/compare_tokenizers.py --program BUILD/tokenizer_parity --gguf SmolLM2.gguf

`tokenizer_parity` is built from tests/golden/tokenizer_parity.cpp. Exit status 1 on any difference.
"""
import argparse
import json
import subprocess
import sys

from make_tokenizer_goldens import DATA, added_token_texts, reference_tokenizers
from tokenizer_test_strings import StringGenerator


def run_program(program, tokenizer_path, requests):
    text = "".join(json.dumps(request) + "\n" for request in requests)
    result = subprocess.run(
        [program, tokenizer_path], input=text, capture_output=True, encoding="utf-8", check=True
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def compare(name, reference, program, path, strings, seed):
    """Number of differences; the first ones are printed."""
    generator = StringGenerator(seed, added_token_texts(reference))
    texts = [generator.string() for _ in range(strings)]
    known = list(range(reference.get_vocab_size()))
    id_lists = [generator.ids(known) for _ in range(strings // 5)]
    expected = [{"ids": encoding.ids} for encoding in reference.encode_batch(texts)]
    decoded = reference.decode_batch(id_lists, skip_special_tokens=False)
    expected += [{"text": text} for text in decoded]
    requests = [{"text": text} for text in texts] + [{"ids": ids} for ids in id_lists]
    actual = run_program(program, path, requests)
    assert len(actual) == len(expected), f"{len(actual)} answers to {len(expected)} requests"
    different = [i for i, (a, e) in enumerate(zip(actual, expected)) if a != e]
    for i in different[:5]:
        print(f"{name}: {ascii(requests[i])}\n  expected {ascii(expected[i])}\n  actual   {ascii(actual[i])}")
    num_ids = sum(len(e["ids"]) for e in expected[:strings])
    print(
        f"{name}: {len(texts)} strings ({len(set(texts))} distinct, {num_ids} ids) and "
        f"{len(id_lists)} id lists compared, {len(different)} differ"
    )
    return len(different)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    num_different = 0
    for name, reference in reference_tokenizers(args.gguf).items():
        path = args.gguf if name == "smollm2" else str(DATA / f"tokenizer_{name}.json")
        num_different += compare(name, reference, args.program, path, args.strings, args.seed)
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
