#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes the golden files of the model tests: tests/golden/data/<model>/.

Tiny random models of every supported kind come with their weights; SmolLM2's files hold token ids
and results only. Everything is computed by transformers in f32 with eager attention.

usage: make_model_goldens.py [--output DIR] [--smollm2 FILE.gguf] [--work DIR] [--python PYTHON]

Without --python a virtual environment with the pinned packages is made in the work folder. Without
--smollm2 only the tiny models are written. The three books for SmolLM2 come out of Debian packages
(apt-get download, dpkg -x), into the work folder.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

PINS = {"torch": "2.9.1", "transformers": "5.23.0", "safetensors": "0.8.0", "gguf": "0.19.0"}
PINS_EXTRA = ["numpy", "tokenizers", "accelerate"]  # any version: no result depends on it

TINY_LEN = 96  # tokens of a tiny model's text
TINY_PROMPT_LEN = 24
TINY_NUM_GREEDY = 20

BOOK_LEN = 2000
BOOK_NUM_GREEDY = 32
# Name, Debian package, file in it, text that the excerpt starts with, prompt of the greedy tokens.
BOOKS = [
    ("opticks", "golang-1.19-src",
     "usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt",
     "My Design in this Book is not to explain the Properties of Light",
     "By the Rays of Light I understand"),
    ("austen", "r-cran-janeaustenr",
     "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
     "Emma Woodhouse, handsome, clever, and rich",
     "Emma Woodhouse, handsome, clever, and rich, with a"),
    ("sawyer", "golang-github-klauspost-compress-dev",
     "usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt",
     "TOM!\"\n",
     "Tom appeared on the sidewalk with a bucket of whitewash and"),
]


def parse_arguments():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=root / "tests/golden/data")
    parser.add_argument("--smollm2", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=root / "build/goldens")
    parser.add_argument("--python")
    parser.add_argument("--only", help="write this one of the tiny models")
    return parser.parse_args()


def installed_versions():
    from importlib import metadata
    versions = {}
    for name in PINS:
        try:
            versions[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def run_under_pinned_python(args):
    """Replaces this process by one whose packages have the pinned versions."""
    if installed_versions() == PINS:
        return
    if os.environ.get("CHUNKLLM_GOLDENS_CHILD"):
        sys.exit(f"{sys.executable} has {installed_versions()}, expected {PINS}")
    python = args.python
    if python is None:
        folder = args.work / "venv"
        python = str(folder / "bin/python")
        if not pathlib.Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pins = [f"{name}=={version}" for name, version in PINS.items()]
        subprocess.run([python, "-m", "pip", "install", "-q", *pins, *PINS_EXTRA], check=True)
    os.environ["CHUNKLLM_GOLDENS_CHILD"] = "1"
    os.execv(python, [python, *sys.argv])


# ---------------------------------------------------------------------------- tiny models


def tiny_models():
    """Name -> (class of the configuration, its arguments, type of the saved weights)."""
    import transformers as hf
    base = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=99, max_position_embeddings=256,
                bos_token_id=1, eos_token_id=2, pad_token_id=None, tie_word_embeddings=False)
    two_heads = dict(base, num_attention_heads=2, num_key_value_heads=1)  # head_dim 16
    with_bias = dict(base, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5)
    llama, qwen2 = hf.LlamaConfig, hf.Qwen2Config
    return {
        "llama": (llama, with_bias, "float32"),
        "llama_bf16": (llama, with_bias, "bfloat16"),
        "llama_f16": (llama, with_bias, "float16"),
        "llama_rope_linear": (llama, dict(two_heads, rope_parameters=dict(
            rope_type="linear", rope_theta=10000.0, factor=4.0)), "float32"),
        "llama_rope_llama3": (llama, dict(two_heads, rope_parameters=dict(
            rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=64)), "float32"),
        "llama_rope_yarn": (llama, dict(two_heads, rope_parameters=dict(
            rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0,
            original_max_position_embeddings=64)), "float32"),
        "qwen2": (qwen2, dict(base, num_hidden_layers=3, tie_word_embeddings=True,
                              use_sliding_window=True, sliding_window=16, max_window_layers=1),
                  "float32"),
        "qwen3": (hf.Qwen3Config, dict(base, head_dim=16, num_attention_heads=4), "float32"),
        "mistral": (hf.MistralConfig, dict(base, sliding_window=20), "float32"),
    }


