"""Structured answers as users ask for them: --schema in a shell and a kernel, schema= in Python."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic.errors import (
    ContextTooLong,
    InvalidAnswer,
    PromptError,
    QuotaExceeded,
    Refused,
    ReplayMissing,
    StreamBroken,
    Truncated,
)
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, SOON, Kernel, Terminal, interrupted_when, plain

DEFINE = """
from pydantic import BaseModel, Field
class Review(BaseModel):
    product: str
    rating: int = Field(ge=1, le=5)
"""
RIGHT = '{"product": "kettle", "rating": 4}'
WRONG = '{"product": "kettle", "rating": "five"}'


@pytest.fixture
def user(terminal: Terminal) -> Terminal:
    """A user who has defined Review."""
    terminal.run(DEFINE)
    return terminal


def contents(server: ScriptedServer, request: int) -> list[tuple[str, str]]:
    """Roles and words of a request's messages."""
    return [(each["role"], each["content"]) for each in server.requests[request].body["messages"]]


# --- an object that one can compute with


def test_schema_gives_an_object_of_the_notebooks_class(
    user: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(RIGHT)
    ran = user.run("%%llm review << --schema Review\nA good kettle.")
    assert ran.error is None
    assert type(user["review"]) is user["Review"]
    assert user["review"].rating + 1 == 5
    assert "Review(product='kettle', rating=4)" in ran.out
    assert ran.value.value == user["review"]
    assert ran.value.text == RIGHT


@pytest.mark.parametrize(
    ("expression", "answer", "value"),
    [
        ("list[int]", '{"result": [1, 2]}', [1, 2]),
        ("dict[str, int]", '{"result": {"a": 1}}', {"a": 1}),
        ('Literal["good", "bad"]', '{"result": "bad"}', "bad"),
        ("int | None", '{"result": null}', None),
        ('"int | str"', '{"result": "x"}', "x"),
        ("tuple[int, ...]", '{"result": [3, 4]}', (3, 4)),
        ("str", "as it is", "as it is"),
    ],
)
def test_type_expressions_on_the_line(
    user: Terminal, server: ScriptedServer, expression: str, answer: str, value: Any
) -> None:
    server.enqueue(answer, answer)
    user.run(f"%%llm --schema {expression} -o got\nWhich?")
    assert user["got"] == value
    user["got"] = ...
    ran = user.run(f"got = %llm --schema {expression} Which of [these] | those?")
    assert ran.error is None
    assert user["got"].value == value
    assert contents(server, -1)[-1] == ("user", "Which of [these] | those?")


def test_ask_and_aask_take_a_type(user: Terminal, server: ScriptedServer) -> None:
    server.enqueue(RIGHT, RIGHT)
    assert llm_magic.ask("Review?", schema=user["Review"]).value.rating == 4
    user["llm_magic"] = llm_magic
    assert user.run("(await llm_magic.aask('Review?', schema=Review)).value.rating").value == 4


def test_what_is_sent_names_the_schema_and_a_cap(user: Terminal, server: ScriptedServer) -> None:
    server.enqueue(RIGHT)
    user.run("%%llm --schema Review -s Terse.\nReview?")
    body = server.requests[0].body
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["additionalProperties"] is False
    assert body["max_tokens"] == 16_384
    system = contents(server, 0)[0][1]
    assert system.startswith("Terse.")
    assert "JSON" in system
    assert '"rating"' in system


def test_a_cap_that_does_not_fit_the_context_is_made_smaller(
    user: Terminal, server: ScriptedServer
) -> None:
    said = (
        "This model's maximum context length is 8192 tokens. However, you requested 16500 tokens "
        "(116 in the messages, 16384 in the completion)."
    )
    error = Reply(status=400, error={"error": {"message": said, "type": "BadRequestError"}})
    server.enqueue(error, RIGHT)
    user.run("%%llm review << --schema Review\nReview?")
    assert user["review"].rating == 4
    assert [each.body["max_tokens"] for each in server.requests] == [16_384, 2048]
    server.enqueue(error)
    ran = user.run("%%llm --schema Review --max-tokens 9000\nReview?")
    assert isinstance(ran.error, ContextTooLong)
    assert len(server.requests) == 3


def test_dry_run_shows_the_schema(user: Terminal, server: ScriptedServer) -> None:
    assert '"json_schema"' in user.run("%%llm --schema Review --dry-run\nReview?").out
    assert server.requests == []


def test_frame_of_a_list(user: Terminal, server: ScriptedServer) -> None:
    rows = [{"product": "kettle", "rating": 4}, {"product": "pan", "rating": 2}]
    server.enqueue(json.dumps({"result": rows}))
    user.run("%%llm --schema list[Review]\nReviews?")
    frame = user.run("_.frame()").value
    assert frame.to_dict("records") == rows
    assert str(frame["rating"].dtype) == "int64"


# --- errors: one line each, nothing sent, nothing counted


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("Reveiw", "Did you mean Review?"),
        ("Nothing", "there is no Nothing"),
        ("review", "Did you mean Review?"),
        ("number", "an int, not a type"),
        ("list[number]", "number is an int"),
        ("len", "a function, not a type"),
        ("json", "a module, not a type"),
        ("Field(gt=1)", "a call is never run"),
        ("list[make()]", "a call is never run"),
        ("[Review]", "no type"),
        ("list[", "no Python type expression"),
        ("Review.Inner", "no Inner in Review"),
        ("number.real", "neither a module nor a class"),
        ("Frame", "cannot be read from JSON"),
        ("list[Frame]", "cannot be read from JSON"),
        ("list[int][str]", "not"),
    ],
)
def test_a_wrong_type_is_one_line_and_sends_nothing(
    user: Terminal, server: ScriptedServer, expression: str, words: str
) -> None:
    user.run("import json; number = 7; called = []")
    user.run("def make(): called.append(1)\nfrom pandas import DataFrame as Frame")
    ran = user.run(f"%%llm --schema {expression}\nReview?")
    assert isinstance(ran.error, PromptError)
    assert words in str(ran.error)
    assert "nothing was sent" in str(ran.error)
    assert len(plain(ran.out).strip().splitlines()) <= 3
    assert user["called"] == []
    assert server.requests == []
    assert llm_magic.usage().empty


