"""The body of a stream, read in few turns: a slow one would wake the loop for every token.

Most of what a token costs is the wake-up for its packet, not what is done with it. While nothing is
read, packets gather, and one turn takes them all. The pause follows from how long the answer has
taken so far, so that short answers and the first words are not held up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator

# Of the time so far; seconds that nobody sees, as redraws are further apart; and seconds that pay.
_SHARE, _LONGEST, _SHORTEST = 1 / 20, 1 / 20, 0.005
# Seconds for a piece that has come already; and pieces a second that a pause would hold up, since
# they do not fit into a socket's buffer.
_AT_HAND, _FAST = 0.0003, 3000
# What follows the last words is there in a moment, and the cell waits for it.
_LAST = re.compile(rb'\[DONE\]|"finish_reason":\s*"')


async def paced(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same pieces, with a pause after one that had to be waited for.

    Args:
        pieces: Of a body, which come as they are read.
    """
    clock = asyncio.get_running_loop().time
    first, count = 0.0, 0
    asked = clock()
    async for piece in pieces:
        now = clock()
        first = first or now
        yield piece
        count += 1
        elapsed = now - first
        pause = min(_LONGEST, _SHARE * elapsed) if count < _FAST * elapsed else 0.0
        if now - asked > _AT_HAND and pause > _SHORTEST and not _LAST.search(piece):
            await asyncio.sleep(pause)
        asked = clock()
