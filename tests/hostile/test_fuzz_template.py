"""Any template over any values: a prompt or one error; no way out, and no value expanded twice."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_magic.errors import InvalidAnswer, PromptError
from llm_magic.prompt import render
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal
from tests.hostile.fuzz import check_message, fuzz, not_hung

CANARY = "the-canary-of-the-globals"
"""In the globals of every function here: a template that prints it has got out of its sandbox."""


class Hostile:
    """An object that fails in some way where it is looked at."""

    def __init__(self, name: str, how: Callable[[], Any]) -> None:
        self.__dict__["name"] = name
        self.__dict__["how"] = how

    def method(self) -> str:
        return "called"

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__
        if name.startswith("__") or found(self, "__dict__")["name"] != "getattr":
            return found(self, name)
        return found(self, "__dict__")["how"]()

    def __str__(self) -> Any:
        return self.__dict__["how"]() if self.__dict__["name"] == "str" else "plain"

    def __repr__(self) -> str:
        return (
            self.__dict__["how"]()
            if self.__dict__["name"] == "repr"
            else f"<{self.__dict__['name']}>"
        )

    def __len__(self) -> int:
        return self.__dict__["how"]() if self.__dict__["name"] == "len" else 3

    def __iter__(self) -> Any:
        return self.__dict__["how"]() if self.__dict__["name"] == "iter" else iter([1, 2])

    def __eq__(self, other: object) -> bool:
        return self.__dict__["how"]() if self.__dict__["name"] == "eq" else self is other

    def __bool__(self) -> bool:
        return self.__dict__["how"]() if self.__dict__["name"] == "bool" else True

    def __format__(self, how: str) -> str:
        return self.__dict__["how"]() if self.__dict__["name"] == "format" else "formatted"

    def __html__(self) -> str:
        return self.__dict__["how"]() if self.__dict__["name"] == "html" else "<b>html</b>"

    __hash__ = object.__hash__


class Described(Hostile):
    """One that tells the model itself what it is."""

    def _repr_llm_(self) -> Any:
        return self.__dict__["how"]()


class Mute(Exception):
    """An error that cannot even be told."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


