"""JSON while it grows: what was shown stays, whatever the cuts; and how it looks in a notebook."""

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llm_magic.structured import Growth, growth, schema_for
from llm_magic.views.base import News
from llm_magic.views.growing import FinalLines, GrowingValue
from llm_magic.views.terminal import TerminalView

Path = tuple[str | int, ...]

TEXTS = st.text(
    st.one_of(
        st.sampled_from('"\\/{}[],: \n\t🎉𝄞é\u2028\x00\x7f'),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=8,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**30), max_value=10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.lists(VALUES, max_size=5) | st.dictionaries(TEXTS, VALUES, max_size=5)
AROUND = st.sampled_from(["{}", "Sure, here it is:\n```json\n{}\n```\n", "\ufeff\n{} Done."])
QUIETLY = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[*HealthCheck]
)


@st.composite
def written(draw: st.DrawFn) -> tuple[Any, str]:
    """A document, and how a model may write it."""
    document = draw(DOCUMENTS)
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=indent)
    return document, draw(AROUND).replace("{}", text)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The scalars of a value, each by its place."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))
    else:
        yield path, value


def exact(value: Any) -> str:
    """A leaf with its type: neither 1 and true nor 0.0 and -0.0 are the same."""
    return repr(value)


def place_of_words(growing: Growth) -> Path:
    """Where the unfinished text belongs."""
    path: list[str | int] = []
    for outer, inner in zip(growing.open, growing.open[1:], strict=False):
        pairs = outer.items() if isinstance(outer, dict) else enumerate(outer)
        path.append(next(key for key, each in pairs if each is inner))
    last = growing.open[-1]
    return (*path, len(last) if isinstance(last, list) else str(growing.key))


def check(document: Any, pieces: list[str]) -> None:
    """Feeds the pieces; all that is seen on the way must be in the document."""
    final = dict(leaves(document))
    growing, seen = Growth(), dict[Path, str]()
    for piece in pieces:
        growing.feed(piece)
        now = {path: exact(value) for path, value in leaves(growing.root)}
        if growing.root is None:
            now = {}
        assert seen.items() <= now.items()
        seen = now
        if growing.words is not None:
            whole = final[place_of_words(growing)]
            assert isinstance(whole, str)
            assert whole.startswith("".join(growing.words))
    assert growing.root == document
    assert seen == {path: exact(value) for path, value in final.items()}
    assert growing.open == []
    assert growing.words is None


@QUIETLY
@given(written())
def test_cut_at_every_character(case: tuple[Any, str]) -> None:
    document, text = case

    check(document, list(text))


@QUIETLY
@given(written(), st.data())
def test_cut_anywhere(case: tuple[Any, str], data: st.DataObject) -> None:
    document, text = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = zip([0, *cuts], [*cuts, len(text)], strict=True)

    check(document, [text[start:end] for start, end in edges])


@pytest.mark.parametrize("text", ["345", "-3.25e2", "true", "false", "null"])
@pytest.mark.parametrize(("before", "place"), [('{"a": ', "a"), ("[", 0), ('[{"b": 1}, ', 1)])
def test_a_number_or_word_is_shown_once_something_follows(
    before: str, place: Any, text: str
) -> None:
    growing = Growth()
    for character in before + text:
        growing.feed(character)
        assert (place,) not in dict(leaves(growing.root))

    growing.feed(" ")
    assert (place,) not in dict(leaves(growing.root))
    growing.feed(",")
    assert growing.root[place] == json.loads(text)


@pytest.mark.parametrize("text", ['["\\ud83c\\udf89"]', '["\\n\\"\\\\"]', '["\\u00e9"]'])
def test_no_half_of_an_escape_is_shown(text: str) -> None:
    (whole,) = json.loads(text)
    growing = Growth()
    for character in text[:-2]:
        growing.feed(character)
        assert whole.startswith("".join(growing.words or []))


MALFORMED = [
    *("{", "[", "{]", "[}", "{}{}", "[1 2]", "[1,,2]", '{"a" 1}', '{"a": }', '{"a": 1 "b": 2}'),
    *('{"a": tru, "b": 1}', "[NaN, 1]", "[01, 1]", "[--1, 2]", "[1.e5, 2]", '["a" "b"]', "[+1]"),
    *('{"x": {"a": }, "b": 1}', '{1: 2, "a": 3}', "{[1]: 2}", '{{"a": 1}}', "[1, // two\n 2]"),
    *('{"a": "it\\\'s", "b": 1}', '{"a": "$\\alpha$", "b": 1}', '{"a": "C:\\data\\x", "b": 1}'),
    *('{"a": "\\uZZZZ", "b": 1}', '{"a": "\\ud83d", "b": 1}', '{"a": "\\ud83dx", "b": 1}'),
    *('{"a\\z": 1}', '{"a": "b\\', '{"a": "b\\u12', "[" + "9" * 5000 + ", 1]", "]", '"', "}]}{["),
]


def grown(text: str, size: int) -> Growth:
    """What has grown from a text in pieces, where nothing that was final has changed."""
    growing, seen = Growth(), dict[Path, str]()
    for place in range(0, len(text), size):
        growing.feed(text[place : place + size])
        now = {path: exact(value) for path, value in leaves(growing.root) if path}
        assert seen.items() <= now.items()
        seen = now
    return growing


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: ascii(text)[:30])
def test_malformed_json_never_raises(text: str, size: int) -> None:
    grown(text, size)


@QUIETLY
@given(st.text(st.sampled_from('{}[]",:\\u019adeE.-+ \ntrfnl😀'), max_size=60), st.integers(1, 9))
def test_nonsense_never_raises(text: str, size: int) -> None:
    growing = Growth()
    for place in range(0, len(text), size):
        growing.feed(text[place : place + size])


