"""Who a person is where usage is counted, and what is needed where a team shares."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

from llm_magic import limits
from llm_magic.errors import PromptError
from llm_magic.settings import LLMMagic


def person(environment: Mapping[str, str] = os.environ, user: str = "", login: str = "") -> str:
    """Whose budget it is: the hub's user, else the one that is set, else the login name.

    Args:
        environment: Where the hub says who it is.
        user: The one that is set.
        login: The login name, where it is known already.
    """
    return environment.get("JUPYTERHUB_USER") or user or login or login_name()


def login_name() -> str:
    """Who the system says it is."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container with a user id that has no name.
        return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"


def check(settings: LLMMagic) -> None:
    """Looks whether all is there that the settings share.

    Raises:
        PromptError: Answers or limits are the team's, and there is no server that the team shares,
            or no name of a team.
    """
    if settings.store_scope == "team":
        need_team(settings, "A cache that the team shares")
    if settings.limits and any(each.scope == "team" for each in limits.read(settings.limits)):
        need_team(settings, "A limit per team")


def need_team(settings: LLMMagic, what: str, undone: str = "sent") -> None:
    """Refuses what is the team's where there is none.

    Args:
        settings: What is set.
        what: What needs a team, as the first words of the error.
        undone: What was not done, its last word.

    Raises:
        PromptError: There is no server that the team shares, or no name of a team.
    """
    missing = []
    if settings.store == "disk":
        missing.append(("a Redis server", '%config LLMMagic.store = "redis://HOST:6379/0"'))
    if not settings.team:
        missing.append(("the team's name", '%config LLMMagic.team = "NAME"'))
    if missing:
        raise PromptError(
            f"{what} needs {' and '.join(name for name, _ in missing)}; nothing was {undone}.",
            fix=f"Set {'both' if missing[1:] else 'it'}: "
            + " and ".join(command for _, command in missing),
        )
