#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes the tokenizer test data under tests/golden/data.

Usage: scripts/make_tokenizer_goldens.py --gguf SmolLM2-135M-Instruct.gguf

- tokenizer_llama3_style.json, tokenizer_qwen2_style.json: small tokenizers trained here;
- tokenizer_golden.jsonl: texts with the reference's ids, id lists with the reference's text, for
  both and for SmolLM2's tokenizer, rebuilt from the GGUF file's metadata.

Needs Python 3.11 (Unicode 14 and the training text), tokenizers==0.23.3, gguf==0.19.0.
"""
import argparse
import json
import pathlib
import pydoc_data.topics

import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

from tokenizer_test_strings import TRAPS, StringGenerator

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/data"
TOKENIZERS_VERSION = "0.23.3"
SEED = 20260101
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + LETTERS + r"|\p{N}{1,3}" + REST
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + LETTERS + r"|\p{N}" + REST

# The first article of the Universal Declaration of Human Rights: merges in several scripts.
ARTICLES = [
    "Alle Menschen sind frei und gleich an W\u00fcrde und Rechten geboren.",
    "Tous les \u00eatres humains naissent libres et \u00e9gaux en dignit\u00e9 et en droits.",
    "\u0412\u0441\u0435 \u043b\u044e\u0434\u0438 \u0440\u043e\u0436\u0434\u0430\u044e\u0442\u0441\u044f \u0441\u0432\u043e\u0431\u043e\u0434\u043d\u044b\u043c\u0438 \u0438 \u0440\u0430\u0432\u043d\u044b\u043c\u0438",
    "\u4eba\u4eba\u751f\u800c\u81ea\u7531,\u5728\u5c0a\u4e25\u548c\u6743\u5229\u4e0a\u4e00\u5f8b\u5e73\u7b49\u3002",
    "\u3059\u3079\u3066\u306e\u4eba\u9593\u306f\u3001\u751f\u307e\u308c\u306a\u304c\u3089\u306b\u3057\u3066\u81ea\u7531\u3067\u3042\u308a",
    "\ubaa8\ub4e0 \uc778\uac04\uc740 \ud0dc\uc5b4\ub0a0 \ub54c\ubd80\ud130 \uc790\uc720\ub85c\uc6b0\uba70",
    "\u064a\u0648\u0644\u062f \u062c\u0645\u064a\u0639 \u0627\u0644\u0646\u0627\u0633 \u0623\u062d\u0631\u0627\u0631\u0627",
    "\u0938\u092d\u0940 \u092e\u0928\u0941\u0937\u094d\u092f\u094b\u0902 \u0915\u094b \u0917\u094c\u0930\u0935",
]  # fmt: skip


def training_lines():
    for _, topic in sorted(pydoc_data.topics.topics.items()):
        yield from topic.splitlines(keepends=True)
    for article in ARTICLES:
        for _ in range(40):
            yield article + "\n"


def train(pattern, normalizer, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(), trainer)
    return tokenizer


def make_llama3_style():
    """Merges as strings, ignore_merges, a begin token, added tokens with every flag."""
    tokenizer = train(LLAMA3_PATTERN, None, 2400)
    tokenizer.add_special_tokens(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<pad>", rstrip=True)])
    tokenizer.add_tokens(
        [
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("<", normalized=False),
            AddedToken("<<", normalized=False, single_word=True, rstrip=True),
            AddedToken(" \n ", normalized=True),
            AddedToken("\u65e5\u672c", normalized=True, lstrip=True),
        ]
    )
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
            ),
        ]
    )
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    model["ignore_merges"] = True
    # Words that their merges no longer reach, so that ignore_merges matters.
    model["merges"] = [" ".join(m) for i, m in enumerate(model["merges"]) if i % 9 != 8]
    return document


def make_qwen2_style():
    """Merges as pairs, NFC, added tokens outside the vocabulary."""
    tokenizer = train(QWEN2_PATTERN, normalizers.NFC(), 2200)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(
        [
            AddedToken("<think>", normalized=False),
            AddedToken("</think>", normalized=False),
            AddedToken("caf\u0065\u0301", normalized=True),
            AddedToken("\u00c5ngstrom", normalized=True, single_word=True, rstrip=True),
            AddedToken("e\u0301t", normalized=False, lstrip=True),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return json.loads(tokenizer.to_str())


def smollm2_from_gguf(path):
    """SmolLM2's tokenizer as a `tokenizers` object."""
    fields = GGUFReader(path).fields
    read = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    assert read("model") == "gpt2" and read("pre") == "smollm"
    tokens = read("tokens")
    merges = [tuple(merge.split(" ")) for merge in read("merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, read("token_type")) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def reference_tokenizers(gguf):
    """The three tokenizers of the tests by name; the trained ones as committed."""
    assert tokenizers.__version__ == TOKENIZERS_VERSION, f"needs tokenizers=={TOKENIZERS_VERSION}"
    return {
        "smollm2": smollm2_from_gguf(gguf),
        "llama3_style": Tokenizer.from_file(str(DATA / "tokenizer_llama3_style.json")),
        "qwen2_style": Tokenizer.from_file(str(DATA / "tokenizer_qwen2_style.json")),
    }


def added_token_texts(tokenizer):
    return [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]


def write_lines(path, rows):
    text = "\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {len(rows)} lines, {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--strings", type=int, default=1500)
    args = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    write_lines(DATA / "tokenizer_llama3_style.json", [make_llama3_style()])
    write_lines(DATA / "tokenizer_qwen2_style.json", [make_qwen2_style()])
    references = reference_tokenizers(args.gguf)
    added = [text for tokenizer in references.values() for text in added_token_texts(tokenizer)]
    generator = StringGenerator(SEED, added)
    texts = TRAPS + [generator.string(3) for _ in range(args.strings - len(TRAPS))]
    rows = [
        {"text": text, **{name: t.encode(text).ids for name, t in references.items()}}
        for text in texts
    ]
    for name, tokenizer in references.items():
        known = list(range(tokenizer.get_vocab_size()))
        for _ in range(50):
            ids = generator.ids(known)
            rows.append({name: ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    write_lines(DATA / "tokenizer_golden.jsonl", rows)


if __name__ == "__main__":
    main()
