"""llama.cpp answers as we do: greedily, from our GGUF file, and from a base's file with our adapter's file.

Not part of `make test`. llama-cpp-python is compiled from its source, for about ten minutes, in a place of its own:

    python3 -m venv target/llama && target/llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    target/llama/bin/python tests/peers/llama_answers.py ENGINE CONFIG ROWS.json WHOLE.gguf [LORA.gguf]

ENGINE is our program and CONFIG a file of settings by which it answers what WHOLE (with LORA) stands for; ROWS is a list of
objects with an `instruction`. Prompts are rendered by the file's own chat template. Ends with 1 unless every token is the same.
"""
import json
import subprocess
import sys

from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

MOST = 48


def main(engine, config, rows, whole, lora=None):
    questions = [row["instruction"] for row in json.load(open(rows, encoding="utf-8"))]
    command = [engine, "generate", *config.split(), "--greedy", "--max-new-tokens", str(MOST), "--json"]
    prompts = [word for question in questions for word in ("--prompt", question)]
    answers = subprocess.run([*command, *prompts], capture_output=True, text=True, check=True).stdout
    ours = [json.loads(line) for line in answers.splitlines()]

    llama = Llama(model_path=whole, lora_path=lora, n_ctx=512, verbose=False, logits_all=False)
    template = llama.metadata["tokenizer.chat_template"]
    eos = llama.token_eos()
    text_of = lambda token: llama._model.token_get_text(token)
    render = Jinja2ChatFormatter(template=template, eos_token=text_of(eos), bos_token="")
    wrong = 0
    for question, mine in zip(questions, ours, strict=True):
        prompt = render(messages=[{"role": "user", "content": question}]).prompt
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        theirs = []
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            if token == eos or len(theirs) == MOST:
                break
            theirs.append(token)
        text = llama.detokenize(theirs).decode(errors="replace").strip()
        if (len(theirs), text) != (mine["tokens"], mine["answer"].strip()):
            wrong += 1
            print(f"{question}\n  ours:   {mine['answer']}\n  theirs: {text}")
    print(f"{len(questions) - wrong} of {len(questions)} answers are the same, {sum(o['tokens'] for o in ours)} tokens")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
