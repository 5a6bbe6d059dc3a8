"""Times whole training steps on a GPU: qlora-engine, transformers + PEFT + bitsandbytes, the same with Liger, and Unsloth.

    python3 benches/peers/gpu_steps.py --engine target/release/qlora-engine [--budget 600] [--models qwen3-0.6b,llama-2-7b]
    python3 benches/peers/gpu_steps.py --dry-run       # tiny models on the CPU: that everything can be built and run

The models have random weights and the true shapes of Qwen3-0.6B and Llama-2-7B (of which --llama-layers are taken). Written
once to --work, and read by all: bf16 safetensors, a tokenizer, a LoRA adapter (rank 16 on all linears, B zero), and the
tokens of every step. The base is held in NF4 with double quantisation, computed in bf16; one sequence a step, every token
labelled, AdamW on f32 adapters, constant learning rate, gradients clipped to 1, no dropout. Tokens are drawn from a skewed
distribution, so that there is something to learn and the loss curves can be compared.

For each: the median time of a step after the warm-up, tokens/s, the peak of the device's memory as the driver counts it (less
what was in use before; nothing else should run), torch's own peak, the loss of every step. The peers' steps are the
distances of CUDA events and are never waited for. Ours are the arrivals of its log lines, a line a step, for each of which it
waits; so ours has the worse of it. The peers' memory is that of their steps alone, ours that of the whole run.

When --budget runs out, what is left is not started, a run under way ends, and both are said in the table.
"""

import argparse
import ctypes
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpu_common import machine, one_line, reason_not_to_run, write_json

# The budget counts from here: to import torch takes seconds.
BEGAN = time.time()
ROOT = Path(__file__).resolve().parents[2]
RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-3
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]

# In the words of a config.json, as transformers 4 wrote it, which all of them read.
MODELS = {
    "qwen3-0.6b": {
        "tokens": [512, 2048, 8192],
        "config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 40_960,
        },
    },
    "llama-2-7b": {
        "tokens": [512, 4096],
        "config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 32_000,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "max_position_embeddings": 4096,
        },
    },
}
COMMON = {"hidden_act": "silu", "torch_dtype": "bfloat16", "attention_bias": False, "use_cache": False}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "vocab_size": 512,
}


def model_spec(name, args):
    """Config and token counts of a model, as the arguments want it."""
    config = COMMON | MODELS[name]["config"]
    tokens = MODELS[name]["tokens"]
    if args.dry_run:
        config, tokens = config | TINY | {"num_key_value_heads": 4 if "llama" in name else 2}, [48]
    elif name == "llama-2-7b":
        config["num_hidden_layers"] = min(args.llama_layers, 32)
    config |= {"bos_token_id": None, "eos_token_id": config["vocab_size"] - 1, "pad_token_id": config["vocab_size"] - 2}
    title = name if args.dry_run or "llama" not in name else f"{name} ({config['num_hidden_layers']} of 32 layers)"
    return {
        "name": name,
        "title": title,
        "config": config,
        "tokens": tokens,
        "steps": args.steps,
        "warmup": args.warmup,
    }


# ---- the files that all read


def linears(config):
    """Name, rows and columns of each linear of a block."""
    hidden, mlp, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (mlp, hidden), (mlp, hidden), (hidden, mlp)]
    names = [f"self_attn.{n}" for n in ATTENTION] + [f"mlp.{n}" for n in MLP]
    return [(n, out, inn) for n, (out, inn) in zip(names, shapes)]


