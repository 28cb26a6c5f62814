"""%llm_quota, %llm_usage, %llm_cache, %llm_cassette: what may be spent, was spent, and is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from llm_magic import options as line_options
from llm_magic.errors import PromptError
from llm_magic.session import current

if TYPE_CHECKING:
    from llm_magic.desk import Desk
    from llm_magic.views.tables import Table


@magics_class
class AdminMagics(Magics):
    """The magics around calls."""

    shell: Any

    @property
    def _desk(self) -> Desk:
        session = current(self.shell)
        session.settings.read_environment()
        return session.desk

    @magic_arguments()
    @argument("--requests", metavar="N", help="Most requests; none takes the limit away.")
    @argument("--tokens", metavar="N", help="Most tokens, in and out.")
    @argument("--usd", metavar="X", help="Most USD.")
    @argument(
        "--per",
        metavar="SPAN",
        help="In this time: 30min, 1h, 1d, or kernel for as long as it runs.",
    )
    @argument(
        "--scope",
        choices=["kernel", "user"],
        default="kernel",
        help="This kernel, or you: all your kernels, until you change it.",
    )
    @argument("--reset", action="store_true", help="What was used so far no longer counts.")
    @line_magic
    def llm_quota(self, line: str) -> Table:
        """Set limits, and see where they stand. No limit is ever passed.

        ::

            %llm_quota
            %llm_quota --usd 2 --per kernel
            %llm_quota --usd 5 --per 1d --scope user
        """
        from llm_magic import control

        chosen = line_options.parse_words(self.llm_quota.parser, line)
        if chosen.per and not (chosen.requests or chosen.tokens or chosen.usd):
            raise PromptError(
                f"--per {chosen.per} says in which time, but not how much; nothing was changed.",
                fix=f"Name a limit: %llm_quota --requests 100 --per {chosen.per}",
            )
        return control.limit(self._desk, **vars(chosen))

    @magic_arguments()
    @argument(
        "--by",
        choices=["model", "day", "cell"],
        default="model",
        help="One line for each model, day, or cell of this kernel.",
    )
    @line_magic
    def llm_usage(self, line: str) -> Table:
        """What was spent and what the cache saved. As a frame: llm_magic.usage()."""
        from llm_magic import control

        chosen = line_options.parse_words(self.llm_usage.parser, line)
        return control.usage(self._desk, chosen.by)

    @magic_arguments()
    @argument(
        "do",
        nargs="?",
        choices=["stats", "list", "clear", "prune"],
        default="stats",
        help="How much there is; the last used; forget all; forget what is not used.",
    )
    @argument("--unused", metavar="SPAN", default="30d", help="For prune: not used for so long.")
    @line_magic
    def llm_cache(self, line: str) -> Table:
        """The answers that are kept on disk."""
        from llm_magic import control

        chosen = line_options.parse_words(self.llm_cache.parser, line)
        cache = control.CacheControl(self._desk)
        if chosen.do == "prune":
            return cache.prune(chosen.unused)
        table: Table = getattr(cache, chosen.do)()
        return table

    @magic_arguments()
    @argument("file", nargs="?", default="status", help="The file; or status, prune, off.")
    @argument("--record", action="store_true", help="Take down, and do not answer from it.")
    @argument("--replay", action="store_true", help="Answer from it alone; ask nothing.")
    @line_magic
    def llm_cassette(self, line: str) -> Table | None:
        """Answers that travel with a notebook: put a cassette in, see what is on it.

        ::

            %llm_cassette answers.jsonl
            %llm_cassette status
            %llm_cassette prune
        """
        from llm_magic import control

        chosen = line_options.parse_words(self.llm_cassette.parser, line)
        desk = self._desk
        if chosen.file == "status":
            return control.cassette_status(desk)
        if chosen.file == "prune":
            return control.cassette_prune(desk)
        if chosen.file == "off":
            desk.cassette, desk.records, desk.replays = None, False, False
            return None
        if chosen.record and chosen.replay:
            raise PromptError("--record and --replay exclude each other; nothing was changed.")
        control.put_in(desk, chosen.file, record=chosen.record, replay=chosen.replay)
        return None
