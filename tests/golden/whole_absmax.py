"""Sets right what bitsandbytes 0.50.2 gets wrong on a CPU; import it before anything is dequantised.

Its CPU kernel for dequantising 4-bit weights begins row r at block r * (width // 64). Where rows are not a multiple of 64
wide, blocks straddle rows, and it takes the absmax of another block: rows of 32 all get the first. Real models are wider
and never see it; the ones here are 32 and 48 wide. bitsandbytes' generic implementation, which its CPU kernel equals bit
for bit in f32 at multiples of 64, takes its place.
"""

from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from torch import equal, float32, library, manual_seed, ops, randn, uint8

_LIBRARY = library.Library("bitsandbytes", "IMPL")


def _dequantise(packed, absmax, blocksize, quant_type, shape, dtype):
    code = _get_4bit_code(quant_type, packed.device)
    return _dequantize_4bit_compute(packed.view(uint8).reshape(-1), absmax.float(), code, blocksize, shape, dtype)


def _check():
    """The two agree where both are right."""
    weight = randn(64, 128)
    packed, absmax = ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", uint8)
    theirs = ops.bitsandbytes.dequantize_4bit(packed, absmax, 64, "nf4", weight.shape, float32)
    assert equal(theirs, _dequantise(packed, absmax, 64, "nf4", weight.shape, float32))


manual_seed(0)
_check()
_LIBRARY.impl("dequantize_4bit", _dequantise, "CPU", allow_override=True)
