"""Writes the performance tables of README.md from the committed results, so that no figure there is written by hand.

    python3 benches/peers/readme_table.py                # writes what benches/results/ holds into README.md
    python3 benches/peers/readme_table.py --check        # fails if README.md says anything else
    python3 benches/peers/readme_table.py --take out     # first takes the results of `bash run.sh` into benches/results/

Results lie in benches/results/DEVICE/: gpu_kernels.json and gpu_steps*.json, as gpu_kernels.py and gpu_steps.py write them. What
is not to be published is refused in one line (gpu_results.py).
"""

import argparse
import difflib
import re
import shutil
import sys
from html import escape
from pathlib import Path

from gpu_results import Refused, files_of, folder_name, read

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- performance: begin (written by benches/peers/readme_table.py) -->"
END = "<!-- performance: end -->"
NOTHING = (
    "No card has been measured yet: `make gpu-bundle`, then `bash run.sh` in that folder on a machine with a GPU measures one,\n"
    "and `python3 benches/peers/readme_table.py --take out` writes it here.\n"
)

# What is wanted on an H100, as the peer's time over ours in one run.
# What it is called, part of a case's name, the peer (of several, the fastest), ratio.
KERNELS_WANTED = [
    ("NF4 dequantise", r" nf4 dequantise ", lambda p: p.library == "bitsandbytes", 1.4),
    # The cases have 1024 tokens, unless their model says otherwise.
    ("NF4 linear, 1024 tokens", r"^[^@]+ linear \S+ nf4 fwd", lambda p: p.library == "bitsandbytes", 1.2),
    ("NF4 linear, 4096 tokens", r"@4096 linear \S+ nf4 fwd", lambda p: p.library == "bitsandbytes", 1.05),
    ("attention forward", r" attention \S+ fwd$", lambda p: p.name == "SDPA flash", 0.95),
    ("linear cross-entropy", r" linear_cross_entropy ", lambda p: True, 1.2),
    ("AdamW with clipping", r" adamw ", lambda p: True, 2.0),
]
# Its backward alone is the difference of two cases, deterministic on both sides.
BACKWARD_WANTED = ("attention backward", "SDPA flash, deterministic", "SDPA flash", 0.9)
# The model's name begins so, tokens, family of peers (of whose settings the fastest counts), ratio.
STEPS_WANTED = [
    ("qwen3-0.6b", 512, "Unsloth", 4.0),
    ("qwen3-0.6b", 512, "PEFT", 10.0),
    ("qwen3-0.6b", 8192, "Unsloth", 1.8),
    ("qwen3-0.6b", 8192, "PEFT", 3.0),
    ("llama-2-7b", 4096, "Unsloth", 1.3),
    ("llama-2-7b", 4096, "PEFT", 1.5),
]
FAMILIES = ("PEFT", "Unsloth")
# Our peak memory over that of Unsloth's fastest setting.
MEMORY_WANTED = 0.8
PROJECTED = {"rtx3080": "RTX 3080", "rtx4090": "RTX 4090"}


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fastest(peers, which=lambda p: True):
    """The fastest of those peers; None if there is none."""
    return min(filter(which, peers), key=lambda p: getattr(p, "us", None) or p.ms, default=None)


def of_family(steps, family):
    """The fastest setting of a family of programs."""
    return fastest(steps.peers, lambda run: run.name.startswith(family))


def verdict(measured, least):
    return "not measured" if measured is None else "reached" if measured >= least else "**not reached**"


def cases_of(results):
    """Kernels that we or a peer have a figure of."""
    return list(dict.fromkeys([*results.ours, *results.kernels]))


# ---- what is wanted


