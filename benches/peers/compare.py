"""Times one fine-tuning through LLaMA-Factory and through qlora-engine: same rows, same YAML, one after the other.

    benches/peers/setup.sh
    cargo build --release
    target/peers/bin/python benches/peers/compare.py rows.json [--steps 25] [--kinds f32,bf16,nf4] [--only theirs]

`rows.json` is a list of alpaca rows (instruction, input, output), at least steps x 8 of them or they repeat. The model
is a randomly initialised Qwen3 of 29 M parameters with a tokenizer trained on those rows, made once in --work.
Nothing else should run on the machine. Gradient checkpointing is off, LLaMA-Factory's faster setting.

Read for each run: train_runtime and train_loss from train_results.json, seconds from the start of the process to the first
line of trainer_log.jsonl (so one step is in it), and the peak resident memory of the process.
LLaMA-Factory counts padding as work and we have none, so the times are for the same rows, not the same token count.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

KINDS = {
    "f32": ("base_f32", {}),
    "bf16": ("base_bf16", {"bf16": True}),
    "nf4": ("base_bf16", {"bf16": True, "quantization_bit": 4}),
}


def make_models(work, rows):
    """base_f32 and base_bf16: the same random weights in two types, with their tokenizer."""
    if (work / "base_bf16" / "tokenizer.json").exists():
        return
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(regex), "isolated", invert=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ["<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8192 - len(specials) - len(plain),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (r.get(k) or "" for r in rows for k in ("instruction", "input", "output"))
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    tok.add_tokens([AddedToken(s, normalized=False, special=False) for s in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    print(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    for name, dtype in (("base_f32", torch.float32), ("base_bf16", torch.bfloat16)):
        model.to(dtype).save_pretrained(work / name)
        fast.save_pretrained(work / name)


def write_config(work, kind, steps):
    base, change = KINDS[kind]
    config = {
        "model_name_or_path": str(work / base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(work),
        "template": "qwen3",
        "cutoff_len": 512,
        "disable_shuffling": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1.0e-4,
        "max_steps": steps,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "logging_steps": 1,
        "save_steps": 100000,
        "save_only_model": True,
        "plot_loss": False,
        "report_to": "none",
        "disable_gradient_checkpointing": True,
        "overwrite_output_dir": True,
        "use_cpu": True,
        "output_dir": "unused",
    } | change
    path = work / f"{kind}.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()))
    return path


def resident_peak(pid):
    """The most KiB that a process has had in memory so far; 0 once it has ended.

    (What wait4 says of a child begins with what its parent had when it was started.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def measure(command, out):
    """Runs `command`, which writes into `out`; returns its figures."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = open(f"{out}.log", "w")
    begin = time.monotonic()
    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    first, rows, peak = None, out / "trainer_log.jsonl", 0
    while True:
        peak = max(peak, resident_peak(child.pid))
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if first is None and rows.exists() and rows.stat().st_size > 0:
            first = time.monotonic() - begin
        if pid:
            break
        time.sleep(0.005)
    child.returncode = os.waitstatus_to_exitcode(status)
    whole = time.monotonic() - begin
    if child.returncode != 0:
        sys.exit(f"{command[0]} ended with {child.returncode}; its output is in {out}.log")
    results = json.loads((out / "train_results.json").read_text())
    return {
        "train s": results["train_runtime"],
        "first step s": first if first is not None else whole,
        "whole s": whole,
        "peak MiB": peak / 1024,
        "loss": results["train_loss"],
    }


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("rows", type=Path)
    ask.add_argument("--steps", type=int, default=25)
    ask.add_argument("--kinds", default="f32,bf16,nf4")
    ask.add_argument(
        "--rounds", type=int, default=1, help="each program this many times in turn; the fastest run counts"
    )
    ask.add_argument("--only", choices=["theirs", "ours"])
    ask.add_argument("--work", type=Path, default=ROOT / "target" / "peers-work")
    ask.add_argument("--engine", type=Path, default=ROOT / "target" / "release" / "qlora-engine")
    args = ask.parse_args()

    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.rows.read_text(encoding="utf-8"))
    (work / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (work / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    make_models(work, rows)

    # The program that came with this interpreter, so that no other LLaMA-Factory is timed.
    theirs = [str(Path(sys.executable).parent / "llamafactory-cli")]
    programs = {"LLaMA-Factory": theirs, "qlora-engine": [str(args.engine)]}
    if args.only:
        programs = dict([list(programs.items())[args.only == "ours"]])

    columns = ["train s", "first step s", "whole s", "peak MiB", "loss"]
    print(f"{'':6}{'':15}" + "".join(f"{c:>14}" for c in columns), flush=True)
    for kind in args.kinds.split(","):
        config = write_config(work, kind, args.steps)
        best = {}
        for _ in range(args.rounds):
            for name, command in programs.items():
                out = work / "out" / f"{kind}-{name}"
                got = measure([*command, "train", str(config), f"output_dir={out}"], out)
                if name not in best or got["train s"] < best[name]["train s"]:
                    best[name] = got
        for name, got in best.items():
            print(
                f"{kind:6}{name:15}" + "".join(f"{got[c]:14.4f}" if c == "loss" else f"{got[c]:14.2f}" for c in columns)
            )
        if len(best) == 2:
            a, b = best.values()
            ratios = "".join(f"{a[c] / b[c]:13.2f}x" for c in columns[:4])
            print(f"{kind:6}{'theirs / ours':15}{ratios}{a['loss'] - b['loss']:+14.5f}")
        sys.stdout.flush()


main()
