"""A server for load: OpenAI-compatible, fast, with a limit, a spread of latencies, or few slots.

    python tests/load_server.py --latency 0.02 --rate 300 --burst 60 --headers

Prints its port on the first line and serves 127.0.0.1 until SIGTERM (or until its stdin is closed,
with ``--with-parent``). ``POST .../chat/completions`` answers, ``GET /v1/models`` lists one model,
``GET /stats`` gives what was counted, ``POST /reset`` forgets it and fills the bucket, ``POST
/set`` changes options while it runs (a JSON object of them). Written for speed: a request is read
by a few ``find()`` and answered by one write, so that it is never the client's limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

ANSWER = '{"stars": 4, "topic": "fit", "positive": true}'
REASONS = {200: "OK", 404: "Not Found", 411: "Length Required", 429: "Too Many Requests"}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.02, help="mean seconds of an answer")
    parser.add_argument("--spread", type=float, default=0.0, help="CV of its lognormal spread")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: no limit")
    parser.add_argument("--burst", type=float, default=1.0, help="size of the bucket")
    parser.add_argument("--token-rate", type=float, default=0.0, help="tokens a second; 0: any")
    parser.add_argument("--token-burst", type=float, default=0.0)
    parser.add_argument("--headers", action="store_true", help="x-ratelimit-* on every answer")
    parser.add_argument("--retry-after", choices=["ms", "s", "none"], default="ms")
    parser.add_argument("--slots", type=int, default=0, help="answers at a time; others queue")
    parser.add_argument("--answer", default=ANSWER, help="the text of every answer")
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--completion-tokens", type=int, default=20)
    parser.add_argument("--fail-every", type=int, default=0, help="every Nth request fails")
    parser.add_argument("--fail-status", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--with-parent", action="store_true", help="end when stdin is closed")
    return parser.parse_args(arguments)


def span(seconds: float) -> str:
    """A time as OpenAI writes it: ``6m0s``, ``1.5s``, ``120ms``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


