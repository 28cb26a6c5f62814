"""A table of results goes on as a plain table: saved, sent to another process, worked on."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llm_magic
from llm_magic.errors import PromptError
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY

pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture
def results(server: ScriptedServer) -> Any:
    """A run of which one row has failed."""
    server.enqueue("One.", Reply(refusal="No."))
    return llm_magic.map_rows(
        pd.DataFrame({"text": ["a", "b"]}), "{{ text }}", concurrency=1, quiet=True
    )


def test_parquet_keeps_the_columns_their_types_and_the_counts(results: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.to_parquet("results.parquet")
    read = pd.read_parquet("results.parquet")

    pd.testing.assert_frame_equal(read, results)
    told = read.attrs["llm_magic"]
    assert (told["rows"], told["asked"], told["failed"]) == (2, 1, 1)
    assert list(told["errors"].values()) == [1]


def test_another_process_reads_a_pickle_without_us_and_without_the_key(results: Any) -> None:
    Path("results.pkl").write_bytes(pickle.dumps(results))
    read = "import pandas as pd, sys; print(pd.read_pickle('results.pkl').attrs)"
    done = subprocess.run(
        [sys.executable, "-c", read + "; assert 'llm_magic' not in sys.modules"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "'failed': 1" in done.stdout
    assert KEY.encode() not in Path("results.pkl").read_bytes()


@pytest.mark.parametrize(
    "step", [copy.copy, copy.deepcopy, lambda frame: frame.head(1), lambda frame: frame.assign(n=1)]
)
def test_a_step_of_pandas_keeps_the_totals(step: Any, results: Any) -> None:
    assert llm_magic.totals(step(results)) is llm_magic.totals(results)


def test_a_file_has_no_way_to_ask_again(results: Any) -> None:
    results.to_parquet("results.parquet")

    with pytest.raises(PromptError, match="no totals"):
        llm_magic.totals(pd.read_parquet("results.parquet"))


def test_totals_show_themselves_in_one_line(results: Any) -> None:
    assert repr(llm_magic.totals(results)).startswith("<Totals 2 rows: 1 asked, 1 failed")
