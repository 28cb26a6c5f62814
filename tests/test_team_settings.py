"""What a team sets: its server, its name, limits in one line, whose answers are shared."""

import copy
import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from traitlets.config import Config

import llm_magic
from llm_magic import limits, session
from llm_magic.errors import PromptError, QuotaExceeded, StoreError, StoreWarning
from llm_magic.ledger import Limit
from llm_magic.settings import LLMMagic, WrongSetting
from llm_magic.testing import ScriptedServer
from tests.conftest import KEY, Kernel, Terminal, end_session
from tests.redis_servers import RedisServer

PASSWORD = "hunter2"
PRICES = json.dumps({"scripted-model": {"input": 1, "output": 2}})
HOUR, DAY = 3600.0, 86_400.0


def restart(terminal: Terminal) -> None:
    """The same person in a new kernel."""
    end_session()
    terminal.run("%reload_ext llm_magic")


def row(terminal: Terminal, words: str) -> list[str]:
    """The columns of a line of %llm_quota."""
    line = next(line for line in terminal.run("%llm_quota").out.splitlines() if words in line)
    return re.split(r"\s{2,}", line)


def command(out: str) -> str:
    """The command that an error ends with."""
    found = re.search(r"%\w+ .*", out)
    assert found
    return found[0]


# The address of the server


@pytest.mark.parametrize(
    ("text", "shown", "password"),
    [
        ("disk", "disk", ""),
        ("", "disk", ""),
        (" redis://here ", "redis://here", ""),
        ("redis://:hunter2@here:6379/0", "redis://here:6379/0", PASSWORD),
        ("REDIS://ann:hunter2@here/1", "redis://ann@here/1", PASSWORD),
        ("redis://ann@here", "redis://ann@here", ""),
        ("rediss://:h%2Funter2@[::1]:6380/0", "rediss://[::1]:6380/0", "h/unter2"),
        ("redis://:hun@ter2@here", "redis://here", "hun@ter2"),
        ("redis://here?password=hunter2&protocol=3", "redis://here?protocol=3", PASSWORD),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1", ""),
        ("unix://ann:hunter2@/run/redis.sock", "unix://ann@/run/redis.sock", PASSWORD),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock", PASSWORD),
    ],
)
def test_an_address_is_kept_and_its_password_put_aside(
    text: str, shown: str, password: str
) -> None:
    settings = LLMMagic(store=text)

    assert settings.store == shown
    assert settings.store_password() == password


@pytest.mark.parametrize(
    "text",
    [
        "redis//:hunter2@here",
        "http://ann:hunter2@here",
        "ann:hunter2@here:6379",
        "redis://:hunter2@",
        "redis://:hunter2@here/zero",
        "redis://:hunter2@here:port",
        "redis://:hunt/hunter2@here",
        "redis://ann:12?hunter2@here",
        "redis://ann:12?a=hunter2@here",
        "redis://:a#hunter2@here",
        "redis://:a hunter2@here",
        "redis://[:hunter2@here",
        "redis://here?ssl_password=hunter2",
        "redis://here?hunter2",
        "unix://:hunter2@",
        "unix://:a/hunter2@/run/redis.sock",
    ],
)
def test_a_wrong_address_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(WrongSetting) as caught:
        LLMMagic(store=text)

    shown = "".join([str(caught.value), repr(caught.value), *caught.value._render_traceback_()])
    assert PASSWORD not in shown
    assert "redis://HOST:6379/0" in shown
    assert caught.value.__cause__ is caught.value.__context__ is None or (
        PASSWORD not in f"{caught.value.__cause__}"
    )


def test_a_wrong_word_is_named() -> None:
    with pytest.raises(WrongSetting, match="store 'redsi' is neither disk nor"):
        LLMMagic(store="redsi")


def test_no_output_shows_the_password(terminal: Terminal) -> None:
    for line in ("redis://:old-hunter2@there", "redis://:hunter2@here:6379/0"):
        terminal.run(f'%config LLMMagic.store = "{line}"')
    settings = session.current().settings
    terminal["settings"] = settings
    shown = [
        terminal.run("%config LLMMagic").out,
        terminal.run("%config LLMMagic.store").out,
        terminal.run("settings, settings.config, settings.trait_values()").out,
        terminal.run("settings.store_password()").out,
        terminal.run("[each.config for each in get_ipython().configurables]").out,
        repr(vars(settings)),
        str(pickle.dumps(settings.store)),
        str(pickle.dumps(settings.config.LLMMagic.store)),
    ]

    assert "redis://here:6379/0" in shown[0]
    assert all(PASSWORD not in each for each in shown)
    assert settings.store_password() == PASSWORD


