"""The client against a server that is not ours, and ours shown to behave in the same way."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from llm_magic.errors import (
    AuthenticationFailed,
    ContextTooLong,
    LLMError,
    RateLimited,
    Refused,
    StreamBroken,
    Truncated,
)
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import Terminal

pytestmark = pytest.mark.peer

PACKAGE = "@copilotkit/aimock@1.43.0"
COMMAND = ["npx", "--yes", f"--package={PACKAGE}", "--", "llmock", "--host", "127.0.0.1"]
SECONDS_TO_INSTALL = 180
TEXT = "The answer is forty-two, and the rest of this sentence makes it long enough."
USAGE = {"prompt_tokens": 11, "completion_tokens": 13, "total_tokens": 24}
BUSY = {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"}
KEY = {
    "message": "Incorrect API key provided.",
    "type": "invalid_request_error",
    "code": "invalid_api_key",
}
LONG = {
    "message": "This model's maximum context length is 1024 tokens.",
    "type": "invalid_request_error",
    "code": "context_length_exceeded",
}


def ours(error: dict[str, str], status: int, **more: Any) -> Reply:
    return Reply(status=status, error={"error": {**error, "param": None}}, **more)


@dataclass(frozen=True)
class Case:
    """One thing that both servers do.

    Attributes:
        peer: Fixtures of the peer for it, in order; `match` is filled in.
        ours: Replies of the scripted server for it, in order.
        error: What the cell raises, or None.
        says: Words that the user reads.
        text: The answer, or what has come of it.
    """

    peer: list[dict[str, Any]]
    ours: list[Reply]
    error: type[LLMError] | None = None
    says: str = ""
    text: str = TEXT
    more: dict[str, Any] = field(default_factory=dict)


def content(**more: Any) -> dict[str, Any]:
    return {"content": TEXT, "usage": USAGE, **more}


def own(**more: Any) -> Reply:
    return Reply(TEXT, prompt_tokens=11, completion_tokens=13, **more)


CASES = {
    "plain": Case([{"response": content()}], [own()], says="11 in / 13 out"),
    "reasoning": Case(
        [{"response": content(reasoning="Six times seven.")}],
        [own(reasoning="Six times seven.")],
        more={"reasoning": "Six times seven."},
    ),
    "busy at first": Case(
        [
            {"match": {"sequenceIndex": 0}, "response": {"error": BUSY, "status": 429}},
            {"response": content()},
        ],
        [ours(BUSY, 429), own()],
        says="Trying again in",
        more={"attempts": 2},
    ),
    "busy for long": Case(
        [{"response": {"error": BUSY, "status": 429, "retryAfter": 999}}],
        [ours(BUSY, 429, headers={"Retry-After": "999"})],
        RateLimited,
        "Slow down (asks to wait 17 min",
        text="",
        more={"retry_after": 999.0, "attempts": 1},
    ),
    "key": Case(
        [{"response": {"error": KEY, "status": 401}}],
        [ours(KEY, 401)],
        AuthenticationFailed,
        "Incorrect API key provided",
        text="",
        more={"status": 401, "attempts": 1},
    ),
    "context": Case(
        [{"response": {"error": LONG, "status": 400}}],
        [ours(LONG, 400)],
        ContextTooLong,
        "maximum context length is 1024 tokens",
        text="",
        more={"status": 400, "attempts": 1},
    ),
    "cut": Case(
        [{"response": content(), "latency": 20, "truncateAfterChunks": 4}],
        [own(fault="cut", deltas=[TEXT[at : at + 5] for at in range(0, len(TEXT), 5)], after=3)],
        StreamBroken,
        "was lost",
        text=TEXT[:10],
        more={"attempts": 1},
    ),
    "malformed": Case(
        [{"response": content(), "chaos": {"malformedRate": 1}}],
        [Reply(raw=b"{malformed json: <<<chaos>>>", raw_type="application/json")],
        StreamBroken,
        "not JSON: '{malformed json: <<<chaos>>>",
        text="",
        more={"attempts": 1},
    ),
    "length": Case(
        [{"response": content(finishReason="length")}],
        [own(finish="length")],
        Truncated,
        "--max-tokens",
    ),
    "filter": Case(
        [{"response": content(finishReason="content_filter")}],
        [own(finish="content_filter")],
        Refused,
        "content filter stopped",
        more={"reason": "content_filter"},
    ),
    "slow": Case(
        [{"response": content(), "streamingProfile": {"ttft": 100, "tps": 100, "jitter": 0}}],
        [own(first_token_delay=0.1, tokens_per_second=100)],
        says="11 in / 13 out",
    ),
}


def fixtures() -> list[dict[str, Any]]:
    """The peer's whole script: each case is asked for by its name in brackets."""
    return [
        {"chunkSize": 5, **each, "match": {"userMessage": f"[{name}]", **each.get("match", {})}}
        for name, case in CASES.items()
        for each in case.peer
    ]


def missing() -> str:
    """Why the peer cannot run here, or nothing."""
    if not (shutil.which("node") and shutil.which("npx")):
        return "Node.js with npx is not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"v(\d+)", version.stdout)
    return "" if found and int(found[1]) >= 20 else "Node.js 20 or newer is needed"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=10):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def give_up(reason: str) -> NoReturn:
    """No Node.js, or no registry to get the peer from: skipped on a laptop, a failure in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The peer's base URL; where it cannot run, the tests are skipped, but never in CI."""
    if reason := missing():
        give_up(reason)
    folder: Path = tmp_path_factory.mktemp("peer")
    script = folder / "fixtures.json"
    script.write_text(json.dumps({"fixtures": fixtures()}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--fixtures", str(script), "--validate-on-load"]
    log = folder / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [*COMMAND, *options], stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        end = time.monotonic() + SECONDS_TO_INSTALL
        while not answers(url):
            if running.poll() is not None or time.monotonic() > end:
                give_up(f"the peer did not start:\n{log.read_text()}")
            # Nothing tells when another process listens; waiting for its end is the pause.
            try:
                running.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait(10)


@pytest.mark.parametrize("whose", ["peer", "ours"])
@pytest.mark.parametrize("name", CASES)
def test_case(
    name: str, whose: str, bare_terminal: Terminal, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    if whose == "peer":
        url = request.getfixturevalue("peer")
    else:
        scripted: ScriptedServer = request.getfixturevalue("server")
        scripted.enqueue(*case.ours)
        url = scripted.url
    bare_terminal.run("%load_ext llm_magic")
    bare_terminal.run(f"%config LLMMagic.base_url = {url!r}")

    ran = bare_terminal.run(f"%%llm -m some-model\nPlease do this: [{name}]")

    assert type(ran.error) is (case.error or type(None))
    came = ran.error or ran.value
    assert case.says in ran.out
    # The end of what was sent may be lost with a connection.
    assert came.text[: len(case.text)] == case.text
    assert came.text == case.text or (
        name == "cut" and TEXT.startswith(came.text) and came.text != TEXT
    )
    assert case.text in ran.out
    assert {key: getattr(came, key) for key in case.more} == case.more
    assert "Traceback" not in ran.out
    if case.error is None:
        assert ran.value.model == "some-model"
        assert ran.value.finish_reason == "stop"
        assert (ran.value.usage.input_tokens, ran.value.usage.output_tokens) == (11, 13)
        assert not ran.value.usage.estimated
