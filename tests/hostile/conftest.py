"""What hostile tests talk to."""

from collections.abc import Iterator

import pytest

from tests.conftest import KEY, end_session
from tests.hostile.fuzz import RawServer


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    """A server of raw bytes as the provider of a script; a stall would be told in 20 s."""
    server = RawServer()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name, value in {"TIMEOUT": "20", "STALL_TIMEOUT": "20", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"LLM_MAGIC_{name}", value)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    yield server
    end_session()
    server.close()
