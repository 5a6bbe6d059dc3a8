"""Writes data/: the same small questions in every row format, and data/dataset_info.json.

Run as `python make_data.py`; needs nothing but Python. The texts are our own. Short rows, long rows (cut at
cutoff_len), Chinese, an emoji, tabs and newlines, digits, an empty `input`, an empty answer, a null answer (dropped by
LLaMA-Factory), system prompts, histories, and a thinking block.
"""

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"

# (instruction, input, output)
PAIRS = [
    ("Name a fruit.", "", "An apple."),
    ("What is two plus two?", "", "Four."),
    ("Translate to French.", "good morning", "bonjour"),
    ("感冒了怎么办？", "", "多喝水，多休息。"),
    ("Count to five.", "", "1 2 3 4 5"),
    ("Which is heavier?", "a stone\na feather", "The stone is heavier."),
    ("发烧要吃什么药？", "38.5度", "请先问医生。"),
    ("Write a line of code.", "", "for i in range(10):\n\tprint(i)"),
    ("Say hello.", "", "Hello! \U0001f44b"),
    ("Is the sky green?", "", "No, it's blue."),
    ("头痛怎么办？", "", "休息一下，如果不好就去看医生。"),
    ("Give the opposite.", "cold", "hot"),
    ("Spell it backwards.", "stone", "enots"),
    ("What day follows Monday?", "", "Tuesday follows Monday."),
    ("Finish the sentence.", "The cat sat on", " the mat."),
    ("Who looks after sick people?", "", "Doctors and nurses look after sick people, and so do their families at home, every day and every night."),
    ("Add the numbers.", "12, 30", "12 + 30 = 42"),
    ("Be quiet.", "", ""),
    ("合同是什么？", "", "合同是双方的约定。"),
    ("Name three colours.", "", "red, green, blue"),
    ("What do bees make?", "", "Honey."),
    ("Shorten the text.", "It was raining all day long and we stayed at home, drank tea, read books, and waited for the sun to come out again.", "It rained; we stayed in."),
    ("Is 7 prime?", "", "Yes."),
    ("Is 9 prime?", "", "No: 9 = 3 x 3."),
    ("谢谢你。", "", "不客气！"),
    ("What is water made of?", "", "Hydrogen and oxygen."),
    ("Make it polite.", "Give me the book", "Could you give me the book, please?"),
    ("How many legs has a spider?", "", "Eight."),
    ("Where does the sun rise?", "", "In the east."),
    ("Can I take this twice a day?", "one tablet", "Please ask your doctor or your pharmacist first."),
    ("Name a planet.", "", "Mars"),
    ("咳嗽怎么办？", "晚上更重", "喝点温水，少说话。"),
    ("What is the time?", "", "I cannot know the time."),
    ("Answer with one word.", "Snow is", "white"),
    ("Explain a fever.", "", "A fever is a body temperature above 38 degrees. The body makes heat to fight an illness."),
    ("Say it in capitals.", "tea", "TEA"),
    ("Give me a number.", "", "17"),
    ("What is bread made from?", "", "Flour, water, salt and yeast."),
    ("Do fish sleep?", "", "Yes, most fish rest."),
    ("Say goodbye.", "", "Goodbye!"),
]


def write(name, rows):
    text = "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n"
    (DATA / name).write_text(text, encoding="utf-8")


def lines(name, rows):
    (DATA / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def main():
    DATA.mkdir(exist_ok=True)
    ask = [i + ("\n" + x if x else "") for i, x, _ in PAIRS]
    answer = [o for _, _, o in PAIRS]

    rows = [{"instruction": i, "input": x, "output": o} for i, x, o in PAIRS]
    rows[4]["system"] = "You count."
    rows[9]["history"] = [["Is grass green?", "Yes."], ["Is snow white?", "It is."]]
    rows[13]["history"] = [["What day is it?", "Monday."]]
    rows[20]["system"] = "你是一个好帮手。"
    rows[20]["history"] = [["What do cows give?", "Milk."]]
    rows[27]["output"] = None  # a null answer: the row is dropped
    write("alpaca.json", rows)

    write("plain.json", [{"instruction": i, "input": x, "output": o} for i, x, o in PAIRS])

    # Sharegpt: one, two and three turns; a system turn inside the list on every fifth row, beside it on every seventh.
    chats, i = [], 0
    while i < len(PAIRS):
        turns = 1 + len(chats) % 3
        talk = []
        if len(chats) % 5 == 1:
            talk.append({"from": "system", "value": "Answer briefly."})
        for j in range(i, min(i + turns, len(PAIRS))):
            talk += [{"from": "human", "value": ask[j]}, {"from": "gpt", "value": answer[j]}]
        row = {"conversations": talk}
        if len(chats) % 7 == 3:
            row["system"] = "You are kind."
        chats.append(row)
        i += turns
    # A broken one, skipped with a warning: two human turns in a row.
    chats.insert(6, {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "human", "value": "Anyone?"}]})
    write("sharegpt.json", [{"conversations": c["conversations"], "system": c.get("system", "")} for c in chats])

    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    good = [c for k, c in enumerate(chats) if k != 6]
    lines(
        "messages.jsonl",
        [{"messages": [{"role": roles[t["from"]], "content": t["value"]} for t in c["conversations"]]} for c in good],
    )

    lines("prompt.jsonl", [{"prompt": q, "completion": a} for q, a in zip(ask, answer)])

    # Thinking: every third answer has a block of its own.
    thought = [
        (f"<think>\nThe question has {len(q)} letters.\n</think>\n\n" if k % 3 == 0 else "") + a
        for k, (q, a) in enumerate(zip(ask, answer))
    ]
    talks = [
        {
            "messages": [
                {"role": "user", "content": ask[k]},
                {"role": "assistant", "content": thought[k]},
                {"role": "user", "content": ask[k + 1]},
                {"role": "assistant", "content": thought[k + 1]},
            ]
        }
        for k in range(0, len(PAIRS), 2)
    ]
    write("thinking.json", talks)

    texts = [f"{q} {a}" for q, a in zip(ask, answer)]
    lines("text.jsonl", [{"text": t} for t in texts])
    (DATA / "text.txt").write_text("\n".join(t.replace("\n", " ") for t in texts) + "\n", encoding="utf-8")

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    alpaca = {"prompt": "instruction", "query": "input", "response": "output"}
    info = {
        "alpaca": {"file_name": "alpaca.json", "columns": {**alpaca, "system": "system", "history": "history"}},
        "plain": {"file_name": "plain.json"},
        "sharegpt": {
            "file_name": "sharegpt.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system"},
        },
        "messages": {
            "file_name": "messages.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags,
        },
        "openai": {
            "file_name": "messages.jsonl",
            "formatting": "openai",
            "columns": {"messages": "messages"},
            "tags": tags,
        },
        "prompt": {"file_name": "prompt.jsonl", "columns": {"prompt": "prompt", "response": "completion"}},
        "thinking": {
            "file_name": "thinking.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags,
        },
        "sampled": {"file_name": "plain.json", "num_samples": 24},
        "text": {"file_name": "text.jsonl", "columns": {"prompt": "text"}},
        "lines": {"file_name": "text.txt", "columns": {"prompt": "text"}},
    }
    (DATA / "dataset_info.json").write_text(json.dumps(info, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


main()
