"""The load server itself: what others measure by must be right."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.load import LoadServer
from tests.load_server import ANSWER, span


@pytest.fixture(scope="module")
def quick() -> Iterator[LoadServer]:
    with LoadServer(latency=0.001) as server:
        yield server


def client(server: LoadServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def ask(server: LoadServer, **more: object) -> dict:
    body = {"model": "m", "messages": [{"role": "user", "content": "é" * 10}], **more}
    request = urllib.request.Request(
        f"{server.url}/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return {"headers": dict(answer.headers), "body": json.loads(answer.read())}


def rejection(server: LoadServer) -> urllib.error.HTTPError:
    with pytest.raises(urllib.error.HTTPError) as caught:
        deque(ask(server) for _ in range(20))
    assert caught.value.code == 429
    return caught.value


def test_answers_as_openai_does(quick):
    found = client(quick).chat.completions.create(model="some-model", messages=[])
    assert found.model == "some-model"
    assert found.choices[0].message.content == ANSWER
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.total_tokens == 60


def test_streams_the_same(quick):
    chunks = list(client(quick).chat.completions.create(model="m", messages=[], stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 60


def test_lists_its_model(quick):
    assert [model.id for model in client(quick).models.list()] == ["load"]


def test_a_request_may_come_in_pieces(quick):
    body = {"messages": [{"role": "user", "content": "x" * 1_000_000}], "model": "m"}
    found = client(quick).chat.completions.create(**body)
    assert found.model == "m"
    assert quick.stats()["bytes_in"] > 1_000_000


def test_another_answer():
    with LoadServer(latency=0, answer="[1, 2]", completion_tokens=7) as server:
        body = ask(server)["body"]
        assert body["choices"][0]["message"]["content"] == "[1, 2]"
        assert body["usage"]["completion_tokens"] == 7


def test_counts_and_forgets(quick):
    quick.reset()
    ask(quick)
    assert (quick.stats()["requests"], quick.stats()["answered"]) == (1, 1)
    assert quick.stats()["max_in_flight"] == 1
    quick.reset()
    assert quick.stats()["requests"] == 0


def test_a_full_bucket_and_no_more():
    with LoadServer(latency=0, rate=0.01, burst=5) as server:
        rejection(server)
        assert server.stats()["answered"] == 5


def test_a_rejection_says_when():
    with LoadServer(latency=0, rate=0.01, burst=1) as server:
        error = rejection(server)
        body = json.loads(error.read())
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert 90_000 < int(error.headers["retry-after-ms"]) <= 100_000
        assert error.headers["x-ratelimit-limit-requests"] is None


def test_a_rejection_in_whole_seconds():
    with LoadServer(latency=0, rate=2, burst=1, retry_after="s") as server:
        error = rejection(server)
        assert error.headers["retry-after"] == "1"
        assert error.headers["retry-after-ms"] is None


def test_a_rejection_that_does_not_say_when():
    with LoadServer(latency=0, rate=0.01, burst=1, retry_after="none") as server:
        error = rejection(server)
        assert error.headers["retry-after"] is None
        assert error.headers["retry-after-ms"] is None


def test_headers_mirror_the_bucket():
    with LoadServer(latency=0, rate=0.01, burst=10, headers=True) as server:
        ask(server)
        headers = ask(server)["headers"]
        assert headers["x-ratelimit-limit-requests"] == "10"
        assert headers["x-ratelimit-remaining-requests"] == "8"
        assert headers["x-ratelimit-reset-requests"].startswith("3m")


def test_a_limit_on_tokens():
    with LoadServer(latency=0, token_rate=0.1, token_burst=130, headers=True) as server:
        headers = ask(server)["headers"]
        assert headers["x-ratelimit-remaining-tokens"] == "70"
        rejection(server)
        assert server.stats()["answered"] == 2


def test_options_change_while_it_runs():
    with LoadServer(latency=0, rate=0.01, burst=1) as server:
        rejection(server)
        server.set(rate=1e6, burst=1000)
        ask(server)
        assert server.stats()["rejected"] == 1


def test_no_more_at_a_time_than_it_has_slots():
    with LoadServer(latency=0.05, slots=2) as server, ThreadPoolExecutor(6) as pool:
        ready = threading.Barrier(6)
        list(pool.map(lambda _: (ready.wait(), ask(server)), range(6)))
        assert server.stats()["max_in_flight"] == 6
        assert server.stats()["answered"] == 6


def test_every_third_fails():
    with LoadServer(latency=0, fail_every=3, fail_status=503) as server:
        ask(server)
        ask(server)
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(server)
        assert caught.value.code == 503
        assert server.stats()["failed"] == 1


def test_counts_those_that_come_before_a_pause_is_over():
    with LoadServer(latency=0, rate=0.1, burst=1, retry_after="s") as server:
        rejection(server)
        assert server.stats()["early"] == 0
    with LoadServer(latency=0, rate=2, burst=1, retry_after="s") as server:
        rejection(server)
        end = time.monotonic() + 10
        while not server.stats()["early"] and time.monotonic() < end:
            with contextlib.suppress(urllib.error.HTTPError):
                ask(server)
        assert server.stats()["early"] > 0


def test_counts_how_long_answers_take():
    with LoadServer(latency=0.2, slots=1) as server, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ask(server), range(2)))
        # One after the other.
        assert server.stats()["seconds"] > 0.55


def test_times_are_written_as_openai_writes_them():
    assert [span(s) for s in (0.0021, 1, 59.5, 360)] == ["3ms", "1s", "59.5s", "6m0s"]


def test_ends_when_told():
    program = str(Path(__file__).with_name("load_server.py"))
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip().isdigit()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()


def test_says_that_it_did_not_start():
    with pytest.raises(RuntimeError, match="did not start"), LoadServer(nonsense=1):
        pass
