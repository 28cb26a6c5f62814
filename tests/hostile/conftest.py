"""What hostile tests talk to."""

from collections.abc import Generator, Iterator
from typing import Any

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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Has an example with half of a surrogate pair written out: xdist sends reports as UTF-8."""
    return sendable((yield))


def sendable(report: Any) -> Any:
    """A report in which every text is UTF-8."""
    if isinstance(report, str):
        return report.encode(errors="backslashreplace").decode()
    if isinstance(report, dict):
        return {sendable(name): sendable(value) for name, value in report.items()}
    if isinstance(report, list | tuple):
        return type(report)(map(sendable, report))
    return report
