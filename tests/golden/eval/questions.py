"""Writes questions.json: the prompts and labels that LLaMA-Factory 0.9.5 makes for prediction of the records in
../template/cases.json, in the form of that file. Run as ../template/make.py is.

The label of `fewshot` is left out: that template is for benchmarks here, which look at the prompt alone.
"""

import json
import os
import sys
from copy import deepcopy

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "template"))

import make
from llamafactory.data.processor import UnsupervisedDatasetProcessor

PLANS = [
    dict(tokenizer="byte", template="qwen3"),
    dict(tokenizer="byte", template="qwen3", enable_thinking=False),
    dict(tokenizer="byte", template="qwen3", enable_thinking=None),
    dict(tokenizer="byte", template="qwen3", preserve_thinking=True),
    dict(tokenizer="byte", template="qwen3", cutoff_len=40),
    dict(tokenizer="byte", template="qwen"),
    dict(tokenizer="byte", template="alpaca", cutoff_len=64),
    dict(tokenizer="byte", template="fewshot"),
    dict(tokenizer="spm", template="llama2"),
    dict(tokenizer="spm", template="default", default_system="S."),
]
# Not those with long tool prompts, nor the one that begins with nothing.
SKIP = [2, 11, 12, 13, 20, 21]


def questions(rows, tokenizer, **settings):
    saved = deepcopy(make.lf_template.TEMPLATES)
    tok = make.load(tokenizer)
    args = make.DataArguments(dataset="x", **settings)
    template = make.lf_template.get_template_and_fix_tokenizer(tok, args)
    make.lf_template.TEMPLATES.clear()
    make.lf_template.TEMPLATES.update(saved)
    columns = {k: [] for k in ["_prompt", "_response", "_system", "_tools", "_images", "_videos", "_audios"]}
    for r in rows:
        columns["_prompt"].append(r["messages"][:-1])
        columns["_response"].append(r["messages"][-1:])
        columns["_system"].append(r["system"])
        columns["_tools"].append(r["tools"])
        for k in ["_images", "_videos", "_audios"]:
            columns[k].append(None)
    p = UnsupervisedDatasetProcessor(template=template, tokenizer=tok, processor=None, data_args=args)
    made = p.preprocess_dataset(columns)
    return list(zip(made["input_ids"], made["labels"]))


def main():
    rows = make.records() + make.THINKING_CALLS
    runs = []
    for plan in PLANS:
        which = [i for i in range(len(make.records())) if i not in SKIP]
        made = questions([rows[i] for i in which], **plan)
        pairs = [[make.base36(p), None if plan["template"] == "fewshot" else make.base36(l)] for p, l in made]
        runs.append(dict(plan, records=which, questions=pairs))
        print(plan, len(pairs), file=sys.stderr)
    with open(os.path.join(HERE, "questions.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in runs) + "\n]\n")


if __name__ == "__main__":
    main()
