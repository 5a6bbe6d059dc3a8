"""What strangers may do: nothing without a key, nothing outside the folder of adapters, no harm by what they send."""

import json
import os
import socket
import time

import openai

from server import Server, at_once, greedy, refused, until

QUESTION = "What does HbA1c measure?"
ENDLESS = {"model": "tiny", "prompt": "- - - - - -", "temperature": 0, "max_tokens": 1900}


def keys(place):
    """Without one of the keys there is an answer to /health, /ready and /metrics alone."""
    with open(place.path("keys"), "w") as file:
        file.write("# those of the clinic\nsk-file-one\n\nsk-file-two\n")
    env = {"API_KEY": "sk-env", "API_KEYS": "sk-a,sk-b"}
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny", "--api-key-file", place.path("keys"), env=env) as server:
        for key in ("sk-file-one", "sk-file-two", "sk-env", "sk-a", "sk-b"):
            assert greedy(server.client(key), "tiny", QUESTION, 1)[1], key
        for key in ("sk-file-three", "sk-file-on", "sk-a,sk-b", "# those of the clinic", "x" * 5000):
            try:
                server.client(key).models.list()
                raise AssertionError(f"`{key[:40]}` was let in")
            except openai.AuthenticationError as e:
                assert e.status_code == 401 and "sk-" not in e.message.replace(key, ""), e
        body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
        closed = {
            "/v1/models": None, "/v1/chat/completions": body, "/v1/completions": body, "/answer": {"question": QUESTION},
            "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "x"}, "/v1/unload_lora_adapter": {"lora_name": "medical"},
        }  # fmt: skip
        for path, body in closed.items():
            assert refused(path, server.ask(path, body), {401})["type"] == "authentication_error", path
            refused(path, server.ask(path, b"\xff{", method="POST"), {401, 405})
        for path in ("/health", "/ready", "/metrics"):
            assert server.ask(path)[0] == 200, path
        # Another site's page may not ask in a visitor's name.
        headers = server.ask("/v1/models", key="sk-a")[1]
        assert not [h for h in headers if h.lower().startswith("access-control")], headers
        assert server.stop() == 0
        said = "".join(server.log)
        assert not any(key in said for key in ("sk-file", "sk-env", "sk-a")), said
        assert QUESTION not in said, "a question stands in the log"


