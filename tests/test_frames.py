"""Values as data frames, of the library that is there."""

import dataclasses
import datetime
import enum
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from llm_magic.types import Response, Usage


class Mood(enum.Enum):
    GOOD = "good"


class Inner(BaseModel):
    n: int


class Row(BaseModel):
    name: str
    mood: Mood = Mood.GOOD
    when: datetime.date = datetime.date(2026, 1, 2)
    inner: Inner = Inner(n=1)


@dataclasses.dataclass
class Data:
    x: int


class Named(NamedTuple):
    y: int


def frame(value: Any) -> Any:
    return Response("", Usage(), "m", "stop", value=value).frame()


def test_models_become_typed_columns() -> None:
    made = frame([Row(name="a"), Row(name="b")])
    assert list(made.columns) == ["name", "mood", "when", "inner"]
    assert made["mood"].tolist() == ["good", "good"]
    assert made["when"][0] == datetime.date(2026, 1, 2)
    assert made["inner"][1] == {"n": 1}


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ([Data(1), Data(2)], [{"x": 1}, {"x": 2}]),
        ((Named(1), Named(2)), [{"y": 1}, {"y": 2}]),
        ([{"a": 1}, {"b": 2}], [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        ([1, 2], [{"value": 1}, {"value": 2}]),
        ([Mood.GOOD], [{"value": "good"}]),
        (Data(3), [{"x": 3}]),
        ([], []),
    ],
)
def test_other_rows(value: Any, rows: list[dict[str, Any]]) -> None:
    made = frame(value).astype(object)
    assert made.where(made.notna(), None).to_dict("records") == rows


@pytest.mark.parametrize("value", ["words", 3, None])
def test_what_has_no_rows_says_so(value: Any) -> None:
    with pytest.raises(TypeError, match="no rows"):
        frame(value)


ASK = """
import sys
{before}
from llm_magic.types import Response, Usage
made = Response("", Usage(), "m", "stop", value=[{{"a": 1}}, {{"a": None}}]).frame()
print(type(made).__module__.split(".")[0], made["a"].to_list())
"""


@pytest.mark.parametrize(
    ("before", "library"),
    [
        ("", "pandas"),
        ("import polars", "polars"),
        ("import pandas, polars", "pandas"),
        (
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'pandas' else find(name, *a)",
            "polars",
        ),
    ],
    ids=["neither imported", "polars imported", "both imported", "only polars installed"],
)
def test_the_library_that_the_user_has(before: str, library: str) -> None:
    script = ASK.format(before=before)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(library)
