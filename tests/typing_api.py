"""How users may call it, and how not: read by mypy and pyright, never run.

A call that is wrong has a ``type: ignore``, and ``warn_unused_ignores`` makes it an error where the
types let the call through.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, assert_type

import pandas as pd
import polars as pl
from pydantic import BaseModel, Field

import llm_magic
from llm_magic import Request, Response, Usage, errors
from llm_magic.background import Pending
from llm_magic.control import CacheControl
from llm_magic.mapped import Totals
from llm_magic.settings import LLMMagic
from llm_magic.testing import FAULTS, QUIRKS, Received, Reply, ScriptedServer
from llm_magic.types import Comparison
from llm_magic.views.tables import Table


class Review(BaseModel):
    product: str
    stars: int


@dataclass
class Order:
    number: int


class Options(TypedDict):
    colour: str


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Point(NamedTuple):
    x: float
    y: float


def ask_gives_prose() -> None:
    assert_type(llm_magic.ask("Hello"), Response[str])
    assert_type(llm_magic.ask("Hello").value, str)
    assert_type(llm_magic.ask("Hello", schema=str), Response[str])
    assert_type(llm_magic.ask("Hello", model="m", temperature=0, max_cost=0.05), Response[str])


def ask_gives_the_type_of_its_schema(anything: Any) -> None:
    assert_type(llm_magic.ask("?", schema=Review), Response[Review])
    assert_type(llm_magic.ask("?", schema=Review).value.stars, int)
    assert_type(llm_magic.ask("?", schema=Order).value, Order)
    assert_type(llm_magic.ask("?", schema=Options).value, Options)
    assert_type(llm_magic.ask("?", schema=Mood).value, Mood)
    assert_type(llm_magic.ask("?", schema=Point).value, Point)
    assert_type(llm_magic.ask("?", schema=int).value, int)
    assert_type(llm_magic.ask("?", schema=list[Review]), Response[list[Review]])
    assert_type(llm_magic.ask("?", schema=dict[str, int]).value, dict[str, int])
    assert_type(llm_magic.ask("?", schema=tuple[int, str]).value, tuple[int, str])
    assert_type(llm_magic.ask("?", schema=Review | Order).value, Review | Order)
    assert_type(llm_magic.ask("?", schema=Review | None).value, Review | None)
    assert_type(llm_magic.ask("?", schema=Literal["a", "b"]).value, Literal["a", "b"])
    assert_type(llm_magic.ask("?", schema=list[Literal["a"]]).value, list[Literal["a"]])
    assert_type(llm_magic.ask("?", schema=Annotated[int, Field(ge=1)]).value, int)
    assert_type(llm_magic.ask("?", schema=anything), Response[Any])


async def aask_does_the_same() -> None:
    assert_type(await llm_magic.aask("Hello"), Response[str])
    assert_type(await llm_magic.aask("?", schema=Review), Response[Review])
    assert_type(await llm_magic.aask("?", schema=list[Review]), Response[list[Review]])
    assert_type((await llm_magic.aask("?", schema=int | None, chat="c")).value, int | None)


def every_option(figure: object, system: str | None, cost: Decimal) -> Response[Mood]:
    return llm_magic.ask(
        "?",
        schema=Mood,
        model="gpt-5-mini",
        system=system,
        images=[figure, "plot.png", b"..."],
        chat="stats",
        temperature=0.5,
        max_tokens=500,
        seed=1,
        effort="low",
        params={"top_p": 0.9},
        fresh=True,
        no_cache=False,
        max_cost=cost,
        repairs=2,
    )


def ask_is_not_called_like_this() -> None:
    llm_magic.ask()  # type: ignore[call-overload]
    llm_magic.ask(3)  # type: ignore[call-overload]
    llm_magic.ask("?", Review)  # type: ignore[call-overload]
    llm_magic.ask("?", schema=3)  # type: ignore[call-overload]
    llm_magic.ask("?", schema="a review")  # type: ignore[call-overload]
    llm_magic.ask("?", model=3)  # type: ignore[call-overload]
    llm_magic.ask("?", temprature=0.5)  # type: ignore[call-overload]
    llm_magic.ask("?", concurrency=3)  # type: ignore[call-overload]
    llm_magic.ask("?", api_key="sk-...")  # type: ignore[call-overload]
    llm_magic.ask("?", schema=Review).value.price  # type: ignore[attr-defined]
    llm_magic.asks("?")  # type: ignore[attr-defined]


async def aask_is_not_called_like_this() -> None:
    await llm_magic.aask("?", schema=3)  # type: ignore[call-overload]
    await llm_magic.aask("?", temprature=0.5)  # type: ignore[call-overload]
    llm_magic.aask("?").value  # type: ignore[attr-defined]


def a_response(response: Response[Review]) -> None:
    assert_type(response.text, str)
    assert_type(response.value, Review)
    assert_type(response.usage, Usage)
    assert_type(response.usage.input_tokens, int)
    assert_type(response.usage + response.usage, Usage)
    assert_type(response.usage.total_tokens, int)
    assert_type(response.usage.estimated, bool)
    assert_type(response.cost, Decimal | None)
    assert_type(response.cached, bool)
    assert_type(response.model, str)
    assert_type(response.finish_reason, str)
    assert_type(response.reasoning, str)
    assert_type(response.request, Mapping[str, Any])
    assert_type(response.attempts, int)
    assert_type(response.seconds, float)
    assert_type(response.saved, Decimal | None)
    assert_type(response.age, float | None)
    assert_type(response.frame(), Any)
    assert_type(response.status(), str)
    response.value = Review(product="kettle", stars=1)  # type: ignore[misc]
    response.price  # type: ignore[attr-defined]


def a_response_without_a_type_is_of_any(response: Response) -> Response[object]:
    assert_type(response.value, Any)
    return llm_magic.ask("?", schema=Review)  # A Review is an object.


def a_request(request: Request) -> None:
    assert_type(request.model, str)
    assert_type(request.max_tokens, int | None)


def map_rows_keeps_the_kind_of_frame(
    pandas: pd.DataFrame, polars: pl.DataFrame, words: "pd.Series[str]", texts: pl.Series
) -> None:
    assert_type(llm_magic.map_rows(pandas, "{{ text }}"), pd.DataFrame)
    assert_type(llm_magic.map_rows(polars, "{{ text }}", schema=Review), pl.DataFrame)
    assert_type(llm_magic.map_rows(words, "{{ text }}"), pd.DataFrame)
    assert_type(llm_magic.map_rows(texts, "{{ text }}"), pl.DataFrame)


def map_rows_gives_dicts_for_a_list(
    dicts: list[dict[str, Any]], texts: tuple[str, ...], reviews: Sequence[Review]
) -> None:
    assert_type(llm_magic.map_rows(dicts, "{{ text }}"), list[dict[str, Any]])
    assert_type(llm_magic.map_rows(texts, "{{ text }}"), list[dict[str, Any]])
    assert_type(llm_magic.map_rows(reviews, "{{ product }}"), list[dict[str, Any]])
    assert_type(llm_magic.map_rows({"a", "b"}, "{{ text }}"), list[dict[str, Any]])
    assert_type(llm_magic.map_rows({"k": "a"}.values(), "{{ text }}"), list[dict[str, Any]])


def map_rows_makes_a_frame_of_files_and_iterators(rows: Iterator[dict[str, str]]) -> None:
    assert_type(llm_magic.map_rows("letters/*.txt", "{{ text }}"), Any)
    assert_type(llm_magic.map_rows(Path("letters"), "{{ text }}"), Any)
    assert_type(llm_magic.map_rows([Path("a.txt"), Path("b.txt")], "{{ text }}"), Any)
    assert_type(llm_magic.map_rows(rows, "{{ text }}"), Any)
    assert_type(llm_magic.map_rows((text for text in "ab"), "{{ text }}"), Any)


def every_option_of_map_rows(frame: pd.DataFrame, pool: ProcessPoolExecutor) -> pd.DataFrame:
    llm_magic.map_rows(frame, "?", concurrency="auto", on=pool, unshared=True)
    return llm_magic.map_rows(
        frame,
        "?",
        schema=list[Review],
        concurrency=8,
        max_cost=0.50,
        sample=20,
        model="gpt-5-mini",
        system="You are terse.",
        temperature=0,
        max_tokens=100,
        seed=1,
        effort="low",
        params={},
        fresh=True,
        no_cache=False,
        repairs=0,
        quiet=True,
    )


def map_rows_is_not_called_like_this(frame: pd.DataFrame) -> None:
    llm_magic.map_rows(frame)  # type: ignore[call-overload]
    llm_magic.map_rows(3, "?")  # type: ignore[call-overload]
    llm_magic.map_rows({"text": ["a"]}, "?")  # type: ignore[call-overload]
    llm_magic.map_rows(frame, "?", concurrency="fast")  # type: ignore[call-overload]
    llm_magic.map_rows(frame, "?", images=[])  # type: ignore[call-overload]


def what_a_run_came_to(frame: pd.DataFrame) -> None:
    totals = llm_magic.totals(frame)
    assert_type(totals, Totals)
    assert_type(totals.rows, int)
    assert_type(totals.failed, int)
    assert_type(totals.cost, Decimal | None)
    assert_type(totals.usage, Usage)
    assert_type(totals.errors, Mapping[str, Sequence[int]])
    assert_type(totals.seconds, float)
    assert_type(totals.message, str)
    assert_type(totals.retry_failed(), Any)


def usage_quota_cache() -> None:
    assert_type(llm_magic.usage(), pd.DataFrame)
    assert_type(llm_magic.usage("day"), pd.DataFrame)
    assert_type(llm_magic.usage(by="cell"), pd.DataFrame)
    llm_magic.usage(by="week")  # type: ignore[arg-type]

    assert_type(llm_magic.quota(), Table)
    llm_magic.quota(requests=100, tokens="none", usd=Decimal(2), per="1d", scope="user", reset=True)
    llm_magic.quota(per=3600, scope="team")
    llm_magic.quota(usd="two")  # type: ignore[arg-type]
    llm_magic.quota(scope="world")  # type: ignore[arg-type]

    cache = llm_magic.cache()
    assert_type(cache, CacheControl)
    assert_type(cache.stats(), Table)
    assert_type(cache.list(), Table)
    cache.clear()
    cache.prune("30d")


def errors_carry_their_data() -> None:
    try:
        llm_magic.ask("?")
    except errors.QuotaExceeded as error:
        assert_type(error.scope, str)
        assert_type(error.metric, str)
        assert_type(error.retry_at, float | None)
    except errors.InvalidAnswer as error:
        assert_type(error.errors, tuple[str, ...])
        assert_type(error.cost, Decimal | None)
    except errors.ReplayMissing as error:
        assert_type(error.nearest, str)
    except errors.Refused as error:
        assert_type(error.reason, str)
    except errors.UnknownModel as error:
        assert_type(error.available, tuple[str, ...])
    except errors.RateLimited as error:
        assert_type(error.retry_after, float | None)
    except errors.ProviderError as error:
        assert_type(error.status, int | None)
        assert_type(error.headers, Mapping[str, str])
    except errors.StoreError as error:
        assert_type(error.damaged, bool)
    except errors.LLMError as error:
        assert_type(error.text, str)
        assert_type(error.usage, Usage | None)
        assert_type(error.attempts, int)
        assert_type(error.model, str | None)
        assert_type(error.fix, str)
        error.prompt_text  # type: ignore[attr-defined]
    except errors.Interrupted as error:
        assert_type(error.response, Response[Any])
        assert_type(error.text, str)


async def an_answer_to_come(pending: Pending) -> None:
    assert_type(pending.result(), Response[Any])
    assert_type(pending.result(timeout=1.5), Response[Any])
    assert_type(await pending, Response[Any])
    assert_type(pending.done(), bool)
    assert_type(pending.text, str)
    assert_type(pending.usage, Usage)
    assert_type(pending.cost, Decimal | None)
    pending.stop()
    pending.result("soon")  # type: ignore[arg-type]
    pending.cancel()  # type: ignore[attr-defined]


def several_models(comparison: Comparison) -> None:
    assert_type(comparison["gpt-5"], Response[Any])
    assert_type(comparison["gpt-5"].text, str)
    assert_type(comparison.value, dict[str, Any])
    assert_type(comparison.cost, Decimal | None)
    assert_type(comparison.frame(), Any)


def a_server_for_tests() -> None:
    slow = Reply("Paris.", tokens_per_second=50, finish="stop", fault="cut", after=1)
    with ScriptedServer({"France": "Paris.", "Italy": slow}, default="?", api_key="k") as server:
        assert_type(server, ScriptedServer)
        assert_type(server.url, str)
        server.enqueue(FAULTS["rate_limited"], QUIRKS["azure"], "At last.")
        server.wait_for_requests(2, timeout=1)
        assert_type(server.requests, list[Received])
        assert_type(server.requests[0].body, dict[str, Any])
        with server.refusing():
            server.reset()
    ScriptedServer(models={"small": "A.", "large": {"France": slow}})
    Reply("Paris.", fault="explode")  # type: ignore[arg-type]
    Reply("Paris.", tokens_per_secnd=5)  # type: ignore[call-arg]
    ScriptedServer({"France": 3})  # type: ignore[dict-item]


def settings(set_: LLMMagic) -> None:
    assert_type(set_.model, str)
    assert_type(set_.timeout, float)
    assert_type(set_.retries, int)
    assert_type(set_.quota_requests, int | None)
    assert_type(set_.quota_strict, bool)
    set_.model = "gpt-5"
    set_.quota_usd = 2
    set_.model = 3  # type: ignore[assignment]


def the_version() -> None:
    assert_type(llm_magic.__version__, str)