class Bucket:
    """A token bucket, as providers keep one for requests and one for tokens."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.at = burst, now

    def fill(self, now: float) -> float:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        return self.level

    def headers(self, kind: str) -> str:
        reset = (self.burst - self.level) / self.rate
        return (
            f"x-ratelimit-limit-{kind}: {self.burst:.0f}\r\n"
            f"x-ratelimit-remaining-{kind}: {max(0, int(self.level + 1e-9))}\r\n"
            f"x-ratelimit-reset-{kind}: {span(reset)}\r\n"
        )


@dataclass
class Counts:
    """What ``/stats`` gives.

    ``early`` came in the second half of a pause asked for; ``seconds`` are those of all answers.
    """

    requests: int = 0
    answered: int = 0
    rejected: int = 0
    failed: int = 0
    cut: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    peak_per_second: int = 0
    early: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


class Load:
    """What all connections share."""

    def __init__(self, chosen: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
        self.chosen, self.loop = chosen, loop
        self.random = random.Random(chosen.seed)
        self.waiting: deque[Callable[[], None]] = deque()
        self.busy = 0
        self.apply()
        self.forget()

    def apply(self) -> None:
        """Takes the options over, with full buckets."""
        o = self.chosen
        now = self.loop.time()
        self.by_requests = Bucket(o.rate, o.burst, now) if o.rate else None
        self.by_tokens = Bucket(o.token_rate, o.token_burst, now) if o.token_rate else None
        self.tokens = o.prompt_tokens + o.completion_tokens
        self.sigma = math.sqrt(math.log(1 + o.spread**2)) if o.spread else 0.0
        self.mu = math.log(o.latency) - self.sigma**2 / 2 if o.latency else 0.0
        usage = {
            "prompt_tokens": o.prompt_tokens,
            "completion_tokens": o.completion_tokens,
            "total_tokens": self.tokens,
        }
        message = {"role": "assistant", "content": o.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        rest = {"choices": [choice], "usage": usage}
        # The id and the model go before it.
        self.body = json.dumps(rest)[1:].encode()
        self.usage = json.dumps(usage)

    def forget(self) -> None:
        """Counts anew; what is in flight stays in flight."""
        open_now = self.counts.in_flight if hasattr(self, "counts") else 0
        self.counts = Counts(in_flight=open_now, max_in_flight=open_now)
        self.second, self.in_second = 0, 0
        self.wait_from = self.wait_until = 0.0

    def set(self, changes: dict[str, Any]) -> None:
        """Changes options while requests run; the buckets keep their levels."""
        levels = [(b and b.fill(self.loop.time())) for b in (self.by_requests, self.by_tokens)]
        for name, value in changes.items():
            if not hasattr(self.chosen, name):
                raise ValueError(f"there is no option {name}")
            setattr(self.chosen, name, value)
        self.apply()
        for bucket, level in zip((self.by_requests, self.by_tokens), levels, strict=True):
            if bucket and level is not None:
                bucket.level = min(level, bucket.burst)

    def takes(self, now: float) -> float:
        """Seconds until a request is let in: 0 if it is, now."""
        wait = 0.0
        if self.by_requests and self.by_requests.fill(now) < 1 - 1e-9:
            wait = (1 - self.by_requests.level) / self.by_requests.rate
        if self.by_tokens and self.by_tokens.fill(now) < self.tokens:
            wait = max(wait, (self.tokens - self.by_tokens.level) / self.by_tokens.rate)
        if not wait:
            if self.by_requests:
                self.by_requests.level -= 1
            if self.by_tokens:
                self.by_tokens.level -= self.tokens
        return wait

    def limits(self) -> str:
        """The headers that tell of the limits."""
        if not self.chosen.headers:
            return ""
        text = self.by_requests.headers("requests") if self.by_requests else ""
        return text + (self.by_tokens.headers("tokens") if self.by_tokens else "")

    def work(self, done: Callable[[], None]) -> None:
        """Calls back after the latency of one answer, behind those that wait for a slot."""
        if self.chosen.slots and self.busy >= self.chosen.slots:
            self.waiting.append(done)
            return
        self.busy += 1
        self.loop.call_later(self.latency(), self._worked, done)

    def latency(self) -> float:
        if not self.sigma:
            return float(self.chosen.latency)
        return self.random.lognormvariate(self.mu, self.sigma)

    def _worked(self, done: Callable[[], None]) -> None:
        self.busy -= 1
        if self.waiting:
            self.work(self.waiting.popleft())
        done()


class Connection(asyncio.Protocol):
    """One client's connection, kept alive; one request at a time."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            start, length = end + 4, 0
            if data[:4] == b"POST":
                head = data[:end].lower()
                at = head.find(b"\r\ncontent-length:")
                if at < 0:
                    self.send(411, b'{"error": {"message": "no content-length"}}')
                    data = b""
                    break
                stop = head.find(b"\r\n", at + 17)
                length = int(head[at + 17 : stop if stop > 0 else end])
            if len(data) < start + length:
                break
            self.load.counts.bytes_in += start + length
            self.request(data[: data.find(b"\r\n")], data[start : start + length])
            data = data[start + length :]
        self.buffer = data

    def request(self, line: bytes, body: bytes) -> None:
        load = self.load
        if line.find(b"/chat/completions") > 0:
            self.ask(body)
        elif line.startswith(b"GET /stats"):
            self.send(200, json.dumps(asdict(load.counts)).encode())
        elif line.startswith(b"POST /reset"):
            load.apply()
            load.forget()
            self.send(200, b"{}")
        elif line.startswith(b"POST /set"):
            load.set(json.loads(body))
            self.send(200, b"{}")
        elif line.find(b"/models") > 0:
            model = {"id": "load", "object": "model", "created": 0, "owned_by": "tests"}
            self.send(200, json.dumps({"object": "list", "data": [model]}).encode())
        else:
            self.send(404, b'{"error": {"message": "no such path", "type": "invalid"}}')

    def ask(self, body: bytes) -> None:
        load, counts = self.load, self.load.counts
        counts.requests += 1
        now = load.loop.time()
        if int(now) != load.second:
            load.second, load.in_second = int(now), 0
        load.in_second += 1
        counts.peak_per_second = max(counts.peak_per_second, load.in_second)
        counts.early += load.wait_from < now < load.wait_until
        wait = load.takes(now)
        limits = load.limits()
        if wait:
            self.reject(wait, limits)
            return
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)
        every = load.chosen.fail_every
        status = load.chosen.fail_status if every and counts.requests % every == 0 else 200
        number = counts.requests
        load.work(lambda: self.answer(number, now, status, body, limits))

    def reject(self, wait: float, limits: str) -> None:
        load = self.load
        load.counts.rejected += 1
        style = load.chosen.retry_after
        asked = {"ms": math.ceil(wait * 1000) / 1000, "s": math.ceil(wait)}.get(style, 0.0)
        now = load.loop.time()
        if now >= load.wait_until:
            load.wait_from, load.wait_until = now + asked / 2, now + asked
        if style == "ms":
            limits += f"retry-after-ms: {math.ceil(wait * 1000)}\r\n"
        elif style == "s":
            limits += f"retry-after: {math.ceil(wait)}\r\n"
        message = f"Rate limit reached for load. Please try again in {span(wait)}."
        error = {"message": message, "type": "requests", "code": "rate_limit_exceeded"}
        self.send(429, json.dumps({"error": error}).encode(), limits)

    def answer(self, number: int, came: float, status: int, body: bytes, limits: str) -> None:
        load = self.load
        load.counts.seconds += load.loop.time() - came
        load.counts.in_flight -= 1
        if self.transport.is_closing():
            load.counts.cut += 1
            return
        if status != 200:
            load.counts.failed += 1
            error = {"message": "The server had an error.", "type": "server_error"}
            self.send(status, json.dumps({"error": error}).encode(), limits)
            return
        load.counts.answered += 1
        model = model_of(body)
        if body.find(b'"stream":true') > 0 or body.find(b'"stream": true') > 0:
            self.stream(number, model, limits)
            return
        head = f'{{"id": "chatcmpl-{number}", "object": "chat.completion", "created": 1, '
        self.send(200, head.encode() + b'"model": "' + model + b'", ' + load.body, limits)

    def stream(self, number: int, model: bytes, limits: str) -> None:
        """The same answer in four pieces, the usage at their end."""
        load = self.load
        text = load.chosen.answer
        step = max(1, -(-len(text) // 4))
        deltas = [{"content": text[at : at + step]} for at in range(0, len(text), step)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1}
        head["model"] = model.decode()
        chunks = [json.dumps(head | {"choices": [choice]}) for choice in choices]
        chunks.append(json.dumps(head | {"choices": [], "usage": json.loads(load.usage)}))
        lines = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
        self.send(200, lines.encode(), limits, "text/event-stream")

    def send(
        self, status: int, body: bytes, headers: str = "", kind: str = "application/json"
    ) -> None:
        head = (
            f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n{headers}\r\n"
        )
        self.load.counts.bytes_out += len(head) + len(body)
        self.transport.write(head.encode() + body)


def model_of(body: bytes) -> bytes:
    """The model that a body names."""
    at = body.find(b'"model"')
    start = body.find(b'"', at + 7) + 1 if at >= 0 else 0
    return body[start : body.find(b'"', start)] if start else b"load"


async def serve(chosen: argparse.Namespace) -> None:
    """Serves until it is told to end."""
    loop = asyncio.get_running_loop()
    load = Load(chosen, loop)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if chosen.with_parent:
        loop.add_reader(sys.stdin.fileno(), ended.set)
    server = await loop.create_server(
        lambda: Connection(load), "127.0.0.1", chosen.port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options()))
