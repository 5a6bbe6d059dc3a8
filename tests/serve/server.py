"""A running server for the tests: started, asked, watched and stopped."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

try:
    import openai
except ImportError:
    sys.exit("the openai client is missing: run `make setup`")

# Longer than anything takes on a machine that is busy with other tests; no test passes by waiting for it.
PATIENCE = 120.0
LISTENING = re.compile(r"listening on (http://\S+) \(models: (.*)\)")


def until(what: str, condition, patience: float = PATIENCE):
    """Waits until `condition()` is true, and returns what it is."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain: {what}"
        time.sleep(0.01)
    return value


class Server:
    """`qlora-engine api` on a free port. A context: at its end the server is killed if it still runs."""

    def __init__(self, binary: str, config: str, *options: str, env: dict | None = None):
        own = {k: v for k, v in os.environ.items() if not k.startswith(("API_", "QLORA_LOG", "HF_"))}
        command = [binary, "api", config, "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own | (env or {}))
        self.log: list[str] = []
        self.url = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        until(f"{' '.join(command)} listens", lambda: self.url or self.process.poll() is not None)
        assert self.url, f"the server did not start: {''.join(self.log)}"

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            if found := LISTENING.search(line):
                self.models = found[2].split(", ")
                self.url = found[1]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        if kind is not None:
            print("".join(self.log[-30:]), file=sys.stderr)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def stop(self) -> int:
        """Asks it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self.reader.join()
        return code

    def ask(self, path: str, body: bytes | dict | None = None, method: str | None = None, key: str | None = None, type: str = "application/json"):
        """Status, headers and text of any request, whatever the status."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        headers = {"content-type": type} if body is not None else {}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # What is too large is refused before it has been read; the refusal is there all the same.
                pass
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def metrics(self) -> dict[tuple, float]:
        """(name, sorted labels) -> value."""
        status, _, text = self.ask("/metrics")
        assert status == 200, text
        found = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, labels, value = re.fullmatch(r"([a-z_]+)(\{.*\})? (\S+)", line).groups()
                labels = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or "")))
                found[name, labels] = float(value)
        return found

    def total(self, name: str, **labels: str) -> float:
        """A metric, summed over the labels that are not named."""
        wanted = set(labels.items())
        return sum(v for (n, ls), v in self.metrics().items() if n == name and wanted <= set(ls))

    def idle(self):
        """Waits until nothing runs, and checks that nothing is held."""
        names = ["qlora_sequences_running", "qlora_queue_depth", "qlora_cache_pages_used", "qlora_requests_running"]

        def still():
            metrics = self.metrics()
            return [name for name in names if metrics[name, ()] != 0]

        end = time.monotonic() + PATIENCE
        while held := still():
            assert time.monotonic() < end, f"never idle: {held}"
            time.sleep(0.01)

    def memory(self) -> int:
        """Bytes of memory it has resident."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def greedy(client: openai.OpenAI, model: str, prompt: str, tokens: int, stream: bool = False, system: str = "", **more) -> tuple[str, list]:
    """An answer: its text, and its tokens with their probabilities. Without chance it is always the same."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, temperature=0, logprobs=True, stream=stream, **more)
    if not stream:
        choice = answer.choices[0]
        return choice.message.content, [(t.token, tuple(t.bytes)) for t in choice.logprobs.content]
    text, heard = "", []
    for chunk in answer:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            heard += [(t.token, tuple(t.bytes)) for t in (choice.logprobs.content if choice.logprobs else None) or []]
    return text, heard


def at_once(jobs: list) -> list:
    """Runs every job in a thread of its own, all at the same time; their results in order."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [f.result() for f in [pool.submit(job) for job in jobs]]


def refused(what: str, answer, statuses) -> dict:
    """An answer of `Server.ask` must be a refusal in OpenAI's shape; its error."""
    status, headers, text = answer
    assert status in statuses, f"{what}: status {status}, not one of {statuses}: {text[:300]}"
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], f"{what}: {text}"
    assert headers["content-type"].startswith("application/json"), what
    return error