@pytest.mark.parametrize("schema", ["Review", 7, len, json], ids=str)
def test_ask_refuses_what_is_no_type(
    terminal: Terminal, server: ScriptedServer, schema: Any
) -> None:
    with pytest.raises(PromptError, match="not a type"):
        llm_magic.ask("Review?", schema=schema)
    assert server.requests == []


def test_param_response_format_beside_a_schema_is_refused(user: Terminal) -> None:
    ran = user.run("%%llm --schema Review --param response_format={}\nReview?")
    assert isinstance(ran.error, PromptError)
    assert "response_format" in str(ran.error)


# --- repair


def test_a_wrong_answer_is_asked_again_with_its_error(
    user: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(Reply(WRONG, prompt_tokens=10, completion_tokens=5))
    server.enqueue(Reply(RIGHT, prompt_tokens=30, completion_tokens=7))
    ran = user.run("%%llm review << --schema Review\nReview?")
    assert user["review"].rating == 4
    *_, wrong, told = contents(server, 1)
    assert wrong == ("assistant", WRONG)
    assert told[0] == "user"
    assert "rating" in told[1]
    assert '"five"' in told[1]
    assert (ran.value.usage.input_tokens, ran.value.usage.output_tokens) == (40, 12)
    assert ran.value.attempts == 2


def test_each_attempt_is_counted(user: Terminal, server: ScriptedServer) -> None:
    user.run("%config LLMMagic.quota_requests = 2")
    server.enqueue(WRONG, WRONG, RIGHT)
    assert isinstance(user.run("%%llm --schema Review\nReview?").error, InvalidAnswer)
    ran = user.run("%%llm --schema Review\nAnother?")
    assert isinstance(ran.error, QuotaExceeded)
    assert len(server.requests) == 2


def test_a_limit_that_stops_the_repair_says_so(user: Terminal, server: ScriptedServer) -> None:
    user.run("%config LLMMagic.quota_requests = 1")
    server.enqueue(WRONG, RIGHT)
    error = user.run("%%llm --schema Review\nReview?").error
    assert isinstance(error, QuotaExceeded)
    assert "does not fit Review" in str(error)
    assert error.text == WRONG
    assert error.usage.total_tokens > 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("repairs", [0, 1, 2])
def test_after_the_last_attempt_the_error_has_everything(
    user: Terminal, server: ScriptedServer, repairs: int
) -> None:
    for _ in range(repairs + 1):
        server.enqueue(Reply(WRONG, prompt_tokens=10, completion_tokens=5))
    error = user.run(f"%%llm --schema Review --repairs {repairs}\nReview?").error
    assert isinstance(error, InvalidAnswer)
    assert error.text == WRONG
    assert error.attempts == repairs + 1 == len(server.requests)
    assert error.usage.total_tokens == 15 * (repairs + 1)
    assert any("rating" in line and "five" in line for line in error.errors)
    assert "Review" in str(error)
    assert len(str(error).splitlines()) <= 3


def test_fewer_than_no_repairs_are_none(user: Terminal, server: ScriptedServer) -> None:
    server.enqueue(WRONG)
    with pytest.raises(InvalidAnswer):
        llm_magic.ask("Review?", schema=user["Review"], repairs=-1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (FAULTS["refusal"], Refused),
        (Reply(RIGHT, finish="content_filter"), Refused),
        (Reply('{"product": "ket', finish="length"), Truncated),
        (FAULTS["cut"], StreamBroken),
    ],
    ids=["refusal", "filter", "length", "cut"],
)
def test_what_no_repair_can_mend_is_not_repaired(
    user: Terminal, server: ScriptedServer, reply: Reply, kind: type
) -> None:
    server.enqueue(reply, RIGHT)
    assert isinstance(user.run("%%llm --schema Review\nReview?").error, kind)
    assert len(server.requests) == 1


