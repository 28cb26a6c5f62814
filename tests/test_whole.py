"""What a row is told whose answer does not come whole."""

import errno
import os
from typing import Any

import pandas as pd
import pytest

import llm_magic
from llm_magic.testing import FAULTS, ScriptedServer

pytestmark = pytest.mark.usefixtures("provider")


def told(monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    rows = pd.DataFrame({"text": ["a"]})
    return str(llm_magic.map_rows(rows, "{{ text }}", quiet=True, **options)._error[0])


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_connection_that_is_lost_in_an_answer(
    fault: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.enqueue(FAULTS[fault])

    said = told(monkeypatch, model="m")
    assert said.startswith("The connection to 127.0.0.1:")
    assert said.endswith(" was lost: it ended before the answer was whole.")


def test_a_server_that_is_not_there(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.refusing():
        said = told(monkeypatch, model="m")

    assert f": {os.strerror(errno.ECONNREFUSED)}. No answer was received." in said
    assert "ssl" not in said


def test_an_answer_that_was_cut_at_its_limit(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cell's error, but for where a cell has what came."""
    server.enqueue(FAULTS["finish_length"])

    said = told(monkeypatch, model="m", max_tokens=7)
    assert said == "The answer of m was cut at max_tokens=7."
