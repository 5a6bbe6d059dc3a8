"""Times the GPU kernels of others at the shapes of benches/kernels: torch, torch.compile, bitsandbytes, Liger, Unsloth.

    python3 benches/peers/gpu_kernels.py [--ours bench.log] [--json FILE] [--only TEXT] [--libraries torch,liger]
    python3 benches/peers/gpu_kernels.py --dry-run        # tiny sizes on the CPU: that everything can be built

Cases have the names that benches/kernels prints. `--ours` is what `cargo bench --bench kernels` printed on this machine;
its figures then stand beside those of the peers, with the ratio. A library that is not installed is a row that says so.

How it is timed: several sets of random inputs, together twice the second-level cache, one after the other between two CUDA
events, median of --samples. Where a peer lets itself be captured as a CUDA graph, the graph is what counts, since ours run
as one too wherever they can ("graph"); otherwise its launches from Python count ("launched"). Both stand in the JSON. Before that its results
are held to plain f32 arithmetic on the same inputs.

A `bwd` of a norm is its backward alone; `fwd + bwd` is both, and counts both.

Each library has a process of its own: Unsloth replaces parts of the others when it is imported, and an error that spoils
the CUDA context then costs only that library's rows.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gpu_common import machine, one_line, reason_not_to_run, write_json

# As GPU_LAYERS of benches/shapes.rs, and the number of blocks:
# name, hidden, MLP, heads, kv heads, head_dim, vocabulary, blocks.
LAYERS = [
    ("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151_936, 28),
    ("Llama-2-7B", 4096, 11_008, 32, 32, 128, 32_000, 32),
    ("Qwen3-8B", 4096, 12_288, 32, 8, 128, 151_936, 36),
]
DRY_LAYERS = [("tiny", 128, 256, 4, 2, 32, 512, 2)]
TOKENS, HEAD_ROWS, RANK, SCALE, EPS = 1024, 256, 16, 2.0, 1e-6
# As benches/kernels/cases/sample.rs and embedding.rs.
TOP_K, TABLE_ROWS_A_TOKEN = 50, 8
DRY_TOKENS, DRY_HEAD_ROWS = 32, 8
# The model that also has cases of so many tokens.
LONG_MODEL, LONG_TOKENS, DRY_LONG_TOKENS = "Llama-2-7B", 4096, 64
LIBRARIES = ("torch", "compile", "bitsandbytes", "liger", "unsloth")
MODULES = {"bitsandbytes": "bitsandbytes", "liger": "liger_kernel.transformers", "unsloth": "unsloth"}

# Relative distance from f32 up to which a result counts as right. One rounding to bf16 is 1.1e-3 (2^-9 / sqrt 3); eager
# code rounds every intermediate, up to six in a row here, and gradients of softmax cancel. A wrong formula is off by far more.
LIMIT = 0.02


@dataclass
class Case:
    name: str
    op: str
    sizes: dict
    flops: float
    bytes: float
    """That have to be moved at least."""


def cases(dry):
    """Those of benches/kernels by its names and with its counts, and the plain product, which it has not."""
    tokens, head_rows = (DRY_TOKENS, DRY_HEAD_ROWS) if dry else (TOKENS, HEAD_ROWS)
    made = []
    for model, hidden, mlp, heads, kv_heads, dim, vocab, blocks in DRY_LAYERS if dry else LAYERS:

        def add(name, op, flops, nbytes, model=model, **sizes):
            made.append(Case(f"{model} {name}", op, sizes | {"tokens": tokens}, flops, nbytes))

        n = tokens * hidden
        add(f"rms_norm {hidden} fwd", "rms_norm fwd", 4 * n, 4 * n, hidden=hidden)
        add(f"rms_norm {hidden} bwd", "rms_norm bwd", 8 * n, 6 * n, hidden=hidden)
        add(f"swiglu {mlp} fwd", "swiglu fwd", 5 * tokens * mlp, 6 * tokens * mlp, mlp=mlp)
        add(f"layer_norm {hidden} fwd", "layer_norm fwd", 7 * n, 4 * n, hidden=hidden)
        add(f"layer_norm {hidden} bwd", "layer_norm bwd", 12 * n, 6 * n, hidden=hidden)
        add(f"gelu {mlp} fwd", "gelu fwd", 8 * tokens * mlp, 4 * tokens * mlp, mlp=mlp)
        add(f"gelu {mlp} bwd", "gelu bwd", 14 * tokens * mlp, 6 * tokens * mlp, mlp=mlp)
        rows = min(vocab, TABLE_ROWS_A_TOKEN * tokens)
        add(f"embedding {rows}x{hidden}", "embedding", 0, 4 * n + 4 * tokens, rows=rows, hidden=hidden)
        turned = tokens * (heads + kv_heads) * dim
        shape = {"heads": heads, "kv_heads": kv_heads, "dim": dim}
        add(f"rope {heads}/{kv_heads}x{dim}", "rope", 3 * turned, 4 * turned + 4 * tokens * dim, **shape)
        width, kv = heads * dim, kv_heads * dim
        made += trained(model, tokens, hidden, mlp, heads, kv_heads, dim)
        for times, way in ((1, "fwd"), (2, "fwd + bwd")):
            # Without an adapter, in float16.
            nbytes = 0.516 * mlp * hidden + 2 * tokens * (mlp + hidden)
            name, op = f"linear {mlp}x{hidden} nf4 f16 {way}", f"linear f16 {'bwd' if times == 2 else 'fwd'}"
            add(name, op, times * 2 * tokens * mlp * hidden, times * nbytes, out=mlp, inn=hidden)
        flops, nbytes = 4 * head_rows * hidden * vocab, 4 * hidden * vocab
        add(f"linear_cross_entropy {vocab}x{hidden}", "head", flops, nbytes, rows=head_rows, hidden=hidden, vocab=vocab)
        add(
            f"matmul {mlp}x{hidden} bf16",
            "matmul",
            2 * n * mlp,
            2 * (mlp * hidden + n + tokens * mlp),
            out=mlp,
            inn=hidden,
        )
        add(f"nf4 dequantise {mlp}x{hidden}", "dequantise", mlp * hidden, 2.516 * mlp * hidden, out=mlp, inn=hidden)
        add(f"nf4 quantise {mlp}x{hidden}", "quantise", mlp * hidden, 2.516 * mlp * hidden, out=mlp, inn=hidden)
        for rows in (1, 16):
            add(f"sample top-{TOP_K} {vocab} {rows} rows", "sample", rows * vocab, 2 * rows * vocab, rows=rows, vocab=vocab)
        nbytes = 0.516 * mlp * hidden + 2 * (mlp + hidden)
        add(f"nf4 gemv {mlp}x{hidden}", "gemv", 2 * mlp * hidden, nbytes, out=mlp, inn=hidden)
        shapes = adapter_shapes(hidden, mlp, width, kv) * blocks
        n = sum(a * b for a, b in shapes)
        # Reads parameter, gradient and both moments, writes three of them; the norm reads the gradient once more.
        add(f"adamw + clip {n}", "adamw", 15 * n, 32 * n, shapes=shapes)
        if dry or model == LONG_MODEL:
            long = DRY_LONG_TOKENS if dry else LONG_TOKENS
            made += trained(f"{model}@{long}", long, hidden, mlp, heads, kv_heads, dim)
    return made


def trained(model, tokens, hidden, mlp, heads, kv_heads, dim):
    """Attention and the layers with an adapter, as they are trained."""
    made = []
    width, kv, adapter = heads * dim, kv_heads * dim, 2 * tokens * RANK * (mlp + hidden)
    shape = {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "dim": dim}
    for way in ("fwd", "fwd + bwd"):
        back = way != "fwd"
        flops = tokens * (tokens + 1) / 2 * width * (14 if back else 4)
        nbytes = 2 * tokens * (2 * width + 2 * kv) * (3 if back else 1)
        made.append(Case(f"{model} attention {heads}/{kv_heads}x{dim} {way}", f"attention {way}", shape, flops, nbytes))
        for kind in ("nf4", "bf16"):
            weights = mlp * hidden * (0.516 if kind == "nf4" else 2)
            product = 2 * tokens * mlp * hidden
            flops = 2 * product + 3 * adapter if back else product + adapter
            nbytes = (weights + 2 * tokens * (mlp + hidden)) * (2 if back else 1)
            name, op = f"{model} linear {mlp}x{hidden} {kind} {way}", f"linear {kind} {'bwd' if back else 'fwd'}"
            made.append(Case(name, op, {"tokens": tokens, "out": mlp, "inn": hidden}, flops, nbytes))
    return made


def adapter_shapes(hidden, mlp, width, kv):
    """A and B of the seven linears of one block."""
    linears = [
        (width, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, width),
        (mlp, hidden),
        (mlp, hidden),
        (hidden, mlp),
    ]
    return [shape for out, inn in linears for shape in ((RANK, inn), (out, RANK))]


# ---- inputs, and what the result should be


class Inputs:
    """Random inputs of one case. Never zeros: products of those are faster than a model's."""

    def __init__(self, case, seed, device, checked):
        """`checked`: its result will be compared, so the f32 values of a 4-bit matrix are kept."""
        import torch

        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device
        s, op = case.sizes, case.op
        if op.startswith(("rms_norm", "layer_norm")):
            self.x, self.dy = self.values(s["tokens"], s["hidden"]), self.values(s["tokens"], s["hidden"])
            self.w, self.b = self.values(s["hidden"]), self.values(s["hidden"])
        elif op.startswith("gelu"):
            self.x, self.dy = self.values(s["tokens"], s["mlp"]), self.values(s["tokens"], s["mlp"])
        elif op == "embedding":
            self.w = self.values(s["rows"], s["hidden"])
            self.ids = (torch.arange(s["tokens"], device=device) * 4099) % s["rows"]
        elif op == "rope":
            self.q, self.k = (self.heads(s["tokens"], s[heads], s["dim"]) for heads in ("heads", "kv_heads"))
            freq = 1e6 ** (-torch.arange(0, s["dim"], 2, device=device) / s["dim"])
            angles = (torch.arange(s["tokens"], device=device)[:, None] * freq).repeat(1, 2)[None]
            self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        elif op == "quantise":
            self.w = self.values(s["out"], s["inn"])
        elif op == "sample":
            # They thin out towards the largest, as a model's do.
            x = self.values(s["rows"], s["vocab"], dtype=torch.float32)
            self.logits = (-torch.log(1 + 1e-6 - x.abs()) * x.sign()).bfloat16()
        elif op.startswith("swiglu"):
            self.gate, self.up = self.values(s["tokens"], s["mlp"]), self.values(s["tokens"], s["mlp"])
        elif op.startswith("attention"):
            self.q, self.do = (self.heads(s["tokens"], s["heads"], s["dim"]) for _ in range(2))
            self.k, self.v = (self.heads(s["tokens"], s["kv_heads"], s["dim"]) for _ in range(2))
        elif op == "head":
            # As small as a model's head: logits of 20 and more, rounded to bf16, would say nothing about a gradient.
            self.h, self.w = self.values(s["rows"], s["hidden"]), self.values(s["vocab"], s["hidden"], scale=0.03)
            self.targets = (torch.arange(s["rows"], device=device) * 37) % s["vocab"]
        elif op == "adamw":
            # Parameters far smaller than a step, so that the check sees the step.
            self.params = [self.values(*shape, scale=1e-3, dtype=torch.float32) for shape in s["shapes"]]
            self.grads = [self.values(*shape, dtype=torch.float32) for shape in s["shapes"]]
        else:
            dtype = torch.float16 if op.startswith("linear f16") else torch.bfloat16
            self.x = self.values(1 if op == "gemv" else s["tokens"], s["inn"], dtype=dtype)
            self.w = self.values(s["out"], s["inn"], dtype=dtype)
            # So scaled that adapter and base weigh about as much in the result, and the check sees both.
            self.a, self.b = self.values(RANK, s["inn"], scale=0.4), self.values(s["out"], RANK, scale=0.4)
            self.dy = self.values(s["tokens"], s["out"], dtype=dtype)
            if op.startswith(("linear nf4", "linear f16")) or op in ("dequantise", "gemv"):
                self.quantise(checked)

    def values(self, *shape, scale=1.0, dtype=None):
        import torch

        t = torch.empty(*shape, dtype=dtype or torch.bfloat16, device=self.device)
        return t.uniform_(-scale, scale, generator=self.generator)

    def heads(self, tokens, heads, dim):
        """(1, heads, tokens, dim), lying in memory as a projection leaves it: token after token."""
        return self.values(tokens, heads, dim).transpose(0, 1)[None]

    def quantise(self, checked):
        import bitsandbytes.functional as bnb

        self.w4, self.state = bnb.quantize_4bit(self.w, blocksize=64, compress_statistics=True, quant_type="nf4")
        self.w = dequantise(self.w4, self.state) if checked else None


