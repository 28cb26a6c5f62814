"""%%llm, %llm, %llm_fix: parse the line, find names in the notebook, hand over to the session."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from IPython.core.magic import (
    Magics,
    line_cell_magic,
    line_magic,
    magics_class,
    no_var_expand,
)
from IPython.core.magic_arguments import argument, argument_group, magic_arguments

from llm_magic import calls
from llm_magic import options as line_options
from llm_magic.admin import AdminMagics
from llm_magic.background import Pending, come
from llm_magic.chats import NOWHERE, Place
from llm_magic.completion import register
from llm_magic.errors import Interrupted, LLMError, PromptError
from llm_magic.mapmagic import MapMagics
from llm_magic.session import Session, current
from llm_magic.settings import api_key
from llm_magic.types import Comparison, Request, Response, Wish
from llm_magic.views import View

Answer = Response | Pending | Comparison


@magics_class
class LLMMagics(Magics):
    """The magics; their settings are ``%config LLMMagic``."""

    shell: Any

    @property
    def _session(self) -> Session:
        # Looked up each time: a forked kernel has a session of its own.
        return current(self.shell)

    @no_var_expand
    @magic_arguments()
    @argument_group("the question")
    @argument("-m", "--model", metavar="NAME", help="Model to ask.")
    @argument("--compare", metavar="M1,M2,...", help="Ask several models at once, side by side.")
    @argument("-s", "--system", metavar="TEXT", help="System message; a template as well.")
    @argument(
        "-i",
        "--image",
        metavar="NAME|FILE",
        action="append",
        help="Attach a figure, a PIL image or an image file; may be repeated.",
    )
    @argument("--raw", action="store_true", help="Take the prompt as it is: no template.")
    @argument("-t", "--temperature", metavar="X", type=float, help="Sampling temperature.")
    @argument("--max-tokens", metavar="N", type=int, help="Cap on the answer, in tokens.")
    @argument("--seed", metavar="N", type=int, help="Seed, for servers that take one.")
    @argument(
        "--effort",
        choices=["low", "medium", "high"],
        metavar="LEVEL",
        help="Reasoning effort: low, medium or high.",
    )
    @argument(
        "--param",
        metavar="KEY=JSON",
        action="append",
        help="Any further field of the request; may be repeated.",
    )
    @argument("-c", "--chat", metavar="NAME", help="Continue the conversation of this name.")
    @argument_group("the answer")
    @argument("-o", "--out", metavar="NAME", help="Bind the answer to NAME (also: NAME <<).")
    @argument("--schema", metavar="TYPE", help="Give an object of this type, not prose.")
    @argument("--repairs", metavar="N", type=int, default=1, help="Ask again if it does not fit.")
    @argument("--code", action="store_true", help="Put the first code block into the next cell.")
    @argument_group("cache and cost")
    @argument("--fresh", action="store_true", help="Ask again; replaces the cached answer.")
    @argument("--no-cache", action="store_true", help="Neither look the answer up nor keep it.")
    @argument("--max-cost", metavar="USD", help="Refuse where the call can come to more.")
    @argument("--dry-run", action="store_true", help="Show what would be sent; send nothing.")
    @argument_group("on screen")
    @argument("--bg", action="store_true", help="Return at once; the answer streams on.")
    @argument("--quiet", action="store_true", help="Show nothing.")
    @argument("--no-stream", action="store_true", help="Show the answer once, when it is whole.")
    @line_cell_magic
    def llm(self, line: str, cell: str | None = None) -> Answer | None:
        """Ask a language model; the answer streams into the cell's output.

        The cell's body is the prompt, a Jinja2 template over the notebook's names: {{ df }},
        {{ name.attr }}, {% for x in xs %}. Single braces are text. A data frame is summed up, a
        figure is attached as an image. `_` holds the answer: _.text, _.usage, _.model.

        ::

            %%llm answer << -m gpt-5-mini
            Which of these columns look wrong?
            {{ df }}

            x = %llm --max-tokens 50 Name a prime number.

            %%llm reviews << --schema list[Review]
            {{ texts }}

            %%llm --compare gpt-5-mini,gpt-5
            Explain overfitting to a child.
        """
        command = line_options.parse(self.llm.parser, line)
        chosen = command.options
        _check_together(chosen)
        if cell is not None and command.rest:
            raise PromptError(
                f"{command.rest.split()[0]!r} on the %%llm line is no option; nothing was sent.",
                fix="The prompt goes below the line. See the options: %%llm?",
            )
        session = self._session
        place = session.chats.place(chosen.chat, self.shell, session.cell, whole=cell is not None)
        request = self._request(chosen, command.rest if cell is None else cell, place)
        most = line_options.money(chosen.max_cost)
        wish = Wish(chosen.fresh, chosen.no_cache, most, chosen.repairs)
        models = line_options.names(chosen.compare) if chosen.compare else []
        requests = [replace(request, model=model) for model in models]
        if chosen.dry_run:
            for each in requests or [request]:
                self._dry_run(each, wish)
            return None
        if requests:
            answer: Answer = self._compare(requests, chosen, wish)
        elif chosen.bg:
            answer = self._start(request, chosen, wish, place)
        else:
            answer = self._ask(request, chosen, wish, place)
        if chosen.out:
            self.shell.user_ns[chosen.out] = answer if chosen.bg else answer.value
        return answer

    @no_var_expand
    @magic_arguments()
    @argument("-m", "--model", metavar="NAME", help="Model to ask.")
    @argument("--fresh", action="store_true", help="Ask again; replaces the cached answer.")
    @argument("--max-cost", metavar="USD", help="Refuse where the call can come to more.")
    @argument("--dry-run", action="store_true", help="Show what would be sent; send nothing.")
    @line_magic
    def llm_fix(self, line: str) -> Response | None:
        """Explain the last exception, and put the corrected cell below, to be looked at and run.

        What is sent is the failing cell, the error and where it happened, and a summary of the
        values that the cell uses; see it with --dry-run. Values whose names are those of secrets
        are not sent.

        ::

            %llm_fix
            %llm_fix -m gpt-5 --dry-run
        """
        from llm_magic import fix

        error = fix.last_error()
        try:
            return self._fix(error, line)
        except (LLMError, Interrupted) as failure:
            # IPython takes this for the last error now; the next %llm_fix is about the other.
            vars(failure)["fixing"] = error
            raise

    def _fix(self, error: BaseException | None, line: str) -> Response | None:
        from llm_magic import fix
        from llm_magic.redact import Redactor

        command = line_options.parse(self.llm_fix.parser, line)
        if command.rest:
            raise PromptError(
                f"{command.rest.split()[0]!r} is no option of %llm_fix; nothing was sent.",
                fix="See the options: %llm_fix?",
            )
        chosen = line_options.parse(self.llm.parser, "").options
        vars(chosen).update(vars(command.options), code=True, raw=True)
        self._session.settings.read_environment()
        redactor = Redactor(api_key(self._session.settings.base_url))
        request = self._request(chosen, fix.prompt(error, self.shell, redactor))
        wish = Wish(chosen.fresh, max_cost=line_options.money(chosen.max_cost))
        if chosen.dry_run:
            self._dry_run(request, wish)
            return None
        return self._ask(request, chosen, wish, restored=redactor.restored)

    def _request(self, chosen: argparse.Namespace, body: str, place: Place = NOWHERE) -> Request:
        from llm_magic.images import attached, named
        from llm_magic.prompt import render

        names = self.shell.user_ns
        if chosen.out and not chosen.out.isidentifier():
            raise PromptError(
                f"{chosen.out!r} is no Python name; nothing was sent.", fix="Name it: -o answer"
            )
        system = None
        if chosen.system is not None:
            system = render(chosen.system, names, raw=chosen.raw) if chosen.system else ""
        content = render(body, names, raw=chosen.raw)
        return self._session.request(
            attached(content, [named(each, names) for each in chosen.image or []]),
            system=system,
            model=chosen.model,
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            seed=chosen.seed,
            effort=chosen.effort,
            params=line_options.params(chosen.param),
            schema=self._type(chosen.schema),
            place=place,
        )

    def _type(self, expression: str | None) -> Any:
        if expression is None:
            return str
        from llm_magic.structured import type_named

        return type_named(expression, self.shell.user_ns)

    def _ask(
        self,
        request: Request,
        chosen: argparse.Namespace,
        wish: Wish,
        place: Place = NOWHERE,
        restored: Callable[[str], str] = str,
    ) -> Response:
        view = self._view(request, chosen)
        after = partial(self._put, restored) if chosen.code else None
        with place:
            response = calls.ask(self._session, request, view, wish, place, after)
        self._session.mark_shown(response)
        return response

    def _start(
        self, request: Request, chosen: argparse.Namespace, wish: Wish, place: Place
    ) -> Pending:
        from llm_magic.views.notebook import HeadlessView

        view = self._view(request, chosen)
        if isinstance(view, HeadlessView):
            # The notebook is executed and saved: who would wait for what comes after its end?
            pending = come(request.model, self._ask(request, chosen, wish, place))
        else:
            pending = calls.start(self._session, request, view, wish, place)
        self._session.mark_shown(pending)
        return pending

    def _compare(
        self, requests: Sequence[Request], chosen: argparse.Namespace, wish: Wish
    ) -> Comparison:
        from llm_magic.views import choose_columns

        models = [each.model for each in requests]
        columns = choose_columns(self.shell, models, **self._how(requests[0], chosen))
        comparison = calls.compare(self._session, requests, columns, wish)
        self._session.mark_shown(comparison)
        return comparison

    def _view(self, request: Request, chosen: argparse.Namespace) -> View:
        from llm_magic.views import choose

        return choose(self.shell, blocks=not chosen.bg, **self._how(request, chosen))

    def _how(self, request: Request, chosen: argparse.Namespace) -> dict[str, Any]:
        return {
            "quiet": chosen.quiet,
            "live": not chosen.no_stream,
            "schema": request.schema,
            "widgets": self._session.settings.widgets,
        }

    def _put(self, restored: Callable[[str], str], response: Response) -> str:
        """Puts an answer's code into the next cell; says what came of it."""
        from llm_magic.nextcell import put
        from llm_magic.views.render import first_code

        return put(self.shell, restored(first_code(response.text)))

    def _dry_run(self, request: Request, wish: Wish) -> None:
        from llm_magic.images import images_in
        from llm_magic.views import show_report

        pictures = images_in(request.messages)
        show_report(self.shell, self._session.dry_run(request, wish), pictures)


