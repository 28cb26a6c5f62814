"""What the configured server offers: asked for ``%llm_models``, remembered for completion."""

from __future__ import annotations

import asyncio
import difflib
import threading
from concurrent.futures import Future
from decimal import Decimal

from llm_magic.entries import normalised
from llm_magic.errors import Interrupted, ProviderError, ServerUnreachable
from llm_magic.session import Session
from llm_magic.types import Request, Response, Usage
from llm_magic.views.base import wait
from llm_magic.views.tables import Table

LONGEST = 30.0
"""Seconds that a server has to list its models; they take no thinking."""
_NO_LIST = (404, 405, 501)


def table(session: Session, word: str = "") -> Table:
    """The models of the configured server, the default first, with prices where they are known.

    In replay mode nothing is asked, and the table is a line that says so.

    Args:
        session: The kernel's.
        word: Only models whose name has this in it, in small letters or large ones.

    Raises:
        LLMError: The server cannot be reached, lets nobody in, or lists no models.
        Interrupted: On Ctrl-C.
    """
    if _replaying(session):
        return Table((), (), note="Replayed: no server is asked, also not for its models.")
    url = _address(session)
    names = offered(session)
    default = default_of(session, names)
    rows = [_row(session, name, url, name == default) for name in _sorted(names, default, word)]
    server = normalised(url).partition("://")[2]
    count = f"{len(names):,} model{'' if len(names) == 1 else 's'}"
    if not rows:
        return Table((), (), note=_nothing(server, count, names, word))
    absent = default and default not in names
    return Table(
        ("model", " in", " out", ""),
        rows,
        title=f"{server}, {count}; USD per million tokens",
        note=f"The default, {default}, is not among them." if absent else "",
    )


def offered(session: Session) -> tuple[str, ...]:
    """The names of the models, asked now, in the server's order.

    Raises:
        LLMError: The server cannot be reached, lets nobody in, or lists no models.
        Interrupted: On Ctrl-C.
    """
    url = _address(session)
    future = session.run(_list(session, url))
    try:
        _wait(future, LONGEST + 1)
        names = future.result(0)
    except KeyboardInterrupt:
        nothing = Response("", Usage(), "", "interrupted")
        raise Interrupted("Stopped; the server had not answered.", nothing) from None
    except TimeoutError:
        raise ServerUnreachable(
            f"No list of models from {normalised(url)} within {LONGEST:g} s.",
            fix="Name a model that you know: %config LLMMagic.model = 'NAME'",
        ) from None
    except ProviderError as error:
        if error.status not in _NO_LIST:
            raise
        raise ProviderError(
            f"{normalised(url)} does not list its models (it answered {error.status}).",
            fix="Name one that you know: %config LLMMagic.model = 'NAME'",
            status=error.status,
            body=error.body,
        ) from None
    finally:
        future.cancel()
    session.models[url] = future
    return names


def known(session: Session, seconds: float = 1.0) -> list[str]:
    """The names as they are remembered, the default first; for completion, so that it never fails.

    Where nothing is remembered the server is asked, and has this long; if it needs longer, the
    next call has what came meanwhile. In replay mode it is not asked.

    Args:
        session: The kernel's.
        seconds: How long to wait at most.
    """
    url = _address(session)
    future = session.models.get(url)
    if (future is None or _failed(future)) and not _replaying(session):
        future = session.models[url] = session.run(_list(session, url))
        _wait(future, seconds)
    names = future.result() if future and future.done() and not _failed(future) else ()
    default = default_of(session, names)
    return _sorted({*names, default} - {""}, default)


def default_of(session: Session, names: tuple[str, ...]) -> str:
    """The model that is asked where none is named; empty where there is none."""
    return session.settings.default_model() or (names[0] if len(names) == 1 else "")


def _address(session: Session) -> str:
    session.settings.read_environment()
    return session.settings.base_url.rstrip("/")


def _replaying(session: Session) -> bool:
    return session.settings.mode == "replay" or session.desk.replays


async def _list(session: Session, url: str) -> tuple[str, ...]:
    # Looking for the key reads files, and may wait for somebody to unlock a keyring.
    wire = await asyncio.to_thread(session.wire, Request((), "", url))
    async with asyncio.timeout(LONGEST):
        return tuple(await wire.models())


def _wait(future: Future[tuple[str, ...]], seconds: float) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    wait(done, seconds)


def _failed(future: Future[tuple[str, ...]]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _sorted(names: tuple[str, ...] | set[str], default: str, word: str = "") -> list[str]:
    found = [name for name in names if word.casefold() in name.casefold()]
    return sorted(dict.fromkeys(found), key=lambda name: (name != default, name.casefold()))


def _row(session: Session, name: str, url: str, default: bool) -> tuple[str, ...]:
    prices = session.desk.prices.of(name, url)
    both = ("unknown", "unknown") if prices is None else (_price(prices[0]), _price(prices[1]))
    return name, *both, "default" if default else ""


def _price(amount: Decimal) -> str:
    """An amount as it is listed: to the cent, or as exact as it is."""
    if not amount:
        return "free"
    exact = f"{amount:f}".rstrip("0") if amount % 1 else f"{amount:f}"
    return f"${max(exact, f'{amount:.2f}', key=len)}"


def _nothing(server: str, count: str, names: tuple[str, ...], word: str) -> str:
    if not names:
        return f"{server} lists no models."
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.4)
    guess = f" Near: {', '.join(near)}." if near else ""
    return f"{server} has {count}, none with {word!r} in its name.{guess}"