def weight_shapes(config):
    """The tensors of a checkpoint, a list for each file: the embeddings, then a block each."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    ends = [("model.embed_tokens.weight", (vocab, hidden)), ("model.norm.weight", (hidden,))]
    if not config["tie_word_embeddings"]:
        ends.append(("lm_head.weight", (vocab, hidden)))
    files = [ends]
    for i in range(config["num_hidden_layers"]):
        names = [(f"{n}.weight", (out, inn)) for n, out, inn in linears(config)]
        names += [(f"{n}.weight", (hidden,)) for n in ("input_layernorm", "post_attention_layernorm")]
        if config["model_type"] == "qwen3":
            names += [(f"self_attn.{n}.weight", (config["head_dim"],)) for n in ("q_norm", "k_norm")]
        files.append([(f"model.layers.{i}.{n}", shape) for n, shape in names])
    return files


def write_model(folder, config, device):
    """Matrices N(0, 0.02), norms one; a file a block, so that no more than that is in memory at once."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator(device).manual_seed(1)
    files, index, total = weight_shapes(config), {}, 0
    for n, tensors in enumerate(files, 1):
        made, file = {}, f"model-{n:05}-of-{len(files):05}.safetensors"
        for name, shape in tensors:
            t = torch.empty(shape, dtype=torch.bfloat16, device=device)
            made[name] = (t.fill_(1) if len(shape) == 1 else t.normal_(0, 0.02, generator=generator)).cpu()
            index[name] = file
            total += made[name].nbytes
        save_file(made, folder / file, {"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    write_json(folder / "config.json", config)


def write_tokenizer(folder, vocab):
    """A word for each token, `t0`, `t1`, ..., so that a text says its tokens; the last two are padding and the end of a text.

    They are two, since padding is not trained on, and the end is.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    end, pad = "</s>", "<pad>"
    words = {f"t{i}": i for i in range(vocab - 2)} | {pad: vocab - 2, end: vocab - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (pad, end)])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": pad,
        "model_max_length": 1 << 20,
    }
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    special = {str(words[t]): {"content": t} | flags for t in (pad, end)}
    write_json(folder / "tokenizer_config.json", said | {"added_tokens_decoder": special})


def write_adapter(folder, config):
    """A as PEFT draws it, B zero."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    generator, made = torch.Generator().manual_seed(2), {}
    for i in range(config["num_hidden_layers"]):
        for name, out, inn in linears(config):
            key, bound = f"base_model.model.model.layers.{i}.{name}", 1 / math.sqrt(inn)
            made[f"{key}.lora_A.weight"] = torch.empty(RANK, inn).uniform_(-bound, bound, generator=generator)
            made[f"{key}.lora_B.weight"] = torch.zeros(out, RANK)
    save_file(made, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    said |= {"bias": "none", "target_modules": ATTENTION + MLP, "base_model_name_or_path": str(folder.parent)}
    write_json(folder / "adapter_config.json", said | {"inference_mode": True, "fan_in_fan_out": False})


def write_tokens(folder, spec):
    """The tokens of every step, as numbers for the peers and as text for our program; that both are the same is checked."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    vocab, tokenizer, sets = spec["config"]["vocab_size"], Tokenizer.from_file(str(folder / "tokenizer.json")), {}
    for count in spec["tokens"]:
        generator = torch.Generator().manual_seed(count)
        u = torch.rand(spec["steps"], count, generator=generator, dtype=torch.float64)
        # Few tokens are frequent and most are rare, roughly as in a language.
        ids = (u.pow(4) * (vocab - 2)).long().clamp(max=vocab - 3)
        ids[:, -1] = vocab - 1
        save_file({"ids": ids}, folder / f"tokens-{count}.safetensors")
        with open(folder / f"tokens-{count}.jsonl", "w") as f:
            for row in ids.tolist():
                # The end of the text is written by whoever reads it.
                text = " ".join(f"t{i}" for i in row[:-1])
                if tokenizer.encode(f"{text}</s>", add_special_tokens=False).ids != row:
                    raise ValueError("the tokenizer does not give the tokens back")
                f.write(json.dumps({"text": text}) + "\n")
        sets[f"tokens-{count}"] = {"file_name": f"tokens-{count}.jsonl", "columns": {"prompt": "text"}}
    write_json(folder / "dataset_info.json", sets)


def prepare(args, spec):
    """Child: the files of a model, unless they are there."""
    folder, device = Path(args.work) / spec["name"], "cpu" if args.dry_run else "cuda"
    done = folder / "made.json"
    if not done.exists() or json.loads(done.read_text()) != spec:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_model(folder, spec["config"], device)
        write_tokenizer(folder, spec["config"]["vocab_size"])
        write_adapter(folder / "adapter", spec["config"])
        write_tokens(folder, spec)
        write_json(done, spec)
    tell("RESULT", machine(args.dry_run))


# ---- the peers, each in a process of its own


def tell(kind, value):
    """A line for the parent, which tells it from what libraries print by its first word."""
    print(f"\n{kind} {json.dumps(value)}", flush=True)


class LeftOut(Exception):
    """The time is up."""


def train(model, ids, spec, args):
    """All steps of a run; ms of each but the last, and the losses."""
    import torch

    device = ids.device.type
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    losses, marks = [], []

    def mark():
        if device == "cpu":
            return marks.append(time.perf_counter())
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()

    for n in range(spec["steps"]):
        if time.time() > args.deadline:
            raise LeftOut(f"stopped at step {n}: the time was up")
        mark()
        # As the Trainers of transformers, LLaMA-Factory and Unsloth do it: f32 adapters, computed in bf16.
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids[n : n + 1], labels=ids[n : n + 1], use_cache=False).loss
        # Our program divides by all labels, as LLaMA-Factory does; this is the mean over those that have a token before.
        loss = loss * ((ids.shape[1] - 1) / ids.shape[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    mark()
    if device == "cpu":
        times = [(b - a) * 1e3 for a, b in zip(marks, marks[1:])]
    else:
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in zip(marks, marks[1:])]
    return times, [loss.item() for loss in losses]


def tell_attention(model, spec, args):
    """Which attention kernels a forward pass runs, by their names. Last of all: a profiler slows what comes after it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for count in spec["tokens"] if not args.dry_run else []:
        ids = torch.arange(count, device="cuda")[None] % 1000
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as seen, torch.no_grad():
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    model(input_ids=ids, use_cache=False)
                torch.cuda.synchronize()
            names = " ".join(e.key.lower() for e in seen.key_averages())
            # cuDNN's are named flash too, so the order matters.
            known = {"cudnn": "cuDNN", "flash": "flash", "fmha": "memory-efficient"}
            found = next((said for part, said in known.items() if part in names), "math")
        except Exception as e:  # only a remark is lost
            found = f"not known ({one_line(e, 40)})"
        tell("ATTENTION", {"tokens": count, "attention": f"attention: {found}"})


def time_cases(model, adapter, spec, args, peer, runner=None):
    """Every token count with the model as it is set now."""
    import gc

    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    on_gpu = not args.dry_run
    for count in spec["tokens"]:
        case = {"peer": peer, "tokens": count}
        if time.time() > args.deadline:
            tell("RESULT", case | {"note": "left out: the time was up"})
            continue
        ids = load_file(Path(args.work) / spec["name"] / f"tokens-{count}.safetensors")["ids"]
        ids = ids.to("cuda" if on_gpu else "cpu")
        # PEFT says which keys it found no place for in the result's unexpected_keys.
        unplaced = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors")).unexpected_keys
        if unplaced:
            raise ValueError(f"{len(unplaced)} tensors of the adapter found no place")
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        tell("CASE", case)
        try:
            times, losses = train(model if runner is None else runner, ids, spec, args)
            row = {"step_ms": times, "losses": losses}
            if on_gpu:
                row["torch_peak"] = torch.cuda.max_memory_allocated()
        except LeftOut as e:
            row = {"note": str(e)}
        except Exception as e:  # out of memory and the like: a row, and the next goes on
            row = {"note": f"failed: {one_line(e)}"}
        tell("RESULT", case | row)
        for p in model.parameters():
            p.grad = None


def expect_nf4(model, spec):
    """A base that was not quantised would be another measurement."""
    from bitsandbytes.nn import Linear4bit

    found = sum(isinstance(m, Linear4bit) for m in model.modules())
    if found != 7 * spec["config"]["num_hidden_layers"]:
        raise ValueError(f"{found} linears are in 4 bits instead of {7 * spec['config']['num_hidden_layers']}")


def peft_child(args, spec, liger=False, compiled=False):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = Path(args.work) / spec["name"]
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=nf4,
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        device_map={"": "cpu" if args.dry_run else 0},
    )
    expect_nf4(base, spec)
    name = "PEFT"
    if liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=base)
        name = "PEFT + Liger"
    for p in base.parameters():
        p.requires_grad_(False)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    model.train()
    runner = None
    if compiled:
        # The dry run traces everything, but has no use for a C++ compiler.
        runner, name = (
            torch.compile(model, dynamic=False, **({"backend": "aot_eager"} if args.dry_run else {})),
            "PEFT, compiled",
        )
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if compiled:
                torch._dynamo.reset()
        peer = f"{name}, checkpointing {'on' if checkpointing else 'off'}"
        time_cases(model, folder / "adapter", spec, args, peer, runner)
    if not compiled:
        tell_attention(model, spec, args)


def unsloth_child(args, spec, mode):
    # Before all others, since it replaces parts of them.
    from unsloth import FastLanguageModel

    import torch

    folder = Path(args.work) / spec["name"]
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=max(spec["tokens"]), dtype=torch.bfloat16, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        target_modules=ATTENTION + MLP,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing={"off": False, "on": True}.get(mode, mode),
        random_state=1,
    )
    expect_nf4(model, spec)
    model.train()
    time_cases(model, folder / "adapter", spec, args, f"Unsloth, checkpointing {mode}")
    tell_attention(model, spec, args)


