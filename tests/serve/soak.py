"""Random clients for minutes on end: what they leave behind is nothing, and every answer was right.

Streams and whole answers of several models, some broken off, some malformed, adapters that come and go. At the end no sequence
runs, none waits, no page of the cache is held, memory has stopped growing, and each greedy answer that was heard to its end was
the one given alone. `soak.py --binary PROGRAM [--minutes 10 | --seconds 15 | --requests 10000]`; `--place` is a folder as
tests/serve.rs makes it, otherwise one is made.
"""

import argparse
import collections
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import openai

from server import Server, at_once, greedy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROMPTS = ["What does HbA1c measure?", "多久洗一次牙？", "Is a spoken contract valid?", "What is anemia?", "Tell me a story.", "1 + 1"]
SYSTEM = "You are a careful assistant. Answer in one sentence and say when you are not sure. " * 2
LONGEST = 32
# Memory may vary by this much between the third and the last quarter of a run.
SLACK = 0.02


def make(binary: str, folder: str):
    """The folder of tests/serve.rs, as far as it is needed here."""
    base = f"model_name_or_path: {ROOT}/assets/tiny-base\ntemplate: qwen3_nothink\nfinetuning_type: lora\nuse_cpu: true\n"
    with open(os.path.join(folder, "serve.yaml"), "w") as file:
        file.write(base + "do_sample: false\n")
    for name, data, rank in (("medical", "medical_demo", 16), ("legal", "legal", 8), ("early", "medical_demo", 4)):
        with open(os.path.join(folder, f"{name}.yaml"), "w") as file:
            file.write(
                f"{base}stage: sft\ndo_train: true\ndataset_dir: {ROOT}/assets/data\ndataset: {data}\nlora_rank: {rank}\nmax_steps: 12\ncutoff_len: 64\n"
                f"per_device_train_batch_size: 2\nlearning_rate: 1.0e-2\nreport_to: none\noutput_dir: {folder}/adapters/{name}\n"
            )
        subprocess.run([binary, "train", os.path.join(folder, f"{name}.yaml")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Soak:
    def __init__(self, server: Server, clients: int, seed: int):
        self.server, self.clients, self.seed = server, clients, seed
        self.client = server.client()
        self.counts: collections.Counter = collections.Counter()
        self.lock = threading.Lock()
        self.memory: list[int] = []
        # Of each model and question the longest answer; a shorter one is its beginning.
        self.wants = {(m, p, s): greedy(self.client, m, p, LONGEST, system=s)[1] for m in server.models for p in PROMPTS for s in ("", SYSTEM)}

    def count(self, what: str):
        with self.lock:
            self.counts[what] += 1

    def right(self, rng: random.Random, model: str):
        """An answer heard to its end."""
        prompt, system, n, stream = rng.choice(PROMPTS), rng.choice(["", SYSTEM]), rng.randint(1, LONGEST), rng.random() < 0.5
        got = greedy(self.client, model, prompt, n, stream, system)[1]
        want = self.wants[model, prompt, system][:n]
        assert got == want, f"{model} {prompt} {n}: {got}, alone {want}"
        self.count("streamed" if stream else "whole")

    def leave(self, rng: random.Random, model: str):
        """A stream broken off somewhere."""
        kind = {"model": model, "prompt": rng.choice(PROMPTS) * 5, "max_tokens": 500, "n": rng.randint(1, 3)}
        stream = self.client.completions.create(**kind, temperature=1.3, seed=rng.randint(0, 9), stream=True)
        for _, _ in zip(range(rng.randint(0, 12)), stream):
            pass
        stream.close()
        self.count("left")

    def give_up(self, rng: random.Random, model: str):
        """A whole answer that is not waited for."""
        try:
            hasty = self.client.with_options(timeout=rng.uniform(0.01, 0.2))
            hasty.completions.create(model=model, prompt="- - - - - -", max_tokens=800, temperature=0)
            self.count("whole")
        except openai.APITimeoutError:
            self.count("given up")

    def wrong(self, rng: random.Random, model: str):
        """What is refused."""
        body = rng.choice([b"{", b"\xff", b"[" * 10_000, b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}'])
        assert self.server.ask("/v1/chat/completions", body)[0] in (400, 404)
        self.count("refused")

    def swap(self, rng: random.Random, _: str):
        """An adapter comes, answers and goes."""
        name = f"extra-{threading.get_ident()}"
        status, _, text = self.server.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": "early"})
        assert status == 200, text
        greedy(self.client, name, rng.choice(PROMPTS), 4)
        status, _, text = self.server.ask("/v1/unload_lora_adapter", {"lora_name": name})
        assert status == 200, text
        self.count("swapped")

    def run(self, seconds: float, requests: int | None):
        end, done = time.monotonic() + seconds, threading.Event()

        def more() -> bool:
            return not done.is_set() and time.monotonic() < end and (requests is None or self.counts.total() < requests)

        def one(i: int):
            rng = random.Random(self.seed * 1000 + i)
            acts = [self.right] * 14 + [self.leave] * 3 + [self.give_up, self.wrong, self.swap]
            try:
                while more():
                    try:
                        rng.choice(acts)(rng, rng.choice(self.server.models))
                    except openai.RateLimitError:
                        self.count("429")
            finally:
                # One that fails ends it all.
                if more():
                    done.set()

        def watch():
            while more():
                self.memory.append(self.server.memory())
                assert self.server.ask("/health")[0] == 200
                done.wait(min(1.0, seconds / 100))

        at_once([watch, *[lambda i=i: one(i) for i in range(self.clients)]])

    def growth(self) -> float:
        """Of memory from the third quarter to the last, as a share."""
        quarter = len(self.memory) // 4
        third, last = self.memory[2 * quarter : 3 * quarter], self.memory[3 * quarter :]
        return statistics.median(last) / statistics.median(third) - 1 if third else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--place")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, help="in place of minutes; memory is not judged below a minute")
    parser.add_argument("--requests", type=int, help="end after so many, or after the minutes")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    seconds = args.seconds or 60 * args.minutes
    binary = os.path.abspath(args.binary)
    with tempfile.TemporaryDirectory() as made:
        folder = args.place or made
        if not args.place:
            make(binary, folder)
        adapters = os.path.join(folder, "adapters")
        options = ["--adapter", f"{adapters}/medical", "--adapter", f"{adapters}/legal", "--adapters-dir", adapters, "--max-batch", "16"]
        with Server(binary, os.path.join(folder, "serve.yaml"), *options, "--model-name", "tiny") as server:
            soak = Soak(server, args.clients, args.seed)
            start = time.monotonic()
            soak.run(seconds, args.requests)
            took = time.monotonic() - start
            server.idle()
            sizes = [m / 1e6 for m in soak.memory]
            print(f"{soak.counts.total()} requests in {took:.0f} s: {dict(soak.counts)}")
            print(f"memory {sizes[0]:.1f} MB at the start, {max(sizes):.1f} at most, {sizes[-1]:.1f} at the end; last quarter {100 * soak.growth():+.1f} %")
            assert soak.counts["streamed"] and soak.counts["whole"] and soak.counts["left"], soak.counts
            if took >= 60:
                assert soak.growth() < SLACK, f"memory grows: {sizes}"
            assert server.total("qlora_adapters_loaded") == 2
            assert server.stop() == 0
            assert not any("panicked" in line for line in server.log), server.log
    print("nothing was left behind")


if __name__ == "__main__":
    sys.exit(main())
