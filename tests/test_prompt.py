"""A cell's body as a template: what is replaced, what stays, and what is said when it fails."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llm_magic.errors import PromptError
from llm_magic.prompt import check_text, messages, render

UNTOUCHED = [
    '{"a": {"b": 1}}',
    '{"a": {"b": {"c": [{}]}}}',
    r"\frac{a}{b} and \newcommand{\x}[1]{#1} and {#2}",
    "f'{name!r:>10} and {total:.2f}'",
    'print(f"{x}")  # {not a comment}',
    "a } b { c }} d",
    "{ {name} }",
    "${HOME} $name `ls` !pwd %time ?",
    "# heading\n## a line statement? % if no",
    "tabs\tand  spaces \\n stay",
    "{#",
    "#}",
    "\u202eright to left\u202c",
    "emoji 🍏 and \x00 and \u2028.",
]


@pytest.mark.parametrize("source", UNTOUCHED)
@pytest.mark.parametrize("raw", [False, True])
def test_text_is_left_as_it_is(source: str, raw: bool) -> None:
    assert render(source, {"name": "NO", "x": "NO", "total": 1}, raw=raw) == source


@pytest.mark.parametrize("source", UNTOUCHED)
def test_text_beside_a_value_is_left_as_it_is(source: str) -> None:
    assert render(f"{{{{ v }}}} {source}", {"v": 7}) == f"7 {source}"


def test_json_with_two_braces_together_says_what_to_do() -> None:
    """The one collision: it must not pass in silence."""
    with pytest.raises(PromptError) as caught:
        render('{{"a": 1} and {"b": 2}}', {})

    assert "--raw" in caught.value.fix
    assert 1 <= len(caught.value._render_traceback_()) <= 3


NAMES: dict[str, Any] = {
    "n": 3,
    "xs": [1, 2],
    "text": "a < b & 'c'",
    "secret": "SECRET",
    "inner": "{{ secret }} {% raw %} {{ 1 / 0 }}",
    "point": SimpleNamespace(x=1.5, label="P"),
    "table": {"key": "value", "a b": 1},
    "add": lambda a, b=0: a + b,
    "nothing": None,
    "id": "the notebook's own",
    "dict": {"a": 1},
}


@pytest.mark.parametrize(
    ("source", "expanded"),
    [
        ("{{ n }}{{n}}", "33"),
        ("{{ n + 1 }} {{ n / 2 }} {{ n ** 2 }} {{ -n }}", "4 1.5 9 -3"),
        ("{{ text }}", "a < b & 'c'"),
        ("{{ inner }}", "{{ secret }} {% raw %} {{ 1 / 0 }}"),
        ("{{ point.x }} {{ point['label'] }}", "1.5 P"),
        ("{{ table.key }} {{ table['a b'] }}", "value 1"),
        ("{{ xs[0] }} {{ xs[-1] }} {{ xs[:1] }}", "1 2 [1]"),
        ("{{ add(1, b=2) }}", "3"),
        ("{{ len(xs) }} {{ sum(xs) }} {{ max(xs) }} {{ str(n) + '!' }}", "2 3 2 3!"),
        ("{{ sorted(xs) }} {{ round(1.25, 1) }} {{ repr('a') }}", "[1, 2] 1.2 'a'"),
        ("{% for x in xs %}{{ x }};{% endfor %}", "1;2;"),
        ("{% for i, x in enumerate(xs) %}{{ i }}{{ x }} {% endfor %}", "01 12"),
        ("{% if n > 2 %}big{% else %}small{% endif %}", "big"),
        ("{% set m = n * 2 %}{{ m }}", "6"),
        ("{% raw %}{{ n }}{% endraw %}", "{{ n }}"),
        ("{{ '{{' }} n {{ '}}' }}", "{{ n }}"),
        ("{{ nothing }}", "None"),
        ("{{ id }} {{ dict }}", "the notebook's own {'a': 1}"),
        ("{{ text | upper }}", "A < B & 'C'"),
        ("{{ missing | default('none') }}", "none"),
        ("{% for x in xs %}\n- {{ x }}\n{% endfor %}", "- 1\n\n- 2"),
    ],
)
def test_what_is_replaced(source: str, expanded: str) -> None:
    assert str(render(source, NAMES)).strip() == expanded


def test_a_table_is_summed_up() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": range(50)})

    text = str(
        render("Look:\n{{ df }}\n{{ len(df) }} {{ df.a.sum() }} {{ df['a'].max() }}", {"df": frame})
    )

    assert text.startswith("Look:\nDataFrame: 50 rows x 1 columns")
    assert text.endswith("\n50 1225 49")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_is_put_in_as_it_is(value: str) -> None:
    assume("\ufdd0" not in value)

    assert render("[{{ v }}]", {"v": value}) == f"[{value}]"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_sent_raw(source: str) -> None:
    assume(source.strip())

    assert render(source, {}, raw=True) == source.strip("\r\n").rstrip()


def test_raw_leaves_all() -> None:
    source = "{{ n }} {% for %} {# #} {{ undefined"

    assert render(source, NAMES, raw=True) == source


@pytest.mark.parametrize("raw", [False, True])
def test_lines_around_the_prompt_go_and_its_indentation_stays(raw: bool) -> None:
    assert render("\r\n\n    code\n\n  more  \n\n", {}, raw=raw) == "    code\n\n  more"


def test_lines_inside_a_value_stay() -> None:
    assert render("{{ v }}\nend\n", {"v": "a\n\n"}) == "a\n\n\nend"


@pytest.mark.parametrize(
    "source", ["", " ", "\n\n\t \r\n", "{{ '' }}", "{{ ' ' }}\n", "{% if 0 %}x{% endif %}"]
)
def test_an_empty_prompt_is_refused(source: str) -> None:
    with pytest.raises(PromptError, match="The prompt is empty; nothing was sent") as caught:
        render(source, {})

    assert len(caught.value._render_traceback_()) == 2


FAILING = {
    "{% for %}": ["Line 1", "--raw"],
    "one\ntwo\n{{ n + }}": ["Line 3", "--raw"],
    "{{ n": ["Line 1", "--raw"],
    "{% if n %}": ["Line 1", "--raw"],
    "{% nonsense %}": ["Line 1", "nonsense", "--raw"],
    "{{ n | nofilter }}": ["nofilter", "--raw"],
    "{{ tabel }}": ["{{ tabel }}", "Did you mean {{ table }}?", "--raw"],
    "{{ zzzz }}": ["{{ zzzz }}", "Define zzzz first", "--raw"],
    "{{ zzzz.a.b }}": ["{{ zzzz }}"],
    "{{ zzzz(1) }}": ["{{ zzzz }}"],
    "{% for x in zzzz %}{{ x }}{% endfor %}": ["{{ zzzz }}"],
    "{{ point.y }}": [".y", "SimpleNamespace", "dir("],
    "{{ point.y.z }}": [".y", "SimpleNamespace"],
    "{{ table.nokey }}": ["nokey", "dict"],
    "{{ 1 / 0 }}": ["ZeroDivisionError", "division by zero", "--raw"],
    "{{ add(1, 2, 3) }}": ["TypeError", "--raw"],
    "{{ n + text }}": ["TypeError", "--raw"],
    "{{ ''.__class__.__mro__ }}": ["__class__", "unsafe"],
    "{{ ''['__class__'] }}": ["__class__", "unsafe"],
    "{{ add.__globals__ }}": ["__globals__", "unsafe"],
    "{{ open('/etc/passwd').read() }}": ["{{ open }}"],
    "{{ __import__('os') }}": ["{{ __import__ }}"],
    "{{ fail() }}": ["ValueError", "--raw"],
    "{{ '{0.__class__}'.format(1) }}": ["SecurityError"],
}


@pytest.mark.parametrize("source", FAILING)
def test_a_failing_template_says_where_and_what(source: str) -> None:
    """In one to three lines, and nothing is sent."""

    def fail() -> None:
        raise ValueError("a message\nof many\nlines\n" * 3)

    with pytest.raises(PromptError) as caught:
        render(source, NAMES | {"fail": fail})

    assert all(words in str(caught.value) for words in FAILING[source])
    assert "nothing was sent" in str(caught.value)
    assert 1 <= len(caught.value._render_traceback_()) <= 3


def test_a_private_name_is_not_suggested() -> None:
    with pytest.raises(PromptError) as caught:
        render("{{ hidde }}", {"_hidden": 1})

    assert "_hidden" not in str(caught.value)


def test_an_interrupt_in_a_template_goes_through() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render("{{ stop() }}", {"stop": stop})


def test_a_refused_value_says_so_itself() -> None:
    with pytest.raises(PromptError, match="not UTF-8 text"):
        render("{{ data }}", {"data": b"\xff"})


def test_the_notebook_is_not_changed() -> None:
    names = dict(NAMES)

    render("{% set n = 9 %}{% set new = 1 %}{{ n }}", names)

    assert names == NAMES


@pytest.mark.parametrize(
    ("source", "names", "raw"),
    [
        ("caf\udce9", {}, False),
        ("caf\udce9", {}, True),
        ("caf{{ v }}", {"v": "\udce9"}, False),
        ("caf{{ v }}", {"v": ["\ud83d"]}, False),
    ],
)
def test_half_a_character_is_refused(source: str, names: dict[str, Any], raw: bool) -> None:
    if isinstance(names.get("v"), list):
        # repr escapes it, so that it can be sent.
        assert render(source, names) == r"caf['\ud83d']"
        return
    with pytest.raises(PromptError, match=r"position 3 \('\\udce9'\)") as caught:
        render(source, names, raw=raw)

    assert "encoding" in caught.value.fix
    assert 1 <= len(caught.value._render_traceback_()) <= 3
    caught.value._render_traceback_()[0].encode()


def test_whole_characters_pass() -> None:
    check_text("🍏 \U0010ffff \ufffd \x00")


def test_the_messages() -> None:
    user = {"role": "user", "content": "Hi"}

    assert messages("Hi") == messages("Hi", "") == (user,)
    assert messages("Hi", "Be brief") == ({"role": "system", "content": "Be brief"}, user)


@pytest.mark.parametrize(
    "expression", ["(" * 500 + ")" * 500, "not " * 3000 + "x", "9" * 5000], ids=["()", "not", "9"]
)
def test_a_template_that_cannot_be_read_is_refused(expression: str) -> None:
    """Python itself gives up where something is nested too deeply, or has too many digits."""
    with pytest.raises(PromptError, match="nothing was sent") as caught:
        render(f"{{{{ {expression} }}}}", {"x": 1})

    assert 1 <= len(caught.value._render_traceback_()) <= 3


def test_an_error_without_words_is_named_by_its_class() -> None:
    """That of an object in the notebook, which fails where its words are asked for as well."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    class Value:
        def __str__(self) -> str:
            raise Mute

    with pytest.raises(PromptError, match="The template failed with Mute; nothing was sent"):
        render("{{ value }}", {"value": Value()})


SECRET = "of-the-module"


@pytest.mark.parametrize(
    "expression",
    [
        "str.format('{0.__globals__[SECRET]}', function)",
        "str['format']('{0.__globals__[SECRET]}', function)",
        "(str|attr('format'))('{0.__globals__[SECRET]}', function)",
        "str.format_map('{f.__globals__[SECRET]}', {'f': function})",
        "'{0.__globals__[SECRET]}'.format(function)",
    ],
)
def test_a_format_string_reads_no_more_than_the_template_may(expression: str) -> None:
    """The globals of a function have all that its module knows, keys in the environment too."""

    def function() -> None:
        """One of the notebook's."""

    with pytest.raises(PromptError, match="nothing was sent") as caught:
        render(f"{{{{ {expression} }}}}", {"function": function})

    assert SECRET not in str(caught.value)


def test_a_format_string_of_a_template_works_for_what_it_may_read() -> None:
    assert render("{{ '{:.1f} {}'.format(x, name) }}", {"x": 1.25, "name": "a"}) == "1.2 a"
