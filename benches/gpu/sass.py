"""What the loops of kernels consist of, by their machine code: no GPU is needed.

    python3 benches/gpu/sass.py [--arch sm_89] [--kernel PART_OF_NAME] [--least 12] [--blocks] kernels/rms_norm.cu ... | FOLDER_OF_CUBINS

nvcc and nvdisasm are looked for in PATH; --nvcc and --nvdisasm name others (PyPI has them: nvidia-cuda-nvcc,
nvidia-cuda-nvdisasm). A line is a loop (of one that holds others what lies outside of them, after a *), or a kernel as a
whole (of one without loops all there is). A loop is what lies between the target of a branch backwards and that branch:
ways through it that exclude each other count together, and --blocks shows it in pieces without branches.

    loop        address of its first instruction
    n           instructions
    ldg, stg    reads and writes of global memory, as count x bytes (of a lane); ldgsts: copies from global to shared memory
    lds, sts    of shared memory; ldsm: ldmatrix, as count x matrices
    fly         most reads of global memory that are under way before a result is waited for
    mma         products on tensor cores
    mufu        special functions: 2^x, 1/x, 1/sqrt(x), sine
    f32, f64    arithmetic in floats; cvt: conversions, packs of bf16 among them
    int         whole numbers, addresses, comparisons, moves, permutations of bytes
    bar, shfl   barriers; exchanges between lanes
    local       accesses to local memory: spills, or arrays that are indexed by run-time values
    flow        branches and what belongs to them
"""

import argparse
import collections
import pathlib
import re
import subprocess
import tempfile

CLASSES = ["ldg", "stg", "ldgsts", "lds", "sts", "ldsm", "fly", "mma", "mufu", "f32", "f64", "cvt", "int", "bar", "shfl",
           "local", "flow"]
MEMORY = {"LDG": "ldg", "LD": "ldg", "STG": "stg", "ST": "stg", "LDGSTS": "ldgsts", "LDS": "lds", "STS": "sts", "LDSM": "ldsm",
          "LDL": "local", "STL": "local"}
OTHERS = [
    ("mma", r"[HIDBQ]G?MMA"),
    ("mufu", r"MUFU"),
    ("cvt", r"F2F|F2FP|F2I|I2F|I2FP|F2IP|FRND"),
    ("f64", r"D(ADD|MUL|FMA|SETP|MNMX)"),
    ("f32", r"F(ADD|MUL|FMA|MNMX|SETP|SEL|SET|CHK|SWZADD)\d*|FADD2|FMUL2|FFMA2|H(ADD|MUL|FMA)2|HSET.*"),
    ("bar", r"BAR|DEPBAR|WARPSYNC|MEMBAR|LDGDEPBAR|CCTL|ERRBAR|SYNCS"),
    ("shfl", r"SHFL|VOTE|VOTEU|REDUX|MATCH"),
    ("flow", r"BRA|BSSY|BSYNC|BRX|JMP|EXIT|CALL|RET|BREAK|BMOV|NOP|YIELD|WARPSYNC|BPT|NANOSLEEP"),
]

Instruction = collections.namedtuple("Instruction", "at name parts operands to")