def test_a_wrong_address_in_config_is_told_without_its_password(
    terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    terminal.run('%config LLMMagic.store = "redis://:hunter2@here"')
    with caplog.at_level(logging.ERROR):
        terminal.run('%config LLMMagic.store = "redis:/:other-hunter2@here"')

    assert "is neither disk nor the address of a server" in caplog.text
    assert PASSWORD not in caplog.text
    assert session.current().settings.store == "redis://here"
    assert session.current().settings.store_password() == PASSWORD


def test_a_wrong_address_in_the_environment_sends_nothing(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", "redis:/:hunter2@here")
    ran = terminal.run("%llm Hello")

    assert type(ran.error) is PromptError
    assert "LLM_MAGIC_STORE does not fit" in ran.out
    assert "%env LLM_MAGIC_STORE=redis://HOST:6379/0" in ran.out
    assert PASSWORD not in ran.out
    assert len(ran.error._render_traceback_()) <= 3
    assert server.requests == []


def test_an_address_in_a_config_file_is_known_to_each_session_and_shown_to_none(
    bare_terminal: Terminal,
) -> None:
    bare_terminal.shell.config.LLMMagic.store = "redis://:hunter2@here"
    for _ in range(2):
        restart(bare_terminal)
        assert session.current().settings.store_password() == PASSWORD
        assert PASSWORD not in bare_terminal.run("get_ipython().config").out
    # Another setting changes nothing about it.
    bare_terminal.run("%config LLMMagic.retries = 1")
    assert session.current().settings.store_password() == PASSWORD


def test_the_password_comes_from_the_address_then_a_variable_then_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = LLMMagic(store="redis://here")
    assert settings.store_password() == ""
    (tmp_path / ".env").write_text("LLM_MAGIC_STORE_PASSWORD='from-file'\n")
    assert settings.store_password() == "from-file"
    monkeypatch.setenv("LLM_MAGIC_STORE_PASSWORD", "from-variable")
    assert settings.store_password() == "from-variable"
    settings.store = "redis://:from-address@here"
    assert settings.store_password() == "from-address"


def test_an_address_without_a_password_forgets_the_one_before(terminal: Terminal) -> None:
    settings = session.current().settings
    terminal.run('%config LLMMagic.store = "redis://:hunter2@here"')
    terminal.run('%config LLMMagic.store = "redis://here"')
    assert settings.store_password() == ""
    terminal.run('%config LLMMagic.store = "redis://:hunter2@here"')
    settings.store = "redis://here"
    assert settings.store_password() == ""


def test_a_config_s_address_is_copied_with_its_password() -> None:
    """Or else the next %config would lose it."""
    settings = LLMMagic(store="disk")
    settings.update_config(copy.deepcopy(config_of("redis://:hunter2@here")))
    copied = LLMMagic(config=copy.deepcopy(settings.config))

    assert copied.store_password() == PASSWORD


def config_of(store: str) -> Config:
    config = Config()
    config.LLMMagic.store = store
    return config


# Names


@pytest.mark.parametrize("setting", ["team", "user"])
@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "long" * 26])
def test_a_name_is_one_short_line(setting: str, name: str) -> None:
    with pytest.raises(WrongSetting, match=f"{setting} .* is no name"):
        LLMMagic(**{setting: name})


def test_any_other_name_is_taken_as_it_is() -> None:
    settings = LLMMagic(team=" data science {1}:ü ", user="ann@example.org")

    assert settings.team == "data science {1}:ü"
    assert settings.user == "ann@example.org"