def fails(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def recursion() -> Any:
    return recursion()


HOWS = st.sampled_from(
    [
        *[fails(ValueError("no")), fails(Mute()), fails(MemoryError()), fails(StopIteration())],
        *[
            fails(RecursionError()),
            recursion,
            fails(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")),
        ],
        *[fails(AttributeError("gone")), fails(KeyError("{{ text }}")), fails(GeneratorExit("x"))],
        *[lambda: None, lambda: 5, lambda: -1, lambda: b"\xff", lambda: "\ud800", lambda: object()],
        *[lambda: "{{ text }}", lambda: "\ufdd0", lambda: 10**30, lambda: [1], lambda: Mute],
    ]
)
NAMES = st.sampled_from(
    ["str", "repr", "getattr", "len", "iter", "eq", "bool", "format", "html", "none"]
)


def looped() -> list[Any]:
    loop: list[Any] = ["x"]
    loop.append(loop)
    return loop


def keyed() -> dict[str, Any]:
    loop: dict[str, Any] = {"text": "x"}
    loop["self"] = loop
    return loop


class Odd(type):
    """The class of classes that lie about themselves."""

    @property
    def __mro__(cls) -> Any:
        raise ValueError("no ancestors")


class Liar(metaclass=Odd):
    """Where it comes from, nobody can tell."""

    __module__ = None  # type: ignore[assignment]


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        [
            *["{{ text }}", "{{ secret }}", "{% for x in y %}", "{#", "}}", "{{", "%}", "\ufdd0"],
            *[
                "{{ ''.__class__ }}",
                "{% raw %}",
                "${text}",
                "%(text)s",
                "{text}",
                "\\u007b{ text }}",
            ],
        ]
    ),
)
VALUES = st.one_of(
    TEXTS,
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4),
    st.builds(Hostile, NAMES, HOWS),
    st.builds(Described, NAMES, HOWS),
    st.builds(looped) | st.builds(keyed) | st.builds(Liar),
    st.lists(TEXTS, max_size=3) | st.dictionaries(TEXTS, TEXTS, max_size=2),
    st.builds(lambda each: pd.DataFrame({"a": each}), st.lists(TEXTS, max_size=2)),
    st.builds(lambda each: pd.Series([each, None]), st.builds(Hostile, NAMES, HOWS)),
    st.sampled_from([Hostile, Mute, len, string, render, ..., Ellipsis, type, object()]),
)
EXPRESSIONS = st.recursive(
    st.sampled_from(
        [
            *[
                "value",
                "other",
                "nothing",
                "1",
                "''",
                "[]",
                "{}",
                "none",
                "loop",
                "self",
                "value.x",
            ],
            *[
                "range(5)",
                "range(10**9)",
                "'a' * 10**18",
                "lipsum",
                "cycler",
                "namespace()",
                "dict",
            ],
            *["value.method", "value.method()", "value[0]", "value['a']", "9 ** 99", "1 / 0"],
        ]
    ),
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(
                [
                    *["upper", "tojson", "list", "length", "join(',')", "first", "safe", "e"],
                    *["string", "pprint", "sort", "unique", "sum", "int", "float", "escape"],
                    *["format('x')", "attr('name')", "map(attribute='a')", "tojson(9)", "random"],
                    *["default('x')", "replace('a', '{{ other }}')", "batch(2)", "xmlattr", "nope"],
                ]
            ),
        ).map("|".join),
        st.tuples(inner, inner).map(" ~ ".join),
        st.tuples(inner, inner).map(" in ".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} if {two[1]} else value)"),
        st.tuples(st.sampled_from(["str", "len", "list", "repr", "sorted", "sum"]), inner).map(
            lambda two: f"{two[0]}({two[1]})"
        ),
    ),
    max_leaves=4,
)
PARTS = st.one_of(
    TEXTS,
    EXPRESSIONS.map(lambda each: f"{{{{ {each} }}}}"),
    EXPRESSIONS.map(lambda each: f"{{% if {each} %}}yes{{% endif %}}"),
    EXPRESSIONS.map(lambda each: f"{{% for x in ({each})|list %}}{{{{ x }}}}{{% endfor %}}"),
    EXPRESSIONS.map(lambda each: f"{{% set x = {each} %}}{{{{ x }}}}"),
    st.sampled_from(
        [
            *["{% include 'x' %}", "{% import 'os' as os %}", "{% extends value %}", "{% do x %}"],
            *["{% macro m(a) %}{{ a }}{% endmacro %}{{ m(value) }}", "{% block b %}{% endblock %}"],
            *["{% filter upper %}{{ value }}{% endfilter %}", "{% call x() %}{% endcall %}"],
            *["{% raw %}{{ value }}{% endraw %}", "{{ self._TemplateReference__context }}"],
            "{% for x in range(99999) %}{{ loop.index0 % 2 }}{% endfor %}",
            "{% for x in [value] recursive %}{{ loop([value]) if loop.depth < 50 }}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            *["{{" + "(" * 500 + ")" * 500 + "}}", "{{ " + "not " * 3000 + "value }}"],
        ]
    ),
)
TEMPLATES = st.lists(PARTS, max_size=4).map("".join)


def rendered(source: str, names: Mapping[str, Any]) -> Any:
    """The content, or None where there is one error of ours."""
    with not_hung():
        try:
            return render(source, names)
        except PromptError as error:
            refusal = error
    check_message(refusal)
    assert CANARY not in str(refusal)
    return None


@fuzz(200)
@given(source=TEMPLATES, value=VALUES, other=VALUES)
@example(source="{{ value }}", value=Hostile("str", fails(GeneratorExit("x"))), other=None)
def test_any_template_over_any_values_is_a_prompt_or_one_error(
    source: str, value: Any, other: Any
) -> None:
    content = rendered(source, {"value": value, "other": other, "text": "T", "secret": CANARY})

    assert content is None or isinstance(content, str | list)


@fuzz(25)
@given(source=TEMPLATES, value=VALUES, system=TEMPLATES)
def test_a_cell_shows_no_traceback_whatever_its_template(
    terminal: Terminal, server: ScriptedServer, source: str, value: Any, system: str
) -> None:
    terminal.shell.run_line_magic("config", "LLMMagic.quota_requests = None")
    terminal["value"], terminal["other"], terminal["preamble"] = value, "o", system
    sent = len(server.requests)
    refused: BaseException | None = None

    with not_hung():
        try:
            terminal.shell.run_cell_magic("llm", "-s '{{ preamble }}'", source or " ")
        except (PromptError, InvalidAnswer) as error:
            refused = error

    assert len(server.requests) == sent + (refused is None)
    if refused is None:
        messages = server.requests[-1].body["messages"]
        # What a value holds is text, also in the system message.
        found = [each["content"] for each in messages if each["role"] == "system"]
        assert found == ([system.replace("\ufdd0", "")] if system else [])


# Ways out of a sandbox, in pieces


class Box:
    """What a notebook has: its method knows the globals of its module."""

    values = (1, 2)

    def method(self) -> str:
        return "called"


