#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Scores the sentence rules against pySBD.

Build the dump program first:
  g++ -std=c++20 -O2 -I include tests/golden/sentence_dump.cpp -o sentence_dump
Then, for any plain text files:
  compare_sentences.py --dump ./sentence_dump book.txt ...
and, to score the causal rules on a tokenizer's tokens as well:
  compare_sentences.py --dump ./sentence_dump --gguf model.gguf book.txt ...

Paragraphs (text between blank lines) are unwrapped to one line each, the first --bytes of the
result are kept, and pySBD 0.3.4 (English, clean=False) splits each paragraph. A boundary is the
byte offset just past a sentence's last non-space byte; on tokens, the token that holds that byte.
The end of the text is left out of every score.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import tempfile


def unwrap(text, num_bytes):
    paragraphs, lines = [], []
    for line in text.replace("\r\n", "\n").split("\n") + [""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            paragraphs.append(" ".join(lines))
            lines = []
    kept, size = [], 0
    for paragraph in paragraphs:
        size += len(paragraph.encode()) + 2
        if size > num_bytes:
            break
        kept.append(paragraph)
    return kept


def oracle_ends(paragraphs, cache):
    """pySBD's boundaries as byte offsets into "\\n\\n".join(paragraphs)."""
    digest = hashlib.sha256("\n\n".join(paragraphs).encode()).hexdigest()[:16]
    path = cache / f"pysbd-{digest}.json" if cache else None
    if path and path.exists():
        return json.loads(path.read_text())
    import pysbd

    segmenter = pysbd.Segmenter(language="en", clean=False)
    ends, offset = [], 0
    for paragraph in paragraphs:
        cursor, found = 0, set()
        for sentence in segmenter.segment(paragraph):
            sentence = sentence.strip()
            at = paragraph.find(sentence, cursor)
            if not sentence or at < 0:
                continue
            cursor = at + len(sentence)
            found.add(len(paragraph[:cursor].encode()))
        found.add(len(paragraph.encode()))
        ends += [offset + end for end in sorted(found)]
        offset += len(paragraph.encode()) + 2
    if path:
        path.write_text(json.dumps(ends))
    return ends


def f1(predicted, actual, within=0):
    """Greedy one-to-one match of two sorted lists, |difference| <= within."""
    hits, i, j = 0, 0, 0
    while i < len(predicted) and j < len(actual):
        if abs(predicted[i] - actual[j]) <= within:
            hits, i, j = hits + 1, i + 1, j + 1
        elif predicted[i] < actual[j]:
            i += 1
        else:
            j += 1
    precision = hits / len(predicted) if predicted else 1.0
    recall = hits / len(actual) if actual else 1.0
    score = 2 * hits / (len(predicted) + len(actual)) if predicted or actual else 1.0
    return precision, recall, score


def show(name, scores):
    print(f"  {name:<44} P {scores[0]:.3f}  R {scores[1]:.3f}  F1 {scores[2]:.3f}")


def print_differences(raw, predicted, actual, limit):
    wrong = [(end, "extra") for end in set(predicted) - set(actual)]
    wrong += [(end, "missed") for end in set(actual) - set(predicted)]
    for end, kind in sorted(wrong)[:limit]:
        left = raw[max(0, end - 60) : end].decode("utf-8", "replace")
        right = raw[end : end + 30].decode("utf-8", "replace")
        print(f"    {kind}: {left!r} | {right!r}")


def run_dump(dump, raw, extra=()):
    result = subprocess.run([dump, *extra], input=raw, stdout=subprocess.PIPE, check=True)
    return [int(value) for value in result.stdout.split()]


def load_tokenizer(path):
    """The SmolLM tokenizer (single digits, then GPT-2's split) from GGUF metadata."""
    import gguf
    import tokenizers
    from tokenizers import models, pre_tokenizers

    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return tokenizer


def token_lengths(tokenizer, text):
    # One symbol of a byte-level token stands for one byte.
    lengths = [len(token) for token in tokenizer.encode(text).tokens]
    assert sum(lengths) == len(text.encode()), "the tokenizer lost bytes"
    return lengths


def to_tokens(ends, lengths):
    found, token, stop = [], 0, lengths[0]
    for end in ends:
        while stop < end:
            token += 1
            stop += lengths[token]
        if not found or found[-1] != token:
            found.append(token)
    return found


def show_lengths(name, boundaries, num_tokens, min_len, max_len):
    """Chunk lengths after the guards a chunk table applies."""
    lengths, forced, start, wanted = [], 0, 0, set(boundaries)
    for token in range(num_tokens):
        length = token + 1 - start
        is_forced = length >= max_len and token not in wanted
        if (token in wanted and length >= min_len) or is_forced:
            lengths.append(length)
            forced += is_forced
            start = token + 1
    if not lengths:
        return
    lengths.sort()
    print(
        f"  {name:<44} chunks {len(lengths)}  mean {sum(lengths) / len(lengths):.1f}"
        f"  median {lengths[len(lengths) // 2]}  p95 {lengths[len(lengths) * 95 // 100]}"
        f"  forced {100 * forced / len(lengths):.1f}%"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", type=pathlib.Path)
    parser.add_argument("--dump", required=True, help="the built tests/golden/sentence_dump.cpp")
    parser.add_argument("--gguf", help="a SmolLM GGUF file: score the causal rules on its tokens")
    parser.add_argument("--bytes", type=int, default=200_000, help="bytes kept of each text")
    parser.add_argument("--cache", type=pathlib.Path, help="folder that keeps pySBD's answers")
    parser.add_argument("--show", type=int, default=0, help="print this many differences")
    parser.add_argument("--min-len", type=int, default=4, help="guard, tokens")
    parser.add_argument("--max-len", type=int, default=128, help="guard, tokens")
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.gguf) if args.gguf else None
    for path in args.texts:
        paragraphs = unwrap(path.read_text("utf-8", "replace"), args.bytes)
        text = "\n\n".join(paragraphs)
        raw = text.encode()
        oracle = [end for end in oracle_ends(paragraphs, args.cache) if end < len(raw)]
        rules = [end for end in run_dump(args.dump, raw) if end < len(raw)]
        inner = set(range(len(raw)))
        offset = 0
        for paragraph in paragraphs:
            offset += len(paragraph.encode())
            inner.discard(offset)
            offset += 2
        print(f"{path.name}: {len(raw)} bytes, {len(oracle)} pySBD boundaries")
        show("sentence_ends against pySBD", f1(rules, oracle))
        show(
            "  inside paragraphs only",
            f1([e for e in rules if e in inner], [e for e in oracle if e in inner]),
        )
        if not tokenizer:
            print_differences(raw, rules, oracle, args.show)
            continue

        lengths = token_lengths(tokenizer, text)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(map(str, lengths)))
            file.flush()
            causal = run_dump(args.dump, raw, ["--token-lengths", file.name])
        last = len(lengths) - 1
        causal, labels, rule_labels = (
            [token for token in tokens if token != last]
            for tokens in (causal, to_tokens(oracle, lengths), to_tokens(rules, lengths))
        )
        for name, actual in (("pySBD", labels), ("sentence_ends", rule_labels)):
            show(f"causal against {name}, exact token", f1(causal, actual))
            show(f"causal against {name}, within one", f1(causal, actual, within=1))
        for name, tokens in (("causal", causal), ("pySBD", labels)):
            show_lengths(f"lengths: {name}", tokens, len(lengths), args.min_len, args.max_len)
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        print_differences(
            raw, [starts[t + 1] for t in causal], [starts[t + 1] for t in labels], args.show
        )


if __name__ == "__main__":
    main()
