#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes the seed inputs of the file-format fuzzers under tests/fuzz/corpus: gguf, safetensors,
config_json and adapter. (Those of tokenizer and sentences are texts, written by hand.)

usage: make_fuzz_corpus.py [CORPUS_FOLDER]

Needs only Python's standard library. The files are small and deterministic.
"""
import json
import math
import pathlib
import struct
import sys

NUMBERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"),
           "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"),
           "f64": (12, "d")}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 12: (256, 144),
          14: (256, 210), 30: (1, 2)}


def gguf_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_elements(kind, values):
    if kind == "string":
        return 8, b"".join(map(gguf_string, values))
    number, code = NUMBERS[kind]
    return number, b"".join(struct.pack("<" + code, value) for value in values)


def gguf_value(kind, value):
    if isinstance(value, list):
        number, encoding = gguf_elements(kind, value)
        return struct.pack("<IIQ", 9, number, len(value)) + encoding
    number, encoding = gguf_elements(kind, [value])
    return struct.pack("<I", number) + encoding


def pad(data, alignment=32):
    return data + b"\0" * (-len(data) % alignment)


def gguf(values, tensors):
    """values: [(key, kind, value)]; tensors: [(name, dims, type id)], filled with a pattern."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, kind, value in values:
        head += gguf_string(key) + gguf_value(kind, value)
    data = b""
    for name, dims, type_id in tensors:
        data = pad(data)
        head += gguf_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", type_id, len(data))
        count = 1
        for dim in dims:
            count *= dim
        block, num_bytes = BLOCKS[type_id]
        data += bytes((7 * i + 3) % 251 for i in range(count // block * num_bytes))
    return pad(head) + data


def gguf_files():
    def config(arch):
        return [("general.architecture", "string", arch), (f"{arch}.block_count", "u32", 1),
                (f"{arch}.context_length", "u64", 64), (f"{arch}.embedding_length", "u32", 8),
                (f"{arch}.feed_forward_length", "u32", 16),
                (f"{arch}.attention.head_count", "u32", 2),
                (f"{arch}.attention.head_count_kv", "i32", [1]),
                (f"{arch}.attention.layer_norm_rms_epsilon", "f32", 1e-5)]

    embedding = ("token_embd.weight", [8, 4], 0)
    yield "llama", gguf(
        config("llama") + [("llama.rope.scaling.type", "string", "yarn"),
                           ("llama.rope.scaling.factor", "f32", 4.0),
                           ("llama.rope.freq_base", "f32", 1e5),
                           ("tokenizer.ggml.tokens", "string", ["a", "b", "", "\u0120c"]),
                           ("tokenizer.ggml.eos_token_id", "u32", 2)],
        [embedding, ("output_norm.weight", [8], 0), ("rope_freqs.weight", [2], 0)])
    yield "qwen3", gguf(config("qwen3") + [("qwen3.attention.key_length", "u32", 16)],
                        [embedding, ("blk.0.attn_q_norm.weight", [16], 30)])
    byte_level = [("tokenizer.ggml.model", "string", "gpt2"),
                  ("tokenizer.ggml.pre", "string", "llama-bpe"),
                  ("tokenizer.ggml.tokens", "string", ["a", "b", "ab", "<s>", "</s>", "\u0120"]),
                  ("tokenizer.ggml.token_type", "i32", [1, 1, 1, 3, 4, 1]),
                  ("tokenizer.ggml.merges", "string", ["a b"]),
                  ("tokenizer.ggml.bos_token_id", "u32", 3),
                  ("tokenizer.ggml.eos_token_id", "u32", 4),
                  ("tokenizer.chat_template", "string",
                   "{{ '<|im_start|>system\\nHi<|im_end|>' + message['content'] }}"
                   "{% if add_generation_prompt %}")]
    yield "tokenizer", gguf(byte_level, [])
    yield "values", gguf([(kind, kind, 1) for kind in NUMBERS] +
                         [("s", "string", "text"), ("array", "f64", [1.0, -2.0]),
                          ("general.alignment", "u32", 32)], [])
    yield "tensors", gguf([], [(f"t{type_id}", [max(block, 4), 2], type_id)
                               for type_id, (block, _) in BLOCKS.items()])
    nested = gguf_string("nested") + struct.pack("<IIQIQBB", 9, 9, 1, 0, 2, 1, 2)
    yield "nested", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested
    yield "big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


def safetensors(header, data, **json_style):
    text = json.dumps(header, **json_style).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_files():
    yield "empty", safetensors({}, b"")
    yield "types", safetensors(
        {"__metadata__": {"format": "pt"},
         "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
         "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
         "c": {"dtype": "F16", "shape": [1, 2], "data_offsets": [32, 36]},
         "d": {"dtype": "I64", "shape": [], "data_offsets": [36, 44]},
         "e": {"dtype": "F4", "shape": [2], "data_offsets": [44, 45]}}, bytes(range(45)))
    yield "hole", safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
                              bytes(8))
    yield "overflow", safetensors(
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b"")


def adapter(num_type, settings, shapes):
    """A file of docs/adapter_format.md; `shapes`: {tensor: (shape, value or list of values)}."""
    metadata = {"format": "chunkllm.adapter", "format_version": "1",
                "model.fingerprint": "0123456789abcdef", "model.architecture": "llama",
                "model.num_layers": "2", "model.hidden_size": "4", "model.num_heads": "2",
                "model.num_kv_heads": "1", "model.head_dim": "2", "model.vocab_size": "9",
                "guards.min_len": "4", "guards.max_len": "128"}
    header, data = {"__metadata__": metadata | settings}, b""
    for name, (shape, value) in sorted(shapes.items()):
        count = math.prod(shape)
        values = value if isinstance(value, list) else [value] * count
        if num_type == "BF16":  # the upper half of an f32
            encoding = b"".join(struct.pack("<f", v)[2:] for v in values)
        else:
            encoding = struct.pack(f"<{count}{'f' if num_type == 'F32' else 'e'}", *values)
        header[name] = {"dtype": num_type, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(encoding)]}
        data += encoding
    return safetensors(header, data, separators=(",", ":"), sort_keys=True)


