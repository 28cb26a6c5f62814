"""Named conversations: their turns, in the kernel's memory, and the cell that each turn belongs to.

A conversation is what the notebook's cells say. So a cell that runs again replaces its own turn,
and the turns after it go: they answered something else.
"""

from __future__ import annotations

import shlex
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from llm_magic.errors import ChatWarning, ContextTooLong, PromptError
from llm_magic.types import Message, Request, Response


@dataclass(frozen=True, slots=True)
class Cell:
    """The cell that asks.

    Attributes:
        name: The front end's name for it, the same whenever it runs; empty where there is none.
        run: Which execution this is.
        label: Its number, such as ``In [5]``.
    """

    name: str = ""
    run: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and its whole answer.

    Attributes:
        user: The message that was sent.
        answer: The answer's text; with a schema, its JSON.
        system: What the system message said; empty where there was none.
        cell: Who asked.
    """

    user: Message
    answer: str
    system: Any
    cell: Cell


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next turn of a conversation goes; without a name, a call outside of any.

    A context manager around the call: what it raises says how to begin the conversation anew,
    where that helps.

    Attributes:
        chats: Who keeps the turn.
        name: Of the conversation.
        turns: All of it, as it is at any time.
        former: What the model is told of it.
        cell: Who asks.
        whole: Whether the cell does nothing else, as one of ``%%llm``.
    """

    chats: Chats | None = None
    name: str = ""
    turns: Sequence[Turn] = ()
    former: tuple[Turn, ...] = ()
    cell: Cell = Cell()
    whole: bool = False

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: Any, error: object, trace: Any) -> None:
        """Adds to an error what a conversation can do about it."""
        hint = f"%llm_chat reset {shlex.quote(self.name)}"
        # The calls of one flight share their error.
        if self.former and isinstance(error, ContextTooLong) and hint not in error.fix:
            error.fix += (
                f". {_turns(len(self.former))} of {self.name!r} went with it; forget: {hint}"
            )

    @property
    def messages(self) -> list[Message]:
        """The former turns, as they are sent."""
        return [
            message
            for turn in self.former
            for message in (turn.user, {"role": "assistant", "content": turn.answer})
        ]

    def system(self, default: Any) -> Any:
        """The system message of a call that names none: the one that the conversation began with.

        Args:
            default: For the first turn.
        """
        return self.former[0].system if self.former else default

    def keep(self, request: Request, response: Response, *, told: bool = False) -> str:
        """Makes a whole answer the next turn.

        Args:
            request: What was asked.
            response: The answer.
            told: Whether the caller shows what this returns; else a warning tells of the turns
                that are dropped.

        Returns:
            What became of the turns that were there, such as ``replaces turn 2 of 'stats' and
            drops the 3 turns after it``; empty where nothing did.
        """
        if self.chats is None:
            return ""
        first, user = request.messages[0], request.messages[-1]
        system = first["content"] if first["role"] == "system" else ""
        cuts = self.chats.put(self, Turn(user, response.text, system, self.cell))
        said = "; ".join(str(cut) for cut in cuts)
        if not told and any(cut.after for cut in cuts):
            message = f"{self.cell.label or 'The call'} {said}."
            warnings.warn_explicit(message, ChatWarning, "llm_magic", 1)
        return said


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Cut:
    """What a turn takes the place of, in words for the status line.

    Attributes:
        name: Of the conversation.
        place: Index of the first turn that goes.
        own: How many turns from there are the cell's own.
        after: How many more follow.
        moved: Whether the new turn is in another conversation.
    """

    name: str
    place: int
    own: int
    after: int
    moved: bool

    def __str__(self) -> str:
        first, last = self.place + 1, self.place + self.own
        which = f"turn {first}" if self.own == 1 else f"turns {first} to {last}"
        said = f"takes {which} out of" if self.moved else f"replaces {which} of"
        if not self.after:
            return f"{said} {self.name!r}"
        rest = "turn" if self.after == 1 else _turns(self.after)
        return (
            f"{said} {self.name!r} and drops the {rest} after {'it' if self.own == 1 else 'them'}"
        )


