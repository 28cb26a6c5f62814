"""One per kernel: settings to the parts, built once and when needed; the loop's thread."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import sys
import threading
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from llm_magic import owner
from llm_magic.background import Background, Pending
from llm_magic.chats import NOWHERE, Chats, Place
from llm_magic.errors import PromptError
from llm_magic.prompt import Content, messages
from llm_magic.settings import LLMMagic, api_key
from llm_magic.storage import open_pace
from llm_magic.types import Request, Response, Wish
from llm_magic.views import Feed, show_answers
from llm_magic.watch import Limits
from llm_magic.wire import OpenAIWire

if TYPE_CHECKING:
    from llm_magic.desk import Desk
    from llm_magic.engine import Call
    from llm_magic.gate import Gate
    from llm_magic.meeting import Meeting, Pace
    from llm_magic.structured import Schema

_T = TypeVar("_T")


class Session:
    """Owns the settings, the connections and the loop's thread of one kernel.

    Args:
        shell: The IPython shell, or None in a plain script.
        settings: What is set; the shell's own if there is none.
        desk: The stores and limits; those of the settings if there is none.
    """

    def __init__(
        self, shell: Any = None, *, settings: LLMMagic | None = None, desk: Desk | None = None
    ) -> None:
        self.shell = shell
        self.settings = settings or LLMMagic(parent=shell)
        self.pid = os.getpid()
        self.chats = Chats()
        self.background = Background(shell)
        self.routes: dict[str, str] = {}
        # What each server said when it was last asked for its models, or is being asked.
        self.models: dict[str, Future[tuple[str, ...]]] = {}
        self._wires: dict[tuple[str, str], OpenAIWire] = {}
        self._gates: dict[tuple[str, str], Gate] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._desk = desk
        self._pace: tuple[Any, Pace | None] | None = None
        self._lock = threading.Lock()
        self._shown: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        if shell is not None:
            show_answers(shell, Pending, self.on_screen)

    @property
    def desk(self) -> Desk:
        """The stores and limits; with the engine, not imported before the first call."""
        if self._desk is None:
            from llm_magic.desk import Desk

            with self._lock:
                if self._desk is None:
                    self._desk = Desk(self.settings)
        return self._desk

    def request(
        self,
        prompt: Content,
        *,
        system: Content | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        effort: str | None = None,
        params: Mapping[str, Any] | None = None,
        schema: Any = str,
        place: Place = NOWHERE,
    ) -> Request:
        """A request from what the call names and, for the rest, the settings.

        Raises:
            PromptError: When ``params`` names a field that has an option of its own, or ``schema``
                is a type that cannot be read from JSON.
        """
        settings = self.settings
        settings.read_environment()
        if temperature is None:
            temperature = settings.temperature
        # 0 and 0.0 are one temperature, and should be one request.
        heat = None if temperature is None else float(temperature)
        given = {"temperature": heat, "seed": seed, "reasoning_effort": effort}
        fields = {name: value for name, value in given.items() if value is not None}
        for name, value in (params or {}).items():
            if name in ("model", "messages", "stream") or (
                name == "response_format" and schema is not str
            ):
                raise PromptError(
                    f"--param {name}=... would change what llm_magic itself must set; nothing "
                    "was sent.",
                    fix="Use -m for the model, -s for the system message, --schema for the form "
                    "of the answer, the cell for the prompt.",
                )
            fields[name] = value
        _check_json(fields)
        if system is None:
            system = place.system(settings.system)
        return Request(
            messages=messages(prompt, system, place.messages),
            model=model or settings.default_model(),
            base_url=settings.base_url.rstrip("/"),
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
            fields=fields,
            schema=None if schema is str else _schema_for(schema),
        )

    def wire(self, request: Request) -> OpenAIWire:
        """The connection for a request; one for each server and key, kept.

        A server whose port changes at every start has a name of its own, and a route to it.
        """
        url = self.routes.get(request.base_url, request.base_url)
        where = (url, api_key(url))
        if where not in self._wires:
            self._wires[where] = OpenAIWire(*where)
        return self._wires[where]

    def submit(self, request: Request, feed: Feed, wish: Wish) -> Future[Response]:
        """Starts a call on the loop's thread; cancelling the future stops it.

        Raises:
            LLMError: It cannot even be started: no key, no ledger, no prices.
        """
        from llm_magic.engine import Call

        desk, cell = self.desk, self.cell
        call = Call(
            limits=self.time_limits(),
            shelf=desk.shelf(wish),
            terms=desk.terms(wish, cell),
            quota=desk.quota,
            flights=desk.flights,
            repairs=wish.repairs,
        )
        return self.run(self._counted(request, feed, call, cell))

    def time_limits(self) -> Limits:
        """Seconds and retries of a call, as they are set."""
        settings = self.settings
        return Limits(settings.timeout, settings.stall_timeout, settings.retries)

    def gate(self, request: Request) -> Gate:
        """Where rows for a server and model wait for their turn: one for all runs of the kernel."""
        from llm_magic.gate import Gate

        return self._gates.setdefault((request.base_url, request.model), Gate())

    def meeting(self, request: Request, gate: Gate | None, run: str = "") -> Meeting | None:
        """Where a run over rows meets others who ask the same; None without a shared store.

        Args:
            request: Names the server and the model.
            gate: Where the run's requests wait for their turn; None where others ask for it.
            run: Its name, where several processes have a part in it.
        """
        from llm_magic.meeting import Meeting, Visit

        settings, user = self.settings, self.desk.user
        made_for = self.desk.place
        if self._pace is None or self._pace[0] != made_for:
            self._close_pace()
            self._pace = made_for, open_pace(settings, user)
        pace = self._pace[1]
        if pace is None:
            return None
        line = f"{request.base_url} {request.model}"
        # By its process: a session that was closed a moment ago is not another one.
        who = str(owner.current())
        return Meeting(pace, Visit(who, line, asks=gate is not None, run=run), gate)

    async def _counted(self, request: Request, feed: Feed, call: Call, cell: str) -> Response:
        from llm_magic.engine import ask

        response = await ask(request, wire=self.wire(request), sink=feed, call=call)
        if response.cached:
            self.desk.saved(response, cell)
        return response

    def dry_run(self, request: Request, wish: Wish) -> str:
        """What would be sent, what it can come to, and whether the answer is there already."""
        from llm_magic.entries import normalised
        from llm_magic.views.report import dry_run

        wire = self.wire(request)
        body = wire.body(request)
        cap, outlook = self.desk.outlook(request, body, wish)
        request = replace(request, max_tokens=cap)
        return dry_run(request, wire.body(request), normalised(request.base_url), outlook)

    @property
    def cell(self) -> str:
        """The cell that runs, such as ``In [5]``."""
        # The display hook knows the number that the cell bears; whether execution_count goes up
        # before a cell runs or after it depends on IPython's version.
        hook = getattr(self.shell, "displayhook", None)
        count = getattr(hook, "prompt_count", None)
        return f"In [{count}]" if count is not None else ""

    def mark_shown(self, response: Any) -> None:
        """Remembers that the running cell has drawn this answer."""
        if self.shell is not None:
            self._shown[response] = self.shell.execution_count

    def on_screen(self, response: Any) -> bool:
        """Whether the running cell has drawn this answer, so that returning it must not."""
        count = getattr(self.shell, "execution_count", None)
        return count is not None and self._shown.get(response) == count

    def close(self) -> None:
        """Stops every call, closes the connections and ends the loop's thread."""
        self.background.close()
        with self._lock:
            loop, self._loop = self._loop, None
        if self.pid != os.getpid():
            return
        if loop is None or loop.is_closed():
            self._close_desk()
            return
        wires, self._wires = list(self._wires.values()), {}
        done = asyncio.run_coroutine_threadsafe(_shut_down(wires), loop)
        # At exit nobody is left to tell, and the thread is a daemon.
        with contextlib.suppress(TimeoutError):
            done.result(2)
        loop.call_soon_threadsafe(loop.stop)
        self._close_desk()

    def _close_desk(self) -> None:
        self._close_pace()
        if self._desk:
            self._desk.close()

    def _close_pace(self) -> None:
        pace, self._pace = self._pace, None
        if pace and pace[1]:
            pace[1].close()

    def run(self, call: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Starts something on the loop's thread."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_serve, args=(self._loop,), name="llm_magic", daemon=True
                ).start()
            return asyncio.run_coroutine_threadsafe(call, self._loop)


def _schema_for(type_: Any) -> Schema | None:
    # pydantic takes a tenth of a second to import.
    from llm_magic.structured import schema_for

    return schema_for(type_)


def _check_json(fields: Mapping[str, Any]) -> None:
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"A field of the request is nothing that JSON has ({error}); nothing was sent.",
            fix="Numbers, texts, true, false, null, lists and objects are; NaN is not.",
        ) from None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _shut_down(wires: list[OpenAIWire]) -> None:
    calls = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, *(wire.close() for wire in wires), return_exceptions=True)


_session: Session | None = None
_session_lock = threading.Lock()


def current(shell: Any = None) -> Session:
    """The kernel's session, made on first use.

    A forked child gets one of its own: a loop's thread and sockets do not survive a fork.
    """
    global _session
    if shell is None and "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
    with _session_lock:
        if _session is not None and _session.pid == os.getpid():
            if shell is None or shell is _session.shell:
                return _session
            _session.close()
        _session = Session(shell)
        atexit.register(_session.close)
        return _session