def dequantise(w4, state):
    """NF4 with double quantisation from its definition, in f32: code x (8-bit absmax of the block + offset)."""
    import torch

    absmax = state.absmax
    if state.nested:
        second = state.state2
        scale = second.absmax.repeat_interleave(second.blocksize)[: absmax.numel()]
        absmax = second.code[absmax.long().flatten()] * scale + state.offset
    codes = w4.flatten()
    codes = torch.stack((codes >> 4, codes & 15), 1).flatten().long()
    values = state.code.to(codes.device)[codes].view(-1, state.blocksize) * absmax.view(-1, 1)
    return values.view(state.shape)


def rms_norm(x, w):
    """As transformers writes it for Llama and Qwen."""
    import torch

    f = x.float()
    return w * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def layer_norm(x, w, b):
    import torch.nn.functional as F

    return F.layer_norm(x, x.shape[-1:], w, b, 1e-5)


def gelu(x):
    import torch.nn.functional as F

    return F.gelu(x, approximate="tanh")


def rope(q, k, cos, sin):
    """As transformers writes it."""
    import torch

    def turned(x):
        half = x.shape[-1] // 2
        return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]

    return turned(q), turned(k)


def drawn(logits):
    """As transformers draws with top_k; returns what it drew from, which is no matter of chance."""
    import torch

    kept = torch.topk(logits, TOP_K)
    place = torch.multinomial(torch.softmax(kept.values.float(), -1), 1)
    return kept.values, kept.indices.gather(-1, place)


