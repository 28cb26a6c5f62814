"""What a team shares, in a Redis or Valkey server: answers, and what was spent.

Every key begins with ``llm_magic:`` and has an expiry. The library is loaded, and the server
connected to, when a store is first used.
"""
