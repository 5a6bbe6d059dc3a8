"""The server beside llama-cpp-python's and transformers behind FastAPI: the tiny base, one machine, one run.

    cargo build --release
    python3 benches/peers/serve.py --llama PYTHON --transformers PYTHON

PYTHON is an interpreter with `llama-cpp-python[server]`, or with torch, transformers, fastapi and uvicorn; a peer without one is
left out. Each server in turn gets the same prompts by `qlora-engine bench-serve`: 16 clients, /v1/completions, greedy, whole answers, so
that each counts its own tokens; once to warm up, then three times, of which the median counts. Every answer has all
its tokens: each server is told in its own way to pass over the end token, and llama-cpp-python to leave out its penalty on
repetition, which the others have not.

Then ours alone: 64 clients over 8 adapters, against the same requests one at a time, and how long /health took meanwhile.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BASE = os.path.join(ROOT, "assets/tiny-base")
ROUNDS = 3
# The end token of the tiny base, which llama-cpp-python is kept from by a bias, and its penalty of 1.1 unless told otherwise.
LLAMA = json.dumps({"logit_bias": {"4089": -100}, "repeat_penalty": 1.0})
WORDS = "the time people water word place year day work world life hand part child eye week case point number group".split()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Running:
    """A server that is up as soon as it names its models, until the end of the block."""

    def __init__(self, command: list[str], port: int, log: str):
        self.url, self.log = f"http://127.0.0.1:{port}", log
        with open(log, "w") as file:
            env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env)

    def __enter__(self):
        end = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
                    answer.read()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.process.kill()
                    with open(self.log) as file:
                        sys.exit(f"{' '.join(self.process.args)} does not serve:\n{file.read()[-2000:]}")
                time.sleep(0.2)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def memory(self) -> float:
        """MB resident."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(re.findall(r"\d+", line)[0]) for line in status if line.startswith("VmRSS")) / 1000


def load(binary: str, url: str, *options: str) -> dict:
    ran = subprocess.run([binary, "bench-serve", url, "--json", *options], capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"bench-serve: {ran.stderr}")
    result = json.loads(ran.stdout)
    if result["failed"]:
        sys.exit(f"requests failed: {result['failed']}")
    return result


def prompts(folder: str, seed: int, n: int) -> list[str]:
    """Options for `n` requests with prompts of about 60 tokens that no other seed has, so that none is found in a cache."""
    rng, path = random.Random(seed), os.path.join(folder, f"prompts-{seed}-{n}.txt")
    with open(path, "w") as file:
        file.writelines(" ".join(rng.choices(WORDS, k=32)) + "\n" for _ in range(n))
    return ["--prompt-file", path, "--requests", str(n)]


