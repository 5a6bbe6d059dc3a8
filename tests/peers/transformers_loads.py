"""transformers loads a merged folder of ours, PEFT the adapter on its base, and the gguf package our GGUF file:
logits and tensors are compared. Not part of `make test`.

    pip install torch transformers peft gguf
    python tests/peers/transformers_loads.py BASE ADAPTER MERGED [FILE.gguf]

MERGED is what `qlora-engine export` wrote of BASE and ADAPTER; FILE.gguf the same by `export_format: gguf` with
`export_outtype: f32`. Ends with 1 if a logit differs by more than 1e-4, or a tensor of the file by more than 1e-6.
"""
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 1e-4


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def main(base, adapter, merged, gguf_file=None):
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = [tokenizer.encode("The capital of France is Paris.") or [1], tokenizer.encode("北京是中国的首都。") or [2]]
    peft = PeftModel.from_pretrained(load(base), adapter)
    ours = load(merged)
    worst = 0.0
    with torch.no_grad():
        for row in ids:
            row = torch.tensor([row])
            worst = max(worst, (peft(row).logits - ours(row).logits).abs().max().item())
    print(f"logits of the merged folder differ from PEFT's by at most {worst:.3e}")
    failed = not worst <= LIMIT
    if gguf_file:
        failed |= not compare_gguf(ours, gguf_file)
    return int(failed)


def compare_gguf(model, path):
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    kinds = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
             "gpt2": gguf.MODEL_ARCH.GPT2}
    layers = model.config.num_hidden_layers
    names = gguf.get_tensor_name_map(kinds[arch], layers)
    tensors = {t.name: t for t in reader.tensors}
    heads = model.config.num_attention_heads
    kv_heads = getattr(model.config, "num_key_value_heads", heads)
    worst, seen = 0.0, {"rope_freqs.weight"}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        want = value.numpy()
        if arch == "gpt2" and any(part in name for part in ["c_attn.weight", "c_proj.weight", "c_fc.weight"]):
            want = want.T
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            n = heads if "q_proj" in name else kv_heads
            want = want.reshape(n, 2, want.shape[0] // n // 2, *want.shape[1:]).swapaxes(1, 2).reshape(want.shape)
        t = tensors[known]
        got = gguf.dequantize(t.data, t.tensor_type).reshape(want.shape)
        worst = max(worst, float(np.abs(got - want).max()))
        seen.add(known)
    print(f"{len(seen)} tensors of {path} differ by at most {worst:.3e}; not looked at: {sorted(set(tensors) - seen)}")
    return worst <= 1e-6 and set(tensors) <= seen


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