def quantised(w):
    """NF4 codes from the definition, in f32: two in a byte, the first in its upper half."""
    import bitsandbytes.functional as bnb
    import torch

    code = bnb.get_4bit_type("nf4", device=w.device)
    blocks = w.float().view(-1, 64)
    codes = torch.bucketize(blocks / blocks.abs().amax(1, keepdim=True), (code[1:] + code[:-1]) / 2).view(-1, 2)
    return (codes[:, 0] * 16 + codes[:, 1]).float()


def swiglu(gate, up):
    import torch.nn.functional as F

    return F.silu(gate) * up


def with_lora(y, x, a, b):
    import torch.nn.functional as F

    return y + SCALE * F.linear(F.linear(x, a), b)


def linear_lora(x, w, a, b):
    import torch.nn.functional as F

    return with_lora(F.linear(x, w), x, a, b)


def head_loss(h, w, targets):
    import torch.nn.functional as F

    return F.cross_entropy(F.linear(h, w).float(), targets)


def plain_attention(q, k, v):
    import torch

    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(above, -math.inf).softmax(-1) @ v


def clipped_adamw(params, grads):
    """The first step of AdamW with clipping to 1: the moments are the gradient and its square, up to rounding."""
    import torch

    norm = torch.sqrt(sum(g.double().pow(2).sum() for g in grads))
    clip = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
    return [p - 1e-2 * (g * clip) / ((g * clip).abs() + 1e-8) for p, g in zip(params, grads)]


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(f, wanted, dy):
    """Runs f and back; d f / d wanted."""
    import torch

    y = f()
    return list(torch.autograd.grad(y, wanted, dy))