def test_an_answer_in_the_reasoning_is_found(user: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("", reasoning=RIGHT))
    user.run("%%llm review << --schema Review\nReview?")
    assert user["review"].rating == 4


def test_a_validator_may_itself_ask_a_model(user: Terminal, server: ScriptedServer) -> None:
    user.run(
        "import llm_magic\nfrom pydantic import field_validator\n"
        "class Judged(BaseModel):\n"
        "    product: str\n"
        "    @field_validator('product')\n"
        "    @classmethod\n"
        "    def known(cls, value):\n"
        "        assert llm_magic.ask('Known? ' + value).text == 'yes'\n"
        "        return value\n"
    )
    server.enqueue('{"product": "kettle"}', "yes")
    user.run("%%llm judged << --schema Judged\nProduct?")
    assert user["judged"].product == "kettle"


# --- the cache


@pytest.mark.usefixtures("keeping")
class TestKept:
    def test_only_the_valid_final_is_kept(self, user: Terminal, server: ScriptedServer) -> None:
        server.enqueue(WRONG, RIGHT)
        user.run("%%llm --schema Review\nReview?")
        ran = user.run("%%llm again << --schema Review\nReview?")
        assert user["again"].rating == 4
        assert type(user["again"]) is user["Review"]
        assert ran.value.cached
        assert len(server.requests) == 2

    def test_an_invalid_answer_is_not_kept(self, user: Terminal, server: ScriptedServer) -> None:
        server.enqueue(WRONG, RIGHT)
        user.run("%%llm --schema Review --repairs 0\nReview?")
        user.run("%%llm review << --schema Review --repairs 0\nReview?")
        assert user["review"].rating == 4

    def test_another_schema_is_another_question(
        self, user: Terminal, server: ScriptedServer
    ) -> None:
        server.enqueue(RIGHT, '{"product": "kettle", "rating": 4, "why": "fast"}')
        user.run("%%llm --schema Review\nReview?")
        user.run(DEFINE + "    why: str\n")
        user.run("%%llm review << --schema Review\nReview?")
        assert user["review"].why == "fast"
        assert len(server.requests) == 2

    def test_an_edited_validator_validates_the_kept_answer_again(
        self, user: Terminal, server: ScriptedServer
    ) -> None:
        server.enqueue(RIGHT, '{"product": "pan", "rating": 3}')
        user.run("%%llm --schema Review\nReview?")
        user.run(DEFINE)
        user.run("%%llm same << --schema Review\nReview?")
        assert len(server.requests) == 1
        assert type(user["same"]) is user["Review"]
        user.run(
            DEFINE + "    def model_post_init(self, _):\n        assert self.product != 'kettle'\n"
        )
        user.run("%%llm other << --schema Review\nReview?")
        assert user["other"].product == "pan"
        assert len(server.requests) == 2

    def test_the_rung_is_no_part_of_the_key(self, user: Terminal, server: ScriptedServer) -> None:
        server.enqueue(RIGHT)
        user.run("%%llm --schema Review\nReview?")
        server.enqueue(Reply(status=400, error={"error": "response_format is not supported"}))
        server.enqueue(RIGHT)
        user.run("%%llm --schema Review --fresh\nReview?")
        assert len(server.requests) == 3
        assert user.run("%%llm --schema Review\nReview?").value.cached

    def test_a_recorded_answer_that_no_longer_fits_is_missing(
        self, user: Terminal, server: ScriptedServer, tmp_path: Path
    ) -> None:
        server.enqueue(RIGHT)
        user.run("%llm_cassette reviews.jsonl")
        user.run("%%llm --schema Review\nReview?")
        user.run("%config LLMMagic.mode = 'replay'")
        assert user.run("%%llm review << --schema Review\nReview?").error is None
        user.run(DEFINE + "    def model_post_init(self, _):\n        assert self.rating > 4\n")
        error = user.run("%%llm --schema Review\nReview?").error
        assert isinstance(error, ReplayMissing)
        assert "no longer fits" in str(error)

    def test_joined_calls_give_each_its_own_object(
        self, user: Terminal, server: ScriptedServer
    ) -> None:
        server.enqueue(Reply(RIGHT, delay=1))
        got: list[Any] = []

        def ask() -> None:
            got.append(llm_magic.ask("Review?", schema=user["Review"]).value)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(server.requests) == 1
        assert got[0] == got[1] == got[2]
        assert len({id(each) for each in got}) == 3


