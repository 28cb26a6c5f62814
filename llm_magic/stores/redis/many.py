"""Many commands in one round trip, to one server or to those of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def in_one_go(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Runs commands about one key each in one round trip, or in one to each server of a Cluster.

    Args:
        client: The library's.
        commands: Command, key, and further words.
    """
    if len(commands) == 1:
        return [client.execute_command(*commands[0])]
    if not hasattr(client, "get_primaries"):
        return _raised(_pipelined(client, commands))
    # The library's own pipeline for a Cluster would, where a server is frozen, wait for it with
    # each command anew.
    places: dict[str, list[int]] = {}
    nodes: dict[str, Any] = {}
    for place, command in enumerate(commands):
        node = client.get_node_from_key(command[1])
        nodes[node.name] = node
        places.setdefault(node.name, []).append(place)
    done: list[Any] = [None] * len(commands)
    for name, node in nodes.items():
        there = client.get_redis_connection(node)
        answers = _pipelined(there, [commands[place] for place in places[name]])
        for place, answer in zip(places[name], answers, strict=True):
            again = _is_elsewhere(answer)
            done[place] = client.execute_command(*commands[place]) if again else answer
    return _raised(done)


def _is_elsewhere(answer: Any) -> bool:
    """Whether a server says that another one has the key: MOVED, or ASK."""
    return isinstance(answer, Exception) and "AskError" in {
        each.__name__ for each in type(answer).__mro__
    }


def _pipelined(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        # Not raised there: it would put the command's words, a part of an answer, into the error.
        done: list[Any] = pipe.execute(raise_on_error=False)
    return done


def _raised(done: list[Any]) -> list[Any]:
    for each in done:
        if isinstance(each, Exception):
            raise each
    return done


def primaries(client: Any) -> list[Any]:
    """The clients of the servers that hold keys: one, or those of a Cluster."""
    if not hasattr(client, "get_primaries"):
        return [client]
    return [client.get_redis_connection(node) for node in client.get_primaries()]
