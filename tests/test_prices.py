"""What calls cost. Expected sums are worked out by hand from prices per million tokens."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal, getcontext, localcontext
from typing import Any, NoReturn

import genai_prices
import pytest
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_magic import prices
from llm_magic.errors import PromptError
from llm_magic.prices import Prices
from llm_magic.types import Usage

OPENAI = "https://api.openai.com/v1"
OPENROUTER = "https://openrouter.ai/api/v1"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai/"
AZURE = "https://acme.openai.azure.com/openai/v1"
DEEPSEEK = "https://api.deepseek.com"
PROXY = "http://gpu-box:8000/v1"
D = Decimal


@pytest.fixture
def listed() -> Prices:
    """Prices of the public list alone."""
    return Prices()


# The public list


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(1000, 200), "0.00027"),
        (Usage(2006, 300, cached_tokens=1920), "0.0003369"),
        (Usage(1000, 200, reasoning_tokens=150), "0.00027"),
        (Usage(1000, 200, estimated=True), "0.00027"),
        (Usage(1000, 0), "0.00015"),
        (Usage(0, 200), "0.00012"),
        (Usage(), "0"),
    ],
)
def test_a_listed_model_costs_its_list_price(listed: Prices, usage: Usage, cost: str) -> None:
    found = listed.cost("gpt-4o-mini", OPENAI, usage)

    assert type(found) is Decimal
    assert found == D(cost)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(100_000, 0), "0.3"),
        (Usage(100_000, 0, cached_tokens=100_000), "0.03"),
        (Usage(100_000, 0, cache_write_tokens=100_000), "0.375"),
        # 10,000 plain, 60,000 read, 30,000 written; 1,000 out.
        (Usage(100_000, 1000, cached_tokens=60_000, cache_write_tokens=30_000), "0.1755"),
        # Above 200,000 tokens all are dearer: $6 plain.
        (Usage(200_000, 0), "0.6"),
        (Usage(300_000, 0), "1.8"),
    ],
)
def test_reading_and_writing_the_providers_cache_have_their_prices(
    listed: Prices, usage: Usage, cost: str
) -> None:
    assert listed.cost("claude-sonnet-4-5", "https://api.anthropic.com/v1", usage) == D(cost)


def test_reasoning_has_its_own_price_where_the_list_has_one(listed: Prices) -> None:
    # $2 in, $8 out, $3 for reasoning.
    usage = Usage(0, 1_000_000, reasoning_tokens=400_000)

    assert listed.cost("perplexity/sonar-deep-research", OPENROUTER, usage) == D("6")


def test_a_price_by_the_request_is_added(listed: Prices) -> None:
    # $1 in, $1 out, $12 for a thousand requests.
    sonar = ("sonar", "https://api.perplexity.ai")

    assert listed.cost(*sonar, Usage(1000, 1000)) == D("0.014")
    assert listed.worst(*sonar, 1000, 1000) == D("0.014")


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-4o-mini-2024-07-18", OPENAI),
        ("gpt-4o-mini-20240718", OPENAI),
        ("GPT-4o-mini", OPENAI),
        ("gpt-4o-mini", "https://API.OpenAI.com:443/v1/"),
        ("gpt-4o-mini", "https://me:secret@api.openai.com/v1"),
        ("gpt-4o-mini", AZURE),
        ("gpt-4o-mini", "https://acme.services.ai.azure.com/openai/v1/"),
        ("openai/gpt-4o-mini", OPENROUTER),
    ],
)
def test_dated_names_and_other_spellings_have_the_same_price(
    listed: Prices, model: str, base_url: str
) -> None:
    assert listed.cost(model, base_url, Usage(1000, 200)) == D("0.00027")
    assert listed.known(model, base_url)
    assert listed.of(model, base_url) == (D("0.15"), D("0.6"))


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("mistral-large-latest", "https://api.mistral.ai/v1"),
        ("llama-3.3-70b-versatile", "https://api.groq.com/openai/v1"),
        ("deepseek-chat", DEEPSEEK),
        ("gemini-2.5-pro", GOOGLE),
        ("MiniMaxAI/MiniMax-M3", "https://api.together.xyz/v1"),
        ("grok-4", "https://api.x.ai/v1"),
        ("kimi-k2-0905-preview", "https://api.moonshot.ai/v1"),
        (
            "@cf/meta/llama-3.1-8b-instruct",
            "https://api.cloudflare.com/client/v4/accounts/abc/ai/v1",
        ),
        ("databricks-gpt-oss-20b", "https://adb-1.2.azuredatabricks.net/serving-endpoints"),
    ],
)
def test_the_provider_is_found_from_the_address(listed: Prices, model: str, base_url: str) -> None:
    cost = listed.cost(model, base_url, Usage(1000, 200))

    assert cost is not None
    assert 0 < cost < D("0.1")


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-9", OPENAI),
        ("", OPENAI),
        ("gpt-4o-mini", "https://proxy.corp.example/v1"),
        ("gpt-4o-mini", "http://10.0.0.7:4000/v1"),
        ("gpt-4o-mini", "http://api.openai.com/v1"),
        ("gpt-4o-mini", "https://eu.api.openai.com/v1"),
        ("gpt-4o-mini", "https://api.openai.com.proxy.example/v1"),
        ("gpt-4o-mini", "https://api.openai.com-proxy.example/v1"),
        ("gpt-4o-mini", "https://api.openai.com@proxy.example/v1"),
        ("gpt-4o-mini", "https://proxy/acme.openai.azure.com"),
        ("gemini-2.5-pro", "https://proxy.example/x.googleapis.com"),
        ("anthropic/claude-sonnet-4.5:nitro", OPENROUTER),
        # Priced by the token in one direction only, or said to cost nothing by an empty entry.
        ("text-embedding-3-small", OPENAI),
        ("qwen-3-coder-480b", "https://api.cerebras.ai/v1"),
        ("some-model:free", "https://proxy.example/v1"),
    ],
)
def test_what_is_not_known_is_none_and_never_nothing(
    listed: Prices, model: str, base_url: str
) -> None:
    assert listed.cost(model, base_url, Usage(1000, 200)) is None
    assert listed.worst(model, base_url, 1000, 200) is None
    assert listed.of(model, base_url) is None
    assert not listed.known(model, base_url)


def test_what_openrouter_names_free_is_free(listed: Prices) -> None:
    free = ("meta-llama/llama-3.3-70b-instruct:free", OPENROUTER)

    assert listed.cost(*free, Usage(1000, 200)) == 0
    assert listed.worst(*free, 10**6, 10**6) == 0
    assert listed.of(*free) == (0, 0)
    assert listed.known(*free)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://localhost:11434/v1",
        "http://LOCALHOST/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.0.1.1:8000/v1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000/v1",
    ],
)
def test_a_server_on_this_machine_is_free(listed: Prices, base_url: str) -> None:
    for model in ("qwen3", "gpt-4o-mini", ""):
        assert listed.cost(model, base_url, Usage(1000, 200)) == 0
        assert listed.worst(model, base_url, 1000, 200, service_tier="priority") == 0
        assert listed.of(model, base_url) == (0, 0)


@pytest.mark.parametrize("base_url", ["http://localhost.corp/v1", "http://127.corp.example/v1"])
def test_a_host_that_is_only_named_like_this_machine_is_not_free(
    listed: Prices, base_url: str
) -> None:
    assert listed.cost("qwen3", base_url, Usage(1000, 200)) is None


@pytest.mark.parametrize(
    ("usage", "same_as"),
    [
        (Usage(10, 5, cached_tokens=20), Usage(10, 5, cached_tokens=10)),
        (
            Usage(10, 5, cached_tokens=8, cache_write_tokens=8),
            Usage(10, 5, cached_tokens=8, cache_write_tokens=2),
        ),
        (Usage(10, 5, reasoning_tokens=9), Usage(10, 5, reasoning_tokens=5)),
        (Usage(10, -5, cached_tokens=-3), Usage(10, 0)),
    ],
)
def test_counts_that_do_not_add_up_are_brought_within_their_total(
    usage: Usage, same_as: Usage
) -> None:
    own = {"mine": {"input": 4, "output": 8, "cached": 1, "cache_write": 5, "reasoning": 9}}
    table = Prices(own)

    for model, base_url in (("gpt-5.6", OPENAI), ("mine", PROXY)):
        cost = table.cost(model, base_url, usage)
        assert cost is not None
        assert cost == table.cost(model, base_url, same_as)


def test_usage_that_the_list_refuses_is_not_known(
    listed: Prices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ValueError("no such usage")

    assert listed.known("gpt-4o-mini", OPENAI)
    monkeypatch.setattr(ModelInfo, "calc_price", refuse)

    assert listed.cost("gpt-4o-mini", OPENAI, Usage(1000, 200)) is None


def test_sums_are_exact_whatever_precision_the_notebook_has_set(listed: Prices) -> None:
    own = Prices({"mine": {"input": 0.1, "output": 0.7}})
    usage = Usage(1_234_567, 7_654_321)

    with localcontext() as context:
        context.prec = 3
        # 0.18518505 + 4.5925926, and 0.1234567 + 5.3580247.
        assert listed.cost("gpt-4o-mini", OPENAI, usage) == D("4.77777765")
        assert listed.worst("gpt-4o-mini", OPENAI, 1_234_567, 7_654_321) == D("4.77777765")
        assert own.cost("mine", PROXY, usage) == D("5.4814814")
        assert getcontext().prec == 3


# The user's table


@pytest.mark.parametrize(
    ("extra", "usage", "cost"),
    [
        ({}, Usage(1_000_000, 0), "4"),
        ({}, Usage(0, 1_000_000), "8"),
        ({}, Usage(1_000_000, 0, cached_tokens=500_000), "4"),
        ({"cached": 1}, Usage(1_000_000, 0, cached_tokens=500_000), "2.5"),
        ({}, Usage(1_000_000, 0, cache_write_tokens=500_000), "4"),
        ({"cache_write": 5}, Usage(1_000_000, 0, cache_write_tokens=500_000), "4.5"),
        ({}, Usage(0, 1_000_000, reasoning_tokens=500_000), "8"),
        ({"reasoning": 10}, Usage(0, 1_000_000, reasoning_tokens=500_000), "9"),
        ({"reasoning": 0}, Usage(0, 1_000_000, reasoning_tokens=500_000), "4"),
    ],
)
def test_the_users_prices_count_each_token_once(
    extra: dict[str, Any], usage: Usage, cost: str
) -> None:
    table = Prices({"mine": {"input": 4, "output": 8, **extra}})

    assert table.cost("mine", PROXY, usage) == D(cost)


def test_a_float_is_what_was_typed() -> None:
    table = Prices({"mine": {"input": 0.1, "output": D("0.30"), "cached": 1e-7}})

    assert table.of("mine", PROXY) == (D("0.1"), D("0.3"))
    assert table.cost("mine", PROXY, Usage(3, 0)) == D("0.0000003")
    assert table.cost("mine", PROXY, Usage(1, 0, cached_tokens=1)) == D("1e-13")


@pytest.mark.parametrize("nothing", [0, 0.0, D(0), "free"])
def test_a_model_can_be_declared_free(nothing: object) -> None:
    table = Prices({"gpt-4o-mini": nothing})

    assert table.cost("gpt-4o-mini", OPENAI, Usage(1000, 200)) == 0
    assert table.worst("gpt-4o-mini", OPENAI, 1000, 200) == 0


def test_the_users_table_wins_over_the_list_and_over_this_machine() -> None:
    table = Prices({"*": {"input": 1, "output": 1}})

    assert table.cost("gpt-4o-mini", OPENAI, Usage(500_000, 500_000)) == 1
    assert table.cost("qwen3", "http://localhost:4000/v1", Usage(500_000, 500_000)) == 1


def test_a_name_wins_over_a_pattern_and_a_pattern_over_a_server() -> None:
    own = {
        "gpu-box": {"input": 1, "output": 1},
        "gpu-box:8000": {"input": 2, "output": 2},
        "http://gpu-box:8000/v1": {"input": 3, "output": 3},
        "q*": {"input": 4, "output": 4},
        "qwen*": {"input": 5, "output": 5},
        "qwen3": {"input": 6, "output": 6},
    }
    asked = [
        ("other", "http://gpu-box:9000/v1"),
        ("other", "http://gpu-box:8000/v2"),
        ("other", "http://gpu-box:8000/v1"),
        ("q", "http://gpu-box:8000/v1"),
        ("qwen2", "http://gpu-box:8000/v1"),
        ("qwen3", "http://gpu-box:8000/v1"),
    ]
    for order in (own, dict(reversed(own.items()))):
        table = Prices(order)
        found = [table.of(*each) for each in asked]
        assert found == [(price, price) for price in range(1, 7)]


@pytest.mark.parametrize(
    ("key", "base_url", "fits"),
    [
        ("gpu-box:8000", "http://gpu-box:8000/v1", True),
        ("GPU-Box:8000", "http://gpu-box:8000/v1", True),
        ("gpu-box:8000/v1", "https://gpu-box:8000/v1/", True),
        ("http://gpu-box:8000", "http://gpu-box:8000/v1", True),
        ("http://gpu-box:8000/v1/", "http://me:secret@gpu-box:8000/v1", True),
        ("gpu-box", "https://gpu-box/v1", True),
        ("http://[fd00::7]:8000/v1", "http://[FD00::7]:8000/v1", True),
        ("gpu-box:80", "http://gpu-box:8000/v1", False),
        ("gpu-box:8000", "http://gpu-box:9000/v1", False),
        ("gpu-box:8000", "http://big-gpu-box:8000/v1", False),
        ("http://gpu-box:8000/v1", "http://gpu-box:8000/v10", False),
        ("http://gpu-box:8000/v1", "https://gpu-box:8000/v1", False),
        ("gpu-box", "http://gpu-box.corp:8000/v1", False),
    ],
)
def test_a_server_is_named_by_its_address_or_host(key: str, base_url: str, fits: bool) -> None:
    assert Prices({key: "free"}).known("any-model", base_url) is fits


@pytest.mark.parametrize(
    ("key", "model", "fits"),
    [
        ("qwen*", "qwen3:8b", True),
        ("qwen*", "Qwen3", True),
        ("*/llama-?", "meta/llama-3", True),
        ("*/llama-[34]", "meta/llama-5", False),
        ("qwen*", "my-qwen", False),
        ("qwen", "qwen3", False),
        ("our-mini", "our-mini-2025-08-07", True),
        ("our-mini", "our-mini-20250807", True),
        ("our-mini", "our-mini-2025", False),
        ("our-mini-2025-08-07", "our-mini", False),
    ],
)
def test_a_model_is_named_exactly_or_by_a_pattern(key: str, model: str, fits: bool) -> None:
    assert Prices({key: "free"}).known(model, PROXY) is fits


def test_a_dated_name_of_its_own_wins_over_the_name_without_a_date() -> None:
    table = Prices({"our-mini": {"input": 1, "output": 1}, "our-mini-20250807": 0, "our*": 0})

    assert table.of("our-mini-20250807", PROXY) == (0, 0)
    assert table.of("our-mini-20251231", PROXY) == (1, 1)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ([("gpt", 1)], "not a table of models"),
        ("free", "not a table of models"),
        ({3: "free"}, "3 for a model's name"),
        ({" ": "free"}, "' ' for a model's name"),
        ({"mine": 2}, "'mine' is 2; it takes a table, 0 or 'free'"),
        ({"mine": False}, "'mine' is False"),
        ({"mine": None}, "'mine' is None"),
        ({"mine": "cheap"}, "'mine' is 'cheap'"),
        ({"mine": float("nan")}, "'mine' is nan"),
        ({"mine": {}}, "lacks 'input' and 'output'"),
        ({"mine": {"input": 1}}, "lacks 'output'"),
        ({"mine": {"input": 1, "output": 2, "cache": 1}}, "'cache'; did you mean 'cached'?"),
        ({"mine": {"inptu": 1, "output": 2}}, "'inptu'; did you mean 'input'?"),
        ({"mine": {"input": 1, "output": 2, "xyz": 1}}, "'xyz'; it takes input, output, cached"),
        ({"mine": {"input": 1, "output": 2, 7: 1}}, "has no field 7"),
        ({"mine": {"input": -1, "output": 2}}, "input=-1; it takes USD, 0 or more"),
        ({"mine": {"input": 1, "output": float("nan")}}, "output=nan"),
        ({"mine": {"input": 1, "output": float("inf")}}, "output=inf"),
        ({"mine": {"input": 1, "output": D("NaN")}}, "output=Decimal('NaN')"),
        ({"mine": {"input": 1, "output": "2"}}, "output='2'"),
        ({"mine": {"input": 1, "output": True}}, "output=True"),
        ({"mine": {"input": 1, "output": None}}, "output=None"),
    ],
)
def test_a_table_of_another_form_is_refused_with_an_example(own: Any, words: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prices(own)

    message, fix = str(caught.value).splitlines()
    assert words in message
    assert message.endswith("Nothing was sent.")
    assert fix == f"For example: {prices._EXAMPLE}"


def test_the_example_is_a_right_one() -> None:
    table = eval(prices._EXAMPLE.partition(" = ")[2])

    assert Prices(table).of("my-model", OPENAI) == (D("0.25"), D(2))
    assert Prices(table).of("any", PROXY) == (0, 0)


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(PromptError) as caught:
        Prices({"mine": "x" * 1000})

    assert len(str(caught.value).splitlines()[0]) < 200


# The most that a call can cost


@pytest.mark.parametrize("tier", [None, "auto", "default", "flex"])
def test_the_worst_case_is_all_of_it_at_the_dearest_price(listed: Prices, tier: str | None) -> None:
    def worst(model: str, base_url: str) -> Decimal | None:
        return listed.worst(model, base_url, 100_000, 10_000, service_tier=tier)

    assert worst("gpt-4o-mini", OPENAI) == D("0.021")
    # Writing the cache is dearer than plain input: $3.75 and $3.
    assert worst("anthropic/claude-sonnet-4.5", OPENROUTER) == D("0.525")
    # Writing it is cheaper than plain input: $0.0833 and $0.30; $2.50 out.
    assert worst("google/gemini-2.5-flash", OPENROUTER) == D("0.055")


def test_the_worst_case_knows_that_a_long_prompt_is_dearer(listed: Prices) -> None:
    gemini = ("gemini-2.5-pro", GOOGLE)

    # $1.25 and $10; above 200,000 tokens $2.50 and $15 for all of them.
    assert listed.worst(*gemini, 200_000, 1000) == D("0.26")
    assert listed.worst(*gemini, 200_001, 1000) == D("0.5150025")
    assert listed.cost(*gemini, Usage(200_001, 1000)) == D("0.5150025")
    assert listed.of(*gemini) == (D("1.25"), D(10))


def test_the_worst_case_of_the_users_table_is_its_dearest_price() -> None:
    plain = {"input": 4, "output": 8}

    def worst(**extra: float) -> Decimal | None:
        return Prices({"mine": {**plain, **extra}}).worst("mine", PROXY, 10**6, 10**6)

    assert worst() == 12
    assert worst(cached=1, reasoning=1) == 12
    assert worst(cached=5) == 13
    assert worst(cache_write=6) == 14
    assert worst(reasoning=10) == 14


@pytest.mark.parametrize("tier", ["priority", "fast", "scale", ["priority"]])
def test_a_dearer_tier_is_known_to_the_users_table_alone(listed: Prices, tier: Any) -> None:
    own = Prices({"gpt-4o-mini": {"input": 1, "output": 2}})

    assert listed.worst("gpt-4o-mini", OPENAI, 1000, 200, service_tier=tier) is None
    assert own.worst("gpt-4o-mini", OPENAI, 1000, 200, service_tier=tier) == D("0.0014")


@pytest.mark.parametrize("hour", range(24))
def test_the_worst_case_is_that_of_the_dearest_hour(
    listed: Prices, monkeypatch: pytest.MonkeyPatch, hour: int
) -> None:
    # $0.30 and $1.20 from 1 to 4 and from 6 to 10 UTC, else $0.15 and $0.60.
    monkeypatch.setattr(prices, "_now", lambda: datetime(2026, 12, 1, hour, 30, tzinfo=UTC))
    peak = 1 <= hour < 4 or 6 <= hour < 10
    flash = ("deepseek-flash", DEEPSEEK)

    assert listed.cost(*flash, Usage(10**6, 10**6)) == (D("1.5") if peak else D("0.75"))
    assert listed.of(*flash) == ((D("0.3"), D("1.2")) if peak else (D("0.15"), D("0.6")))
    assert listed.worst(*flash, 10**6, 10**6) == D("1.5")


@pytest.fixture
def listing() -> Any:
    """Puts a model of the test's own into the public list."""

    def put(model_prices: ModelPrice | list[ConditionalPrice]) -> tuple[str, str]:
        model = ModelInfo("m", ClauseEquals("m"), prices=model_prices)
        provider = Provider("p", "P", "https://llm\\.example", models=[model])
        set_custom_snapshot(DataSnapshot([provider], from_auto_update=False))
        prices._listed.cache_clear()
        return "m", "https://llm.example/v1"

    yield put
    set_custom_snapshot(None)
    prices._listed.cache_clear()


