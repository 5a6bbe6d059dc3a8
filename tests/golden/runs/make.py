"""Runs LLaMA-Factory on the tiny models of ../models and keeps what it logged. What each file holds: ../README.md.

Run as `python make.py [name ...]` with the pins of benches/peers/setup.sh, after make_data.py and ../models/make.py.
Writes one YAML per run, expected/<run>.json and expected/<run>.safetensors and example_output/.
CPU, one thread. Each run is a process of its own, forked after the imports.
"""

import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

SCRATCH = Path(tempfile.mkdtemp(prefix="golden-runs-"))
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DISABLE_VERSION_CHECK": "1",
    "HF_HOME": str(SCRATCH / "hf"),
    "CUDA_VISIBLE_DEVICES": "",
    "TQDM_DISABLE": "1",
}

import bitsandbytes.nn.modules as bnb_modules
import torch
import yaml
from bitsandbytes.functional import quantize_blockwise
from llamafactory.train.pt.trainer import CustomTrainer
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from llamafactory.train.tuner import run_exp
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import plain_nf4  # noqa: E402

torch.set_num_threads(1)
sys.path.insert(0, str(HERE.parent))


# bitsandbytes' CPU kernel dequantises rows whose width is no multiple of 64 wrongly, as most are here.
plain_nf4.install()

# On CPUs with AVX512-BF16 an evaluation repacks the 4-bit weights for bf16 inference, with absmax in bf16, and leaves
# them so for the training that follows, which then has no gradient. Every machine takes the plain path here.
bnb_modules.has_avx512bf16 = lambda: False

BASE = {
    "model_name_or_path": "../models/qwen3",
    "adapter_name_or_path": "../models/qwen3/adapter",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "alpaca",
    "dataset_dir": "data",
    "template": "qwen3",
    "cutoff_len": 96,
    "disable_shuffling": True,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2.0e-3,
    "num_train_epochs": 2.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_steps": 1000,
    "save_only_model": True,
    "overwrite_output_dir": True,
    "report_to": "none",
    "use_cpu": True,
    "output_dir": "saves/golden",
}
NO_ADAPTER = {"adapter_name_or_path": None}


def family(name, **more):
    return {"model_name_or_path": f"../models/{name}", "adapter_name_or_path": f"../models/{name}/adapter"} | more


NF4 = {"quantization_bit": 4}
PT = {"stage": "pt", "template": None}
# Four steps of 40 rows an epoch, about a thousand labels each: ../README.md, "Rounding in bf16", says why so many.
BF16 = {
    "model_name_or_path": "../models/qwen3_bf16",
    "dataset": "alpaca,sharegpt,thinking,prompt,plain",
    "disable_shuffling": False,
    "per_device_train_batch_size": 10,
    "gradient_accumulation_steps": 4,
}

