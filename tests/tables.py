"""Tables that go through map_rows in tests, what is asked about their rows, and their columns."""

import json
from collections.abc import Callable
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from pydantic import AwareDatetime, BaseModel

from llm_magic import map_rows
from llm_magic.testing import Reply, ScriptedServer

OWN = ["_error", "_cached", "_cost"]


class Number(BaseModel):
    n: int


class Part(BaseModel):
    name: str
    size: float | None = None


class Review(BaseModel):
    stars: int
    good: bool
    score: float
    summary: str
    mood: Literal["good", "bad"]
    part: Part
    tags: list[str]
    when: AwareDatetime
    maybe: int | None


REVIEW = {
    "stars": 4,
    "good": True,
    "score": 0.5,
    "summary": "fits",
    "mood": "bad",
    "maybe": None,
    "part": {"name": "sole", "size": None},
    "tags": ["a", "b"],
    "when": "2026-01-02T03:04:05Z",
}


def table_server() -> ScriptedServer:
    """Answers row 7 with the number 7, reviews with a review, and says no to the rest."""
    numbers = {f"row {n}.": json.dumps({"n": n}) for n in range(10)}
    answers: dict[str, str | Reply] = {**numbers, "review": json.dumps(REVIEW)}
    return ScriptedServer(answers, default="No.")


def asked(server: ScriptedServer) -> list[str]:
    """The prompts that the server got, sorted: rows are asked in any order."""
    return sorted(each.body["messages"][-1]["content"] for each in server.requests)


def numbers(frame: Any, prompt: str = "row {{ text }}.", **options: Any) -> Any:
    return map_rows(frame, prompt, schema=Number, repairs=0, quiet=True, **options)


def reviews(frame: Any, **options: Any) -> Any:
    return map_rows(frame, "review {{ text }}", schema=Review, repairs=0, quiet=True, **options)


def column(result: Any, name: str) -> list[Any]:
    """A column of any result as a list, missing values as None."""
    if isinstance(result, list):
        return [row[name] for row in result]
    values = result[name].to_pylist() if isinstance(result, pa.Table) else result[name].to_list()
    return [None if value is pd.NA or value is pd.NaT else value for value in values]


def types(result: Any) -> dict[str, str]:
    if isinstance(result, pa.Table):
        return {field.name: str(field.type) for field in result.schema}
    return {name: str(kind) for name, kind in zip(result.columns, result.dtypes, strict=True)}


PANDAS = {
    "stars": "Int64",
    "good": "boolean",
    "score": "Float64",
    "summary": "string",
    "mood": "category",
    "part": "object",
    "tags": "object",
    "when": "datetime64[us, UTC]",
    "maybe": "Int64",
    "_error": "string",
    "_cached": "boolean",
    "_cost": "Float64",
}
POLARS = {
    "stars": "Int64",
    "good": "Boolean",
    "score": "Float64",
    "summary": "String",
    "mood": "Enum(categories=['good', 'bad'])",
    "part": "Struct({'name': String, 'size': Float64})",
    "tags": "List(String)",
    "when": "Datetime(time_unit='us', time_zone='UTC')",
    "maybe": "Int64",
    "_error": "String",
    "_cached": "Boolean",
    "_cost": "Float64",
}
ARROW = {
    "stars": "int64",
    "good": "bool",
    "score": "double",
    "summary": "string",
    "mood": "dictionary<values=string, indices=int32, ordered=0>",
    "part": "struct<name: string, size: double>",
    "tags": "list<item: string>",
    "when": "timestamp[us, tz=UTC]",
    "maybe": "int64",
    "_error": "string",
    "_cached": "bool",
    "_cost": "double",
}
LIBRARIES: dict[str, tuple[Callable[[list[str]], Any], dict[str, str]]] = {
    "pandas": (lambda texts: pd.DataFrame({"text": pd.Series(texts, dtype=object)}), PANDAS),
    "polars": (lambda texts: pl.DataFrame({"text": texts}, schema={"text": pl.String}), POLARS),
    "pyarrow": (lambda texts: pa.table({"text": pa.array(texts, pa.string())}), ARROW),
}
