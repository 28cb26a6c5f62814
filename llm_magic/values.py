"""Python objects as prompt text: tables as a summary, arrays as a shape, figures as images."""

from __future__ import annotations

import base64
import io
import sys
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


class ImageValue(bytes):
    """A picture's PNG bytes, to be attached to the prompt."""

    def part(self) -> dict[str, Any]:
        """The picture as a part of a chat message."""
        data = base64.b64encode(self).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def to_prompt(value: Any) -> str | ImageValue:
    """What the model gets for a value.

    Args:
        value: Anything: ``_repr_llm_()`` wins where the object has it; data frames and series
            (pandas, polars, pyarrow) become shape, types, missing counts and a bounded sample;
            arrays shape, type and range; figures and PIL images a picture; the rest ``str``.

    Raises:
        PromptError: For bytes that are not UTF-8 text.
    """
    if isinstance(value, str):
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
    import narwhals as nw

    native = nw.from_native(value, allow_series=True, pass_through=True)
    if isinstance(native, nw.Series):
        # A pandas series may have no name, or one that is not text.
        label = f"Series {native.name!r}" if native.name is not None else "Series"
        return _summary(native.alias(str(native.name or "value")).to_frame(), label)
    if isinstance(native, nw.LazyFrame):
        raise PromptError(
            "A lazy frame has no rows yet; the prompt was not sent.",
            fix="Put its rows into the prompt with {{ frame.collect() }}",
        )
    return _summary(native, "DataFrame") if isinstance(native, nw.DataFrame) else str(value)


def _summary(frame: Any, label: str) -> str:
    rows, columns = frame.shape
    kept = frame[:, : min(columns, SHOWN_COLUMNS)]
    more = "" if columns <= SHOWN_COLUMNS else f" (the first {SHOWN_COLUMNS} described)"
    lines = [f"{label}: {rows:,} rows x {columns:,} columns{more}"]
    every = max(1, -(-rows * max(1, kept.shape[1]) // COUNTED_CELLS))
    counted = kept if every == 1 else kept.gather_every(every)
    missing = counted.null_count().row(0) if rows and kept.shape[1] else ()
    where = "" if every == 1 else f" in {counted.shape[0]:,} evenly spaced rows"
    for name, count in zip(kept.columns, missing, strict=False):
        lines.append(f"- {name}: {kept[name].dtype}, {int(count):,} missing{where}")
    if not rows:
        lines += [f"- {name}: {dtype}" for name, dtype in kept.schema.items()]
        return "\n".join(lines)
    sample = kept if rows <= WHOLE_ROWS else kept.gather_every(max(1, rows // SAMPLE_ROWS))
    sample = sample.head(WHOLE_ROWS)
    lines.append("All rows:" if rows <= WHOLE_ROWS else f"{len(sample)} rows, evenly spaced:")
    return "\n".join([*lines, _csv(kept.columns, sample.rows())])


def _csv(columns: list[str], rows: Any) -> str:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> str:
    text = "" if value is None or value != value else str(value)
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
        value.save(out, format="PNG")
    elif hasattr(value, "figure") and hasattr(value.figure, "savefig"):
        return _image(value.figure)
    else:
        return str(value)
    return ImageValue(out.getvalue())


def _text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise PromptError(
            f"Bytes that are not UTF-8 text (byte {error.start} is 0x{value[error.start]:02x}); "
            "the prompt was not sent.",
            fix="Decode them first: text = data.decode('latin-1'), then {{ text }}",
        ) from None
