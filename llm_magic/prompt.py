"""A cell's body to the content of a message: a Jinja2 template over the notebook's names.

Only ``{{ ... }}`` and ``{% ... %}`` are special, so that code, JSON and LaTeX are pasted as they
are. A value is put in as text and never read as a template again.
"""

from __future__ import annotations

import builtins
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llm_magic.errors import LLMError, PromptError
from llm_magic.types import Message, text_of
from llm_magic.values import ImageValue, to_prompt

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

ROW = "__llm_magic_row__"
"""Where this is among the names, they are a row's: a missing cell is put in as nothing."""
Content = str | list[dict[str, Any]]
RAW_HINT = "To send the text as it is, braces and all: %%llm --raw"
# What people call in a template as they would in Python; Jinja2 itself offers only filters.
_BUILTINS = (
    *("abs", "bool", "enumerate", "float", "int", "len", "list", "max", "min"),
    *("repr", "round", "sorted", "str", "sum", "zip"),
)


def messages(
    prompt: Content, system: Content = "", former: Iterable[Message] = ()
) -> tuple[Message, ...]:
    """The messages of a request: the system's, where there is one, the former, the user's."""
    told: Message = {"role": "system", "content": system}
    user: Message = {"role": "user", "content": prompt}
    return (*([told] if system else []), *former, user)


def render(source: str, names: Mapping[str, Any], *, raw: bool = False) -> Content:
    """The content of a message.

    Args:
        source: The cell's body.
        names: The notebook's namespace.
        raw: Take the body as it is.

    Returns:
        Text, or a list of text and image parts where the template has a figure or an image.

    Raises:
        PromptError: Empty, a template error, an undefined name (with the closest that exists),
            or text that no server could be sent.
    """
    return Template(source, names, raw=raw).render({})


class Template:
    """A prompt that is rendered for each row of a table, or once.

    Args:
        source: The cell's body.
        names: The notebook's namespace.
        raw: Take the body as it is.
        columns: Of the rows, to find the nearest where a name is misspelt.

    Attributes:
        source: The cell's body, without the blank lines around it.
        names: The notebook's namespace.
        uses: The names that it takes from its row or from the notebook.

    Raises:
        PromptError: It is no valid template.
    """

    def __init__(
        self,
        source: str,
        names: Mapping[str, Any],
        *,
        raw: bool = False,
        columns: Iterable[str] = (),
    ) -> None:
        self.source = source.strip("\r\n").rstrip()
        self.names = names
        self._columns = tuple(columns)
        self.uses: frozenset[str] = frozenset()
        self._compiled: Any = None
        if not raw and ("{{" in self.source or "{%" in self.source):
            self._compiled, self.uses = _compiled(self.source, names)

    def render(self, row: Mapping[str, Any]) -> Content:
        """The content of a message.

        Args:
            row: Names that come before those of the notebook.

        Raises:
            PromptError: Empty, an undefined name (with the closest that exists), a failure of the
                template, or text that no server could be sent.
        """
        content = self._expand(row) if self._compiled else self.source
        words = content if isinstance(content, str) else text_of({"content": content})
        if not words.strip():
            raise PromptError(
                "The prompt is empty; nothing was sent.",
                fix="Write it below the %%llm line, or behind %llm on the same line.",
            )
        check_text(words)
        return content

    def _expand(self, row: Mapping[str, Any]) -> Content:
        from jinja2 import UndefinedError

        images: list[ImageValue] = []
        try:
            text = self._compiled.render({**row, _IMAGES: images})
        except UndefinedError as error:
            known = [*self._columns, *row, *self.names]
            raise _undefined(error, known, of_row=bool(row)) from None
        except LLMError:
            raise
        except (Exception, GeneratorExit) as error:
            # A value's own code may raise that one as well: no generator of ours is closed here.
            raise PromptError(
                f"The template failed with {_named(error)}; nothing was sent.",
                fix=f"Try the expression in a cell of its own. {RAW_HINT}",
            ) from error
        return _with_images(text, images) if images else text