class Chats:
    """The conversations of one kernel. Any thread may ask; turns come in order of completion."""

    def __init__(self) -> None:
        self._turns: dict[str, list[Turn]] = {}
        self._lock = threading.Lock()

    def place(
        self, name: str | None, shell: Any = None, label: str = "", *, whole: bool = False
    ) -> Place:
        """Where the next turn of a conversation goes. Changes nothing.

        Args:
            name: Of the conversation; None is a call outside of any.
            shell: The IPython shell, which knows the cell that runs.
            label: The number of that cell.
            whole: Whether the cell does nothing else.

        Raises:
            PromptError: It is no name.
        """
        if name is None:
            return NOWHERE
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise PromptError(
                f"{name!r} is no name of a conversation; nothing was sent.",
                fix="Name it in one line of text, such as: -c stats",
            )
        name, cell = name.strip(), _running(shell, label)
        with self._lock:
            turns = self._turns.setdefault(name, [])
            return Place(self, name, turns, tuple(turns[: _start(turns, cell)]), cell, whole)

    def put(self, place: Place, turn: Turn) -> list[Cut]:
        """Adds a turn behind those that stay, and says which went.

        A conversation that was forgotten meanwhile does not come back: its list is not ours.
        """
        with self._lock:
            cuts = []
            for name, turns in self._turns.items():
                moved = turns is not place.turns
                # A cell of code may speak in several conversations; one of %%llm has moved.
                if (place.whole or not moved) and (cut := _cut(name, turns, turn.cell, moved)):
                    cuts.append(cut)
                if not moved:
                    turns.append(turn)
            return cuts

    def all(self) -> dict[str, tuple[Turn, ...]]:
        """Every conversation that has a turn, the oldest first."""
        with self._lock:
            return {name: tuple(turns) for name, turns in self._turns.items() if turns}

    def names(self) -> list[str]:
        """Names of the conversations that have a turn."""
        return list(self.all())

    def reset(self, name: str | None = None) -> dict[str, int]:
        """Forgets a conversation, without a name all of them.

        Returns:
            How many turns each of them had.
        """
        with self._lock:
            gone = dict(self._turns) if name is None else {name: self._turns.get(name, [])}
            for each in gone:
                self._turns.pop(each, None)
            return {each: len(turns) for each, turns in gone.items() if turns}


def message_of(shell: Any) -> Mapping[str, Any]:
    """The message by which a front end has the shell run this cell; empty where none does."""
    parent: Mapping[str, Any] = getattr(shell, "get_parent", dict)() or {}
    return parent


def _running(shell: Any, label: str) -> Cell:
    """The cell that runs, as the front end names it.

    JupyterLab, Notebook 7 and VS Code send a ``cellId``; nbclient, the console and a terminal none.
    """
    parent = message_of(shell)
    name = (parent.get("metadata") or {}).get("cellId") or ""
    run = (parent.get("header") or {}).get("msg_id") or ""
    return Cell(str(name), str(run), label)


def _start(turns: Sequence[Turn], cell: Cell) -> int:
    """Where a cell's turns of an earlier run begin; the end where there are none.

    Its turns of this run stay: it may ask in a loop.
    """
    places = (
        place
        for place, turn in enumerate(turns)
        if cell.name and turn.cell.name == cell.name and turn.cell.run != cell.run
    )
    return next(places, len(turns))


def _cut(name: str, turns: list[Turn], cell: Cell, moved: bool) -> Cut | None:
    """Drops a cell's turns of an earlier run, with all that follow."""
    start = _start(turns, cell)
    gone, turns[start:] = turns[start:], []
    own = len(list(takewhile(lambda turn: turn.cell.name == cell.name, gone)))
    return Cut(name, start, own, len(gone) - own, moved) if gone else None


def _turns(count: int) -> str:
    return f"{count:,} turn{'' if count == 1 else 's'}"
