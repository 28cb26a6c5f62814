"""What goes into a run over rows: frames, lists, iterators and files, and the result in their kind.

pandas, polars and pyarrow are imported where the user's value is one of theirs, and where there
was none and a frame has to be made.
"""

from llm_magic.table.items import Rows
from llm_magic.table.source import Source, source

__all__ = ["Rows", "Source", "source"]