CHILDREN = {
    "prepare": prepare,
    "peft": peft_child,
    "unsloth:off": lambda args, spec: unsloth_child(args, spec, "off"),
    "unsloth:unsloth": lambda args, spec: unsloth_child(args, spec, "unsloth"),
    "unsloth:on": lambda args, spec: unsloth_child(args, spec, "on"),
    "liger": lambda args, spec: peft_child(args, spec, liger=True),
    "compile": lambda args, spec: peft_child(args, spec, compiled=True),
}
# Each before the next for all models: ours and its nearest rivals first, should the time not do for all. Compiling takes longest.
ORDER = ["ours", "peft", "unsloth:off", "unsloth:unsloth", "unsloth:on", "liger", "ours-again", "compile"]


# ---- the parent: starts them, reads their lines, watches the memory


class DeviceMemory:
    """Peak of the memory in use on the first visible GPU, by the driver's management library, sampled; None without one."""

    class Info(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    def __init__(self, wanted):
        self.lib = self.handle = None
        self.base = self.top = 0
        if not wanted:
            return
        try:
            lib = ctypes.CDLL("libnvidia-ml.so.1")
            handle, first = ctypes.c_void_p(), os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            if lib.nvmlInit_v2():
                return
            if first.isdigit():
                failed = lib.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(handle))
            else:
                failed = lib.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
            if failed:
                return
        except (OSError, AttributeError):
            return
        self.lib, self.handle = lib, handle
        threading.Thread(target=self.watch, daemon=True).start()

    def used(self):
        info = self.Info()
        failed = self.lib is None or self.lib.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(info))
        return 0 if failed else info.used

    def watch(self):
        while True:
            self.top = max(self.top, self.used())
            time.sleep(0.01)

    def before_a_run(self):
        """Notes what is in use, once that of the run before has been given back."""
        lowest, still = self.used(), 0
        while still < 3:
            time.sleep(0.1 if self.lib else 0)
            now = self.used()
            lowest, still = min(lowest, now), still + 1 if now >= lowest else 0
        self.base = self.top = lowest

    def before_a_case(self):
        self.top = self.used()

    def peak(self):
        return None if self.lib is None else max(0, self.top - self.base)


