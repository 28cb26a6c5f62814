"""Python objects as prompt text: tables as a summary, arrays as a shape, figures as images."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from typing import Any

from llm_magic.errors import PromptError

WHOLE_ROWS = 20
"""A table with at most this many rows is given whole."""
SAMPLE_ROWS = 10
"""Rows that stand for a longer table, evenly spaced."""
SHOWN_COLUMNS = 60
CELL_CHARACTERS = 200
COUNTED_CELLS = 5_000_000
"""Missing values are counted in the whole of a table up to this size, else in a part of it."""


_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def raster_type(data: bytes) -> str | None:
    """The media type of a PNG, JPEG, GIF or WebP, told by its first bytes; None for all else."""
    starts = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF87a": "gif"}
    starts |= {b"GIF89a": "gif"}
    kind = next((kind for start, kind in starts.items() if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    return kind and f"image/{kind}"


class ImageValue(bytes):
    """A picture's bytes (PNG, JPEG, GIF or WebP), to be attached to the prompt."""

    def url(self) -> str:
        """The picture as a data: URI."""
        # Nothing else gets into one: an SVG there would be a document that loads and runs things.
        kind = raster_type(self)
        if kind is None:
            raise ValueError("no PNG, JPEG, GIF or WebP")
        return f"data:{kind};base64,{base64.b64encode(self).decode()}"

    def part(self) -> dict[str, Any]:
        """The picture as a part of a chat message."""
        return {"type": "image_url", "image_url": {"url": self.url()}}


def to_prompt(value: Any) -> str | ImageValue:
    """What the model gets for a value.

    Args:
        value: Anything: ``_repr_llm_()`` wins where the object has it; data frames and series
            (pandas, polars, pyarrow) become shape, types, missing counts and a bounded sample;
            arrays shape, type and range; figures and PIL images a picture; the rest ``str``.

    Raises:
        PromptError: For bytes that are not UTF-8 text.
    """
    # An image that is one already, as a row of files has it.
    if isinstance(value, str | ImageValue):
        return value
    described = getattr(type(value), "_repr_llm_", None)
    if described is not None:
        return str(described(value))
    if isinstance(value, bytes | bytearray):
        return _text_of_bytes(bytes(value))
    # Told by where the class comes from, so that none of these libraries is ever imported here.
    family = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if family & {"pandas", "polars", "pyarrow", "modin", "cudf"}:
        return _table(value)
    if "numpy" in family and hasattr(value, "shape") and value.shape:
        return _array(value)
    if family & {"matplotlib", "PIL"}:
        return _image(value)
    return str(value)


def _table(value: Any) -> str:
    """A frame or series in words; what is read of a large one is bounded."""
    if hasattr(value, "iloc"):
        label = "DataFrame"
        if value.ndim == 1:
            label = "Series" if value.name is None else f"Series {value.name!r}"
            value = value.to_frame("value" if value.name is None else value.name)
        return _summary(label, value.shape, lambda step: _plain(value.iloc[::step, :SHOWN_COLUMNS]))
    import narwhals as nw

    frame = nw.from_native(value, allow_series=True, pass_through=True)
    if isinstance(frame, nw.LazyFrame):
        raise PromptError(
            "A lazy frame has no rows yet; the prompt was not sent.",
            fix="Put its rows into the prompt with {{ frame.collect() }}",
        )
    label = "DataFrame"
    if isinstance(frame, nw.Series):
        label, frame = f"Series {frame.name!r}", frame.to_frame()
    if not isinstance(frame, nw.DataFrame):
        return str(value)
    shown = frame[:, :SHOWN_COLUMNS]
    return _summary(
        label, frame.shape, lambda step: shown if step == 1 else shown.gather_every(step)
    )


def _plain(piece: Any) -> Any:
    """A piece of a pandas frame as narwhals takes it: columns with text for names, no index."""
    import narwhals as nw

    index = piece.index
    if not (index.nlevels == 1 and index.dtype.kind == "i" and index.name is None):
        # The labels of describe() or value_counts() are half of what they say.
        piece = piece.reset_index(allow_duplicates=True)
    names: list[str] = []
    for name in piece.columns:
        words = " ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name)
        names.append(words if words not in names else f"{words} ({len(names) + 1})")
    return nw.from_native(piece.set_axis(names, axis=1))


def _summary(label: str, shape: tuple[int, int], take: Callable[[int], Any]) -> str:
    """Shape, types, missing counts and rows.

    Args:
        label: What it is.
        shape: Rows and columns of the whole.
        take: Gives every so many-th row of the columns that are described.
    """
    rows, columns = shape
    more = "" if columns <= SHOWN_COLUMNS else f" (the first {SHOWN_COLUMNS} described)"
    lines = [f"{label}: {rows:,} rows x {columns:,} columns{more}"]
    every = max(1, -(-rows * min(columns, SHOWN_COLUMNS) // COUNTED_CELLS))
    counted = take(every)
    missing = counted.null_count().row(0) if rows and counted.columns else ()
    where = "" if every == 1 else f" in {len(counted):,} evenly spaced rows"
    types = list(counted.schema.items())
    if not rows:
        return "\n".join([*lines, *(f"- {name}: {kind}" for name, kind in types)])
    for (name, kind), count in zip(types, missing, strict=True):
        lines.append(f"- {name}: {kind}, {int(count):,} missing{where}")
    sample = take(1 if rows <= WHOLE_ROWS else rows // SAMPLE_ROWS).head(WHOLE_ROWS)
    lines.append("All rows:" if rows <= WHOLE_ROWS else f"{len(sample)} rows, evenly spaced:")
    return "\n".join([*lines, _csv(sample.columns, sample.rows())])


def _csv(columns: list[str], rows: Any) -> str:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> str:
    missing = value is None or type(value).__name__ in ("NAType", "NaTType")
    text = "" if missing or (isinstance(value, float) and value != value) else str(value)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _array(value: Any) -> str:
    head = f"ndarray: shape {value.shape}, dtype {value.dtype}"
    if value.size == 0:
        return head
    if value.size <= 100:
        return f"{head}\n{value}"
    flat = value.reshape(-1)
    if flat.dtype.kind in "iuf":
        part = flat[:: max(1, flat.size // 1_000_000)]
        head += f", min {part.min():.6g}, mean {part.mean():.6g}, max {part.max():.6g}"
    first = ", ".join(str(each) for each in flat[:10])
    return f"{head}\nfirst values: {first}"


def _image(value: Any) -> str | ImageValue:
    out = io.BytesIO()
    if hasattr(value, "savefig"):
        value.savefig(out, format="png", bbox_inches="tight")
    elif hasattr(value, "save") and "PIL" in sys.modules:
        if value.mode not in _PNG_MODES:
            value = value.convert("RGB")
        value.save(out, format="PNG")
    elif getattr(value, "figure", None) not in (None, value):
        # Of axes and what is drawn in them; a figure in a figure has one as well.
        return _image(value.figure)
    else:
        return str(value)
    return ImageValue(out.getvalue())


def _text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        if kind := raster_type(value):
            raise PromptError(
                f"The prompt has the bytes of an image ({kind}) where text belongs; the prompt was "
                "not sent.",
                fix="Attach them by their name: %%llm -i NAME",
            ) from None
        raise PromptError(
            f"Bytes that are not UTF-8 text (byte {error.start} is 0x{value[error.start]:02x}); "
            "the prompt was not sent.",
            fix="Decode them first: text = data.decode('latin-1'), then {{ text }}",
        ) from None
