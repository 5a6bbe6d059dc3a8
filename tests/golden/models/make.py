"""Makes the tiny models, adapters and golden values of this folder. What each file holds: ../README.md.

Run as `python make.py` (or with names of families, for those alone) with the pins of benches/peers/setup.sh. Deterministic: seeded, one thread, CPU.
The f32 and nf4 values are computed in f64 and rounded once to f32; the bf16 ones are what bf16 autocast gives.
"""

import contextlib
import json
import math
import shutil
import sys
from collections import Counter
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import plain_nf4  # noqa: E402

DATA = HERE.parent / "runs" / "data"
VOCAB = 320
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Of families with fused layers; and the two whose quantisation is kept whole.
FUSED = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
SHOWN = {
    "phi3": ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"),
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
}

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
# bitsandbytes' CPU kernel dequantises rows whose width is no multiple of 64 wrongly, as most are here.
plain_nf4.install()

# Three sequences of different length. The second has a label at its first position, which nothing predicts:
# it counts in the denominator and adds nothing to the sum.
SEQUENCES = [[7, 201, 33, 96, 310, 12, 96, 250], [1, 88, 149, 62, 5], [270, 14, 199]]
LABELS = [[-100, -100, -100, 96, 310, 12, 96, 250], [1, 88, 149, 62, 5], [-100, 14, -100]]

SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
    attention_dropout=0.0,
)


def families():
    """Name -> (config, style of config.json, tokenizer maker)."""
    return {
        "llama2": (
            LlamaConfig(
                **SMALL,
                num_key_value_heads=4,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                bos_token_id=1,
                eos_token_id=2,
            ),
            4,
            sentencepiece_like,
        ),
        # Eight-wide heads have wavelengths 6, 167, 4443 and 118142 at theta 5e5: the first is kept, the second lies
        # in the smooth band, the others are divided by the factor.
        "llama3": (
            LlamaConfig(
                **SMALL,
                num_key_value_heads=2,
                rms_norm_eps=1e-5,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 256,
                },
            ),
            5,
            llama3_like,
        ),
        "mistral": (
            MistralConfig(
                **SMALL,
                num_key_value_heads=2,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                sliding_window=4,
                bos_token_id=1,
                eos_token_id=2,
            ),
            4,
            sentencepiece_like,
        ),
        "qwen2": (
            Qwen2Config(
                **SMALL,
                num_key_value_heads=2,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=True,
                use_sliding_window=False,
                sliding_window=4,
                max_window_layers=2,
            ),
            4,
            qwen2_like,
        ),
        "qwen3": (
            Qwen3Config(
                **SMALL,
                num_key_value_heads=2,
                head_dim=16,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=True,
            ),
            5,
            qwen_like,
        ),
        # Within 64 positions, so the short factors count; cos and sin are scaled by sqrt(1 + ln 8 / ln 64).
        "phi3": (
            Phi3Config(
                **SMALL,
                num_key_value_heads=2,
                rms_norm_eps=1e-5,
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0, 1.1, 1.3, 1.7],
                    "long_factor": [1.5, 3.0, 5.0, 8.0],
                },
                sliding_window=4,
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            ),
            4,
            sentencepiece_like,
        ),
        "gpt2": (
            GPT2Config(
                vocab_size=VOCAB,
                n_embd=32,
                n_inner=48,
                n_layer=2,
                n_head=4,
                n_positions=64,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            ),
            4,
            qwen_like,
        ),
    }


# ---------------------------------------------------------------- tokenizers


def corpus():
    texts = []
    for row in json.loads((DATA / "plain.json").read_text(encoding="utf-8")):
        texts += [row["instruction"], row["input"], row["output"]]
    return texts


def byte_level(regex, specials, plain, normalizer):
    """A byte-level BPE whose added tokens follow the learned ones, as in Qwen and Llama 3."""
    tok = Tokenizer(models.BPE())
    split = [
        pre_tokenizers.Split(Regex(regex), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence(split)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    tok.add_tokens([AddedToken(s, normalized=False, special=False) for s in plain])
    return tok


CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# As Qwen 2.5: a conversation without a system turn gets one.
CHATML_WITH_DEFAULT = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}{%- endif %}"
    + CHATML
)
HEADERS = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
INST = (
    "{%- if messages[0]['role'] == 'system' %}{%- set ns = namespace(sys='<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n') %}{%- set rest = messages[1:] %}{%- else %}{%- set ns = namespace(sys='') %}"
    "{%- set rest = messages %}{%- endif %}"
    "{%- for m in rest %}{%- if m['role'] == 'user' %}{{- bos_token + '[INST] ' + ns.sys + m['content'] + ' [/INST]' }}"
    "{%- set ns.sys = '' %}{%- else %}{{- ' ' + m['content'] + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)


def qwen_like():
    regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    tok = byte_level(regex, specials, plain, normalizers.NFC())
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def qwen2_like():
    tok, names = qwen_like()
    return tok, names | {"chat_template": CHATML_WITH_DEFAULT}


def llama3_like():
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>"]
    specials += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
    tok = byte_level(regex, specials, [], None)
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", bos)],
    )
    return tok, dict(
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template=HEADERS,
    )


