"""Looking at and changing what is kept and what may be spent: for the magics and for Python."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from llm_magic import limits, sharing
from llm_magic.cassette import Cassette
from llm_magic.desk import Desk
from llm_magic.entries import Row, describe
from llm_magic.errors import PromptError, StoreError
from llm_magic.frames import pandas
from llm_magic.ledger import Ledger, Limit, Line, Metric, Scope, dollars, nanos, summed
from llm_magic.types import text_of
from llm_magic.units import ago, seconds, size, span, usd
from llm_magic.views.tables import Table, bar

By = Literal["model", "day", "cell"]
_LISTED = 20
_UNUSED = 30 * 86_400.0
_SHOWN_CHARACTERS = 60


def limit(
    desk: Desk,
    *,
    requests: int | str | None = None,
    tokens: int | str | None = None,
    usd: float | Decimal | str | None = None,
    per: float | str | None = None,
    scope: Scope = "kernel",
    reset: bool = False,
) -> Table:
    """Sets limits, and shows where they stand.

    Raises:
        PromptError: A number or a span of time is none; or there is no team.
        StoreError: The ledger cannot be written.
    """
    if scope not in ("kernel", "user", "team"):
        raise PromptError(
            f"scope={scope!r} is nobody's; nothing was changed.",
            fix='Name one of: scope="kernel", scope="user", scope="team"',
        )
    if scope == "team":
        sharing.need_team(desk.settings, "A limit per team", "changed")
    given: dict[Metric, Any] = {"requests": requests, "tokens": tokens, "usd": usd}
    wanted = {name: _cap(name, cap) for name, cap in given.items() if cap is not None}
    window = _window(desk, per, scope)
    if reset:
        _reset(desk, scope)
    for name, cap in wanted.items():
        if scope == "kernel":
            desk.changed[name] = cap, window
        else:
            desk.now(_limit_shared, desk.quota.ledger, scope, name, cap, window)
    return standing(desk)


def _limit_shared(
    ledger: Ledger, scope: Scope, metric: Metric, cap: int | None, window: float | None
) -> None:
    """Sets a limit beside those of other windows; without a cap, takes them all away."""
    if cap is not None:
        ledger.limit_shared(scope, metric, cap, window)
        return
    for each in ledger.shared_limits():
        if (each.scope, each.metric) == (scope, metric):
            ledger.limit_shared(scope, metric, None, each.window)


def _cap(metric: Metric, text: Any) -> int | None:
    if str(text).lower() in ("none", "off"):
        return None
    try:
        number = Decimal(str(text).removeprefix("$").replace("_", ""))
        if not number.is_finite() or number < 0 or (metric != "usd" and number % 1):
            raise ValueError
    except (ArithmeticError, ValueError):
        raise PromptError(
            f"--{metric} {text} is no limit; nothing was changed.",
            fix=f"Write a number, or take the limit away: %llm_quota --{metric} none",
        ) from None
    return nanos(number) if metric == "usd" else int(number)


def _window(desk: Desk, per: float | str | None, scope: Scope) -> float | None:
    text = per if per is not None else (desk.settings.quota_window if scope == "kernel" else "1d")
    if text in ("kernel", "session"):
        if scope != "kernel":
            whose = "you over all kernels" if scope == "user" else "the team"
            raise PromptError(
                f"A limit for {whose} cannot be per kernel; nothing was changed.",
                fix=f"Name a time: %llm_quota --scope {scope} --per 1d ...",
            )
        return None
    try:
        return limits.window(text)
    except ValueError as error:
        raise PromptError(f"--per: {error}; nothing was changed.") from None


def _reset(desk: Desk, scope: Scope) -> None:
    try:
        desk.now(desk.quota.ledger.forgive, scope)
    except StoreError as error:
        # A damaged file is the other reason to start anew; one that is only locked is not.
        if not error.damaged:
            raise
        desk.now(desk.quota.ledger.reset_file)
        desk.now(desk.quota.ledger.forgive, scope)


def standing(desk: Desk) -> Table:
    """Every limit, and what counts against it now.

    Raises:
        PromptError: A team's limit has no server.
        StoreError: The ledger cannot be read.
    """
    sharing.check(desk.settings)
    quota = desk.quota
    lines = desk.now(quota.ledger.standing, desk.limits())
    quota.in_usd = any(limit.metric == "usd" for limit, _ in lines)
    rows = [_standing_row(desk, *line) for line in lines]
    note = "" if rows else "No limit is set. Set one: %llm_quota --usd 2 --per 1d"
    return Table(("limit", "whose", " used", " of", " left", ""), rows, note=note)


def _standing_row(desk: Desk, limit: Limit, used: int) -> tuple[str, ...]:
    name = limit.metric.upper() if limit.metric == "usd" else limit.metric
    when = f"in {span(limit.window)}" if limit.window else "since the kernel started"
    numbers = (used, limit.cap, max(0, limit.cap - used))
    texts = [usd(dollars(n)) if limit.metric == "usd" else f"{n:,}" for n in numbers]
    return f"{name} {when}", _whose(desk, limit.scope), *texts, bar(used, limit.cap)


def _whose(desk: Desk, scope: Scope) -> str:
    match scope:
        case "kernel":
            return "this kernel"
        case "team":
            return f"team {desk.settings.team}"
        case "run":
            return "this run"
        case _:
            return f"you as {desk.user}, all kernels"


def lines(desk: Desk, by: By) -> list[Line]:
    """What was spent and saved, by model, day or cell.

    Raises:
        StoreError: The ledger cannot be read.
    """
    quota = desk.quota
    found: list[Line] = desk.now(lambda: quota.ledger.usage(by))
    return found


def usage(desk: Desk, by: By = "model") -> Table:
    """What was spent, what was saved, and what is left of each limit.

    Raises:
        StoreError: The ledger cannot be read.
    """
    found = lines(desk, by)
    rows = [_usage_row(line) for line in found]
    if found:
        rows.append(_usage_row(summed(found)))
    columns = (by, " requests", " tokens in", " out", " spent", " free answers", " saved")
    notes = [] if rows else ["Nothing was asked yet."]
    if any(line.unpriced for line in found):
        notes.append(
            "+ and requests whose price is not known. Say it: %config LLMMagic.prices = "
            '{"model": {"input": 1, "output": 2}}'
        )
    for limit, whose, used, cap, _, share in standing(desk).rows:
        notes.append(f"{share}  {limit} ({whose}): {used} of {cap}")
    return Table(columns, rows, note="\n".join(notes), total=True)


def _usage_row(line: Line) -> tuple[str, ...]:
    spent = usd(dollars(line.nanos)) + (" +" if line.unpriced else "")
    cached = f" ({line.cached_tokens:,} cached)" if line.cached_tokens else ""
    counts = (f"{line.requests:,}", f"{line.input_tokens:,}{cached}", f"{line.output_tokens:,}")
    return line.name, *counts, spent, f"{line.hits:,}", usd(dollars(line.saved_nanos))


def usage_frame(desk: Desk, by: By = "model") -> Any:
    """The same as a pandas frame, money in USD as floats.

    Raises:
        StoreError: The ledger cannot be read.
        ImportError: pandas is not installed.
    """
    pd = pandas()
    columns = [name for name in Line.__slots__ if name != "name"]
    found = lines(desk, by)
    frame = pd.DataFrame(
        [[getattr(line, name) for name in columns] for line in found],
        columns=columns,
        index=pd.Index([line.name for line in found], name=by, dtype=object),
    )
    for old, new in (("nanos", "usd"), ("saved_nanos", "saved_usd")):
        frame[old] = frame[old].astype(float) / 1e9
        frame = frame.rename(columns={old: new})
    return frame


class CacheControl:
    """The cache of answers, from Python: ``llm_magic.cache()``."""

    def __init__(self, desk: Desk) -> None:
        sharing.check(desk.settings)
        self._desk = desk

    def __repr__(self) -> str:
        return repr(self.stats())

    def _repr_html_(self) -> str:
        return self.stats()._repr_html_()

    def stats(self) -> Table:
        """How much is kept, and where."""
        held, settings = self._desk.cache.size(), self._desk.settings
        # A server need not have a limit; on disk, 0 is one.
        limited = held.limit or settings.store == "disk" or not settings.cache_size
        limit = (size(held.limit), bar(held.bytes, held.limit)) if limited else ("none", "")
        row = (f"{held.entries:,}", size(held.bytes), *limit, held.place)
        return Table((" answers", " size", " limit", "", "place"), [row])

    def list(self, count: int = _LISTED) -> Table:
        """The answers used last.

        Args:
            count: How many of them.
        """
        rows = [row for each in self._desk.cache.rows(count) if (row := _listed(each))]
        note = "" if rows else "Nothing is kept yet."
        return Table(("prompt", "model", " tokens", " cost", " came", " used"), rows, note=note)

    def clear(self) -> Table:
        """Forgets every answer; those of the team where it shares them."""
        return self._removed(self._desk.cache.drop())

    def prune(self, unused: float | str = _UNUSED) -> Table:
        """Forgets the answers that were not used for long.

        Args:
            unused: Seconds, or a span such as ``"30d"``.

        Raises:
            PromptError: It is no span of time.
        """
        try:
            length = seconds(unused)
        except ValueError as error:
            raise PromptError(f"{error}; nothing was removed.") from None
        return self._removed(self._desk.cache.drop(time.time() - length))

    def _removed(self, count: int) -> Table:
        settings = self._desk.settings
        whose = f" of team {settings.team}" if settings.store_scope == "team" else ""
        return Table((), (), note=f"{_answers(count)}{whose} removed.")


def _listed(row: Row) -> tuple[str, ...] | None:
    found = describe(row.key, row.value)
    if found is None:
        return None
    request, entry = found
    now = time.time()
    return (
        prompt_line(request["body"]),
        entry.model,
        f"{entry.usage.total_tokens:,}",
        usd(entry.cost),
        ago(now - entry.time),
        ago(now - row.used),
    )


def prompt_line(body: Mapping[str, Any]) -> str:
    """The first words of the last message."""
    words = " ".join(text_of(body["messages"][-1]).split())
    cut = _SHOWN_CHARACTERS
    return words if len(words) <= cut else words[: cut - 1] + "…"


def put_in(desk: Desk, file: str, *, record: bool = False, replay: bool = False) -> None:
    """Puts a cassette in: answers come from it and are recorded to it.

    Args:
        desk: The kernel's.
        file: Its path; made when the first answer is recorded.
        record: Take answers down, and do not answer from it.
        replay: Answer from it alone; nothing is asked.

    Raises:
        StoreError: It cannot be read; or it is to be replayed and is not there.
    """
    path = Path(file).expanduser()
    replaying = replay or desk.settings.mode == "replay"
    if replaying and not path.exists():
        raise StoreError(
            f"There is no cassette {file} to replay.",
            fix=f'Record it: %config LLMMagic.mode = "live", then %llm_cassette {file} and Run All',
        )
    cassette = Cassette(path)
    cassette.status()
    desk.cassette, desk.records, desk.replays = cassette, record, replay


def cassette_status(desk: Desk) -> Table:
    """The recorded answers, and which of them this run has not used."""
    if desk.cassette is None:
        return Table((), (), note="No cassette is in. Put one in: %llm_cassette answers.jsonl")
    rows = [
        (each.prompt, each.model, "used" if each.used else "stale")
        for each in desk.cassette.status()
    ]
    stale = sum(row[2] == "stale" for row in rows)
    note = f"{_answers(len(rows))} recorded, {stale} not used since the cassette was put in."
    if stale:
        note += " Drop those after a Run All: %llm_cassette prune"
    return Table(("prompt", "model", "in this run"), rows, note=note)


def cassette_prune(desk: Desk) -> Table:
    """Drops the recorded answers that this run has not used."""
    if desk.cassette is None:
        return cassette_status(desk)
    recorded = desk.cassette.status()
    if recorded and not any(each.used for each in recorded):
        raise PromptError(
            f"This run has used none of the {_answers(len(recorded))}; nothing was dropped.",
            fix="Run all cells first, then: %llm_cassette prune",
        )
    return Table((), (), note=f"{_answers(desk.cassette.prune())} dropped from the cassette.")


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"
