"""ask and aask: the same line as %%llm, for Python code in cells, modules and scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from llm_magic import calls, control
from llm_magic.chats import Place
from llm_magic.desk import Desk
from llm_magic.images import all_of, attached
from llm_magic.options import money
from llm_magic.prompt import check_text
from llm_magic.session import Session, current
from llm_magic.types import Request, Response, Wish
from llm_magic.views import Feed
from llm_magic.views.tables import Table

if TYPE_CHECKING:
    import os

    import pandas as pd
    from typing_extensions import TypeForm, TypeVar, Unpack

    from llm_magic.mapped import Totals
    from llm_magic.signatures import AskOptions, DataFrame, MapOptions, Series

    # A checker that knows no TypeForm takes Any for what is no class, such as a union.
    T = TypeVar("T", default=Any)
    FrameT = TypeVar("FrameT", bound=DataFrame)


@overload
def ask(prompt: str, **options: Unpack[AskOptions]) -> Response[str]: ...
@overload
def ask(prompt: str, *, schema: type[T], **options: Unpack[AskOptions]) -> Response[T]: ...
@overload
def ask(prompt: str, *, schema: TypeForm[T], **options: Unpack[AskOptions]) -> Response[T]: ...


def ask(
    prompt: str,
    *,
    schema: Any = str,
    model: str | None = None,
    system: str | None = None,
    images: Sequence[Any] = (),
    chat: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    effort: str | None = None,
    params: Mapping[str, Any] | None = None,
    fresh: bool = False,
    no_cache: bool = False,
    max_cost: float | Decimal | None = None,
    repairs: int = 1,
) -> Response[Any]:
    """Asks a model and waits for the whole answer. Shows nothing; works in a running event loop.

    Args:
        prompt: The text, taken as it is (no template).
        schema: What the answer must be: a pydantic model, dataclass, TypedDict, Enum, Literal, or a
            list, dict, tuple or union of them; ``str`` is prose.
        model: Model name; None takes the setting.
        system: System message; None takes the setting, empty sends none.
        images: What to attach: matplotlib figures and axes, PIL images, paths of PNG, JPEG, GIF and
            WebP files (told by their content), or the bytes of such files.
        chat: Name of the conversation to continue.
        temperature: Sampling temperature.
        max_tokens: Cap on the answer, in tokens.
        seed: Seed, for servers that take one.
        effort: Reasoning effort: ``"low"``, ``"medium"`` or ``"high"``.
        params: Further fields of the request.
        fresh: Ask again, and keep the new answer in place of the cached one.
        no_cache: Neither look the answer up nor keep it.
        max_cost: USD; refused where the call can come to more.
        repairs: How often an answer that does not fit ``schema`` is asked again with its errors.

    Returns:
        The answer: ``response.value`` is the object, with ``str`` the text, ``response.text`` the
        words, ``response.frame()`` a list of objects as a table.

    Raises:
        LLMError: The class that says what went wrong, with the partial ``text``.
        Interrupted: On Ctrl-C (a ``KeyboardInterrupt``).
    """
    session, request, wish, place = _prepared(
        prompt,
        images,
        chat=chat,
        fresh=fresh,
        no_cache=no_cache,
        max_cost=max_cost,
        repairs=repairs,
        schema=schema,
        model=model,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        effort=effort,
        params=params,
    )
    with place:
        return calls.ask(session, request, wish=wish, place=place)


@overload
async def aask(prompt: str, **options: Unpack[AskOptions]) -> Response[str]: ...
@overload
async def aask(prompt: str, *, schema: type[T], **options: Unpack[AskOptions]) -> Response[T]: ...
@overload
async def aask(
    prompt: str, *, schema: TypeForm[T], **options: Unpack[AskOptions]
) -> Response[T]: ...
async def aask(prompt: str, *, images: Sequence[Any] = (), **options: Any) -> Response[Any]:
    """The same as :func:`ask`, awaitable; cancelling the task stops the call.

    Args:
        prompt: The text, taken as it is (no template).
        images: As for :func:`ask`.
        **options: As for :func:`ask`.

    Raises:
        LLMError: The class that says what went wrong, with the partial ``text``.
    """
    session, request, wish, place = _prepared(prompt, images, **options)
    try:
        response = session.desk.find(request, wish, session.cell)
        if response is None:
            with place:
                response = await asyncio.wrap_future(session.submit(request, Feed(), wish))
        place.keep(request, response)
        return response
    finally:
        session.desk.warn()


def _prepared(
    prompt: str,
    images: Sequence[Any],
    *,
    chat: str | None = None,
    fresh: bool = False,
    no_cache: bool = False,
    max_cost: float | Decimal | None = None,
    repairs: int = 1,
    **options: Any,
) -> tuple[Session, Request, Wish, Place]:
    check_text(prompt)
    content = attached(prompt, all_of(images))
    session = current()
    most = money(max_cost)
    place = session.chats.place(chat, session.shell, session.cell)
    request = session.request(content, place=place, **options)
    return session, request, Wish(fresh, no_cache, most, repairs), place


# Files come into a frame of the notebook's library, as do the answers about an iterator.
@overload
def map_rows(
    frame: str | os.PathLike[str] | Sequence[os.PathLike[str]] | Iterator[Any],
    prompt: str,
    **options: Unpack[MapOptions],
) -> Any: ...
@overload
def map_rows(frame: Series[FrameT], prompt: str, **options: Unpack[MapOptions]) -> FrameT: ...
@overload
def map_rows(frame: FrameT, prompt: str, **options: Unpack[MapOptions]) -> FrameT: ...
@overload
def map_rows(
    frame: Sequence[Any] | AbstractSet[Any] | ValuesView[Any],
    prompt: str,
    **options: Unpack[MapOptions],
) -> list[dict[str, Any]]: ...
def map_rows(
    frame: Any,
    prompt: str,
    *,
    schema: Any = str,
    concurrency: int | Literal["auto"] = "auto",
    max_cost: float | Decimal | None = None,
    sample: int | None = None,
    model: str | None = None,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    effort: str | None = None,
    params: Mapping[str, Any] | None = None,
    fresh: bool = False,
    no_cache: bool = False,
    repairs: int = 1,
    quiet: bool = False,
    on: Any = None,
    unshared: bool = False,
) -> Any:
    """Asks the same about every row of a table. Equal rows are asked once, stored answers are free.

    An interrupt, Stop, or the end of a budget gives back the table as far as it came, with a
    warning; the same call again goes on from there.

    Args:
        frame: A data frame (pandas, polars, pyarrow), a series, a list of dicts, objects or
            texts, an iterator of them, the glob of files, a folder, or a list of ``Path``.
        prompt: A Jinja2 template over the columns of a row, ``{{ text }}`` or
            ``{{ row["odd name"] }}``, and the notebook's names. Texts are named ``text``.
        schema: What an answer must be; its fields become typed columns. ``str`` is prose.
        concurrency: Rows on their way at once; ``"auto"`` finds what the server takes.
        max_cost: USD; the run ends before it can come to more.
        sample: Only so many rows, evenly spaced.
        model: Model name; None takes the setting.
        system: System message, a template over the notebook's names; None takes the setting.
        temperature: Sampling temperature.
        max_tokens: Cap on each answer, in tokens.
        seed: Seed, for servers that take one.
        effort: Reasoning effort: ``"low"``, ``"medium"`` or ``"high"``.
        params: Further fields of the request.
        fresh: Ask again, and keep the new answers in place of the cached ones.
        no_cache: Neither look answers up nor keep them.
        repairs: How often an answer that does not fit ``schema`` is asked again with its errors.
        quiet: Show no progress. (A script shows it on a terminal only.)
        on: Where the rows are asked, if not in this process: a Dask ``Client``, or an executor such
            as a ``ProcessPoolExecutor``. Workers share cache, limits and pace through Redis (the
            setting ``store``), and have the API key from their own environment.
        unshared: Let each worker have a cache and limits of its own, without Redis.

    Returns:
        A table of the same kind, rows and index as they were, with a column for each field of the
        schema (else ``answer``), and ``_error`` (text), ``_cached`` and ``_cost`` (USD). Columns of
        the same name are replaced. ``totals(results)`` has the counts and ``retry_failed()``. Of a
        Dask DataFrame a lazy one, whose rows are asked where and when it is computed.

    Raises:
        LLMError: Nothing could be asked at all. What a row fails with is in ``_error``.
        Interrupted: On Ctrl-C before anything had come.
    """
    from llm_magic.job import job_for
    from llm_magic.mapped import go_through, tell
    from llm_magic.outlook import GLANCE, outlook
    from llm_magic.views.progress import SilentProgress, choose_progress
    from llm_magic.workers import is_lazy, lazily, staffed

    session = current()
    session.settings.read_environment()
    shell = session.shell
    names = {} if shell is None else shell.user_ns
    make = partial(
        job_for,
        session,
        prompt=prompt,
        names=names,
        wish=Wish(fresh, no_cache, money(max_cost), repairs),
        concurrency=concurrency,
        sample=sample,
        model=model,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        effort=effort,
        params=params,
        schema=schema,
    )
    if is_lazy(frame):
        return lazily(session, frame, make, on=on, unshared=unshared, sample=sample)
    job = staffed(session, make(frame), on, unshared=unshared)
    view = choose_progress(shell, quiet=quiet, widgets=session.settings.widgets)
    # Where nobody sees it, nothing is looked up twice.
    silent = isinstance(view, SilentProgress)
    plan = None if silent else outlook(session, job, most=GLANCE)
    return tell(go_through(session, job, view, plan=plan))


def totals(results: Any) -> Totals:
    """What the run came to that gave these results.

    Args:
        results: What ``map_rows`` or ``%%llm_map`` returned.

    Raises:
        PromptError: They are no such results.
    """
    from llm_magic.mapped import totals_of

    return totals_of(results)


def usage(by: control.By = "model") -> pd.DataFrame:
    """What was spent and saved, as a pandas frame: tokens, requests, USD.

    Args:
        by: One row for each ``"model"``, ``"day"`` or ``"cell"`` of this kernel.

    Raises:
        StoreError: The ledger cannot be read.
        ImportError: pandas is not installed.
    """
    frame: pd.DataFrame = control.usage_frame(_desk(), by)
    return frame


def quota(
    *,
    requests: int | Literal["none"] | None = None,
    tokens: int | Literal["none"] | None = None,
    usd: float | Decimal | Literal["none"] | None = None,
    per: float | str | None = None,
    scope: Literal["kernel", "user", "team"] = "kernel",
    reset: bool = False,
) -> Table:
    """Sets limits where they are given, and shows where all stand.

    Args:
        requests: Most requests; ``"none"`` takes the limit away.
        tokens: Most tokens, in and out.
        usd: Most USD.
        per: Seconds, a span such as ``"1h"``, or ``"kernel"`` for as long as the kernel runs; None
            is the setting ``quota_window``, for ``scope="user"`` and ``"team"`` a day.
        scope: This kernel; or you: all your kernels, until it is changed; or your team: all who
            share its Redis server.
        reset: What was used so far no longer counts.

    Raises:
        PromptError: A number or a span of time is none; or there is no team.
        StoreError: The ledger cannot be written.
    """
    return control.limit(
        _desk(), requests=requests, tokens=tokens, usd=usd, per=per, scope=scope, reset=reset
    )


def cache() -> control.CacheControl:
    """The cache of answers: ``.stats()``, ``.list()``, ``.clear()``, ``.prune("30d")``."""
    return control.CacheControl(_desk())


def _desk() -> Desk:
    session = current()
    session.settings.read_environment()
    return session.desk
