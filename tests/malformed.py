r"""Answers as models write them, right and wrong, with what a careful human reads in each.

``ASK`` stands for: nobody could know for certain, or it is no valid value; it must be asked again.
Where a comment says "certain", a human would know the value, and the library asks all the same.
"""

import enum
import json
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field
from typing_extensions import TypedDict


class _Ask:
    def __repr__(self) -> str:
        return "ASK"


ASK = _Ask()


class Review(BaseModel):
    """The usual model."""

    product: str
    rating: int = Field(ge=1, le=5)
    sentiment: Literal["positive", "negative", "neutral"]
    tags: list[str]
    note: str | None = None


class Colour(enum.Enum):
    """A root that is a word."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Node(BaseModel):
    """Its parts are values of the type as well."""

    name: str
    children: "list[Node]" = []


class Folder(BaseModel):
    """The same with one part, which is an object."""

    name: str
    parent: "Folder | None" = None


class Person(TypedDict):
    """A dict with known keys."""

    name: str
    age: int


@dataclass
class Event:
    """Dates, which JSON lacks."""

    title: str
    day: date
    at: datetime


class Options(BaseModel):
    """Everything has a default."""

    depth: int | None = None
    verbose: bool = False
    label: str = ""


class Price(BaseModel):
    """A number that must not be rounded."""

    item: str
    amount: Decimal


class Point(BaseModel):
    """Floats, which may be infinite."""

    x: float
    y: float


class Case(NamedTuple):
    """An answer and what it means."""

    id: str
    type: Any
    text: str
    expected: Any


Reviews = list[Review]
Mood = Literal["positive", "negative", "neutral"]
Counts = dict[str, int]
Ints = list[int]
Maybe = int | None

KETTLE = Review(
    product="Kettle", rating=4, sentiment="positive", tags=["kitchen", "fast"], note="Boils quickly"
)
LAMP = Review(product="Lamp", rating=2, sentiment="negative", tags=[])
K = (
    '{"product": "Kettle", "rating": 4, "sentiment": "positive", '
    '"tags": ["kitchen", "fast"], "note": "Boils quickly"}'
)
L = '{"product": "Lamp", "rating": 2, "sentiment": "negative", "tags": []}'
SHORT = KETTLE.model_copy(update={"note": None})
TREE = Node(name="root", children=[Node(name="a"), Node(name="b", children=[Node(name="c")])])
T = (
    '{"name": "root", "children": [{"name": "a", "children": []}, '
    '{"name": "b", "children": [{"name": "c", "children": []}]}]}'
)
SRC = Folder(name="src", parent=Folder(name="home"))
LAUNCH = Event("Launch", date(2026, 5, 1), datetime(2026, 5, 1, 9, 30, tzinfo=UTC))
E = '{"title": "Launch", "day": "2026-05-01", "at": "2026-05-01T09:30:00Z"}'

GOOD: dict[Any, tuple[str, Any]] = {
    Review: (K, KETTLE),
    Reviews: (f'{{"result": [{K}, {L}]}}', [KETTLE, LAMP]),
    Colour: ('{"result": "green"}', Colour.GREEN),
    Mood: ('{"result": "neutral"}', "neutral"),
    Counts: ('{"result": {"tea": 3, "milk": 1}}', {"tea": 3, "milk": 1}),
    Ints: ('{"result": [2, 3, 5]}', [2, 3, 5]),
    int: ('{"result": 42}', 42),
    bool: ('{"result": true}', True),
    Maybe: ('{"result": null}', None),
    Node: (T, TREE),
    Folder: ('{"name": "src", "parent": {"name": "home", "parent": null}}', SRC),
    Person: ('{"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}),
    Event: (E, LAUNCH),
    Options: ('{"depth": 3, "label": "x"}', Options(depth=3, label="x")),
    Price: ('{"item": "tea", "amount": 12.5}', Price(item="tea", amount=Decimal("12.5"))),
    Point: ('{"x": 1.5, "y": -2}', Point(x=1.5, y=-2)),
}
"""A right answer of each type, with our object around it where there is one, and its value."""


def _with(**changes: Any) -> str:
    """The kettle's JSON with other values."""
    return json.dumps({**json.loads(K), **changes})


def _kettle(**changes: Any) -> Review:
    return KETTLE.model_copy(update=changes)


_DEEP = Node(name="39")
for _level in reversed(range(39)):
    _DEEP = Node(name=str(_level), children=[_DEEP])
_SCHEMA = json.dumps(Review.model_json_schema())
_OPTIONS_SCHEMA = json.dumps(Options.model_json_schema())
_PRETTY = json.dumps(json.loads(K), indent=2)
_CODE = 'Run it:\n```bash\npip install "x[y]"\n```\n{ok}'