def randomise(model, seed):
    """Weights with enough spread for sharp attention and uneven probabilities."""
    import torch
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.25 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.6 * noise)
            else:
                parameter.copy_(1.4 / parameter.shape[1] ** 0.5 * noise)


def token_nll(model, ids):
    import torch
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        log_probs = torch.log_softmax(logits[:-1].double(), dim=-1)
    return [-float(log_probs[t, ids[t + 1]]) for t in range(len(ids) - 1)]


def greedy_tokens(model, prompt, count):
    """The next `count` best tokens, each from a whole forward pass, and the closest call's gap."""
    import torch
    ids, smallest_gap = list(prompt), float("inf")
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = torch.topk(logits, 2)
        smallest_gap = min(smallest_gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt):], smallest_gap


def write_json(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="ascii")


def write_tiny_model(name, config_class, arguments, dtype, folder):
    import torch
    import transformers as hf
    config = config_class(**arguments)
    model = hf.AutoModelForCausalLM.from_config(config)
    randomise(model, seed=20 + len(name))
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Read back: the files are what is to be reproduced, and `to` has rounded RoPE's buffers too.
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                    attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, config.vocab_size, (TINY_LEN,), generator=generator).tolist()
    greedy, gap = greedy_tokens(model, ids[:TINY_PROMPT_LEN], TINY_NUM_GREEDY)
    nll = token_nll(model, ids)
    write_json(folder / "golden.json", {
        "ids": ids, "nll": [round(value, 7) for value in nll],
        "prompt_len": TINY_PROMPT_LEN, "greedy": greedy})
    print(f"{name}: mean nll {sum(nll) / len(nll):.3f}, {len(set(greedy))} different greedy "
          f"tokens, smallest gap of logits {gap:.2e}")


# -------------------------------------------------------------------------------- SmolLM2


def book_text(package, path, work):
    folder = work / package
    file = folder / path
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder)], check=True)
    if file.suffix != ".rdb":
        return file.read_text(encoding="utf-8")
    novels = work / "novels"
    novels.mkdir(exist_ok=True)
    extract = pathlib.Path(__file__).resolve().parent / "lib/extract_austen.py"
    subprocess.run([sys.executable, str(extract), str(file), str(novels)], check=True)
    return (novels / "austen-emma.txt").read_text(encoding="utf-8")


def write_smollm2(gguf, output, work):
    import torch
    import transformers as hf
    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    tokenizer = hf.AutoTokenizer.from_pretrained(**source)
    model = hf.AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager").eval()
    output.mkdir(parents=True, exist_ok=True)
    for name, package, path, start, prompt in BOOKS:
        text = book_text(package, path, work).replace("\r\n", "\n")
        first = text.index(start)
        ids = tokenizer.encode(text[first:first + 8 * BOOK_LEN], add_special_tokens=False)
        ids = ids[:BOOK_LEN]
        nll = token_nll(model, ids)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        greedy, gap = greedy_tokens(model, prompt_ids, BOOK_NUM_GREEDY)
        write_json(output / f"{name}.json", {
            "ids": ids, "nll": [round(value, 6) for value in nll],
            "prompt": prompt_ids, "greedy": greedy})
        print(f"smollm2 {name}: {len(ids)} tokens, mean nll {sum(nll) / len(nll):.4f}, smallest "
              f"gap of logits {gap:.2e}, {prompt!r} -> {tokenizer.decode(greedy)!r}", flush=True)


def main():
    args = parse_arguments()
    run_under_pinned_python(args)
    args.work.mkdir(parents=True, exist_ok=True)
    for name, (config_class, arguments, dtype) in tiny_models().items():
        if args.only in (None, name):
            write_tiny_model(name, config_class, arguments, dtype, args.output / name)
    if args.smollm2 is not None:
        write_smollm2(args.smollm2, args.output / "smollm2", args.work)


if __name__ == "__main__":
    main()