def sentencepiece_like():
    """BPE over whole text with "▁" for spaces and bytes as the fallback, as Llama 2 and Mistral store it."""
    head = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    # Forty letters and "▁"; all else, Chinese among it, is spelt in bytes. Chosen here, since the trainer breaks ties
    # between equally frequent letters at random.
    counts = Counter("".join(corpus()).replace(" ", "").replace("\n", "").replace("\t", ""))
    letters = ["▁"] + sorted(sorted(counts), key=lambda c: -counts[c])[:40]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=head, initial_alphabet=letters, limit_alphabet=41, show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    tok = Tokenizer(
        models.BPE(
            vocab=learnt["vocab"],
            merges=[tuple(m) for m in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return tok, dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=INST)


# ---------------------------------------------------------------- models and adapters


def randomise(model, gen):
    for name, p in model.named_parameters():
        with torch.no_grad():
            if name.endswith("norm.weight") or (".ln_" in name and name.endswith("weight")):
                p.copy_(1 + 0.1 * torch.randn(p.shape, generator=gen))
            elif name.endswith("bias"):
                p.copy_(0.1 * torch.randn(p.shape, generator=gen))
            elif "embed_tokens" in name or ".wte." in name or ".wpe." in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=gen))
            else:
                p.copy_(torch.randn(p.shape, generator=gen) / math.sqrt(p.shape[1]))


def as_transformers4(path):
    """Rewrites config.json and tokenizer_config.json as transformers 4 would have written them."""
    c = json.loads((path / "config.json").read_text())
    if rope := c.pop("rope_parameters", None):
        c["rope_theta"] = rope["rope_theta"]
        c["rope_scaling"] = None
        if rope["rope_type"] == "longrope":
            c["rope_scaling"] = {"type": "longrope"} | {k: rope[k] for k in ("short_factor", "long_factor")}
    c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.46.0"
    c.pop("layer_types", None)
    (path / "config.json").write_text(json.dumps(dict(sorted(c.items())), indent=2) + "\n")
    t = json.loads((path / "tokenizer_config.json").read_text())
    t["tokenizer_class"] = "PreTrainedTokenizerFast"
    t.pop("backend", None)
    (path / "tokenizer_config.json").write_text(json.dumps(t, indent=2) + "\n")


def without_prefix(path):
    """Renames tensors as openai-community/gpt2 has them: without `transformer.`."""
    file = path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def save_adapter(model, path, gen, **options):
    """Wraps `model`, fills A and B (and the modules to save) with random values and saves the adapter by PEFT."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=FUSED.get(model.config.model_type, LINEARS),
        fan_in_fan_out=model.config.model_type == "gpt2",
        **options,
    )
    peft = get_peft_model(model, config)
    for name, p in sorted(peft.named_parameters()):
        if p.requires_grad:
            with torch.no_grad():
                if "modules_to_save" in name:
                    p.add_(0.02 * torch.randn(p.shape, generator=gen))
                else:
                    p.copy_(torch.randn(p.shape, generator=gen) * (0.1 if "lora_B" in name else 0.2))
    peft.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = ""
    config["target_modules"] = sorted(config["target_modules"])
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- golden values


@contextlib.contextmanager
def f64_norms(model):
    """transformers' RMSNorm computes in f32 whatever the model's type; inside this it keeps the type it is given."""
    classes = {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
    before = {c: c.forward for c in classes}

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    for c in classes:
        c.forward = forward
    try:
        yield
    finally:
        for c, f in before.items():
            c.forward = f


def run(model, wide):
    """Logits of every token, sequence after sequence, and the loss: summed cross-entropy / labels that are not -100."""
    logits, total = [], 0.0
    count = sum(l != -100 for row in LABELS for l in row)
    for ids, labels in zip(SEQUENCES, LABELS):
        out = model(input_ids=torch.tensor([ids])).logits[0]
        logits.append(out.detach())
        total = total + F.cross_entropy(out[:-1].to(wide), torch.tensor(labels[1:]), reduction="sum")
    return torch.cat(logits), total / count


def stored_name(name):
    """A parameter's name -> its name in adapter_model.safetensors."""
    return name.replace(".modules_to_save.default", "").replace(".default.weight", ".weight")


