"""Nothing that a model says acts: its words through every way in which they become HTML."""

import dataclasses
import html
import json
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from markdown_it import MarkdownIt

from llm_magic import errors, plain
from llm_magic.progress import Plan, Standing, Summary
from llm_magic.structured import Schema, schema_for
from llm_magic.testing import Reply, ScriptedServer
from llm_magic.types import Response, Usage
from llm_magic.views import render
from llm_magic.views.base import News
from llm_magic.views.columns import Part, side_by_side
from llm_magic.views.growing import GrowingMarkdown, GrowingValue, value_html
from llm_magic.views.maths import acts
from llm_magic.views.notebook import NotebookView, display_report, saved_form
from llm_magic.views.render import markdown_html, status_html, thoughts_html
from llm_magic.views.rows import (
    PlanReport,
    growing_rows,
    plan_html,
    saved_rows,
    standing_html,
)
from llm_magic.views.tables import Table
from tests.conftest import Kernel, Terminal
from tests.payloads import DEEP, documents, payloads

PAYLOADS = payloads(9)
EACH = pytest.mark.parametrize("text", PAYLOADS.values(), ids=PAYLOADS)

# What we emit, and no more. Only these tags and, for each, these attributes.
_PLAIN = "h1 h2 h3 h4 h5 h6 em strong s br hr ul li blockquote table thead tbody small div"
BAR = {"aria-label", "aria-valuemin", "aria-valuemax", "aria-valuenow"}
ATTRIBUTES: dict[str, set[str]] = {
    **{tag: set() for tag in _PLAIN.split()},
    "details": set(),
    "summary": set(),
    "p": {"style"},
    "pre": {"style"},
    "ol": {"start"},
    "a": {"href", "title", "rel", "target"},
    "code": {"class"},
    "span": {"class", "style", "dir", "role", *BAR},
    "tr": {"style"},
    "th": {"style"},
    "td": {"style", "colspan"},
}
VOID = {"br", "hr"}
SIDES = "|".join(f"text-align:{side}" for side in ("left", "right", "center"))
VALUES: dict[tuple[str, str], str] = {
    ("p", "style"): r"opacity: 0\.65",
    ("tr", "style"): r"opacity: 0\.6",
    ("th", "style"): rf"({SIDES})(;vertical-align:top|;white-space:nowrap)?",
    ("td", "style"): rf"({SIDES})(;vertical-align:top|;white-space:nowrap)?",
    ("pre", "style"): r"white-space: pre-wrap"
    r"|(--[a-z]:var\(--jp-mirror-editor-[a-z]+-color, #[0-9a-f]{3,6}\)(;(?=-)|$))+",
    ("td", "colspan"): r"\d+",
    ("span", "style"): r"color:var\(--[a-z]\)"
    r"|display: inline-block; vertical-align: middle; width: 9em; height: 5px; border-radius: 3px; "
    r"margin-right: 0\.8em; background: linear-gradient\(to right, "
    r"var\(--jp-brand-color1, #1976d2\) [\d.]+%, var\(--jp-border-color1, #bdbdbd\) [\d.]+%\)",
    ("span", "role"): "progressbar",
    ("span", "aria-label"): "rows done",
    **{("span", f"aria-value{name}"): r"[\d.]+" for name in ("min", "max", "now")},
    ("span", "class"): "tex2jax_ignore mathjax_ignore",
    ("span", "dir"): "auto",
    ("code", "class"): r"language-[A-Za-z0-9+#._-]{1,40}",
    ("ol", "start"): r"\d+",
    ("a", "rel"): "noopener noreferrer",
    ("a", "target"): "_blank",
    ("a", "title"): r"[\s\S]*",
    ("a", "href"): r"[\s\S]*",
}
# Maths that JupyterLab's MathJax finds in a text, outside of code and of what it is told to ignore.
ACTING = re.compile(r"\\(href|style|class|cssId|bbox|mmlToken|require|[gex]?def|newcommand|html)")