def test_the_person_is_the_hub_s_user_then_the_setting_then_the_login_name(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def who() -> str:
        terminal.run("%llm_quota --requests 5 --scope user")
        return row(terminal, "all kernels")[1]

    monkeypatch.setenv("LOGNAME", "login")
    assert who() == "you as login, all kernels"
    monkeypatch.setenv("LLM_MAGIC_USER", "set")
    assert who() == "you as set, all kernels"
    monkeypatch.setenv("JUPYTERHUB_USER", "hub")
    assert who() == "you as hub, all kernels"


def test_another_library_s_user_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "TEAM", "STORE", "LIMITS"):
        monkeypatch.setenv(f"OPENAI_{name}", "true")
    settings = LLMMagic()
    settings.read_environment()

    assert (settings.user, settings.team, settings.store, settings.limits) == ("", "", "disk", "")


# Limits in one line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ; \n", []),
        ("50 requests per 1h per user", [Limit("user", "requests", 50, HOUR)]),
        ("50 Requests per hour per User", [Limit("user", "requests", 50, HOUR)]),
        ("50 requests per user per 1h", [Limit("user", "requests", 50, HOUR)]),
        ("1 request per day per team", [Limit("team", "requests", 1, DAY)]),
        ("0 requests per 90s per kernel", [Limit("kernel", "requests", 0, 90.0)]),
        ("$20 per 1d per team", [Limit("team", "usd", 20 * 10**9, DAY)]),
        ("0.25 usd per 2 days per team", [Limit("team", "usd", 10**9 // 4, 2 * DAY)]),
        ("2 usd per kernel per kernel", [Limit("kernel", "usd", 2 * 10**9, None)]),
        ("1_000 tokens per 30min per user", [Limit("user", "tokens", 1000, HOUR / 2)]),
        (
            "1,000,000 tokens per 1h per kernel,200 tokens per 1h per user, 3 usd per 1d per team;"
            "\n4 requests per week per team;",
            [
                Limit("kernel", "tokens", 10**6, HOUR),
                Limit("user", "tokens", 200, HOUR),
                Limit("team", "usd", 3 * 10**9, DAY),
                Limit("team", "requests", 4, 7 * DAY),
            ],
        ),
    ],
)
def test_limits_are_read(text: str, expected: list[Limit]) -> None:
    assert list(limits.read(text)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("50 requests", "not of the form"),
        ("50 requests per 1h", "not of the form"),
        ("requests per 1h per user", "not of the form"),
        ("-5 requests per 1h per user", "not of the form"),
        ("1,00 requests per 1h per user", "not of the form"),
        ("1e3 requests per 1h per user", "not of the form"),
        ("50 questions per 1h per user", "not of the form"),
        ("50 per 1h per user", "does not say what is counted"),
        ("$5 tokens per 1h per user", "both"),
        ("5.5 requests per 1h per user", "whole numbers"),
        ("50 requests per soon per user", "soon is no time"),
        ("50 requests per 0s per user", "0s is no time"),
        ("50 requests per 9999999999d per user", "9999999999d is no time"),
        ("50 requests per 1h per galaxy", "per galaxy is not"),
        ("5 usd per kernel per team", "outlives the kernel"),
        ("5 usd per 1d per team 7 usd per 1h per user", "is not per kernel"),
    ],
)
def test_a_mistake_names_the_part_and_shows_a_right_one(text: str, why: str) -> None:
    with pytest.raises(WrongSetting) as caught:
        LLMMagic(limits=f"1 usd per 1d per user; {text}")

    assert f"limits: '{text}' is no limit" in str(caught.value)
    assert why in str(caught.value)
    assert f'%config LLMMagic.limits = "{limits.EXAMPLE}"' in caught.value.fix


def test_one_line_gives_each_user_fifty_requests_an_hour(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "50 requests per 1h per user")

    name, whose, used, cap, left, _ = row(terminal, "all kernels")
    assert (name, used, cap, left) == ("requests in 1 h", "0", "50", "50")
    assert whose.startswith("you as ")


@pytest.mark.filterwarnings("error")
def test_quotes_around_a_line_of_settings_are_none_of_it(terminal: Terminal) -> None:
    """As %env and env files keep them."""
    terminal.run('%env LLM_MAGIC_LIMITS="7 requests per 1h per user"')
    terminal.run("%env LLM_MAGIC_USER='ann'")

    assert row(terminal, "you as ann")[3] == "7"