def jail(place):
    """Adapters come from one folder, whatever path is asked for; without that folder, none do."""
    inside, outside = place.path("jail/inside"), place.path("jail/outside")
    for folder in (inside, outside):
        os.makedirs(folder, exist_ok=True)
    copy(place.path("adapters/medical"), os.path.join(inside, "good"))
    copy(place.path("adapters/medical"), os.path.join(outside, "secret"))
    os.symlink(os.path.join(outside, "secret"), os.path.join(inside, "link"))
    os.symlink(outside, os.path.join(inside, "up"))
    os.mkdir(os.path.join(inside, "half"))
    for name in os.listdir(os.path.join(outside, "secret")):
        os.symlink(os.path.join(outside, "secret", name), os.path.join(inside, "half", name))
    os.mkdir(os.path.join(inside, "empty"))
    with Server(place.binary, place.config, "--model-name", "tiny", "--adapters-dir", inside) as server:
        secret = os.path.join(outside, "secret")
        paths = [
            "../outside/secret", "good/../../outside/secret", secret, "link", "up/secret", "half", "/etc", "/etc/passwd", "/", "..", ".", "",
            "empty", "nothing", "good\0", "good\0/../../outside/secret", "x" * 100_000, "//" + secret, "./../outside/secret", "~", "file://" + secret,
        ]  # fmt: skip
        for path in paths:
            error = refused(path[:60], server.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path}), {400, 403, 404})
            assert "root:" not in error["message"] and outside not in error["message"].replace(path, ""), error
        for name in ("tiny", "", "a b", "a\"b", "a\nb", "x" * 10_000):
            refused(f"the name {name[:20]!r}", server.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": "good"}), {400, 409})
        for body in ({}, {"lora_name": "x"}, {"lora_name": 3, "lora_path": "good"}, {"lora_name": "x", "lora_path": ["good"]}):
            refused(str(body), server.ask("/v1/load_lora_adapter", body), {400})
        refused("the base stays", server.ask("/v1/unload_lora_adapter", {"lora_name": "tiny"}), {400})
        refused("none of that name", server.ask("/v1/unload_lora_adapter", {"lora_name": "x"}), {404})
        assert [m.id for m in server.client().models.list()] == ["tiny"]
        status, _, text = server.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "good"})
        assert status == 200, text
        refused("the name is taken", server.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "good"}), {400, 409})
        assert greedy(server.client(), "x", QUESTION, 4)[1]
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
        refused("off", server.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": place.path("adapters/early")}), {403, 404})
        refused("off", server.ask("/v1/unload_lora_adapter", {"lora_name": "medical"}), {403, 404})
        assert [m.id for m in server.client().models.list()] == ["tiny", "medical", "legal"]


def copy(source: str, target: str):
    os.mkdir(target)
    for name in os.listdir(source):
        if os.path.isfile(os.path.join(source, name)):
            with open(os.path.join(source, name), "rb") as a, open(os.path.join(target, name), "wb") as b:
                b.write(a.read())


def poison() -> dict[str, tuple[bytes, set]]:
    """Bodies for /v1/chat/completions that are no requests, and how they may be refused."""

    def chat(extra: str) -> bytes:
        return b'{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}], ' + extra.encode() + b"}"

    stops = ",".join(['"s"'] * 1_000_000)
    few = ",".join(f'"{i}"' for i in range(50_000))
    return {
        "nothing": (b"", {400}),
        "no JSON": (b"{", {400}),
        "no object": (b"[1, 2]", {400}),
        "invalid UTF-8": (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}', {400}),
        "a lone surrogate": (chat('"user": "\\ud800"'), {400, 200}),
        "a null byte": (b"\0" * 1000, {400}),
        "deep arrays": (b"[" * 100_000, {400}),
        "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {400}),
        "a deep message": (chat('"tools": ' + "[" * 50_000 + "]" * 50_000), {400}),
        "a million stop strings": (chat(f'"stop": [{stops}]'), {413}),
        "many stop strings": (chat(f'"stop": [{few}]'), {400}),
        "a long stop string": (chat(f'"stop": "{"s" * 500_000}"'), {400}),
        "temperature NaN": (chat('"temperature": NaN'), {400}),
        "temperature beyond floats": (chat('"temperature": 1e999'), {400}),
        "temperature -0.1": (chat('"temperature": -0.1'), {400}),
        "temperature a text": (chat('"temperature": "hot"'), {400}),
        "n -1": (chat('"n": -1'), {400}),
        "n 2^63": (chat('"n": 9223372036854775808'), {400}),
        "n 1.5": (chat('"n": 1.5'), {400}),
        "max_tokens 2^64": (chat('"max_tokens": 18446744073709551616'), {400}),
        "max_tokens -5": (chat('"max_tokens": -5'), {400}),
        "max_tokens 2^62": (chat('"max_completion_tokens": 4611686018427387904'), {400}),
        "top_p NaN": (chat('"top_p": "NaN"'), {400}),
        "seed 1e300": (chat('"seed": 1e300'), {400}),
        "a schema as tools": (chat('"tools": [{"type": "function"}]'), {400}),
        "a prompt beyond the context": (b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"a b " * 200_000 + b'"}]}', {400}),
        "a body beyond the limit": (chat(f'"user": "{"x" * (2 << 20)}"'), {413}),
        "a model with no end": (b'{"model": "' + b"m" * 900_000 + b'", "messages": []}', {400, 404}),
    }


def poisoned(place):
    """None of it is taken, and the answer that is under way beside all of it stays what it is alone."""
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
        client = server.client()
        want = greedy(client, "medical", QUESTION, 24)
        long = [client.completions.create(**ENDLESS | {"max_tokens": 400}).choices[0].text]
        over = []

        def normal():
            while not over:
                assert greedy(client, "medical", QUESTION, 24, stream=True) == want

        def endless():
            long.append("".join(c.choices[0].text for c in client.completions.create(**ENDLESS | {"max_tokens": 400}, stream=True) if c.choices))

        def attack():
            try:
                for what, (body, statuses) in poison().items():
                    answer = server.ask("/v1/chat/completions", body, method="POST")
                    if answer[0] != 200 or 200 not in statuses:
                        refused(what, answer, statuses)
                raw(server)
            finally:
                over.append(True)

        at_once([normal, endless, attack])
        assert long[0] == long[1]
        assert server.ask("/health")[0] == 200
        server.idle()
        assert server.stop() == 0
        said = "".join(server.log)
        assert "panicked" not in said, said


def raw(server):
    """What no HTTP library sends. Refused or dropped; never a hang."""
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    heads = [
        b"\0\xff\xfe\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        head + b"content-length: -1\r\n\r\n",
        head + b"content-length: 99999999999999999999\r\n\r\n",
        head + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}{}",
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        head + b"authorization: Bearer " + b"k" * 1_000_000 + b"\r\n\r\n",
        b"".join(b"x%d: y\r\n" % i for i in range(10_000)).join([b"GET /health HTTP/1.1\r\n", b"\r\n"]),
    ]
    for sent in heads:
        with socket.create_connection((host, int(port)), timeout=30) as s:
            try:
                s.sendall(sent)
                s.shutdown(socket.SHUT_WR)
                answer = b""
                while part := s.recv(65536):
                    answer += part
            except TimeoutError:
                raise
            except OSError:
                # Dropped: a reset, a broken pipe, or no connection any more to be half closed.
                continue
            assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505", b"HTTP/1.0 505")), (sent[:60], answer[:200])
    # Says how much will come, and leaves.
    with socket.create_connection((host, int(port)), timeout=30) as s:
        s.sendall(head + b"content-length: 1000\r\n\r\n{")


