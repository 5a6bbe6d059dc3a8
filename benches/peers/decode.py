"""Times generation through transformers and through qlora-engine: the same model, the same prompts, on this CPU.

    cargo build --release
    target/peers/bin/python benches/peers/decode.py [--work target/decode] [--new 48] [--prompt 128]

The model has random weights, the layers of Qwen3-0.6B and a vocabulary of 8,192 (0.45 G parameters); both read the same folder.
For each dtype and batch: seconds to the first token (all prompts of the batch read) and tokens a second after it, from the
difference of a run of one new token and one of `--new`. Both run greedily on all cores; the best of three, taken in turns.
Nothing else should run on the machine.
"""
import argparse
import json
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_model(folder):
    """A tokenizer with one token a word, and a model of random weights, in bf16 and f32."""
    if (folder / "f32" / "model.safetensors").exists():
        return
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    words = {f"w{i}": i for i in range(8192)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2")
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        model.to(dtype).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)


def prompts(batch, length):
    return [" ".join(f"w{(i * 7919 + b * 31 + 17) % 8000 + 100}" for i in range(length)) for b in range(batch)]


def theirs(model, batch, length, new):
    import torch

    ids = torch.tensor([[(i * 7919 + b * 31 + 17) % 8000 + 100 for i in range(length)] for b in range(batch)])
    began = time.perf_counter()
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                             do_sample=False, pad_token_id=2)
    assert out.shape[1] == length + new
    return time.perf_counter() - began


def ours(folder, dtype, batch, length, new):
    command = [str(ROOT / "target/release/qlora-engine"), "generate", f"model_name_or_path={folder}", "template=empty",
               "use_cpu=true", f"per_device_eval_batch_size={batch}", f"bf16={'true' if dtype == 'bf16' else 'false'}",
               "--greedy", "--json", "--max-new-tokens", str(new)]
    for prompt in prompts(batch, length):
        command += ["--prompt", prompt]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == batch and all(a["tokens"] == new for a in answers), [a["tokens"] for a in answers]
    return max(a["seconds"] for a in answers)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, default=ROOT / "target/decode")
    p.add_argument("--new", type=int, default=48)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--kinds", default="bf16,f32")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_model(args.work)
    import torch
    from transformers import AutoModelForCausalLM

    print("| dtype | batch | first token s, theirs / ours | ratio | tokens/s after it, theirs / ours | ratio |")
    print("|---|---|---|---|---|---|")
    for kind in args.kinds.split(","):
        folder = args.work / kind
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, {"bf16": "bfloat16", "f32": "float32"}[kind]))
        for batch in (1, 8):
            best = {}
            for _ in range(3):
                for new in (1, args.new):
                    for who, run in (("theirs", lambda: theirs(model, batch, args.prompt, new)),
                                     ("ours", lambda: ours(folder, kind, batch, args.prompt, new))):
                        best[who, new] = min(best.get((who, new), 1e9), run())
            rate = {who: batch * (args.new - 1) / (best[who, args.new] - best[who, 1]) for who in ("theirs", "ours")}
            first = {who: best[who, 1] for who in ("theirs", "ours")}
            print(f"| {kind} | {batch} | {first['theirs']:.3f} / {first['ours']:.3f} | {first['theirs'] / first['ours']:.2f} "
                  f"| {rate['theirs']:.1f} / {rate['ours']:.1f} | {rate['ours'] / rate['theirs']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
