"""ask and aask in plain Python: scripts, threads, running event loops, forks."""

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import llm_magic
from llm_magic import errors
from llm_magic.signatures import AskOptions, MapOptions
from llm_magic.testing import FAULTS, Reply, ScriptedServer

pytestmark = pytest.mark.usefixtures("provider")


def test_ask(server: ScriptedServer) -> None:
    response = llm_magic.ask(
        "{{ no template }}", model="m", system="S", temperature=0, max_tokens=5, params={"n": 1}
    )

    assert response.text == response.value == str(response) == "This is a scripted answer."
    assert response.usage.total_tokens == response.usage.input_tokens + 7
    assert response.cost == 0  # a server on this machine
    assert response.request == server.requests[0].body
    assert response.request["messages"][1] == {"role": "user", "content": "{{ no template }}"}
    assert not response.cached


def test_a_temperature_is_the_same_however_it_is_written(server: ScriptedServer) -> None:
    for temperature in (0, 0.0):
        llm_magic.ask("Hello", temperature=temperature)

    first, second = server.requests
    assert first.raw == second.raw


def test_type_checkers_know_the_options_that_there_are() -> None:
    ask, map_rows = map(inspect.signature, (llm_magic.ask, llm_magic.map_rows))

    assert {"prompt", "schema", *AskOptions.__annotations__} == set(ask.parameters)
    assert {"frame", "prompt", *MapOptions.__annotations__} == set(map_rows.parameters)


def test_ask_inside_a_running_loop() -> None:
    async def main() -> str:
        return llm_magic.ask("Hello").text

    assert asyncio.run(main()) == "This is a scripted answer."


def test_many_at_once_share_one_thread(server: ScriptedServer) -> None:
    llm_magic.ask("Warm up")
    before = threading.active_count()

    async def main() -> list[Any]:
        return await asyncio.gather(*(llm_magic.aask(f"Number {n}") for n in range(20)))

    answers = asyncio.run(main())
    with ThreadPoolExecutor(8) as pool:
        answers += pool.map(llm_magic.ask, [f"Hello {n}" for n in range(8)])

    assert len({id(answer) for answer in answers}) == 28
    assert len(server.requests) == 29
    assert threading.active_count() <= before + 1


def test_a_field_refused_to_many_at_once_fails_none_of_them(server: ScriptedServer) -> None:
    """The first refusal teaches the wire while the others are on their way."""
    picky = Reply("Fine.", rejects=("max_tokens", "stream_options"), delay=0.05)
    server.enqueue(*[picky] * 8)

    async def main() -> list[Any]:
        calls = (llm_magic.aask(f"{n}", model="m", max_tokens=9) for n in range(8))
        return await asyncio.gather(*calls)

    assert [answer.text for answer in asyncio.run(main())] == ["Fine."] * 8


def test_errors_come_as_classes(server: ScriptedServer) -> None:
    server.enqueue(FAULTS["cut"], FAULTS["bad_key"])

    with pytest.raises(errors.StreamBroken) as broken:
        llm_magic.ask("Hello", model="m")
    with pytest.raises(errors.LLMError) as refused:
        asyncio.run(llm_magic.aask("Hello", model="m"))

    assert broken.value.text
    assert broken.value.model == "m"
    assert isinstance(refused.value, errors.AuthenticationFailed)
    assert refused.value.usage is None


def test_images_are_attached(server: ScriptedServer) -> None:
    pillow = pytest.importorskip("PIL.Image")

    llm_magic.ask("What is this?", images=[pillow.new("RGB", (2, 2))])

    words, picture = server.requests[0].body["messages"][0]["content"]
    assert words == {"type": "text", "text": "What is this?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")


def test_lone_surrogate_is_refused(server: ScriptedServer) -> None:
    with pytest.raises(errors.PromptError, match="no valid Unicode"):
        llm_magic.ask("caf\udce9")
    assert server.requests == []


def test_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        llm_magic.ask("Hello", temprature=0)  # type: ignore[call-arg]


def test_public_names() -> None:
    assert set(llm_magic.__all__) <= set(dir(llm_magic))
    assert all(getattr(llm_magic, name) is not None for name in llm_magic.__all__)
    assert llm_magic.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llm_magic.nothing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_asks_on_its_own() -> None:
    code = (
        "import os, llm_magic\n"
        "print(llm_magic.ask('Hello').text, flush=True)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(llm_magic.ask('Hello again').text, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert done.stdout.splitlines() == ["This is a scripted answer."] * 2


def test_a_script_ends_while_a_call_is_on_its_way(server: ScriptedServer) -> None:
    """The loop's thread does not keep a finished program alive."""
    server.enqueue(Reply("Slow. " * 100, tokens_per_second=10))
    code = (
        "import asyncio, sys, llm_magic\n"
        "async def main():\n"
        "    call = asyncio.ensure_future(llm_magic.aask('Hello'))\n"
        "    await asyncio.to_thread(sys.stdin.readline)\n"
        "    sys.exit(3)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as script:
        server.wait_for_requests(1, timeout=30)
        script.communicate(b"\n", timeout=30)

    assert script.returncode == 3
    assert server.requests[0].closed.wait(10)


def test_connections_are_kept(server: ScriptedServer) -> None:
    for _ in range(3):
        llm_magic.ask("Hello", model="m")

    assert len({request.connection for request in server.requests}) == 1