def overload(place):
    """A full queue refuses at once and says when to come again; those who are in are answered."""
    options = ["--model-name", "tiny", "--max-batch", "1", "--max-queue", "2"]
    with Server(place.binary, place.config, *place.adapters, *options) as server:
        client = server.client()
        want = greedy(client, "medical", QUESTION, 8)
        running = client.completions.create(**ENDLESS, stream=True)
        next(iter(running))
        waiting: list = []

        def wait():
            waiting.append(greedy(client, "medical", QUESTION, 8))

        def crowd():
            until("both wait", lambda: server.total("qlora_queue_depth") == 2)
            for _ in range(20):
                start = time.monotonic()
                try:
                    greedy(client, "medical", QUESTION, 8)
                    raise AssertionError("a full queue took a request")
                except openai.RateLimitError as e:
                    assert int(e.response.headers["retry-after"]) >= 1 and e.type == "rate_limit_error", e
                    assert time.monotonic() - start < 30
            refused("n", server.ask("/v1/completions", ENDLESS | {"n": 2}), {429})
            assert server.total("qlora_requests_total", status="429") == 21
            running.close()

        at_once([wait, wait, crowd])
        assert waiting == [want, want]
        server.idle()
        assert server.stop() == 0


def late(place):
    """A request that takes longer than it may is ended, and others go on."""
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny", "--request-timeout", "0.5") as server:
        client = server.client()
        slow = ENDLESS | {"n": 8}
        assert refused("too slow", server.ask("/v1/completions", slow), {504})["code"] == "timeout"
        # A stream has begun with 200: its end says what happened.
        text = server.ask("/v1/completions", slow | {"stream": True})[2]
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert events[-1].get("error", {}).get("code") == "timeout", events[-1]
        server.idle()
        assert greedy(client, "medical", QUESTION, 1)[1]


SCENARIOS = [keys, jail, poisoned, overload, late]
