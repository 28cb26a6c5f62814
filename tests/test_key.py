"""The key is in nothing that a user, a file, a log or a traceback can show."""

import logging
import traceback
from pathlib import Path

import pytest

import llm_magic
from llm_magic import session
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Terminal

# Some servers repeat what they were sent.
ECHO = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
ECHOES = [
    Reply(status=401, error=ECHO),
    Reply(status=400, error=[ECHO]),
    Reply(status=500, error={"detail": [{"input": KEY}]}),
    Reply(status=502, raw=f"<html><title>{KEY}</title></html>".encode()),
    Reply(raw=f"<html><title>{KEY}</title></html>".encode()),
    Reply(error=ECHO),
    Reply(error={"unexpected": KEY}),
]


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, its causes and its contexts."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("verbose", [False, True])
def test_key_is_nowhere(
    terminal: Terminal,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verbose: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "1.5")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "1.5")
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    seen: list[str] = []
    if verbose:
        # Shows the local variables of every frame.
        terminal.run("%xmode Verbose")

    for reply in [*FAULTS.values(), *ECHOES]:
        server.enqueue(reply)
        ran = terminal.run("%llm -m any Hello")
        server.reset()
        assert ran.error is not None
        seen += [ran.out, terminal.run("%tb").out]
        for error in _chain(ran.error):
            seen += [repr(error), str(error), repr(vars(error)), repr(error.args)]
            seen += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    for cell in ("%config LLMMagic", "%llm Fine", "repr(_)", "%llm --dry-run Hello", "%llm --x"):
        seen.append(terminal.run(cell).out)
    seen += [
        repr(session.current()),
        repr(vars(session.current())),
        repr(vars(session.current().settings)),
    ]
    seen += [repr(wire) for wire in session.current()._wires.values()]
    seen += [repr(llm_magic.ask("Hello")), caplog.text]
    seen += [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]

    assert [text for text in seen if KEY in text or KEY[:14] in text] == []
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_a_password_in_the_address_is_not_shown(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", f"//user:{KEY}@"))
    seen = [terminal.run("%llm --dry-run Hello").out]
    for reply in (Reply("Fine."), FAULTS["cut"], FAULTS["server_error"], FAULTS["bad_key"]):
        server.enqueue(*[reply] * 3)
        seen.append(terminal.run("%llm Hello").out)
        server.reset()
    with server.refusing():
        seen.append(terminal.run("%llm -m any Hello").out)

    assert "Fine." in seen[1]
    assert [text for text in seen if KEY in text] == []
