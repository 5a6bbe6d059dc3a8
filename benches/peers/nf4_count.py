"""Counts where bitsandbytes quantises to NF4 otherwise on a GPU than on the CPU, whose bits ours has (tests/kernels/nf4.rs).

    python3 benches/peers/nf4_count.py tests/golden/nf4/nf4.safetensors      # the cases of the tests, and a large matrix

A code is explained if it is off by one and its value lies within an ulp of the threshold between the two, or if its block is all
zeros. What is not explained is bitsandbytes' own, so nothing fails by it. `--dry-run` compares the CPU with itself.
"""

import argparse

from gpu_common import reason_not_to_run

BLOCK = 64


def codes_of(packed):
    """Two in a byte, the first in its upper half."""
    import torch

    packed = packed.flatten().cpu()
    return torch.stack((packed >> 4, packed & 15), 1).flatten().int()


def quantised(w, device):
    """Codes, absmax of each block, values in bf16, all on the CPU."""
    import bitsandbytes.functional as bnb
    import torch

    packed, state = bnb.quantize_4bit(w.to(device), blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    state.dtype = torch.bfloat16
    return codes_of(packed)[: w.numel()], state.absmax.cpu(), bnb.dequantize_4bit(packed, state).flatten().cpu()


def explained(w, absmax, a, b):
    """Of each code whether a and b are as near as can be."""
    import bitsandbytes.functional as bnb
    import torch

    code = bnb.get_4bit_type("nf4", device="cpu")
    thresholds = (code[1:] + code[:-1]) / 2
    most = absmax.repeat_interleave(BLOCK)[: w.numel()].double()
    between = thresholds[torch.minimum(a, b).clamp(max=14).long()]
    ulp = (torch.nextafter(between.abs(), torch.tensor(2.0)) - between.abs()).double()
    near = (w.flatten().double() / most - between.double()).abs() <= ulp
    return (a == b) | (((a - b).abs() == 1) & near) | (most == 0)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("golden", help="tests/golden/nf4/nf4.safetensors")
    ask.add_argument("--dry-run", action="store_true", help="compare the CPU with itself")
    args = ask.parse_args()
    why = reason_not_to_run(args.dry_run)
    if why:
        return print(why)
    import torch
    from safetensors.torch import load_file

    cases = {name[:-2]: w for name, w in load_file(args.golden).items() if name.endswith(".w")}
    cases["bf16.large"] = (torch.randn(4096, 4096, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    device, all_codes, differing, open_ones = "cpu" if args.dry_run else "cuda", 0, 0, 0
    print(f"{'case':16} {'codes':>9} {'differ':>7} {'not explained':>14} {'absmax differ':>14} {'bf16 differ':>12}")
    for name, w in cases.items():
        (a, absmax, x), (b, other, y) = quantised(w, "cpu"), quantised(w, device)
        off, unexplained = int((a != b).sum()), int((~explained(w, absmax, a, b)).sum())
        scales, values = int((absmax != other).sum()), int((x != y)[a == b].sum())
        print(f"{name:16} {len(a):9} {off:7} {unexplained:14} {scales:14} {values:12}")
        all_codes, differing, open_ones = all_codes + len(a), differing + off, open_ones + unexplained
    print(f"done: {differing} of {all_codes} codes differ, {open_ones} of them not explained")


if __name__ == "__main__":
    main()
