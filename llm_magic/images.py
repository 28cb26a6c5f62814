"""Images to attach: a figure, a picture or a file, named on the magic's line or given in Python."""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_magic.errors import PromptError
from llm_magic.types import Message
from llm_magic.units import size
from llm_magic.values import ImageValue, raster_type, to_prompt

LARGEST_IMAGE = 20_000_000
"""Bytes of one image, and below of all in a request, at most: OpenAI's guide to images and vision
has 20 MB and 50 MB."""
LARGEST_SUM = 50_000_000
THUMBNAIL = (1024, 256)
"""Pixels, wide and high, of an image that is shown beside its prompt."""
_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp")
_LIBRARIES = frozenset({"matplotlib", "PIL"})
_ACCEPTED = "What can be attached: figures, PIL images, and PNG, JPEG, GIF or WebP files or bytes."
_SMALLER = (
    "Make it smaller: from PIL import Image; img = Image.open(FILE); img.thumbnail((2000, 2000))"
)


def named(text: str, names: Mapping[str, Any]) -> ImageValue:
    """The image that a word on the magic's line stands for.

    Args:
        text: A name of the notebook, which goes first, or a file.
        names: The notebook's namespace.

    Raises:
        PromptError: There is neither, with the nearest that there is; or it is no image.
    """
    if text in names:
        return image(names[text], text)
    return _from_file(text, [name for name, value in names.items() if is_image(value)])


def image(value: Any, name: str = "") -> ImageValue:
    """The bytes of an image.

    Args:
        value: A matplotlib figure, axes or ``pyplot``, which stands for its current figure; a PIL
            image; the path of a file; or the bytes of one.
        name: What it is called, for messages.

    Raises:
        PromptError: It is none, cannot be read, or is larger than servers take.
    """
    told = name or f"The {type(value).__name__}"
    if isinstance(value, bytes | bytearray | memoryview):
        return _checked(bytes(value), told)
    if isinstance(value, str | os.PathLike):
        return _from_file(os.fspath(value))
    if isinstance(value, types.ModuleType) and value.__name__ == "matplotlib.pyplot":
        value = _current_figure(value, told)
    picture = to_prompt(value) if is_image(value) else None
    if not isinstance(picture, ImageValue):
        raise PromptError(
            f"{told} is no image{f', a {type(value).__name__}' if name else ''}; nothing was sent.",
            fix=_ACCEPTED,
        )
    return _checked(picture, told)


def all_of(values: Sequence[Any]) -> list[ImageValue]:
    """The bytes of several images, for the Python API.

    Raises:
        PromptError: One of them is none; or it is one alone, and not in a list.
    """
    if isinstance(values, str | bytes | os.PathLike):
        shown = repr(values) if isinstance(values, str) else type(values).__name__
        raise PromptError(
            f"images takes a list, and {shown} is not in one; nothing was sent.",
            fix='Write it as images=["plot.png"]',
        )
    return [image(value) for value in values]


def attached(content: str | list[dict[str, Any]], pictures: Sequence[ImageValue]) -> Any:
    """The content of a message with images behind it.

    Raises:
        PromptError: All images together are larger than a request may be.
    """
    if not pictures:
        return content
    total = sum(map(len, pictures))
    if total > LARGEST_SUM:
        raise PromptError(
            f"The {len(pictures)} images have {size(total)}, and a request may have "
            f"{size(LARGEST_SUM)} of them; nothing was sent.",
            fix=_SMALLER,
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*parts, *(picture.part() for picture in pictures)]


def images_in(messages: Iterable[Message]) -> list[ImageValue]:
    """The images that messages carry, in their order."""
    contents = [each["content"] for each in messages if not isinstance(each["content"], str)]
    found = [image_of(part) for content in contents for part in content]
    return [picture for picture in found if picture is not None]


def image_of(part: Mapping[str, Any]) -> ImageValue | None:
    """The image in a part of a message; None where it has none, or only the address of one."""
    address = part.get("image_url")
    url = address.get("url") if isinstance(address, Mapping) else None
    head, comma, data = str(url).partition(",")
    if not comma or not head.startswith("data:"):
        return None
    try:
        found = base64.b64decode(data, validate=True)
    except binascii.Error:
        return None
    return ImageValue(found) if raster_type(found) else None


def about(picture: ImageValue) -> str:
    """What an image is, in words: ``image/png, 34.0 kB``."""
    return f"{raster_type(picture)}, {size(len(picture))}"