Listing = Callable[[ModelPrice | list[ConditionalPrice]], tuple[str, str]]


def test_a_tier_that_is_cheaper_does_not_lower_the_worst_case(
    listed: Prices, listing: Listing
) -> None:
    tiers = TieredPrices(D(10), [Tier(1000, D(1)), Tier(5000, D(2))])
    model = listing(ModelPrice(input_mtok=tiers, output_mtok=D(0)))

    assert listed.worst(*model, 500, 0) == D("0.005")
    for size in (1000, 1001, 4999, 5000):
        assert listed.worst(*model, size, 0) == D("0.01")
    assert listed.worst(*model, 6000, 0) == D("0.012")


@pytest.mark.parametrize(("read", "write"), [(2, 4), (4, 2)])
def test_the_worst_case_counts_what_is_listed_as_dearer_than_plain_tokens(
    listed: Prices, listing: Listing, read: int, write: int
) -> None:
    model = listing(
        ModelPrice(
            input_mtok=D(1),
            cache_read_mtok=D(read),
            cache_write_mtok=D(write),
            output_mtok=D(8),
            output_reasoning_mtok=D(16),
        )
    )

    assert listed.worst(*model, 10**6, 0) == 4
    assert listed.worst(*model, 0, 10**6) == 16


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_a_price_that_changes_at_midnight_is_foreseen(
    listed: Prices, listing: Listing, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    model = listing(
        [
            ConditionalPrice(None, prices=ModelPrice(input_mtok=D(old), output_mtok=D(old))),
            ConditionalPrice(
                StartDateConstraint(date(2026, 12, 3)),
                prices=ModelPrice(input_mtok=D(new), output_mtok=D(new)),
            ),
        ]
    )
    for day, worst in ((1, old), (2, max(old, new))):
        now = datetime(2026, 12, day, 23, 59, tzinfo=UTC)
        monkeypatch.setattr(prices, "_now", lambda now=now: now)
        assert listed.worst(*model, 10**6, 0) == worst


def test_a_price_that_is_missing_at_some_hour_is_not_known(
    listed: Prices, listing: Listing
) -> None:
    model = listing(
        [
            ConditionalPrice(None, prices=ModelPrice(input_mtok=D(1), output_mtok=D(1))),
            ConditionalPrice(
                TimeOfDateConstraint(time(3, tzinfo=UTC), time(3, 1, tzinfo=UTC)),
                prices=ModelPrice(input_mtok=D(1)),
            ),
        ]
    )

    assert listed.worst(*model, 10, 10) is None


SAMPLE = [
    *((name, OPENAI) for name in ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3", "o4-mini", "o1")),
    *((name, OPENAI) for name in ("gpt-5", "gpt-5-mini", "gpt-5-pro", "gpt-5.4", "gpt-5.6")),
    *(
        (name, OPENAI)
        for name in ("gpt-3.5-turbo", "gpt-5.6-sol", "ft:gpt-4o-mini-2024-07-18:a::b")
    ),
    *((name, GOOGLE) for name in ("gemini-2.5-pro", "gemini-2.5-flash", "gemini-1.5-pro")),
    *((name, GOOGLE) for name in ("gemini-3-pro-preview", "gemini-2.0-flash")),
    *((name, DEEPSEEK) for name in ("deepseek-chat", "deepseek-reasoner", "deepseek-v4-pro")),
    ("deepseek-flash", DEEPSEEK),
    *((f"anthropic/claude-{name}", OPENROUTER) for name in ("sonnet-4.5", "opus-4.1")),
    *((f"anthropic/claude-{name}", OPENROUTER) for name in ("sonnet-4", "haiku-4.5")),
    *((f"google/gemini-{name}", OPENROUTER) for name in ("2.5-pro", "2.5-flash")),
    *((f"openai/{name}", OPENROUTER) for name in ("gpt-5", "gpt-4o-mini", "o3")),
    ("perplexity/sonar-deep-research", OPENROUTER),
    ("meta-llama/llama-3.3-70b-instruct", OPENROUTER),
    ("meta-llama/llama-3.3-70b-instruct:free", OPENROUTER),
    ("gpt-4o", AZURE),
    ("gpt-5-mini", AZURE),
    ("grok-4", "https://api.x.ai/v1"),
    ("sonar-pro", "https://api.perplexity.ai"),
    ("sonar-deep-research", "https://api.perplexity.ai"),
    ("claude-sonnet-4-5", "https://api.anthropic.com/v1"),
    ("mistral-large-latest", "https://api.mistral.ai/v1"),
    ("MiniMax-M2.5-highspeed", "https://api.minimax.io/v1"),
    ("mine", PROXY),
    ("odd", PROXY),
    ("any", "http://localhost:8000/v1"),
]
TABLE = Prices(
    {
        "mine": {"input": 0.3, "output": 1.1, "cached": 0.03, "cache_write": 0.375},
        "odd": {"input": 1, "output": 0.1, "cached": 2.5, "cache_write": 0, "reasoning": 7},
    }
)
EDGES = [0, 1, 1000, 128_000, 199_999, 200_000, 200_001, 272_000, 272_001, 1_000_000]


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, int, Usage]:
    """The most tokens in and out, and a usage within."""
    most_in, most_out = (draw(st.sampled_from(EDGES) | st.integers(0, 2_000_000)) for _ in range(2))
    into = draw(st.just(most_in) | st.sampled_from(EDGES) | st.integers(0, most_in))
    into = min(into, most_in)
    out = draw(st.just(most_out) | st.integers(0, most_out))
    cached = draw(st.integers(0, into))
    written = draw(st.integers(0, into - cached))
    return most_in, most_out, Usage(into, out, cached, draw(st.integers(0, out)), written)


def test_the_sample_is_known_and_has_tiers_in_it() -> None:
    assert len(SAMPLE) >= 40
    assert all(TABLE.known(*each) for each in SAMPLE)
    dearer = [
        each
        for each in SAMPLE
        if (TABLE.worst(*each, 1_000_000, 0) or 0) > 10 * (TABLE.worst(*each, 100_000, 0) or 0)
    ]
    assert len(dearer) >= 5


@given(calls())
@settings(max_examples=150, deadline=None)
def test_no_call_costs_more_than_its_worst_case(call: tuple[int, int, Usage]) -> None:
    most_in, most_out, usage = call
    for each in SAMPLE:
        cost, worst = TABLE.cost(*each, usage), TABLE.worst(*each, most_in, most_out)
        assert cost is not None
        assert worst is not None
        assert cost <= worst, each


@given(calls())
@settings(max_examples=20, deadline=None)
def test_the_sums_are_those_of_the_list(call: tuple[int, int, Usage]) -> None:
    """The list's own sum for the same tokens, by the provider's name and not its address."""
    usage = call[2]
    counts = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
    }
    for provider, base_url in (("openai", OPENAI), ("openrouter", OPENROUTER), ("azure", AZURE)):
        for model, address in SAMPLE:
            if address == base_url:
                theirs = genai_prices.calc_price(
                    genai_prices.Usage(**counts), model, provider_id=provider
                )
                assert TABLE.cost(model, base_url, usage) == theirs.total_price


