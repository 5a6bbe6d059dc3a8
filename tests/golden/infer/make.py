#!/usr/bin/env python3
"""Distributions after transformers' logits processors, for src/infer/sample.rs. Writes sampling.json beside itself.

Needs torch and transformers (made with 5.6.0). Everything is computed in f64 on f32 logits. The processors are those that
`generate` puts together, in its order; presence and frequency penalties follow OpenAI's formula
(mu[j] -= c[j] * alpha_frequency + (c[j] > 0) * alpha_presence, c counted over the answer), after the repetition penalty.
"""

import json
import os

import numpy as np
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

HERE = os.path.dirname(os.path.abspath(__file__))
# Nearer to a border than this, f32 rounding of a penalised logit could change what is kept: another seed is taken.
MARGIN = 1e-4
DEFAULT = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
               frequency_penalty=0.0)


def warp(logits, history, prompt_len, s, nudge=0.0):
    """Probabilities (vocabulary). `nudge` moves every border, to see whether one is near."""
    ids = torch.tensor([history], dtype=torch.long)
    x = torch.tensor([logits], dtype=torch.float64)
    if s["repetition_penalty"] != 1.0:
        x = RepetitionPenaltyLogitsProcessor(s["repetition_penalty"])(ids, x)
    count = torch.bincount(ids[0, prompt_len:], minlength=x.shape[1]).to(torch.float64)
    x = x - count * s["frequency_penalty"] - (count > 0) * s["presence_penalty"]
    if s["temperature"] != 1.0:
        x = TemperatureLogitsWarper(s["temperature"])(ids, x)
    if s["top_k"]:
        x = TopKLogitsWarper(s["top_k"])(ids, x)
    if s["top_p"] < 1.0:
        x = TopPLogitsWarper(min(max(s["top_p"] + nudge, 0.0), 1.0))(ids, x)
    if s["min_p"]:
        x = MinPLogitsWarper(min(s["min_p"] + nudge, 1.0))(ids, x)
    return x.softmax(-1)[0].tolist()


def random_case(rng, vocab, **settings):
    s = {**DEFAULT, **settings}
    while True:
        logits = (rng.standard_normal(vocab) * 3).astype(np.float32).tolist()
        prompt, answer = rng.integers(0, vocab, 12).tolist(), rng.integers(0, vocab, 9).tolist()
        answer[3:5] = answer[:2]  # some stand there twice
        history = prompt + answer
        p = warp(logits, history, len(prompt), s)
        kept = [x > 0 for x in p]
        near = [[x > 0 for x in warp(logits, history, len(prompt), s, n)] for n in (MARGIN, -MARGIN)]
        if near == [kept, kept] or s["top_p"] in (0.0, 1.0) and not s["min_p"]:
            return dict(settings=s, logits=logits, history=history, prompt_len=len(prompt), probabilities=p)


def plain_case(logits, **settings):
    s = {**DEFAULT, **settings}
    p = warp(logits, [], 0, s)
    return dict(settings=s, logits=logits, history=[], prompt_len=0, probabilities=p)


def main():
    rng = np.random.default_rng(5)
    cases = [
        random_case(rng, 40),
        random_case(rng, 40, temperature=0.3),
        random_case(rng, 40, temperature=2.5),
        random_case(rng, 40, top_k=1),
        random_case(rng, 40, top_k=7),
        random_case(rng, 40, top_k=40),
        random_case(rng, 40, top_k=1000),
        random_case(rng, 40, top_p=0.0),
        random_case(rng, 40, top_p=0.3),
        random_case(rng, 40, top_p=0.9),
        random_case(rng, 300, top_p=0.98, temperature=3.0),
        random_case(rng, 40, min_p=0.05),
        random_case(rng, 40, min_p=1.0),
        random_case(rng, 40, repetition_penalty=1.3),
        random_case(rng, 40, repetition_penalty=0.8),
        random_case(rng, 40, presence_penalty=1.5),
        random_case(rng, 40, frequency_penalty=0.7),
        random_case(rng, 40, presence_penalty=-0.5, frequency_penalty=0.3, repetition_penalty=1.1),
        # LLaMA-Factory's defaults, and everything at once.
        random_case(rng, 300, temperature=0.95, top_p=0.7, top_k=50),
        random_case(rng, 300, temperature=1.4, top_k=90, top_p=0.95, min_p=0.02, repetition_penalty=1.2,
                    presence_penalty=0.4, frequency_penalty=0.2),
        # Exact borders and equals: the k-th has equals; sums that hit top_p to the bit.
        plain_case([1.0, 3.0, 2.0, 2.0, 2.0, -1.0], top_k=2),
        plain_case([0.0] * 4, top_p=0.5),
        plain_case([0.0] * 8, top_p=0.25),
        plain_case([0.0] * 4, top_p=0.5, top_k=2),
        plain_case([5.0, 5.0, -50.0], min_p=1.0),
        plain_case([-3.0], top_p=0.2, top_k=3, min_p=0.5),
    ]
    with open(os.path.join(HERE, "sampling.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


main()
