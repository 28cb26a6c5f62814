"""The line of %llm and %%llm, read with the magic's own parser."""

import argparse
import json
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from llm_magic.errors import PromptError
from llm_magic.magics import LLMMagics
from llm_magic.options import Command, params, parse

PARSER = LLMMagics.llm.parser


def read(line: str) -> Command:
    return parse(PARSER, line)


def chosen(line: str) -> dict[str, Any]:
    """The options of a line that differ from those of an empty one."""
    unset = vars(read("").options)
    return {key: value for key, value in vars(read(line).options).items() if value != unset[key]}


PROMPTS = [
    """what's "this" about""",
    "don't split 'me  or   my   spaces'",
    "1 << 2",
    "5 - 3 --model",
    "what does -m do?",
    "C:\\new\\table {{ x }} $HOME `ls` !pwd {y}",
    "why -- really?",
    "'quoted' \"twice\"",
    '"',
    "(a) first #2",
    "<< what is this?",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", ["", "-m gpt ", "--raw --quiet ", 'answer << -s "Be brief." '])
def test_the_prompt_stays_as_it_was_typed(prompt: str, options: str) -> None:
    assert read(f"  {options}{prompt}  ").rest == prompt


@given(st.text())
@example("x ")
@example(".5 + 3")
@example("日本語 <")
def test_any_prompt_comes_back(prompt: str) -> None:
    assume(not prompt.strip().startswith("-"))
    assume("<<" not in prompt)

    assert read(prompt).rest == prompt.strip()
    assert read(f"-m gpt {prompt}").rest == prompt.strip()
    assert chosen(prompt) == {}


@given(st.text())
def test_behind_two_dashes_everything_is_the_prompt(prompt: str) -> None:
    assert read(f"-- {prompt}").rest == prompt.strip()
    assert read(f"-m gpt -- {prompt}").rest == prompt.strip()


@pytest.mark.parametrize("prompt", ["-5 + 3", "-5", "- a list", "-.5", "--- a rule", "-- -m x"])
def test_a_dash_that_begins_no_option_is_text(prompt: str) -> None:
    assert read(prompt).rest == prompt.removeprefix("-- ")
    assert read(f"-m gpt {prompt}").rest == prompt.removeprefix("-- ")


def test_two_dashes_at_the_end() -> None:
    assert read("--raw --").rest == ""
    assert read("--").rest == ""


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("-m gpt-5-mini", {"model": "gpt-5-mini"}),
        ("--model=gpt-5-mini", {"model": "gpt-5-mini"}),
        ("--model gpt-5-mini", {"model": "gpt-5-mini"}),
        ("-m=gpt", {"model": "gpt"}),
        ("--model   spaced", {"model": "spaced"}),
        ("\t--raw\t--quiet", {"raw": True, "quiet": True}),
        ("-m llama3.2:3b -m hf.co/a/b@main", {"model": "hf.co/a/b@main"}),
        ('-s "You are terse."', {"system": "You are terse."}),
        ("-s 'You are \"terse\".'", {"system": 'You are "terse".'}),
        (r'-s "say \"yes\" or \\"', {"system": 'say "yes" or \\'}),
        (r"-s 'don\'t'", {"system": "don't"}),
        ("-s don't", {"system": "don't"}),
        ('-s ""', {"system": ""}),
        ('--system="two words"', {"system": "two words"}),
        ("--system='-m is text'", {"system": "-m is text"}),
        ("-t 0.5 --seed 7", {"temperature": 0.5, "seed": 7}),
        ("-t -1", {"temperature": -1.0}),
        ("-t=-1.5", {"temperature": -1.5}),
        ("--seed -3", {"seed": -3}),
        ("--seed=-3", {"seed": -3}),
        ("-s -m", {"system": "-m"}),
        ("--system --raw", {"system": "--raw"}),
        ("--effort high", {"effort": "high"}),
        ("--dry-run --no-stream", {"dry_run": True, "no_stream": True}),
        ("-o answer", {"out": "answer"}),
        ("answer <<", {"out": "answer"}),
        ("answer << -m gpt", {"out": "answer", "model": "gpt"}),
        ("-m gpt answer <<", {"out": "answer", "model": "gpt"}),
        ("-m gpt answer << --raw", {"out": "answer", "model": "gpt", "raw": True}),
        ("answer<< --raw", {"out": "answer", "raw": True}),
        ("größe_2 <<", {"out": "größe_2"}),
        ("_x  <<  ", {"out": "_x"}),
    ],
)
def test_options(line: str, options: dict[str, Any]) -> None:
    assert chosen(line) == options
    assert read(line).rest == ""
    assert read(f"{line} Why?").rest == "Why?"
    assert chosen(f"{line} Why?") == options


@pytest.mark.parametrize("line", ["2x << y", "a.b << c", "a <<b", "x << y << z"])
def test_only_a_name_and_a_space_make_a_target(line: str) -> None:
    found = read(line)

    assert found.options.out == ("y" if line.startswith("x") else None)
    assert found.rest == ("z" if line.startswith("x") else line)