def lines_of(command, args, log, env):
    """The output of a process, line by line; it is ended when it outlives the budget by much. Its status comes last."""
    with open(log, "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env=env)
        timer = threading.Timer(max(1.0, args.deadline - time.time() + 15), process.kill)
        timer.start()
        try:
            yield from process.stdout
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
            process.stdout.close()
    yield status


def environment(args):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if args.dry_run:
        env |= {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_ALLOW_CPU": "1"}
    return env


def run_child(child, spec, args, memory):
    """Rows of one peer, or what it said was wrong."""
    command = [sys.executable, __file__, "--child", child, "--spec", json.dumps(spec), "--work", str(args.work)]
    command += ["--deadline", str(args.deadline)] + ["--dry-run"] * args.dry_run
    log, rows, status = Path(args.work) / f"{spec['name']}-{child.replace(':', '-')}.log", [], 0
    memory.before_a_run()
    for line in lines_of(command, args, log, environment(args)):
        if isinstance(line, int):
            status = line
        elif line.startswith("CASE "):
            memory.before_a_case()
        elif line.startswith("RESULT "):
            rows.append(json.loads(line[len("RESULT ") :]) | {"driver_peak": memory.peak()})
        elif line.startswith("ATTENTION "):
            said = json.loads(line[len("ATTENTION ") :])
            for row in rows:
                if row["tokens"] == said["tokens"]:
                    row["attention"] = said["attention"]
    if status != 0:
        late = time.time() > args.deadline
        why = "at the time limit" if late else last_line(log)
        rows.append(
            {"peer": child, "tokens": None, "note": f"not installed: {why}" if "No module" in why else f"ended: {why}"}
        )
    return rows


def last_line(log):
    lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
    text = lines[-1] if lines else "ended without a word"
    return text if len(text) <= 110 else text[:107] + "..."


def our_config(spec, count, out, args):
    folder = Path(args.work).resolve() / spec["name"]
    return {
        "model_name_or_path": str(folder),
        "adapter_name_or_path": str(folder / "adapter"),
        "quantization_bit": 4,
        "double_quantization": True,
        "bf16": True,
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": "all",
        "dataset_dir": str(folder),
        "dataset": f"tokens-{count}",
        "template": "empty",
        "cutoff_len": count,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": spec["steps"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "overwrite_output_dir": True,
        "output_dir": str(out),
    } | ({"use_cpu": True} if args.dry_run else {})


def least_ms(config_file, args):
    """Least ms of a step by a card's peak figures, as `plan` works it out: of the card that is here, and of those that projections
    are made for. One that the run does not fit on is left out."""
    found = {}
    for card in ("here", "rtx3080", "rtx4090"):
        command = [args.engine, "plan", config_file] + ["--device", card] * (card != "here")
        said = subprocess.run(command, capture_output=True, text=True).stdout
        least = re.search(r"^least time a step +([\d.]+) ms", said, re.M)
        if least and float(least[1]) > 0:
            found[card] = float(least[1])
    return found


def run_ours(spec, args, memory, again):
    """Rows of our program: a process for each token count."""
    peer, rows = "qlora-engine, again" if again else "qlora-engine", []
    if not args.engine.exists():
        return [{"peer": peer, "tokens": None, "note": f"not here: {args.engine}"}]
    if not args.dry_run:
        said = subprocess.run([args.engine, "env"], capture_output=True, text=True).stdout
        if "runs on the CPU" in said:
            why = next(line for line in said.split("\n") if "runs on the CPU" in line)
            return [{"peer": peer, "tokens": None, "note": f"not timed: {' '.join(why.split())}"}]
    for count in spec["tokens"]:
        case = {"peer": peer, "tokens": count}
        if time.time() > args.deadline:
            rows.append(case | {"note": "left out: the time was up"})
            continue
        stem = Path(args.work).resolve() / f"{spec['name']}-ours-{count}"
        config = our_config(spec, count, stem, args)
        config_file = Path(f"{stem}.yaml")
        config_file.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()))
        shutil.rmtree(stem, ignore_errors=True)
        log, arrivals, status = Path(f"{stem}.log"), [], 0
        memory.before_a_run()
        for line in lines_of([str(args.engine), "train", str(config_file)], args, log, environment(args)):
            if isinstance(line, int):
                status = line
            elif re.search(r" step \d+/\d+", line):
                arrivals.append(time.perf_counter())
        row = case | {"driver_peak": memory.peak()}
        if status != 0:
            late = time.time() > args.deadline
            rows.append(row | {"note": f"stopped at step {len(arrivals)}: the time was up" if late else last_line(log)})
            continue
        history = json.loads((stem / "trainer_state.json").read_text())["log_history"]
        # The first step has no arrival before it.
        times = [math.nan] + [(b - a) * 1e3 for a, b in zip(arrivals, arrivals[1:])]
        row |= {"step_ms": times, "losses": [h["loss"] for h in history if "loss" in h]}
        rows.append(row if again else row | {"least_ms": least_ms(config_file, args)})
    return rows


