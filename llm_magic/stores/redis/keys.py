"""The ledger's keys in Redis, and its scripts.

All keys of one person (of one team, where that is named) have the same hash tag, and so lie in one
slot of a Cluster: a script may use them together, and several people's load is spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from llm_magic.errors import StoreError
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
        common: What is open, which all scripts use.
        counted: What counts in all these scopes.
        header: What scripts are told of them.
        usage: The usage of the person and of the kernel.
    """

    def __init__(self, kernel: str, user: str, team: str = "", run: str = "") -> None:
        self._base = slot(user, team)
        names: dict[Scope, str] = {"kernel": kernel, "user": user, "team": team, "run": run}
        self.names = {scope: name for scope, name in names.items() if name}
        self.scopes = list(self.names)
        self.shared = [scope for scope in SHARED if scope in self.names]
        # As bytes, which the library does not encode anew for each call.
        self.common = [f"{self._base}open".encode()]
        self.counted = self.counts(self.scopes)
        self.header = self.header_of(self.scopes)
        self.usage = [self.of("user", "usage"), self.of("kernel", "usage")]

    def counts(self, scopes: Sequence[Scope]) -> list[bytes]:
        """The keys of what counts in these scopes."""
        return [self.of(scope, kind) for scope in scopes for kind in ("sums", "log")]

    def header_of(self, scopes: Sequence[Scope]) -> str:
        """What scripts are told of these scopes, as members of an object in JSON."""
        lasting = ",".join("true" if each in SHARED else "false" for each in scopes)
        return f'"scopes":{len(scopes)},"lasting":[{lasting}]'

    def place(self, scope: Scope) -> int:
        """The number of a scope, from 1.

        Raises:
            StoreError: Nothing is counted in it.
        """
        if scope not in self.names:
            fix = '%config LLMMagic.team = "NAME"' if scope == "team" else ""
            raise StoreError(
                f"A limit of a {scope} is set, and no {scope} has a name; nothing was sent.",
                fix=fix,
            )
        return self.scopes.index(scope) + 1

    def of(self, scope: Scope, kind: str) -> bytes:
        """A key of a scope."""
        return f"{self._base}{scope}:{_quoted(self.names[scope])}:{kind}".encode()

    def call(self, id_: str) -> bytes:
        """The key of a call."""
        return f"{self._base}call:{id_}".encode(errors="replace")

    def batch(self, id_: str) -> bytes:
        """The key by which a batch of free answers is known as noted."""
        return f"{self._base}noted:{id_}".encode()


def whose(user: str, team: str = "") -> str:
    """A person, or a team where there is one, as a part of keys."""
    return f"team:{_quoted(team)}" if team else f"user:{_quoted(user)}"


def slot(user: str, team: str = "") -> str:
    """What the keys of a person or of a team begin with: the hash tag that keeps them together."""
    return f"llm_magic:{{{whose(user, team)}}}:"


def _quoted(name: str) -> str:
    # A name from the environment may have bytes that are no text.
    return quote(name, safe="", errors="surrogatepass")


@cache
def text(name: str, *before: str) -> str:
    """A script: its file, behind others that it needs."""
    folder = files(__package__)
    parts = [folder.joinpath(f"{each}.lua").read_text("utf-8") for each in (*before, name)]
    whole = "\n".join(parts)
    return whole if whole.startswith("#!") else _SHEBANG + whole