# --- what is seen


def test_interrupted_it_keeps_the_partial_text(user: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply(RIGHT, deltas=list(RIGHT), tokens_per_second=10))
    ran, seconds = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks > 5,
        lambda: user.run("%%llm review << --schema Review\nReview?"),
    )
    assert ran.error.text
    assert RIGHT.startswith(ran.error.text)
    assert "review" not in user.shell.user_ns
    assert seconds < SOON


@pytest.fixture(scope="module")
def notebook() -> Any:
    """A server and a kernel that somebody watches, with Review defined."""
    with ScriptedServer() as server:
        kernel = Kernel(
            watched=True, environment={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        )
        kernel.run("%load_ext llm_magic\n" + DEFINE)
        yield kernel, server
        kernel.stop()


def drawn(shown: Any) -> list[str]:
    """The HTML of each redraw."""
    kinds = ("display_data", "update_display_data")
    return [each["data"]["text/html"] for kind, each in shown.messages if kind in kinds]


def test_a_list_is_a_growing_table(notebook: Any) -> None:
    kernel, server = notebook
    rows = [{"product": f"<b>{n}</b>", "rating": n % 5 + 1} for n in range(30)]
    server.enqueue(Reply(json.dumps({"result": rows}), tokens_per_second=100))
    began = time.monotonic()
    shown = kernel.run("%%llm reviews << --schema list[Review]\nReviews?")
    took = time.monotonic() - began
    pages = drawn(shown)
    assert 3 <= len(pages) <= took * 10 + 3
    counts = [page.count("<tr") for page in pages]
    assert any(1 < count < max(counts) for count in counts)
    assert all("<b>" not in page for page in pages)
    assert "<th" in pages[-1]
    assert kernel.value("len(reviews)") == 30
    assert kernel.value("type(reviews[0]).__name__") == "Review"


def test_an_object_fills_in(notebook: Any) -> None:
    kernel, server = notebook
    text = json.dumps({"product": "a kettle of many words " * 20, "rating": 4})
    server.enqueue(Reply(text, tokens_per_second=50))
    pages = drawn(kernel.run("%%llm --schema Review\nReview?"))
    halves = [page for page in pages if "many words" in page and "…</td>" in page]
    assert halves
    assert all(">4<" not in page for page in halves)
    assert ">4<" in pages[-1]


def test_a_repaired_answer_replaces_the_wrong_one(notebook: Any) -> None:
    kernel, server = notebook
    server.enqueue(Reply(WRONG, tokens_per_second=15), Reply(RIGHT, tokens_per_second=15))
    shown = kernel.run("%%llm --schema Review\nA third?")
    pages = drawn(shown)
    assert any("Asking again" in page for page in pages)
    assert "five" not in pages[-1]
    assert "2 attempts" in pages[-1]


def test_an_objects_own_rendering_is_used(notebook: Any) -> None:
    kernel, server = notebook
    kernel.run(DEFINE + "    def _repr_html_(self):\n        return '<i>my own</i>'\n")
    server.enqueue(RIGHT)
    pages = drawn(kernel.run("%%llm --schema Review\nA fourth?"))
    assert "<i>my own</i>" in pages[-1]
    kernel.run(DEFINE)


def test_an_invalid_answer_is_left_as_code_with_the_error(notebook: Any) -> None:
    kernel, server = notebook
    server.enqueue(WRONG)
    shown = kernel.run("%%llm --schema Review --repairs 0\nA fifth?")
    assert shown.of("error")[0]["ename"] == "InvalidAnswer"
    assert "five" in drawn(shown)[-1]


def test_load_ext_imports_no_pydantic(bare_terminal: Terminal) -> None:
    kernel = Kernel(watched=False, environment={})
    kernel.run("%load_ext llm_magic\nimport sys")
    names = "[n for n in ('pydantic', 'openai', 'llm_magic.structured') if n in sys.modules]"
    assert kernel.value(names) == []
    kernel.stop()
