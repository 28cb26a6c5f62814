"""What a user can set: ``%config LLMMagic``, ``ipython_config.py``, environment variables.

A setting is taken from the first place that has it: the magic's option, ``%config`` or
``ipython_config.py``, ``LLM_MAGIC_<NAME>``, ``OPENAI_<NAME>``, the default. The API key is no
setting: it comes from the environment, a ``.env`` file or the keyring, so that it is in no
notebook and no output.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from traitlets import (
    Bool,
    Dict,
    Enum,
    Float,
    Int,
    TraitError,
    TraitType,
    Unicode,
    Union,
    validate,
)
from traitlets.config import Config, Configurable

from llm_magic import limits as spoken
from llm_magic.address import PASSWORD, Address, parted
from llm_magic.errors import PromptError
from llm_magic.secret import Secret, from_environment, from_keyring
from llm_magic.units import seconds, whole_bytes
from llm_magic.wire import is_local

_T = TypeVar("_T")
OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-5-mini"
LONGEST_NAME = 100
_OURS = frozenset({"store", "store_scope", "team", "user", "limits"})
"""Settings that only LLM_MAGIC_ variables have: OPENAI_USER may be somebody else's word."""


class Json(Dict):
    """A table that an environment variable gives as JSON."""

    def from_string(self, s: str) -> dict[str, Any] | None:
        """The table in a text.

        Raises:
            ValueError: It is no JSON object.
        """
        table = json.loads(s)
        if not isinstance(table, dict):
            raise ValueError("no JSON object")
        return table


class WrongSetting(PromptError, TraitError):
    """A value that a setting does not take.

    Shown without a traceback, which would show the line that was typed, and a password in it.

    Args:
        message: What is wrong with it.
        setting: Its name.
        example: A value that it takes.
    """

    def __init__(self, message: str, setting: str = "", example: str = "") -> None:
        super().__init__(message, fix=f'Set another: %config LLMMagic.{setting} = "{example}"')
        self.example = example


