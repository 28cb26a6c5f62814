"""Tries the installed library in a process of its own: ``python clean_room.py [redis] [dask]``.

Needs nothing but the library and what it depends on; the machine is not left. Whoever calls it puts
the library on the path. With the name of an extra, that is tried as well.
"""

import contextlib
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

runpy.run_path(str(Path(__file__).with_name("guard") / "sitecustomize.py"))
TYPE = "from pydantic import BaseModel\nclass Review(BaseModel):\n    stars: int"
ROWS = "rows = [{'text': 'Rate a'}, {'text': 'Rate b'}, {'text': 'Rate a'}]"
OPTIONAL = ("pandas", "polars", "pyarrow", "matplotlib", "redis", "distributed", "ipykernel")


class Cells:
    """Cells in a shell of IPython, and what they show."""

    def __init__(self) -> None:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        self._shell = InteractiveShell.instance(config=config)

    def run(self, cell: str) -> str:
        """What a cell shows; it must not fail."""
        error, shown = self._run(cell)
        assert error is None, f"{cell}\n{shown}\n{error!r}"
        return shown

    def error(self, cell: str) -> BaseException:
        """What a cell fails with."""
        error, shown = self._run(cell)
        assert error is not None, f"{cell}\n{shown}"
        return error

    def _run(self, cell: str) -> tuple[BaseException | None, str]:
        from IPython.utils.capture import capture_output

        with capture_output() as shown:
            result = self._shell.run_cell(cell)
        return result.error_in_exec or result.error_before_exec, shown.stdout

    def __getitem__(self, name: str) -> Any:
        return self._shell.user_ns[name]


def try_cells(cells: Cells, server: Any) -> None:
    """A stream, the cache, a limit, a schema, rows."""
    assert cells.run("%load_ext llm_magic") == ""
    assert "Scripted." in cells.run("%%llm answer <<\nHello")
    assert cells["answer"] == "Scripted."
    assert "cached" in cells.run("%%llm answer <<\nHello")
    assert len(server.requests) == 1

    cells.run(TYPE)
    cells.run("%%llm review << --schema Review\nRate it")
    assert cells["review"].stars == 4

    cells.run(ROWS)
    assert "3 rows: 2 asked" in cells.run("%%llm_map rows results << --schema Review\n{{ text }}")
    assert [row["stars"] for row in cells["results"]] == [4, 4, 4]

    cells.run("%llm_quota --requests 4 --per kernel")
    assert type(cells.error("%llm And once more?")).__name__ == "QuotaExceeded"
    cells.run("%llm_quota --requests none")
    assert "scripted-model" in cells.run("%llm_usage")
    assert len(server.requests) == 4


def try_without_extras(cells: Cells) -> None:
    """What is missing is named with the command that brings it."""
    loaded = [name for name in OPTIONAL if name in sys.modules]
    assert not loaded, loaded
    cells.run('%config LLMMagic.store = "redis://127.0.0.1:1/0"')
    assert 'pip install "llm-magic[redis]"' in str(cells.error("%llm Hi"))
    cells.run('%config LLMMagic.store = "disk"')
    for cell in ("llm_magic.usage()", "_ = llm_magic.ask('Rate', schema=Review).frame()"):
        assert "pip install pandas" in str(cells.error(f"import llm_magic\n{cell}"))


def try_redis(cells: Cells) -> None:
    """Answers and limits of a server."""
    from redis import Redis

    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program, "no redis-server and no valkey-server is installed: apt-get install one"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", ""], stdout=-3)
    try:
        wait_for(port)
        cells.run(f'%config LLMMagic.store = "redis://127.0.0.1:{port}/0"')
        assert "Scripted." in cells.run("%llm For the team")
        assert "cached" in cells.run("%llm For the team")
        with Redis(port=port) as client:
            assert client.dbsize() > 1
        cells.run('%config LLMMagic.store = "disk"')
    finally:
        server.kill()
        server.wait()


def wait_for(port: int) -> None:
    """Returns when somebody listens there."""
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.02)
        else:
            return


def try_dask(cells: Cells) -> None:
    """Rows on workers."""
    cells.run(
        "from distributed import Client\n"
        "client = Client(n_workers=1, processes=False, dashboard_address=None)"
    )
    cells.run("rows = [{'text': 'Rate c'}, {'text': 'Rate d'}]")
    # Under IPython 7 a pydantic model of the notebook refers to all of it, and cannot be sent.
    cells.run("%%llm_map rows far << --on client --unshared --schema dict[str,int]\n{{ text }}")
    assert [row["_error"] for row in cells["far"]] == [None, None]
    cells.run("client.close()")


def main(extras: list[str]) -> None:
    """Tries it all."""
    import llm_magic
    from llm_magic.testing import ScriptedServer

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.chdir(folder),
        ScriptedServer({"Rate": '{"stars": 4}'}, default="Scripted.") as server,
    ):
        for name in [name for name in os.environ if name.startswith(("OPENAI_", "LLM_MAGIC_"))]:
            del os.environ[name]
        os.environ |= {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "any",
            "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
            "IPYTHONDIR": f"{folder}/ipython",
        }
        cells = Cells()
        try_cells(cells, server)
        for extra in extras:
            {"redis": try_redis, "dask": try_dask}[extra](cells)
        if not extras:
            try_without_extras(cells)
        cells.run("%unload_ext llm_magic")
    print(f"llm_magic {llm_magic.__version__} from {Path(llm_magic.__file__).parent}: works")


if __name__ == "__main__":
    main(sys.argv[1:])