def exact(model):
    """Golden values in f64: (tensors, loss). Tensors are `logits` and `grad.<name>` for whatever is trainable."""
    model.double().train()
    model.zero_grad()
    with f64_norms(model):
        logits, loss = run(model, torch.float64)
        loss.backward()
    out = {"logits": logits.float()}
    for name, p in model.named_parameters():
        if p.requires_grad:
            out["grad." + stored_name(name)] = p.grad.float().contiguous()
    return out, loss.item()


def check_padded(model, loss):
    """transformers' own padded batch, f32 and its loss function give the same number: our definition is theirs."""
    model.float()
    n = max(map(len, SEQUENCES))
    ids = torch.tensor([s + [0] * (n - len(s)) for s in SEQUENCES])
    mask = torch.tensor([[1] * len(s) + [0] * (n - len(s)) for s in SEQUENCES])
    labels = torch.tensor([s + [-100] * (n - len(s)) for s in LABELS])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=(labels != -100).sum())
    assert abs(out.loss.item() - loss) < 2e-6 * loss, (out.loss.item(), loss)


def base(path, dtype=torch.float32, **kw):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa", **kw)


def quantised(path, dtype, double):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_quant_storage=dtype,
    )
    return base(path, dtype, quantization_config=config, device_map={"": "cpu"})


def four_bit(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


def packed(state, prefix, weight):
    """One linear's quantisation as bitsandbytes holds it."""
    out = {f"{prefix}.codes": weight.detach().contiguous().view(torch.uint8).reshape(-1).clone()}
    if state.nested:
        out[f"{prefix}.absmax_codes"] = state.absmax.clone()
        out[f"{prefix}.nested_absmax"] = state.state2.absmax.clone()
        out[f"{prefix}.offset"] = state.offset.reshape(1).clone()
    else:
        out[f"{prefix}.absmax"] = state.absmax.clone()
    return out


def nf4(path, adapter, double):
    """f32 weights in NF4. The matrices are those bitsandbytes dequantises to, the arithmetic on them is f64."""
    q = quantised(path, torch.float32, double)
    linears = four_bit(q)
    plain = base(path)
    tensors = {}
    for name, m in linears.items():
        state = m.weight.quant_state
        full = bnb.dequantize_4bit(m.weight.data.view(torch.uint8).reshape(-1, 1), state)
        with torch.no_grad():
            full = full.reshape(state.shape)
            weight = plain.get_submodule(name).weight
            # Of GPT-2 the transpose is quantised: its matrices are stored as (in, out).
            weight.copy_(full.T if path.name == "gpt2" else full)
        if double:
            tensors[f"{name}.offset"] = state.offset.reshape(1).clone()
        if name in SHOWN.get(path.name, ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")):
            tensors |= packed(state, name, m.weight.data)
            tensors[f"{name}.dequantised"] = full.clone()
    out, loss = exact(PeftModel.from_pretrained(plain, adapter, is_trainable=True))
    own = PeftModel.from_pretrained(q, adapter, is_trainable=True).train()
    _, theirs = run(own, torch.float32)
    assert abs(theirs.item() - loss) < 3e-6 * loss, (theirs.item(), loss)
    return out | tensors, loss


def bf16(path, adapter, load):
    """As LLaMA-Factory with `bf16: true`: adapter in f32, autocast to bf16; logits come out in bf16."""
    model = PeftModel.from_pretrained(load(path), adapter, is_trainable=True).train()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = run(model, torch.float32)
    assert logits.dtype == torch.bfloat16
    return {"logits": logits}, loss.item()


def make_family(name, config, style, tokenizer, seed):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    gen = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, gen)
    model.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    tok, names = tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=512, **names).save_pretrained(path)
    if style == 4:
        as_transformers4(path)
    if name == "gpt2":
        without_prefix(path)
    adapter = path / "adapter"
    save_adapter(model, adapter, gen)

    losses = {}

    def keep(case, result, only=None):
        tensors, loss = result
        if only:
            tensors = {k: v for k, v in tensors.items() if k.startswith(only)}
            assert tensors, case
        losses[case] = loss
        save_file(tensors, path / "golden" / f"{case}.safetensors")

    (path / "golden").mkdir()
    tuned = PeftModel.from_pretrained(base(path), adapter, is_trainable=True)
    keep("f32", exact(tuned))
    check_padded(tuned, losses["f32"])
    keep("nf4", nf4(path, adapter, True))
    if name in ("llama2", "qwen3"):
        keep("nf4_single", nf4(path, adapter, False), only=("grad.model", "model."))
        rank = PeftModel.from_pretrained(base(path), adapter, is_trainable=True)
        for m in rank.modules():  # alpha / sqrt(r) in place of alpha / r
            if isinstance(getattr(m, "scaling", None), dict):
                m.scaling = {"default": 8 / math.sqrt(4)}
        keep("rslora", exact(rank), only="grad.")
        # llama2's embedding is left out for size; qwen3's is tied, so it sees both uses.
        all_but = ("grad.lm_head", "grad.model.layers", "grad.model.norm")
        keep("full", exact(base(path)), only=all_but if name == "llama2" else "grad.")
    if name == "gpt2":
        keep("full", exact(base(path)), only=("grad.transformer.w", "grad.transformer.h.1", "grad.transformer.ln_f"))
    keep("bf16", bf16(path, adapter, lambda p: base(p, torch.bfloat16)))
    keep("bf16_of_f32", bf16(path, adapter, base))
    keep("nf4_bf16", bf16(path, adapter, lambda p: quantised(p, torch.bfloat16, True)))
    if name == "qwen3":
        extra_folders(path, adapter)
    for module in {"llama3": ["lm_head"], "qwen3": ["embed_tokens"]}.get(name, []):
        extra = path / f"adapter_{module}"
        save_adapter(base(path), extra, gen, modules_to_save=[module])
        wanted = (
            f"grad.base_model.model.{module}",
            f"grad.base_model.model.model.{module}",
            "grad.base_model.model.model.layers.1.mlp",
        )
        keep(module, exact(PeftModel.from_pretrained(base(path), extra, is_trainable=True)), only=wanted)
    (path / "golden" / "losses.json").write_text(json.dumps(losses, indent=2) + "\n")