class Named:
    """A row as a template sees it: ``row.text`` and ``row["odd name"]``.

    Without methods, which would hide columns of their names.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        # One with an underscore is an item only: as an attribute the sandbox would hide it.
        if name.startswith("_") or name not in self._values:
            raise AttributeError(name)
        return self._values[name]

    def __getitem__(self, name: Any) -> Any:
        # Columns of pandas may have numbers for names.
        return self._values[str(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __str__(self) -> str:
        return _lines(self, lambda value: "" if value is None else str(value))


def _lines(row: Named, words: Callable[[Any], Any]) -> str:
    """A row in words, a line for each column."""
    return "\n".join(f"{name}: {words(row[name])}" for name in row)


def _compiled(source: str, names: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.meta import find_undeclared_variables

    environment = _environment()
    try:
        tree = environment.parse(source)
        # Jinja2's own names, such as dict, are not among the undeclared ones, and a column or a
        # name of the notebook comes before them.
        named = {each.name for each in tree.find_all(nodes.Name)}
        uses = find_undeclared_variables(tree) | (named & environment.globals.keys())
        # A rendering copies what it can see, so it sees what it uses.
        seen = {name: names[name] for name in uses if name in names}
        return environment.from_string(tree, globals=seen), frozenset(uses)
    except TemplateSyntaxError as error:
        raise PromptError(
            f"Line {error.lineno} of the prompt is no valid template: {_one_line(error)}; "
            "nothing was sent.",
            fix=RAW_HINT,
        ) from None
    except Exception as error:
        # Nested too deeply, or a number of too many digits.
        raise PromptError(
            f"The prompt is no template that can be read ({_named(error)}); nothing was sent.",
            fix=RAW_HINT,
        ) from error


def check_text(text: str) -> None:
    """Refuses text that cannot be sent.

    Raises:
        PromptError: For half of a surrogate pair, as ``errors="surrogateescape"`` makes them.
    """
    if odd := re.search(r"[\ud800-\udfff]", text):
        raise PromptError(
            f"The prompt has a character that is no valid Unicode at position {odd.start():,} "
            f"({odd[0]!a}), probably from a file that is not UTF-8; nothing was sent.",
            fix="Read the file with its real encoding: open(path, encoding='latin-1')",
        )


def _named(error: BaseException) -> str:
    """An error by its class and its words, where it has any."""
    return f"{type(error).__name__}: {_one_line(error)}".removesuffix(": ")


def _one_line(error: BaseException) -> str:
    try:
        words = " ".join(str(error).split())
    except Exception:  # noqa: BLE001
        # The notebook's own errors may fail at this as well.
        return ""
    return words if len(words) <= 300 else words[:299] + "…"


def _with_images(text: str, images: list[ImageValue]) -> Content:
    """Text and pictures in the order in which the template has them."""
    parts: list[dict[str, Any]] = []
    for number, words in enumerate(text.split(_MARK)):
        if number:
            parts.append(images[number - 1].part())
        if words.strip():
            parts.append({"type": "text", "text": words})
    return parts


_KEYED = ("dict", "list", "tuple")
_ROW = r"llm_magic\.prompt\.Named"
_IMAGES = "__llm_magic_images__"
# Stands for a picture until the text is whole. A value that holds it could only misplace one.
_MARK = "\ufdd0"


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    """Sandboxed: prompts get pasted from elsewhere, and reading names is all they need."""
    from jinja2 import StrictUndefined, pass_context
    from jinja2.runtime import Context, Undefined
    from jinja2.sandbox import SandboxedEnvironment

    @pass_context
    def finalize(context: Context, value: Any) -> Any:
        if isinstance(value, Undefined):
            return value
        if value is None and ROW in context:
            return ""
        if isinstance(value, Named):
            return _lines(value, lambda each: finalize(context, each))
        words = to_prompt(value)
        if isinstance(words, ImageValue):
            context[_IMAGES].append(words)
            return _MARK
        return words.replace(_MARK, "")

    class Sandbox(SandboxedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            # Format strings read any attribute. Jinja2 watches those of a text, "".format, but
            # not those that the class has for all texts, str.format.
            unbound = isinstance(obj, type) and attr in ("format", "format_map")
            return not unbound and super().is_safe_attribute(obj, attr, value)

    environment = Sandbox(
        undefined=StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
        # `{#` is LaTeX's \newcommand{\x}[1]{#1}: comments move to where nobody writes.
        comment_start_string="{#\ufdd1",
        comment_end_string="\ufdd1#}",
    )
    environment.globals.update({name: getattr(builtins, name) for name in _BUILTINS})
    # Jinja2's own is for HTML pages: it writes < as \u003c, and knows neither rows nor dates.
    environment.filters["tojson"] = _as_json
    return environment


def _as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_json_of)


def _json_of(value: Any) -> Any:
    """What stands in JSON for a value that it has no form for."""
    if isinstance(value, Named):
        return {name: value[name] for name in value}
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _undefined(error: Exception, names: Iterable[str], *, of_row: bool = False) -> PromptError:
    """Says which name is not there, and which is near."""
    said = str(error)
    missing = re.search(r"^'(\w+)' is undefined", said)
    # An attribute of the row is a column.
    missing = missing or re.search(rf"^'{_ROW} object' has no attribute '([^']+)'", said)
    if missing:
        name = missing[1]
        visible = [each for each in names if not each.startswith("_")]
        near = difflib.get_close_matches(name, visible, n=1, cutoff=0.6)
        guess = f"Did you mean {{{{ {written(near[0])} }}}}? " if near else f"Define {name} first. "
        where = "among the columns or in the notebook" if of_row else "in the notebook"
        return PromptError(
            f"The prompt uses {{{{ {written(name)} }}}}, and there is no {name} {where}; "
            "nothing was sent.",
            fix=guess + RAW_HINT,
            undefined=True,
        )
    if found := re.search(r"'?([\w. ]+)'? has no (?:attribute|element) (.+)", said):
        owner = found[1].removesuffix(" object")
        by_key = owner in _KEYED
        used = f"[{found[2]}]" if by_key else "." + found[2].strip("'")
        return PromptError(
            f"The prompt uses {used}, and {owner} has none; nothing was sent.",
            fix=f"See what it has with {'list' if by_key else 'dir'}(...). {RAW_HINT}",
        )
    return PromptError(f"The template failed: {said}; nothing was sent.", fix=RAW_HINT)


def written(name: str) -> str:
    """A name as a template has it."""
    return name if name.isidentifier() else f'row["{name}"]'
