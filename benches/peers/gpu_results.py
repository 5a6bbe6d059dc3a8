"""Reads what gpu_kernels.py and gpu_steps.py wrote, and refuses what must not be published: one line that names file and row."""

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

# As gpu_kernels.py: a result farther than this from plain f32 arithmetic is wrong.
OFF_LIMIT = 0.02
# As gpu_steps.py: mean distance of two loss curves up to which bf16 explains it.
LOSS_LIMIT = 5e-3
# The median is to be of so many steps at least.
LEAST_STEPS = 20

MACHINE = {"dry_run", "versions", "cuda", "driver", "device", "capability", "multiprocessors", "memory_bytes", "l2_bytes"}
KERNEL_ROW = {"library", "case", "peer", "note"}
KERNEL_TIMED = {"us", "how", "launched_us", "off", "tflops", "gbs", "copies", "samples"}
STEP_ROW = {"model", "peer", "tokens"}
STEP_TIMED = {"step_ms", "losses", "ms", "timed_steps", "tokens_s", "loss_off", "driver_peak"}
STEP_SAID = {"note", "attention", "torch_peak", "times_ours", "our_memory", "driver_peak"}


class Refused(Exception):
    """Results that are not published, in one line."""


@dataclass
class Peer:
    """One kernel of another, at one case."""

    library: str
    name: str
    us: float
    how: str
    """"graph" or "launched"."""


@dataclass
class Run:
    """One program's training steps of one model and token count."""

    name: str
    ms: float
    tokens_s: float
    peak: float
    """Bytes by the driver; None where it was not asked."""


@dataclass
class Steps:
    ours: Run
    """The slower of our two runs."""
    peers: list
    least_ms: dict
    """Least ms of a step by the peak figures of a card, by its name; "here" is the card that was measured."""


@dataclass
class Results:
    """Of one device."""

    machine: dict
    ours: dict = field(default_factory=dict)
    """Case: (us, how)."""
    kernels: dict = field(default_factory=dict)
    """Case: its timed peers."""
    steps: dict = field(default_factory=dict)
    """(model, tokens): Steps."""
    remarks: list = field(default_factory=list)
    """What is not compared, and why."""


def folder_name(device):
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def files_of(folder):
    """The result files in a folder; a measurement of steps may come in several."""
    found = [p for p in sorted(Path(folder).glob("*.json")) if re.fullmatch(r"gpu_(kernels|steps.*)\.json", p.name)]
    other = set(Path(folder).glob("*.json")) - set(found)
    if other:
        raise Refused(f"{min(other)}: is neither gpu_kernels.json nor gpu_steps*.json")
    if not found:
        raise Refused(f"{folder}: holds no gpu_kernels.json and no gpu_steps*.json")
    return found


def read(folder):
    """The results of one device, from all files of a folder.

    Raises Refused."""
    results = None
    for path in files_of(folder):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise Refused(f"{path}: is no JSON: {e}") from None
        kernels = path.name == "gpu_kernels.json"
        keys(said, path, {"machine", "rows", "ours" if kernels else "budget_s"})
        machine = machine_of(said["machine"], path)
        if results is None:
            results = Results(machine)
        elif machine != results.machine:
            raise Refused(f"{path}: was measured with another card, driver or library than the other files of {folder}")
        if not isinstance(said["rows"], list) or not said["rows"]:
            raise Refused(f"{path}: has no rows")
        (read_kernels if kernels else read_steps)(results, said, path)
    return results


def machine_of(said, path):
    where = f"{path}: machine"
    if not isinstance(said, dict) or not said.get("device"):
        raise Refused(f"{path}: does not name the device")
    if said.get("dry_run") is not False:
        raise Refused(f"{path}: is of a dry run")
    keys(said, where, MACHINE)
    if not isinstance(said["versions"], dict):
        raise Refused(f"{where}: versions are not named")
    for name in ("multiprocessors", "memory_bytes", "l2_bytes"):
        positive(said, name, where)
    return said


def keys(said, where, required, optional=frozenset()):
    """Refuses what lacks a field, or has one that this script would pass over."""
    if not isinstance(said, dict):
        raise Refused(f"{where}: is no object")
    for what, found in (("lacks", required - said.keys()), ("has the unknown field", said.keys() - required - optional)):
        if found:
            raise Refused(f"{where}: {what} {', '.join(sorted(found))}")


def positive(said, name, where):
    """A figure: finite and above 0, so that NaN is refused as well."""
    value = said[name]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise Refused(f"{where}: {name} is {value}, not a positive figure")
    return value


def distance(said, name, where):
    value = said[name]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise Refused(f"{where}: {name} is {value}, not a distance")


def rows_of(said, path, needed, name_of):
    """Each row with its name and place; that all have the `needed` fields and none stands there twice is checked."""
    seen = set()
    for n, row in enumerate(said["rows"], 1):
        if not isinstance(row, dict) or not needed <= row.keys():
            raise Refused(f"{path}: row {n} lacks {', '.join(sorted(needed - set(row)))}")
        what = name_of(row)
        if what in seen:
            raise Refused(f"{path}: {what}: stands there twice")
        seen.add(what)
        yield row, what, f"{path}: {what}"