@pytest.mark.parametrize("before", ["", "{", '{"a": ', '{"a": 1, ', '[{"a": '])
@pytest.mark.parametrize("size", [1_000, 100_000])
def test_deep_nesting_is_survived(before: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counted(monkeypatch)
    growing = Growth()
    text = before + "[" * 100_000
    for place in range(0, len(text), size):
        growing.feed(text[place : place + size])

    assert len(growing.open) <= 100
    # A few looks for each container that is entered and each piece that comes.
    assert work.calls <= 3 * (100 + len(text) // size)


def test_a_long_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counted(monkeypatch)
    growing = Growth()
    growing.feed('{"rows": [{"note": "')
    for _ in range(2_000):
        growing.feed("ten words. ")

    assert "".join(growing.words or []) == "ten words. " * 2_000
    assert work.characters <= 3 * 2_000 * len("ten words. ")


def test_many_rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Counted(monkeypatch)
    rows = [{"product": f"Lamp {n}", "tags": ["a", "b"]} for n in range(1_000)]
    text = json.dumps(rows)
    growing = Growth()
    for place in range(0, len(text), 4):
        growing.feed(text[place : place + 4])

    assert growing.root == rows
    assert work.characters <= 40 * len(text)


class Counted:
    """Counts what the decoder is asked to read, at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.characters = 0
        self._decoder = growth._DECODER
        monkeypatch.setattr(growth, "_DECODER", self)

    def raw_decode(self, text: str, place: int) -> Any:
        self.calls += 1
        self.characters += len(text) - place
        return self._decoder.raw_decode(text, place)

    def decode(self, text: str) -> Any:
        self.calls += 1
        self.characters += len(text)
        return self._decoder.decode(text)


@pytest.mark.parametrize("size", [1, 3, 1_000])
@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2, "b": 3}', '{"a": "x", "a": "yz"}', '{"a": {"x": 1}, "a": {"y": 2}}',
     '{"a": [1], "a": 2}', '[{"a": 1, "a": 2}]'],
)  # fmt: skip
def test_a_key_that_comes_twice_changes_nothing(text: str, size: int) -> None:
    assert grown(text, size).open == []


class Row(BaseModel):
    """A row of the table."""

    product: str
    rating: int
    note: str | None = None


@pytest.fixture(params=["{}", '{"result": {}}'], ids=["bare", "wrapped"])
def wrapping(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def table() -> GrowingValue:
    schema = schema_for(list[Row])
    assert schema is not None
    return GrowingValue(schema)


def test_a_row_that_grows(wrapping: str) -> None:
    growing = table()
    rows = '[{"product": "Kettle", "rating": 4, "note": null}, {"product": "La<script>x</script>mp'
    growing.add(wrapping.partition("{}")[0] if len(wrapping) > 2 else "")
    growing.add(rows)

    html = "".join(growing.html())

    assert "La&lt;script&gt;x&lt;/script&gt;mp…</td>" in html
    assert "<script" not in html
    assert "Kettle</td>" in html
    assert [html.count(f">{name}</th>") for name in ("product", "rating", "note")] == [1, 1, 1]
    growing.add('", "rating": 3')
    assert "mp</td>" in "".join(growing.html())
    assert "3</td>" not in "".join(growing.html())
    growing.add("}")
    assert "3</td>" in "".join(growing.html())
    assert "…" not in "".join(growing.html())


def test_a_table_begins_with_its_columns(wrapping: str) -> None:
    growing = table()
    growing.add("Here:\n" + (wrapping.partition("{}")[0] if len(wrapping) > 2 else "") + "[{")
    growing.add('"rating": 4, "product": "')

    html = "".join(growing.html())

    assert html.index(">product<") < html.index(">rating<") < html.index(">note<")


def test_ten_thousand_rows_stay_a_small_table(wrapping: str) -> None:
    growing = table()
    row = json.dumps({"product": "Kettle", "rating": 4, "note": "Boils quickly. " * 3})
    growing.add((wrapping.partition("{}")[0] if len(wrapping) > 2 else "") + "[")
    for _ in range(100):
        growing.add(f"{row}, " * 100)

    html = "".join(growing.html())

    assert len(html.encode()) < 20_000
    assert "10,000 rows" in html
    assert "9,986 more rows" in html


class Tty(io.StringIO):
    """A terminal that somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("watched", [True, False])
def test_a_terminal_shows_final_lines_where_somebody_watches(
    watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = schema_for(list[int])
    out = Tty() if watched else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    view = TerminalView(schema=schema)
    view.draw(News('{"result": [1, 2'))
    assert ("0: 1" in out.getvalue()) is watched
    assert "1: 2" not in out.getvalue()
    view.again()
    view.draw(News('{"result": [7, 8]}'))
    assert ("0: 7" in out.getvalue()) is watched
    view.finish([7, 8], "")
    assert out.getvalue().endswith("[7, 8]\n")


def test_final_lines_of_an_object_and_of_many_rows() -> None:
    class Pair(BaseModel):
        a: str
        b: int

    lines = FinalLines(schema_for(Pair))
    assert list(lines.add('{"a": "x')) == []
    assert list(lines.add('y", "b": 3')) == ["a: xy"]
    assert list(lines.add("4}")) == ["b: 34"]
    rows = FinalLines(schema_for(list[int]))
    told = [line for n in range(500) for line in rows.add(f"{',' if n else chr(91)}{n}")]
    assert told == [f"{n}: {n}" for n in range(499)]