def reference(case, i):
    """The results in f32."""
    import torch

    def f32(*ts):
        return leaves(*(t.float() for t in ts))

    op = case.op
    if op.startswith("rms_norm"):
        x, w = f32(i.x)[0], i.w.float()
        return [rms_norm(x, w)] if op.endswith("fwd") else gradients(lambda: rms_norm(x, w), [x], i.dy.float())
    if op.startswith("swiglu"):
        return [swiglu(i.gate.float(), i.up.float())]
    if op.startswith("layer_norm"):
        x, w, b = f32(i.x)[0], i.w.float(), i.b.float()
        return [layer_norm(x, w, b)] if op.endswith("fwd") else gradients(lambda: layer_norm(x, w, b), [x], i.dy.float())
    if op.startswith("gelu"):
        x = f32(i.x)[0]
        return [gelu(x)] if op.endswith("fwd") else gradients(lambda: gelu(x), [x], i.dy.float())
    if op == "embedding":
        return [i.w[i.ids].float()]
    if op == "quantise":
        return [quantised(i.w)]
    if op == "rope":
        return list(rope(i.q.float(), i.k.float(), i.cos.float(), i.sin.float()))
    if op == "sample":
        return [i.logits.float().sort(-1, descending=True).values[:, :TOP_K]]
    if op.startswith("attention"):
        q, k, v = f32(i.q, i.k, i.v)
        if op.endswith(" bwd"):
            return gradients(lambda: plain_attention(q, k, v), [q, k, v], i.do.float())
        return [plain_attention(q, k, v)]
    if op.startswith("linear f16"):
        (x,), w = f32(i.x), i.w.float()
        y = lambda: torch.nn.functional.linear(x, w)
        return gradients(y, [x], i.dy.float()) if op.endswith("bwd") else [y()]
    if op.startswith("linear"):
        x, a, b = f32(i.x, i.a, i.b)
        w = i.w.float()
        if op.endswith("bwd"):
            return gradients(lambda: linear_lora(x, w, a, b), [x, a, b], i.dy.float())
        return [linear_lora(x, w, a, b)]
    if op == "head":
        (h,) = f32(i.h)
        return gradients(lambda: head_loss(h, i.w.float(), i.targets), [h], None)
    if op == "dequantise":
        return [i.w]
    if op in ("gemv", "matmul"):
        return [torch.nn.functional.linear(i.x.float(), i.w.float())]
    return clipped_adamw(i.params, i.grads)


def distance(got, want):
    """Largest relative distance of the results, each as a whole. NaN stays NaN."""
    if len(got) != len(want):
        raise ValueError(f"{len(got)} results instead of {len(want)}")
    worst = 0.0
    for g, w in zip(got, want):
        off = ((g.float() - w.view_as(g)).norm() / w.norm()).item()
        worst = off if not off <= worst else worst
    return worst


# ---- the peers: (label, make) with make(inputs) -> run() -> results


def forward(f, *names):
    """A forward pass alone; of one result, or of a tuple of them."""
    import torch

    def make(i):
        args = [getattr(i, n) for n in names]

        def run():
            with torch.no_grad():
                y = f(*args)
                return list(y) if isinstance(y, tuple) else [y]

        return run

    return make


