"""What the ledgers say, read without the library's own sums."""

from __future__ import annotations

import json
from typing import NamedTuple

from llm_magic import owner
from tests.hostile.disks import rows_of
from tests.hostile.world import USER, World
from tests.redis_counts import log

SLOT = f"llm_magic:{{user:{USER}}}:"


class Call(NamedTuple):
    """A call in a ledger.

    Attributes:
        open: Whether it is held or sent, and not settled.
        owner: The process that made it, as text.
        requests: What counts of it.
        tokens: The same in tokens.
        nanos: The same in nano-dollars.
        exact: Whether that is what the provider said; None where it is not known.
    """

    open: bool
    owner: str
    requests: int
    tokens: int
    nanos: int
    exact: bool | None = None

    @property
    def dead(self) -> bool:
        """Whether its process has ended."""
        return owner.alive(self.owner) is False


def calls(world: World, store: str) -> list[Call]:
    """All calls that count, or may still count, in a ledger."""
    return _on_disk(world) if store == "disk" else _in_redis(world)


def _on_disk(world: World) -> list[Call]:
    rows = rows_of(
        world.ledger_file,
        "SELECT state, owner, requests, tokens, nanos, input_tokens + output_tokens FROM calls"
        " WHERE state != 'void'",
    )
    return [
        Call(state in ("held", "sent"), by, *amounts, state == "done" and amounts[1] == total)
        for state, by, *amounts, total in rows
    ]


def _in_redis(world: World) -> list[Call]:
    assert world.redis is not None
    with world.redis.client() as client:
        open_ = {
            field.decode()[1:]: about.decode().split("\n", 1)[0]
            for field, about in client.hgetall(f"{SLOT}open").items()
            if field.startswith(b"c")
        }
        counted = log(client, f"{SLOT}user:{USER}:log".encode())
    found = [
        Call(id_ in open_, open_.get(id_, ""), *amounts) for id_, (_, amounts) in counted.items()
    ]
    missing = open_.keys() - counted.keys()
    return found + [Call(True, open_[id_], 0, 0, 0) for id_ in missing]


def used(world: World, store: str) -> dict[str, int]:
    """What counts in a ledger."""
    found = calls(world, store)
    return {
        "requests": sum(each.requests for each in found),
        "tokens": sum(each.tokens for each in found),
        "usd": sum(each.nanos for each in found),
    }


def shown(found: list[Call]) -> str:
    """Calls as text."""
    return json.dumps([each._asdict() for each in found], indent=1)