# What it takes


def test_the_list_is_not_imported_before_it_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == ["free first", "0.00027", "no socket"]


CHILD = """
import socket, sys, threading

from llm_magic.prices import Prices
from llm_magic.types import Usage

sockets = []
sys.addaudithook(lambda event, arguments: event.startswith("socket.") and sockets.append(event))
table = Prices({"mine": {"input": 1, "output": 2}})
table.cost("mine", "http://gpu-box/v1", Usage(10, 10))
table.worst("any", "http://localhost:11434/v1", 10, 10)
assert "genai_prices" not in sys.modules and "pydantic" not in sys.modules
print("free first")
print(table.cost("gpt-4o-mini", "https://api.openai.com/v1", Usage(1000, 200)))
assert "genai_prices" in sys.modules
assert table.worst("gpt-4o-mini", "https://api.openai.com/v1", 1000, 200)
assert table.cost("gpt-9", "https://proxy.example/v1", Usage(1000, 200)) is None
assert not sockets, sockets
assert threading.active_count() == 1
print("no socket")
"""


def test_what_was_looked_up_is_not_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Prices({"gpu-box": {"input": 1, "output": 1}})
    asked = [("gpt-4o-mini", OPENAI), ("gpt-9", OPENAI), ("qwen3", PROXY)]
    before = [table.cost(*each, Usage(1000, 200)) for each in asked]

    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("looked up again")

    monkeypatch.setattr(genai_prices, "calc_price", fail)
    monkeypatch.setattr(prices, "_is_server", fail)
    assert before == [D("0.00027"), None, D("0.0012")]
    assert [table.cost(*each, Usage(1000, 200)) for each in asked] == before
