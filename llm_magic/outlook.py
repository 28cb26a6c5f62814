"""What a run over rows would come to, before anything is sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from llm_magic.batches import is_of_prompt
from llm_magic.bounds import Terms, worst_case
from llm_magic.entries import fingerprint
from llm_magic.errors import LLMError, QuotaExceeded, StoreError
from llm_magic.job import Job
from llm_magic.progress import Plan
from llm_magic.seen import Seen
from llm_magic.session import Session
from llm_magic.types import Request, Response, text_of

GLANCE = 5_000
"""Rows that are looked at before a run begins: half a second."""
_PROMPTS = 2
_AT_ONCE = 256


@dataclass
class _Found:
    """What the rows come to that were looked at."""

    rows: int = 0
    equal: int = 0
    cached: int = 0
    worst: Decimal | None = Decimal(0)
    tokens: int | None = 0
    paid: Decimal = Decimal(0)
    priced: int = 0


def outlook(session: Session, job: Job, *, most: int | None = None) -> Plan:
    """Looks the rows up, and adds up what those that are missing can come to.

    Args:
        session: The kernel's.
        job: What would be done.
        most: Rows to look at, evenly spaced; None for all.

    Raises:
        PromptError: The prompt uses a name that is not there.
    """
    budget, total = job.wish.max_cost, job.total
    shelf = session.desk.shelf(job.wish)
    base = job.base
    if not base.model:
        recorded = shelf.replayed_models(base) if shelf.replays else []
        base = replace(base, model=recorded[0] if recorded else shelf.last_model(base) or "")
    if total is None:
        return Plan(None, budget=budget, model=base.model)
    places = _spread(job.places or range(total), most)
    job = replace(job, base=base, places=places)
    found, seen = _Found(), Seen()
    prompts: list[str] = []
    for requests in _requests(job):
        new = [
            (request, print_)
            for place, request in requests
            if seen.first((print_ := fingerprint(request)).key, place) is None
        ]
        prompts += [text_of(request.messages[-1]) for request, _ in new[: _PROMPTS - len(prompts)]]
        found.rows += len(requests)
        found.equal += len(requests) - len(new)
        for (request, _), kept in zip(new, shelf.find_many([each for _, each in new]), strict=True):
            _count(session, found, request, kept)
    scale = total / len(places) if places else 1.0
    missing = found.rows - found.equal - found.cached
    return Plan(
        rows=total,
        equal=round(found.equal * scale),
        cached=round(found.cached * scale),
        looked_at=len(places),
        worst=None if found.worst is None else found.worst * Decimal(scale),
        worst_tokens=None if found.tokens is None else round(found.tokens * scale),
        expected=found.paid / found.priced * round(missing * scale) if found.priced else None,
        expected_from=_source(found.priced),
        prompts=tuple(prompts),
        budget=budget,
        model=base.model,
        room=_room(session, job) if missing and not shelf.replays else None,
    )


def _room(session: Session, job: Job) -> int | None:
    """Requests that the limits leave; None for any number."""
    desk = session.desk
    try:
        standing = desk.now(desk.quota.ledger.standing, desk.terms(job.wish, "").limits)
    except StoreError:
        # The run says so.
        return None
    left = [limit.cap - used for limit, used in standing if limit.metric == "requests"]
    return max(0, min(left)) if left else None


def _spread(places: Sequence[int], most: int | None) -> Sequence[int]:
    """Evenly spaced places, the first among them."""
    if most is None or len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]


def _requests(job: Job) -> Iterator[list[tuple[int, Request]]]:
    """What would be asked, in batches; a row that the template fails with is left out.

    Raises:
        PromptError: The prompt uses a name that is not there.
    """
    rows = job.rows()
    first = True
    while batch := list(itertools.islice(rows, _AT_ONCE)):
        requests = []
        for place, row in batch:
            try:
                requests.append((place, job.request(row)))
            except LLMError as error:
                if first and is_of_prompt(error):
                    raise
            finally:
                first = False
        yield requests


def _source(answers: int) -> str:
    return f"{answers:,} answer{'' if answers == 1 else 's'} in the cache" if answers else ""


def _count(session: Session, found: _Found, request: Request, kept: Response | None) -> None:
    if kept is not None:
        found.cached += 1
        if kept.saved is not None:
            found.paid += kept.saved
            found.priced += 1
        return
    body = session.wire(request).body(request, whole=True)
    try:
        worst = worst_case(request, body, Terms(prices=session.desk.prices), [])
    except QuotaExceeded:
        return
    out = worst.output_tokens
    if found.tokens is not None:
        found.tokens = None if out is None else found.tokens + worst.input_tokens + out
    cost = worst.cost
    if cost is None and session.desk.prices.worst(request.model, request.base_url, 1, 1) == 0:
        # Without a cap there is no most, but of nothing.
        cost = Decimal(0)
    if found.worst is not None:
        found.worst = None if cost is None else found.worst + cost
