"""Where processes that ask the same server meet: how many they are, and when all must wait."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from llm_magic.meeting import Met, Visit
from llm_magic.stores.redis.keys import slot, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_magic.stores.redis.server import Server

_LEASE = 3_500
"""Milliseconds for which a process counts that is not heard of: three meetings."""
_RUN = 3_600_000
"""Milliseconds for which a run is known that is not heard of."""
_LONGEST = 3_600_000
"""Milliseconds of the longest pause that is passed on."""


class RedisPace:
    """Meetings in Redis. All keys have the hash tag of the ledger's, and so lie in one slot.

    Args:
        server: The connection.
        user: Whose processes meet.
        team: The same for a team; empty for no team.
    """

    def __init__(self, server: Server, *, user: str, team: str = "") -> None:
        self._server = server
        self._base = f"{slot(user, team)}pace:"

    def meet(self, visit: Visit) -> Met:
        """Says one thing and hears the others, in one step.

        Raises:
            StoreError: Redis cannot be used.
        """
        line = self._base + sha256(visit.line.encode()).hexdigest()[:16]
        keys = [f"{line}:asking", f"{line}:held"]
        if visit.run:
            keys.append(f"{self._base}run:{visit.run}")
        held = min(_LONGEST, int(1000 * visit.held))
        chunk = "" if visit.chunk is None else str(visit.chunk)
        arguments = [visit.who, _LEASE if visit.asks else 0, held, visit.state, chunk, _RUN]
        asking, held, state, begun = self._script(keys, arguments)
        return Met(int(asking), int(held) / 1000, _text(state), int(begun))

    def close(self) -> None:
        """Lets go of the connection; a later meeting opens it again."""
        self._server.close()

    @cached_property
    def _script(self) -> Callable[[Any, Any], Any]:
        return self._server.script(text("pace"))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
