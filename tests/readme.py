"""README.md in pieces: its sections, and its blocks of code in their order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        kind: The word behind its fence.
        text: What is in it.
        section: The heading above it.
    """

    kind: str
    text: str
    section: str

    @property
    def name(self) -> str:
        """Its first line, to tell it by."""
        return self.text.partition("\n")[0]


def section(heading: str) -> str:
    """What stands below a heading of the second level, to the next one."""
    found = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, heading
    return found


def headings() -> list[str]:
    """All headings; a line of code that begins with # is none."""
    return _HEADING.findall(_BLOCK.sub("", README))


def blocks(heading: str | None = None) -> list[Block]:
    """The blocks of one section, or all, in their order."""
    if heading is not None:
        return [Block(kind, text, heading) for kind, text in _BLOCK.findall(section(heading))]
    parts = re.split(r"^## (.*)$", README, flags=re.MULTILINE)[1:]
    return [block for each in parts[::2] for block in blocks(each)]
