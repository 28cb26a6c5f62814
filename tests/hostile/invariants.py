"""What must hold after every step, whatever happened in it: one function for each."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_magic import entries, errors
from tests.hostile import ledgers
from tests.hostile.disks import rows_of
from tests.hostile.kernels import Worker
from tests.hostile.provider import JSON, answer, answer_to
from tests.hostile.schedule import Step
from tests.hostile.world import MARKERS, Broken, Kept, Result, World
from tests.redis_servers import wait_until

PATIENCE = 60.0
_LIMITS = {"QuotaExceeded", "StoreError", "ReplayMissing", "PromptError"}
PROVIDER = {
    name
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, errors.LLMError)
} - _LIMITS - {"LLMError"}  # fmt: skip
STOPS = {"Interrupted", "KeyboardInterrupt", "CancelledError"}


# 1. No answer is lost or wrong


def answers_are_right(world: World, step: Step, results: list[Result]) -> None:
    """What was given is the one right answer; and it was given where nothing was in the way."""
    for result in results:
        for asked in result.asked:
            if asked.got is None:
                if step.calm:
                    raise Broken("answers", f"none to {asked.prompt!r}: {result.errors}")
            elif asked.got not in _expected(world, asked):
                raise Broken("answers", f"{asked.got!r} to {asked.prompt!r} of {asked.model}")


def _expected(world: World, asked: Any) -> list[Any]:
    if not asked.chat:
        text = answer_to(asked.prompt, asked.model)
        return [json.loads(text) if JSON in asked.prompt else text]
    bodies = [each.received.body for each in world.provider.served]
    return [
        answer(body["model"], body["messages"])
        for body in bodies
        if body["messages"][-1]["content"] == asked.prompt
    ]


def errors_are_ours(step: Step, results: list[Result]) -> None:
    """A cell fails with an error that says what was in the way, and with no other."""
    may = set[str]()
    if step.plans or step.fault in ("down", "down_for_a_while"):
        may |= PROVIDER
    if step.limit:
        may.add("QuotaExceeded")
    if step.stop == "interrupt":
        may |= STOPS
    if step.fault and not step.fault.startswith(("clock", "down")):
        may.add("StoreError")
    if step.use == "cassette" and not step.calm:
        may |= {"ReplayMissing", "StoreError"}
    for result in results:
        for name, words in result.errors:
            if name not in may:
                raise Broken("errors", f"{name} in {result.life}: {words}")


def conversations_are_whole(world: World, since: int) -> None:
    """No request has a turn in it that is not the whole right answer to those before."""
    for each in world.served(since=since):
        messages = each.received.body["messages"]
        if any(JSON in str(message["content"]) for message in messages):
            continue
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                right = answer(each.received.body["model"], messages[:place])
                if message["content"] != right:
                    raise Broken("answers", f"a turn of a conversation: {message['content']!r}")


def cache_is_right(world: World) -> None:
    """Every row can be read and is the right answer; what was given whole is there."""
    for store, kept in world.kept.items():
        end = time.monotonic() + PATIENCE
        while lost := _not_there(world, store):
            for key in [key for key in lost if _died_with(world, kept[key])]:
                del kept[key]
                lost.remove(key)
            # Unless a warning said that they wait.
            late = all(not kept[key].seen and kept[key].life in world.warned for key in lost)
            if not late or time.monotonic() > end:
                raise Broken("cache", f"answers are lost in {store}: {sorted(lost)[:5]}")
            # What waits in memory is written with an answer that comes later.
            for life in {kept[key].life for key in lost}:
                next_cell_works(world, world.workers[life[0]])


def _died_with(world: World, kept: Kept) -> bool:
    """Whether an answer was in the memory of a kernel that is dead, as a warning had said."""
    dead = world.workers[kept.life[0]].life != kept.life
    return dead and not kept.seen and kept.life in world.warned


def _not_there(world: World, store: str) -> list[tuple[str, str]]:
    there = set()
    for key, row in _rows(world, store):
        told = entries.describe(key, row)
        if told is None:
            if store == "disk" and world.damaged:
                continue
            raise Broken("cache", f"a row of {store} cannot be read: {key}")
        request, entry = told
        body = request["body"]
        right, got = answer(body["model"], body["messages"]), entry.text
        if got != right:
            raise Broken("cache", f"{got!r} is kept in {store} for {body['messages']}")
        there.add((body["model"], body["messages"][-1]["content"]))
    kept = world.kept[store]
    for key in there & kept.keys():
        kept[key].seen = True
    return sorted(kept.keys() - there)


def _rows(world: World, store: str) -> Iterator[tuple[str, bytes]]:
    file = world.cache_file if store == "disk" else world.folder / "team-cache/cache.db"
    try:
        yield from rows_of(file, "SELECT key, value FROM Cache WHERE raw = 1")
    except sqlite3.DatabaseError:
        if not world.damaged:
            raise
    if store == "team" and world.redis is not None:
        with world.redis.client() as client:
            for key in client.scan_iter("llm_magic:cache:*", 1000):
                if (row := client.get(key)) is not None:
                    yield key.decode().rsplit(":", 1)[-1], row


def keep(world: World, step: Step, results: list[Result]) -> None:
    """Takes down which answers must be in a cache from now on.

    One that was given while the cache failed may be in memory alone, if a warning said so.
    """
    if step.fault in ("corrupt_cache", "delete_cache", "read_only"):
        return
    for result in results:
        for asked in result.asked:
            if asked.got is not None and asked.kept:
                key = asked.model, asked.prompt
                world.kept[world.store_of(result.life)].setdefault(
                    key, Kept(result.life, not asked.chat)
                )


def asked_once(world: World, step: Step, since: int) -> None:
    """Two kernels that ask the same at the same time pay once."""
    if step.use == "both" and step.calm:
        served = world.served(since=since)
        if len(served) != 1:
            raise Broken("answers", f"two kernels asked the same {len(served)} times")


# 2. No limit is passed


def limits_hold(world: World) -> None:
    """What the provider counted since a limit was set fits into what was left of it."""
    if world.limited is None:
        return
    metric, room, served = world.limited
    world.limited = None
    counted = [each for each in served if each.weight != "nothing"]
    came = {
        "requests": len(counted),
        "tokens": sum(sum(each.tokens) for each in counted),
        "usd": sum(each.nanos for each in counted),
    }[metric]
    if came > room:
        raise Broken("limits", f"{room} {metric} were left, and the provider counted {came}")


def ledgers_are_true(world: World) -> None:
    """The ledger has no less than the provider counted, and more only of what nobody knows."""
    for store in world.kept:
        if store == "team" and world.redis is None:
            continue
        served = world.served(store)
        counted = [each for each in served if each.weight == "whole" or _began(each)]
        found = ledgers.calls(world, store)
        booked = sum(each.requests for each in found)
        if booked < len(counted):
            raise Broken("ledger", f"{store}: {booked} booked of {len(counted)} requests")
        most = sum(each.weight != "nothing" for each in served) + world.stopped[store]
        if booked > most:
            raise Broken("ledger", f"{store}: {booked} booked of {most} requests at most")
        tokens = sum(each.tokens for each in found)
        least = sum(sum(each.tokens) for each in counted if each.reply.usage != "every_chunk")
        if tokens < least:
            raise Broken("ledger", f"{store}: {tokens} tokens booked of {least}")
        nanos = sum(each.nanos for each in found)
        least = sum(each.nanos for each in counted if each.reply.usage != "every_chunk")
        if nanos < least:
            raise Broken("ledger", f"{store}: {nanos} nano-dollars booked of {least}")
        exact = sum(each.tokens for each in found if each.exact)
        most = sum(sum(each.tokens) for each in served if each.weight != "nothing")
        if exact > most:
            raise Broken("ledger", f"{store}: {exact} tokens counted of {most}")


def _began(each: Any) -> bool:
    return each.weight == "unclear" and each.began


# 3. No hold is left


def nothing_is_held(world: World) -> None:
    """Once all is idle no call is open; those of dead kernels go when another one asks."""
    for store in world.kept:
        if store == "team" and world.redis is None:
            continue
        end = time.monotonic() + PATIENCE
        while open_ := [each for each in ledgers.calls(world, store) if each.open]:
            if time.monotonic() > end:
                raise Broken("holds", f"{store}: {ledgers.shown(open_)}")
            if any(each.dead for each in open_):
                for each in world.workers.values():
                    if world.store_of(each.name) == store:
                        next_cell_works(world, each)
            time.sleep(0.02)


# 4. No key is seen


def no_secret_is_seen(world: World) -> None:
    """Neither the key nor the password is in a message, a file, a log or in Redis."""
    if world.leaks:
        raise Broken("secrets", world.leaks[0])
    for file in _files(world):
        for marker in MARKERS:
            if marker.encode() in _bytes(file):
                raise Broken("secrets", f"{marker} in {file}")
    for store in world.kept:
        for key, row in _rows(world, store):
            told = entries.describe(key, row)
            if told and any(marker in str(told) for marker in MARKERS):
                raise Broken("secrets", f"in the row {key} of {store}")
    if world.redis is not None:
        with world.redis.client() as client:
            for key in client.scan_iter(count=1000):
                dump = key + (client.dump(key) or b"")
                if any(marker.encode() in dump for marker in MARKERS):
                    raise Broken("secrets", f"in {key!r} of Redis")


def _files(world: World) -> Iterator[Path]:
    for each in world.folder.rglob("*"):
        if each.is_file() and each.name not in ("filling", "clock"):
            yield each


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


# 5. Nothing grows


# A cache has a connection for each thread that reads, of which asyncio makes some as it likes.
_FILES = [f"{name}.db{side}" for name in ("cache", "ledger") for side in ("", "-wal", "-shm")]
# A thread that read a cache which another kernel has set aside reads on in it until it next looks
# something up: one connection for each thread, however often that happens.
_OLD = [f"{name} (deleted)" for name in _FILES]
# A thread that shows something has a ZeroMQ socket of ipykernel's, with a descriptor of its own;
# which threads of asyncio's pool do so is chance.
_SHOWS = {"anon_inode": 8}
SLACK = {"socket": 4, "threads": 1, **_SHOWS, **dict.fromkeys([*_FILES, *_OLD], 8)}
"""What comes and goes: connections that are kept for a while, a file that is opened anew."""
# aiohttp looks every 15 s, in whole seconds, which connections were idle for 15 s: one that a run
# over rows has left is closed after 32 s at the latest.
IDLE = 40.0
"""Seconds after which what nobody uses is gone."""


def nothing_grows(worker: Worker) -> None:
    """Threads, descriptors, widgets and tasks are no more than after the first cells."""
    worker.calm()
    now = worker.value("held()")
    if worker.baseline is None:
        worker.baseline = now
        return
    more = _more(worker, now)
    end = time.monotonic() + IDLE
    while more and time.monotonic() < end:
        time.sleep(0.2)
        more = _more(worker, worker.value("held()"))
    if more:
        raise Broken("growth", f"{worker.life}: {more}, at first {worker.baseline}")


def _more(worker: Worker, now: dict[str, int]) -> dict[str, int]:
    before = worker.baseline or {}
    return {
        name: count
        for name, count in now.items()
        if count > before.get(name, 0) + SLACK.get(name, 0)
    }


def memory(pid: int) -> float:
    """MB that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


