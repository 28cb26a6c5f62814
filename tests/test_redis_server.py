"""The connection to a Redis: how it is made, and what becomes of its faults."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.redis_servers import wait_until


def runs(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_ends_with_the_tests_that_were_killed(redis_kind: str) -> None:
    """Else every interrupted run would leave one behind."""
    script = f"""
        import os, signal
        from tests.redis_servers import RedisServer
        server = RedisServer({redis_kind!r})
        print(server.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    wait_until(lambda: not runs(int(ran.stdout)))
