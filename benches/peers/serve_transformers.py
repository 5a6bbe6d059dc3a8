"""transformers behind FastAPI, as tutorials write it: `generate` in a thread for each request.

`serve_transformers.py MODEL PORT [--lock] [--dtype bfloat16]`. With --lock one request is computed at a time, which spares the threads
their quarrel over the cores. POST /v1/completions {prompt, max_tokens, ignore_eos}, greedy, with OpenAI's answer.
"""

import argparse
import contextlib
import threading

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Request(BaseModel):
    model: str
    prompt: str
    max_tokens: int = 16
    ignore_eos: bool = False


def app(path: str, lock: bool, dtype: str) -> FastAPI:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    turn = threading.Lock() if lock else contextlib.nullcontext()
    app = FastAPI()

    @app.get("/v1/models")
    def models():
        return {"object": "list", "data": [{"id": "base", "object": "model"}]}

    # Not `async`: FastAPI runs it in its pool of 40 threads.
    @app.post("/v1/completions")
    def complete(request: Request):
        inputs = tokenizer(request.prompt, return_tensors="pt")
        n = inputs["input_ids"].shape[1]
        least = request.max_tokens if request.ignore_eos else None
        with turn, torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=request.max_tokens, min_new_tokens=least, do_sample=False)
        new = output[0, n:]
        usage = {"prompt_tokens": n, "completion_tokens": len(new), "total_tokens": n + len(new)}
        choice = {"index": 0, "text": tokenizer.decode(new, skip_special_tokens=True), "finish_reason": "stop"}
        return {"object": "text_completion", "model": request.model, "choices": [choice], "usage": usage}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    uvicorn.run(app(args.model, args.lock, args.dtype), host="127.0.0.1", port=args.port, log_level="error")
