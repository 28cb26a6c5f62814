"""Answers that travel with a notebook: a text file with one recorded request a line.

Made for version control. The same answers give the same bytes whatever the order in which they
came, one changed answer is one changed line, and nothing of the machine or of the moment is in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_magic.cassette import alike
from llm_magic.cassette.file import locked, replace, told
from llm_magic.cassette.lines import Line, of_text, read, written
from llm_magic.entries import Entry, Fingerprint, normalised
from llm_magic.errors import ReplayMissing


class Recorded(NamedTuple):
    """A recorded answer, for a listing.

    Attributes:
        prompt: First line of the prompt, cut.
        model: The model that was asked.
        used: Whether it was read or recorded in this run.
    """

    prompt: str
    model: str
    used: bool


class Cassette:
    """One file of recorded answers.

    A run, of which some methods speak, begins when the file is first read through this object.
    Every method raises StoreError where the file cannot be read whole, or cannot be written.

    Args:
        path: The file, which need not be there yet. Through a symbolic link its target is written.

    Raises:
        StoreError: The path is relative and the working folder is gone.
    """

    def __init__(self, path: Path) -> None:
        with told(path, "found"):
            # The notebook may go to another folder later.
            self.path = path.absolute()
        self._lines: dict[str, Line] = {}
        self._signature: tuple[int, int, int] | None = None
        self._before: frozenset[str] | None = None
        self._used: set[str] = set()

    def get(self, key: str) -> Entry | None:
        """The recorded answer to the request with this key, used from now on; or None."""
        line = self._load().get(key)
        if line is None:
            return None
        self._used.add(key)
        return line.entry

    def record(self, print_: Fingerprint, entry: Entry) -> None:
        """Keeps an answer, in place of another one to the same request.

        Where the same answer is there, the file is left alone, whatever it cost this time. Waits
        up to ``file.LOCK_SECONDS`` for another kernel that is writing.

        Raises:
            ValueError: It is no whole answer.
        """
        self.record_many([(print_, entry)])

    def record_many(self, answers: Iterable[tuple[Fingerprint, Entry]]) -> None:
        """Keeps answers as if one after the other, and writes the file once.

        Raises:
            ValueError: One is no whole answer; none is kept.
        """
        new = dict(of_text(written(print_, entry)) for print_, entry in answers)
        if _changed(new, self._load()):
            with told(self.path, "written"), locked(self.path) as target:
                lines = self._load(anew=True)
                if changed := _changed(new, lines):
                    replace(target, _text({**lines, **changed}))
        self._used.update(new)

    def prune(self) -> int:
        """Drops what this run has not used, but not what others have added since it began.

        Returns:
            How many answers were dropped.
        """
        self._load()
        with told(self.path, "written"), locked(self.path) as target:
            lines = self._load(anew=True)
            dropped = (self._before or frozenset()) & lines.keys() - self._used
            if dropped:
                replace(target, _text({k: lines[k] for k in lines.keys() - dropped}))
        return len(dropped)

    def models(self, base_url: str) -> list[str]:
        """Names of the models whose answers are recorded for a server, in alphabetical order."""
        server = normalised(base_url)
        lines = self._load().values()
        return sorted({line.model for line in lines if line.server == server} - {""})

    def status(self) -> list[Recorded]:
        """All recorded answers, in the order of the file."""
        return [
            Recorded(alike.headline(line.prompt), line.model, key in self._used)
            for key, line in self._load().items()
        ]

    def stale(self) -> list[Recorded]:
        """The recorded answers that this run has not used."""
        return [each for each in self.status() if not each.used]

    def nearest(self, text: str) -> tuple[str, str] | None:
        """The recorded prompt that is most like another.

        Args:
            text: Words of the other prompt: those of its last user message.

        Returns:
            Its words, and a unified diff of at most 20 lines from it to the other; None where no
            prompt is much like it.
        """
        found = alike.most_alike(text, {line.prompt for line in self._load().values()})
        return None if found is None else (found, alike.diff(found, text))

    def missing(self, print_: Fingerprint) -> ReplayMissing:
        """The error for a request without a recorded answer: what is like it, what can be done."""
        request = json.loads(print_.canonical)
        text = alike.prompt_of(request["body"])
        nearest, diff, hint = self._nearest_request(request, text)
        return ReplayMissing(
            f"There is no recorded answer to {alike.headline(text)!r} in {self.path.name}; "
            f"nothing was sent: mode is replay.\n{hint}",
            fix='Record it: %config LLMMagic.mode = "live" and run the cell again '
            "(with LLM_MAGIC_MODE unset).",
            prompt=text,
            nearest=nearest,
            diff=diff,
            model=request["body"].get("model") or None,
        )

    def _nearest_request(self, request: Mapping[str, Any], text: str) -> tuple[str, str, str]:
        """The words of the nearest prompt, a diff, and what differs in one to three lines."""
        lines = self._load().values()
        if not lines:
            return "", "", "Nothing is recorded there."
        same = [alike.fields_apart(line.request, request) for line in lines if line.prompt == text]
        if same:
            closest = min(same, key=len)
            return text, closest.diff(), closest.hint()
        found = self.nearest(text)
        if found is None:
            return "", "", f"None of the {len(lines)} recorded prompts is much like it."
        return *found, f"The prompt most like it differs:\n{alike.first_change(found[1])}"

    def _load(self, *, anew: bool = False) -> dict[str, Line]:
        """The lines by key, read again where the file has changed."""
        with told(self.path, "read"):
            try:
                with open(self.path, "rb") as file:
                    found = os.fstat(file.fileno())
                    signature = (found.st_mtime_ns, found.st_size, found.st_ino)
                    if anew or signature != self._signature:
                        self._lines = read(file.read(), self.path.name, self._lines)
                        self._signature = signature
            except FileNotFoundError:
                self._lines, self._signature = {}, None
        if self._before is None:
            self._before = frozenset(self._lines)
        return self._lines


def _changed(new: Mapping[str, Line], lines: Mapping[str, Line]) -> dict[str, Line]:
    return {key: line for key, line in new.items() if not line.same_as(lines.get(key))}


def _text(lines: Mapping[str, Line]) -> str:
    return "".join(f"{text}\n" for text in sorted(line.text for line in lines.values()))