RUNS = {
    # families, each with its own template, plain and on a 4-bit base
    "qwen3": {},
    "qwen3_nf4": NF4,
    "qwen3_nf4_single": NF4 | {"double_quantization": False},
    "qwen2": family("qwen2", template="qwen"),
    "qwen2_nf4": family("qwen2", template="qwen") | NF4,
    "llama2": family("llama2", template="llama2"),
    "llama2_nf4": family("llama2", template="llama2") | NF4,
    "llama3": family("llama3", template="llama3"),
    "llama3_nf4": family("llama3", template="llama3") | NF4,
    "mistral": family("mistral", template="mistral"),
    "mistral_nf4": family("mistral", template="mistral") | NF4,
    "phi3": family("phi3", template="llama2", cutoff_len=64),
    "phi3_nf4": family("phi3", template="llama2", cutoff_len=64) | NF4,
    "gpt2": family("gpt2", template="chatml", cutoff_len=64),
    "gpt2_nf4": family("gpt2", template="chatml", cutoff_len=64) | NF4,
    # row formats
    "sharegpt": {"dataset": "sharegpt"},
    "messages": {"dataset": "messages"},
    "openai": {"dataset": "openai"},
    "prompt_completion": {"dataset": "prompt"},
    "sharegpt_llama2": family("llama2", template="llama2", dataset="sharegpt"),
    "sharegpt_llama3": family("llama3", template="llama3", dataset="sharegpt"),
    "mixed": {"dataset": "plain,sharegpt,prompt", "max_samples": 9},
    "interleave": {"dataset": "plain,prompt", "max_samples": 12, "mix_strategy": "interleave_over"},
    "num_samples": {"dataset": "sampled"},
    # templates
    "qwen3_nothink": {"template": "qwen3_nothink", "dataset": "sharegpt"},
    "chatml": family("qwen2", template="chatml", dataset="sharegpt"),
    "template_alpaca": family("llama2", template="alpaca"),
    "vicuna": family("llama2", template="vicuna", dataset="sharegpt"),
    "default": family("mistral", template="default"),
    "empty": family("qwen2", template="empty"),
    "derived_qwen3": {"template": None, "dataset": "sharegpt"},
    "derived_llama3": family("llama3", template=None, dataset="sharegpt"),
    "derived_qwen2": family("qwen2", template=None, dataset="sharegpt"),
    "default_system": {"default_system": "You are terse."},
    # thinking
    "thinking": {"dataset": "thinking"},
    "thinking_off": {"dataset": "thinking", "enable_thinking": False},
    "thinking_null": {"dataset": "thinking", "enable_thinking": None},
    "thinking_mask_history": {"dataset": "thinking", "mask_history": True},
    # rows to batches
    "shuffled": {"disable_shuffling": False},
    "shuffled_nf4": {"disable_shuffling": False, "seed": 7} | NF4,
    "packing": {"packing": True, "cutoff_len": 128, "per_device_train_batch_size": 2},
    "neat_packing": {"neat_packing": True, "cutoff_len": 128, "per_device_train_batch_size": 2},
    "neat_packing_mistral": family("mistral", template="mistral", neat_packing=True, cutoff_len=128)
    | {"per_device_train_batch_size": 2},
    "train_on_prompt": {"train_on_prompt": True},
    "train_on_prompt_llama2": family("llama2", template="llama2", train_on_prompt=True, dataset="sharegpt"),
    "mask_history": {"mask_history": True, "dataset": "sharegpt"},
    "short_cutoff": {"cutoff_len": 24, "dataset": "sharegpt"},
    "short_cutoff_mask_history": {"cutoff_len": 40, "dataset": "sharegpt", "mask_history": True},
    # pretraining
    "pt": PT | {"dataset": "text", "cutoff_len": 64},
    "pt_llama2": PT | family("llama2", template="llama2", dataset="text", cutoff_len=64),
    "pt_llama2_unpacked": PT | family("llama2", template="llama2", dataset="text", cutoff_len=64, packing=False),
    "pt_lines_unpacked": PT | {"dataset": "lines", "packing": False, "cutoff_len": 64},
    "pt_llama3": PT | family("llama3", template="llama3", dataset="text", cutoff_len=64),
    "pt_full": PT | NO_ADAPTER | {"dataset": "text", "cutoff_len": 64, "finetuning_type": "full"},
    # what is trained, and in which precision
    "full": NO_ADAPTER | {"finetuning_type": "full", "learning_rate": 5.0e-4},
    "full_llama2": NO_ADAPTER
    | family("llama2", template="llama2", adapter_name_or_path=None)
    | {"finetuning_type": "full", "learning_rate": 5.0e-4},
    "freeze": NO_ADAPTER | {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "learning_rate": 5.0e-4},
    "full_phi3": NO_ADAPTER
    | family("phi3", template="llama2", adapter_name_or_path=None, cutoff_len=64)
    | {"finetuning_type": "full", "learning_rate": 5.0e-4},
    "full_gpt2": NO_ADAPTER
    | family("gpt2", template="chatml", adapter_name_or_path=None, cutoff_len=64)
    | {"finetuning_type": "full", "learning_rate": 5.0e-4},
    "freeze_gpt2": NO_ADAPTER
    | family("gpt2", template="chatml", adapter_name_or_path=None, cutoff_len=64)
    | {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_trainable_modules": "attn,ln_2"}
    | {"freeze_extra_modules": "wpe,ln_f", "learning_rate": 5.0e-4},
    "rslora": {"adapter_name_or_path": "../models/qwen3/adapter_rslora"},
    "additional_target": family("llama3", template="llama3", adapter_name_or_path="../models/llama3/adapter_lm_head"),
    "embed_tokens": {"adapter_name_or_path": "../models/qwen3/adapter_embed_tokens"},
    "bf16": BF16 | {"bf16": True, "model_name_or_path": "../models/qwen3"},
    "bf16_of_bf16": BF16 | {"bf16": True},
    "bf16_nf4": BF16 | {"bf16": True} | NF4,
    "pure_bf16_model": BF16,
    # the trainer
    "eval": {"val_size": 0.2, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3},
    "eval_epoch": {
        "val_size": 7,
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 2,
        "disable_shuffling": False,
    },
    "eval_dataset": {
        "eval_dataset": "prompt",
        "max_samples": 20,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "per_device_eval_batch_size": 4,
    },
    "eval_nf4": {"val_size": 0.2, "eval_strategy": "steps", "eval_steps": 4, "per_device_eval_batch_size": 3} | NF4,
    "early_stopping": {
        "val_size": 0.2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "learning_rate": 0.3,
        "early_stopping_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "save_total_limit": 2,
    },
    "logging_steps": {"logging_steps": 4, "include_num_input_tokens_seen": True},
    "max_steps": {"max_steps": 5, "num_train_epochs": 9.0, "max_grad_norm": 0.05, "lr_scheduler_type": "linear"},
    "part_epoch": {"num_train_epochs": 1.4, "gradient_accumulation_steps": 3, "warmup_ratio": 0.0, "warmup_steps": 2},
    "no_clip": {"max_grad_norm": 0.0, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1.0e-6},
    "plain_steps": {"gradient_accumulation_steps": 1, "max_steps": 12, "disable_gradient_checkpointing": True},
}

# Kept whole; of the others only the norm of each final tensor is kept.
WHOLE = {
    "qwen3", "qwen3_nf4", "qwen2", "qwen2_nf4", "llama2", "llama2_nf4", "llama3", "llama3_nf4", "mistral", "mistral_nf4",
    "sharegpt", "shuffled", "packing", "neat_packing", "train_on_prompt", "pt", "rslora", "early_stopping", "no_clip",
    "bf16", "bf16_of_bf16", "pure_bf16_model",
}  # fmt: skip


def write_yaml(name, change):
    config = {k: v for k, v in (BASE | change).items() if v is not None or k == "enable_thinking"}
    config["output_dir"] = f"saves/{name}"
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (HERE / f"{name}.yaml").write_text(text, encoding="utf-8")
    return config


class Recorder(TrainerCallback):
    """Keeps what the run was given: the tokens of the data set, the order of the rows, the base's quantisation."""

    def __init__(self, out):
        self.out = out

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kw):
        rows = train_dataloader.dataset
        if "labels" not in rows.column_names:  # pretraining: the collator makes them
            collate = train_dataloader.collate_fn
            rows = [{k: v[0].tolist() for k, v in collate([row]).items()} for row in rows]
        self.out["rows"] = len(rows)
        self.out["lengths"] = [len(r["input_ids"]) for r in rows]
        self.out["trained"] = [sum(l != -100 for l in r["labels"]) for r in rows]
        self.out["first"] = [
            {k: list(rows[i][k]) for k in ("input_ids", "labels", "position_ids", "attention_mask") if k in rows[i]}
            for i in range(min(3, len(rows)))
        ]
        for row in self.out["first"]:
            if set(row.get("attention_mask", [1])) == {1}:
                row.pop("attention_mask", None)
            if "labels" in row:  # runs of -100 as [-100, count]
                row["labels"] = squeeze(row["labels"])
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.out["trainable"] = sum(p.numel() for p in trainable)
        self.out["dtypes"] = sorted({str(p.dtype).split(".")[1] for p in model.parameters()})
        differing = 0
        for module in model.modules():
            if type(module).__name__ == "Linear4bit" and module.weight.quant_state.nested:
                differing += codes_differing_by_offset(module.weight)
        self.out["absmax_codes_that_the_mean_in_f64_would_change"] = differing


