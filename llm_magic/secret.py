"""Where secrets come from: the environment, a ``.env`` file, the keyring."""

from __future__ import annotations

import os


class Secret(str):
    """A text whose repr does not show it, as in a traceback that prints local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "[key]"


def from_environment(names: tuple[str, ...], *, files: bool = True) -> Secret:
    """The first of these variables that is set, in the environment or in a ``.env`` file.

    Args:
        names: The variables.
        files: Whether to look for such a file.
    """
    for name in names:
        if secret := os.environ.get(name, "").strip():
            return Secret(secret)
    if not files:
        return Secret()
    from dotenv import dotenv_values, find_dotenv

    found = dotenv_values(find_dotenv(usecwd=True))
    for name in names:
        if secret := (found.get(name) or "").strip():
            return Secret(secret)
    return Secret()


def from_keyring() -> Secret:
    """The API key in the keyring; empty where there is none."""
    try:
        import keyring
    except ImportError:
        return Secret()
    try:
        return Secret(keyring.get_password("llm_magic", "OPENAI_API_KEY") or "")
    except Exception:  # noqa: BLE001
        # A keyring without a desktop to unlock it fails in many ways; none of them is the
        # user's concern when no key was put there.
        return Secret()
