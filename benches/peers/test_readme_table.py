"""Tests of readme_table.py, on made-up results in a temporary folder: python3 benches/peers/test_readme_table.py."""

import contextlib
import io
import json
import math
import tempfile
import unittest
from pathlib import Path

import gpu_common
import gpu_kernels
import gpu_results
import gpu_steps
import readme_table

MACHINE = {
    "dry_run": False,
    "versions": {"torch": "2.11.0", "unsloth": None},
    "cuda": "13.0",
    "driver": "580.1",
    "device": "NVIDIA Made-Up 1",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 80 << 30,
    "l2_bytes": 50 << 20,
}


def kernel(case, library, peer, us, how="graph"):
    said = {"library": library, "case": case, "peer": peer, "us": us, "how": how, "launched_us": us + 1, "off": 1e-3}
    return said | {"note": "", "tflops": 0.0, "gbs": 100.0, "copies": 2, "samples": 25}


def kernels():
    both, forward = "M attention 8/8x128 fwd + bwd", "M attention 8/8x128 fwd"
    rows = [
        kernel("M nf4 dequantise 64x64", "bitsandbytes", "bitsandbytes dequantize_4bit", 15.0),
        kernel("M nf4 dequantise 64x64", "unsloth", "Unsloth fast_dequantize", 14.0, "launched"),
        kernel(forward, "torch", "SDPA flash", 9.0),
        kernel(forward, "torch", "SDPA cuDNN", 5.0),
        kernel(both, "torch", "SDPA flash, deterministic", 39.0),
        kernel("M linear_cross_entropy 64x8", "liger", "Liger fused linear CE", 20.0),
        {"library": "liger", "case": "", "peer": "liger", "note": "not installed: <no module>"},
        {"library": "torch", "case": "M adamw + clip 64", "peer": "AdamW", "note": "failed: OutOfMemory"},
    ]
    ours = {"M nf4 dequantise 64x64": [10.0, "graph"], forward: [10.0, "graph"], both: [50.0, "graph"]}
    return {"machine": MACHINE, "rows": rows, "ours": ours | {"M adamw + clip 64": [7.0, "launched"]}}


def step(peer, ms, peak, model="qwen3-0.6b", tokens=512, **more):
    times = [None] + [ms] * 49 if peer.startswith("qlora") else [ms] * 50
    said = {"peer": peer, "tokens": tokens, "model": model, "step_ms": times, "losses": [10.0] * 50, "ms": ms}
    return said | {"timed_steps": 40, "tokens_s": tokens / ms * 1e3, "loss_off": 1e-3, "driver_peak": peak} | more


def steps():
    least = {"here": 5.0, "rtx3080": 60.0}
    rows = [
        step("qlora-engine", 9.0, 1000, least_ms=least),
        step("qlora-engine, again", 10.0, 1000),
        step("PEFT, checkpointing off", 110.0, 2000, torch_peak=1500, times_ours=11.0, our_memory=0.5),
        step("PEFT + Liger, checkpointing off", 90.0, None, attention="attention: flash"),
        step("Unsloth, checkpointing off", 30.0, 1250),
        step("Unsloth, checkpointing on", 20.0, 900, loss_off=0.1),
        {"model": "", "peer": "compile", "tokens": None, "note": "left out: the time was up"},
    ]
    return {"machine": MACHINE, "budget_s": 540.0, "rows": rows}


def with_row(value, n, **fields):
    """Results with other fields in row `n`."""
    value["rows"][n] |= fields
    return value