def wanted(results):
    """Rows: what, case, peer, wanted, measured, verdict."""
    rows = []

    def row(what, case, peer, least, measured):
        said = "" if measured is None else f"{measured:.2f}"
        rows.append([what, case, peer, f"{least:g}", said, verdict(measured, least)])

    for what, pattern, which, least in KERNELS_WANTED:
        cases = [case for case in cases_of(results) if re.search(pattern, case)]
        for case in cases or [""]:
            peer = fastest(results.kernels.get(case, []), which)
            measured = peer.us / results.ours[case][0] if peer and case in results.ours else None
            row(what, case, peer.name if peer else "", least, measured)
    what, both, forward, least = BACKWARD_WANTED
    cases = [case for case in cases_of(results) if re.search(r" attention \S+ fwd \+ bwd$", case)]
    for case in cases or [""]:
        row(what, case.replace("fwd + bwd", "(fwd + bwd) - fwd"), both, least, backward(results, case, both, forward))
    for model, tokens, family, least in STEPS_WANTED:
        case = next((c for c in results.steps if c[0].startswith(model) and c[1] == tokens), (model, tokens))
        steps = results.steps.get(case)
        peer = of_family(steps, family) if steps else None
        measured = peer.ms / steps.ours.ms if peer else None
        row("step", f"{case[0]}, {tokens} tokens", peer.name if peer else family, least, measured)
    return rows + memory_wanted(results)


def backward(results, case, both, forward):
    """The peer's time over ours of a backward pass alone; None where a figure lacks or the difference says nothing."""
    alone = case.removesuffix(" + bwd")
    # Forward has no order of sums to fix: there the peer is the same by its plain name.
    whole = fastest(results.kernels.get(case, []), lambda p: p.name == both)
    part = fastest(results.kernels.get(alone, []), lambda p: p.name == forward)
    if not (whole and part and case in results.ours and alone in results.ours):
        return None
    theirs, ours = whole.us - part.us, results.ours[case][0] - results.ours[alone][0]
    return theirs / ours if min(theirs, ours) > 0 else None


def memory_wanted(results):
    rows = []
    for (model, tokens), steps in sorted(results.steps.items()):
        peer = of_family(steps, "Unsloth")
        share = memory_share(steps, peer)
        said = "not measured" if share is None else "reached" if share <= MEMORY_WANTED else "**not reached**"
        shown = "" if share is None else f"{share:.2f}"
        name = peer.name if peer else "Unsloth"
        rows.append(["peak memory", f"{model}, {tokens} tokens", name, f"at most {MEMORY_WANTED}", shown, said])
    return rows or [["peak memory", "", "Unsloth", f"at most {MEMORY_WANTED}", "", "not measured"]]


def memory_share(steps, peer):
    return steps.ours.peak / peer.peak if peer and peer.peak and steps.ours.peak else None


# ---- what was measured


def kernel_rows(results):
    def shown(us, how):
        return f"{us:.1f}" + (" (launched)" if how == "launched" else "")

    rows = []
    for case in cases_of(results):
        ours, peer = results.ours.get(case), fastest(results.kernels.get(case, []))
        theirs = [peer.name, shown(peer.us, peer.how)] if peer else ["none timed", ""]
        ratio = f"{peer.us / ours[0]:.2f}" if peer and ours else ""
        rows.append([case, shown(*ours) if ours else "none", *theirs, ratio])
    return rows


def step_rows(results):
    rows = []
    for (model, tokens), steps in sorted(results.steps.items()):
        case = [model, str(tokens), f"{steps.ours.ms:.2f}", f"{steps.ours.tokens_s:.0f}"]
        timed = [peer for family in FAMILIES if (peer := of_family(steps, family))]
        for peer in timed:
            share = memory_share(steps, peer)
            memory = "" if share is None else f"{share:.2f}"
            rows.append([*case, peer.name, f"{peer.ms:.2f}", f"{peer.ms / steps.ours.ms:.2f}", memory])
        if not timed:
            rows.append([*case, "none timed", "", "", ""])
    return rows


