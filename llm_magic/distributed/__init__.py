"""A run over rows on an engine that is there already: Dask, or any pool of ``concurrent.futures``.

The kernel pulls, renders and looks up rows as always, and has chunks of those that are missing
asked by workers, each of which runs the same line with limits, cache and pace shared through Redis.
There is no scheduler and no pool here.
"""

from llm_magic.distributed.door import lazy_frame, spread
from llm_magic.distributed.shipped import Shipped

__all__ = ["Shipped", "lazy_frame", "spread"]
