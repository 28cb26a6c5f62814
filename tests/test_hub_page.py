"""What the README tells the administrator of a hub works as printed, with a real server."""

import re
import shlex
from typing import Any

import pytest

from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal
from tests.readme import blocks
from tests.redis_servers import RedisServer

CONF, SPAWNER = (block.text for block in blocks("For the administrator of a hub"))
COMMANDS = ["%llm_quota", "%llm_usage", "%llm_cache", "%llm_cache list", "%llm_cache prune"]


def config() -> dict[str, Any]:
    """The lines of redis.conf that the page shows."""
    lines = [shlex.split(line, comments=True) for line in CONF.splitlines()]
    return {
        name.replace("-", "_"): values[0] if len(values) == 1 else tuple(values)
        for name, *values in lines
    }


@pytest.fixture
def hub(redis_kind: str, start_redis: Any) -> RedisServer:
    """A server that is set as the page says."""
    return start_redis(redis_kind, **config())


@pytest.fixture
def environment(hub: RedisServer, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page's Spawner sets, with this server's address, for Ada."""
    named: dict[str, Any] = {}
    given = re.sub(r"os\.environ\[.*?\]", "'PASSWORD'", SPAWNER.partition("=")[2])
    exec(f"named = {given}", None, named)
    address = hub.url_of(user="llm")
    for name, value in {**named["named"], "LLM_MAGIC_STORE": address.replace(":@", "@")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("LLM_MAGIC_PRICES", '{"*": {"input": 1, "output": 2}}')


@pytest.mark.usefixtures("keeping", "environment")
def test_the_user_of_the_page_may_do_all_that_is_needed(
    terminal: Terminal, server: ScriptedServer
) -> None:
    for _ in range(2):
        asked = terminal.run("%%llm\nName a colour.")
        assert asked.error is None
    assert len(server.requests) == 1
    rows = terminal.run("%%llm_map rows out <<\nColour: {{ text }}")
    assert "rows" in str(rows.error)
    terminal["rows"] = ["red", "blue", "red"]
    assert terminal.run("%%llm_map rows out <<\nColour: {{ text }}").error is None
    for command in COMMANDS:
        assert terminal.run(command).error is None, command
    changed = terminal.run("%llm_quota --scope team --requests 100 --per 1d")
    assert changed.error is None
    assert "team analytics" in changed.out
    assert terminal.run("%llm_quota --reset --scope team").error is None
    assert terminal.run("%llm_cache clear").error is None
    assert len(server.requests) == 3


@pytest.mark.usefixtures("keeping", "environment")
def test_the_limits_of_the_page_are_in_force(terminal: Terminal) -> None:
    assert terminal.run("%%llm\nName a colour.").error is None
    shown = terminal.run("%llm_quota").out

    assert re.search(r"requests in 1 h +you as ada.* 1 +50 ", shown)
    assert re.search(r"USD in 1 d +team analytics.*\$20\.00", shown)


@pytest.mark.usefixtures("environment")
def test_the_user_of_the_page_sees_no_other_keys(hub: RedisServer, terminal: Terminal) -> None:
    import redis

    with hub.client() as client:
        client.set("somebody-else", "x")
    with redis.Redis(port=hub.port, username="llm", password="PASSWORD") as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("somebody-else")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()


@pytest.mark.usefixtures("environment")
def test_a_right_that_a_script_lacks_is_told_as_one(hub: RedisServer, terminal: Terminal) -> None:
    with hub.client() as client:
        client.execute_command("ACL", "SETUSER", "llm", "-time")

    told = terminal.run("%%llm\nName a colour.")

    assert "does not allow it" in str(told.error)
    assert "ACL SETUSER llm" in told.out
    assert "damaged" not in told.out