def backward_alone(f, wanted, *frozen):
    """The backward pass of f(wanted, frozen...), whose forward has run before."""
    import torch

    def make(i):
        (x,) = leaves(getattr(i, wanted))
        y = f(x, *(getattr(i, n) for n in frozen))
        # Some write their result over dy.
        dy = i.dy.clone()
        return lambda: list(torch.autograd.grad(y, [x], dy, retain_graph=True))

    return make


def there_and_back(f, wanted, frozen=(), dy="dy"):
    """f and its backward; f takes the wanted inputs, then the frozen ones."""

    def make(i):
        xs = leaves(*(getattr(i, n) for n in wanted))
        rest = [getattr(i, n) for n in frozen]
        return lambda: gradients(lambda: f(*xs, *rest), xs, getattr(i, dy) if dy else None)

    return make


def norm_and_mlp_peers(case, label, norm, mlp):
    """Peers that have a norm(x, w) and an mlp(gate, up)."""
    if case.op == "rms_norm fwd":
        return [(label, forward(norm, "x", "w"))]
    if case.op == "rms_norm bwd":
        return [(label, backward_alone(norm, "x", "w"))]
    if case.op == "swiglu fwd":
        return [(label, forward(mlp, "gate", "up"))]
    return []


def plain_peers(case, label, wrap=lambda f: f):
    """Peers that are a call or a few of torch, or that as something `wrap` makes of it."""
    import torch.nn.functional as F

    made = {
        "layer_norm fwd": lambda: forward(wrap(layer_norm), "x", "w", "b"),
        "layer_norm bwd": lambda: backward_alone(wrap(layer_norm), "x", "w", "b"),
        "gelu fwd": lambda: forward(wrap(gelu), "x"),
        "gelu bwd": lambda: backward_alone(wrap(gelu), "x"),
        "embedding": lambda: forward(wrap(F.embedding), "ids", "w"),
        "rope": lambda: forward(wrap(rope), "q", "k", "cos", "sin"),
    }
    return [(label, made[case.op]())] if case.op in made else []


def torch_peers(case, dry):
    import torch
    import torch.nn.functional as F

    found = norm_and_mlp_peers(case, "torch eager", rms_norm, swiglu)
    if case.op.startswith("rms_norm"):
        found += norm_and_mlp_peers(case, "F.rms_norm", lambda x, w: F.rms_norm(x, x.shape[-1:], w, EPS), None)
    found += plain_peers(case, "torch eager")
    if case.op == "sample":
        return [("torch.topk + multinomial", forward(lambda logits: drawn(logits)[0], "logits"))]
    if case.op == "matmul":
        return [("torch.matmul", forward(lambda x, w: torch.matmul(x, w.t()), "x", "w"))]
    if case.op == "linear bf16 fwd":
        return [("torch.matmul + LoRA", forward(linear_lora, "x", "w", "a", "b"))]
    if case.op == "linear bf16 bwd":
        f = lambda x, a, b, w: linear_lora(x, w, a, b)
        return [("torch.matmul + LoRA", there_and_back(f, ["x", "a", "b"], ["w"]))]
    if case.op == "head":
        return [("torch eager", there_and_back(head_loss, ["h"], ["w", "targets"], dy=None))]
    if case.op == "adamw":
        return [("AdamW(fused) + clip_grad_norm_", adamw_peer(dry))]
    if case.op.startswith("attention"):
        return attention_peers(case)
    return found


def adamw_peer(dry):
    import torch

    def make(i):
        params = [torch.nn.Parameter(p) for p in i.params]
        for p, g in zip(params, i.grads):
            p.grad = g
        # Capturable, so that it needs no answer from the device within a step.
        optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0, fused=True, capturable=not dry)

        def run():
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            return [p.detach() for p in params]

        return run

    return make


def attention_peers(case):
    from torch.nn.attention import SDPBackend

    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    found = [
        ("SDPA, its own choice", sdpa(case, None, False)),
        ("SDPA flash", sdpa(case, flash, False)),
        ("SDPA cuDNN", sdpa(case, cudnn, False)),
    ]
    if case.op.endswith("bwd"):
        # Only the backward has an order of sums to fix.
        found.append(("SDPA flash, deterministic", sdpa(case, flash, True)))
        found.append(("SDPA cuDNN, deterministic", sdpa(case, cudnn, True)))
    return found


