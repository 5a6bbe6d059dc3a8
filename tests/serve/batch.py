"""What others ask changes no answer: together as alone, after clients have left, beside a long prompt."""

import time

from server import Server, at_once, greedy, until

MODELS = ["tiny", "medical", "legal"]
PROMPTS = [
    "What does HbA1c measure?", "多久洗一次牙？", "Is a spoken contract valid?", "What is anemia?", "口头合同有效吗？", "How long is a week?",
    "Tell me a story about a dog that lost its way in the town.", "1 + 1",
]  # fmt: skip
SYSTEM = "You are a careful assistant. Answer in one sentence, say when you are not sure, and never invent a source. " * 3
# A text that the base goes on with until it is stopped.
ENDLESS = {"model": "tiny", "prompt": "- - - - - -", "temperature": 0, "max_tokens": 1900}


def together(place):
    """Every model, prompt and way of asking at the same time: each answer is, token for token, the one given alone."""
    jobs = [
        (MODELS[i % 3], prompt, 4 + 5 * (i % 5), SYSTEM if i % 2 else "")
        for i, prompt in enumerate(p for p in PROMPTS for _ in MODELS)
    ]
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny", "--max-batch", "16") as server:
        client = server.client()
        alone = [greedy(client, model, prompt, n, system=system) for model, prompt, n, system in jobs]
        # Each alone was the whole batch; from here on many are in it.
        ran_before = server.total("qlora_tokens_cached_total")
        largest = [0.0]

        def job(i: int):
            model, prompt, n, system = jobs[i % len(jobs)]
            stream = i % 3 == 0
            if i % 7 == 3:
                largest[0] = max(largest[0], server.total("qlora_sequences_running"))
            return greedy(client, model, prompt, n, stream, system)

        n = 2 * len(jobs)
        for i, got in enumerate(at_once([lambda i=i: job(i) for i in range(n)])):
            want = alone[i % len(jobs)]
            assert got == want, f"{jobs[i % len(jobs)]}: alone {want}, together {got}"
        assert largest[0] > 1, "nothing ran together"
        # What the system said was not computed each time.
        assert server.total("qlora_tokens_cached_total") > ran_before
        again = client.chat.completions.create(
            model="legal", messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": "And now?"}], max_tokens=1
        )
        assert again.usage.prompt_tokens_details.cached_tokens > 0, again.usage
        server.idle()
        assert server.stop() == 0


def left(place):
    """A client that goes away takes its sequence with it, streamed or not."""
    with Server(place.binary, place.config, *place.adapters, "--model-name", "tiny") as server:
        client = server.client()
        want = greedy(client, "medical", PROMPTS[0], 16)
        for n in (1, 3):
            before = server.total("qlora_requests_cancelled_total")
            made = server.total("qlora_tokens_out_total")
            streams = [client.completions.create(**ENDLESS | {"n": n}, stream=True) for _ in range(4)]
            for stream in streams:
                next(iter(stream))
            assert server.total("qlora_sequences_running") > 0
            for stream in streams:
                stream.close()
            assert greedy(client, "medical", PROMPTS[0], 16) == want, "of those that leave others take no harm"
            server.idle()
            until("the leaving is counted", lambda: server.total("qlora_requests_cancelled_total") == before + 4)
            assert server.total("qlora_tokens_out_total") - made < 4 * n * ENDLESS["max_tokens"] / 2, "answered to the end for nobody"

        # Whole answers: the connection closes while the server still computes.
        before = server.total("qlora_requests_cancelled_total")
        hasty = client.with_options(timeout=0.5)
        try:
            hasty.completions.create(**ENDLESS | {"n": 8})
            raise AssertionError("the answer came too soon for this test")
        except Exception as e:
            assert type(e).__name__ == "APITimeoutError", repr(e)
        server.idle()
        until("the leaving is counted", lambda: server.total("qlora_requests_cancelled_total") == before + 1)
        assert server.stop() == 0


def fair(place):
    """A long prompt is read in pieces: others get tokens meanwhile."""
    with Server(place.binary, place.config, "--model-name", "tiny") as server:
        client = server.client()
        tokens = client.completions.create(model="tiny", prompt="word " * 100, max_tokens=1).usage.prompt_tokens
        long = "word " * (100 * 1900 // tokens)
        # Read once without company, from another beginning, so that nothing of it is in the cache.
        start = time.monotonic()
        usage = client.completions.create(model="tiny", prompt="alone " + long, max_tokens=1).usage
        whole = time.monotonic() - start
        assert usage.prompt_tokens > 1800, usage

        stream = client.completions.create(**ENDLESS, stream=True)
        pieces = iter(stream)
        next(pieces)
        times = []
        read: dict = {}

        def short():
            while "end" not in read:
                next(pieces)
                times.append(time.monotonic())

        def lengthy():
            read["start"] = time.monotonic()
            client.completions.create(model="tiny", prompt="beside " + long, max_tokens=1)
            read["end"] = time.monotonic()

        at_once([short, lengthy])
        within = [t for t in times if read["start"] < t < read["end"]]
        # Read in one piece, it would let through what was on its way when it came, and no more.
        assert len(within) >= 4, f"{len(within)} tokens while {usage.prompt_tokens} were read in {whole:.2f} s"
        pauses = [b - a for a, b in zip([read["start"], *within], [*within, read["end"]])]
        assert max(pauses) < 0.7 * (read["end"] - read["start"]), f"a pause of {max(pauses):.2f} s: {pauses}"
        stream.close()


SCENARIOS = [together, left, fair]
