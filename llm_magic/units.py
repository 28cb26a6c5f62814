"""Amounts as people write and read them: money, bytes, spans of time."""

from __future__ import annotations

import math
import re
import time
from decimal import ROUND_HALF_EVEN, Context, Decimal

_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SECONDS |= {"sec": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4}
_BYTES |= {"kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4}
_TWO_DIGITS = Context(prec=2, rounding=ROUND_HALF_EVEN)


def seconds(text: str | float) -> float:
    """Seconds in a span such as ``90``, ``"30s"``, ``"1h"`` or ``"7 days"``.

    Raises:
        ValueError: It is none.
    """
    if isinstance(text, int | float) and 0 <= text < math.inf:
        return float(text)
    found = _SPAN.fullmatch(str(text))
    unit = found[2].lower() if found else ""
    # Plural forms; "s" alone is the second.
    unit = unit if unit in _SECONDS else unit.removesuffix("s")
    if not found or (unit and unit not in _SECONDS):
        raise ValueError(f"{text!r} is no span of time; write 90s, 30min, 1h, 1d or 1w")
    return float(found[1]) * _SECONDS.get(unit, 1)


def whole_bytes(text: str | int) -> int:
    """Bytes in a size such as ``1000000``, ``"500 MB"`` or ``"1 GiB"``.

    Raises:
        ValueError: It is none.
    """
    found = _SPAN.fullmatch(str(text))
    if not found or found[2].lower() not in _BYTES:
        raise ValueError(f"{text!r} is no size; write 500 MB or 1 GiB")
    return int(Decimal(found[1]) * _BYTES[found[2].lower()])


def span(length: float) -> str:
    """A window of time, as in *50 requests in 1 h*."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if length >= size and length % size == 0:
            return f"{length / size:g} {unit}"
    return f"{length:g} s"


def ago(age: float) -> str:
    """How long something is past: ``just now``, ``5 min ago``, ``3 days ago``."""
    for unit, size in (("day", 86_400), ("h", 3600), ("min", 60)):
        if age >= size:
            count = int(age // size)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"
    return "just now"


def clock(moment: float) -> str:
    """A time to come: ``14:32``, with the date where it is not today."""
    there, now = time.localtime(moment), time.localtime()
    today = there[:3] == now[:3]
    return time.strftime("%H:%M:%S" if moment - time.time() < 90 else "%H:%M", there) + (
        "" if today else time.strftime(" on %Y-%m-%d", there)
    )


def usd(amount: Decimal | None) -> str:
    """Money: cents from a dollar up, two significant digits below; None is not known."""
    if amount is None:
        return "price unknown"
    if amount >= 1:
        return f"${amount:,.2f}"
    if amount >= Decimal("0.0995"):
        return f"${amount:.2f}"
    return "$" + (f"{_TWO_DIGITS.plus(amount):f}".rstrip("0").rstrip(".") if amount else "0")


def size(count: float) -> str:
    """Bytes as ``812 B``, ``1.5 kB``, ``1.1 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
