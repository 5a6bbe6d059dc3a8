"""Writes nf4.safetensors: what bitsandbytes' CPU path makes of small matrices.

    pip install torch==2.11.0 bitsandbytes==0.50.2 safetensors && python make.py

For each case `c`: c.w (the weight), c.packed, c.absmax (plain), c.codes, c.absmax2, c.offset (double), and the dequantised
c.f32, c.bf16 (plain) and c.f32_double, c.bf16_double. `code2` is the map of the second level.
"""
import os

import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.manual_seed(20)

cases = {}
for dtype, tag in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
    cases[f"{tag}.even"] = (torch.randn(8, 64) * 0.02).to(dtype)
    cases[f"{tag}.odd"] = (torch.randn(7, 33) * 0.5).to(dtype)       # 231 elements: a ragged last block, an odd tail
    cases[f"{tag}.row"] = (torch.randn(1, 50) * 3).to(dtype)         # less than a block
wide = torch.randn(130, 130)                                          # 265 blocks: two of the second level
wide[3:5] = 0.0                                                       # blocks of zeros
wide[7] *= 1e-6
cases["bf16.wide"] = wide.to(torch.bfloat16)
extreme = torch.randn(6, 64)
extreme[0] *= 1e38                                                    # close to the largest f32
extreme[1] = 0.0
extreme[2] *= 1e-38                                                   # around the smallest divisor
extreme[3] *= 1e-40                                                   # subnormal
extreme[4] = torch.tensor([1.0, -1.0] * 32)
code = F.get_4bit_type("nf4", device="cpu")
middles = (code[:-1] + code[1:]) / 2                                  # ties, and their neighbours
up, down = torch.nextafter(middles, torch.tensor(2.0)), torch.nextafter(middles, torch.tensor(-2.0))
extreme[5] = torch.cat([middles, up, down, torch.ones(1), torch.zeros(18)])
cases["f32.extreme"] = extreme
cases["f32.zero_tail"] = torch.cat([torch.randn(64), torch.zeros(3)]).view(1, 67)

out = {"code2": F.create_dynamic_map().clone()}
for name, w in cases.items():
    packed, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=False)
    packed2, state2 = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert (packed == packed2).all()
    out |= {
        f"{name}.w": w,
        f"{name}.packed": packed.reshape(-1),
        f"{name}.absmax": state.absmax,
        f"{name}.codes": state2.absmax,
        f"{name}.absmax2": state2.state2.absmax,
        f"{name}.offset": state2.offset.reshape(1),
    }
    for dtype, tag in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        state.dtype = state2.dtype = dtype
        if name == "bf16.wide":
            continue  # there for the second level; without these the file stays small
        out[f"{name}.{tag}"] = F.dequantize_4bit(packed, state)
        out[f"{name}.{tag}_double"] = F.dequantize_4bit(packed2, state2)
# Any value that clone() shares with another tensor would be refused by save_file.
save_file({k: v.contiguous().clone() for k, v in out.items()}, os.path.join(os.path.dirname(__file__), "nf4.safetensors"))
