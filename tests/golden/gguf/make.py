"""Makes the golden GGUF file and quantised blocks of this folder, with the `gguf` package (0.19.0) and numpy alone.

types.gguf      one pair of every kind, one tensor of every type that we read, of random bytes with extreme scales
types.f32       the values of its tensors, as `gguf.quants.dequantize` gives them, one after the other, f32
quantised.bin   what `gguf.quants.quantize` makes of `values()` (repeated in tests/gguf.rs) in each type of QUANTISED, then
                `SPECIAL` in f16 and in bf16

Run as `python make.py`; deterministic.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFValueType as V
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

HERE = Path(__file__).resolve().parent
ROWS, COLS = 2, 512
# Type and the byte offsets of the f16 numbers in a block.
TYPES = {
    T.F32: [], T.F16: [], T.BF16: [],
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}  # fmt: skip
QUANTISED = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.F16, T.BF16]
# The largest f16, the smallest normal and subnormal ones, zeros, one.
EXTREMES = np.array([0x7BFF, 0xFBFF, 0x0400, 0x0001, 0x8001, 0x0000, 0x8000, 0x3C00], np.uint16)
# Overflow, what just does not, halfway cases, subnormals of both 16-bit types, infinities, zeros. As bits of f32.
SPECIAL = np.array([
    0x477FE000, 0x477FEFFF, 0x477FF000, 0xC77FF000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x00000000, 0x80000000,
    0x3F801000, 0x3F803000, 0x3F801001, 0x3F808000, 0x3F818000, 0x3F808001, 0x33000000, 0x33000001, 0x33C00000,
    0x38800000, 0x387FFFFF, 0x00000001, 0x00010000, 0x7F7F8000, 0x7F7F7FFF,
], np.uint32)  # fmt: skip


def mix(i: np.ndarray) -> np.ndarray:
    """splitmix64 of a counter."""
    with np.errstate(over="ignore"):
        z = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def values() -> np.ndarray:
    """40 blocks of 32: seven sizes from subnormal to overflowing scales, ties, constants, all positive."""
    top = (mix(np.arange(40 * 32, dtype=np.uint64)) >> np.uint64(40)).astype(np.int64).reshape(40, 32)
    out = np.zeros((40, 32), np.float64)
    for b in range(40):
        kind = b % 10
        if kind < 7:
            out[b] = (top[b] - 2**23) * 2.0 ** ([0, -10, 8, -3, -20, -40, 30][kind] - 23)
        elif kind == 7:
            out[b] = (top[b] % 17 - 8) * 0.25
        elif kind == 8:
            out[b] = [0.0, 1.5, -1.5, 3.0][b // 10]
        else:
            out[b] = top[b] * 2.0**-24
    return out.astype(np.float32)


def random_blocks(rng: np.random.Generator, ty: T) -> np.ndarray:
    block, size = GGML_QUANT_SIZES[ty]
    n = ROWS * COLS // block
    blocks = rng.integers(0, 256, (n, size), np.uint8)
    if ty == T.F32:
        blocks = rng.standard_normal((n, 1), np.float32).view(np.uint8)
    elif ty in (T.F16, T.BF16):
        bits = blocks.view(np.uint16)
        infinite = 0x7C00 if ty == T.F16 else 0x7F80
        bits[(bits & infinite) == infinite] = infinite  # a NaN's bits are nobody's promise
    for at in TYPES[ty]:
        half = rng.integers(0, 2**16, n, np.uint16)
        half = np.where((half & 0x7C00) == 0x7C00, half & 0xBFFF, half).astype(np.uint16)
        half[: len(EXTREMES)] = rng.permutation(EXTREMES)[:n]
        blocks[:, at : at + 2] = half.reshape(n, 1).view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main() -> None:
    np.seterr(over="ignore")  # one block's scale is past the largest f16
    rng = np.random.default_rng(5)
    w = GGUFWriter(HERE / "types.gguf", "llama")
    scalars = {
        "u8": (200, V.UINT8), "i8": (-100, V.INT8), "u16": (60000, V.UINT16), "i16": (-30000, V.INT16),
        "u32": (4000000000, V.UINT32), "i32": (-2000000000, V.INT32), "f32": (0.1, V.FLOAT32), "bool": (True, V.BOOL),
        "string": ("héllo\n世界", V.STRING), "u64": (2**64 - 1, V.UINT64), "i64": (-(2**63), V.INT64), "f64": (0.1, V.FLOAT64),
    }  # fmt: skip
    for name, (value, kind) in scalars.items():
        w.add_key_value(f"test.{name}", value, kind)
    for name, (value, kind) in scalars.items():
        other = not value if kind == V.BOOL else value
        w.add_key_value(f"test.array.{name}", [value, other, value], V.ARRAY, sub_type=kind)
    values_of = []
    for ty in TYPES:
        blocks = random_blocks(rng, ty)
        w.add_tensor(f"blk.0.{ty.name}.weight", blocks, raw_dtype=ty)
        values_of.append(dequantize(blocks, ty).astype("<f4").reshape(ROWS, COLS))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    (HERE / "types.f32").write_bytes(np.stack(values_of).tobytes())

    x = values()
    out = [np.ascontiguousarray(quantize(x, ty)).tobytes() for ty in QUANTISED]
    special = SPECIAL.view(np.float32).reshape(-1, len(SPECIAL))
    out += [quantize(special, T.F16).tobytes(), quantize(special, T.BF16).tobytes()]
    (HERE / "quantised.bin").write_bytes(b"".join(out))


if __name__ == "__main__":
    main()