def sdpa(case, backend, deterministic):
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    @contextlib.contextmanager
    def setting():
        with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
            torch.use_deterministic_algorithms(deterministic)
            # That mode also fills fresh memory with NaN, a help for debugging which no result needs.
            torch.utils.deterministic.fill_uninitialized_memory = False
            try:
                yield
            finally:
                torch.use_deterministic_algorithms(False)

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    def attend_repeated(q, k, v):
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def make(i):
        back = case.op.endswith("bwd")
        q, k, v = leaves(i.q, i.k, i.v) if back else (i.q, i.k, i.v)

        def run(f):
            with setting():
                if back:
                    return gradients(lambda: f(q, k, v), [q, k, v], i.do)
                with torch.no_grad():
                    return [f(q, k, v)]

        try:
            run(attend)
            chosen, notes = attend, []
        except RuntimeError:
            # A backend without grouped queries takes the keys and values repeated, as transformers would.
            run(attend_repeated)
            chosen, notes = attend_repeated, ["keys and values repeated"]
        if backend is None:
            notes.append(f"backend {backend_chosen(q, k, v)}")
        else:
            notes.append(f"backend {SDPBackend(backend).name}")
        timed = lambda: run(chosen)
        timed.note = ", ".join(notes)
        return timed

    return make


def backend_chosen(q, k, v):
    """The backend that SDPA takes for these when it is free to choose."""
    import torch
    from torch.nn.attention import SDPBackend

    try:
        choice = torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return {int(b): name for name, b in SDPBackend.__members__.items()}.get(choice, str(choice))
    except (AttributeError, TypeError, RuntimeError) as e:
        return f"unknown ({one_line(e, 40)})"


def compile_peers(case, dry):
    import torch
    import torch._functorch.config

    # A backward that is run again and again must keep its inputs.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64
    # The dry run traces everything, but has no use for a C++ compiler.
    compiled = lambda f: torch.compile(f, dynamic=False, **({"backend": "aot_eager"} if dry else {}))
    label = "torch.compile"
    found = norm_and_mlp_peers(case, label, compiled(rms_norm), compiled(swiglu)) + plain_peers(case, label, compiled)
    if case.op == "linear bf16 fwd":
        found = [(f"{label}, LoRA", forward(compiled(linear_lora), "x", "w", "a", "b"))]
    if case.op == "linear bf16 bwd":
        f = compiled(lambda x, a, b, w: linear_lora(x, w, a, b))
        found = [(f"{label}, LoRA", there_and_back(f, ["x", "a", "b"], ["w"]))]
    if case.op == "head":
        found = [(label, there_and_back(compiled(head_loss), ["h"], ["w", "targets"], dy=None))]
    return found


def bitsandbytes_peers(case, dry):
    import bitsandbytes as bnb
    import torch.nn.functional as F

    def fused(x, a, b, w4, state):
        return with_lora(bnb.matmul_4bit(x, w4, quant_state=state), x, a, b)

    def in_two(x, a, b, w4, state):
        return with_lora(F.linear(x, bnb.functional.dequantize_4bit(w4, state)), x, a, b)

    if case.op == "quantise":

        def quantise(w):
            return bnb.functional.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")[0]

        return [("bitsandbytes quantize_4bit", forward(quantise, "w"))]
    if case.op == "dequantise":
        return [("bitsandbytes dequantize_4bit", forward(bnb.functional.dequantize_4bit, "w4", "state"))]
    bare = lambda x, w4, state: bnb.matmul_4bit(x, w4, quant_state=state)
    if case.op in ("gemv", "linear f16 fwd"):
        return [("bitsandbytes matmul_4bit", forward(bare, "x", "w4", "state"))]
    if case.op == "linear f16 bwd":
        return [("bitsandbytes matmul_4bit", there_and_back(bare, ["x"], ["w4", "state"]))]
    if case.op == "linear nf4 fwd":
        names = ("x", "a", "b", "w4", "state")
        return [
            ("bitsandbytes matmul_4bit + LoRA", forward(fused, *names)),
            ("dequantize_4bit, torch.matmul + LoRA", forward(in_two, *names)),
        ]
    if case.op == "linear nf4 bwd":
        # Its backward dequantises, whatever the forward did.
        return [("bitsandbytes matmul_4bit + LoRA", there_and_back(fused, ["x", "a", "b"], ["w4", "state"]))]
    return []


def liger_peers(case, dry):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    found = norm_and_mlp_peers(
        case, "Liger", lambda x, w: LigerRMSNormFunction.apply(x, w, EPS), LigerSiLUMulFunction.apply
    )
    if case.op == "rope":
        # It turns in place: each run on what the one before has left, but the first, which is compared.
        found = [("Liger", forward(LigerRopeFunction.apply, "q", "k", "cos", "sin"))]
    if case.op.startswith("layer_norm"):
        norm = lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, 1e-5)
        found = [("Liger", (backward_alone if case.op.endswith("bwd") else forward)(norm, "x", "w", "b"))]
    if case.op == "head":

        def loss(h, w, targets):
            got = LigerFusedLinearCrossEntropyFunction.apply(h, w, targets)
            # Newer versions return more than the loss.
            return got[0] if isinstance(got, tuple) else got

        found = [("Liger fused linear CE", there_and_back(loss, ["h"], ["w", "targets"], dy=None))]
    return found


