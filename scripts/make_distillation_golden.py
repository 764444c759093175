#!/usr/bin/env python3
# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/data/attention_distillation.json: a training step of one layer by PyTorch.

The loss is written with PyTorch's own softmax and kl_div and differentiated by autograd, in f64 on
values that f32 holds exactly. Any version of PyTorch will do (pip install torch). Usage:
    scripts/make_distillation_golden.py tests/golden/data/attention_distillation.json
"""
import json
import math
import sys

import torch
from torch.nn.functional import kl_div

HIDDEN, HEADS, KEY_HEADS, KEY_DIM, BINS = 12, 4, 2, 3, 34
CHUNK_ENDS = [5, 12, 40, 44, 63, 90, 118]
TRIGGERS = [4, 11, 39, 43, 62, 70, 89, 117, 130]
CANDIDATE_ENDS = [0, 1, 2, 3, 4, 5, 5, 6, 7]
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 20.0, 0.0, 1.0, 0.5, 20.0]


def random_values(generator, *shape, deviation=1.0):
    """Multiples of 1/1024: short in text, exact in f32."""
    values = torch.randn(*shape, generator=generator, dtype=torch.float64) * deviation
    return torch.round(values * 1024) / 1024


def random_mass(generator):
    """Attention over the chunks; chunk 0 and what is not a chunk take a share, too."""
    logits = 1.5 * torch.randn(len(TRIGGERS), HEADS, len(CHUNK_ENDS) + 1, generator=generator,
                               dtype=torch.float64)
    return torch.round(torch.softmax(logits, -1)[..., 1:] * 2**20) / 2**20


def distillation_loss(adapter, inputs, pooled, mass):
    queries = (inputs @ adapter["query_weight"].T).view(-1, HEADS, KEY_DIM)
    keys = (pooled @ adapter["key_weight"].T).view(-1, KEY_HEADS, KEY_DIM)
    keys = keys.repeat_interleave(HEADS // KEY_HEADS, dim=1)
    logits = torch.einsum("rhd,chd->rhc", queries, keys) / math.sqrt(KEY_DIM)
    lengths = torch.tensor([end - begin for begin, end in zip([0] + CHUNK_ENDS, CHUNK_ENDS)])
    logits = logits + lengths.double().log()
    nulls = inputs @ adapter["null_weight"].T + adapter["null_bias"]
    loss = torch.zeros((), dtype=torch.float64)
    for row, (trigger, end, weight) in enumerate(zip(TRIGGERS, CANDIDATE_ENDS, WEIGHTS)):
        if end < 3:
            continue
        bins = [min(BINS - 1, math.floor(2 * math.log2(max(1, trigger - (chunk_end - 1)))))
                for chunk_end in CHUNK_ENDS[1:end]]
        bias = adapter["distance_bias"][:, bins]
        student = torch.cat([nulls[row, :, None], logits[row, :, 1:end] + bias], dim=1)
        shares = mass[row, :, 1:end]
        teacher = torch.cat([(1 - shares.sum(1, keepdim=True)).clamp(min=0), shares], dim=1)
        teacher = teacher / teacher.sum(1, keepdim=True)
        divergence = kl_div(torch.log_softmax(student, 1), teacher, reduction="none").sum(1)
        loss = loss + weight * divergence.mean()
    return loss


def main():
    generator = torch.Generator().manual_seed(11)
    adapter = {
        "query_weight": random_values(generator, HEADS * KEY_DIM, HIDDEN, deviation=0.4),
        "key_weight": random_values(generator, KEY_HEADS * KEY_DIM, HIDDEN, deviation=0.4),
        "distance_bias": random_values(generator, HEADS, BINS),
        "null_weight": random_values(generator, HEADS, HIDDEN, deviation=0.4),
        "null_bias": random_values(generator, HEADS),
    }
    inputs = random_values(generator, len(TRIGGERS), HIDDEN)
    pooled = random_values(generator, len(CHUNK_ENDS), HIDDEN)
    mass = random_mass(generator)
    for part in adapter.values():
        part.requires_grad_()
    loss = distillation_loss(adapter, inputs, pooled, mass)
    loss.backward()
    golden = {
        "hidden_size": HIDDEN, "num_heads": HEADS, "num_key_heads": KEY_HEADS, "key_dim": KEY_DIM,
        "chunk_ends": CHUNK_ENDS, "triggers": TRIGGERS, "candidate_ends": CANDIDATE_ENDS,
        "weights": WEIGHTS, "inputs": inputs.flatten().tolist(),
        "pooled": pooled.flatten().tolist(), "mass": mass.flatten().tolist(),
        "adapter": {name: part.flatten().tolist() for name, part in adapter.items()},
        "kl_sum": loss.item(),
        "gradient": {name: [float(f"{value:.10g}") for value in part.grad.flatten().tolist()]
                     for name, part in adapter.items()},
    }
    with open(sys.argv[1], "w", encoding="ascii") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


main()
