"""The rows of a run, pulled, rendered and looked up in batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from llm_magic.entries import Fingerprint, fingerprint
from llm_magic.errors import InvalidAnswer, LLMError, PromptError
from llm_magic.job import Job
from llm_magic.seen import Seen
from llm_magic.shelf import Shelf
from llm_magic.types import Request, Response

LARGEST = 16_000_000
"""Characters of prompts in a batch, about: one more row, and it ends."""


class Todo(NamedTuple):
    """A row that has a prompt.

    Attributes:
        place: Its number.
        request: What is asked about it.
        print_: Its identity.
        row: Its cells, where they are to be shown.
    """

    place: int
    request: Request
    print_: Fingerprint
    row: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        """Characters of the prompt, pictures included."""
        content = self.request.messages[-1]["content"]
        if isinstance(content, str):
            return len(content)
        return sum(len(part.get("text") or part["image_url"]["url"]) for part in content)


class Batch(NamedTuple):
    """A batch of rows, looked up.

    Attributes:
        found: Rows whose answer is there.
        failed: Rows that could not even be rendered, or that replay has no answer for.
        equal: Rows that are equal to an earlier one, and that one.
        todo: The others.
    """

    found: list[tuple[Todo, Response]]
    failed: list[tuple[int, LLMError]]
    equal: list[tuple[int, int]]
    todo: list[Todo]


class Batches:
    """The rows of a job, from the first to the last.

    Args:
        job: What is to be done.
        shelf: Where answers are looked up.
        shown: Whether the cells of a row are to be shown.

    Attributes:
        failure: Why there are no more rows, where that is not their end.
    """

    def __init__(self, job: Job, shelf: Shelf, shown: Callable[[], bool]) -> None:
        self.failure: LLMError | None = None
        self._job, self._shelf, self._shown = job, shelf, shown
        self._rows = job.rows()
        self._seen = Seen()
        self._first = True

    def next(self, size: int) -> Batch | None:
        """The next rows; None behind the last. Templates run the notebook's code, on this thread.

        Args:
            size: Rows at most.

        Raises:
            PromptError: The prompt is wrong, and not a row.
        """
        batch = Batch([], [], [], [])
        lookups: list[Todo] = []
        large = 0
        for place, row in self._pulled(size):
            try:
                request = self._job.request(row)
            except LLMError as error:
                if self._first and is_of_prompt(error):
                    raise
                batch.failed.append((place, error))
                continue
            finally:
                self._first = False
            print_ = fingerprint(request)
            first = self._seen.first(print_.key, place)
            if first is None:
                lookups.append(Todo(place, request, print_, row if self._shown() else None))
                large += lookups[-1].size
            else:
                batch.equal.append((place, first))
            if large > LARGEST:
                break
        self._look_up(lookups, batch)
        return batch if any(batch) else None

    def _pulled(self, size: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The next rows. Those before the failure of an iterator are rows all the same."""
        try:
            yield from itertools.islice(self._rows, size)
        except LLMError as error:
            self.failure = error

    def _look_up(self, lookups: list[Todo], batch: Batch) -> None:
        found = self._shelf.find_many([each.print_ for each in lookups])
        for todo, kept in zip(lookups, found, strict=True):
            if response := _fitting(todo.request, kept):
                batch.found.append((todo, response))
            elif self._shelf.replays:
                batch.failed.append((todo.place, self._shelf.missing(todo.print_)))
            else:
                batch.todo.append(todo)


def is_of_prompt(error: LLMError) -> bool:
    """Whether it is the prompt that is wrong, and not the first row: it names what is nowhere."""
    return isinstance(error, PromptError) and error.undefined


def _fitting(request: Request, response: Response | None) -> Response | None:
    """A kept answer, if it still is one."""
    if response is None or request.schema is None:
        return response
    try:
        return request.schema.fit(response)
    except InvalidAnswer:
        return None
