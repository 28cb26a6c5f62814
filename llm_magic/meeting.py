"""Who else asks the same server: its rate is divided, and a pause that it asked of one is all's.

While rows are asked, every process meets the others once a second in the shared store. Without one
it has nobody to meet.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from llm_magic.errors import StoreError
from llm_magic.gate import Gate

EVERY = 1.0
"""Seconds between two meetings."""
GOING, STOPPED = "going", "stopped"
"""How a run over rows on several workers stands; empty where nobody knows of it."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What a process says when it meets the others.

    Attributes:
        who: Its name, which nobody else has.
        line: The server and the model that it asks.
        asks: Whether it asks them itself; not where it has others ask.
        held: Seconds for which the server told it to wait.
        run: The run over rows that it belongs to; empty for none.
        state: How that run stands now, where it is to be said.
        chunk: The part of that run that it begins; None for none.
    """

    who: str
    line: str
    asks: bool = True
    held: float = 0.0
    run: str = ""
    state: str = ""
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Met:
    """What it hears there.

    Attributes:
        asking: Living processes that ask the same, itself among them if it does.
        held: Seconds for which the server told somebody to wait.
        state: How the run stands.
        begun: How often the part of the run has been begun, now included.
    """

    asking: int = 1
    held: float = 0.0
    state: str = ""
    begun: int = 0


class Pace(Protocol):
    """Where processes meet."""

    def meet(self, visit: Visit) -> Met:
        """Says one thing and hears the others.

        Raises:
            StoreError: They cannot be heard now.
        """

    def close(self) -> None:
        """Lets go of the connection; a later meeting opens it again."""


class Meeting:
    """One run's place among those who ask the same server.

    Args:
        pace: Where they meet.
        visit: What is said each time.
        gate: Where the run's requests wait for their turn; None where others ask.
    """

    def __init__(self, pace: Pace, visit: Visit, gate: Gate | None) -> None:
        self._pace, self._visit, self._gate = pace, visit, gate

    async def once(self, *, state: str = "", chunk: int | None = None) -> Met | None:
        """Meets the others; None where the store does not answer, and all stays as it was."""
        gate, visit = self._gate, self._visit
        said = Visit(
            visit.who,
            visit.line,
            visit.asks,
            gate.told_to_wait if gate else 0.0,
            visit.run,
            state,
            chunk,
        )
        try:
            met = await asyncio.to_thread(self._pace.meet, said)
        except StoreError:
            # A request that must not go is held up by the ledger, which says so.
            return None
        if gate:
            gate.share = met.asking
            if met.held > 0:
                gate.hold(met.held)
        return met