def keep_eval_batches(out):
    """Notes the loss of every evaluated batch, in the order they come."""
    out["eval_batches"] = []
    for trainer in (CustomSeq2SeqTrainer, CustomTrainer):
        step = trainer.prediction_step

        def prediction_step(self, *args, _step=step, **kw):
            result = _step(self, *args, **kw)
            out["eval_batches"].append(result[0].item())
            return result

        trainer.prediction_step = prediction_step


def squeeze(labels):
    out = []
    for l in labels:
        if l == -100 and out and isinstance(out[-1], list):
            out[-1][1] += 1
        else:
            out.append([-100, 1] if l == -100 else l)
    return out


def codes_differing_by_offset(weight):
    """How many second-level codes change if the offset is the f64 mean of absmax rounded once."""
    state = weight.quant_state
    source = weight.source.reshape(-1, 64) if hasattr(weight, "source") else None
    if source is None:
        return 0
    absmax = source.float().abs().amax(1)
    offset = absmax.double().mean().float()
    codes, _ = quantize_blockwise(absmax - offset, blocksize=256)
    return int((codes != state.absmax).sum())


def keep_sources():
    """Lets every Params4bit remember what it was made from."""
    make = bnb_modules.Params4bit._quantize

    def quantise(self, device):
        source = self.data.detach().clone()
        out = make(self, device)
        out.source = source
        return out

    bnb_modules.Params4bit._quantize = quantise