def summarise(row, spec):
    """Adds the figures of a row to it."""
    row |= {"model": spec["title"]}
    if "losses" not in row:
        return row
    timed = row["step_ms"][spec["warmup"] :]
    row["ms"] = statistics.median(timed)
    row["timed_steps"], row["tokens_s"] = len(timed), row["tokens"] / row["ms"] * 1e3
    row["step_ms"] = [None if math.isnan(t) else t for t in row["step_ms"]]
    if len(row["losses"]) != spec["steps"]:
        row["note"] = f"{len(row['losses'])} steps were logged instead of {spec['steps']}"
    return row


def compare(rows):
    """Adds to each peer's row its ratios to ours; of two runs of ours, the slower one counts."""
    for row in rows:
        mine = [r for r in rows if r["peer"].startswith("qlora-engine") and "ms" in r]
        mine = [r for r in mine if (r["model"], r["tokens"]) == (row["model"], row["tokens"])]
        if not mine or "ms" not in row:
            continue
        slower = max(mine, key=lambda r: r["ms"])
        both = list(zip(row["losses"], slower["losses"]))
        row["loss_off"] = sum(abs(a - b) for a, b in both) / len(both)
        if row not in mine:
            row["times_ours"] = row["ms"] / slower["ms"]
            if row["driver_peak"] and slower["driver_peak"]:
                row["our_memory"] = slower["driver_peak"] / row["driver_peak"]


