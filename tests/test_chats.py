"""Named conversations: what is sent, which cell a turn belongs to, what a second run replaces."""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import session
from llm_magic.errors import ContextTooLong, InvalidAnswer, LLMError, PromptError
from llm_magic.testing import FAULTS, Received, Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Shown, Terminal, interrupted_when

LONG = Reply("word " * 2000, tokens_per_second=200)


def said(received: Received) -> list[str]:
    """The messages of a request, as role and words."""
    return [f"{each['role']}: {each['content']}" for each in received.body["messages"]]


def turns(name: str) -> list[tuple[Any, str]]:
    """A conversation of this process, as prompts and answers."""
    found = session.current().chats.all().get(name, ())
    return [(turn.user["content"], turn.answer) for turn in found]


# What is sent


def test_a_prompt_is_sent_behind_all_turns_before_it(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("One.", "Two.", "Three.")
    terminal.run("%%llm -c stats\nFirst?")
    terminal.run("%%llm --chat stats\nSecond?")
    terminal.run("%llm -c stats Third?")

    assert said(server.requests[0]) == ["user: First?"]
    assert said(server.requests[2]) == [
        "user: First?",
        "assistant: One.",
        "user: Second?",
        "assistant: Two.",
        "user: Third?",
    ]


def test_a_call_without_a_name_is_in_no_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%%llm -c stats\nFirst?")
    terminal.run("%%llm\nAlone?")
    terminal.run("%%llm -c stats\nSecond?")

    assert said(server.requests[1]) == ["user: Alone?"]
    assert "user: Alone?" not in said(server.requests[2])


def test_conversations_know_nothing_of_each_other(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%%llm -c one\nFirst?")
    terminal.run("%%llm -c two\nSecond?")

    assert said(server.requests[1]) == ["user: Second?"]


def test_python_and_cells_share_a_conversation(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%%llm -c stats\nFirst?")
    terminal.run("import llm_magic; llm_magic.ask('Second?', chat='stats')")
    terminal.run("await llm_magic.aask('Third?', chat='stats')")

    assert [line for line in said(server.requests[2]) if line.startswith("user")] == [
        "user: First?",
        "user: Second?",
        "user: Third?",
    ]


@pytest.mark.usefixtures("keeping")
def test_a_stored_answer_is_a_turn_like_any_other(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("One.")
    terminal.run("%llm First?")
    for call in ("llm_magic.ask", "await llm_magic.aask"):
        terminal.run(f"import llm_magic; {call}('First?', chat='{call}')")

    assert turns("llm_magic.ask") == turns("await llm_magic.aask") == [("First?", "One.")]
    assert len(server.requests) == 1


def test_the_turn_is_the_prompt_as_it_was_rendered(terminal: Terminal) -> None:
    terminal["word"] = "fish"
    terminal.run("%%llm -c stats\nWhat is a {{ word }}?")
    terminal["word"] = "bird"
    terminal.run("%%llm -c stats --raw\nAnd a {{ word }}?")

    assert [prompt for prompt, _ in turns("stats")] == ["What is a fish?", "And a {{ word }}?"]


def test_images_stay_in_the_conversation(terminal: Terminal, server: ScriptedServer) -> None:
    terminal["picture"] = pytest.importorskip("PIL.Image").new("RGB", (2, 2))
    terminal.run("%%llm -c look\nWhat is this? {{ picture }}")
    terminal.run("%%llm -c look\nAnd its colour?")

    words, picture = server.requests[1].body["messages"][0]["content"]
    assert words == {"type": "text", "text": "What is this? "}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "[image_url]" in terminal.run("%llm_chat show look").out


def test_an_object_is_its_json_in_the_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue('{"result": [3, 5]}', "Because.")
    first = terminal.run("%%llm -c primes --schema list[int]\nTwo odd primes.")
    terminal.run("%%llm -c primes\nWhy these?")

    assert first.value.value == [3, 5]
    assert said(server.requests[1])[:2] == [
        "user: Two odd primes.",
        'assistant: {"result": [3, 5]}',
    ]
    assert "response_format" not in server.requests[1].body


def test_a_repaired_answer_is_one_turn(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue("No idea.", '{"result": 7}')
    terminal.run("%%llm -c primes --schema int\nA prime.")

    assert turns("primes") == [("A prime.", '{"result": 7}')]


# The system message


def test_a_conversation_keeps_the_system_message_it_began_with(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%config LLMMagic.system = 'Setting.'")
    terminal.run("%%llm -c stats -s 'Be terse.'\nFirst?")
    terminal.run("%%llm -c stats\nSecond?")

    assert said(server.requests[1])[0] == "system: Be terse."


def test_another_system_message_is_for_its_call_alone(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%%llm -c stats -s 'Be terse.'\nFirst?")
    terminal.run("%%llm -c stats -s 'Be long.'\nSecond?")
    terminal.run("%%llm -c stats -s ''\nThird?")
    terminal.run("%%llm -c stats\nFourth?")

    assert said(server.requests[1])[0] == "system: Be long."
    assert said(server.requests[2])[0] == "user: First?"
    assert said(server.requests[3])[0] == "system: Be terse."


def test_a_conversation_begins_with_the_setting(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%config LLMMagic.system = 'Setting.'")
    terminal.run("%%llm -c stats\nFirst?")
    terminal.run("%config LLMMagic.system = 'Later.'")
    terminal.run("%%llm -c stats\nSecond?")

    assert [said(each)[0] for each in server.requests] == ["system: Setting."] * 2


# What becomes no turn


@pytest.mark.parametrize("fault", ["cut", "truncated", "refused", "bad_key"])
def test_a_failed_call_leaves_the_conversation(
    fault: str, terminal: Terminal, server: ScriptedServer
) -> None:
    faults = {
        "truncated": Reply("Half", finish="length"),
        "refused": Reply(refusal="No."),
    }
    server.enqueue("One.", faults.get(fault) or FAULTS[fault])
    terminal.run("%%llm -c stats\nFirst?")
    failed = terminal.run("%%llm -c stats\nSecond?")

    assert isinstance(failed.error, LLMError)
    assert turns("stats") == [("First?", "One.")]


def test_an_answer_of_another_type_leaves_the_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("One.", "No idea.")
    terminal.run("%%llm -c stats\nFirst?")
    failed = terminal.run("%%llm -c stats --schema int --repairs 0\nSecond?")

    assert isinstance(failed.error, InvalidAnswer)
    assert turns("stats") == [("First?", "One.")]


def test_an_interrupted_call_leaves_the_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("One.", LONG)
    terminal.run("%%llm -c stats\nFirst?")

    def streaming() -> bool:
        return len(server.requests) == 2 and server.requests[1].sent_chunks > 3

    ran, _ = interrupted_when(streaming, lambda: terminal.run("%%llm -c stats\nSecond?"))

    assert isinstance(ran.error, KeyboardInterrupt)
    assert turns("stats") == [("First?", "One.")]


def test_a_template_that_fails_leaves_the_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%%llm -c stats\nFirst?")
    failed = terminal.run("%%llm -c stats\n{{ nothing }}")

    assert isinstance(failed.error, PromptError)
    assert len(turns("stats")) == len(server.requests) == 1


def test_a_dry_run_shows_the_turns_and_adds_none(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("One.")
    terminal.run("%%llm -c stats\nFirst?")
    report = terminal.run("%%llm -c stats --dry-run\nSecond?").out

    assert "[user]\nFirst?\n\n[assistant]\nOne.\n\n[user]\nSecond?" in report
    assert turns("stats") == [("First?", "One.")]
    assert len(server.requests) == 1


def test_a_dry_run_begins_no_conversation(terminal: Terminal) -> None:
    terminal.run("%%llm -c stats --dry-run\nFirst?")

    assert session.current().chats.names() == []


@pytest.mark.parametrize("name", ["''", "' '", "'a\tb'"])
def test_a_name_is_a_line_of_text(name: str, terminal: Terminal, server: ScriptedServer) -> None:
    failed = terminal.run(f"%%llm -c {name}\nFirst?")

    assert isinstance(failed.error, PromptError)
    assert "nothing was sent" in str(failed.error)
    assert server.requests == []


def test_a_conversation_that_is_too_long_says_how_to_begin_anew(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%%llm -c 'my stats'\nFirst?")
    server.enqueue(*[FAULTS["context_too_long"]] * 3)
    cell = terminal.run("%%llm -c 'my stats'\nSecond?").error
    python = terminal.run("import llm_magic; await llm_magic.aask('Third?', chat='my stats')").error
    alone = terminal.run("%%llm -c other\nThird?").error

    assert isinstance(cell, ContextTooLong)
    hint = "1 turn of 'my stats' went with it; forget: %llm_chat reset 'my stats'"
    assert str(cell).endswith(hint)
    assert str(python).endswith(hint)
    assert len(str(cell).splitlines()) <= 3
    assert "%llm_chat" not in str(alone)


def test_a_limit_holds_the_whole_conversation(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%%llm -c stats\n" + "long " * 1000)
    terminal.run("%llm_quota --tokens 4000 --reset")
    alone = terminal.run("%llm --max-tokens 9 Short?")
    refused = terminal.run("%llm -c stats --max-tokens 9 Short?")

    assert alone.error is None
    assert type(refused.error).__name__ == "QuotaExceeded"
    assert len(turns("stats")) == 1


# Threads


@pytest.mark.usefixtures("provider")
def test_threads_lose_no_turn_of_a_conversation_they_share() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: llm_magic.ask(f"{n}?", chat="all"), range(24)))

    assert sorted(prompt for prompt, _ in turns("all")) == sorted(f"{n}?" for n in range(24))


@pytest.mark.usefixtures("provider")
def test_turns_come_in_the_order_of_their_answers(server: ScriptedServer) -> None:
    server.enqueue(Reply("Late.", delay=2), "Soon.")
    late = threading.Thread(target=llm_magic.ask, args=("First?",), kwargs={"chat": "all"})
    late.start()
    server.wait_for_requests(1)
    llm_magic.ask("Second?", chat="all")
    late.join()

    assert turns("all") == [("Second?", "Soon."), ("First?", "Late.")]


@pytest.mark.usefixtures("provider")
def test_what_is_forgotten_does_not_come_back(server: ScriptedServer) -> None:
    """An answer on its way belongs to the conversation that it was asked in."""
    llm_magic.ask("First?", chat="all")
    server.enqueue(Reply("Late.", delay=1))
    late = threading.Thread(target=llm_magic.ask, args=("Second?",), kwargs={"chat": "all"})
    late.start()
    server.wait_for_requests(2)
    session.current().chats.reset("all")
    late.join()

    assert turns("all") == []


@pytest.mark.usefixtures("provider")
def test_a_cancelled_task_leaves_the_conversation(server: ScriptedServer) -> None:
    server.enqueue(LONG)

    async def main() -> None:
        task = asyncio.ensure_future(llm_magic.aask("First?", chat="all"))
        await asyncio.to_thread(server.wait_for_requests, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert turns("all") == []


# %llm_chat


def test_list_names_the_conversations(terminal: Terminal) -> None:
    assert "no conversation" in terminal.run("%llm_chat").out
    terminal.run("%%llm -c stats\nFirst question?")
    terminal.run("%%llm -c stats\nSecond?")
    terminal.run("%%llm -c 'two words'\nOther?")
    listed = terminal.run("%llm_chat list").out

    assert re.search(r"stats +2  First question\? +In \[4\]", listed)
    assert re.search(r"two words +1  Other\? +In \[5\]", listed)
    assert session.current().chats.names() == ["stats", "two words"]


def test_show_prints_every_turn_whole(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue("Line one.\n\n    code", "Two.")
    terminal.run("%%llm -c stats -s 'Be terse.'\nFirst\nquestion?")
    terminal.run("%%llm -c stats\nSecond?")
    shown = terminal.run("%llm_chat show stats")

    assert shown.value is None
    assert shown.out.strip() == (
        "[system]\nBe terse.\n\n"
        "── turn 1 · In [2]\n[user]\nFirst\nquestion?\n\n[assistant]\nLine one.\n\n    code\n\n"
        "── turn 2 · In [3]\n[user]\nSecond?\n\n[assistant]\nTwo."
    )


def test_show_needs_no_name_where_there_is_one_conversation(terminal: Terminal) -> None:
    terminal.run("%%llm -c stats\nFirst?")
    alone = terminal.run("%llm_chat show").out
    terminal.run("%%llm -c other\nFirst?")
    error = terminal.run("%llm_chat show").error

    assert "First?" in alone
    assert isinstance(error, PromptError)
    assert "There are: 'stats', 'other'" in str(error)


def test_show_of_an_unknown_name_says_which_there_are(terminal: Terminal) -> None:
    none = terminal.run("%llm_chat show stats").error
    terminal.run("%%llm -c stats\nFirst?")
    other = terminal.run("%llm_chat show stast").error

    assert "begin one: %%llm -c NAME" in str(none)
    assert "No conversation 'stast'" in str(other)
    assert "'stats'" in str(other)


def test_an_answer_cannot_drive_the_terminal_from_a_conversation(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue("A\x1b[31m red \x07word.")
    terminal.run("%%llm -c stats --quiet\nFirst\x1b?")
    shown = terminal.run("%llm_chat show").out + terminal.run("%llm_chat").out

    assert "red word." in shown
    assert not {"\x1b", "\x07"} & set(shown.replace("\x1b[0m", ""))


def test_reset_forgets_one_conversation_or_all(terminal: Terminal, server: ScriptedServer) -> None:
    for name in ("one", "two", "three"):
        terminal.run(f"%%llm -c {name}\nFirst?")
    one = terminal.run("%llm_chat reset one").out
    left = session.current().chats.names()
    rest = terminal.run("%llm_chat reset").out
    terminal.run("%%llm -c one\nAgain?")

    assert "'one' is forgotten, 1 turn." in one
    assert left == ["two", "three"]
    assert "'two' is forgotten" in rest
    assert "'three' is forgotten" in rest
    assert said(server.requests[-1]) == ["user: Again?"]


def test_reset_of_what_is_not_there_is_no_error(terminal: Terminal) -> None:
    """A notebook may begin with it, and be run in a new kernel."""
    ran = terminal.run("%llm_chat reset stats")

    assert ran.error is None
    assert "There was no conversation 'stats'." in ran.out


def test_a_terminal_has_no_cells_so_every_call_is_a_further_turn(terminal: Terminal) -> None:
    first = terminal.run("%%llm -c stats\nFirst?")
    again = terminal.run("%%llm -c stats\nFirst?")

    assert len(turns("stats")) == 2
    assert "replaces" not in first.out + again.out


# Cells of a notebook


class Notebook:
    """Somebody's notebook, whose front end names its cells as JupyterLab does."""

    def __init__(self, server: ScriptedServer, **environment: str) -> None:
        self.server = server
        self.kernel = Kernel(
            watched=True,
            environment={
                "OPENAI_BASE_URL": server.url,
                "OPENAI_API_KEY": KEY,
                "LLM_MAGIC_MODEL": "m",
                **environment,
            },
        )
        self.kernel.run("%load_ext llm_magic")
        self.kernel.run("import llm_magic; from llm_magic import session")

    def run(self, cell: str, code: str) -> Shown:
        """Runs the cell of this name."""
        return self.kernel.finish(self.start(cell, code))

    def start(self, cell: str, code: str) -> str:
        """Begins it; returns the message's id."""
        client = self.kernel.client
        content = {"code": code, "silent": False, "store_history": True}
        content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        message = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(message)
        identity: str = message["header"]["msg_id"]
        return identity

    def ask(self, cell: str, prompt: str, options: str = "-c stats") -> Shown:
        """Runs a cell of ``%%llm``; the answer is the prompt in capitals."""
        self.server.enqueue(prompt if prompt.startswith("{") else prompt.upper())
        return self.run(cell, f"%%llm {options}\n{prompt}")

    def loop(self, cell: str, *prompts: str) -> Shown:
        """Runs a cell of code that asks one after another."""
        self.server.enqueue(*(prompt.upper() for prompt in prompts))
        return self.run(cell, f"for prompt in {prompts}: llm_magic.ask(prompt, chat='stats')")

    def turns(self, name: str = "stats") -> str:
        """The answers of a conversation, in one line."""
        found = f"[turn.answer for turn in session.current().chats.all().get({name!r}, ())]"
        return " ".join(self.kernel.value(found))


def line(shown: Shown) -> str:
    """The saved form of a cell's answer, with its status line."""
    assert not shown.of("error"), shown.of("error")
    answers = [*shown.of("display_data"), *shown.of("update_display_data")]
    final: str = answers[-1]["data"]["text/html"]
    return final


@pytest.fixture(scope="module")
def shared_notebook(shared_server: ScriptedServer) -> Iterator[Notebook]:
    notebook = Notebook(shared_server)
    yield notebook
    notebook.kernel.stop()


@pytest.fixture
def notebook(shared_notebook: Notebook) -> Iterator[Notebook]:
    shared_notebook.server.reset()
    shared_notebook.kernel.run("%llm_chat reset")
    yield shared_notebook
    shared_notebook.kernel.run("%config LLMMagic.feedback = 1")


@pytest.mark.kernel
def test_a_cell_that_runs_again_replaces_its_turn(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.ask("B", "b")
    again = notebook.ask("B", "better")

    assert notebook.turns() == "A BETTER"
    assert "replaces turn 2 of &#x27;stats&#x27;" in line(again)
    assert "drops" not in line(again)
    assert said(notebook.server.requests[-1]) == ["user: a", "assistant: A", "user: better"]


@pytest.mark.kernel
def test_the_turns_after_it_go_and_the_cell_says_so(notebook: Notebook) -> None:
    for name in "abcde":
        notebook.ask(name.upper(), name)
    again = notebook.ask("B", "better")

    assert notebook.turns() == "A BETTER"
    assert "replaces turn 2 of &#x27;stats&#x27; and drops the 3 turns after it" in line(again)


@pytest.mark.kernel
def test_a_cell_whose_turn_was_dropped_appends_it_anew(notebook: Notebook) -> None:
    for name in "abc":
        notebook.ask(name.upper(), name)
    first = notebook.ask("A", "a2")
    second = notebook.ask("B", "b2")

    assert "and drops the 2 turns after it" in line(first)
    assert "replaces" not in line(second)
    assert notebook.turns() == "A2 B2"
    assert said(notebook.server.requests[-1])[0] == "user: a2"


@pytest.mark.kernel
def test_run_all_twice_gives_the_conversation_of_once(notebook: Notebook) -> None:
    for _ in range(2):
        notebook.ask("A", "a")
        notebook.ask("B", "b", "-c other")
        notebook.loop("L", "l1", "l2")
        notebook.ask("C", "c", "-c other")
        notebook.ask("D", "d")

    bodies = [each.body for each in notebook.server.requests]
    assert bodies[:6] == bodies[6:]
    assert notebook.turns() == "A L1 L2 D"
    assert notebook.turns("other") == "B C"


@pytest.mark.kernel
def test_several_asks_of_one_run_follow_each_other(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.loop("L", "l1", "l2", "l3")
    notebook.ask("B", "b")
    again = notebook.loop("L", "m1", "m2")

    assert notebook.turns() == "A M1 M2"
    assert said(notebook.server.requests[-1]) == [
        "user: a",
        "assistant: A",
        "user: m1",
        "assistant: M1",
        "user: m2",
    ]
    assert "replaces turns 2 to 4 of 'stats' and drops the turn after them." in again.text


@pytest.mark.kernel
def test_threads_of_one_run_follow_each_other(notebook: Notebook) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(lambda n: llm_magic.ask(str(n), chat='stats'), range(6)))"
    )
    for _ in range(2):
        notebook.run("T", code)

    found = "[turn.user['content'] for turn in session.current().chats.all()['stats']]"
    assert sorted(notebook.kernel.value(found)) == [str(n) for n in range(6)]


@pytest.mark.kernel
@pytest.mark.parametrize("fault", ["cut", "bad_key"])
def test_a_failed_call_leaves_the_turn_it_would_replace(fault: str, notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.ask("B", "b")
    notebook.server.enqueue(FAULTS[fault])
    failed = notebook.run("A", "%%llm -c stats\nother")
    after_failure = notebook.turns()
    notebook.ask("C", "c")

    assert failed.of("error")
    assert after_failure == "A B"
    assert notebook.turns() == "A B C"


@pytest.mark.kernel
def test_an_interrupted_call_leaves_the_turn_it_would_replace(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.server.enqueue(LONG)
    request = notebook.start("A", "%%llm -c stats\nother")
    notebook.server.wait_for_requests(2)
    notebook.kernel.manager.interrupt_kernel()
    stopped = notebook.kernel.finish(request)

    assert stopped.of("error")[0]["ename"] == "Interrupted"
    assert notebook.turns() == "A"


@pytest.mark.kernel
def test_a_dry_run_of_a_cell_shows_what_it_would_send_in_its_place(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.ask("B", "b")
    shown = notebook.run("B", "%%llm -c stats --dry-run\nother")

    report = shown.of("display_data")[0]["data"]["text/plain"]
    assert "[assistant]\nA\n\n[user]\nother" in report
    assert "user: b" not in report
    assert notebook.turns() == "A B"


@pytest.mark.kernel
def test_a_moved_cell_leaves_its_conversation(notebook: Notebook) -> None:
    for name in "abc":
        notebook.ask(name.upper(), name)
    moved = notebook.ask("B", "b", "-c other")

    assert notebook.turns() == "A"
    assert notebook.turns("other") == "B"
    assert "takes turn 2 out of &#x27;stats&#x27; and drops the turn after it" in line(moved)


@pytest.mark.kernel
def test_a_moved_cell_that_fails_stays(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.server.enqueue(FAULTS["cut"])
    notebook.run("A", "%%llm -c other\na")

    assert notebook.turns() == "A"
    assert notebook.turns("other") == ""


@pytest.mark.kernel
def test_a_cell_of_code_may_speak_in_several_conversations(notebook: Notebook) -> None:
    code = "for n in ('one', 'two'): llm_magic.ask('?', chat=n)"
    notebook.server.enqueue("1", "2", "3", FAULTS["bad_key"])
    notebook.run("L", code)
    notebook.run("L", code)

    assert notebook.turns("one") == "3"
    assert notebook.turns("two") == "2"


@pytest.mark.kernel
def test_where_no_status_line_is_shown_dropped_turns_are_warned_of(notebook: Notebook) -> None:
    for name in "abc":
        notebook.ask(name.upper(), name)
    quiet = notebook.ask("B", "b", "-c stats --quiet")
    notebook.kernel.run("%config LLMMagic.feedback = 0")
    hidden = notebook.ask("A", "a")

    assert "replaces turn 2 of 'stats' and drops the turn after it." in quiet.text
    assert "ChatWarning" in quiet.text
    assert "replaces turn 1 of 'stats' and drops the turn after it." in hidden.text
    assert "replaces" not in line(hidden)


@pytest.mark.kernel
def test_where_only_its_own_turn_goes_there_is_no_warning(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    again = notebook.ask("A", "a", "-c stats --quiet")

    assert again.of("stream") == []


@pytest.mark.kernel
def test_a_warning_is_not_given_where_the_status_line_says_it(notebook: Notebook) -> None:
    notebook.ask("A", "a")
    notebook.ask("B", "b")

    assert notebook.ask("A", "a").of("stream") == []


@pytest.mark.kernel
def test_a_replaced_first_turn_takes_its_system_message_along(notebook: Notebook) -> None:
    notebook.ask("A", "a", "-c stats -s Old.")
    notebook.ask("A", "a", "-c stats")

    assert said(notebook.server.requests[-1]) == ["user: a"]


@pytest.mark.kernel
def test_a_front_end_that_names_no_cell_appends(notebook: Notebook) -> None:
    notebook.server.enqueue("A", "B")
    for _ in range(2):
        notebook.kernel.run("%%llm -c stats\na")

    assert notebook.turns() == "A B"


@pytest.mark.kernel
def test_a_name_is_text_in_the_notebook(notebook: Notebook) -> None:
    notebook.ask("A", "a", "-c '<img src=x>'")
    again = line(notebook.ask("A", "<b>", "-c '<img src=x>'"))
    table = notebook.kernel.run("%llm_chat").of("execute_result")[0]["data"]["text/html"]
    shown = notebook.kernel.run("%llm_chat show").of("display_data")[0]["data"]["text/html"]

    assert "replaces turn 1 of" in again
    assert "<img" not in again + table + shown
    assert "&lt;b&gt;" in shown


@pytest.mark.kernel
def test_restart_and_run_all_rebuilds_the_conversation_without_a_request(
    shared_server: ScriptedServer, tmp_path: Path
) -> None:
    shared_server.reset()
    stored = {"LLM_MAGIC_CACHE_DIR": str(tmp_path / "cache"), "LLM_MAGIC_CACHE_SIZE": "1 GB"}
    built = []
    for _ in range(2):
        notebook = Notebook(shared_server, **stored)
        try:
            notebook.ask("A", "a", "-c stats -s 'Be terse.'")
            notebook.loop("L", "l1", "l2")
            notebook.ask("S", '{"result": 7}', "-c stats --schema int")
            notebook.ask("D", "d")
            built.append(notebook.turns())
        finally:
            notebook.kernel.stop()

    assert len(shared_server.requests) == 5
    assert built[0] == built[1] == 'A L1 L2 {"result": 7} D'