VARYING = ("runtime", "per_second", "elapsed_time", "remaining_time", "throughput", "total_flos", "tokens_per_second")


def steady(x):
    """Drops what differs from machine to machine."""
    if isinstance(x, dict):
        return {k: steady(v) for k, v in x.items() if not any(s in k for s in VARYING)}
    return [steady(v) for v in x] if isinstance(x, list) else x


def one(name, config, scratch):
    out = {}
    if config.get("eval_strategy"):
        keep_eval_batches(out)
    target = scratch / name
    run_exp(config | {"output_dir": str(target)}, callbacks=[Recorder(out)])
    state = json.loads((target / "trainer_state.json").read_text())
    out["max_steps"] = state["max_steps"]
    out["log_history"] = [steady(x) for x in state["log_history"]]
    out["best"] = [state["best_global_step"], state["best_metric"]]
    for kind in ("train", "eval"):
        path = target / f"{kind}_results.json"
        if path.exists():
            out[f"{kind}_results"] = steady(json.loads(path.read_text()))
    stored = target / "adapter_model.safetensors"
    tensors = load_file(stored if stored.exists() else target / "model.safetensors")
    out["norms"] = {k: v.double().norm().item() for k, v in sorted(tensors.items())}
    if name in WHOLE:
        save_file(tensors, HERE / "expected" / f"{name}.safetensors")
    (HERE / "expected" / f"{name}.json").write_text(pretty(out))


def pretty(out):
    """JSON with one line per key, and one per entry of a list of objects."""
    parts = []
    for key, value in out.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join("  " + json.dumps(v) for v in value) + "\n]"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def example_output(scratch):
    """The small files of one run with evaluation and checkpoints; what a machine decides is set to fixed values."""
    config = write_yaml("example", BASE_EXAMPLE)
    target = scratch / "example"
    run_exp(config | {"output_dir": str(target)}, callbacks=[])
    place = HERE / "example_output"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    fixed = {"elapsed_time": "0:00:01", "remaining_time": "0:00:01"}

    def still(x, key=""):
        if isinstance(x, dict):
            return {k: still(v, k) for k, v in x.items()}
        if isinstance(x, list):
            return [still(v) for v in x]
        if key in fixed:
            return fixed[key]
        if any(s in key for s in VARYING) and key != "total_flos":
            return 1.0
        return x.replace(str(target), "saves/example") if isinstance(x, str) else x

    for path in sorted(target.rglob("*")):
        kept = path.relative_to(target)
        if kept.name in ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"):
            (place / kept).parent.mkdir(exist_ok=True)
            indent = 4 if "results" in kept.name else 2
            (place / kept).write_text(json.dumps(still(json.loads(path.read_text())), indent=indent) + "\n")
        elif kept.name == "trainer_log.jsonl":
            rows = [json.dumps(still(json.loads(r))) for r in path.read_text().splitlines()]
            (place / kept).write_text("\n".join(rows) + "\n")
        elif kept.name == "adapter_config.json":
            if kept.parent.name == "":
                adapter = json.loads(path.read_text())
                adapter["target_modules"].sort()  # a set, in another order each time
                (place / kept).write_text(json.dumps(adapter, indent=2) + "\n")
    names = sorted(str(p.relative_to(target)) + ("/" if p.is_dir() else "") for p in target.rglob("*"))
    (place / "FILES").write_text("\n".join(names) + "\n")


BASE_EXAMPLE = {
    "val_size": 0.2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "do_eval": True,
    "save_steps": 3,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "per_device_eval_batch_size": 3,
    "num_train_epochs": 1.5,
    "plot_loss": True,
    "include_num_input_tokens_seen": True,
}


def forked(name, work):
    pid = os.fork()
    if pid == 0:
        log = open(SCRATCH / f"{name}.log", "w")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        log.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(name, "ok" if status == 0 else f"failed, see {SCRATCH / name}.log", flush=True)
    return status == 0


def main():
    os.chdir(HERE)
    (HERE / "expected").mkdir(exist_ok=True)
    keep_sources()
    wanted = sys.argv[1:] or [*RUNS, "example"]
    good = True
    for name in wanted:
        if name == "example":
            good &= forked(name, lambda: example_output(SCRATCH))
        else:
            config = write_yaml(name, RUNS[name])
            good &= forked(name, lambda: one(name, config, SCRATCH))
    if good:
        shutil.rmtree(SCRATCH)
    sys.exit(not good)


main()
