"""Calls of processes that died: who shares their machine knows it, others by their lease."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llm_magic import owner as owners
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.scripts import Scripts, parts, told

if TYPE_CHECKING:
    from llm_magic.stores.redis.server import Server


def is_dead(owner: bytes) -> bool:
    """Whether a process is dead for certain, though its lease has not run out."""
    # One that is no text is nobody's; the next look tells of it.
    return owners.alive(owner.decode(errors="replace")) is False


def close_dead(server: Server, scripts: Scripts) -> int:
    """Closes the open calls of dead processes of the same person or team.

    Args:
        server: The connection.
        scripts: Those of a kernel's ledger.

    Returns:
        How many were closed.

    Raises:
        StoreError: Redis cannot be used.
    """
    # Of each is said whether that is certain: a lease may be renewed still.
    dead: dict[str, bool] = {}
    with scripts.harm():
        for each, lapsed in scripts.run("look", scopes=()):
            owner = each.decode()
            alive = owners.alive(owner)
            if alive is False or (alive is None and lapsed):
                dead[owner] = alive is False
    if not dead:
        return 0
    closed = 0
    for (owner_, names), ids in _open(server, scripts, dead).items():
        header = told(owner=owner_, dead=dead[owner_])
        with scripts.harm():
            of = Keys(**json.loads(names))
        # Also one without calls: its lease goes.
        for part in parts(ids) if ids else [()]:
            calls = [(id_,) for id_ in part]
            closed += scripts.of_calls("reap", header, calls, of=of, keys=of.usage)
    return closed


def check_open(server: Server, scripts: Scripts) -> None:
    """Looks whether all that is open can be understood by whoever would close it.

    Raises:
        StoreError: It cannot; or Redis cannot be used.
    """
    with scripts.harm():
        scripts.run("look", scopes=())
        for field, about in _everything_open(server, scripts.keys):
            kind, words = field.decode()[:1], about.decode()
            if kind == "c":
                _, names = _whose(about)
                Keys(**json.loads(names))
            elif kind == "f":
                words.index("\n")


def _open(
    server: Server, scripts: Scripts, dead: dict[str, bool]
) -> dict[tuple[str, str], list[str]]:
    """The open calls of these processes, by process and scopes."""
    keys = scripts.keys
    found: dict[tuple[str, str], list[str]] = {(each, json.dumps(keys.names)): [] for each in dead}
    with scripts.harm():
        for field, about in _everything_open(server, keys):
            if field.startswith(b"c"):
                owner, names = _whose(about)
                if owner in dead:
                    found.setdefault((owner, names), []).append(field.decode()[1:])
    return found


def _everything_open(server: Server, keys: Keys) -> Iterable[tuple[bytes, bytes]]:
    """What is open, as Redis has it: calls, and what else somebody has begun."""
    found: dict[bytes, bytes] = server.do(lambda client: client.hgetall(keys.common[0]))
    return found.items()


def _whose(about: bytes) -> tuple[str, str]:
    """The process and the scopes of an open call."""
    owner, names, _ = about.decode().split("\n", 2)
    return owner, names