# What of the options does not go together, and why.
_APART = (
    ("code", "schema", "--code takes code out of prose, and --schema gives an object"),
    ("code", "bg", "--code needs the whole answer before the cell ends, and --bg does not wait"),
    ("code", "compare", "--code takes the code of one answer, and --compare gives several"),
    ("compare", "bg", "--compare waits for its answers, and --bg does not"),
    ("compare", "chat", "a conversation goes on with one answer, and --compare gives several"),
    ("compare", "model", "--compare names the models itself"),
)


def _check_together(chosen: argparse.Namespace) -> None:
    for one, other, why in _APART:
        if getattr(chosen, one) and (value := getattr(chosen, other)):
            named = f"--{other}" if value is True else f"--{other} {value}"
            raise PromptError(
                f"--{one} and {named} exclude each other: {why}; nothing was sent.",
                fix="Leave out one of the two.",
            )


_QUESTION = re.compile(r"^(\s*(?:[^=#'\"]+=\s*)?)%llm[ \t]+(.*\?)\s*$")


def keep_questions(lines: list[str]) -> list[str]:
    """Input transformer: ``%llm What is a p-value?`` asks the model.

    IPython reads a line that ends in a question mark as a call for help on its last word.
    ``%llm?`` and ``%llm ?`` still are.
    """
    if not any("%llm" in line for line in lines) or lines[0].lstrip().startswith("%%"):
        return lines
    kept, quotes = [], 0
    for line in lines:
        # An odd number of triple quotes above: the line is part of a text.
        kept.append(line if quotes % 2 else _kept(line))
        quotes += len(re.findall(r"\"{3}|'{3}", line))
    return kept


def _kept(line: str) -> str:
    found = _QUESTION.match(line)
    if not found:
        return line
    if not found[2].strip("?"):
        return f"{found[1]}%llm?\n"
    return f"{found[1]}get_ipython().run_line_magic('llm', {found[2]!r})\n"


def load(shell: Any) -> None:
    """Registers magics and settings; loading again leaves nothing there twice."""
    session = current(shell)
    # Magics put themselves among them.
    ours = (LLMMagics, AdminMagics, MapMagics, type(session.settings))
    others = [each for each in shell.configurables if not isinstance(each, ours)]
    shell.configurables[:] = [*others, session.settings]
    shell.register_magics(LLMMagics(shell), AdminMagics(shell), MapMagics(shell))
    register(shell)
    transforms = shell.input_transformers_cleanup
    if keep_questions not in transforms:
        transforms.append(keep_questions)