# 6. The kernel lives, and the next cell works


def next_cell_works(world: World, worker: Worker, *, patience: float = PATIENCE) -> None:
    """A plain cell gets the right answer once all is well again, and its copy asks nobody."""
    world.asked_next += 1
    prompt = f"Question q-next-{world.asked_next}"
    end = time.monotonic() + patience
    while True:
        worker.calm()
        shown = worker.run(f"%%llm after <<\n{prompt}")
        failed = shown.of("error")
        if not failed:
            break
        if failed[0]["ename"] != "StoreError" or time.monotonic() > end:
            raise Broken("next cell", f"{worker.life}: {failed[0]['ename']} {failed[0]['evalue']}")
        time.sleep(0.1)
    got = worker.probed("after").get("after")
    if got != answer_to(prompt):
        raise Broken("next cell", f"{worker.life}: {got} to {prompt!r}")
    before = len(world.provider.served)
    shown = worker.run(f"%%llm after <<\n{prompt}")
    got = worker.probed("after").get("after")
    if shown.of("error") or got != answer_to(prompt):
        raise Broken("next cell", f"{worker.life}: the kept answer is {got} {shown.of('error')}")
    if len(world.provider.served) > before:
        raise Broken("next cell", f"{worker.life}: a kept answer was asked for again")


def provider_is_idle(world: World) -> None:
    """Every request has come to an end, on both sides."""
    first = max(world.provider.downs, default=0.0)
    try:
        wait_until(
            lambda: all(each.over or each.at < first for each in world.provider.served), 20.0
        )
    except TimeoutError:
        left = [each.plan for each in world.provider.served if not each.over]
        raise Broken("answers", f"requests that nobody waits for go on: {left}") from None
