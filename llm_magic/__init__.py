"""Call a language model from a notebook: ``%load_ext llm_magic``, then ``%%llm``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_magic import errors, testing
    from llm_magic.api import aask, ask, cache, map_rows, quota, totals, usage
    from llm_magic.types import Request, Response, Usage

    __version__: str

__all__ = [
    "Request",
    "Response",
    "Usage",
    "aask",
    "ask",
    "cache",
    "errors",
    "map_rows",
    "quota",
    "testing",
    "totals",
    "usage",
]

_HOMES = {
    "aask": "llm_magic.api",
    "ask": "llm_magic.api",
    "cache": "llm_magic.api",
    "map_rows": "llm_magic.api",
    "quota": "llm_magic.api",
    "totals": "llm_magic.api",
    "usage": "llm_magic.api",
    "Request": "llm_magic.types",
    "Response": "llm_magic.types",
    "Usage": "llm_magic.types",
}


if not TYPE_CHECKING:  # so that a name that there is not is an error

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in __all__:
            return importlib.import_module(f"llm_magic.{name}")
        if name == "__version__":
            from importlib.metadata import version

            return version("llm-magic")
        raise AttributeError(f"module 'llm_magic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext llm_magic``."""
    from llm_magic import magics

    magics.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext llm_magic``: stops what runs and closes the connections."""
    from llm_magic import session

    session.current(shell).close()
