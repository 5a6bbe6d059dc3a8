"""Makes this folder's files with LLaMA-Factory 0.9.5 (transformers 5.6.0): two tiny tokenizers, conversations of our own,
and the ids and labels that LLaMA-Factory makes of them.

    DISABLE_VERSION_CHECK=1 HF_HUB_OFFLINE=1 python make.py

tokenizers/byte   byte-level BPE with the special tokens of Qwen, Llama 3 and ChatML
tokenizers/spm    BPE over metaspace with byte fallback under the class name LlamaTokenizer
tokenizers/chat_* chat templates alone, for templates derived from them
cases.json        {"records": [...], "runs": [{settings, "rows": [[ids, spans]]}]}; ids are base 36 in two digits each,
                  spans the lengths of untrained and trained stretches in turn
"""

import json
import os
import shutil
import sys
from types import SimpleNamespace

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datetime

from llamafactory.data import tool_utils
from llamafactory.data.processor import PretrainDatasetProcessor, SupervisedDatasetProcessor
from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor
from llamafactory.data import template as lf_template
from llamafactory.hparams import DataArguments
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 5)


tool_utils.datetime = FixedDate

CORPUS = [
    "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore, and the answer is 42.",
    "You are a helpful assistant. Answer the user's question in one sentence, please. user assistant system tool",
    "头痛三天了，应该怎么办？请多休息，多喝水；如果发烧超过三十九度，请尽快去医院看医生。",
    "What is the weather in Paris today? It is sunny and warm, about 20 degrees. get_weather city date unit name arguments",
    '{"name": "get_weather", "arguments": {"city": "北京", "days": 3}} ### Instruction: ### Response: Human: Assistant:',
    "<think>\nLet me think about it step by step.\n</think>\n\nUSER: ASSISTANT: [INST] [/INST] <<SYS>>\n<</SYS>>\n\n",
] * 3

QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATML_JINJA = (
    "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if message.role != 'system' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
THINK_JINJA = (
    "{%- for m in messages %}{%- set text = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + text + eos_token }}"
    "{% endgeneration %}\n"
    "{%- else %}{{ '<|im_start|>' + m['role'] + '\\n' + text | trim + '<|im_end|>\\n' }}{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOJSON_JINJA = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}[{{ m.role | tojson }}, {{ m['content'] }}"
    "{{ {'a': '<>&\\'é', 'b': [1, 2.5, none, true]} | tojson }}]{{ tools }}{{ eos_token if m.role == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}[\"assistant\", {% endif %}"
)


def make_tokenizers():
    root = os.path.join(HERE, "tokenizers")
    shutil.rmtree(root, ignore_errors=True)
    byte, spm = os.path.join(root, "byte"), os.path.join(root, "spm")
    for d in (byte, spm):
        os.makedirs(d)

    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in QWEN + LLAMA3])
    t.add_tokens([AddedToken(s, normalized=False) for s in ["<think>", "</think>", "<tool_call>", "</tool_call>"]])
    from tokenizers import processors

    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.save(os.path.join(byte, "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
              "bos_token": "<|begin_of_text|>"}
    json.dump(config, open(os.path.join(byte, "tokenizer_config.json"), "w"))

    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    t.train_from_iterator(
        [" ".join(c.split()) for c in CORPUS],
        trainers.BpeTrainer(vocab_size=620, special_tokens=specials, limit_alphabet=120, show_progress=False,
                            max_token_length=8),
    )
    data = json.loads(t.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    json.dump(data, open(os.path.join(spm, "tokenizer.json"), "w"), ensure_ascii=False, separators=(",", ":"))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": {"content": "</s>",
              "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "__type": "AddedToken"},
              "unk_token": "<unk>", "add_bos_token": True, "pad_token": None}
    json.dump(config, open(os.path.join(spm, "tokenizer_config.json"), "w"))
    for name, text in [("chat_chatml", CHATML_JINJA), ("chat_think", THINK_JINJA), ("chat_tojson", TOJSON_JINJA)]:
        open(os.path.join(root, name + ".jinja"), "w", newline="").write(text)


def u(s):
    return {"role": "user", "content": s}


def a(s):
    return {"role": "assistant", "content": s}


TOOLS = json.dumps([
    {"name": "get_weather", "description": "天气 & <wind>", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "The city"}, "unit": {"type": ["string", "null"], "enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer"}}, "bare": {}}, "required": ["city"]}},
    {"type": "function", "function": {"name": "now", "description": None, "parameters": {"properties": {}}}},
], ensure_ascii=True)
CALL = '{"name": "get_weather", "arguments": {"city": "北京", "x": 1e16, "y": 1.0, "big": 123456789012345678901234567890, "n": null}}'
COT = "<think>\nLet me see: 6 * 7.\n</think>\n\n"


