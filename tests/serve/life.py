"""Adapters that come and go while requests run, checkpoints of a run in progress, and the end."""

import os
import signal
import subprocess
import threading
import time

import openai

from server import PATIENCE, Server, at_once, greedy, refused, until

QUESTION = "What does HbA1c measure?"
ENDLESS = {"model": "tiny", "prompt": "- - - - - -", "temperature": 0, "max_tokens": 1900}


def load(server: Server, name: str, path: str):
    status, _, text = server.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
    assert status == 200, text


def unload(server: Server, name: str):
    status, _, text = server.ask("/v1/unload_lora_adapter", {"lora_name": name})
    assert status == 200, text


def gone(client: openai.OpenAI, model: str):
    try:
        greedy(client, model, QUESTION, 1)
        raise AssertionError(f"`{model}` still answers")
    except openai.NotFoundError:
        pass


def swap(place):
    """Adapters are loaded and unloaded under load: no answer changes, and what is unloaded ends what it has begun."""
    with Server(place.binary, place.config, *place.adapters, "--adapter", f"early={place.path('adapters/early')}", "--model-name", "tiny") as server:
        client = server.client()
        names = ["tiny", "medical", "legal", "early"]
        wants = {name: greedy(client, name, QUESTION, 16) for name in names}
    assert len({text for text, _ in wants.values()}) == 4, f"models answer alike: {wants}"

    options = ["--adapter", place.path("adapters/medical"), "--adapters-dir", place.path("adapters"), "--model-name", "tiny"]
    with Server(place.binary, place.config, *options) as server:
        assert server.models == ["tiny", "medical"], server.models
        client = server.client()
        over, asked = threading.Event(), []

        def busy(name: str):
            while not over.is_set():
                assert greedy(client, name, QUESTION, 16, stream=len(asked) % 2 == 0) == wants[name], name
                asked.append(name)

        def change():
            try:
                for _ in range(3):
                    load(server, "x", "legal")
                    assert [m.id for m in client.models.list()] == ["tiny", "medical", "x"]
                    assert greedy(client, "x", QUESTION, 16) == wants["legal"]
                    # One is asked as it goes.
                    stream = client.completions.create(**ENDLESS | {"model": "x", "max_tokens": 60}, stream=True)
                    pieces = iter(stream)
                    text = next(pieces).choices[0].text
                    unload(server, "x")
                    gone(client, "x")
                    # The same name for another adapter, while the old one is in use still.
                    load(server, "x", "early")
                    assert greedy(client, "x", QUESTION, 16) == wants["early"]
                    text += "".join(c.choices[0].text for c in pieces if c.choices)
                    unload(server, "x")
                    load(server, "x", "legal")
                    assert text == client.completions.create(**ENDLESS | {"model": "x", "max_tokens": 60}).choices[0].text
                    unload(server, "x")
                    assert server.total("qlora_adapters_loaded") == 1
            finally:
                over.set()

        at_once([lambda: busy("tiny"), lambda: busy("medical"), change])
        assert {"tiny", "medical"} <= set(asked), "nothing was asked meanwhile"
        unload(server, "medical")
        gone(client, "medical")
        server.idle()
        assert server.stop() == 0


def checkpoint(place):
    """A checkpoint of a run in progress answers under a new name while the run goes on."""
    run = subprocess.Popen([place.binary, "train", place.path("train.yaml")], cwd=place.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(run.stderr), daemon=True)
    reader.start()
    try:
        saves = place.path("run")
        os.makedirs(saves, exist_ok=True)
        with Server(place.binary, place.config, "--model-name", "tiny", "--adapters-dir", saves) as server:
            client = server.client()
            want = greedy(client, "tiny", QUESTION, 8)
            answers = []
            for step in (2, 4):
                name = f"checkpoint-{step}"
                folder = os.path.join(saves, name)
                until(f"{name} is written", lambda: os.path.isdir(folder) or run.poll() is not None)
                load(server, name, name)
                answers.append(greedy(client, name, QUESTION, 8))
                assert greedy(client, "tiny", QUESTION, 8) == want
            assert answers[0] != answers[1], "both checkpoints answer alike"
            assert run.poll() is None, f"the run has ended: {said}"
            assert server.stop() == 0
        run.send_signal(signal.SIGTERM)
        run.wait(PATIENCE)
        reader.join()
        assert any("state saved" in line for line in said), said
    finally:
        run.kill()
        run.wait()


def shutdown(place):
    """On SIGTERM what runs is finished, what is new is refused, and the exit code is 0."""
    for sign in (signal.SIGTERM, signal.SIGINT):
        with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
            client = server.client()
            kind = ENDLESS | {"max_tokens": 300}
            want = client.completions.create(**kind).choices[0].text
            streams = [client.completions.create(**kind, stream=True) for _ in range(3)]
            pieces = [iter(s) for s in streams]
            texts = [next(p).choices[0].text for p in pieces]
            server.process.send_signal(sign)

            def turned_away() -> bool:
                try:
                    return server.ask("/ready")[0] == 503
                except OSError:
                    return True

            until("it is not ready", turned_away)
            try:
                answer = server.ask("/v1/completions", kind)
                refused("a new request", answer, {503})
            except OSError:
                pass
            for i, rest in enumerate(pieces):
                texts[i] += "".join(c.choices[0].text for c in rest if c.choices)
            assert texts == [want] * 3, "a stream was cut off"
            assert server.process.wait(PATIENCE) == 0, server.log


def cut(place):
    """What does not end within the deadline is cut off, and the client is told."""
    with Server(place.binary, place.config, "--model-name", "tiny", "--shutdown-timeout", "0.3") as server:
        client = server.client()
        stream = client.completions.create(**ENDLESS | {"n": 8}, stream=True)
        pieces = iter(stream)
        next(pieces)
        server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        try:
            for _ in pieces:
                pass
            raise AssertionError("the stream ended as if it were whole")
        except openai.APIError as e:
            assert "stopping" in str(e) or isinstance(e, openai.APIConnectionError), repr(e)
        server.process.wait(PATIENCE)
        assert time.monotonic() - start < 30, "the deadline was not kept"


def refuses(place):
    """A server that cannot serve says why in one line, and ends."""
    wrong = [
        ["--adapter", "x=/nowhere"], ["--adapter", "a b=" + place.path("adapters/medical")], ["--max-batch", "0"], ["--port", "99999"],
        ["--api-key-file", place.path("nothing")], ["--adapters-dir", place.path("nothing")], ["--host", "not an address"], ["--none"],
        ["--cache-tokens", "0"], ["--max-queue", "-1"], ["--request-timeout", "NaN"], ["--adapter", "tiny=" + place.path("adapters/medical"), "--model-name", "tiny"],
    ]  # fmt: skip
    open(place.path("empty-keys"), "w").close()
    wrong.append(["--api-key-file", place.path("empty-keys")])
    for options in wrong:
        ran = subprocess.run([place.binary, "api", place.config, "--port", "0", *options], capture_output=True, text=True, timeout=PATIENCE)
        errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
        assert ran.returncode == 1 and len(errors) == 1, (options, ran)


SCENARIOS = [swap, checkpoint, shutdown, cut, refuses]
