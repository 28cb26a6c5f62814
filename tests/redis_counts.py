"""What the ledger keeps in Redis, read for tests: sums, logs and calls."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

DAY = 86_400_000


class Sum(NamedTuple):
    """A running sum.

    Attributes:
        floor: The moment, in microseconds, after which calls are in it.
        amounts: Requests, tokens, nano-dollars.
    """

    floor: int
    amounts: tuple[int, int, int]


def sums(client: Any, key: bytes) -> dict[int, Sum]:
    """The sums of a scope by the length of their window in microseconds; 0 is without end."""
    stored = client.get(key) or b""
    numbers = [int(each) for each in struct.unpack(f"<{len(stored) // 8}d", stored)]
    first = 6 + 3 * numbers[5] if numbers else 0
    found = {}
    for place in range(first, len(numbers), 7):
        length, one, two, three, floor, _, _ = numbers[place : place + 7]
        found[length] = Sum(floor, (one, two, three))
    return found


def log(client: Any, key: bytes) -> dict[str, tuple[int, tuple[int, int, int]]]:
    """The log of a scope: moment and amounts by the calls' ids."""
    found = {}
    for entry, moment in client.zrange(key, 0, -1, withscores=True):
        one, two, three, id_ = entry.decode().split(" ", 3)
        found[id_] = int(moment), (int(one), int(two), int(three))
    return found


def state(client: Any, key: bytes) -> str:
    """The state of a call; all of them have four letters."""
    return str(client.get(key)[2:6].decode())


def assert_sums_are_true(client: Any) -> int:
    """Each sum is what the log comes to that was there; gives how many there are."""
    count = 0
    for key in client.scan_iter("llm_magic:*:sums", 1000):
        entries = log(client, key[: -len("sums")] + b"log").values()
        for found in sums(client, key).values():
            anew = [amounts for moment, amounts in entries if moment > found.floor]
            assert found.amounts == tuple(map(sum, zip((0, 0, 0), *anew, strict=True))), key
            count += 1
    return count


def assert_keys_are_in_order(client: Any) -> None:
    """Every key has an expiry, and the keys of one person or team lie in one slot."""
    for key in client.scan_iter(count=1000):
        assert key.startswith((b"llm_magic:{user:", b"llm_magic:{team:")), key
        assert 0 < client.pttl(key) <= 400 * DAY or not client.exists(key), key
