"""The ledger's keys in Redis, and its scripts.

All keys of one person (of one team, where that is named) have the same hash tag, and so lie in one
slot of a Cluster: a script may use them together, and several people's load is spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from llm_magic.ledger import Scope

SHARED: tuple[Scope, ...] = ("user", "team")
"""Scopes whose limits can be set for all kernels."""

_SHEBANG = "#!lua flags=allow-oom\n"


class Keys:
    """The keys of one kernel's ledger.

    Args:
        kernel: The kernel's id.
        user: The person.
        team: The team; empty for none.
        run: The run over rows on several machines; empty for none.

    Attributes:
        names: The scopes in which a call counts, and their names.
        scopes: The same without the names.
        shared: Those of them whose limits can be set for all kernels.
        common: What all scripts use.
        usage: The usage of the person and of the kernel.
    """

    def __init__(self, kernel: str, user: str, team: str = "", run: str = "") -> None:
        tag = f"team:{quote(team, safe='')}" if team else f"user:{quote(user, safe='')}"
        self._base = f"llm_magic:{{{tag}}}:"
        names: dict[Scope, str] = {"kernel": kernel, "user": user, "team": team, "run": run}
        self.names = {scope: name for scope, name in names.items() if name}
        self.scopes = list(self.names)
        self.common = [self._base + name for name in ("open", "leases", "flights")]
        self.usage = [self.of("user", "usage"), self.of("kernel", "usage")]
        self.shared = [scope for scope in SHARED if scope in self.names]

    def counts(self, scopes: Sequence[Scope]) -> list[str]:
        """The keys of what counts in these scopes."""
        return [self.of(scope, kind) for scope in scopes for kind in ("sums", "log")]

    def place(self, scope: Scope) -> int:
        """The number of a scope, from 1."""
        return self.scopes.index(scope) + 1

    def of(self, scope: Scope, kind: str) -> str:
        """A key of a scope."""
        return f"{self._base}{scope}:{quote(self.names[scope], safe='')}:{kind}"

    def call(self, id_: str) -> str:
        """The key of a call."""
        return f"{self._base}call:{id_}"

    def batch(self, id_: str) -> str:
        """The key by which a batch of free answers is known as noted."""
        return f"{self._base}noted:{id_}"


@cache
def text(name: str, *before: str) -> str:
    """A script: its file, behind others that it needs."""
    folder = files(__package__)
    parts = [folder.joinpath(f"{each}.lua").read_text("utf-8") for each in (*before, name)]
    whole = "\n".join(parts)
    return whole if whole.startswith("#!") else _SHEBANG + whole