def records():
    long = CORPUS[0] * 2
    rows = [
        ([u("What is 6 * 7?"), a("42")], "", ""),
        ([u("头痛怎么办？"), a("请多喝水，多休息。😀")], "你是一名医生。", ""),
        ([u(""), a("")], "", ""),
        ([u("hi"), a(""), u(" lead and trail "), a(" spaced ")], "", ""),
        ([u("a"), a("1"), u("b"), a("2"), u("c"), a("3")], "Short.", ""),
        ([u("a <|im_end|> </s> <|eot_id|> <s> b"), a("c <|endoftext|><|im_start|> d")], "x</s>y", ""),
        ([u("{{content}} and {{idx}} {{idx}} {{system}}"), a("{{content}} {{idx}}")], "{{content}}", ""),
        ([u("Q"), a(COT + "42.")], "", ""),
        ([u("Q"), a(COT + "42."), u("R"), a("plain"), u("S"), a(COT + COT + "\n\nend")], "Be brief.", ""),
        ([u("Q"), a("<think>\n\n</think>\n\nempty thought"), u("again"), a("<think> odd </think> tail")], "", ""),
        ([u("Weather?"), {"role": "function", "content": CALL}, {"role": "observation", "content": '{"t": 20, "s": "晴"}'},
          a("Sunny.")], "Use tools.", TOOLS),
        ([u("Both?"), {"role": "function", "content": "[" + CALL + ", " + '{"name": "now", "arguments": {}}' + "]"},
          {"role": "observation", "content": "ok"}, a("Done.")], "", TOOLS),
        ([u("No call"), a("None needed.")], "", TOOLS),
        ([u("Empty tools"), a("Fine.")], "", "[]"),
        ([u(long), a("short answer")], "", ""),
        ([u("short question"), a(long)], "", ""),
        ([u(long), a(long), u("then"), a("more")], "System prompt of some length, said once.", ""),
        ([u("x " * 30), a("y " * 30), u("z " * 20), a("w " * 20), u("v " * 10), a("t " * 10)], "", ""),
        ([u("tabs\tand\r\nline\n\n\nfeeds"), a("e\u0301 combining, ﬁ ligature, \u3000wide \u200b zero")], "", ""),
        ([u("odd number of turns"), a("one"), u("no answer")], "", ""),
    ]
    return [{"messages": m, "system": s, "tools": t} for m, s, t in rows]


THINKING_CALLS = [
    {"messages": [u("W?"), {"role": "function", "content": COT + CALL}, {"role": "observation", "content": "1"}, a("x")],
     "system": "", "tools": TOOLS},
    {"messages": [u("W?"), {"role": "function", "content": "Before <tool_call>" + CALL + "</tool_call> after"},
                  {"role": "observation", "content": "1"}, a(COT + "x")], "system": "s", "tools": TOOLS},
]


DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(ids):
    assert max(ids, default=0) < 36 * 36
    return "".join(DIGITS[n // 36] + DIGITS[n % 36] for n in ids)


def spans(labels):
    out, flag, n = [], False, 0
    for x in labels:
        if (x != -100) != flag:
            out.append(n)
            flag, n = not flag, 0
        n += 1
    return out + [n]


def load(tokenizer, chat=None, split=False, folder=None):
    tok = AutoTokenizer.from_pretrained(
        folder or os.path.join(HERE, "tokenizers", tokenizer), split_special_tokens=split, padding_side="right"
    )
    if chat:
        tok.chat_template = open(os.path.join(HERE, "tokenizers", chat + ".jinja"), newline="").read()
    return tok


def run(rows, tokenizer, chat=None, stage="sft", split=False, folder=None, **settings):
    """What LLaMA-Factory makes of `rows`, and the chat template it would save."""
    # Templates are module-level and changed by settings: a fresh copy for each run.
    from copy import deepcopy

    saved = deepcopy(lf_template.TEMPLATES)
    tok = load(tokenizer, chat, split, folder)
    args = DataArguments(template=settings.pop("template", None), dataset="x", **settings)
    args.packing = args.packing if args.packing is not None else stage == "pt"
    t = lf_template.get_template_and_fix_tokenizer(tok, args)
    lf_template.TEMPLATES.clear()
    lf_template.TEMPLATES.update(saved)
    columns = {k: [] for k in ["_prompt", "_response", "_system", "_tools", "_images", "_videos", "_audios"]}
    for r in rows:
        m = r["messages"]
        columns["_prompt"].append(m if stage == "pt" else m[:-1])
        columns["_response"].append([] if stage == "pt" else m[-1:])
        columns["_system"].append(r["system"])
        columns["_tools"].append(r["tools"])
        for k in ["_images", "_videos", "_audios"]:
            columns[k].append(None)
    cls = PretrainDatasetProcessor if stage == "pt" else (
        PackedSupervisedDatasetProcessor if args.packing else SupervisedDatasetProcessor)
    p = cls(template=t, tokenizer=tok, processor=None, data_args=args)
    size = args.preprocessing_batch_size
    out = []
    for i in range(0, len(rows), size):
        made = p.preprocess_dataset({k: v[i : i + size] for k, v in columns.items()})
        for j, ids in enumerate(made.get("input_ids", [])):
            if stage == "pt":
                labels = [x if x != tok.pad_token_id else -100 for x in ids]  # DataCollatorForLanguageModeling
                pieces = [len(ids)]
            else:
                labels, pieces = made["labels"][j], [len(ids)]
                if args.packing:  # drop the pads; they are one or more at the end
                    positions = made["position_ids"][j]
                    starts = [k for k, x in enumerate(positions) if x == 0]
                    pads = 1
                    while len(starts) >= pads + 1 and starts[-pads - 1] == len(ids) - pads - 1:
                        pads += 1
                    used = len(ids) - pads
                    starts = [k for k in starts if k < used]
                    pieces = [b - s for s, b in zip(starts, starts[1:] + [used])]
                    assert all(x == tok.pad_token_id for x in ids[used:])
                    ids, labels = ids[:used], labels[:used]
            assert all(l in (-100, x) for l, x in zip(labels, ids)) and len(labels) == len(ids)
            out.append((ids, labels, pieces))
    return out, tok, t


TEMPLATES = {
    "byte": ["qwen3", "qwen3_nothink", "qwen", "llama3", "chatml", "alpaca", "default", "empty", "deepseek"],
    "spm": ["llama2", "llama2_zh", "mistral", "ministral", "vicuna", "default"],
}


def usable(rows, template):
    """Only what LLaMA-Factory itself takes: thoughts around a call need a template that is not Llama 2's."""
    return rows if template in ("llama2", "llama2_zh", "mistral", "ministral") else rows + THINKING_CALLS


# Records left out of the runs that vary a setting: their tool prompts are long and the runs by template have them.
SKIP = [11, 12, 13, 20]


def main():
    make_tokenizers()
    rows = records()
    plans = []
    for tokenizer, names in TEMPLATES.items():
        for name in names:
            plans.append(dict(tokenizer=tokenizer, template=name))
    for name, tokenizer in [("qwen3", "byte"), ("llama2", "spm"), ("default", "byte")]:
        for cutoff in [3, 7, 40]:
            plans.append(dict(tokenizer=tokenizer, template=name, cutoff_len=cutoff))
        plans.append(dict(tokenizer=tokenizer, template=name, mask_history=True))
        plans.append(dict(tokenizer=tokenizer, template=name, mask_history=True, cutoff_len=50))
        plans.append(dict(tokenizer=tokenizer, template=name, train_on_prompt=True, cutoff_len=60))
        plans.append(dict(tokenizer=tokenizer, template=name, packing=True, cutoff_len=128, preprocessing_batch_size=9))
        plans.append(dict(tokenizer=tokenizer, template=name, neat_packing=True, cutoff_len=256))
    for thinking in [False, None]:
        plans.append(dict(tokenizer="byte", template="qwen3", enable_thinking=thinking))
        plans.append(dict(tokenizer="byte", template="qwen3", enable_thinking=thinking, mask_history=True))
    plans.append(dict(tokenizer="byte", template="qwen3", preserve_thinking=True, mask_history=True))
    plans.append(dict(tokenizer="byte", template="qwen3", tool_format="mistral", default_system="Sys 系统."))
    plans.append(dict(tokenizer="byte", template="qwen", tool_format="llama3", default_system=""))
    plans.append(dict(tokenizer="byte", template="qwen", split=True))
    plans.append(dict(tokenizer="spm", template="chatml"))
    plans.append(dict(tokenizer="spm", template="llama3"))
    plans.append(dict(tokenizer="byte"))
    for chat in ["chat_chatml", "chat_think", "chat_tojson"]:
        plans.append(dict(tokenizer="byte", chat=chat))
    plans.append(dict(tokenizer="spm", chat="chat_tojson"))
    for template in [None, "llama3", "qwen3"]:
        plans.append(dict(tokenizer="byte", template=template, stage="pt", cutoff_len=32, preprocessing_batch_size=12))
    plans.append(dict(tokenizer="spm", stage="pt", cutoff_len=32, packing=False))
    plans.append(dict(tokenizer="spm", stage="pt", cutoff_len=32, packing=True))

    runs = []
    for plan in plans:
        given = rows if plan.get("stage") == "pt" else usable(rows, plan.get("template"))
        which = [i for i in range(len(given)) if len(plan) == 2 or i not in SKIP]
        given = [given[i] for i in which]
        out, tok, t = run(given, **plan)
        entry = dict(plan, rows=[[base36(ids), spans(labels)] + ([pieces] if len(pieces) > 1 else [])
                                 for ids, labels, pieces in out])
        entry["records"] = which
        if len(plan) == 2:
            entry["jinja"] = tok.chat_template
        entry["stop"] = sorted(t.get_stop_token_ids(tok))
        if plan.get("stage") != "pt" and len(plan) == 2:
            prompts = []
            for r in given[7:11]:
                ms = r["messages"][:-1] + [a("")]
                prompts.append(base36(t.encode_oneturn(tok, ms, r["system"], r["tools"])[0]))
            entry["prompts"] = prompts
        runs.append(entry)
        print(plan, len(out), file=sys.stderr)
    with open(os.path.join(HERE, "cases.json"), "w") as f:
        f.write('{"records": ' + json.dumps(rows + THINKING_CALLS, ensure_ascii=False, separators=(",", ":")) + ',\n"runs": [\n')
        f.write(",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in runs))
        f.write("\n]}\n")


if __name__ == "__main__":
    main()
