"""%%llm_map: the prompt of a cell over every row of a table."""

from __future__ import annotations

import argparse
import difflib
from typing import Any

from IPython.core.magic import Magics, cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, argument_group, magic_arguments

from llm_magic import options as line_options
from llm_magic.errors import PromptError
from llm_magic.session import Session, current
from llm_magic.types import Wish


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
        """
        from llm_magic.mapped import go_through
        from llm_magic.outlook import GLANCE, outlook
        from llm_magic.views.progress import choose_progress, plan_report

        session = self._session
        command = line_options.parse(self.llm_map.parser, line)
        chosen = command.options
        if command.rest:
            raise _no_option(command.rest.split()[0], chosen)
        job = self._job(session, chosen, cell)
        if chosen.dry_run:
            return plan_report(outlook(session, job))
        view = choose_progress(self.shell, quiet=chosen.quiet, widgets=session.settings.widgets)
        plan = None if chosen.quiet else outlook(session, job, most=GLANCE)
        mapped = go_through(session, job, view, plan=plan, shown=not chosen.out)
        if chosen.out:
            self.shell.user_ns[chosen.out] = mapped.frame
        if mapped.error:
            # The rows that came are bound; the cells below must not run as if these were all.
            raise mapped.error
        return None if chosen.out else mapped.frame

    def _job(self, session: Session, chosen: argparse.Namespace, cell: str) -> Any:
        from llm_magic.job import job_for
        from llm_magic.structured import type_named

        names = self.shell.user_ns
        if chosen.out and not chosen.out.isidentifier():
            raise PromptError(
                f"{chosen.out!r} is no Python name; nothing was sent.", fix="Name it: -o results"
            )
        schema = str if chosen.schema is None else type_named(chosen.schema, names)
        most = line_options.money(chosen.max_cost)
        return job_for(
            session,
            _table(chosen.frame, self.shell),
            cell,
            names,
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


def _table(expression: str, shell: Any) -> Any:
    """The table of a name or expression; a quoted text is a file glob as it is.

    Raises:
        PromptError: There is no such thing.
    """
    names = shell.user_ns
    try:
        return eval(expression, shell.user_global_ns, names)  # noqa: S307
    except NameError as error:
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
    except Exception as error:
        raise PromptError(
            f"{expression} failed with {type(error).__name__}: {error}; nothing was sent.",
            fix="Try the expression in a cell of its own.",
        ) from error
