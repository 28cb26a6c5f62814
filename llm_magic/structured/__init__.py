"""Structured answers: a Python type to a JSON schema, an answer's text back to a value of the type.

Knows neither servers nor notebooks. Costs an import of pydantic, so it is imported when the first
``--schema`` is seen.
"""

from llm_magic.structured.expression import type_named
from llm_magic.structured.growth import Growth
from llm_magic.structured.schema import Schema, schema_for

__all__ = ["Growth", "Schema", "schema_for", "type_named"]