def measured(args, server: Running, folder: str, options: list[str]) -> dict:
    """The median of some rounds, by tokens per second."""
    load(args.binary, server.url, *options, *prompts(folder, 0, args.clients))
    rounds = [load(args.binary, server.url, *options, *prompts(folder, 1 + i, args.requests)) for i in range(ROUNDS)]
    rounds.sort(key=lambda r: r["output_tokens_per_second"])
    speeds = [r["output_tokens_per_second"] for r in rounds]
    return rounds[ROUNDS // 2] | {"spread": (speeds[0], speeds[-1]), "memory": server.memory()}


def peers(args, folder: str) -> dict[str, dict]:
    gguf = os.path.join(folder, "gguf")
    with open(os.path.join(folder, "serve.yaml"), "w") as file:
        file.write(f"model_name_or_path: {BASE}\ntemplate: qwen3_nothink\nfinetuning_type: lora\nuse_cpu: true\n")
    servers: dict = {"qlora-engine": lambda port: [args.binary, "api", f"{folder}/serve.yaml", "--port", str(port)]}
    if args.llama:
        export = [args.binary, "export", f"{folder}/serve.yaml", f"export_dir={gguf}", "export_format=gguf", f"export_outtype={args.outtype}"]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = next(os.path.join(gguf, n) for n in os.listdir(gguf) if n.endswith(".gguf"))
        llama = [args.llama, "-m", "llama_cpp.server", "--model", file, "--n_ctx", "2048"]
        for n in sorted({os.cpu_count(), 1}, reverse=True):
            with_threads = [*llama, "--n_threads", str(n), "--n_threads_batch", str(n)]
            servers[f"llama-cpp-python {args.outtype}, {n} threads"] = lambda port, own=with_threads: [*own, "--port", str(port)]
    if args.transformers:
        app = [args.transformers, os.path.join(ROOT, "benches/peers/serve_transformers.py"), BASE]
        for name, options in (("", []), (", one at a time", ["--lock"]), (", one at a time, bf16", ["--lock", "--dtype", "bfloat16"])):
            servers[f"transformers{name}"] = lambda port, options=options: [*app, str(port), *options]
    options = ["--completions", "--no-stream", "--concurrency", str(args.clients), "--max-tokens", str(args.max_tokens)]
    results = {}
    for name, command in servers.items():
        port = free_port()
        with Running(command(port), port, os.path.join(folder, "log")) as server:
            own = ["--extra", LLAMA] if name.startswith("llama") else ["--ignore-eos"]
            results[name] = measured(args, server, folder, [*options, *own])
        print(f"  {name}: {results[name]['output_tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    return results


def many(args, folder: str) -> tuple[dict, dict, float]:
    """64 clients over 8 adapters; the same one at a time; MB of the server."""
    data = os.path.join(ROOT, "assets/data")
    names = [f"adapter-{i}" for i in range(8)]
    adapters = []
    for i, name in enumerate(names):
        # Two are trained, of different ranks and layers; the others are the same ones under other names, each loaded for itself.
        source = os.path.join(folder, names[i % 2])
        if i < 2:
            settings = [
                f"model_name_or_path={BASE}", "template=qwen3_nothink", "finetuning_type=lora", "use_cpu=true", "stage=sft", "do_train=true", f"dataset_dir={data}",
                "dataset=medical_demo" if i else "dataset=legal", f"lora_rank={16 if i else 8}", "max_steps=3", "cutoff_len=64", "per_device_train_batch_size=2",
                "learning_rate=1e-4", "report_to=none", f"output_dir={source}",
            ]  # fmt: skip
            with open(os.path.join(folder, "train.yaml"), "w") as file:
                file.writelines(f"{s.replace('=', ': ', 1)}\n" for s in settings)
            subprocess.run([args.binary, "train", f"{folder}/train.yaml"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            shutil.copytree(source, os.path.join(folder, name))
        adapters += ["--adapter", f"{name}={os.path.join(folder, name)}"]
    port = free_port()
    options = ["--completions", "--ignore-eos", "--max-tokens", str(args.max_tokens), "--probe", "/health"]
    for name in names:
        options += ["--model", name]
    command = [args.binary, "api", f"{folder}/serve.yaml", "--port", str(port), "--max-batch", "64", *adapters]
    with Running(command, port, os.path.join(folder, "log")) as server:
        load(args.binary, server.url, *options, "--concurrency", "64", *prompts(folder, 0, 64))
        together = load(args.binary, server.url, *options, "--concurrency", "64", *prompts(folder, 1, 512))
        alone = load(args.binary, server.url, *options, "--concurrency", "1", *prompts(folder, 2, 64))
        return together, alone, server.memory()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/qlora-engine"))
    parser.add_argument("--llama", metavar="PYTHON")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--outtype", default="f16", help="of the GGUF file (f16)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    args.binary = os.path.abspath(args.binary)
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())
    print(f"{cpu}, {os.cpu_count()} cores; load before: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        results = peers(args, folder)
        ours = results["qlora-engine"]["output_tokens_per_second"]
        print(f"\n{args.clients} clients, {args.requests} requests, {args.max_tokens} tokens at most; the median of {ROUNDS} rounds")
        print(f"{'':34}{'tokens/s':>10}{'(least, most)':>18}{'tokens':>8}{'p50 ms':>9}{'p99 ms':>9}{'MB':>7}{'ours / it':>11}")
        for name, r in results.items():
            whole, (least, most) = r["times"]["whole answer ms"], r["spread"]
            speed = r["output_tokens_per_second"]
            print(f"{name:34}{speed:>10.0f}{f'({least:.0f}, {most:.0f})':>18}{r['output_tokens']:>8}{whole['p50']:>9.0f}{whole['p99']:>9.0f}{r['memory']:>7.0f}{ours / speed:>11.2f}")
        together, alone, memory = many(args, folder)
        a, b = together["output_tokens_per_second"], alone["output_tokens_per_second"]
        health = together["times"]["/health ms"]
        tokens = f"{together['output_tokens']} tokens of 512 answers"
        print(f"\n64 clients over 8 adapters: {a:.0f} tokens/s ({tokens}); one at a time: {b:.0f}; ratio {a / b:.2f}; {memory:.0f} MB")
        for name, ms in together["times"].items():
            print(f"  {name:28}" + "".join(f"{k} {v:>9.2f}   " for k, v in ms.items()))
        print(f"  /health p99 {health['p99']:.1f} ms\nload after: {os.getloadavg()[0]:.2f}")
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"peers": results, "together": together, "alone": alone}, file, indent=1)


if __name__ == "__main__":
    main()
