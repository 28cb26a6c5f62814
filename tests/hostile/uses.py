"""Ordinary use: the cells that people run, and what came of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.conftest import Shown
from tests.hostile.kernels import Died, Worker
from tests.hostile.provider import JSON, MODELS
from tests.hostile.schedule import Step
from tests.hostile.world import Asked, Result, World


class Desk:
    """One kernel's part of a step.

    Args:
        world: Where.
        worker: The kernel.
        step: What it is to do.
    """

    def __init__(self, world: World, worker: Worker, step: Step) -> None:
        self.world, self.worker, self.step = world, worker, step
        self.dice = random.Random(f"{step.seed} uses")
        self.result = Result(worker.life)
        self.name = f"v{step.number}"

    def run(self) -> Result:
        """Does it."""
        try:
            DO[self.step.use](self)
        except Died:
            self.result.died = True
        return self.result

    def cell(self, source: str) -> Shown:
        """Runs a cell and takes down its errors."""
        shown = self.worker.run(source)
        self.note(shown)
        return shown

    def note(self, shown: Shown) -> None:
        for each in shown.of("error"):
            self.result.errors.append((each["ename"], f"{each['evalue']} {each['traceback']}"))
        self.result.shown += str([content for kind, content in shown.messages])

    def prompt(self, number: int = 0, *, json: bool = False) -> str:
        """A question that nobody has asked before."""
        return f"Question q-{self.step.number}-{number}{f' {JSON}' if json else ''}"

    def ask(self, prompt: str, **about: Any) -> Asked:
        """Takes down that a question is asked."""
        asked = Asked(prompt, **about)
        self.result.asked.append(asked)
        return asked

    def value(self, *names: str) -> dict[str, Any]:
        """Values of names, once no interrupt is on its way."""
        self.worker.calm()
        return self.worker.probed(*names)

    def simple(self, options: str = "", *, json: bool = False, **about: Any) -> None:
        """One question whose answer is bound."""
        asked = self.ask(self.prompt(json=json), **about)
        self.cell(f"%%llm {self.name} << {options}\n{asked.prompt}")
        self.take(asked)

    def take(self, asked: Asked, name: str = "") -> None:
        """Looks what a name has."""
        name = name or self.name
        found = self.value(name).get(name)
        asked.got = _text(found)


def _text(found: Any) -> Any:
    return found["text"] if isinstance(found, dict) and "finish" in found else found


def quiet(desk: Desk) -> None:
    desk.simple("--quiet")


def whole(desk: Desk) -> None:
    desk.simple("--no-stream")


def schema(desk: Desk) -> None:
    desk.simple("--schema Item", json=True)


def chat(desk: Desk) -> None:
    if desk.dice.random() < 0.2:
        desk.cell("%llm_chat reset talk")
    desk.simple("-c talk", chat=True)


def no_cache(desk: Desk) -> None:
    desk.simple("--no-cache", kept=False)


def in_background(desk: Desk) -> None:
    name, asked = desk.name, desk.ask(desk.prompt())
    desk.cell(f"%%llm {name}p << --bg\n{asked.prompt}")
    desk.cell("1 + 1")
    # An interrupt may come before there is anything to wait for.
    wait = f"{name} = {name}p.result() if '{name}p' in globals() else None"
    desk.cell(wait)
    if desk.step.stop:
        desk.worker.calm()
        # An interrupt while it is waited for has ended it; one before has not.
        desk.cell(wait)
    desk.take(asked)
    desk.worker.surely(f"forget('{name}p')")


def compare(desk: Desk) -> None:
    prompt = desk.prompt()
    asked = [desk.ask(prompt, model=model) for model in MODELS]
    desk.cell(f"%%llm {desk.name} << --compare {','.join(MODELS)}\n{prompt}")
    found = desk.value(desk.name).get(desk.name)
    for each in asked:
        each.got = _text((found or {}).get(each.model))


def rows(desk: Desk, options: str = "", *, json: bool = False) -> None:
    count = desk.dice.choice([5, 8, 12, 30])
    asked = [desk.ask(desk.prompt(number, json=json)) for number in range(count)]
    numbers = [*range(count), *([0] if desk.dice.random() < 0.5 else [])]
    name = desk.name
    made = desk.cell(f"{name}t = [dict(q=f'q-{desk.step.number}-{{n}}') for n in {numbers}]")
    if made.of("error"):
        # An interrupt at the start: there is no table to go over.
        return
    form = f" {JSON}" if json else ""
    desk.cell(f"%%llm_map {name}t {name} << {options}\nQuestion {{{{ q }}}}{form}")
    found = desk.value(name, f"{name}t").get(name) or []
    for number, row in zip(numbers, found, strict=False):
        if row["_error"] is None:
            answer = {each: row[each] for each in ("name", "people")} if json else row["answer"]
            asked[number].got = answer
        elif desk.step.calm:
            desk.result.errors.append(("Row", row["_error"]))


def typed_rows(desk: Desk) -> None:
    rows(desk, "--schema Item", json=True)


def from_python(desk: Desk, call: str = "llm_magic.ask") -> None:
    asked = desk.ask(desk.prompt())
    desk.cell(f"{desk.name} = {call}({asked.prompt!r})")
    desk.take(asked)


def from_coroutine(desk: Desk) -> None:
    from_python(desk, "await llm_magic.aask")


def again(desk: Desk) -> None:
    """What was answered before; without a request, if nothing befell the cache since."""
    store = desk.world.store_of(desk.worker.name)
    known = [
        prompt
        for (model, prompt), kept in desk.world.kept[store].items()
        if model == MODELS[0] and kept.alone and kept.seen and JSON not in prompt
    ]
    if not known:
        desk.simple()
        return
    asked = desk.ask(desk.dice.choice(known))
    before = len(desk.world.provider.served)
    desk.cell(f"%%llm {desk.name} <<\n{asked.prompt}")
    desk.take(asked)
    if asked.got is not None and len(desk.world.provider.served) > before and not desk.step.fault:
        desk.result.errors.append(("Asked", "a kept answer was asked for again"))


def look(desk: Desk) -> None:
    for line in ("%llm_usage", "%llm_usage --by cell", "%llm_quota", "%llm_cache", "%llm_models"):
        desk.cell(line)
    desk.cell("%llm_cache list")


def cassette(desk: Desk) -> None:
    """Recorded, and replayed without a request."""
    asked = desk.ask(desk.prompt(), kept=False)
    desk.cell("%llm_cassette tape.jsonl --record")
    desk.cell(f"%%llm {desk.name} <<\n{asked.prompt}")
    desk.take(asked)
    replays = not desk.cell("%llm_cassette tape.jsonl --replay").of("error")
    before = len(desk.world.provider.served)
    desk.cell(f"%%llm {desk.name} <<\n{asked.prompt}")
    replayed = desk.ask(asked.prompt, kept=False)
    desk.take(replayed)
    desk.cell(f"try:\n    llm_magic.ask({desk.prompt(1)!r})\nexcept ReplayMissing: pass")
    desk.worker.surely("%llm_cassette off")
    if len(desk.world.provider.served) > before and replays and not desk.step.stop:
        desk.result.errors.append(("Asked", "a replay asked the server"))


DO: dict[str, Callable[[Desk], None]] = {
    "cell": Desk.simple,
    "quiet": quiet,
    "whole": whole,
    "schema": schema,
    "chat": chat,
    "bg": in_background,
    "compare": compare,
    "map": rows,
    "map_schema": typed_rows,
    "ask": from_python,
    "aask": from_coroutine,
    "again": again,
    "both": Desk.simple,
    "look": look,
    "cassette": cassette,
    "nocache": no_cache,
}
