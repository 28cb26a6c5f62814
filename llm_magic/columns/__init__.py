"""What goes out of a run over rows: typed columns, and the columns of a library made of them."""

from llm_magic.columns.buffers import ANSWER, Column, Columns, columns_for

__all__ = ["ANSWER", "Column", "Columns", "columns_for"]
