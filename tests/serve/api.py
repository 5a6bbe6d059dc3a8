"""Every endpoint and every field."""

import json
import math

import openai

from server import Server, greedy, refused

QUESTION = "What does HbA1c measure?"
METRICS = {
    "qlora_requests_total", "qlora_tokens_in_total", "qlora_tokens_out_total", "qlora_tokens_cached_total", "qlora_queue_depth",
    "qlora_batch_size", "qlora_sequences_running", "qlora_cache_pages", "qlora_cache_pages_used", "qlora_cache_pages_kept",
    "qlora_time_to_first_token_seconds_bucket", "qlora_time_per_output_token_seconds_bucket", "qlora_request_seconds_bucket",
    "qlora_requests_running", "qlora_adapters_loaded", "qlora_requests_cancelled_total",
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a place", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def ask(prompt: str = QUESTION) -> list:
    return [{"role": "user", "content": prompt}]


def endpoints(place):
    """Models, chat and completions whole and streamed, the tutorial's /answer, health and metrics."""
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
        client = server.client()
        models = {m.id: m for m in client.models.list()}
        assert list(models) == ["tiny", "medical", "legal"] == server.models, models
        assert models["medical"].parent == models["legal"].parent == "tiny" and models["tiny"].parent is None
        one = client.models.retrieve("legal")
        assert (one.id, one.object, one.parent) == ("legal", "model", "tiny")

        answers = {name: chat(client, name) for name in models}
        assert len(set(answers.values())) == 3, f"models answer alike: {answers}"
        for name in models:
            completion(client, name)

        # As the tutorial asks: in the query, in the body. The first adapter answers; the config samples, so greedily it must be.
        quoted = QUESTION.replace(" ", "%20").replace("?", "%3F")
        by_query = server.ask(f"/answer?question={quoted}", method="POST")
        by_body = server.ask("/answer", {"question": QUESTION})
        assert by_query[0] == by_body[0] == 200, (by_query, by_body)
        assert json.loads(by_query[2]) == json.loads(by_body[2]) and set(json.loads(by_body[2])) == {"answer"}, (by_query, by_body)
        assert json.loads(by_body[2])["answer"].startswith(answers["medical"]), (by_body, answers)
        refused("no question", server.ask("/answer", {"query": "x"}), {400})

        for path in ("/health", "/ready"):
            assert server.ask(path)[0] == 200, path
        names = {name for name, _ in server.metrics()}
        # What never happened may have no line yet.
        assert METRICS - names <= {"qlora_requests_cancelled_total"}, METRICS - names
        assert server.total("qlora_adapters_loaded") == 2
        assert server.total("qlora_requests_total", model="medical", status="200") >= 4
        assert server.total("qlora_tokens_out_total", model="legal") > 0
        server.idle()
        assert server.stop() == 0


def chat(client: openai.OpenAI, model: str) -> str:
    """An answer, whole and streamed, must be the same."""
    kind = {"model": model, "messages": ask(), "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**kind)
    choice = whole.choices[0]
    assert (whole.object, whole.model, len(whole.choices), choice.index) == ("chat.completion", model, 1, 0), whole
    assert choice.message.role == "assistant" and choice.message.content, whole
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > 5, usage
    assert usage.completion_tokens == 12 if choice.finish_reason == "length" else choice.finish_reason == "stop", whole

    chunks = list(client.chat.completions.create(**kind, stream=True, stream_options={"include_usage": True}))
    assert {c.object for c in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1
    assert len(chunks) > 3, "the answer did not come in pieces"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [choice.finish_reason]
    told = [c.usage for c in chunks if c.usage]
    assert len(told) == 1 and chunks[-1].usage == told[0] and chunks[-1].choices == [], chunks[-1]
    assert (told[0].prompt_tokens, told[0].completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert not any(c.usage for c in client.chat.completions.create(**kind, stream=True))
    return choice.message.content


def completion(client: openai.OpenAI, model: str):
    """A text goes on, whole and streamed alike; several at once, also as tokens."""
    kind = {"model": model, "prompt": "The capital of", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**kind)
    assert whole.object == "text_completion" and whole.usage.completion_tokens <= 8, whole
    streamed = "".join(c.choices[0].text for c in client.completions.create(**kind, stream=True) if c.choices)
    assert streamed == whole.choices[0].text != "", (streamed, whole)
    several = client.completions.create(**kind | {"prompt": ["One day", "The capital of"]})
    assert [c.index for c in several.choices] == [0, 1] and several.choices[1].text == whole.choices[0].text, several
    assert client.completions.create(**kind | {"prompt": [5, 6, 7]}).usage.prompt_tokens == 3


def fields(place):
    """stop, n, seed, logprobs, penalties, limits, tools, turns, and what is refused."""
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
        client = server.client()
        text, tokens = greedy(client, "medical", QUESTION, 24)
        assert len(tokens) >= 6, "the answer is too short to cut"
        stops(client, text)
        choices(client)
        probabilities(client, text, tokens)
        penalties(client)
        context(client)
        errors(client, server)
        server.idle()


def stops(client: openai.OpenAI, text: str):
    """An answer ends before a stop string, wherever tokens meet within it."""
    kind = {"model": "medical", "messages": ask(), "max_tokens": 24, "temperature": 0}
    for at in (1, len(text) // 2, len(text) - 4):
        stop = text[at : at + 3]
        cut = text[: text.index(stop)]
        for given in (stop, ["never said", stop]):
            whole = client.chat.completions.create(**kind, stop=given).choices[0]
            assert (whole.message.content, whole.finish_reason) == (cut, "stop"), (stop, whole)
            chunks = list(client.chat.completions.create(**kind, stop=given, stream=True))
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == cut, (stop, chunks)
    assert client.chat.completions.create(**kind, stop="never said").choices[0].message.content == text
    short = client.chat.completions.create(**kind | {"max_tokens": 2})
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    newer = client.chat.completions.create(model="medical", messages=ask(), max_completion_tokens=2, temperature=0)
    assert newer.choices[0].message.content == short.choices[0].message.content


def choices(client: openai.OpenAI):
    """Several answers to one prompt; a seed gives the same ones again."""

    def draw(seed: int, **more) -> list[str]:
        answer = client.chat.completions.create(model="tiny", messages=ask(), n=3, seed=seed, temperature=1.5, max_tokens=10, **more)
        assert [c.index for c in answer.choices] == [0, 1, 2] and answer.usage.completion_tokens <= 30
        return [c.message.content for c in answer.choices]

    first = draw(7)
    assert len(set(first)) == 3, f"answers are alike: {first}"
    assert draw(7) == first and draw(8) != first
    assert draw(7, top_p=1e-9) == [draw(9, top_p=1e-9)[0]] * 3, "only the likeliest token is left to draw"
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="tiny", messages=ask(), n=3, seed=7, temperature=1.5, max_tokens=10, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == first


def probabilities(client: openai.OpenAI, text: str, tokens: list):
    """Every token has one, and the likeliest is the one that was taken."""
    kind = {"model": "medical", "max_tokens": 24, "temperature": 0}
    told = client.chat.completions.create(**kind, messages=ask(), logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [(t.token, tuple(t.bytes)) for t in told] == tokens
    said = bytes(b for t in told for b in t.bytes).decode("utf-8", "replace")
    # The token that ends the answer has a probability and no text.
    assert said.startswith(text), (said, text)
    for t in told:
        top = [x.logprob for x in t.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True) and t.top_logprobs[0].token == t.token, t
        assert t.logprob == top[0] <= 0 and sum(map(math.exp, top)) <= 1 + 1e-4, t
    told = client.completions.create(**kind, prompt="The capital of", logprobs=2).choices[0]
    p = told.logprobs
    assert len(p.tokens) == len(p.token_logprobs) == len(p.text_offset) == len(p.top_logprobs), p
    assert "".join(p.tokens).startswith(told.text) and all(max(t.values()) == l for t, l in zip(p.top_logprobs, p.token_logprobs)), p


def penalties(client: openai.OpenAI):
    """A penalty on what was said makes a text that turns in circles say something else."""
    kind = {"model": "tiny", "prompt": "- - - - - -", "max_tokens": 40, "temperature": 0, "logprobs": 0}

    def repeats(**more) -> int:
        tokens = client.completions.create(**kind, **more).choices[0].logprobs.tokens
        return len(tokens) - len(set(tokens))

    plain = repeats()
    assert plain > 0, "nothing is repeated that a penalty could keep away"
    assert repeats(frequency_penalty=2) < plain and repeats(presence_penalty=2) < plain
    assert repeats(frequency_penalty=0, presence_penalty=0) == plain


def context(client: openai.OpenAI):
    """What goes into the prompt: the system's words, earlier turns, parts, tools."""

    def prompt_tokens(messages: list, **more) -> int:
        return client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, **more).usage.prompt_tokens

    plain = prompt_tokens(ask())
    turns = ask() + [{"role": "assistant", "content": "Sugar."}, {"role": "user", "content": "Where?"}]
    assert prompt_tokens([{"role": "system", "content": "Answer in one word."}] + ask()) > plain
    assert prompt_tokens(turns) > plain
    assert prompt_tokens([{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]) == plain
    with_tools = prompt_tokens(ask(), tools=[TOOL])
    assert with_tools > plain + 10 and prompt_tokens(ask(), tools=[TOOL], tool_choice="none") == plain
    called = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Paris"}'}}]}
    assert prompt_tokens(ask() + [called, {"role": "tool", "tool_call_id": "1", "content": "rain"}], tools=[TOOL]) > with_tools


def errors(client: openai.OpenAI, server: Server):
    """The client raises what it raises with OpenAI's own server."""
    try:
        client.chat.completions.create(model="none", messages=ask())
        raise AssertionError("a model that is not there answered")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found" and "medical" in e.message, e
    kind = {"model": "tiny", "messages": ask()}
    wrong = [
        ("temperature", {"temperature": -1}), ("top_p", {"top_p": 1.5}), ("n", {"n": 0}), ("n", {"n": -3}), ("n", {"n": 10**6}),
        ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": -1}), ("stop", {"stop": [""]}), ("stop", {"stop": ["x"] * 10_000}),
        ("frequency_penalty", {"frequency_penalty": 9}), ("presence_penalty", {"presence_penalty": -9}), ("top_logprobs", {"logprobs": True, "top_logprobs": 999}),
        ("messages", {"messages": []}), ("messages", {"messages": ask("word " * 5000)}), ("messages", {"messages": [{"role": "king", "content": "x"}]}),
    ]  # fmt: skip
    for field, extra in wrong:
        try:
            client.chat.completions.create(**kind | extra)
            raise AssertionError(f"{field} was taken")
        except openai.BadRequestError as e:
            assert field in (e.param or "") and field in e.message, f"{field}: {e}"
    too_long = json.loads(server.ask("/v1/chat/completions", kind | {"messages": ask("word " * 5000)})[2])["error"]
    assert too_long["code"] == "context_length_exceeded", too_long
    refused("no such path", server.ask("/v1/none"), {404})
    refused("a GET where a POST belongs", server.ask("/v1/chat/completions"), {405})


SCENARIOS = [endpoints, fields]
