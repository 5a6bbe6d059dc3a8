"""Writes scores.jsonl: pairs of texts, their words by jieba, and their scores by the packages that LLaMA-Factory uses.

Needs jieba 0.42.1, nltk 3.10, rouge-chinese 1.0.3. The texts are written here or put together from these with a seed.
The order of rounding is that of LLaMA-Factory's ComputeSimilarity: each score in percent to the 4th decimal.
"""

import json
import pathlib
import random

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

ZH = [
    "贫血是指血液中红细胞或血红蛋白的数量低于正常水平。",
    "常见的症状包括乏力、头晕、心悸和面色苍白，严重时会出现呼吸困难！",
    "您是否有发热、咳嗽或者胸闷？如果有，请尽快就医。",
    "合同自双方签字盖章之日起生效，有效期为三年。",
    "依照《民法典》第五百七十七条的规定，违约方应当承担赔偿损失的责任。",
    "他说：“这不是我的错。”然后转身离开了。",
    "“真的吗？”她问道，“你确定？”",
    "今天天气很好，我们去颐和园散步吧……不过要带伞。",
    "结婚的和尚未结婚的都在讨论研究生命起源的问题。",
    "小明硕士毕业于中国科学院计算所，后在日本京都大学深造。",
    "韩国歌手朴孝敏与张铁林在吉林长春合影留念",
    "血压为130/85mmHg，空腹血糖5.6mmol/L，体温36.8℃。",
    "请按时服药，每日3次，每次0.25g，饭后服用。",
    "龘靐齉爩鱻麤灪",
]
EN = [
    "Anemia is a condition in which the blood has too few red cells.",
    "See your doctor if the fever lasts for more than three days.",
    "The well-known state-of-the-art method reached 97.5% accuracy (v1.2.3).",
    "def add(a, b):\n    return a + b  # the sum\n",
    "Is it true? Yes! It isn't... or is it......maybe",
    "e-mail: first.last_name@example.org, tel. +1-555-010-9999",
    "A-B_C.D%E&F#G+H",
    "The the the cat sat on the mat, the cat.",
]
MIXED = [
    "使用 Python 3.11 的 asyncio 库，可以让吞吐量提升约 35.7%。",
    "AT&T 和 T恤 都在 C++ 与 c# 的 FAQ-1.0_beta 里。",
    "模型 Qwen3-0.6B 在 4-bit 量化后仅需 0.5GB 显存，速度提升2.5倍！",
    "维生素B12缺乏→巨幼细胞性贫血；DNA合成受阻。",
    "👍很好😀👩‍👩‍👧！ok👌🏽",
    "```rust\nfn main() {\n    println!(\"你好\");\n}\n```",
    "第一行\n\n第二行\n   \n第三行\r\n结束。\n\n",
    "一、原因：\n1. 缺铁；\n2. 失血。\n\n二、治疗：\n- 补铁\n- 输血",
    "\t制表\u3000全角空格\u00a0不换行\x1c分隔\u2028行",
    "𠀀𠀁𡃁 CJK 扩展 鿕鿖鿿 豈",
    "100%、50%-60%、5%%、.5%、1.5.5%、1,000.00元",
    "http://example.com/a?b=c&d=1.5#e",
    "……………… 。。。？？！！？？”’",
    "問題：繁體字與简体字混用，結果如何？「不知道」。",
]
EDGE = ["", " ", "  \n ", "\n", "。", "a", "贫", "5", "%", ".", "......", "…", "👍", "\r\n", "是", "是。", "是 ", "？”", "\x1f"]


def score(predict, label):
    cut = [list(jieba.cut(predict)), list(jieba.cut(label))]
    joined = [" ".join(words) for words in cut]
    f = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    if all(text.split() for text in joined):
        scores = Rouge().get_scores(*joined)[0]
        f = {name: scores[name]["f"] for name in f}
    bleu = sentence_bleu([list(label)], list(predict), smoothing_function=SmoothingFunction().method3)
    row = {"predict": predict, "label": label, "predict_words": cut[0], "label_words": cut[1]}
    row["bleu-4"] = float(round(bleu * 100, 4))
    row.update({name: round(value * 100, 4) for name, value in f.items()})
    return row


def disturbed(text, rng):
    """The text with something dropped, doubled, moved or taken from elsewhere."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(c for c in text if rng.random() > 0.15)
    if kind == 1:
        cut = rng.randrange(len(text) + 1)
        return text[:cut]
    if kind == 2:
        cut = rng.randrange(len(text) + 1)
        return text[cut:] + text[:cut]
    if kind == 3:
        return text + rng.choice(["\n", "", " "]) + rng.choice(ZH + EN + MIXED)
    return "".join(c + c if rng.random() < 0.1 else c for c in text)


def pairs():
    rng = random.Random(7)
    whole = ZH + EN + MIXED
    for text in whole:
        yield text, text
        yield disturbed(text, rng), text
        yield disturbed(disturbed(text, rng), rng), disturbed(text, rng)
    for text in EDGE:
        yield text, text
        yield text, rng.choice(whole)
        yield rng.choice(whole), text
    for _ in range(40):
        yield rng.choice(whole), rng.choice(whole)


if __name__ == "__main__":
    out = pathlib.Path(__file__).parent / "scores.jsonl"
    with out.open("w", encoding="utf-8", newline="\n") as f:
        for predict, label in pairs():
            f.write(json.dumps(score(predict, label), ensure_ascii=False) + "\n")
