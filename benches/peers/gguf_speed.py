"""Times the `gguf` Python package's quantise and dequantise on one core, the shapes of benches/gguf.rs.

`taskset -c 0 python benches/peers/gguf_speed.py`, beside `taskset -c 0 cargo bench --bench gguf`. Bytes of f32 per second.
"""

import time

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

ROWS, COLS = 1024, 4096


def speed(run) -> float:
    """MB/s, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return ROWS * COLS * 4 / 1e6 / best


def main() -> None:
    x = np.random.default_rng(1).standard_normal((ROWS, COLS), np.float32)
    for ty in [T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]:
        q = quantize(x, ty)
        there, back = speed(lambda: quantize(x, ty)), speed(lambda: dequantize(q, ty))
        print(f"{ty.name:5} quantise {there:7.0f} MB/s   dequantise {back:7.0f} MB/s")
    for ty in [T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]:
        block, size = GGML_QUANT_SIZES[ty]
        q = np.full((ROWS, COLS // block * size), 0x11, np.uint8)
        print(f"{ty.name:5} {'':21}   dequantise {speed(lambda: dequantize(q, ty)):7.0f} MB/s")


if __name__ == "__main__":
    main()