PROSE = [
    Case("plain", Review, K, KETTLE),
    Case("pretty", Review, _PRETTY, KETTLE),
    Case("prose before", Review, f"Sure! Here is the extracted review:\n\n{K}", KETTLE),
    Case("prose after", Review, f"{K}\n\nLet me know if you need anything else!", KETTLE),
    Case("prose around", Review, f"Here you go: {K} I hope that helps.", KETTLE),
    Case("answer prefix", Review, f"Answer: {K}", KETTLE),
    Case("json prefix", Review, f"json\n{K}", KETTLE),
    Case("bold prefix", Review, f"**Answer:**\n{K}", KETTLE),
    Case("bold around", Review, f"**{K}**", KETTLE),
    Case("inline code", Review, f"The result is `{K}`.", KETTLE),
    Case("citation before", Review, f"According to the manual [1] and [2]:\n{K}", KETTLE),
    Case("citation after", Review, f"{K}\n\n[1] https://example.org/kettle", KETTLE),
    Case("latex before", Review, f"With $\\frac{{4}}{{5}}$ of the points:\n{K}", KETTLE),
    Case("brace in prose", Review, f"I fill the template {{product}} and so on: {K}", KETTLE),
    Case("set in prose", Review, f"Rating is one of {{1, 2, 3, 4, 5}}.\n{K}", KETTLE),
    Case("markdown link", Review, f"See [the page](https://x.org/a).\n\n{K}", KETTLE),
    Case("task list", Review, f"- [x] read it\n- [ ] ship it\n\n{K}", KETTLE),
    Case("emoji prose", Review, f"✨ Done! 🎉\n{K} 🙂", KETTLE),
    Case("xml answer", Review, f"<answer>\n{K}\n</answer>", KETTLE),
    Case("xml json", Reviews, f"<json>[{K}, {L}]</json>", [KETTLE, LAMP]),
    Case("html pre", Review, f"<pre><code>{K}</code></pre>", KETTLE),
    Case("heading", Reviews, f"### Reviews\n\n[{K},\n {L}]", [KETTLE, LAMP]),
    Case("list with result", Reviews, f'Here: {{"result": [{K}, {L}]}}', [KETTLE, LAMP]),
    Case("list, one row", Reviews, f"Only one found: [{L}]", [LAMP]),
    Case("list, citation before", Reviews, f"From source [3]:\n[{K}, {L}]", [KETTLE, LAMP]),
    Case("list, citation after", Reviews, f"[{K}, {L}]\n\nSource: [3]", ASK),  # certain
    Case("empty list", Reviews, "There are no reviews in this text: []", []),
    Case("counts prose", Counts, 'The counts are {"tea": 3, "milk": 1}.', {"tea": 3, "milk": 1}),
    Case("ints prose", Ints, "The primes are [2, 3, 5].", [2, 3, 5]),
    Case("node prose", Node, f"The tree:\n{T}\nIt has 4 nodes.", TREE),
    Case("person prose", Person, 'Found: {"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}),
    Case("event prose", Event, f"I read the mail. {E}", LAUNCH),
    Case("harmony final", Review, f"<|channel|>final<|message|>{K}<|return|>", KETTLE),
    Case("end token", Review, f"{K}<|im_end|>", KETTLE),
    Case("rule and signature", Review, f"---\n{K}\n---\n*Generated by AI*", KETTLE),
    Case("quoted block", Review, f"> {K}", KETTLE),
    Case("pretty quoted block", Review, "> " + _PRETTY.replace("\n", "\n> "), ASK),  # certain
    Case("citation is no list", Ints, "There are no primes in the data [1].", ASK),
    Case("figures are no list", Ints, "As shown in [3], they are 4, 5 and 6.", ASK),
    Case("interval is no list", Ints, "The primes in the range [1, 10] are 2, 3, 5 and 7.", ASK),
    Case("index is no list", Ints, "I could not read it; `rows[0]` is missing.", ASK),
    Case("two lists in prose", Ints, "Either [1, 2] or [1, 3].", ASK),
    Case("list and citation", Ints, "The answer is [4, 5], see [2].", ASK),  # certain
    Case("braces of prose", Options, "An f-string uses {} here, which I cannot set.", ASK),
    Case("empty dict of prose", Counts, "Sorry, `counts = {}` is all the code has.", ASK),
]

FENCES = [
    Case("fence json", Review, f"```json\n{K}\n```", KETTLE),
    Case("fence JSON", Review, f"```JSON\n{K}\n```", KETTLE),
    Case("fence bare", Review, f"```\n{K}\n```", KETTLE),
    Case("fence json5", Review, f"```json5\n{K}\n```", KETTLE),
    Case("fence tilde", Review, f"~~~json\n{K}\n~~~", KETTLE),
    Case("fence on one line", Review, f"```json {K} ```", KETTLE),
    Case("fence not closed", Review, f"```json\n{_PRETTY}", KETTLE),
    Case("fence only closed", Review, f"{_PRETTY}\n```", KETTLE),
    Case("fence indented", Review, f"1. Result:\n\n   ```json\n   {K}\n   ```", KETTLE),
    Case("fence and prose", Review, f"Here it is:\n\n```json\n{_PRETTY}\n```\n\nDone.", KETTLE),
    Case("fence crlf", Review, f"```json\r\n{K}\r\n```\r\n", KETTLE),
    Case("fence in fence", Review, f"````markdown\n```json\n{K}\n```\n````", KETTLE),
    Case("fence, list", Reviews, f"```json\n[\n  {K},\n  {L}\n]\n```", [KETTLE, LAMP]),
    Case("fence, int", int, "```json\n42\n```", 42),
    Case("fence, word", Mood, "```\npositive\n```", "positive"),
    Case("fence, enum", Colour, '```json\n"red"\n```', Colour.RED),
    Case("fence, counts", Counts, '```json\n{"a": 1}\n```', {"a": 1}),
    Case("fence, node", Node, f"```json\n{T}\n```", TREE),
    Case("fence, int, tilde", int, "~~~\n42\n~~~", ASK),  # certain
    Case("fence in a text", Review, f"```json\n{_with(note=_CODE)}\n```", _kettle(note=_CODE)),
    Case("fence in a raw text", Review, K.replace("Boils quickly", "```\nx\n```"),
         _kettle(note="```\nx\n```")),
    Case("code after", Review, f"```json\n{K}\n```\n\n```python\nprint(len('a'))\n```", KETTLE),
    Case("code before", Review, f"```python\nd = dict(a=[1])\n```\n```json\n{K}\n```", KETTLE),
    Case("two equal fences", Review, f"```json\n{K}\n```\nAgain:\n```json\n{_PRETTY}\n```", KETTLE),
    Case("a fence for each row", Reviews, f"```json\n[{K}]\n```\n```json\n[{L}]\n```", ASK),
    Case("python fence", Review, f"```python\nreview = {K}\n```", KETTLE),
    Case("fenced, then another", Review, f"```json\n{K}\n```\nor maybe {L}", ASK),
    Case("fenced empty", Review, "```json\n\n```", ASK),
]  # fmt: skip

SEVERAL = [
    Case("draft then final", Review, f"Draft: {L}\n\nOn reflection:\n\nFinal: {K}", KETTLE),
    Case("draft then fence", Review, f"First {L}. Wait.\n```json\n{K}\n```", KETTLE),
    Case("repeated", Review, f"{K}\n\n{K}", KETTLE),
    Case("input quoted", Review, f'The input was {{"id": 7, "text": "ok"}}.\n{K}', KETTLE),
    Case("metadata after", Review, f'{K}\n\nMeta: {{"tokens": 12, "model": "m"}}', ASK),  # certain
    Case("input then list", Reviews, f'Input: {{"n": 2}}\nOutput: [{K}, {L}]', [KETTLE, LAMP]),
    Case("draft, bare then object", Ints, 'First [2, 3]. Then: {"result": [2, 3, 5]}', [2, 3, 5]),
    Case("draft, object then bare", Ints, 'First {"result": [2]}. No, final: [2, 3, 5]', ASK),
    Case("draft, object twice", Ints, '{"result": [2]} No: {"result": [2, 3, 5]}', [2, 3, 5]),
    Case("draft, two lists", Ints, "First [2, 3], but then\n[2, 3, 5]", [2, 3, 5]),
    Case("equal lists", Ints, "I get [2, 3, 5]. So the answer is [2, 3, 5].", [2, 3, 5]),
    Case("draft, cut final", Review, f'Draft: {L}\nCorrected: {{"product": "Ket', ASK),
    Case("draft, final cut early", Review, f'Draft: {L}\nCorrected: {{"pro', ASK),
    Case("draft, final as Python", Review, f"Draft: {L}\nFinal: {json.loads(K)!r}", ASK),  # certain
    Case("draft, final malformed", Review, f"Draft: {L}\nFinal: {K[:-1]},}}", ASK),  # certain
    Case("draft, final with other keys", Review,
         f'Draft: {L}\nFinal: {{"Name": "Kettle", "stars": 4}}', ASK),
    Case("final, then the worse", Review, f"Final: {K}\n(Rejected: {L})", ASK),  # certain
    Case("alternatives", Review, f"Answer: {K}\n\nAlternatively, if it is the lamp: {L}", ASK),
    Case("ndjson for one", Review, f"{K}\n{L}\n", ASK),
    Case("ndjson for a list", Reviews, f"{K}\n{L}\n", ASK),  # certain
    Case("comma list without brackets", Reviews, f"{K},\n{L}", ASK),  # certain
    Case("only an example", Review,
         f"I cannot see a review. The answer would look like this:\n```json\n{L}\n```\n"
         "Please paste the text.", ASK),
    Case("answer, then its input", Review, f'{K}\nFrom {{"product": "Kettle", "n": 1}}.', ASK),
    Case("counts twice", Counts, 'Page 1: {"tea": 3}\nPage 2: {"tea": 5}', ASK),
    Case("schema then answer", Review, f"Schema: {_SCHEMA}\n\nAnswer: {K}", KETTLE),
    Case("answer then schema", Review, f"{K}\n\nIt fits {_SCHEMA}.", KETTLE),
    Case("schema alone", Review, _SCHEMA, ASK),
    Case("schema alone, all optional", Options, _OPTIONS_SCHEMA, ASK),
    Case("schema then options", Options, f'{_OPTIONS_SCHEMA}\n{{"depth": 3}}', Options(depth=3)),
    Case("schema with values", Review, f'{{"type": "object", "properties": {K}}}', ASK),  # certain
    Case("types as values", Review,
         '{"product": "string", "rating": "integer", "sentiment": "string", "tags": []}', ASK),
    Case("schema fragment", Options, '{"depth": {"type": "integer"}}', ASK),
]  # fmt: skip

THINK = [
    Case("think", Review, f"<think>It is fine.</think>\n\n{K}", KETTLE),
    Case("think with a decoy", Review, f"<think>Maybe {L}? No.</think>\n{K}", KETTLE),
    Case("think decoy, list", Ints, "<think>[1, 2]? [9]?</think>[2, 3, 5]", [2, 3, 5]),
    Case("think only closed", Review, f"Maybe {L}? No.\n</think>\n\n{K}", KETTLE),
    Case("think only closed, list", Ints, "[1]? or [1, 4]\n</think>\n[2, 3, 5]", [2, 3, 5]),
    Case("think only closed, word", Mood, "Is it negative?\n</think>\n\npositive", "positive"),
    Case("think only closed, int", int, "41? No, 42.\n</think>\n42", 42),
    Case("think, empty", Review, f"<think>\n\n</think>\n\n{K}", KETTLE),
    Case("think, fenced", Review, f"<think>a {{b}}</think>\n```json\n{K}\n```", KETTLE),
    Case("think with half a JSON", Review, f'hm {{"product": "La\n</think>{K}', KETTLE),
    Case("thinking tag", Review, f"<thinking>Maybe {L}?</thinking>\n{K}", KETTLE),
    Case("reasoning tag, list", Ints, "<reasoning>[9]?</reasoning>\n[2, 3]", [2, 3]),
    Case("think never closed", Review, f"Okay. <think>Maybe {L}? No, since the", ASK),
    Case("think never closed, at the start", Review, f"<think>Maybe {L}? No, since", ASK),
    Case("think, nothing after", Review, f"Maybe {K}.\n</think>\n", ASK),
    Case("think tag in a text", Review, _with(note="uses </think> tags"),
         KETTLE.model_copy(update={"note": "uses </think> tags"})),
    Case("think tag in a row", Reviews, f"[{_with(note='a </think> b')}, {L}]",
         [KETTLE.model_copy(update={"note": "a </think> b"}), LAMP]),
    Case("think tag in a node", Node,
         '{"name": "</think>", "children": [{"name": "a", "children": []}]}',
         Node(name="</think>", children=[Node(name="a", children=[])])),
    Case("step by step", int, "2 + 40 = 42, so\n\n```json\n{\"result\": 42}\n```", 42),
]  # fmt: skip

SYNTAX = [
    Case("trailing comma", Review, K[:-1] + ",}", ASK),  # certain
    Case("trailing comma, list", Ints, "[2, 3, 5,]", ASK),  # certain
    Case("single quotes", Review, K.replace('"', "'"), ASK),  # certain
    Case("python repr", Review, repr(json.loads(_with(note=None))), ASK),  # certain
    Case("None", Review, _with(note=None).replace("null", "None"), ASK),  # certain
    Case("True", Options, '{"depth": 1, "verbose": True, "label": ""}', ASK),  # certain
    Case("line comment", Review, K.replace("4,", "4, // of 5\n"), ASK),  # certain
    Case("hash comment", Review, K.replace("4,", "4, # of 5\n"), ASK),  # certain
    Case("block comment", Review, "{ /* kettle */ " + K[1:], ASK),  # certain
    Case("unquoted keys", Person, "{name: 'Ada', age: 36}", ASK),  # certain
    Case("smart quotes", Person, "{“name”: “Ada”, “age”: 36}", ASK),  # certain
    Case("html quotes", Person, "{&quot;name&quot;: &quot;Ada&quot;, &quot;age&quot;: 36}", ASK),
    Case("equals signs", Person, '{"name" = "Ada", "age" = 36}', ASK),  # certain
    Case("missing comma", Person, '{"name": "Ada" "age": 36}', ASK),  # certain
    Case("one brace too many", Person, '{"name": "Ada", "age": 36}}', ASK),  # certain
    Case("template braces", Person, '{{"name": "Ada", "age": 36}}', ASK),  # certain
    Case("single quote escaped", Review, K.replace("Boils", "It\\'s"), ASK),  # certain
    Case("latex in a text", Review, K.replace("Boils", "$\\alpha$"), ASK),  # certain
    Case("path in a text", Review, K.replace("Boils", "C:\\data"), ASK),
    Case("quote not escaped", Review, K.replace("Boils", 'The "best"'), ASK),  # certain
    Case("raw newline", Review, K.replace("Boils ", "Boils\n"), _kettle(note="Boils\nquickly")),
    Case("raw tab", Review, K.replace("Boils ", "Boils\t"), _kettle(note="Boils\tquickly")),
    Case("crlf", Review, _PRETTY.replace("\n", "\r\n"), KETTLE),
    Case("bom", Review, f"\ufeff{K}", KETTLE),
    Case("bom and newline", Counts, '\ufeff\r\n{"a": 1}\r\n', {"a": 1}),
    Case("zero-width space", Review, f"\u200b{K}", KETTLE),
    Case("hard spaces", Review, f"\u00a0{K}\u00a0", KETTLE),
    Case("escapes", Review, _with(note="Zoë 🎉"), _kettle(note="Zoë 🎉")),
    Case("emoji", Review, K.replace("Boils", "👩‍🚀 Boils"), _kettle(note="👩‍🚀 Boils quickly")),
    Case("escaped slash", Review, K.replace("Boils", "1\\/2"), _kettle(note="1/2 quickly")),
    Case("brackets in a text", Review, _with(note="} ] [1] {x}"), _kettle(note="} ] [1] {x}")),
    Case("json in a text", Review, _with(note=L), _kettle(note=L)),
    Case("half a surrogate pair", Review, K.replace("Boils", "\\ud83d"), ASK),
    Case("half a pair, and a fault", Review,
         K.replace("Boils", "\\ud83d").replace("4,", "9,"), ASK),
    Case("json in a string", Review, json.dumps(K), ASK),  # certain
    Case("list in a string", Ints, '"[2, 3, 5]"', ASK),  # certain
    Case("object in a string", Ints, json.dumps('{"result": [2, 3, 5]}'), ASK),  # certain
    Case("inner string", Ints, '{"result": "[2, 3, 5]"}', ASK),  # certain
    Case("duplicate key", Review, K[:-1] + ', "rating": 5}', ASK),
    Case("duplicate key, same", Review, K[:-1] + ', "rating": 4}', KETTLE),
    Case("duplicate key, counts", Counts, '{"tea": 3, "tea": 4}', ASK),
    Case("duplicate key, inside", Node, '{"name": "a", "children": [{"name": "b", "name": "c"}]}',
         ASK),
    Case("duplicate key, other case", Review, '{"Rating": 2, ' + K[1:], ASK),
    Case("yaml", Review, "product: Kettle\nrating: 4\nsentiment: positive\ntags: [kitchen]", ASK),
    Case("yaml with an inner object", Folder, 'name: src\nparent: {"name": "home"}', ASK),
    Case("bullets with an inner object", Folder, '- name: src\n- parent: {"name": "home"}', ASK),
    Case("repr with an inner object", Folder, "Folder(name='src', parent={\"name\": \"home\"})",
         ASK),
    Case("comments around the inner object", Folder,
         '{  # the folder\n  "name": "src",\n  "parent": {"name": "home"}  # above\n}', ASK),
    Case("dots around the inner object", Folder, '{ ..., "parent": {"name": "home"}, ... }', ASK),
    Case("javascript", Folder, 'const f = {"name": "src", "parent": {"name": "home"}};', SRC),
    Case("dots for the rest", Ints, "[2, 3, 5, ...]", ASK),
    Case("dots in rows", Reviews, f"[{K}, ...]", ASK),
]  # fmt: skip

CUT = [
    Case("cut in a key", Review, K[:20], ASK),
    Case("cut in a text", Review, K[:-12], ASK),
    Case("cut before the end", Review, K[:-1], ASK),
    Case("cut in a list", Ints, "[2, 3, 5", ASK),
    Case("cut behind a comma", Ints, '{"result": [2, 3,', ASK),
    Case("cut without the outer end", Ints, '{"result": [2, 3, 5]', ASK),
    Case("cut rows", Reviews, f"[{K}, {L[:30]}", ASK),
    Case("cut between rows", Reviews, f"[{K}, {L},", ASK),
    Case("cut rows in an object", Reviews, f'{{"result": [{K}, {L}', ASK),
    Case("cut row, read as one", Review, f"[{K}, {L[:30]}", ASK),
    Case("cut tree", Node, T[:-2], ASK),
    Case("cut tree behind a leaf", Node, T[: T.index("},") + 1], ASK),
    Case("cut tree in a name", Node, T[: T.index('"c"') + 2], ASK),
    Case("cut tree, fenced", Node, f"```json\n{T[:-1]}\n```", ASK),
    Case("cut folder", Folder, '{"name": "src", "parent": {"name": "home"}', ASK),
    Case("cut folder, prose after", Folder,
         '{"name": "src", "parent": {"name": "home"}\n\nThat is all.', ASK),
    Case("cut at the front", Node, T[len('{"name": "root", ') :], ASK),
    Case("without the first brace", Folder, '"name": "src", "parent": {"name": "home"}}', ASK),
    Case("cut counts", Counts, '{"tea": 3, "mil', ASK),
    Case("cut number", Counts, '{"result": {"tea": 3', ASK),
    Case("cut options", Options, '{"depth": 3, "verbose"', ASK),
    Case("cut fence and tree", Node, "```json\n" + T[:60], ASK),
    Case("only a brace", Review, "{", ASK),
    Case("cut event", Event, E[:-4], ASK),
    Case("deep tree", Node, _DEEP.model_dump_json(), _DEEP),
    Case("much too deep", Ints, "[" * 100_000, ASK),
    Case("much too deep, closed", Ints, "[" * 5_000 + "]" * 5_000, ASK),
    Case("deep tree cut", Node, '{"name": "x", "children": [' * 2_000, ASK),
]  # fmt: skip

VALUES = [
    Case("enum in capitals", Review, _with(sentiment="Positive"), ASK),  # certain
    Case("enum with a blank", Review, _with(sentiment="positive "), ASK),  # certain
    Case("enum not listed", Review, _with(sentiment="mixed"), ASK),
    Case("enum of two", Review, _with(sentiment="positive|neutral"), ASK),
    Case("key in capitals", Review, K.replace('"rating"', '"Rating"'), ASK),  # certain
    Case("optional key in capitals", Review, K.replace('"note"', '"Note"'), ASK),  # certain
    Case("optional key misspelt", Review, K.replace('"note"', '"notes"'), ASK),
    Case("all keys in capitals", Options, '{"Depth": 3, "Verbose": true}', ASK),  # certain
    Case("camel case", Options, '{"maxDepth": 3}', ASK),
    Case("number as a word", Review, _with(rating="four"), ASK),  # certain
    Case("number as text", Review, _with(rating="4"), KETTLE),
    Case("whole float as text", Review, _with(rating="4.0"), KETTLE),
    Case("whole float", Review, _with(rating=4.0), KETTLE),
    Case("half", Review, _with(rating=4.5), ASK),
    Case("fraction", Review, _with(rating="4/5"), ASK),  # certain
    Case("unit", Review, _with(rating="4 stars"), ASK),  # certain
    Case("out of range", Review, _with(rating=9), ASK),
    Case("zero", Review, _with(rating=0), ASK),
    Case("number true", Review, _with(rating=True), ASK),
    Case("number null", Review, _with(rating=None), ASK),
    Case("text number", Review, _with(product=4000), ASK),
    Case("text null", Review, _with(product=None), ASK),
    Case("list as text", Review, _with(tags="kitchen, fast"), ASK),  # certain
    Case("list null", Review, _with(tags=None), ASK),
    Case("list as object", Review, _with(tags={"0": "kitchen"}), ASK),
    Case("null as text", Review, _with(note="null"), ASK),
    Case("null", Review, _with(note=None), SHORT),
    Case("note left out", Review, L, LAMP),
    Case("empty text", Review, _with(note=""), _kettle(note="")),
    Case("extra field", Review, _with(confidence=0.9), KETTLE),
    Case("extra field, no note", Review, L[:-1] + ', "confidence": 0.9}', ASK),  # certain
    Case("missing field", Review, '{"product": "Kettle", "rating": 4}', ASK),
    Case("wrapper", Review, f'{{"review": {K}}}', ASK),  # certain
    Case("wrapper result", Review, f'{{"result": {K}}}', ASK),  # certain
    Case("tool call", Review, f'{{"name": "Review", "arguments": {K}}}', ASK),  # certain
    Case("tool call, tree", Node, f'{{"name": "Node", "arguments": {T}}}', ASK),  # certain
    Case("wrapper, tree", Node, f'{{"name": "tree", "root": {T}}}', ASK),
    Case("wrapper, options", Options, '{"options": {"depth": 3}}', ASK),  # certain
    Case("wrapper, list", Reviews, f'{{"reviews": [{K}]}}', ASK),  # certain
    Case("wrapper, counts", Counts, '{"counts": {"tea": 3}}', ASK),  # certain
    Case("list around one", Review, f"[{K}]", ASK),  # certain
    Case("list of two for one", Review, f"[{K}, {L}]", ASK),
    Case("one for a list", Reviews, K, ASK),  # certain
    Case("list in a list", Reviews, f"[[{K}]]", ASK),
    Case("row missing a field", Reviews, f'[{K}, {{"product": "Lamp"}}]', ASK),
    Case("row null", Reviews, f"[{K}, null]", ASK),
    Case("rows by name", Reviews, f'{{"Kettle": {K}, "Lamp": {L}}}', ASK),
    Case("result empty", Reviews, '{"result": []}', []),
    Case("result null", Reviews, '{"result": null}', ASK),
    Case("result beside notes", Ints, '{"result": [2, 3], "notes": "both prime"}', [2, 3]),
    Case("Result", Ints, '{"Result": [2, 3]}', ASK),  # certain
    Case("ints as text", Ints, '["2", "3"]', [2, 3]),
    Case("ints with a float", Ints, "[2, 3.5]", ASK),
    Case("ints whole floats", Ints, "[2.0, 3.0]", [2, 3]),
    Case("ints with true", Ints, "[true, 3]", ASK),
    Case("ints with null", Ints, "[2, null]", ASK),
    Case("ints huge", Ints, "[123456789012345678901234567890]", [123456789012345678901234567890]),
    Case("ints with thousands", Ints, "[3,000]", ASK),
    Case("counts as text", Counts, '{"tea": "3"}', {"tea": 3}),
    Case("counts, thousands", Counts, '{"tea": "3,000"}', ASK),  # certain
    Case("counts true", Counts, '{"tea": true}', ASK),
    Case("counts null", Counts, '{"tea": null}', ASK),
    Case("counts as pairs", Counts, '[["tea", 3]]', ASK),  # certain
    Case("counts empty", Counts, "{}", {}),
    Case("counts, odd keys", Counts, '{"": 1, "a b": 2, "é": 3}', {"": 1, "a b": 2, "é": 3}),
    Case("person", Person, '{"age": 36, "name": "Ada"}', {"name": "Ada", "age": 36}),
    Case("person extra", Person, '{"name": "Ada", "age": "36", "born": 1815}',
         {"name": "Ada", "age": 36}),
    Case("person missing", Person, '{"name": "Ada"}', ASK),
    Case("person age in words", Person, '{"name": "Ada", "age": "about 36"}', ASK),
    Case("tree leaf alone", Node, '{"name": "root"}', Node(name="root")),
    Case("tree with null", Node, '{"name": "root", "children": null}', ASK),  # certain
    Case("tree as words", Node, '{"name": "root", "children": ["a", "b"]}', ASK),  # certain
    Case("tree inner misspelt", Node, '{"name": "r", "children": [{"name": "a", "childs": []}]}',
         ASK),
    Case("folder", Folder, 'It is {"name": "src", "parent": {"name": "home", "parent": null}}',
         SRC),
    Case("date with a time", Event, E.replace('"2026-05-01"', '"2026-05-01T10:00:00"'), ASK),
    Case("date at midnight", Event, E.replace('"2026-05-01"', '"2026-05-01T00:00:00"'), LAUNCH),
    Case("date with slashes", Event, E.replace('"2026-05-01"', '"01/05/2026"'), ASK),
    Case("date in words", Event, E.replace('"2026-05-01"', '"May 1, 2026"'), ASK),  # certain
    Case("date as a number", Event, E.replace('"2026-05-01"', "20574"), ASK),
    Case("date without dashes", Event, E.replace('"2026-05-01"', '"20260501"'), ASK),  # certain
    Case("year", Event, E.replace('"2026-05-01"', '"2026"'), ASK),
    Case("impossible date", Event, E.replace('"2026-05-01"', '"2026-02-30"'), ASK),
    Case("timestamp", Event, E.replace('"2026-05-01T09:30:00Z"', "1777627800"), ASK),
    Case("timestamp as text", Event, E.replace('"2026-05-01T09:30:00Z"', '"1777627800"'), ASK),
    Case("timestamp exponent", Event, E.replace('"2026-05-01T09:30:00Z"', '"1.7776278e9"'), ASK),
    Case("timestamp as a float", Event, E.replace('"2026-05-01T09:30:00Z"', "1777627800.5"), ASK),
    Case("time alone", Event, E.replace('"2026-05-01T09:30:00Z"', '"09:30"'), ASK),
    Case("hour 25", Event, E.replace("T09", "T25"), ASK),
    Case("time zone", Event, E.replace("09:30:00Z", "09:30:00+02:00"),
         replace(LAUNCH, at=LAUNCH.at.replace(tzinfo=timezone(timedelta(hours=2))))),
    Case("blank for the T", Event, E.replace("T09", " 09"), LAUNCH),
    Case("no seconds", Event, E.replace("09:30:00Z", "09:30Z"), LAUNCH),
    Case("options", Options, '{"depth": 3}', Options(depth=3)),
    Case("options empty", Options, "{}", Options()),
    Case("options yes", Options, '{"verbose": "yes"}', Options(verbose=True)),
    Case("options null as text", Options, '{"depth": "null", "verbose": false, "label": ""}', ASK),
    Case("options unknown", Options, '{"colour": "red"}', ASK),
    Case("options list", Options, "[]", ASK),
    Case("decimal", Price, '{"item": "tea", "amount": 0.1234567890123456789012}',
         Price(item="tea", amount=Decimal("0.1234567890123456789012"))),
    Case("decimal text", Price, '{"item": "tea", "amount": "12.50"}',
         Price(item="tea", amount=Decimal("12.50"))),
    Case("decimal comma", Price, '{"item": "tea", "amount": "12,50"}', ASK),
    Case("decimal currency", Price, '{"item": "tea", "amount": "$12.50"}', ASK),  # certain
    Case("decimal NaN", Price, '{"item": "tea", "amount": "NaN"}', ASK),
    Case("decimal true", Price, '{"item": "tea", "amount": true}', ASK),
    Case("decimal huge", Price, '{"item": "tea", "amount": 123456789012345678.25}',
         Price(item="tea", amount=Decimal("123456789012345678.25"))),
    Case("point", Point, 'At {"x": 1.5, "y": -2e0}', Point(x=1.5, y=-2)),
    Case("point as text", Point, '{"x": "1.5", "y": "-2"}', Point(x=1.5, y=-2)),
    Case("point many digits", Point, '{"x": 0.1000000000000000055511, "y": 1}', Point(x=0.1, y=1)),
    Case("point NaN", Point, '{"x": NaN, "y": 1}', ASK),
    Case("point NaN text", Point, '{"x": "NaN", "y": 1}', ASK),
    Case("point Infinity", Point, '{"x": 1, "y": -Infinity}', ASK),
    Case("point Infinity text", Point, '{"x": 1, "y": "Infinity"}', ASK),
    Case("point 1e999", Point, '{"x": 1e999, "y": 1}', ASK),
    Case("point 1e999 text", Point, '{"x": "1e999", "y": 1}', ASK),
    Case("point true", Point, '{"x": true, "y": 1}', ASK),
    Case("point leading dot", Point, '{"x": .5, "y": 1}', ASK),  # certain
    Case("point plus", Point, '{"x": +1, "y": 1}', ASK),  # certain
]  # fmt: skip

SCALARS = [
    Case("int", int, "42", 42),
    Case("int with blanks", int, "\n  42\n", 42),
    Case("int object", int, '{"result": 42}', 42),
    Case("int object, prose", int, 'I count them: {"result": 42}.', 42),
    Case("int text", int, '"42"', 42),
    Case("int whole float", int, "42.0", 42),
    Case("int negative", int, "-7", -7),
    Case("int huge", int, "9" * 40, int("9" * 40)),
    Case("int sentence", int, "The answer is 42.", ASK),  # certain
    Case("int prefix", int, "Answer: 42", ASK),  # certain
    Case("int bold", int, "**42**", ASK),  # certain
    Case("int thousands", int, "3,000", ASK),  # certain
    Case("int word", int, "forty-two", ASK),  # certain
    Case("int half", int, "42.5", ASK),
    Case("int true", int, "true", ASK),
    Case("int null", int, "null", ASK),
    Case("int with a unit", int, "42 km", ASK),
    Case("int two", int, "42 or 43", ASK),
    Case("int list", int, "[42]", ASK),
    Case("int citation", int, "42 [1]", ASK),  # certain
    Case("int key", int, '{"answer": 42}', ASK),  # certain
    Case("int boxed", int, "$\\boxed{42}$", ASK),  # certain
    Case("int zeros", int, "007", ASK),
    Case("enum word", Colour, "red", Colour.RED),
    Case("enum quoted", Colour, '"blue"', Colour.BLUE),
    Case("enum object", Colour, '{"result": "green"}', Colour.GREEN),
    Case("enum fenced object", Colour, '```json\n{\n  "result": "green"\n}\n```', Colour.GREEN),
    Case("enum name", Colour, "RED", ASK),  # certain
    Case("enum path", Colour, "Colour.RED", ASK),  # certain
    Case("enum object, capitals", Colour, '{"result": "Red"}', ASK),  # certain
    Case("enum other", Colour, "purple", ASK),
    Case("enum sentence", Colour, "It is red, or rather green.", ASK),
    Case("mood word", Mood, "neutral", "neutral"),
    Case("mood line", Mood, "positive\n", "positive"),
    Case("mood quoted", Mood, '"positive"', "positive"),
    Case("mood prose, object", Mood, 'I would say {"result": "negative"}', "negative"),
    Case("mood capital", Mood, "Positive", ASK),  # certain
    Case("mood full stop", Mood, "positive.", ASK),  # certain
    Case("mood bold", Mood, "**positive**", ASK),  # certain
    Case("mood key", Mood, '{"sentiment": "positive"}', ASK),  # certain
    Case("mood not", Mood, "not positive", ASK),
    Case("mood both", Mood, "positive, negative", ASK),
    Case("bool", bool, "true", True),
    Case("bool object", bool, '{"result": false}', False),
    Case("bool Python", bool, "True", ASK),  # certain
    Case("bool yes", bool, "Yes.", ASK),  # certain
    Case("maybe null", Maybe, "null", None),
    Case("maybe object", Maybe, '{"result": null}', None),
    Case("maybe int", Maybe, "3", 3),
    Case("maybe None", Maybe, "None", ASK),  # certain
    Case("maybe true", Maybe, "true", ASK),
    Case("maybe text", Maybe, '"null"', ASK),
]

NOTHING = [
    Case("empty", Review, "", ASK),
    Case("blank", Reviews, " \n\t\r\n ", ASK),
    Case("empty, int", int, "", ASK),
    Case("apology", Review, "I'm sorry, but I can't help with that.", ASK),
    Case("apology, list", Ints, "I am unable to find any numbers in the text.", ASK),
    Case("apology, optional", Options, "I cannot determine the options.", ASK),
    Case("apology as JSON", Review, '{"error": "no review found"}', ASK),
    Case("apology as JSON, optional", Options, '{"error": "no options found"}', ASK),
    Case("apology as JSON, counts", Counts, '{"error": "nothing to count"}', ASK),
    Case("table", Reviews, "| product | rating |\n|---|---|\n| Kettle | 4 |", ASK),
    Case("csv", Reviews, "product,rating,sentiment,tags\nKettle,4,positive,kitchen", ASK),
    Case("html", Review, "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>", ASK),
    Case("xml", Person, "<person><name>Ada</name><age>36</age></person>", ASK),
    Case("null for an object", Review, "null", ASK),
    Case("word for a list", Ints, "none", ASK),
    Case("question", Person, "Which person do you mean?", ASK),
    Case("bullets", Ints, "- 2\n- 3\n- 5", ASK),  # certain
    Case("commas", Ints, "2, 3, 5", ASK),  # certain
    Case("code", Ints, "```python\nprint(sum(range(3)))\n```", ASK),
    Case("two words", Node, "root -> a -> b", ASK),
]

_AROUND = {
    "plain": "{}",
    "newline": "\n{}\n\n",
    "fenced": "```json\n{}\n```",
    "fenced without a name": "```\n{}\n```",
    "fenced, prose": "Here is the JSON you asked for:\n\n```json\n{}\n```",
    "fenced, prose around": "Sure!\n```json\n{}\n```\n\n**Note:** the rest was unclear [1].",
    "fenced, crlf": "Result:\r\n```json\r\n{}\r\n```\r\n",
    "prose": "Based on the text (see $x_{{1}}$ and [the guide]), the answer is:\n{}",
    "prose around": "The answer: {} Anything else?",
    "bold": "**Result:**\n\n{}",
    "thought": "<think>They want JSON, like {{...}} or [..].</think>\n\n{}",
    "thought, draft": '<think>Say {{"name": "x"}}? [1]? 3?</think>\n```json\n{}\n```',
    "thought, tag cut": "Let me see. [2, 3]?\n</think>\n\n{}",
    "tags": "<answer>{}</answer>",
}
AROUND = [
    Case(f"{place}, {number}", type_, around.format(text), value)
    for number, (type_, (text, value)) in enumerate(GOOD.items())
    for place, around in _AROUND.items()
]
"""What is most of what comes: a right answer of each type with something harmless around it."""

CASES = [*AROUND, *PROSE, *FENCES, *SEVERAL, *THINK, *SYNTAX, *CUT, *VALUES, *SCALARS, *NOTHING]