def read_kernels(results, said, path):
    if not isinstance(said["ours"], dict) or not said["ours"]:
        raise Refused(f"{path}: has no figures of ours (gpu_kernels.py --ours)")
    for case, figure in said["ours"].items():
        where = f"{path}: {case}, ours"
        if not isinstance(figure, list) or len(figure) != 2:
            raise Refused(f"{where}: is not a time and how it ran")
        ours = dict(zip(("us", "how"), figure))
        results.ours[case] = (positive(ours, "us", where), how_of(ours, where))
    timed = 0
    for row, _, where in rows_of(said, path, KERNEL_ROW, lambda r: ", ".join(filter(None, [r["case"], r["peer"]]))):
        if "us" not in row:
            keys(row, where, KERNEL_ROW, {"off"})
            if not row["case"]:
                results.remarks.append(f"{row['peer']}: {row['note']}")
            continue
        keys(row, where, KERNEL_ROW | KERNEL_TIMED)
        for name in ("us", "launched_us", "gbs", "copies", "samples"):
            positive(row, name, where)
        distance(row, "off", where)
        if row["off"] > OFF_LIMIT:
            raise Refused(f"{where}: its result is off by {row['off']}, the limit is {OFF_LIMIT}")
        peer = Peer(row["library"], row["peer"], row["us"], how_of(row, where))
        results.kernels.setdefault(row["case"], []).append(peer)
        timed += 1
    if timed < len(said["rows"]):
        untimed = f"{len(said['rows']) - timed} of {len(said['rows'])} rows of kernels"
        results.remarks.append(f"{untimed} were not timed; {path.name} says why of each")


def how_of(said, where):
    if said["how"] not in ("graph", "launched"):
        raise Refused(f"{where}: ran as `{said['how']}`, which is neither a graph nor launched")
    return said["how"]


def step_name(row):
    count = f"{row['tokens']} tokens" if row["tokens"] else None
    return ", ".join(filter(None, [row["model"], count, row["peer"]]))


def is_ours(row):
    return str(row.get("peer")).startswith("qlora-engine")


def read_steps(results, said, path):
    """The rows of a file; ours has to be in the same one, so that both ran beside each other."""
    ours, peers, least = {}, {}, {}
    beside = {(r.get("model"), r.get("tokens")) for r in said["rows"] if isinstance(r, dict) and "ms" in r and is_ours(r)}
    for row, what, where in rows_of(said, path, STEP_ROW, step_name):
        if "ms" not in row:
            keys(row, where, STEP_ROW | {"note"}, STEP_SAID)
            results.remarks.append(f"{what}: {row['note']}")
            continue
        mine, case = is_ours(row), (row["model"], row["tokens"])
        if case not in beside:
            results.remarks.append(f"{what} is not compared: no run of ours was timed beside it")
            continue
        keys(row, where, STEP_ROW | STEP_TIMED, STEP_SAID | {"least_ms"})
        run, off = run_of(row, where), row["loss_off"]
        why = row.get("note")
        if off > LOSS_LIMIT:
            why = f"its losses are off by {off:.1e} from ours, the limit is {LOSS_LIMIT}"
        if mine and why:
            raise Refused(f"{where}: {why}")
        if mine and row.get("least_ms"):
            least[case] = row["least_ms"]
            for card in least[case]:
                positive(least[case], card, f"{where}, least_ms")
        if why:
            results.remarks.append(f"{what} is not compared: {why}")
        else:
            (ours if mine else peers).setdefault(case, []).append(run)
    for case, runs in ours.items():
        if case in results.steps:
            raise Refused(f"{path}: {case[0]}, {case[1]} tokens: stands in another file as well")
        slower = max(runs, key=lambda run: run.ms)
        results.steps[case] = Steps(slower, peers.get(case, []), least.get(case, {}))


def run_of(row, where):
    for name in ("tokens", "ms", "tokens_s", "timed_steps"):
        positive(row, name, where)
    distance(row, "loss_off", where)
    for name in ("losses", "step_ms"):
        if not isinstance(row[name], list):
            raise Refused(f"{where}: {name} is no list")
    for n, loss in enumerate(row["losses"], 1):
        positive({"loss": loss}, "loss", f"{where}, step {n}")
    if row["timed_steps"] < LEAST_STEPS:
        raise Refused(f"{where}: {row['timed_steps']} steps were timed, {LEAST_STEPS} are needed")
    # The first of ours has no time, and is among those that warm up.
    timed = row["step_ms"][-row["timed_steps"] :]
    for n, ms in enumerate(timed, len(row["step_ms"]) - len(timed) + 1):
        positive({"ms": ms}, "ms", f"{where}, step {n}")
    median = statistics.median(timed)
    if not math.isclose(row["ms"], median, rel_tol=1e-9):
        raise Refused(f"{where}: ms is {row['ms']}, the median of its steps is {median}")
    peak = row["driver_peak"]
    return Run(row["peer"], row["ms"], row["tokens_s"], None if peak is None else positive(row, "driver_peak", where))