def unsloth_peers(case, dry):
    from types import SimpleNamespace

    import torch.nn.functional as F
    from unsloth.kernels.cross_entropy_loss import fast_cross_entropy_loss
    from unsloth.kernels.fast_lora import LoRA_W
    from unsloth.kernels.rms_layernorm import fast_rms_layernorm
    from unsloth.kernels.swiglu import swiglu_fg_kernel
    from unsloth.kernels.utils import fast_dequantize, matmul_lora

    def norm(x, w):
        return fast_rms_layernorm(SimpleNamespace(weight=w, variance_epsilon=EPS), x)

    def mlp(gate, up):
        return swiglu_fg_kernel(gate[None], up[None])[0]

    def loss(h, w, targets):
        return fast_cross_entropy_loss(F.linear(h, w)[None], targets[None])

    def lora(x, a, b, w4, state):
        return LoRA_W.apply(x[None], w4, state, a, b, SCALE)[0]

    found = norm_and_mlp_peers(case, "Unsloth", norm, mlp)
    if case.op == "head":
        found = [("Unsloth fast CE", there_and_back(loss, ["h"], ["w", "targets"], dy=None))]
    if case.op == "dequantise":
        found = [("Unsloth fast_dequantize", forward(fast_dequantize, "w4", "state"))]
    if case.op == "linear nf4 fwd":
        f = lambda x, w4, state, a, b: matmul_lora(x, w4, state, a, b, SCALE)
        found = [("Unsloth matmul_lora", forward(f, "x", "w4", "state", "a", "b"))]
    if case.op == "linear nf4 bwd":
        found = [("Unsloth LoRA_W", there_and_back(lora, ["x", "a", "b"], ["w4", "state"]))]
    return found


PEERS = {
    "torch": torch_peers,
    "compile": compile_peers,
    "bitsandbytes": bitsandbytes_peers,
    "liger": liger_peers,
    "unsloth": unsloth_peers,
}


# ---- timing


