"""An OpenAI-compatible chat server on loopback, scripted: for tests without a provider.

It streams what it is told to, at a real pace, and produces on demand the faults and the oddities
of real servers; it records every request and notices at once when the client leaves.

    from llm_magic.testing import FAULTS, Reply, ScriptedServer

    with ScriptedServer({"capital of France": "Paris."}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        server.enqueue(FAULTS["rate_limited"], Reply("At last.", tokens_per_second=50))
        ...
        assert server.requests[0].body["model"] == "scripted-model"
"""

from llm_magic.testing.connection import Received
from llm_magic.testing.faults import FAULTS, QUIRKS
from llm_magic.testing.replies import Reply
from llm_magic.testing.server import ScriptedServer

__all__ = ["FAULTS", "QUIRKS", "Received", "Reply", "ScriptedServer"]