@given(
    st.sampled_from(["-s", "--system", "--model"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])),
    st.sampled_from("\"'"),
)
def test_a_quoted_value_comes_back(option: str, value: str, quote: str) -> None:
    quoted = value.replace("\\", "\\\\").replace(quote, f"\\{quote}")

    found = read(f"{option} {quote}{quoted}{quote} Why?")

    assert getattr(found.options, "model" if option == "--model" else "system") == value
    assert found.rest == "Why?"


@pytest.mark.parametrize(
    ("line", "says", "fix"),
    [
        ("--modle x", "There is no option --modle", "Did you mean --model?"),
        ("--max-token 5", "There is no option --max-token", "Did you mean --max-tokens?"),
        ("--mod x", "There is no option --mod", "--model"),
        ("--dryrun", "There is no option --dryrun", "Did you mean --dry-run?"),
        ("-x why", "There is no option -x", "%llm -- -x"),
        ("--zzzzzz=4", "There is no option --zzzzzz", "%llm -- --zzzzzz"),
        ("-mgpt hello", "There is no option -mgpt", "%%llm?"),
        ("--max-tokens many", "max-tokens", "%%llm?"),
        ("--max-tokens 5.5", "max-tokens", "%%llm?"),
        ("-t warm", "temperature", "%%llm?"),
        ("--seed ''", "seed", "%%llm?"),
        ("--effort huge", "huge", "%%llm?"),
        ("-m", "-m needs a value", "%%llm?"),
        ("--model=", "--model needs a value", "%%llm?"),
        ("-t -- 1", "-t -- has no value", "%%llm?"),
        ("--param='--'", "--param -- has no value", "%%llm?"),
        ("--raw --param  ", "--param needs a value", "%%llm?"),
    ],
)
def test_a_wrong_option_is_named(line: str, says: str, fix: str) -> None:
    with pytest.raises(PromptError) as caught:
        read(line)

    assert says in str(caught.value)
    assert "nothing was sent" in str(caught.value)
    assert fix in caught.value.fix
    assert 1 <= len(caught.value._render_traceback_()) <= 3


def test_a_flag_takes_no_value() -> None:
    with pytest.raises(PromptError, match="--raw"):
        read("--raw=yes")


def given_params(line: str) -> dict[str, Any]:
    return params(read(line).options.param)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        ("--param top_p=0.9", {"top_p": 0.9}),
        ("--param=top_p=0.9", {"top_p": 0.9}),
        ("--param logprobs=true --param n=1", {"logprobs": True, "n": 1}),
        ("--param n=1 --param n=2", {"n": 2}),
        ("--param user=ada", {"user": "ada"}),
        ("--param tier=org/x-1.5:free", {"tier": "org/x-1.5:free"}),
        ("--param user='\"two words\"'", {"user": "two words"}),
        ('--param stop=\'["a b", "c"]\'', {"stop": ["a b", "c"]}),
        ('--param \'stop=["a b", "c"]\'', {"stop": ["a b", "c"]}),
        ('--param stop=["a","b"]', {"stop": ["a", "b"]}),
        ('--param user="ada"', {"user": "ada"}),
        ('--param user="two words"', {"user": "two words"}),
        (
            """--param response_format='{"type": "json_schema", "a": {"b": [1, null]}}'""",
            {"response_format": {"type": "json_schema", "a": {"b": [1, None]}}},
        ),
        (
            """--param 'response_format={"type": "json_object"}'""",
            {"response_format": {"type": "json_object"}},
        ),
        ("--param seed=-4", {"seed": -4}),
        ("--param store=null", {"store": None}),
        ("--param x=a=b", None),
    ],
)
def test_params(line: str, fields: dict[str, Any] | None) -> None:
    if fields is None:
        with pytest.raises(PromptError):
            given_params(line)
        return
    assert given_params(line) == fields
    assert read(f"{line} Why?").rest == "Why?"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
)
def test_any_json_in_single_quotes_comes_back(value: Any) -> None:
    text = json.dumps(value)
    assume("'" not in text)
    assume("\\" not in text)

    assert given_params(f"--param 'field={text}'") == {"field": value}
    assert given_params(f"--param field='{text}'") == {"field": value}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("top_p", "has no value"),
        ("=0.9", "has no value"),
        (" =0.9", "has no value"),
        ("stop=[1,", "is no JSON"),
        ("stop={a: 1}", "is no JSON"),
        ("user=", "is no JSON"),
        ("user=two words", "is no JSON"),
    ],
)
def test_a_param_that_is_none(pair: str, says: str) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        params([pair])

    assert "nothing was sent" in str(caught.value)
    assert "--param" in caught.value.fix
    assert 1 <= len(caught.value._render_traceback_()) <= 3


def test_the_fix_of_a_param_works() -> None:
    with pytest.raises(PromptError) as caught:
        params(["user=two words"])

    assert given_params(caught.value.fix.partition(": ")[2]) == {"user": "two words"}


def test_the_parser_knows_every_option_once() -> None:
    assert isinstance(PARSER, argparse.ArgumentParser)
    assert {"-m", "--model", "--param", "--dry-run"} <= PARSER._option_string_actions.keys()