def projections(results):
    """Rows for cards that nobody has measured: their least time over the share of it that the measured card reaches."""
    rows = []
    for (model, tokens), steps in sorted(results.steps.items()):
        for card, name in PROJECTED.items():
            if "here" not in steps.least_ms or card not in steps.least_ms:
                continue
            here, there, ms = steps.least_ms["here"], steps.least_ms[card], steps.ours.ms
            share = f"{here:.2f} / {ms:.2f} = {here / ms:.3f}"
            rows.append([model, str(tokens), name, f"{there:.2f}", share, f"{there * ms / here:.2f}"])
    return rows


def section(results):
    """All that is said of one device."""
    m = results.machine
    here = [f"{name} {version}" for name, version in m["versions"].items() if version]
    absent = [name for name, version in m["versions"].items() if not version]
    text = f"### {m['device']}\n\nDriver {m['driver'] or 'unknown'}, CUDA {m['cuda']}; {', '.join(here)}."
    text += f" Absent: {', '.join(absent)}.\n\n" if absent else "\n\n"
    text += "What is wanted on an H100, as the peer's time over ours in the same run:\n\n"
    text += table(["", "case", "peer", "wanted", "measured", ""], wanted(results))
    if results.steps:
        text += "\nWhole training steps, the fastest setting of each peer:\n\n"
        head = ["model", "tokens", "ours, ms", "tokens/s", "peer", "its ms", "times as fast", "our memory / its"]
        text += table(head, step_rows(results))
    if results.ours:
        text += "\n<details><summary>Kernels, the fastest peer of each</summary>\n\n"
        text += table(["case", "ours, us", "peer", "its us", "times as fast"], kernel_rows(results))
        text += "\n</details>\n"
    if projected := projections(results):
        text += "\n**Projected, not measured**: the least time of a step by the peak figures of a card that was not here, over\n"
        text += f"the share of its own least time that the {m['device']} reached; another card may reach another share.\n\n"
        head = ["model", "tokens", "card", "its least ms", "share reached here", "projected ms"]
        text += table(head, projected)
    if results.remarks:
        text += "\nLeft out:\n\n" + "".join(f"- {escape(remark, quote=False)}\n" for remark in results.remarks)
    return text


# ---- the file


def written(readme, folder):
    """What README.md is to be.

    Raises Refused."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Refused(f"{readme}: needs the two lines that the tables stand between, each once: {BEGIN} and {END}")
    devices = []
    for path in sorted(p for p in folder.glob("*") if p.is_dir()):
        results = read(path)
        device = results.machine["device"]
        if path.name != folder_name(device):
            raise Refused(f"{path}: is of {device}; the folder is to be {folder_name(device)}")
        devices.append(section(results))
    stray = sorted(folder.glob("*.json"))
    if stray:
        raise Refused(f"{stray[0]}: belongs into a folder of its device")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{chr(10).join(devices) or NOTHING}\n{after}"


def take(source, folder):
    """Copies the results of one measurement, once they have been read, over files of the same names."""
    device = folder / folder_name(read(source).machine["device"])
    device.mkdir(parents=True, exist_ok=True)
    for path in files_of(source):
        shutil.copy(path, device)


def main(arguments=None):
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--check", action="store_true", help="write nothing; fail if README.md is not what would be written")
    ask.add_argument("--take", type=Path, metavar="FOLDER", help="first copy the results in this folder")
    ask.add_argument("--readme", type=Path, default=ROOT / "README.md")
    ask.add_argument("--results", type=Path, default=ROOT / "benches" / "results")
    args = ask.parse_args(arguments)
    try:
        if args.take:
            take(args.take, args.results)
        text = written(args.readme, args.results)
    except Refused as e:
        return f"readme_table: {e}"
    if not args.check:
        args.readme.write_text(text, encoding="utf-8")
        return None
    found = args.readme.read_text(encoding="utf-8")
    if found == text:
        return None
    print("".join(difflib.unified_diff(found.splitlines(True), text.splitlines(True), "README.md", "from the results")))
    return "readme_table: README.md is not what the results say; run python3 benches/peers/readme_table.py"


if __name__ == "__main__":
    sys.exit(main())
