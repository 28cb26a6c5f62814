"""Where a setting and the key come from, and in which order."""

import sys
import types
from pathlib import Path

import pytest

from llm_magic.errors import PromptError
from llm_magic.settings import OPENAI_URL, LLMMagic, api_key
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal


def test_order_option_config_own_variable_openai_variable_default(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> str:
        terminal.run("%llm Hello")
        return server.requests[-1].body["model"]

    assert asked() == "scripted-model"
    monkeypatch.setenv("OPENAI_MODEL", "from-openai")
    assert asked() == "from-openai"
    monkeypatch.setenv("LLM_MAGIC_MODEL", "from-variable")
    assert asked() == "from-variable"
    terminal.run("%config LLMMagic.model = 'from-config'")
    assert asked() == "from-config"
    terminal.run("%llm -m from-option Hello")
    assert server.requests[-1].body["model"] == "from-option"


def test_a_variable_that_is_gone_takes_its_value_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LLMMagic()
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "7.5")
    settings.read_environment()
    assert settings.timeout == 7.5

    monkeypatch.delenv("LLM_MAGIC_TIMEOUT")
    settings.read_environment()

    assert settings.timeout == 120.0


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TEMPERATURE", "0", 0.0),
        ("MAX_TOKENS", "50", 50),
        ("RETRIES", "0", 0),
        ("SYSTEM", "Be brief.", "Be brief."),
        ("FEEDBACK", "0", 0),
    ],
)
def test_each_type_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"LLM_MAGIC_{name}", text)
    settings = LLMMagic()
    settings.read_environment()

    assert getattr(settings, name.lower()) == value


@pytest.mark.parametrize(("name", "text"), [("TIMEOUT", "soon"), ("MAX_TOKENS", "0")])
def test_a_wrong_variable_is_named(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"LLM_MAGIC_{name}", text)

    ran = terminal.run("%llm Hello")

    assert type(ran.error) is PromptError
    assert f"LLM_MAGIC_{name}='{text}'" in ran.out
    assert "Nothing was sent." in ran.out


def test_config_file_s_value_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from traitlets.config import Config

    monkeypatch.setenv("LLM_MAGIC_MODEL", "from-variable")
    config = Config()
    config.LLMMagic.model = "from-file"
    settings = LLMMagic(config=config)
    settings.read_environment()

    assert settings.model == "from-file"


def test_every_setting_has_help() -> None:
    traits = LLMMagic.class_traits(config=True)

    assert {"model", "base_url", "timeout", "stall_timeout", "retries"} <= set(traits)
    assert all(trait.help for trait in traits.values())


def test_default_model_only_at_openai() -> None:
    assert LLMMagic().default_model() == "gpt-5-mini"
    assert LLMMagic().base_url == OPENAI_URL
    assert LLMMagic(base_url="http://localhost:1/v1").default_model() == ""


def test_key_from_environment_then_dotenv_then_keyring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keyring = types.ModuleType("keyring")
    keyring.get_password = lambda service, name: f"{service}/{name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    assert api_key() == "llm_magic/OPENAI_API_KEY"

    (tmp_path / ".env").write_text("OPENAI_API_KEY='from-file'\n")
    assert api_key() == "from-file"

    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert api_key() == "from-environment"
    monkeypatch.setenv("LLM_MAGIC_API_KEY", " own ")
    assert api_key() == "own"


def test_a_local_server_does_not_wake_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = types.ModuleType("keyring")
    keyring.get_password = lambda *_: pytest.fail("asked")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", keyring)

    assert api_key("http://localhost:11434/v1") == api_key("http://127.0.0.1:8000/v1") == ""


def test_no_key_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert api_key() == ""


def test_a_locked_keyring_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: str) -> str:
        raise RuntimeError("no desktop")

    keyring = types.ModuleType("keyring")
    keyring.get_password = locked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", keyring)

    assert api_key() == ""
