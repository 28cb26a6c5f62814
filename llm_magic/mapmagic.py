"""%%llm_map: the prompt of a cell over every row of a table."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, argument_group, magic_arguments

from llm_magic import options as line_options
from llm_magic.errors import PromptError
from llm_magic.session import Session, current
from llm_magic.types import Wish

if TYPE_CHECKING:
    from llm_magic.job import Job


@magics_class
class MapMagics(Magics):
    """The magic for tables."""

    shell: Any

    @property
    def _session(self) -> Session:
        # Looked up each time: a forked kernel has a session of its own.
        return current(self.shell)

    @no_var_expand
    @magic_arguments()
    @argument_group("the table")
    @argument("frame", metavar="FRAME", help="The table: a name, an expression, or a file glob.")
    @argument("--sample", metavar="N", type=int, help="Only so many rows, evenly spaced.")
    @argument_group("the question")
    @argument("-m", "--model", metavar="NAME", help="Model to ask.")
    @argument("-s", "--system", metavar="TEXT", help="System message; a template as well.")
    @argument("-t", "--temperature", metavar="X", type=float, help="Sampling temperature.")
    @argument("--max-tokens", metavar="N", type=int, help="Cap on each answer, in tokens.")
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
    @argument_group("the answers")
    @argument("-o", "--out", metavar="NAME", help="Bind the results to NAME (also: NAME <<).")
    @argument("--schema", metavar="TYPE", help="Give typed columns, one for each field.")
    @argument("--repairs", metavar="N", type=int, default=1, help="Ask again if it does not fit.")
    @argument_group("cache and cost")
    @argument("--fresh", action="store_true", help="Ask again; replaces the cached answers.")
    @argument("--no-cache", action="store_true", help="Neither look answers up nor keep them.")
    @argument("--max-cost", metavar="USD", help="End the run before it can come to more.")
    @argument("--dry-run", action="store_true", help="Show what it would come to; send nothing.")
    @argument_group("on its way")
    @argument(
        "--concurrency",
        metavar="auto|N",
        default="auto",
        help="Rows on their way at once; auto finds what the server takes.",
    )
    @argument("--on", metavar="NAME", help="Ask on the workers of this Dask client or executor.")
    @argument(
        "--unshared",
        action="store_true",
        help="Each worker has a cache and limits of its own: without Redis.",
    )
    @argument("--quiet", action="store_true", help="Show nothing.")
    @cell_magic
    def llm_map(self, line: str, cell: str) -> Any:
        """Ask the same about every row of a table; typed columns come back.

        The cell's body is the prompt, a Jinja2 template over the columns of a row and the
        notebook's names: {{ text }}, {{ row["odd name"] }}. The result is a table of the same kind
        with the schema's fields as columns, and _error, _cached and _cost. Run the cell again to
        go on where it stopped: what came is in the cache and costs nothing.

        ::

            %%llm_map reviews results << --schema Review --max-cost 2.00
            Classify this review for a shoe shop: {{ text }}

            %%llm_map "letters/*.txt" --sample 5
            Who wrote this, and to whom?
            {{ text }}

        Of a Dask DataFrame a lazy one comes back, whose rows are asked when it is computed.
        """
        from llm_magic.mapped import go_through
        from llm_magic.outlook import GLANCE, outlook
        from llm_magic.views.progress import choose_progress, plan_report
        from llm_magic.workers import is_lazy, lazily, staffed

        session = self._session
        command = line_options.parse(self.llm_map.parser, line)
        chosen = command.options
        if command.rest:
            raise _no_option(command.rest.split()[0], chosen)
        make = self._job(session, chosen, cell)
        frame = _value(chosen.frame, self.shell)
        on = _workers(chosen.on, self.shell)
        if is_lazy(frame):
            lazy = lazily(
                session,
                frame,
                make,
                on=on,
                unshared=chosen.unshared,
                sample=chosen.sample,
                plan=chosen.dry_run,
            )
            return self._bound(chosen.out, lazy)
        job = staffed(session, make(frame), on, unshared=chosen.unshared)
        if chosen.dry_run:
            return plan_report(outlook(session, job))
        view = choose_progress(self.shell, quiet=chosen.quiet, widgets=session.settings.widgets)
        plan = None if chosen.quiet else outlook(session, job, most=GLANCE)
        mapped = go_through(session, job, view, plan=plan, shown=not chosen.out)
        shown = self._bound(chosen.out, mapped.frame)
        if mapped.error:
            # The rows that came are bound; the cells below must not run as if these were all.
            raise mapped.error
        return shown

    def _bound(self, name: str | None, frame: Any) -> Any:
        """What the cell shows: the frame, unless it has a name now."""
        if not name:
            return frame
        self.shell.user_ns[name] = frame
        return None

    def _job(self, session: Session, chosen: argparse.Namespace, cell: str) -> Callable[[Any], Job]:
        """What makes the job of a table."""
        from llm_magic.job import job_for
        from llm_magic.structured import type_named

        names = self.shell.user_ns
        if chosen.out and not chosen.out.isidentifier():
            raise PromptError(
                f"{chosen.out!r} is no Python name; nothing was sent.", fix="Name it: -o results"
            )
        schema = str if chosen.schema is None else type_named(chosen.schema, names)
        most = line_options.money(chosen.max_cost)
        return partial(
            job_for,
            session,
            prompt=cell,
            names=names,
            wish=Wish(chosen.fresh, chosen.no_cache, most, chosen.repairs),
            concurrency=chosen.concurrency,
            sample=chosen.sample,
            model=chosen.model,
            system=chosen.system,
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            seed=chosen.seed,
            effort=chosen.effort,
            params=line_options.params(chosen.param),
            schema=schema,
        )


def _no_option(word: str, chosen: argparse.Namespace) -> PromptError:
    fix = "The prompt goes below the line. See the options: %%llm_map?"
    if word.isidentifier() and not chosen.out:
        fix = f"The results go to a name with <<: %%llm_map {chosen.frame} {word} <<"
    return PromptError(f"{word!r} on the %%llm_map line is no option; nothing was sent.", fix=fix)


def _workers(expression: str | None, shell: Any) -> Any:
    """The workers of a name or expression; None where there is none.

    Raises:
        PromptError: There is no such thing.
    """
    if expression is None:
        return None
    try:
        workers = _evaluated(expression, shell)
    except NameError as error:
        takers = [
            name
            for name, value in list(shell.user_ns.items())
            if name[:1] != "_" and callable(getattr(type(value), "submit", None))
        ]
        near = difflib.get_close_matches(str(error.name), takers, n=1, cutoff=0.6) or takers[:3]
        guess = f"Did you mean {', '.join(near)}? " if near else ""
        raise PromptError(
            f"There is no {error.name} in the notebook; nothing was sent.",
            fix=f"{guess}Make it in a cell: client = Client()",
        ) from None
    if workers is None:
        raise PromptError(
            f"--on {expression} is None; nothing was sent.",
            fix="Name a Dask Client or an executor.",
        )
    return workers


def _value(expression: str, shell: Any) -> Any:
    """The table of a name or expression; a quoted text is a file glob as it is.

    Raises:
        PromptError: There is no such thing.
    """
    try:
        return _evaluated(expression, shell)
    except NameError as error:
        names = shell.user_ns
        tables = [
            name
            for name, value in list(names.items())
            if name[:1] != "_" and hasattr(type(value), "columns")
        ]
        near = difflib.get_close_matches(str(error.name), tables, n=1, cutoff=0.6)
        known = near or tables[:3]
        guess = f"Did you mean {', '.join(known)}? " if known else ""
        raise PromptError(
            f"There is no {error.name} in the notebook; nothing was sent.",
            fix=f'{guess}A file glob stands in quotes: %%llm_map "letters/*.txt"',
        ) from None


def _evaluated(expression: str, shell: Any) -> Any:
    """The value of an expression in the notebook.

    Raises:
        NameError: It has a name that is nowhere.
        PromptError: It fails.
    """
    try:
        return eval(expression, shell.user_global_ns, shell.user_ns)  # noqa: S307
    except NameError:
        raise
    except Exception as error:
        raise PromptError(
            f"{expression} failed with {type(error).__name__}: {error}; nothing was sent.",
            fix="Try the expression in a cell of its own.",
        ) from error
