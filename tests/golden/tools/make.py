"""Makes calls.json with LLaMA-Factory 0.9.5: the function calls that it finds in answers, for each tool format.

    DISABLE_VERSION_CHECK=1 HF_HUB_OFFLINE=1 python make.py

calls.json  {format: [[answer, [[name, arguments], ...] or null], ...]}. null where LLaMA-Factory returns the answer as it
            is, where it fails with TypeError (JSON that is no object in place of a call), where it makes a call whose
            name is not a string, and where it returns an empty list: nobody can answer these calls.
"""

import json
import os
import random

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from llamafactory.data.formatter import ToolFormatter

HERE = os.path.dirname(os.path.abspath(__file__))

ARGUMENTS = [
    "{}", '{"city": "Paris", "days": 3}', '{ "a":[1,2.50,1e16,-0,1E-7,null,true] ,"b":{"c":{}}}', '{"city": "北京 \\u00e9\\ud83d\\ude00"}',
    '{"a": 1, "b": 2, "a": 3}', '{"s": "</tool_call>"}', '{"s": "x</tool_call> y"}', '{"s": "Action: f"}', '{"s": "<tool_call>"}',
    '{"big": 123456789012345678901234567890}', '{"x": NaN, "y": -Infinity}', '"text"', "[1, 2]", "7", "null", '{"q": "\\"`\\n\\t\\u0007\\u007f"}',
]
BROKEN = ["{", "{'a': 1}", '{"a": 1,}', '{"a": 1} x', "[1,]", '{"a"}', "", " ", "nul", "01", '{"a": "\n"}', "\ufeff{}", "{}{}", "```json\n{}\n```"]
NAMES = ['"get_weather"', '"f"', '"名"', '""', "7", "null", '["a"]']
SPACE = ["", " ", "\n", "\n\n", "\t\r\n", "\u00a0", "\u3000", "\u001c", "\u200b", "\u0085"]


def objects(key):
    """Calls as JSON objects, and what is not quite one."""
    out = ['{"name": %s, "%s": %s}' % (n, key, a) for n in NAMES for a in ARGUMENTS[:2]]
    out += ['{"name": "f", "%s": %s}' % (key, a) for a in ARGUMENTS + BROKEN]
    out += ['{"%s": {}, "name": "f", "more": 1}' % key, '{"name": "f"}', '{"%s": {}}' % key, '{"name": "a", "name": "b", "%s": {}}' % key]
    other = "arguments" if key == "parameters" else "parameters"
    return out + ['{"name": "f", "%s": {}}' % other, '["name", "%s"]' % key, '"name %s"' % key, "5", "null", "true", "{}", "[]", "[[]]", ""]


def bare(key):
    one = objects(key)
    good = one[:2]
    texts = list(one) + ["[" + t + "]" for t in one] + ["[%s, %s]" % (good[0], t) for t in one]
    texts += [a + good[0] + b for a in SPACE for b in SPACE]
    return texts + ["Hello", "It is " + good[0], good[0] + " there", good[0] + "\n" + good[1], "[" * 150 + "]" * 150, "[" + good[0] + "," + good[1]]


def tagged():
    one = objects("arguments")
    wrap = lambda t: "<tool_call>\n" + t + "\n</tool_call>"
    good = wrap(one[0])
    texts = [wrap(t) for t in one] + [good + "\n" + wrap(t) for t in one] + [wrap(t) + good for t in one[:40:3]]
    texts += [a + good + b + good + c for a in SPACE[:3] for b in SPACE for c in SPACE[:4]]
    texts += ["Let me see. " + good, good + " That was it.", "<think>\n" + good + "\n</think>\n\n" + good, "<think>\nno\n</think>\n\n" + good]
    texts += ["Hello", "<tool_call>", "</tool_call>", "<tool_call></tool_call>", "<tool_call></tool_call></tool_call>", "<tool_call> </tool_call>"]
    texts += ["<tool_call>" + one[0], one[0] + "</tool_call>", "<tool_call>" + good, good + "</tool_call>", "<tool_call" + good, "<tool_call>x" + good, good + "<tool_call>"]
    return texts + [good + good[:-1], good + " <tool_call>", "<tool_call>" * 5 + one[0] + "</tool_call>" * 3, good.replace("\n", ""), good.upper()]


def plain():
    call = lambda a, n="get_weather", s="\n", t=" ": "Action: %s%sAction Input:%s%s" % (n, s, t, a)
    good = call(ARGUMENTS[1])
    texts = [call(a) for a in ARGUMENTS + BROKEN] + [good + "\n" + call(a, "f") for a in ARGUMENTS + BROKEN] + [call(a, "f") + "\n" + good for a in ARGUMENTS + BROKEN]
    texts += [call(q + a + q) for q in ['"', "`", "```", '"```', '```"'] for a in ARGUMENTS[:4] + ['"', "`"]]
    texts += [call("{}", n) for n in ["f", "F_9", "名", "a b", "a-b", "", "Action", "fAction", "f:", "Action:"]]
    texts += [call("{}", "f", s, t) for s in SPACE for t in SPACE] + [call("{}", "fAction", " Input:", ""), "Action: fAction Input: {}", "Action:Action Input: {}", "Action: Action Input: {}"]
    texts += [a + good + b for a in SPACE for b in SPACE[:5]] + ["Thought: I need it.\n" + good, good + "\nObservation: 20", good + " Action:", good + "Action: f", good + " x Action: f\nAction Input:"]
    texts += ["Action: f\nAction Input:" + s for s in SPACE] + [good + "\nAction: f\nAction Input:" + s for s in SPACE]
    return texts + ["Hello", "Action:", "Action: f", "Action Input: {}", "action: f\naction input: {}", "Action: f Action: g Action Input: {}", "Action: f\nAction Input: Action: g\nAction Input: {}"]


def mixed(texts, rng, n):
    """Pieces of the answers put together at random: what lies between well and ill formed."""
    out = []
    while len(out) < n:
        a, b = rng.sample(texts, 2)
        i, j = rng.randrange(len(a) + 1), rng.randrange(len(b) + 1)
        out.append(rng.choice([a[:i] + b[j:], a + rng.choice(SPACE) + b, a[:i] + rng.choice(SPACE) + a[i:], a[:i] + a[i + 1 :]]))
    return out


def calls(extract, text):
    try:
        found = extract(text)
    except TypeError:
        return None
    if isinstance(found, str) or not found or not all(isinstance(c.name, str) for c in found):
        return None
    return [[c.name, c.arguments] for c in found]


def main():
    rng = random.Random(5)
    answers = {"default": plain(), "llama3": bare("parameters"), "mistral": bare("arguments"), "qwen": tagged()}
    lines = []
    for name, texts in answers.items():
        texts = list(dict.fromkeys(texts + mixed(texts, rng, 150)))
        extract = ToolFormatter(tool_format=name).extract
        cases = [[t, calls(extract, t)] for t in texts]
        print(name, len(cases), "answers,", sum(c is not None for _, c in cases), "with calls")
        rows = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
        lines.append('"%s": [\n%s\n]' % (name, rows))
    with open(os.path.join(HERE, "calls.json"), "w") as f:
        f.write("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
