#!/usr/bin/env python3
"""Trains the tiny base's tokenizer and writes its folder, all but the weights.

    python3 assets/make_tokenizer.py --corpus assets/corpus/corpus.jsonl --out assets/tiny-base

A byte-level BPE with the pre-tokenizer, the normaliser and the special tokens of Qwen3 (numbers aside), so every text
can be written and the qwen templates work unchanged. Needs the `tokenizers` package, 0.22; the same corpus gives the
same files.
"""
import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Qwen2's rule for cutting text before BPE; digits stand alone.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In Qwen3 the tokens about tools and thoughts are added but not special: decoding keeps them.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

# The same text as the templates qwen3 (thinking off: an empty thought opens the answer) and, for past turns, qwen3_nothink.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}
{{- messages[0]['content'] + '\\n\\n' }}
{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' }}
{{- tool | tojson }}
{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}
{%- elif message['role'] == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- elif message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}
{%- set f = call['function'] or call %}
{%- if not loop.first or message['content'] %}
{{- '\\n' }}
{%- endif %}
{{- '<tool_call>\\n{"name": "' + f['name'] + '", "arguments": ' }}
{{- f['arguments'] if f['arguments'] is string else f['arguments'] | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 192, 6, 4, 2, 48, 576


def train(texts, vocab_size):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    t.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    t.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    # At most 12 bytes, four Chinese characters: the patterns repeat whole sentences, which must not become tokens.
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(ADDED), min_frequency=2, special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=12, show_progress=False))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s in ADDED])
    return t


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    p.add_argument("--corpus", default=here / "corpus" / "corpus.jsonl", type=Path)
    p.add_argument("--out", default=here / "tiny-base", type=Path)
    p.add_argument("--vocab-size", default=4096, type=int, help="added tokens included")
    a = p.parse_args()

    with open(a.corpus, encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    for s in SPECIAL + ADDED:
        texts = [x.replace(s, "\n") for x in texts]
    t = train(texts, a.vocab_size)
    a.out.mkdir(parents=True, exist_ok=True)

    def write(name, value):
        (a.out / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    t.save(str(a.out / "tokenizer.json"), pretty=False)
    added = {str(t.token_to_id(s)): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                                     "single_word": False, "special": s in SPECIAL} for s in SPECIAL + ADDED}
    write("tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 2048, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    end, pad = t.token_to_id("<|im_end|>"), t.token_to_id("<|endoftext|>")
    write("config.json", {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
        "eos_token_id": end, "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN, "initializer_range": 0.02,
        "intermediate_size": MLP, "max_position_embeddings": 2048, "max_window_layers": LAYERS, "model_type": "qwen3",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "pad_token_id": pad,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
        "use_sliding_window": False, "vocab_size": t.get_vocab_size()})
    write("generation_config.json", {"do_sample": True, "eos_token_id": [end, pad], "pad_token_id": pad,
                                     "temperature": 0.6, "top_k": 20, "top_p": 0.95})
    n = t.get_vocab_size()
    per = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * MLP + 2 * HIDDEN + 2 * HEAD_DIM
    params = n * HIDDEN + LAYERS * per + HIDDEN
    size = (a.out / "tokenizer.json").stat().st_size
    print(f"{n} tokens, tokenizer.json {size / 1e6:.2f} MB, {params / 1e6:.2f} M parameters, {(2 * params + size) / 1e6:.2f} MB in all")


if __name__ == "__main__":
    main()