class Tables(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.device = self.root / "results" / "nvidia-made-up-1"
        self.device.mkdir(parents=True)
        self.readme = self.root / "README.md"
        self.readme.write_text(f"before\n{readme_table.BEGIN}\nstale\n{readme_table.END}\nafter\n")

    def run_it(self, *arguments):
        """What the script ends with: None, or why it fails."""
        with contextlib.redirect_stdout(io.StringIO()):
            return readme_table.main(["--readme", str(self.readme), "--results", str(self.root / "results"), *arguments])

    def write(self, name, value):
        gpu_common.write_json(self.device / name, value)

    def text(self):
        return self.readme.read_text()

    def test_without_results_it_says_so(self):
        self.device.rmdir()
        self.assertIsNone(self.run_it())
        self.assertIn("No card has been measured yet", self.text())
        self.assertNotIn("stale", self.text())
        self.assertTrue(self.text().startswith("before\n") and self.text().endswith("\nafter\n"))
        self.assertIsNone(self.run_it("--check"))

    def test_the_tables(self):
        self.write("gpu_kernels.json", kernels())
        self.write("gpu_steps.json", steps())
        self.assertIsNone(self.run_it())
        want = [
            "### NVIDIA Made-Up 1",
            "Driver 580.1, CUDA 13.0; torch 2.11.0. Absent: unsloth.",
            # Of several peers the one that is named, and of ours the slower run.
            "| NF4 dequantise | M nf4 dequantise 64x64 | bitsandbytes dequantize_4bit | 1.4 | 1.50 | reached |",
            "| NF4 linear, 4096 tokens |  |  | 1.05 |  | not measured |",
            "| attention forward | M attention 8/8x128 fwd | SDPA flash | 0.95 | 0.90 | **not reached** |",
            # (39 - 9) / (50 - 10)
            "| attention backward | M attention 8/8x128 (fwd + bwd) - fwd | SDPA flash, deterministic | 0.9 | 0.75 | **not reached** |",
            "| linear cross-entropy | M linear_cross_entropy 64x8 | Liger fused linear CE | 1.2 |  | not measured |",
            "| AdamW with clipping | M adamw + clip 64 |  | 2 |  | not measured |",
            "| step | qwen3-0.6b, 512 tokens | Unsloth, checkpointing off | 4 | 3.00 | **not reached** |",
            "| step | qwen3-0.6b, 512 tokens | PEFT + Liger, checkpointing off | 10 | 9.00 | **not reached** |",
            "| step | llama-2-7b, 4096 tokens | PEFT | 1.5 |  | not measured |",
            "| peak memory | qwen3-0.6b, 512 tokens | Unsloth, checkpointing off | at most 0.8 | 0.80 | reached |",
            "| qwen3-0.6b | 512 | 10.00 | 51200 | PEFT + Liger, checkpointing off | 90.00 | 9.00 |  |",
            "| qwen3-0.6b | 512 | 10.00 | 51200 | Unsloth, checkpointing off | 30.00 | 3.00 | 0.80 |",
            "| M nf4 dequantise 64x64 | 10.0 | Unsloth fast_dequantize | 14.0 (launched) | 1.40 |",
            "| M adamw + clip 64 | 7.0 (launched) | none timed |  |  |",
            "| M linear_cross_entropy 64x8 | none | Liger fused linear CE | 20.0 |  |",
            "**Projected, not measured**",
            "| qwen3-0.6b | 512 | RTX 3080 | 60.00 | 5.00 / 10.00 = 0.500 | 120.00 |",
            "- liger: not installed: &lt;no module&gt;",
            "- 2 of 8 rows of kernels were not timed; gpu_kernels.json says why of each",
            "- compile: left out: the time was up",
            "- qwen3-0.6b, 512 tokens, Unsloth, checkpointing on is not compared: its losses are off by 1.0e-01 from ours, the limit is 0.005",
        ]
        lines = self.text().split("\n")
        for line in want:
            self.assertTrue(any(found.startswith(line) for found in lines), f"{line}\n{self.text()}")
        self.assertNotIn("RTX 4090", self.text())
        self.assertIsNone(self.run_it("--check"))

    def test_steps_in_several_files_and_nothing_else(self):
        other = steps()
        other["rows"] = [step("qlora-engine", 9.0, 1, model="llama-2-7b (8 of 32 layers)", tokens=4096)]
        self.write("gpu_steps-qwen3-0.6b.json", steps())
        self.write("gpu_steps-llama-2-7b.json", other)
        self.assertIsNone(self.run_it())
        self.assertIn("| llama-2-7b (8 of 32 layers) | 4096 | 9.00 | 455111 | none timed |  |  |  |\n", self.text())
        self.assertNotIn("<details>", self.text())

    def test_peers_where_ours_failed_are_no_comparison(self):
        value = steps()
        value["rows"][:2] = [{"model": "qwen3-0.6b", "peer": "qlora-engine", "tokens": 512, "note": "out of memory"}]
        # Nothing was there to compare the losses with.
        del value["rows"][1]["loss_off"]
        self.write("gpu_steps.json", value)
        self.assertIsNone(self.run_it())
        self.assertIn("- qwen3-0.6b, 512 tokens, qlora-engine: out of memory\n", self.text())
        remark = "PEFT, checkpointing off is not compared: no run of ours was timed beside it\n"
        self.assertIn(f"- qwen3-0.6b, 512 tokens, {remark}", self.text())
        self.assertIn("| step | qwen3-0.6b, 512 tokens | PEFT | 10 |  | not measured |", self.text())
        self.assertNotIn("Whole training steps", self.text())

    def test_a_changed_readme_is_seen(self):
        self.write("gpu_kernels.json", kernels())
        self.assertIsNone(self.run_it())
        self.readme.write_text(self.text().replace("1.50", "1.60"))
        changed = self.text()
        self.assertIn("is not what the results say", self.run_it("--check"))
        self.assertEqual(self.text(), changed, "a check writes nothing")
        self.readme.write_text("no marks\n")
        self.assertIn("needs the two lines", self.run_it("--check"))

    def test_results_are_taken(self):
        out = self.root / "out"
        out.mkdir()
        gpu_common.write_json(out / "gpu_kernels.json", kernels())
        self.write("gpu_steps.json", steps())
        self.assertIsNone(self.run_it("--take", str(out)))
        self.assertEqual({p.name for p in self.device.iterdir()}, {"gpu_kernels.json", "gpu_steps.json"})
        self.assertIn("Whole training steps", self.text())
        self.assertIn("### NVIDIA Made-Up 1", self.text())
        gpu_common.write_json(out / "gpu_kernels.json", kernels() | {"machine": MACHINE | {"dry_run": True}})
        self.assertIn("is of a dry run", self.run_it("--take", str(out)))

    def refused(self, name, value, *said):
        """Refused in one line that says all this, and README.md is left alone."""
        self.write(name, value)
        before, why = self.text(), self.run_it()
        self.assertIsNotNone(why, said)
        for part in (name, *said):
            self.assertIn(part, why)
        self.assertNotIn("\n", why)
        self.assertEqual(self.text(), before)
        (self.device / name).unlink()

    def test_what_is_refused_of_kernels(self):
        name, row = "gpu_kernels.json", "M nf4 dequantise 64x64, bitsandbytes dequantize_4bit"
        nowhere = {k: v for k, v in MACHINE.items() if k != "device"}
        self.refused(name, kernels() | {"machine": MACHINE | {"dry_run": True}}, "dry run")
        self.refused(name, kernels() | {"machine": nowhere}, "does not name the device")
        self.refused(name, kernels() | {"machine": MACHINE | {"device": ""}}, "does not name the device")
        self.refused(name, kernels() | {"machine": None}, "does not name the device")
        self.refused(name, kernels() | {"machine": MACHINE | {"clocks": 1}}, "unknown field clocks")
        self.refused(name, kernels() | {"extra": 1}, "unknown field extra")
        self.refused(name, kernels() | {"rows": []}, "no rows")
        self.refused(name, kernels() | {"ours": {}}, "no figures of ours")
        self.refused(name, kernels() | {"ours": {"M x": [math.nan, "graph"]}}, "M x, ours", "us is nan")
        self.refused(name, [], "is no object")
        for us in (math.nan, math.inf, 0, -1.0, None, "1", True):
            self.refused(name, with_row(kernels(), 0, us=us), row, f"us is {us}")
        self.refused(name, with_row(kernels(), 0, off=0.03), row, "off by 0.03, the limit is 0.02")
        self.refused(name, with_row(kernels(), 0, off=math.nan), row, "off is nan")
        self.refused(name, with_row(kernels(), 0, how="guessed"), row, "guessed")
        self.refused(name, with_row(kernels(), 0, warm=1), row, "unknown field warm")
        for missing in ("off", "how", "gbs"):
            value = kernels()
            del value["rows"][0][missing]
            self.refused(name, value, row, f"lacks {missing}")
        value = kernels()
        del value["rows"][1]["peer"]
        self.refused(name, value, "row 2 lacks peer")
        self.refused(name, kernels() | {"rows": kernels()["rows"][:1] * 2}, row, "stands there twice")

    def test_what_is_refused_of_steps(self):
        name, row = "gpu_steps.json", "qwen3-0.6b, 512 tokens, PEFT, checkpointing off"
        self.refused(name, with_row(steps(), 2, ms=math.nan), row, "ms is nan")
        self.refused(name, with_row(steps(), 2, ms=100.0), row, "the median of its steps is 110.0")
        self.refused(name, with_row(steps(), 2, loss_off=None), row, "loss_off is None")
        self.refused(name, with_row(steps(), 2, loss_off=math.nan), row, "loss_off is nan")
        self.refused(name, with_row(steps(), 2, losses=[10.0, math.nan]), row, "step 2: loss is nan")
        self.refused(name, with_row(steps(), 2, step_ms=[110.0] * 49 + [None]), row, "step 50: ms is None")
        self.refused(name, with_row(steps(), 2, timed_steps=19), row, "19 steps were timed, 20 are needed")
        self.refused(name, with_row(steps(), 2, driver_peak=0), row, "driver_peak is 0")
        self.refused(name, with_row(steps(), 2, seconds=1), row, "unknown field seconds")
        self.refused(name, with_row(steps(), 0, loss_off=0.1), "tokens, qlora-engine: its losses are off")
        self.refused(name, with_row(steps(), 0, least_ms={"here": 0}), "least_ms: here is 0")
        value = steps()
        del value["rows"][2]["loss_off"]
        self.refused(name, value, row, "lacks loss_off")
        self.refused("gpu_kernels-old.json", kernels(), "neither gpu_kernels.json nor gpu_steps*.json")
        self.write("gpu_kernels.json", kernels() | {"machine": MACHINE | {"driver": "570"}})
        self.refused(name, steps(), "another card, driver or library")
        (self.device / "gpu_kernels.json").unlink()
        self.write("gpu_steps-b.json", steps())
        self.refused(name, steps(), "stands in another file as well")
        (self.device / "gpu_steps-b.json").unlink()
        self.assertIn("holds no gpu_kernels.json", self.run_it())

    def test_a_file_that_is_cut_off_is_refused(self):
        (self.device / "gpu_steps.json").write_text(json.dumps(steps())[:1000])
        self.assertIn("gpu_steps.json: is no JSON", self.run_it())

    def test_a_file_in_the_wrong_place_is_refused(self):
        self.write("gpu_kernels.json", kernels() | {"machine": MACHINE | {"device": "Another"}})
        self.assertIn("is of Another; the folder is to be another", self.run_it())
        (self.device / "gpu_kernels.json").rename(self.root / "results" / "gpu_kernels.json")
        self.device.rmdir()
        self.assertIn("belongs into a folder of its device", self.run_it())


class Formats(unittest.TestCase):
    """The fields are those that the scripts write, and the limits theirs."""

    def test_the_limits_are_the_same(self):
        self.assertEqual(gpu_results.OFF_LIMIT, gpu_kernels.LIMIT)

    def test_what_the_parent_adds_to_steps_is_read(self):
        spec = {"title": "qwen3-0.6b", "warmup": 10, "steps": 50}
        rows = [
            {"peer": "qlora-engine", "tokens": 512, "step_ms": [math.nan] + [9.0] * 49, "driver_peak": 1000, "least_ms": {}},
            {"peer": "Unsloth, checkpointing off", "tokens": 512, "step_ms": [30.0] * 50, "driver_peak": 1250, "torch_peak": 3},
        ]
        rows = [gpu_steps.summarise(row | {"losses": [10.0] * 50}, spec) for row in rows]
        gpu_steps.compare(rows)
        results = gpu_results.Results(MACHINE)
        gpu_results.read_steps(results, {"rows": rows}, Path("gpu_steps.json"))
        found = results.steps[("qwen3-0.6b", 512)]
        self.assertEqual((found.ours.ms, found.peers[0].ms, found.peers[0].peak), (9.0, 30.0, 1250))

    def test_the_cases_that_are_wanted_exist(self):
        names = [case.name for case in gpu_kernels.cases(False)]
        for what, pattern, _, _ in readme_table.KERNELS_WANTED:
            if pattern:
                self.assertTrue(any(readme_table.re.search(pattern, name) for name in names), what)
        for model, tokens, _, _ in readme_table.STEPS_WANTED:
            self.assertIn(tokens, gpu_steps.MODELS[model]["tokens"])


if __name__ == "__main__":
    unittest.main()