def kernels_of(cubin, nvdisasm):
    """Yields (name, registers, instructions) of each kernel."""
    text = subprocess.run([nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    for section in re.split(r"(?m)^//-+ \.text\.", text)[1:]:
        labels, instructions, waiting = {}, [], []
        for line in section.splitlines():
            if label := re.match(r"(\.\S+):", line):
                waiting.append(label[1])
            elif code := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", line):
                at = int(code[1], 16)
                labels.update((name, at) for name in waiting)
                waiting = []
                name, *parts = code[2].split(".")
                target = re.search(r"`\((\S+)\)", code[3]) if name == "BRA" else None
                instructions.append(Instruction(at, name, parts, code[3], target[1] if target else None))
        registers = re.search(r"SHI_REGISTERS=(\d+)|REG_COUNT\s*=?\s*(\d+)", section)
        yield (section.split()[0], registers and registers[1],
               [i._replace(to=labels.get(i.to)) for i in instructions])


def loops_of(instructions):
    """(first address, instructions, whether others lie within) of each loop; what lies within is left out."""
    last = {}
    for i in instructions:
        # (A branch to itself fills the end of a kernel.)
        if i.to is not None and i.to < i.at:
            last[i.to] = max(i.at, last.get(i.to, 0))
    for a, b in sorted(last.items()):
        inner = [(c, d) for c, d in last.items() if (c, d) != (a, b) and a <= c and d <= b]
        yield a, [i for i in instructions if a <= i.at <= b and not any(c <= i.at <= d for c, d in inner)], bool(inner)


def blocks_of(loop):
    """Pieces of a loop: none is entered or left but at its ends, or crosses what was left out."""
    starts = {i.to for i in loop if i.to is not None}
    piece = []
    for i in loop:
        if piece and (i.at in starts or piece[-1].to is not None or i.at - piece[-1].at > 16):
            yield piece
            piece = []
        piece.append(i)
    yield piece


def bytes_of(i):
    """Bytes a lane moves; of ldmatrix the matrices."""
    if i.name == "LDSM":
        return next((p for p in ("4", "2") if p in i.parts), "1")
    sizes = {"U8": "1", "S8": "1", "U16": "2", "S16": "2", "64": "8", "128": "16", "256": "32"}
    return next((sizes[p] for p in i.parts if p in sizes), "4")


def in_flight(instructions):
    """Most global reads that are under way at once, if each is waited for where its result is first used."""
    most, waiting = 0, []  # of each: its registers
    for i in instructions:
        used = {int(r) for r in re.findall(r"\bR(\d+)", i.operands)}
        done = [n for n, registers in enumerate(waiting) if registers & used]
        if done and MEMORY.get(i.name) != "ldg":
            waiting = waiting[done[-1] + 1:]
        if MEMORY.get(i.name) == "ldg" and (to := re.search(r"\bR(\d+)", i.operands)):
            waiting.append(set(range(int(to[1]), int(to[1]) + max(int(bytes_of(i)) // 4, 1))))
            most = max(most, len(waiting))
    return most


def mix_of(instructions):
    """What a loop consists of: class -> text."""
    counts, widths = collections.Counter(), collections.defaultdict(collections.Counter)
    for i in instructions:
        if kind := MEMORY.get(i.name):
            widths[kind][bytes_of(i)] += 1
        else:
            counts[next((kind for kind, names in OTHERS if re.fullmatch(names, i.name)), "int")] += 1
    mix = {kind: str(count) for kind, count in counts.items()}
    for kind, of in widths.items():
        mix[kind] = " ".join(f"{count}x{size}" for size, count in sorted(of.items(), key=lambda x: -int(x[0])))
    if fly := in_flight(instructions):
        mix["fly"] = str(fly)
    return mix


def row_of(name, registers, label, instructions):
    mix = mix_of(instructions)
    return [name, registers or "", label, str(len(instructions)), *(mix.get(c, "") for c in CLASSES)]


def compiled(sources, arch, nvcc, folder):
    """The cubins of sources, or of the folders among them."""
    for source in map(pathlib.Path, sources):
        if source.is_dir():
            yield from sorted(source.glob("*.cubin"))
            continue
        to = pathlib.Path(folder, source.stem + ".cubin")
        command = [nvcc, "-O3", "-std=c++17", f"-arch={arch}", "-cubin", f"-I{source.parent}", "-o", str(to), str(source)]
        subprocess.run(command, check=True)
        yield to


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sources", nargs="+")
    arguments.add_argument("--arch", default="sm_89")
    arguments.add_argument("--kernel", default="", help="only kernels with this in their name")
    arguments.add_argument("--least", type=int, default=12, help="no loops of fewer instructions")
    arguments.add_argument("--blocks", action="store_true", help="loops in pieces, and where each may branch to")
    arguments.add_argument("--nvcc", default="nvcc")
    arguments.add_argument("--nvdisasm", default="nvdisasm")
    a = arguments.parse_args()
    rows = [["kernel", "regs", "loop", "n", *CLASSES]]
    with tempfile.TemporaryDirectory() as folder:
        for cubin in compiled(a.sources, a.arch, a.nvcc, folder):
            for name, registers, code in kernels_of(cubin, a.nvdisasm):
                if a.kernel not in name:
                    continue
                rows.append(row_of(name, registers, "whole", code))
                for at, loop, holds in loops_of(code):
                    if len(loop) < a.least:
                        continue
                    rows.append(row_of(name, registers, f"{at:04x}" + "*" * holds, loop))
                    for piece in blocks_of(loop) if a.blocks else ():
                        to = piece[-1].to
                        label = f"  {piece[0].at:04x}" + (f" > {to:04x}" if to is not None else "")
                        rows.append(row_of("", "", label, piece))
    shown = [c for c in range(len(rows[0])) if any(row[c] for row in rows[1:])]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        print("  ".join(row[c].ljust(widths[c]) for c in shown).rstrip())


if __name__ == "__main__":
    main()