def test_limits_come_from_config_and_from_a_config_file_as_well(bare_terminal: Terminal) -> None:
    bare_terminal.shell.config.LLMMagic.limits = "5 requests per 1h per user"
    restart(bare_terminal)
    assert row(bare_terminal, "all kernels")[3] == "5"
    bare_terminal.run('%config LLMMagic.limits = "6 requests per 1h per user"')
    assert row(bare_terminal, "all kernels")[3] == "6"


def test_wrong_limits_in_the_environment_send_nothing(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "50 requests an hour")
    ran = terminal.run("%llm Hello")

    assert type(ran.error) is PromptError
    assert "'50 requests an hour' is no limit" in ran.out
    assert "%env LLM_MAGIC_LIMITS=50 requests per 1h per user" in ran.out
    assert server.requests == []
    # The command does what it says.
    assert terminal.run(command(ran.out.splitlines()[-1])).error is None
    assert terminal.run("%llm Hello").error is None


def test_a_user_s_limit_of_the_settings_holds_in_the_next_kernel(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "2 requests per 1h per user; 9 usd per 1d per user")
    monkeypatch.setenv("LLM_MAGIC_PRICES", PRICES)
    for question in ("One", "Two"):
        assert terminal.run(f"%llm {question}").error is None
        restart(terminal)
    refused = terminal.run("%llm Three")

    assert type(refused.error) is QuotaExceeded
    assert "You have used 2 of 2 requests in 1 h; nothing was sent." in refused.out
    assert len(server.requests) == 2
    # The command raises the limit in the way, and leaves the other.
    raised = command(refused.out)
    expected = "4 requests per 1h per user; 9 usd per 1d per user"
    assert raised == f'%config LLMMagic.limits = "{expected}"'
    terminal.run(raised)
    assert terminal.run("%llm Three").error is None
    assert row(terminal, "USD")[3] == "$9.00"


def test_a_kernel_s_limit_of_the_settings_holds_beside_the_quota(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "1 request per kernel per kernel")
    terminal.run("%llm One")
    refused = terminal.run("%llm Two")

    assert "This kernel has used 1 of 1 request since it started" in refused.out
    assert len(server.requests) == 1
    terminal.run(command(refused.out))
    assert terminal.run("%llm Two").error is None


def test_the_command_of_a_day_s_budget_raises_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_PRICES", PRICES)
    monkeypatch.setenv("LLM_MAGIC_USER_USD_PER_DAY", "0.0001")
    refused = terminal.run("%llm --max-tokens 500 Hello")

    assert type(refused.error) is QuotaExceeded
    terminal.run(command(refused.out))
    assert terminal.run("%llm --max-tokens 500 Hello").error is None


# What is the team's needs a team