class Checker(HTMLParser):
    """Finds what should not be in HTML; shares no code with what makes it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self._ignored: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ATTRIBUTES:
            self.found.append(f"<{tag}>")
        if len(attrs) != len(dict(attrs)):
            self.found.append(f"<{tag}> has an attribute twice")
        for name, value in attrs:
            self._attribute(tag, name, value or "")
        if tag == "a":
            if "a" in self.open:
                self.found.append("a link in a link")
            missing = {"href", "rel", "target"} - {name for name, _ in attrs}
            self.found.extend(f"a link without {name}" for name in missing)
        if tag not in VOID:
            self.open.append(tag)
            ignored = tag in ("pre", "code") or "mathjax_ignore" in str(attrs)
            self._ignored.append(ignored or any(self._ignored[-1:]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.found.append(f"<{tag}/>")
        self.handle_starttag(tag, attrs)

    def _attribute(self, tag: str, name: str, value: str) -> None:
        if name not in ATTRIBUTES.get(tag, set()):
            self.found.append(f"<{tag} {name}>")
        elif not re.fullmatch(VALUES[tag, name], value):
            self.found.append(f"<{tag} {name}={value!r}>")
        elif name == "href":
            # As browsers read it: without control characters and spaces.
            address = re.sub(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\ufeff]", "", value)
            scheme = urlsplit(address).scheme if "[" not in address else address.split(":")[0]
            if scheme.lower() not in ("http", "https", "mailto") and not address.startswith("#"):
                self.found.append(f"a link to {value!r}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.found.append(f"</{tag}> in {self.open}")
        else:
            self.open.pop()
            self._ignored.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if ACTING.search(data) and not any(self._ignored[-1:]):
            self.found.append(f"maths that acts: {data!r}")

    def handle_comment(self, data: str) -> None:
        self.found.append(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        self.found.append(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        self.found.append(f"an instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        self.found.append(f"a declaration: {data!r}")


def faults(source: str) -> list[str]:
    """What is wrong with this HTML."""
    checker = Checker()
    checker.feed(source)
    # html.parser keeps what may be the start of a tag until the end.
    rest = checker.rawdata
    checker.close()
    left_open = [f"<{tag}> is left open" for tag in checker.open]
    return checker.found + left_open + ([f"half a tag: {rest!r}"] if "<" in rest else [])


def words(source: str) -> str:
    """The text that this HTML shows."""
    checker = Checker()
    checker.feed(source)
    checker.close()
    return "".join(checker.words)


# --- The checker itself


@pytest.mark.parametrize(
    "bad",
    [
        "<script>1</script>",
        "<img src=x>",
        "<p onclick=x>a</p>",
        "<P ONCLICK=x>a</P>",
        "<p id=main>a</p>",
        "<p data-commandlinker-command=x>a</p>",
        "<p style='position:fixed'>a</p>",
        "<td style='text-align:left;position:fixed'>a</td>",
        "<span role=button>a</span>",
        "<span aria-label='pay here'>a</span>",
        "<span style='color: var(--jp-mirror-editor-x-color, url(x))'>a</span>",
        "<span class='tex2jax_ignore mathjax_ignore jp-x'>a</span>",
        "<code class='language-a b'>a</code>",
        "<code class='language-a\fb'>a</code>",
        "<a href='javascript:1' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='java&#10;script:1' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='&#1;javascript&colon;1' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='//x.example' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='/tree' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='data:text/html,x' rel='noopener noreferrer' target=_blank>a</a>",
        "<a href='https://x.example'>a</a>",
        "<a href='#' href='javascript:1' rel='noopener noreferrer' target=_blank>a</a>",
        "<p>a",
        "<p>a</p></div>",
        "<em><strong>a</em></strong>",
        "<p><img src=x onerror=1 ",
        "<!-- a -->",
        "<!doctype html>",
        "<?php ?>",
        "<p/>",
        "<p>$\\href{javascript:1}{x}$</p>",
        "<p>\\(\\class{a}{x}\\)</p>",
    ],
)
def test_the_checker_finds_what_is_bad(bad: str) -> None:
    assert faults(bad)


def test_the_checker_lets_pass_what_is_good() -> None:
    good = (
        '<p style="opacity: 0.65"><small>m · 1 in</small></p><pre><code class="language-c++">'
        "\\href &lt;script&gt;</code></pre><ul>\n<li>a<br>b</li></ul><hr>"
        '<a href="https://x.example/?a=b" title="&quot;" rel="noopener noreferrer" '
        'target="_blank">a</a>'
    )

    assert faults(good) == []


def test_the_corpus_is_large_and_shows_itself() -> None:
    assert len(PAYLOADS) >= 120
    assert len(set(PAYLOADS.values())) == len(PAYLOADS)
    assert sum("PWNED" in text or ":9/leak" in text for text in PAYLOADS.values()) >= 110


# --- Every way in which words become HTML


@EACH
def test_as_an_answer(text: str) -> None:
    assert faults(markdown_html(text)) == []
    assert faults(saved_form(text, text, text)["text/html"]) == []


@EACH
def test_as_reasoning(text: str) -> None:
    assert faults(thoughts_html(text)) == []


@EACH
def test_side_by_side(text: str) -> None:
    parts = [Part(text, text, text, text), Part(text, {text: [text]}, text)]

    assert faults(side_by_side(parts)["text/html"]) == []


@EACH
def test_inside_of_markdown(text: str) -> None:
    assert faults(markdown_html(f"Before\n\n> - {text}\n\nafter {text}")) == []
    assert faults(markdown_html(f"| a | b |\n|---|---|\n| {text} | x |\n\n[{text}](#x)")) == []


@EACH
def test_at_every_moment_of_its_coming(text: str) -> None:
    growing = GrowingMarkdown()
    for letter in text:
        growing.add(letter)
        closed, last = growing.html()
        assert faults(status_html("m") + closed) == faults(last) == []


@EACH
def test_as_a_status(text: str) -> None:
    assert faults(status_html(text)) == []
    assert faults(status_html(_response(model=text).status())) == []


@EACH
def test_as_a_value(text: str) -> None:
    @dataclasses.dataclass
    class Item:
        name: str
        more: Any

    for value in (
        {text: text},
        [{text: text}, {text: [text]}],
        [text],
        {"a": {text: {text: text}}},
        Item(text, [text]),
        [Item(text, {text: 1})] * 2,
        {text},
        (text, 1),
        SimpleNamespace(name=text),
    ):
        assert faults(value_html(value)) == []


@EACH
def test_as_a_value_that_grows(text: str) -> None:
    for kind, value in ((dict[str, str], {text: text}), (list[dict[str, Any]], [{text: text}] * 2)):
        said = json.dumps(value)
        for end in (len(said), *range(0, len(said), 7)):
            growing = GrowingValue(_schema(kind))
            growing.add(said[:end])
            assert faults("".join(growing.html())) == []


@EACH
def test_in_a_table(text: str) -> None:
    table = Table((text, " used"), [(text, text), (text, "2")], title=text, note=text, total=True)

    assert faults(table._repr_html_()) == []


@EACH
def test_in_a_run_over_rows(text: str) -> None:
    """As a model's name, a column, a cell, an error, a notice, a prompt."""
    shown = {"names": (text, text), "rows": ((text, text), ("", text))}
    standing = Standing(9, done=2, notice=text, problem=text, **shown)
    plan = Plan(9, looked_at=9, model=text, prompts=(text, text), expected_from=text)
    summary = Summary(text, ((text, 2, (1, 2)),) * 12, **shown)
    pieces = [
        standing_html(standing),
        plan_html(plan),
        growing_rows(standing),
        saved_rows(summary, plan)["text/html"],
        PlanReport(replace(plan, expected=Decimal(1)))._repr_html_(),
    ]

    assert [faults(each) for each in pieces] == [[]] * len(pieces)