def thumbnail(picture: ImageValue) -> ImageValue:
    """The image small, to be shown; as it is where it is small already or there is no PIL."""
    try:
        from PIL import Image

        with Image.open(io.BytesIO(picture)) as opened:
            if opened.width <= THUMBNAIL[0] and opened.height <= THUMBNAIL[1]:
                return picture
            opened.thumbnail(THUMBNAIL)
            small = to_prompt(opened)
    except Exception:  # noqa: BLE001
        # No PIL, a damaged file, or one that unpacks into gigabytes: the browser decides.
        return picture
    return small if isinstance(small, ImageValue) else picture


def is_image(value: Any) -> bool:
    """Whether a value is a figure, a picture or their bytes. Never runs code of the value."""
    if isinstance(value, bytes | bytearray):
        return raster_type(bytes(value[:16])) is not None
    family = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if not family & _LIBRARIES:
        return False
    # Colours, fonts and figures come from the same place. These are drawn on, or are pixels.
    return any(hasattr(type(value), name) for name in ("savefig", "thumbnail", "get_figure"))


def image_files(start: str, endings: tuple[str, ...] = _ENDINGS) -> list[str]:
    """Image files and folders whose path begins so, for completion; ``~`` stays as it is."""
    folder, name = os.path.split(start)
    try:
        entries = sorted(os.scandir(Path(folder or ".").expanduser()), key=lambda each: each.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        hidden = entry.name.startswith(".") and not name.startswith(".")
        if not entry.name.startswith(name) or hidden:
            continue
        if entry.is_dir():
            found.append(os.path.join(folder, entry.name, ""))
        elif entry.name.lower().endswith(endings):
            found.append(os.path.join(folder, entry.name))
    return found


def _from_file(text: str, near_names: Sequence[str] | None = None) -> ImageValue:
    try:
        path = Path(text).expanduser()
        if not path.exists():
            raise _missing(text, near_names)
        # A pipe would be waited for, and a device may have no end.
        if not path.is_file():
            raise PromptError(
                f"{text!r} is {'a folder' if path.is_dir() else 'no file'}; nothing was sent.",
                fix=_choose(text, near_names or ()) or _ACCEPTED,
            )
        if (length := path.stat().st_size) > LARGEST_IMAGE:
            raise _too_large(text, length)
        data = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PromptError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise PromptError(
            f"The image {text!r} cannot be read ({reason}); nothing was sent.",
            fix="Check its path and its permissions: !ls -l",
        ) from None
    return _checked(data, text)


def _checked(data: bytes, told: str) -> ImageValue:
    if len(data) > LARGEST_IMAGE:
        raise _too_large(told, len(data))
    if raster_type(data) is None:
        kind = "an SVG drawing" if b"<svg" in data[:1000].lower() else "no PNG, JPEG, GIF or WebP"
        raise PromptError(
            f"{told} is {kind if data else 'empty'}; nothing was sent.",
            fix=f"Save it as a PNG first. {_ACCEPTED}",
        )
    return ImageValue(data)


def _current_figure(pyplot: Any, told: str) -> Any:
    if not pyplot.get_fignums():
        raise PromptError(
            f"{told} has no figure (notebooks close them at the end of their cell); nothing was "
            "sent.",
            fix="Keep it under a name, fig = plt.gcf() in the cell that draws it, then: -i fig",
        )
    return pyplot.gcf()


def _missing(text: str, near_names: Sequence[str] | None) -> PromptError:
    what = "file" if near_names is None else "name in the notebook, and no file,"
    return PromptError(
        f"There is no {what} {text!r}; nothing was sent.",
        fix=_choose(text, near_names or ()) or _ACCEPTED,
    )


def _choose(text: str, near_names: Sequence[str]) -> str:
    """The nearest names and files, as a question; empty where nothing is near."""
    folder = text if Path(text).expanduser().is_dir() else os.path.dirname(text)
    there = [each for each in image_files(os.path.join(folder, "")) if each[-1] != os.sep]
    if folder == text and there:
        return f"Did you mean {there[0]}?"
    near = difflib.get_close_matches(text, [*near_names, *there], n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""


def _too_large(told: str, length: int) -> PromptError:
    return PromptError(
        f"{told} has {size(length)}, and an image may have {size(LARGEST_IMAGE)}; nothing was "
        "sent.",
        fix=_SMALLER,
    )
