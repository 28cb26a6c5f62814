"""A cell's body to the content of a message: a Jinja2 template over the notebook's names.

Only ``{{ ... }}`` and ``{% ... %}`` are special, so that code, JSON and LaTeX are pasted as they
are. A value is put in as text and never read as a template again.
"""

from __future__ import annotations

import builtins
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llm_magic.errors import LLMError, PromptError
from llm_magic.types import Message, text_of
from llm_magic.values import ImageValue, to_prompt

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

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
    source = source.strip("\r\n").rstrip()
    content: Content = source if raw else _expand(source, names)
    words = text_of({"role": "user", "content": content})
    if not words.strip():
        raise PromptError(
            "The prompt is empty; nothing was sent.",
            fix="Write it below the %%llm line, or behind %llm on the same line.",
        )
    check_text(words)
    return content


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


def _expand(source: str, names: Mapping[str, Any]) -> Content:
    from jinja2 import TemplateSyntaxError, UndefinedError

    if "{{" not in source and "{%" not in source:
        return source
    images: list[ImageValue] = []
    environment = _environment()
    try:
        template = environment.from_string(source)
        text = template.render({**names, _IMAGES: images})
    except TemplateSyntaxError as error:
        raise PromptError(
            f"Line {error.lineno} of the prompt is no valid template: {_one_line(error)}; "
            "nothing was sent.",
            fix=RAW_HINT,
        ) from None
    except UndefinedError as error:
        raise _undefined(error, names) from None
    except LLMError:
        raise
    except Exception as error:
        raise PromptError(
            f"The template failed with {type(error).__name__}: {_one_line(error)}; "
            "nothing was sent.",
            fix=f"Try the expression in a cell of its own. {RAW_HINT}",
        ) from error
    return _with_images(text, images) if images else text


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
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
        words = to_prompt(value)
        if isinstance(words, ImageValue):
            context[_IMAGES].append(words)
            return _MARK
        return words.replace(_MARK, "")

    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
        # `{#` is LaTeX's \newcommand{\x}[1]{#1}: comments move to where nobody writes.
        comment_start_string="{#\ufdd1",
        comment_end_string="\ufdd1#}",
    )
    environment.globals.update({name: getattr(builtins, name) for name in _BUILTINS})
    return environment


def _undefined(error: Exception, names: Mapping[str, Any]) -> PromptError:
    """Says which name is not there, and which is near."""
    said = str(error)
    if found := re.search(r"^'(\w+)' is undefined", said):
        name = found[1]
        visible = [each for each in names if not each.startswith("_")]
        near = difflib.get_close_matches(name, visible, n=1, cutoff=0.6)
        guess = f"Did you mean {{{{ {near[0]} }}}}? " if near else f"Define {name} first. "
        return PromptError(
            f"The prompt uses {{{{ {name} }}}}, and there is no {name} in the notebook; nothing "
            "was sent.",
            fix=guess + RAW_HINT,
        )
    if found := re.search(r"'([\w. ]+)' has no (?:attribute|element) '?([^']+)'?", said):
        return PromptError(
            f"The prompt uses .{found[2]}, and {found[1].removesuffix(' object')} has none; "
            "nothing was sent.",
            fix=f"See what it has with dir(...). {RAW_HINT}",
        )
    return PromptError(f"The template failed: {said}; nothing was sent.", fix=RAW_HINT)
