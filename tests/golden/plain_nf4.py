"""Takes bitsandbytes' own plain PyTorch dequantisation for 4-bit weights on the CPU, in place of its C++ kernel.

The kernel of bitsandbytes 0.50.2 takes the absmax of element (row, col) from block row * (in / 64) + col / 64, in whole
numbers. That is the block the element was quantised in only where rows are a multiple of 64 wide. Real models' rows are;
those of the tiny models here (32, 48, 64 wide) mostly are not, and the kernel would give most of their elements another
block's scale. On a GPU, and in the plain implementation, blocks are counted over the flat weight.
"""

import torch
from bitsandbytes import functional, matmul_4bit
from bitsandbytes.backends.default import ops
from bitsandbytes.backends.utils import _get_4bit_code

# Kept here, since the registration goes when it does.
LIBRARY = torch.library.Library("bitsandbytes", "IMPL")


def dequantise(packed, absmax, blocksize, quant_type, shape, dtype):
    code = _get_4bit_code(quant_type, packed.device)
    flat = packed.contiguous().view(torch.uint8).reshape(-1)
    # The function inside torch.compile's wrapper: so the result does not depend on there being a C++ compiler.
    return ops._dequantize_4bit_compute.__wrapped__(flat, absmax.float(), code, blocksize, shape, dtype)


def install():
    """Puts it below everything that dequantises: dequantize_4bit, and the forward and backward of Linear4bit.

    First asserts that it is the kernel's function where the kernel is right; afterwards, that it is in use in all three,
    and that rows of another width come back to within NF4's rounding.
    """
    gen = torch.Generator().manual_seed(0)
    kernel = torch.ops.bitsandbytes.dequantize_4bit.default
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((24, 64), (5, 192), (130, 320)):
            weight = torch.randn(shape, generator=gen).to(dtype)
            packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            given = (packed, state.absmax, 64, "nf4", shape, dtype)
            assert torch.equal(kernel(*given), dequantise(*given)), (dtype, shape)

    LIBRARY.impl("dequantize_4bit", dequantise, "CPU", allow_override=True)

    # Blocks of 64 on very different scales in rows of 48: with a wrong absmax the values would be far off.
    shape = (64, 48)
    weight = torch.randn(shape, generator=gen).reshape(-1, 64) * 4.0 ** torch.arange(48).remainder(8).unsqueeze(1)
    packed, state = functional.quantize_4bit(weight.reshape(shape), blocksize=64, quant_type="nf4")
    back = functional.dequantize_4bit(packed, state)
    # Half of NF4's widest gap, that between -1 and -0.6962, is 0.1519 of a block's absmax.
    assert ((back.reshape(-1, 64) - weight).abs() <= 0.152 * weight.abs().amax(1, keepdim=True)).all()
    # The product with the identity is the transposed matrix, and its gradient for the identity is the matrix itself.
    x = torch.eye(48, requires_grad=True)
    y = matmul_4bit(x, packed, state)
    y.backward(torch.eye(64)[:48])
    assert torch.equal(y.detach(), back.T) and torch.equal(x.grad, back[:48])