def adapter_files():
    chunk = {"chunk_adapter.weight": ([4], [1.0, -1.0, 0.5, 0.0]), "chunk_adapter.bias": ([1], -2.0)}
    threshold = {"chunk_adapter.threshold": "0.5"}
    scoring = {"qk_adapter.num_heads": "2", "qk_adapter.num_key_heads": "1",
               "qk_adapter.key_dim": "2", "qk_adapter.head_join": "max",
               "qk_adapter.null_threshold": "0"}
    layers, terms = {}, {}
    for layer in ("layers.0.", "layers.1."):
        layers |= {layer + "query.weight": ([4, 4], 0.5), layer + "key.weight": ([2, 4], -0.25)}
        terms |= {layer + "distance_bias": ([2, 34], 0.125), layer + "null.weight": ([2, 4], 1.0),
                  layer + "null.bias": ([2], -1.0)}
    yield "chunk_bf16", adapter("BF16", threshold, chunk)
    yield "qk_f16", adapter(
        "F16", scoring | {"qk_adapter.pooling": "end", "qk_adapter.log_length": "false"}, layers)
    yield "both_f32", adapter(
        "F32", threshold | scoring | {"qk_adapter.pooling": "mean", "qk_adapter.log_length": "true",
                                      "note": "x"}, chunk | layers | terms)


def config_files():
    base = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 100, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "eos_token_id": [1, 2]}
    yield "llama3", base | {"rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}
    yield "yarn", base | {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "mscale": 0.7,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 128}}
    yield "qwen2", base | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True,
                           "sliding_window": 16, "max_window_layers": 1}
    yield "qwen3", base | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32,
                           "sliding_window": 16, "use_sliding_window": True,
                           "layer_types": ["full_attention", "sliding_attention"]}
    yield "mistral", base | {"architectures": ["MistralForCausalLM"], "sliding_window": None}


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    files = {f"gguf/{name}.gguf": data for name, data in gguf_files()}
    files |= {f"safetensors/{name}.safetensors": data for name, data in safetensors_files()}
    files |= {f"adapter/{name}.safetensors": data for name, data in adapter_files()}
    for name, config in config_files():
        files[f"config_json/{name}.json"] = json.dumps(config).encode()
    files["config_json/with_generation"] = (files["config_json/llama3.json"] +
                                            b'\0{"eos_token_id": 3, "bos_token_id": null}')
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


main()
