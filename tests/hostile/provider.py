"""The provider of the hostile tests: each answer follows from its question, and all is counted."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from llm_magic.testing import FAULTS, QUIRKS, Received, Reply, ScriptedServer
from llm_magic.testing.chunks import completion, message_text
from llm_magic.testing.connection import Request
from llm_magic.testing.replies import Step

MODELS = ("m", "n")
PRICES = {"input": 1, "output": 2}
"""Of both models, in USD per million tokens."""
JSON = "#json"
"""In a prompt: the answer is an object of the class that every kernel has as ``Item``."""
STALLS = ("stall", "stall_pings", "stall_before_headers", "hang_after_finish")
SLOW = Reply(first_token_delay=0.15, tokens_per_second=150)
PLANS: dict[str, Reply] = {
    **FAULTS,
    **QUIRKS,
    "slow": SLOW,
    "late": Reply(delay=0.4),
    "crawl": replace(SLOW, tokens_per_second=25),
    # Fits no class; for prose it is cut as well, so that it is never a right answer.
    "wrong_json": Reply('{"name": 5}', finish="length"),
}
HARMLESS = frozenset({*QUIRKS, "slow", "late", "crawl"}) - {"hang_after_finish"}
"""Plans after which every answer must be right."""
_TOKEN = re.compile(r"q-[0-9a-z]+(?:-[0-9a-z]+)*")

Weight = Literal["nothing", "whole", "unclear"]


def answer(model: str, messages: list[Mapping[str, Any]]) -> str:
    """The only right answer to a request."""
    texts = [message_text(each) for each in messages]
    if any(JSON in text for text in texts):
        # By the question alone: what else is said of the form differs from try to try.
        token = _TOKEN.findall(" ".join(texts))[0]
        sum_ = _sum([model, token])
        return json.dumps({"name": sum_[:12], "people": int(sum_[:6], 16)})
    said = [[each.get("role"), text] for each, text in zip(messages, texts, strict=True)]
    sum_ = _sum([model, said])
    words = [sum_[place : place + 5] for place in range(0, 5 * (4 + int(sum_[-1], 16) % 8), 5)]
    return f"Zwölf {' '.join(words)} end{len(texts)}."


def answer_to(prompt: str, model: str = MODELS[0]) -> str:
    """The right answer to a prompt that stands alone."""
    return answer(model, [{"role": "user", "content": prompt}])


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@dataclass(eq=False)
class Served:
    """A chat request, and what it was answered.

    Attributes:
        received: The request, and how far the answer to it came.
        reply: The answer.
        plan: The name of what was planned for it; empty for a plain answer.
        kernel: Whose key it had: the kernel's name and which of its lives.
        at: When it came, in seconds of the monotonic clock.
    """

    received: Received
    reply: Reply
    plan: str
    kernel: str
    at: float

    @property
    def weight(self) -> Weight:
        """What the provider counts of it, as far as both sides can know."""
        reply, body, got = self.reply, self.received.body, self.received
        streamed = reply.stream and body.get("stream") is True
        if reply.status != 200 or reply.error is not None or reply.raw is not None:
            return "nothing"
        if reply.rejected(body) or reply.fault == "close_before_headers":
            return "nothing"
        if reply.fault in ("error_in_stream", "event_error", "old_vllm_error", "field_error") and (
            not streamed or reply.after == 0
        ):
            return "nothing"
        harmless = reply.fault in (None, "split_utf8") and reply.finish is not None
        if harmless and got.finished.is_set() and reply.usage != "never":
            return "whole"
        return "unclear"

    @property
    def began(self) -> bool:
        """Whether anything of it was made for certain; of an empty answer nobody can tell."""
        got = self.received
        return got.sent_chunks > 0 or (got.finished.is_set() and self.reply.fault != "empty")

    @cached_property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out of the whole answer."""
        usage = completion(replace(self.reply, usage="own_chunk"), self.received.body)["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    @property
    def nanos(self) -> int:
        """What the whole answer costs, in nano-dollars."""
        into, out = self.tokens
        return 1000 * (into * PRICES["input"] + out * PRICES["output"])

    @property
    def over(self) -> bool:
        """Whether the server has nothing more to do for it."""
        return self.received.finished.is_set() or self.received.closed.is_set()


class Provider(ScriptedServer):
    """A server that knows the answer to everything, and fails as it was planned.

    Attributes:
        served: All requests since the start.
    """

    def __init__(self, name_of: Callable[[str], str]) -> None:
        super().__init__(models=MODELS)
        self._name_of = name_of
        self._plans: deque[str] = deque()
        self._chosen: tuple[Reply, str] | None = None
        self.served: list[Served] = []
        self.downs: list[float] = []

    def plan(self, *names: str) -> None:
        """Says what becomes of the next requests, in order."""
        self._plans.extend(names)

    def forget_plans(self) -> None:
        """From now on all is answered plainly."""
        self._plans.clear()

    def restart(self, seconds: float) -> None:
        """Is gone for a while, with all of its connections, and back on the same port."""
        self.stop()
        self.downs.append(time.monotonic())
        time.sleep(seconds)
        self.start()

    def _handle(self, request: Request, number: int) -> tuple[Received, list[Step]]:
        self._chosen = None
        received, steps = super()._handle(request, number)
        if self._chosen is not None:
            key = received.headers.get("authorization", "")
            reply, plan = self._chosen
            kernel = self._name_of(key)
            self.served.append(Served(received, reply, plan, kernel, time.monotonic()))
        return received, steps

    def _choose(self, body: dict[str, Any]) -> Reply:
        plan = self._plans.popleft() if self._plans else ""
        reply = PLANS[plan] if plan else Reply()
        words = answer(body["model"], body["messages"])
        if plan == "split_utf8" and words.isascii():
            plan, reply = "", Reply()  # Nothing in it can be split.
        if plan == "wrong_json":
            pass
        elif plan == "" or reply.text or (plan in ("slow", "late", "crawl")):
            # What was stopped on its way is no answer, however it is taken.
            cut = reply.finish in ("length", "content_filter")
            reply = replace(reply, text=words[: len(words) // 2] if cut else words)
        self._chosen = reply, plan
        return reply