def extra_folders(path, adapter):
    """For the runs: the same model stored in bf16, and the same adapter with rank-stabilised scaling."""
    half = path.parent / (path.name + "_bf16")
    shutil.rmtree(half, ignore_errors=True)
    base(path, torch.bfloat16).save_pretrained(half)
    (half / "generation_config.json").unlink(missing_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(path / file, half)
    stable = path / "adapter_rslora"
    shutil.copytree(adapter, stable)
    config = json.loads((stable / "adapter_config.json").read_text()) | {"use_rslora": True}
    (stable / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_nf4():
    """bitsandbytes alone, on shapes with ragged ends, zeros and one huge value. bf16 in, bf16 out."""
    gen = torch.Generator().manual_seed(7)
    tensors = {}
    # 281.25 blocks of 64, so two blocks of 256 absmax and a ragged end in both levels; all-zero blocks.
    shapes = {"ragged": (75, 240), "zeros": (8, 64)}
    for name, shape in shapes.items():
        w = torch.randn(shape, generator=gen) * 0.05
        if name == "zeros":
            w[2:4] = 0
        if name == "ragged":
            w[3, 5] = 40.0
        w = w.to(torch.bfloat16)
        tensors[f"{name}.weight"] = w
        for double in (True, False):
            codes, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=double, quant_type="nf4")
            kind = "double" if double else "single"
            tensors |= packed(state, f"{name}.{kind}", codes)
            if double or name == "zeros":
                tensors[f"{name}.{kind}.dequantised"] = bnb.dequantize_4bit(codes, state).contiguous()
    tensors["code"] = state.code
    tensors["nested_code"] = bnb.create_dynamic_map()
    save_file(tensors, HERE / "nf4.safetensors")


def main():
    wanted = sys.argv[1:]
    for seed, (name, (config, style, tokenizer)) in enumerate(families().items()):
        if not wanted or name in wanted:
            make_family(name, config, style, tokenizer, seed)
    if wanted:
        return
    make_nf4()
    batch = {"sequences": SEQUENCES, "labels": LABELS}
    (HERE / "batch.json").write_text(json.dumps(batch) + "\n")


main()