def seconds(body, samples, dry):
    """Median seconds of `body`, repeated within a sample until that is a millisecond, far above what a clock resolves."""
    import torch

    if dry:
        begin = time.perf_counter()
        body()
        return time.perf_counter() - begin

    def sample(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            body()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    sample(3)
    times = max(1, math.ceil(1e-3 / max(sample(3), 1e-7)))
    return statistics.median(sample(times) for _ in range(samples))


def captured(body):
    """`body` as a CUDA graph, or why it cannot be one."""
    import torch

    try:
        # Found out beforehand where it can be: a capture that fails leaves its memory pool behind.
        torch.cuda.set_sync_debug_mode("error")
        try:
            body()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            body()
        graph.replay()
        torch.cuda.synchronize()
        return graph, None
    except Exception as e:  # what a capture may raise depends on who wrote the kernel
        return None, one_line(e, 60)


def time_peer(case, make, args, l2, device):
    """Checks a peer and times it; the fields of its row."""
    import torch

    copies = 1 if args.dry_run else min(32, max(1, math.ceil(2 * l2 / case.bytes)))
    inputs = [Inputs(case, seed, device, seed == 1) for seed in range(1, copies + 1)]
    want = [t.detach() for t in reference(case, inputs[0])]
    runs = [make(i) for i in inputs]
    off = distance([t.detach() for t in runs[0]()], want)
    del want
    note = getattr(runs[0], "note", "")
    if not off <= LIMIT:
        return {"note": f"not timed: its result is off by {off:.2e} from f32", "off": off}

    def body():
        for run in runs:
            run()

    for _ in range(3):
        body()
    launched = seconds(body, args.samples, args.dry_run) / copies
    row = {"us": launched * 1e6, "how": "launched", "launched_us": launched * 1e6, "off": off, "note": note}
    if not args.dry_run:
        torch.cuda.synchronize()
        graph, why = captured(body)
        if graph is not None:
            row |= {"us": seconds(graph.replay, args.samples, False) / copies * 1e6, "how": "graph"}
        else:
            row["note"] = "; ".join(filter(None, [note, f"no graph: {why}"]))
    row["tflops"] = case.flops / row["us"] / 1e6
    row["gbs"] = case.bytes / row["us"] / 1e3
    return row | {"copies": copies, "samples": args.samples}


def child(args):
    """Times one library; its rows go to --json as they come."""
    import torch

    library, rows = args.child, []

    def say(row):
        rows.append({"library": library} | row)
        write_json(args.json, rows)

    try:
        if library in MODULES:
            importlib.import_module(MODULES[library])
    except Exception as e:  # an import may fail in any way; that is what the row is for
        missing = isinstance(e, ModuleNotFoundError)
        return say(
            {"case": "", "peer": library, "note": f"not {'installed' if missing else 'importable'}: {one_line(e)}"}
        )

    device = "cpu" if args.dry_run else "cuda"
    l2 = 0 if args.dry_run else torch.cuda.get_device_properties(0).L2_cache_size
    # A backward runs on the stream of its forward, and the default stream cannot be captured.
    stream = contextlib.nullcontext() if args.dry_run else torch.cuda.stream(torch.cuda.Stream())
    with stream:
        for case in cases(args.dry_run):
            if args.only not in case.name:
                continue
            for label, make in PEERS[library](case, args.dry_run):
                if time.time() > args.deadline:
                    say({"case": case.name, "peer": label, "note": "left out: the time was up"})
                    continue
                try:
                    row = time_peer(case, make, args, l2, device)
                except Exception as e:  # one peer's failure is a row, and the next goes on
                    row = {"note": f"failed: {one_line(e)}"}
                say({"case": case.name, "peer": label} | row)
                if not args.dry_run:
                    torch.cuda.empty_cache()


def collect(args, library, folder):
    """The rows of one library, from a process of its own."""
    out = Path(folder) / f"{library}.json"
    command = [sys.executable, __file__, "--child", library, "--json", str(out), "--only", args.only]
    command += ["--samples", str(args.samples), "--deadline", str(args.deadline)] + ["--dry-run"] * args.dry_run
    env = os.environ | {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    if args.dry_run:
        env |= {"UNSLOTH_ALLOW_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(out.with_suffix(".log"), "w") as log:
        # Beyond the deadline a child only writes down what it leaves out.
        limit = max(60.0, args.deadline - time.time() + 60)
        try:
            status = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = "the time limit"
    rows = json.loads(out.read_text()) if out.exists() else []
    if status != 0:
        last = out.with_suffix(".log").read_text(errors="replace").strip().split("\n")[-1][:90]
        rows.append({"library": library, "case": "", "peer": library, "note": f"ended with {status}: {last}"})
    return rows


def ours_of(path):
    """Microseconds by case and how it ran, from what benches/kernels printed."""
    if path is None:
        return {}
    line = r"^(\S+ .*?) +([\d.]+) us +[\d.]+ TFLOP/s .* (graph|launched)$"
    found = re.findall(line, Path(path).read_text(errors="replace"), re.M)
    return {name: (float(us), how) for name, us, how in found}


def table(rows, ours):
    """Case by case: ours, then the peers with their time over ours."""
    head = f"{'case':44} {'peer':37} {'us':>10} {'how':9} {'TFLOP/s':>8} {'GB/s':>7} {'off':>8} {'/ ours':>7}  note"
    lines = [head]
    for name in dict.fromkeys(row["case"] for row in rows):
        if name in ours:
            us, how = ours[name]
            lines.append(f"{name:44} {'qlora-engine':37} {us:10.1f} {how}")
        for row in (r for r in rows if r["case"] == name):
            line = f"{name:44} {row['peer']:37} "
            if "us" in row:
                ratio = f"{row['us'] / ours[name][0]:7.2f}" if name in ours else f"{'':7}"
                figures = f"{row['tflops']:8.1f} {row['gbs']:7.0f} {row['off']:8.1e}"
                line += f"{row['us']:10.1f} {row['how']:9} {figures} {ratio}  "
            lines.append((line + row["note"]).rstrip())
    return "\n".join(lines)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, nothing measured")
    ask.add_argument("--json", default="gpu_kernels.json", help="where the results go")
    ask.add_argument("--ours", help="the output of benches/kernels on this machine")
    ask.add_argument("--only", default="", help="cases whose name contains this")
    ask.add_argument("--libraries", default=",".join(LIBRARIES))
    ask.add_argument("--samples", type=int, default=25)
    ask.add_argument("--budget", type=float, default=300, help="seconds; what does not fit is said to be left out")
    ask.add_argument("--child", choices=LIBRARIES, help=argparse.SUPPRESS)
    ask.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = ask.parse_args()
    unknown = set(args.libraries.split(",")) - set(LIBRARIES)
    if unknown or args.samples < 1:
        ask.error(f"no such library: {', '.join(unknown)}" if unknown else "--samples must be at least 1")
    why = reason_not_to_run(args.dry_run)
    if why:
        return print(why)
    if args.child:
        return child(args)

    args.deadline = time.time() + args.budget
    result = {"machine": machine(args.dry_run), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for library in args.libraries.split(","):
            result["rows"] += collect(args, library, folder)
            result["ours"] = ours_of(args.ours)
            write_json(args.json, result)
    # Ordered as the cases are, not as the libraries came.
    order = {case.name: n for n, case in enumerate(cases(args.dry_run))}
    rows = sorted(result["rows"], key=lambda row: order.get(row["case"], -1))
    timed = sum("us" in row for row in rows)
    found = ", ".join(f"{name} {v or 'absent'}" for name, v in result["machine"]["versions"].items())
    print(f"done: {timed} of {len(rows)} rows timed, in {args.json}")
    print(f"{result['machine']['device']}, driver {result['machine']['driver']}; {found}")
    print(table(rows, result["ours"]))


if __name__ == "__main__":
    main()
