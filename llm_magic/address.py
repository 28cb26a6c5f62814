"""Where a shared store is: its URL, with the password taken out, so that no output shows it."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from llm_magic.redact import looks_secret

FORMS = "redis://HOST:6379/0, rediss://HOST:6379/0 (TLS) or unix:///PATH/redis.sock"
PASSWORD = "LLM_MAGIC_STORE_PASSWORD"  # noqa: S105
"""The variable of the environment that holds the password."""

_SCHEMES = ("redis", "rediss", "unix")
_WORD = re.compile(r"[A-Za-z][A-Za-z.-]{0,19}")


class Address(str):
    """A URL without its password, which lies beside it and is in no repr, copy or pickle."""

    __slots__ = ("password",)
    password: str

    def __new__(cls, url: str, password: str = "") -> Address:  # noqa: D102
        made = super().__new__(cls, url)
        made.password = password
        return made

    def __deepcopy__(self, memo: object) -> Address:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def parted(text: str) -> Address:
    """The address in a text.

    Args:
        text: ``disk``, or a URL of a Redis server.

    Raises:
        ValueError: It is neither. The message shows nothing of a password.
    """
    if isinstance(text, Address):
        return text
    text = text.strip()
    if text in ("", "disk"):
        return Address("disk")
    scheme, there, _ = text.partition("://")
    if not there or scheme.lower() not in _SCHEMES:
        shown = f" {text!r}" if _WORD.fullmatch(text) else ""
        raise ValueError(f"store{shown} is neither disk nor the address of a server: write {FORMS}")
    try:
        return _parted(text)
    except ValueError as error:
        # Not chained, and no part of the text: it can hold the password, wherever it stands.
        why = str(error) if isinstance(error, _Wrong) else "it cannot be read"
    raise ValueError(
        f"store {scheme}://... is no address of a server, {why}: write {FORMS}. The password goes "
        f"into the environment variable {PASSWORD}, or has its @ : / ? # % written as %40 %3A %2F "
        "%3F %23 %25."
    )


class _Wrong(ValueError):
    """What is wrong with an address, in words of ours."""


def _parted(text: str) -> Address:
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise _Wrong("it has a blank in it")
    url = urlsplit(text)
    login, _, host = url.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if url.fragment or "#" in text:
        raise _Wrong("it has a # in it")
    if "@" in url.query:
        raise _Wrong("it has an @ behind the ?")
    if url.scheme == "unix":
        if host or not url.path.strip("/"):
            raise _Wrong("it names no path")
    else:
        if not url.hostname:
            raise _Wrong("it names no host")
        _ = url.port
        if not re.fullmatch(r"/?\d*", url.path):
            raise _Wrong("its database is no number")
    user, password, options = _options(url.query, user, unquote(password))
    netloc = f"{user}@{host}" if user else host
    # Not by urlunsplit: it takes the // from a path on this machine.
    rest = urlunsplit(("", "", url.path, urlencode(options), ""))
    return Address(f"{url.scheme}://{netloc}{rest}", password)


def _options(query: str, user: str, password: str) -> tuple[str, str, list[tuple[str, str]]]:
    """User and password, and what else an address says behind its ?."""
    options = []
    for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if name == "password":
            password = value
        elif looks_secret(name):
            raise _Wrong("it has a secret behind the ?, where only password= may be one")
        else:
            options.append((name, value))
    return user, password, options