def table(rows):
    head = f"{'model':30} {'tokens':>6} {'program':36} {'ms':>9} {'tokens/s':>9} {'driver MiB':>10} {'torch MiB':>9}"
    lines = [head + f" {'first':>7} {'last':>7} {'|off|':>8} {'/ ours':>7} {'memory':>7}  note"]

    def figure(value, form, width):
        return f"{format(value, form) if value is not None else '':>{width}}"

    def mib(value):
        return None if value is None else value / 2**20

    for row in sorted(rows, key=lambda r: (r["model"], r["tokens"] or 0)):
        line = f"{row['model']:30} {row['tokens'] or '':>6} {row['peer']:36} "
        if "ms" in row:
            losses = row["losses"]
            line += " ".join(
                [
                    figure(row["ms"], ".2f", 9),
                    figure(row["tokens_s"], ".0f", 9),
                    figure(mib(row.get("driver_peak")), ".0f", 10),
                    figure(mib(row.get("torch_peak")), ".0f", 9),
                    figure(losses[0], ".4f", 7),
                    figure(losses[-1], ".4f", 7),
                    figure(row.get("loss_off"), ".1e", 8),
                    figure(row.get("times_ours"), ".2f", 7),
                    figure(row.get("our_memory"), ".2f", 7),
                ]
            )
        notes = "; ".join(filter(None, [row.get("note"), row.get("attention")]))
        lines.append(f"{line}  {notes}".rstrip())
    return "\n".join(lines)


