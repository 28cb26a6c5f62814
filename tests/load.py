"""Starts and stops the load server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self


class LoadServer:
    """A running ``load_server.py``.

    Args:
        **options: Its options: ``latency=0.02, rate=300, burst=60, headers=True``.

    Attributes:
        url: The base URL for clients, which ends in ``/v1``.
    """

    def __init__(self, **options: Any) -> None:
        program = str(Path(__file__).with_name("load_server.py"))
        self._command = [sys.executable, program, "--with-parent"]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                self._command.append(flag)
            elif value is not None and value is not False:
                self._command += [flag, str(value)]

    def __enter__(self) -> Self:
        # Its stdin is ours: if this process is killed, the server ends as well.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self._process.wait()
            raise RuntimeError(f"the load server did not start: {' '.join(self._command)}")
        self._root = f"http://127.0.0.1:{port}"
        self.url = f"{self._root}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """What the server has counted since it started, or since ``reset``."""
        return self._call("/stats")

    def reset(self) -> None:
        """Counts anew, with a full bucket."""
        self._call("/reset", {})

    def set(self, **options: Any) -> None:
        """Changes options while it runs, such as ``rate=100``."""
        self._call("/set", options)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        # No proxy of the environment: this is the same machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self._root + path, data), timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found
