"""What is cut out of a text before it is sent: secrets, and what differs from run to run."""

from __future__ import annotations

import os
import re
import tempfile

SHORTEST_KEY = 8
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset(
    {"key", "keys", "apikey", "token", "tokens", "password", "passwords", "passwd", "passphrase"}
    | {"pwd", "pw", "secret", "secrets", "credential", "credentials", "auth", "authorization"}
)
_STRING = (
    r"[rRbBfFuU]{0,2}(?:(?P<triple>\"\"\"|''')(?P<long>.*?)(?P=triple)"
    r"|(?P<quote>[\"'])(?P<short>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P=quote))"
)
# name = "...", name: str = "...", call(name="..."), {"name": "..."}, os.environ["NAME"] = "..."
_NAMED = re.compile(
    r"(?<!\w)(?P<name>[^\W\d]\w*)(?P<between>[\"']?\]?\s*(?::\s*[\w.|\[\] ]+?\s*=|[:=])\s*)"
    rf"(?P<value>{_STRING})",
    re.DOTALL,
)
_ENVIRONMENT = re.compile(
    r"^(?P<name>[ \t]*(?:%(?:set_)?env|!?[ ]?export)[ \t]+[^\W\d]\w*)(?P<between>[ \t]*[= ][ \t]*)"
    r"(?P<value>[^\s\"'][^\n]*)$",
    re.MULTILINE,
)
# The password of scheme://user:password@host
_URL = re.compile(r"(?P<user>://[^\s/:@\"'{}]*:)(?P<password>[^\s/@\"'{}]+)(?=@)")
_VARYING = (
    (re.compile(r"\bat 0x[0-9a-fA-F]+"), "at 0x..."),
    (re.compile(r"[^\s'\"(<]{0,200}ipykernel_\d+[/\\]\d+\.py"), "<cell>"),
    (re.compile(r"<ipython-input-\d+-[0-9a-f]+>"), "<cell>"),
    (re.compile(r"\bIn ?\[\d+\]"), "In[...]"),
)
_PLACE = re.compile(r"(?P<quote>[\"']?)\[secret (?P<number>\d+)\](?P=quote)")


def looks_secret(name: str) -> bool:
    """Whether a name says that its value is not for others: ``api_key``, ``hfToken``."""
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(name))


class Redactor:
    """Cuts secrets out of texts; those of source code can be put back into what is made of it.

    Args:
        key: A text that must not be sent, wherever it stands: the API key.
    """

    def __init__(self, key: str = "") -> None:
        # A local server's "key" is often a word such as "ollama" or "x".
        self._key = str(key) if len(key) >= SHORTEST_KEY else ""
        self._kept: list[tuple[str, str]] = []

    def source(self, code: str) -> str:
        """Source code with a numbered place for each secret."""
        if self._key and self._key in code:
            code = code.replace(self._key, self._place(self._key, self._key))
        code = _URL.sub(
            lambda found: found["user"] + self._place(found["password"], found["password"]), code
        )
        code = _NAMED.sub(self._named, code)
        return sendable(_ENVIRONMENT.sub(self._named, code))

    def restored(self, code: str) -> str:
        """Code from an answer with the secrets in their places again."""
        return _PLACE.sub(self._back, code)

    def text(self, words: str) -> str:
        """A message or a value: without secrets, and the same in each run and for each user."""
        if self._key:
            words = words.replace(self._key, "[secret]")
        words = _URL.sub(r"\g<user>[secret]", words)
        words = _NAMED.sub(
            lambda found: (
                f"{found['name']}{found['between']}'[secret]'"
                if looks_secret(found["name"])
                else found[0]
            ),
            words,
        )
        return sendable(steady(words))

    def _named(self, found: re.Match[str]) -> str:
        value = found["value"]
        if not looks_secret(found["name"]) or "[secret " in value:
            return found[0]
        groups = found.groupdict()
        inner = groups.get("long") or groups.get("short") or ""
        if "quote" in groups and not inner:
            return found[0]
        place = self._place(value, inner or value)
        return f"{found['name']}{found['between']}" + (f'"{place}"' if inner else place)

    def _place(self, literal: str, inner: str) -> str:
        if (literal, inner) not in self._kept:
            self._kept.append((literal, inner))
        return f"[secret {self._kept.index((literal, inner)) + 1}]"

    def _back(self, found: re.Match[str]) -> str:
        number = int(found["number"])
        if not 0 < number <= len(self._kept):
            return found[0]
        literal, inner = self._kept[number - 1]
        if literal == inner:
            return f"{found['quote']}{inner}{found['quote']}"
        return literal if found["quote"] else inner


def steady(words: str) -> str:
    """Text without what differs from run to run: addresses, counters, temporary and home paths."""
    for pattern, instead in _VARYING:
        words = pattern.sub(instead, words)
    folder = re.escape(tempfile.gettempdir())
    words = re.sub(rf"{folder}[/\\]tmp\w{{6,8}}(?!\w)", "<temporary folder>", words)
    home = os.path.expanduser("~")
    return words if len(home) < 2 else re.sub(rf"{re.escape(home)}(?!\w)", "~", words)


def sendable(words: str) -> str:
    """Text in which half surrogate pairs, which no server takes, are question marks."""
    return words.encode("utf-8", "replace").decode("utf-8")
