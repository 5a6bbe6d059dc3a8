"""What gpu_kernels.py and gpu_steps.py share: what machine this is, and how results are written."""

import importlib.metadata
import json
import os
import subprocess

LIBRARIES = [
    "torch",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "liger-kernel",
    "unsloth",
    "unsloth-zoo",
    "trl",
    "cut-cross-entropy",
]


def versions():
    """Version of each library that is installed; None for one that is not."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def driver_version():
    """As nvidia-smi says it; None without it."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine(dry):
    """The device and the software, for the head of a result file."""
    import torch

    said = {"dry_run": dry, "versions": versions(), "cuda": torch.version.cuda, "driver": driver_version()}
    if dry or not torch.cuda.is_available():
        return said | {"device": "cpu (dry run: no figure means anything)"}
    p = torch.cuda.get_device_properties(0)
    return said | {
        "device": p.name,
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
    }


def reason_not_to_run(dry):
    """Why nothing can be timed here; None if it can, or if nothing is to be."""
    try:
        import torch
    except ImportError:
        return "no torch is installed for this Python: the peers are not timed"
    if not dry and not torch.cuda.is_available():
        return (
            "no NVIDIA GPU that torch can use is here: the peers are not timed (--dry-run builds everything on the CPU)"
        )
    return None


def one_line(e, width=110):
    """An exception for a table."""
    text = " ".join(f"{type(e).__name__}: {e}".split())
    return text if len(text) <= width else text[: width - 3] + "..."


def write_json(path, value):
    """Replaces the file as a whole, so that one that is cut off leaves the last complete one."""
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
    os.replace(part, path)