STARTS = [
    *["''", "[]", "{}", "1", "box", "box.method", "text", "function", "frame", "lipsum", "cycler"],
    *["namespace", "range", "dict", "self", "loop", "joiner", "str", "len", "repr", "list"],
    *["box.values", "'{0}'", "'%s'", "generator", "error"],
]
STEPS = [
    *[
        "__class__",
        "__mro__",
        "__base__",
        "__bases__",
        "__subclasses__()",
        "__globals__",
        "__init__",
    ],
    *["__dict__", "__builtins__", "__self__", "__func__", "__code__", "__closure__", "__wrapped__"],
    *["gi_frame", "f_globals", "f_back", "f_builtins", "mro()", "__reduce__()", "__getattribute__"],
    *["__import__('os')", "os", "sys", "CANARY", "environ", "_env", "environment", "__traceback__"],
    *["tb_frame", "format_map({})", "__module__", "__call__", "__get__", "__format__('')"],
]


def step(name: str, how: int) -> str:
    """One step to an attribute, written in one of the ways that there are."""
    word, call = name.split("(")[0], name[len(name.split("(")[0]) :]
    spelt = "'~'".join([word[:2], word[2:]])
    ways = [
        f".{name}",
        f"['{word}']{call}",
        f"|attr('{word}')",
        f"|attr('{spelt}')",
        f"['{spelt}']{call}",
        f"|map(attribute='{word}')|list",
        f"|format_map({{'{word}': 1}})",
        f"['\\x5f\\x5f{word[2:]}']{call}",
    ]
    return ways[how]


STEP = st.builds(step, st.sampled_from(STEPS), st.integers(0, 7))
CHAINS = st.tuples(st.sampled_from(STARTS), st.lists(STEP, min_size=1, max_size=6)).map(
    lambda two: two[0] + "".join(two[1])
)
FORMATS = st.lists(st.sampled_from([s.split("(")[0] for s in STEPS]), min_size=1, max_size=4).map(
    lambda names: "'{0." + ".".join(names) + "}'"
)
WAYS_OUT = st.one_of(
    CHAINS,
    FORMATS.map(lambda each: f"{each}.format(box.method)"),
    FORMATS.map(lambda each: f"{each}.format_map({{'0': function}})"),
    FORMATS.map(lambda each: f"({each}|safe).format(function)"),
    FORMATS.map(lambda each: f"[{each}]|map('format', function)|list"),
    FORMATS.map(lambda each: f"str.format({each}, function)"),
    FORMATS.map(lambda each: f"(str|attr('format'))({each}, function)"),
    FORMATS.map(lambda each: f"str['format_map']({each}, {{'0': function}})"),
    FORMATS.map(lambda each: f"[{each}.format]|map('call', function)|list"),
    CHAINS.map(lambda each: f"({each})|list"),
    CHAINS.map(lambda each: f"sorted([{each}])"),
)


def function() -> str:
    return CANARY[:0]


def generator() -> Any:
    yield function()


def an_error() -> Exception:
    try:
        raise ValueError("no")
    except ValueError as error:
        return error


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return {
        "box": Box(),
        "function": function,
        "generator": generator(),
        "frame": pd.DataFrame({"a": [1]}),
        "error": an_error(),
        "text": "T",
    }


@fuzz(200)
@given(way=WAYS_OUT)
@example(way="function.__globals__.CANARY")
@example(way="'{0.__globals__}'.format(function)")
@example(way="str.format('{0.__globals__}', function)")
@example(way="error.__traceback__.tb_frame.f_globals.CANARY")
def test_no_expression_gets_out_of_the_sandbox(names: dict[str, Any], way: str) -> None:
    """By its ways the globals of a notebook's function could be had, and through them all else."""
    content = rendered(f"It is {{{{ {way} }}}}.", names)

    assert CANARY not in str(content)


# Values


@fuzz(80)
@given(value=TEXTS, before=st.text(string.ascii_letters, max_size=3))
def test_a_value_is_never_expanded(value: str, before: str) -> None:
    """Not in a list, a loop, a macro, a filter, a table, nor when it was put together of parts."""
    seen = value.replace("\ufdd0", "")
    ways = {
        "{{ value }}": seen,
        "{{ value ~ value }}": seen + seen,
        "{% for x in [value] %}{{ x }}{% endfor %}": seen,
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(value) }}": seen,
        "{% set x = value %}{{ x }}": seen,
        "{{ [value, value]|join('-') }}": f"{seen}-{seen}",
        "{{ described }}": seen,
        "{{ '{' ~ '{ secret }}' }}": "{{ secret }}",
    }
    names = {
        "value": value,
        "described": Described("none", lambda: value),
        "secret": CANARY,
    }
    for way, expected in ways.items():
        content = rendered(f"{before}:{way}.", names)
        assert content is None or content == f"{before}:{expected}."
        assert CANARY not in str(content)
        assert content is not None or "\ud800" in value