class Shell:
    """What a kernel would publish, in this process."""

    def __init__(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pub = CapturingDisplayPublisher(parent=terminal.shell)
        monkeypatch.setattr(terminal.shell, "display_pub", self.pub)
        # A terminal's shell makes nothing but plain text of objects.
        formatter = terminal.shell.display_formatter
        formatter.active_types = formatter.format_types

    @property
    def html(self) -> list[str]:
        """The HTML of every display and update."""
        return [each["data"]["text/html"] for each in self.pub.outputs]


@pytest.fixture
def published(bare_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(bare_terminal, monkeypatch)


def test_as_a_report(published: Shell) -> None:
    for text in PAYLOADS.values():
        display_report(text)

    assert len(published.html) == len(PAYLOADS)
    assert [faults(each) for each in published.html if faults(each)] == []


def test_in_a_view_of_a_notebook(published: Shell) -> None:
    """As label, words, notice, answer and status."""
    for text in PAYLOADS.values():
        view = NotebookView()
        view.start(text, lambda: None)
        view.draw(News(text))
        view.draw(News(text, text, text))
        view.finish(text, text, text)

    assert len(published.html) == 4 * len(PAYLOADS)
    assert [faults(each) for each in published.html if faults(each)] == []


def test_in_a_view_of_values(published: Shell) -> None:
    for text in PAYLOADS.values():
        view = NotebookView(_schema(dict[str, str]))
        view.draw(News(json.dumps({text: text}), text, text))
        view.finish({text: text}, text)

    assert len(published.html) == 2 * len(PAYLOADS)
    assert [faults(each) for each in published.html if faults(each)] == []


def test_in_the_tables_of_the_magics(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    """A model's name from the server, and the words of a prompt."""
    bad = '<img src=x onerror=1> $\\href{javascript:1}{x}$ "'
    server.enqueue(Reply("Hello", model=bad))
    terminal.run(f"%%llm --raw\n{bad}")
    usage, kept = terminal.run("%llm_usage").value, terminal.run("%llm_cache list").value

    assert bad[:20] in repr(usage)
    assert bad[:20] in repr(kept)
    assert faults(usage._repr_html_()) == faults(kept._repr_html_()) == []


def test_a_class_of_the_user_may_draw_itself(published: Shell) -> None:
    """Its code is the user's own; the status below it is ours."""

    class Own:
        def _repr_html_(self) -> str:
            return "<b id=own>mine</b>"

    NotebookView().finish(Own(), "<script>")

    assert published.html == [status_html("<script>") + "<b id=own>mine</b>"]


def test_a_field_cannot_pass_for_a_method_that_draws(published: Shell) -> None:
    from pydantic import BaseModel, ConfigDict

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    bad = "<script>window.PWNED=1</script>"
    value = Open.model_validate(dict.fromkeys(("_repr_html_", "_repr_mimebundle_", "a"), bad))
    NotebookView().finish(value, "")

    assert faults(published.html[0]) == []


# --- Formulas


@pytest.mark.parametrize("macro", ["href", "style", "class", "cssId", "bbox", "require", "gdef"])
@pytest.mark.parametrize(
    "around",
    [
        "${}$",
        "$${}$$",
        "\\({}\\)",
        "\\[{}\\]",
        "$$\n{}\n$$",
        "\\begin{{align}}\n{}\n\\end{{align}}",
    ],
)
def test_a_formula_that_acts_is_shown_as_its_source(macro: str, around: str) -> None:
    source = markdown_html(around.format(f"\\{macro}{{a}}{{b}}"))

    assert faults(source) == []
    assert f"\\{macro}{{a}}{{b}}" in words(source)
    assert "<code>" in source


@pytest.mark.parametrize(
    "formula",
    [
        "\\frac{a}{b}",
        "\\textstyle x",
        "\\classes",
        "\\left( x \\right)",
        "\\leq",
        "\\hrefs",
        "\\det",
    ],
)
def test_a_formula_that_only_looks_like_one_stays_one(formula: str) -> None:
    assert not acts(formula)
    assert markdown_html(f"${formula}$") == f"<p>${html.escape(formula)}$</p>\n"


@pytest.mark.parametrize(
    "text", ["\\\\(x\\\\)", "&#92;(x&#92;)", "&#36;x&#36;", "`$`x&#36;", "\\$x\\$"]
)
def test_what_is_written_as_text_is_no_formula(text: str) -> None:
    apart = re.sub(r'<span class="tex2jax_ignore mathjax_ignore">.</span>', "", markdown_html(text))

    assert not re.search(r"[$\\]", re.sub("<code>.*?</code>", "", apart))


def test_a_value_is_no_formula() -> None:
    source = value_html({"a": "\\(x\\) $y$ \\begin{a}"}) + status_html("\\[x\\]")
    apart = source.replace('<span class="tex2jax_ignore mathjax_ignore">\\</span>', "")

    assert "\\" not in apart
    assert words(source).startswith("a\\(x\\) $y$ \\begin{a}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\\[x\\] is good", "<p>$$x$$ is good</p>\n"),
        ("see \\[x\\] there", "<p>see $$x$$ there</p>\n"),
        ("$$x$$ (1)", "<p>$$x$$ (1)</p>\n"),
        ("\\[\nx\n\\]\nafter", "<div>$$\nx\n$$</div>\n<p>after</p>\n"),
        ("before\n\\[\nx\n\\]", "<p>before</p>\n<div>$$\nx\n$$</div>\n"),
        ("> $$\n> x\n> $$", "<blockquote>\n<div>$$\nx\n$$</div>\n</blockquote>\n"),
        ("- \\[\n  x\n  \\]\n- b", "<ul>\n<li>\n<div>$$\nx\n$$</div>\n</li>\n<li>b</li>\n</ul>\n"),
        ("\\[\nx\n\ny\n\\]", "<div>$$\nx\n\ny\n$$</div>\n"),
        (
            "\\begin{align}\na &= b \\\\\n\\end{align}",
            "<div>\\begin{align}\na &amp;= b \\\\\n\\end{align}</div>\n",
        ),
        ("- \\[\n\nx \\]", "<ul>\n<li>[</li>\n</ul>\n<p>x ]</p>\n"),
        ("    $$\n    x\n    $$", "<pre><code>$$\nx\n$$\n</code></pre>\n"),
    ],
)
def test_display_maths_ends_where_it_does(text: str, shown: str) -> None:
    assert markdown_html(text) == shown


# --- Links and code


@pytest.mark.parametrize(
    "text",
    ["[x](https://ok.example)", "<https://ok.example>", "![x](https://ok.example)", "[x](#a)"],
)
def test_every_link_opens_apart_and_tells_nothing(text: str) -> None:
    assert ' target="_blank" rel="noopener noreferrer">' in markdown_html(text)


def test_an_image_in_a_link_is_its_words() -> None:
    source = markdown_html("[![a](https://a.example) b](https://b.example) ![c](https://c.example)")

    assert re.findall('href="([^"]*)"', source) == ["https://b.example", "https://c.example"]
    assert words(source) == "a b c\n"


@pytest.mark.parametrize("info", ["klingon", "C#", "python3.99", "lilypond", "systemd"])
def test_an_unknown_language_keeps_its_name(info: str) -> None:
    assert markdown_html(f"```{info} more\nx = 1\n```") == (
        f'<pre><code class="language-{info}">x = 1\n</code></pre>\n'
    )


@pytest.mark.parametrize("info", ["a&b", "$x$", "x" * 41, "é", "{onclick=1}", "\u202epy"])
def test_an_info_string_that_is_no_name_is_left_out(info: str) -> None:
    assert markdown_html(f"```{info}\nx\n```") == "<pre><code>x\n</code></pre>\n"


@pytest.mark.parametrize(
    "code", ["x = 1\n" * 5000, f"x = '{'y' * 3000}'\n", "x = 1" + "\n" * 300 + "y\n"]
)
def test_code_that_would_take_long_to_colour_has_no_colours(code: str) -> None:
    assert markdown_html(f"```python\n{code}```") == (
        f'<pre><code class="language-python">{html.escape(code)}</code></pre>\n'
    )


@pytest.mark.parametrize("language", sorted(render._COLOURED))
def test_colours_change_no_letter(language: str) -> None:
    code = "$ a b = 'c' # d\n> <e f=\"g\"> h\n\n\tif (i): { j; } // k\n"

    assert words(markdown_html(f"```{language}\n{code}```")) == f"{code}\n"


# --- Directions


@pytest.mark.parametrize("around", ["```python\n{}\n```", "`{}`", "    {}", "```\n{}\n```"])
def test_code_shows_what_would_reorder_it(around: str) -> None:
    source = markdown_html(around.format("a\u202eb\u2066c"))

    assert "a⟨U+202E⟩b⟨U+2066⟩c" in words(source)


def test_a_models_name_does_not_reorder_the_status() -> None:
    status = _response(model="gpt\u202e").status()

    assert status_html(status).startswith(
        '<p style="opacity: 0.65"><small><span dir="auto">gpt\u202e</span> · 1 in / 2 out · '
    )


def test_an_answer_does_not_reorder_the_status() -> None:
    """It is in blocks of its own, which browsers keep apart."""
    answer = "a\u202e [\u2067b](https://ok.example) `c\u202d"
    source = saved_form(answer, "m · 1 in")["text/html"]

    assert source.startswith('<p style="opacity: 0.65"><small>m · 1 in</small></p><p>a')


@pytest.mark.parametrize("name", ["gpt-5", "ünïcödé", "模型", "a\u200db"])
def test_what_runs_from_left_to_right_is_left_alone(name: str) -> None:
    assert "<span" not in status_html(f"{name} · 1 in")


def test_labels_and_messages_are_plain() -> None:
    assert plain.label("a\u202eb\tc\nd\x1b[2J\u2069\u2028e\u2029") == "ab c d[2J e "
    assert plain.lines("a\u202e\nb\x1b]0;x\x07\r") == "a\nb]0;x"


def test_a_table_in_a_terminal_is_in_order() -> None:
    table = Table(
        ("model\u202e", " cost"), [("a\u202eb\nc", "$1\x1b[2J")], "t\u2067", note="n\x1b\nm"
    )

    assert repr(table).split("\n") == [
        "t",
        "model   cost",
        "─────  ─────",
        "ab c   $1[2J",
        "n",
        "m",
    ]


# --- Errors


@pytest.mark.parametrize("kind", [errors.PromptError, errors.ProviderError, errors.StreamBroken])
def test_an_error_does_not_drive_the_terminal(kind: type[errors.LLMError]) -> None:
    error = kind("bad \x1b]0;title\x07 \x9b31m \u202e\u2066 words\r", fix="%llm\x1b[2J --fix")

    assert error._render_traceback_() == [
        f"{kind.__name__}: bad ]0;title 31m  words",
        "%llm[2J --fix",
    ]


def test_an_interrupt_does_not_either() -> None:
    error = errors.Interrupted("stopped\x1b[2J \u202e", _response(model="m"))

    assert error._render_traceback_() == ["Interrupted: stopped[2J "]


def test_a_servers_message_is_plain_in_the_cell(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply(status=400, error={"message": "no \x1b[2J\u202e way"}))
    ran = terminal.run("%%llm\nHello")

    assert "no [2J way" in ran.out


# --- Halves of surrogate pairs


@pytest.mark.parametrize("code", [0xD83D, 0xDC80])
def test_half_a_surrogate_pair_is_shown_as_a_replacement(published: Shell, code: int) -> None:
    """Jupyter would fail on it, or send bytes that no front end reads."""
    NotebookView().finish(f"a{chr(code)}b", f"m{chr(code)}")

    (shown,) = published.pub.outputs
    assert shown["data"]["text/plain"] == "a\ufffdb"
    assert shown["data"]["text/html"].endswith("<p>a\ufffdb</p>\n")


def test_a_whole_pair_in_halves_is_one_letter() -> None:
    assert plain.writable("\ud83c\udf4f ok") == "🍏 ok"
    assert plain.writable("🍏 ok") == "🍏 ok"


@pytest.mark.kernel
def test_a_kernel_shows_half_a_surrogate_pair(server: ScriptedServer) -> None:
    choice = {"index": 0, "delta": {"content": "a\ud83d **b** \udc80"}, "finish_reason": "stop"}
    chunk = json.dumps({"id": "1", "model": "m\ud83d", "choices": [choice]}).encode()
    server.enqueue(Reply(raw=b"data: %b\n\ndata: [DONE]\n\n" % chunk, raw_type="text/event-stream"))
    kernel = Kernel(
        watched=True, environment={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "k"}
    )
    try:
        kernel.run("%load_ext llm_magic")
        shown = kernel.run("%%llm\nHello")
    finally:
        kernel.stop()

    assert not shown.of("error")
    assert "<strong>b</strong>" in shown.of("update_display_data")[-1]["data"]["text/html"]


# --- Fuzzing


COUNT = 3_000


def test_no_random_document_acts() -> None:
    bad = [text for text in documents(COUNT, seed=1) if faults(markdown_html(text))]

    assert bad == []


def test_no_half_of_a_random_document_acts() -> None:
    """As it stands on screen while it streams, cut anywhere."""
    bad = [
        text[:end]
        for text in documents(400, seed=2)
        for end in range(0, len(text), 17)
        if faults(markdown_html(text[:end]))
    ]

    assert bad == []


def test_no_random_value_acts() -> None:
    bad = [
        text for text in documents(500, seed=3) if faults(value_html([{text: text}, {"a": text}]))
    ]

    assert bad == []


def test_the_same_documents_act_where_html_is_let_through() -> None:
    """So the checker would have found something, and the documents are hostile."""
    careless = MarkdownIt("commonmark", {"html": True})
    some = documents(500, seed=1)

    assert sum(bool(faults(careless.render(text))) for text in some) > 300


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_is_nested_deeply_is_safe(text: str) -> None:
    assert faults(markdown_html(text)) == []


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_the_work_is_linear(text: str) -> None:
    """Twice the text takes about twice the function calls, whatever the machine does beside."""
    markdown_html("warm")
    part = text[: len(text) // 20]
    assert _work(part * 4) < 2.6 * _work(part * 2) + 2_000


def _work(text: str) -> int:
    import sys

    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        markdown_html(text)
    finally:
        sys.setprofile(None)
    return calls


def _response(model: str) -> Response:
    return Response("text", Usage(1, 2), model, "stop", seconds=1.0)


def _schema(kind: Any) -> Schema:
    found = schema_for(kind)
    assert found is not None
    return found