def best_ratios(rows):
    """Per model, token count and family of peers: its best setting against ours."""
    lines = []
    for model, tokens in dict.fromkeys((r["model"], r["tokens"]) for r in rows if "times_ours" in r):
        here = [r for r in rows if (r["model"], r["tokens"]) == (model, tokens) and "times_ours" in r]
        for family in ("PEFT", "Unsloth"):
            of = [r for r in here if r["peer"].startswith(family)]
            if of:
                best = min(of, key=lambda r: r["ms"])
                lines.append(f"{model}, {tokens} tokens: {best['times_ours']:.2f} times as fast as {best['peer']}")
    return lines


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, nothing measured")
    ask.add_argument("--models", default=",".join(MODELS))
    ask.add_argument("--llama-layers", type=int, default=8, help="how many of Llama-2-7B's 32")
    ask.add_argument("--steps", type=int, help="steps of a run, 50 unless told")
    ask.add_argument("--warmup", type=int, help="steps of it that are not timed, 10 unless told")
    ask.add_argument("--only", default=",".join(ORDER), help="which programs, in this order")
    ask.add_argument("--budget", type=float, default=600, help="seconds for everything")
    ask.add_argument("--json", default="gpu_steps.json", help="where the results go")
    ask.add_argument("--work", default=str(ROOT / "target" / "peers-steps"), help="where the models are written")
    ask.add_argument("--engine", type=Path, default=ROOT / "target" / "release" / "qlora-engine")
    ask.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    ask.add_argument("--spec", type=json.loads, help=argparse.SUPPRESS)
    ask.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = ask.parse_args()
    why = reason_not_to_run(args.dry_run)
    if why:
        return print(why)
    if args.child:
        return CHILDREN[args.child](args, args.spec)

    args.steps = args.steps or (6 if args.dry_run else 50)
    args.warmup = (2 if args.dry_run else 10) if args.warmup is None else args.warmup
    if not 0 < args.warmup < args.steps:
        ask.error("--warmup must be at least 1 and less than --steps")
    programs = args.only.split(",")
    for what, given, known in (("model", args.models.split(","), MODELS), ("program", programs, ORDER)):
        if set(given) - set(known):
            ask.error(f"no such {what}: {', '.join(set(given) - set(known))}")
    # What is under way then has 15 seconds more to end by itself.
    args.deadline = BEGAN + max(args.budget - 15, args.budget / 2)
    args.engine = args.engine.resolve()
    Path(args.work).mkdir(parents=True, exist_ok=True)

    memory = DeviceMemory(not args.dry_run)
    specs = [model_spec(name, args) for name in args.models.split(",")]
    result = {"machine": None, "budget_s": args.budget, "rows": []}
    ready = []
    for spec in specs:
        made = run_child("prepare", spec, args, memory)
        if len(made) == 1 and "note" not in made[0]:
            made[0].pop("driver_peak")
            result["machine"] = made[0]
            ready.append(spec)
        else:
            result["rows"].append({"model": spec["title"], "peer": "prepare", "tokens": None, "note": made[-1]["note"]})
    missing = set()  # libraries, so that each is said once
    for program in programs:
        for spec in ready:
            if time.time() > args.deadline:
                rows = [{"peer": program, "tokens": None, "note": "left out: the time was up"}]
            elif program.split(":")[0] in missing:
                continue
            elif program.startswith("ours"):
                rows = run_ours(spec, args, memory, program != "ours")
            else:
                rows = run_child(program, spec, args, memory)
            rows = [summarise(row, spec) for row in rows]
            if any("not installed" in r.get("note", "") for r in rows):
                missing.add(program.split(":")[0])
                rows = [r | {"model": "", "peer": program.split(":")[0]} for r in rows]
            result["rows"] += rows
            compare(result["rows"])
            write_json(args.json, result)

    timed = sum("ms" in r for r in result["rows"])
    print(f"done: {timed} of {len(result['rows'])} rows timed, in {args.json}")
    if result["machine"]:
        found = ", ".join(f"{name} {v or 'absent'}" for name, v in result["machine"]["versions"].items())
        print(f"{result['machine']['device']}, driver {result['machine']['driver']}; {found}")
    if not args.dry_run:
        print("\n".join(best_ratios(result["rows"])))
    print(table(result["rows"]))


if __name__ == "__main__":
    main()