@pytest.mark.parametrize(
    ("store", "team", "missing"),
    [
        ("disk", "", ["a Redis server and the team's name", "LLMMagic.store", "LLMMagic.team"]),
        ("disk", "ds", ["needs a Redis server;", "LLMMagic.store"]),
        ("redis://127.0.0.1:1/0", "", ["needs the team's name;", "LLMMagic.team"]),
    ],
)
@pytest.mark.parametrize("shared", [("LIMITS", "20 usd per 1d per team"), ("STORE_SCOPE", "team")])
def test_what_is_the_team_s_is_refused_without_one(
    shared: tuple[str, str],
    store: str,
    team: str,
    missing: list[str],
    terminal: Terminal,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", store)
    monkeypatch.setenv("LLM_MAGIC_TEAM", team)
    monkeypatch.setenv(f"LLM_MAGIC_{shared[0]}", shared[1])
    terminal["rows"] = ["one", "two"]
    for cell in ("%llm Hello", "%%llm_map rows\n{{ text }}", "%llm_quota"):
        ran = terminal.run(cell)
        assert type(ran.error) is PromptError
        assert all(words in ran.out for words in missing)
        assert len(ran.error._render_traceback_()) <= 3
    assert server.requests == []


def test_a_team_s_limit_is_not_set_without_a_team(terminal: Terminal) -> None:
    before = terminal.run("%llm_quota").out
    for line in ("--usd 5 --scope team", "--reset --scope team"):
        ran = terminal.run(f"%llm_quota {line}")
        assert type(ran.error) is PromptError
        assert "nothing was changed" in ran.out
    with pytest.raises(PromptError, match="Redis server"):
        llm_magic.quota(usd=5, scope="team")
    assert terminal.run("%llm_quota").out.split("\n", 1)[1:] == before.split("\n", 1)[1:]


def test_a_team_without_a_limit_is_only_a_name(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub may set it for all, whatever each of them uses it for."""
    monkeypatch.setenv("LLM_MAGIC_TEAM", "ds")
    assert terminal.run("%llm Hello").error is None


# A team with a server


@pytest.fixture
def team(
    terminal: Terminal, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """Ann of the team ds at the start; `enters` lets another person take her place."""
    monkeypatch.setenv("LLM_MAGIC_STORE", redis_server.url)
    monkeypatch.setenv("LLM_MAGIC_TEAM", "ds")
    monkeypatch.setenv("LLM_MAGIC_USER", "ann")
    monkeypatch.setenv("LLM_MAGIC_PRICES", PRICES)
    return terminal


def enters(name: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another person, in a kernel of their own."""
    monkeypatch.setenv("LLM_MAGIC_USER", name)
    restart(terminal)


def test_a_team_s_limit_of_the_settings_is_one_for_all(
    team: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "2 requests per 1h per team; 5 requests per 1h per user")
    assert team.run("%llm One").error is None
    enters("ben", team, monkeypatch)
    assert team.run("%llm Two").error is None
    refused = team.run("%llm Three")

    assert type(refused.error) is QuotaExceeded
    assert refused.error.scope == "team"
    assert "Team ds has used 2 of 2 requests in 1 h; nothing was sent." in refused.out
    assert "It fits again at" in refused.out
    assert len(server.requests) == 2
    assert row(team, "team ds")[2:5] == ["2", "2", "0"]
    assert row(team, "you as ben")[2:5] == ["1", "5", "4"]
    team.run(command(refused.out))
    assert team.run("%llm Three").error is None


def test_a_team_s_limit_on_command_holds_for_all_until_it_is_changed(
    team: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.run("%llm_quota --requests 1 --scope team")
    team.run("%llm One")
    enters("ben", team, monkeypatch)
    refused = team.run("%llm Two")

    assert "Team ds has used 1 of 1 request in 1 d" in refused.out
    assert command(refused.out) == "%llm_quota --requests 2 --per 1d --scope team"
    team.run(command(refused.out))
    assert team.run("%llm Two").error is None
    assert type(team.run("%llm Three").error) is QuotaExceeded
    team.run("%llm_quota --reset --scope team")
    assert team.run("%llm Three").error is None
    assert "team ds" not in team.run("%llm_quota --requests none --scope team").out
    enters("ann", team, monkeypatch)
    assert "team ds" not in team.run("%llm_quota").out
    assert len(server.requests) == 3


def test_limits_of_user_and_team_of_the_same_window_are_taken_away_one_by_one(
    team: Terminal,
) -> None:
    team.run("%llm_quota --requests 5 --scope team")
    team.run("%llm_quota --requests 4 --scope user")
    left = team.run("%llm_quota --requests none --scope user").out

    assert "team ds" in left
    assert "all kernels" not in left


def test_the_team_s_budget_is_in_the_status(
    team: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was set in another kernel."""
    llm_magic.quota(usd=20, scope="team")
    enters("ben", team, monkeypatch)
    shown = team.run("%llm --max-tokens 100 Hello").out

    assert re.search(r"· team \$0\.0\d+ of \$20\.00", shown)


def test_the_budget_is_in_the_status_of_a_free_answer_as_well(
    team: Terminal, keeping: None
) -> None:
    team.run("%llm -m scripted-model Hello")
    team.run("%llm_quota --usd 20 --scope team")

    assert "of $20.00" in team.run("%llm -m scripted-model Hello").out


def test_another_team_counts_for_itself(team: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "1 request per 1h per team")
    team.run("%llm One")
    monkeypatch.setenv("LLM_MAGIC_TEAM", "research")
    assert team.run("%llm Two").error is None
    assert "Team research has used 1 of 1 request" in team.run("%llm Three").out


def test_answers_are_each_person_s_own_unless_the_team_shares_them(
    team: Terminal, server: ScriptedServer, keeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ann", "ben"):
        enters(name, team, monkeypatch)
        assert team.run("%llm -m scripted-model Hello").error is None
        assert team.run("%llm -m scripted-model Hello").value.cached
    assert len(server.requests) == 2
    monkeypatch.setenv("LLM_MAGIC_STORE_SCOPE", "team")
    for name in ("ann", "ben"):
        enters(name, team, monkeypatch)
        assert team.run("%llm -m scripted-model Hello").error is None
    assert len(server.requests) == 3


def test_a_server_without_a_limit_is_not_full(team: Terminal, keeping: None) -> None:
    team.run("%llm -m scripted-model Hello")
    stats = team.run("%llm_cache").out.splitlines()[-1]

    assert re.match(r" +1 +\d+ B +none +127\.0\.0\.1", stats)


def test_clear_says_whose_answers_went(
    team: Terminal, keeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.run("%llm -m scripted-model Hello")
    monkeypatch.setenv("LLM_MAGIC_STORE_SCOPE", "team")
    team.run("%llm -m scripted-model Hello")
    enters("ben", team, monkeypatch)

    assert "1 answer of team ds removed." in team.run("%llm_cache clear").out
    monkeypatch.delenv("LLM_MAGIC_STORE_SCOPE")
    enters("ann", team, monkeypatch)
    assert "1 answer removed." in team.run("%llm_cache clear").out


@pytest.mark.filterwarnings("ignore::llm_magic.errors.StoreWarning")
@pytest.mark.parametrize("password", ["s3cret", "wr0ng"])
def test_a_server_with_a_password_is_used_and_the_password_shown_nowhere(
    password: str,
    terminal: Terminal,
    server: ScriptedServer,
    keeping: None,
    start_redis: Callable[..., RedisServer],
) -> None:
    redis = start_redis(requirepass="s3cret")
    terminal.run(f'%config LLMMagic.store = "{redis.url_of(password=password)}"')
    ran = [terminal.run(cell) for cell in ("%llm Hello", "%llm_cache", "%llm_quota", "%tb")]

    assert (ran[0].error is None) is (password == "s3cret")
    assert len(server.requests) == (1 if password == "s3cret" else 0)
    for each in ran:
        assert password not in f"{each.out} {each.error!r}"


def test_a_password_that_is_set_later_is_used_from_the_next_cell_on(
    terminal: Terminal,
    keeping: None,
    start_redis: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis = start_redis(requirepass="s3cret")
    terminal.run(f'%config LLMMagic.store = "{redis.url_of()}"')
    with pytest.warns(StoreWarning, match="password"):
        refused = terminal.run("%llm Hello")
    assert type(refused.error) is StoreError
    assert "Nothing was sent." in refused.out
    monkeypatch.setenv("LLM_MAGIC_STORE_PASSWORD", "s3cret")

    assert terminal.run("%llm Hello").error is None


def test_a_server_that_is_away_keeps_no_kernel_from_ending(
    terminal: Terminal, keeping: None, start_redis: Callable[..., RedisServer]
) -> None:
    redis = start_redis()
    terminal.run(f'%config LLMMagic.store = "{redis.url}"')
    for _ in range(2):
        assert terminal.run("%llm -m m Hello").error is None
    redis.kill()
    session.current().close()


@pytest.mark.kernel
def test_a_user_s_and_a_team_s_limit_hold_over_kernels(
    redis_server: RedisServer, server: ScriptedServer
) -> None:
    def person(name: str) -> Kernel:
        environment = {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_STORE": redis_server.url,
            "LLM_MAGIC_TEAM": "ds",
            "LLM_MAGIC_LIMITS": "2 requests per 1h per user; 3 requests per 1h per team",
            "JUPYTERHUB_USER": name,
        }
        kernel = Kernel(watched=False, environment=environment)
        kernel.run("%load_ext llm_magic")
        return kernel

    def error(kernel: Kernel, question: str) -> str:
        return "".join(each["evalue"] for each in kernel.run(f"%llm {question}").of("error"))

    kernels = [person(name) for name in ("ann", "ann", "ben")]
    try:
        ann, again, ben = kernels
        assert error(ann, "One") == error(again, "Two") == ""
        assert "You have used 2 of 2 requests" in error(ann, "Three")
        assert error(ben, "Three") == ""
        assert "Team ds has used 3 of 3 requests" in error(ben, "Four")
        assert len(server.requests) == 3
    finally:
        for each in kernels:
            each.stop()