class LLMMagic(Configurable):
    """Settings of %%llm and %llm. Environment: LLM_MAGIC_MODEL, LLM_MAGIC_TIMEOUT, ..."""

    model = Unicode(
        "",
        help="Model to ask. Empty: gpt-5-mini at OpenAI, elsewhere the server's only model.",
    ).tag(config=True)
    base_url = Unicode(
        OPENAI_URL,
        help="Server, up to and including /v1, such as http://localhost:11434/v1 for Ollama.",
    ).tag(config=True)
    system = Unicode("", help="System message for every prompt; empty sends none.").tag(config=True)
    temperature = Float(
        None, allow_none=True, help="Sampling temperature; None leaves it to the model."
    ).tag(config=True)
    max_tokens = Int(
        None, allow_none=True, min=1, help="Cap on the answer, in tokens; None sends no cap."
    ).tag(config=True)
    timeout = Float(
        120.0, min=0, help="Seconds to wait for the first byte of an answer; 0 is for ever."
    ).tag(config=True)
    stall_timeout = Float(
        120.0,
        min=0,
        help="Seconds to wait for new content (keep-alive pings do not count); 0 is for ever.",
    ).tag(config=True)
    retries = Int(
        2, min=0, help="How often a request that failed before its first byte is sent again."
    ).tag(config=True)
    cache_dir = Unicode(
        "", help="Folder of the cache of answers; empty is the user's cache folder."
    ).tag(config=True)
    cache_size = Union(
        [Int(), Unicode()],
        default_value=1024**3,
        help="Most bytes that the cache may take, such as 500 MB; the least recently used answers "
        "make room. 0 keeps none.",
    ).tag(config=True)
    cache_ttl = Union(
        [Float(), Unicode()],
        default_value=None,
        allow_none=True,
        help="Age from which an answer is asked anew: seconds or 12h, 7d; None is never.",
    ).tag(config=True)
    quota_requests = Int(
        50, allow_none=True, min=0, help="Requests of a kernel in quota_window; None is no limit."
    ).tag(config=True)
    quota_tokens = Int(
        None, allow_none=True, min=0, help="Tokens of a kernel in quota_window, in and out."
    ).tag(config=True)
    quota_usd = Float(
        None, allow_none=True, min=0, help="USD that a kernel may spend in quota_window."
    ).tag(config=True)
    quota_window = Union(
        [Float(), Unicode()],
        default_value="1h",
        help="Time in which the quota_ limits count: seconds, 30min, 1h, 1d, or kernel for as long "
        "as the kernel runs.",
    ).tag(config=True)
    quota_strict = Bool(
        True, help="Whether nothing is asked while the ledger of the quota cannot be written."
    ).tag(config=True)
    user_usd_per_day = Float(
        None, allow_none=True, min=0, help="USD that you may spend in 24 hours, over all kernels."
    ).tag(config=True)
    ledger_dir = Unicode(
        "", help="Folder of the ledger of usage; empty is the user's state folder."
    ).tag(config=True)
    store = Unicode(
        "disk",
        help="Where answers are kept and usage is counted: disk, or the Redis server of a team, "
        f"such as redis://HOST:6379/0. Its password comes from {PASSWORD}; one that is in the "
        "address is used, and not shown.",
    ).tag(config=True)
    store_scope = Enum(
        ["user", "team"],
        "user",
        help="Whose the answers in a Redis server are: user, each person's own; or team, shared by "
        "all who name the same team.",
    ).tag(config=True)
    team = Unicode(
        "", help="Name of your team, whose people share limits in a Redis server; empty is none."
    ).tag(config=True)
    user = Unicode(
        "",
        help="Your name where usage is counted; empty is the login name. On JupyterHub it is the "
        "hub's, whatever is set.",
    ).tag(config=True)
    limits = Unicode(
        "",
        help="Limits in one line: N requests|tokens|usd per SPAN per kernel|user|team, several of "
        "them separated by ; as in 50 requests per 1h per user; 20 usd per 1d per team. They hold "
        "beside the quota_ limits, of which quota_requests is 50 per kernel where nothing is set.",
    ).tag(config=True)
    prices = Json(
        help='Your prices, in USD per million tokens: {"my-model": {"input": 1, "output": 2}}.'
    ).tag(config=True)
    mode = Enum(
        ["live", "replay"], "live", help="replay answers from what is recorded and never asks."
    ).tag(config=True)
    feedback = Enum(
        [0, 1], 1, help="0 shows the answer alone, 1 the line with model, tokens and time as well."
    ).tag(config=True)

    widgets = Bool(
        True, help="Whether an answer streams into a widget with a Stop button, where one can run."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        # Names last set from the environment: once the variable is gone, so is its value.
        self._from_environment: set[str] = set()
        self._environment = 0
        self._password = Secret()
        super().__init__(**kwargs)
        _hide_passwords(self.config)

    def update_config(self, config: Config) -> None:
        """Takes settings from ``%config``; the password of an address is not kept with them."""
        _hide_passwords(config)
        super().update_config(config)
        # %config gives every part of the shell a copy, some of them before us.
        for each in getattr(self.parent, "configurables", ()):
            _hide_passwords(each.config)
        if isinstance(address := config.get(type(self).__name__, {}).get("store"), Address):
            self._password = Secret(address.password)

    def read_environment(self) -> None:
        """Takes from the environment what the user has not set otherwise.

        Called before each use, because notebooks set variables with ``%env`` after loading.

        Raises:
            PromptError: When a variable holds what its setting cannot take.
        """
        # Looking up 50 names takes longer than a cached answer may; comparing the whole
        # environment by its hash, as it is stored, takes 5 µs. (Not by a copy: it has the key.)
        environment = hash(tuple(getattr(os.environ, "_data", os.environ).items()))
        if environment == self._environment:
            return
        chosen = self.config.get(type(self).__name__, {})
        for name, trait in self.traits(config=True).items():
            if name in chosen:
                continue
            prefixes = ("LLM_MAGIC_",) if name in _OURS else ("LLM_MAGIC_", "OPENAI_")
            variables = (f"{prefix}{name.upper()}" for prefix in prefixes)
            variable = next((each for each in variables if os.environ.get(each)), None)
            if variable is None and name not in self._from_environment:
                continue
            self._from_environment.add(name)
            if variable is None:
                setattr(self, name, trait.default(self))
            else:
                self._take(name, trait, variable)
        self._environment = environment

    def _take(self, name: str, trait: TraitType[Any, Any], variable: str) -> None:
        text = os.environ[variable]
        if name in _OURS and text[:1] == text[-1:] and text[:1] in ("'", '"'):
            # As %env and env files keep them.
            text = text[1:-1]
        try:
            setattr(self, name, trait.from_string(text))
        except WrongSetting as error:
            raise PromptError(
                f"The environment variable {variable} does not fit: {error.args[0]} Nothing was "
                "sent.",
                fix=f"Set another: %env {variable}={error.example}",
            ) from None
        except (TraitError, ValueError):
            raise PromptError(
                f"The environment variable {variable}={text!r} does not fit: {trait.help} "
                "Nothing was sent.",
                fix=f"Set another: %env {variable}=...",
            ) from None

    @validate("base_url")
    def _address(self, proposal: Any) -> str:
        url = str(proposal["value"]).strip()
        if not re.match(r"https?://[^/\s]", url):
            raise TraitError(
                f"base_url={url!r} is no address: it starts with http:// or https://, such as "
                "http://localhost:11434/v1"
            )
        return url

    @validate("cache_size")
    def _size(self, proposal: Any) -> int:
        return _taken(whole_bytes, proposal["value"])

    @validate("cache_ttl")
    def _age(self, proposal: Any) -> float | None:
        text = proposal["value"]
        return None if text in (None, "", "None") else _taken(seconds, text)

    @validate("quota_window")
    def _window(self, proposal: Any) -> str:
        text = proposal["value"]
        if text != "kernel":
            _taken(spoken.window, text)
        return str(text)

    @validate("store")
    def _store(self, proposal: Any) -> str:
        address = _fit(parted, proposal, "redis://HOST:6379/0")
        self._password = Secret(address.password)
        return str(address)

    @validate("team", "user")
    def _name(self, proposal: Any) -> str:
        name, setting = str(proposal["value"]).strip(), proposal["trait"].name
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise WrongSetting(
                f"{setting} {name[:LONGEST_NAME]!r} is no name: it is one line of at most "
                f"{LONGEST_NAME} characters.",
                setting,
                "data-science",
            )
        return name

    @validate("limits")
    def _limits(self, proposal: Any) -> str:
        _fit(spoken.read, proposal, spoken.EXAMPLE)
        return str(proposal["value"]).strip()

    def store_password(self, *, files: bool = True) -> Secret:
        """The password of the Redis server; empty where there is none.

        The one that was in the address, else LLM_MAGIC_STORE_PASSWORD from the environment or from
        a ``.env`` file in the working folder or above.

        Args:
            files: Whether to look for such a file.
        """
        return self._password or from_environment((PASSWORD,), files=files)

    def default_model(self) -> str:
        """The model to ask when a call names none; empty for a server's only one."""
        return self.model or (DEFAULT_MODEL if "api.openai.com" in self.base_url else "")


def _fit(read: Callable[[str], _T], proposal: Any, example: str) -> _T:
    try:
        return read(proposal["value"])
    except ValueError as error:
        raise WrongSetting(str(error), proposal["trait"].name, example) from None


def _hide_passwords(config: Config) -> None:
    """Puts aside the passwords of addresses in a config, so that no print of it shows them."""
    for name, value in config.items():
        if isinstance(value, Config):
            store = value.get("store") if name == LLMMagic.__name__ else None
            if isinstance(store, str) and not isinstance(store, Address):
                with suppress(ValueError):
                    value["store"] = parted(str(store))
            _hide_passwords(value)


def _taken(read: Callable[[Any], _T], text: Any) -> _T:
    try:
        return read(text)
    except ValueError as error:
        raise TraitError(str(error)) from None


def api_key(base_url: str = OPENAI_URL) -> Secret:
    """The API key, read anew for each use; empty where there is none.

    Looks at ``LLM_MAGIC_API_KEY`` and ``OPENAI_API_KEY`` in the environment, then at the same
    names in a ``.env`` file in the working folder or above, then at the keyring's service
    ``llm_magic`` where the keyring package is installed; there not for a server on this machine,
    because a locked keyring asks for its password.

    Args:
        base_url: The server that the key is for.
    """
    found = from_environment(("LLM_MAGIC_API_KEY", "OPENAI_API_KEY"))
    return found or (Secret() if is_local(base_url) else from_keyring())
