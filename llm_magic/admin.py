"""%llm_quota, _usage, _cache, _cassette, _chat, _models: what is spent, kept, said, offered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from llm_magic import options as line_options
from llm_magic.errors import PromptError
from llm_magic.session import current

if TYPE_CHECKING:
    from llm_magic.chats import Chats
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
        choices=["kernel", "user", "team"],
        default="kernel",
        help="This kernel; or you: all your kernels, until you change it; or your team: all who "
        "share its Redis server.",
    )
    @argument("--reset", action="store_true", help="What was used so far no longer counts.")
    @line_magic
    def llm_quota(self, line: str) -> Table:
        """Set limits, and see where they stand. No limit is ever passed.

        ::

            %llm_quota
            %llm_quota --usd 2 --per kernel
            %llm_quota --usd 5 --per 1d --scope user
            %llm_quota --usd 20 --per 1d --scope team
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
        """The answers that are kept: on disk, or in the team's Redis server."""
        from llm_magic import control

        chosen = line_options.parse_words(self.llm_cache.parser, line)
        cache = control.CacheControl(self._desk)
        if chosen.do == "prune":
            return cache.prune(chosen.unused)
        table: Table = getattr(cache, chosen.do)()
        return table

    @magic_arguments()
    @argument(
        "word", nargs="?", metavar="WORD", default="", help="Only models whose name has this in it."
    )
    @line_magic
    def llm_models(self, line: str) -> Table:
        """The models that the server offers, with their prices; the default first.

        ::

            %llm_models
            %llm_models gpt-5
        """
        from llm_magic import models

        chosen = line_options.parse_words(self.llm_models.parser, line)
        return models.table(current(self.shell), chosen.word)

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

    @magic_arguments()
    @argument(
        "do",
        nargs="?",
        choices=["list", "show", "reset"],
        default="list",
        help="The conversations; the turns of one; forget one, without a name all.",
    )
    @argument("name", nargs="?", help="Which conversation.")
    @line_magic
    def llm_chat(self, line: str) -> Table | None:
        """The conversations of this kernel: %%llm -c NAME.

        ::

            %llm_chat
            %llm_chat show stats
            %llm_chat reset stats
        """
        chosen = line_options.parse_words(self.llm_chat.parser, line)
        chats = current(self.shell).chats
        if chosen.do == "list":
            return _conversations(chats)
        if chosen.do == "reset":
            return _forgotten(chats, chosen.name)
        from llm_magic.views import show_report

        show_report(self.shell, _transcript(chats, chosen.name))
        return None


def _conversations(chats: Chats) -> Table:
    from llm_magic.control import prompt_line
    from llm_magic.views.tables import Table

    rows = [
        (name, f"{len(turns):,}", prompt_line({"messages": [turns[0].user]}), turns[-1].cell.label)
        for name, turns in chats.all().items()
    ]
    note = "" if rows else "There is no conversation. Begin one: %%llm -c NAME"
    return Table(("conversation", " turns", "begins", "last cell"), rows, note=note)


def _forgotten(chats: Chats, name: str | None) -> Table:
    from llm_magic.views.tables import Table

    gone = chats.reset(name)
    # No error: a notebook may begin with it, and run in a new kernel.
    nothing = "There was no conversation" + (f" {name!r}." if name else ".")
    said = [
        f"{each!r} is forgotten, {turns:,} turn{'' if turns == 1 else 's'}."
        for each, turns in gone.items()
    ]
    return Table((), (), note="\n".join(said) or nothing)


def _transcript(chats: Chats, name: str | None) -> str:
    """All turns of a conversation, without a name of the only one.

    Raises:
        PromptError: There is none of this name, or there are several.
    """
    from llm_magic.plain import without_controls
    from llm_magic.types import text_of

    found = chats.all()
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name not in found:
        there = ", ".join(map(repr, found)) or "none yet; begin one: %%llm -c NAME"
        wanted = "No conversation is named" if name is None else f"No conversation {name!r}"
        raise PromptError(
            f"{wanted}; nothing was shown.", fix=f"There are: {there}. Type %llm_chat show NAME"
        )
    turns = found[name]
    parts = [f"[system]\n{text_of({'content': turns[0].system})}"] if turns[0].system else []
    for number, turn in enumerate(turns, 1):
        label = f" · {turn.cell.label}" if turn.cell.label else ""
        parts.append(f"── turn {number}{label}\n[user]\n{text_of(turn.user)}")
        parts.append(f"[assistant]\n{turn.answer}")
    return without_controls("\n\n".join(parts))
