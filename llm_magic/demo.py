"""The quickstart without a key: a demo model with scripted answers, and notebooks in a terminal.

The demo model is no language model. It knows the prompts of the example notebooks, answers them
with fixed texts at the speed of a real one, and says so.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_magic.session import current
from llm_magic.settings import OPENAI_URL, api_key
from llm_magic.testing import Reply, ScriptedServer

MODEL, LARGE_MODEL = "demo-model", "demo-model-large"
URL = "http://demo.localhost/v1"
# OpenAI's of gpt-5-mini and gpt-5, in USD per million tokens, so that sums mean something.
PRICES = {MODEL: {"input": 0.25, "output": 2}, LARGE_MODEL: {"input": 1.25, "output": 10}}
TOKENS_PER_SECOND = 60.0
SECONDS_A_ROW = 0.3

_ANSWERS = {
    "p-value": """\
A **p-value** is the probability of data at least as extreme as yours *if the null hypothesis
were true*:

$$p = P(T \\ge t_{\\text{obs}} \\mid H_0)$$

It is not the probability that the null hypothesis is true.
""",
    "unusual": """\
Two things stand out:

| region | what is unusual |
|---|---|
| South | 61 returns for 405 orders, **15 %** where the others have 3 to 5 % |
| West | the number of returns is missing |

```python
orders.assign(rate=orders.returned / orders.orders).sort_values("rate")
```
""",
    "one word": "returned",
    "one review": """\
{"product": "kettle", "rating": 2, "mood": "disappointed", "complaints": ["lid leaks", "noisy"]}
""",
    "every review": """\
{"result": [
  {"product": "kettle", "rating": 2, "mood": "disappointed", "complaints": ["lid leaks", "noisy"]},
  {"product": "kettle", "rating": 5, "mood": "delighted", "complaints": []},
  {"product": "toaster", "rating": 3, "mood": "neutral", "complaints": ["crumbs"]},
  {"product": "toaster", "rating": 1, "mood": "disappointed", "complaints": ["burns", "no timer"]},
  {"product": "blender", "rating": 4, "mood": "delighted", "complaints": ["heavy"]},
  {"product": "blender", "rating": 5, "mood": "delighted", "complaints": []}
]}
""",
    "In which one": '{"result": "blender"}',
    "ten out of ten": '{"product": "blender", "rating": 10, "mood": "delighted", "complaints": []}',
    "Who should I call": """\
Call **South** first: 61 of its 405 orders came back, three times as many as elsewhere.
""",
    "what do I ask them": """\
Ask South three things:

1. Which products come back, and since when?
2. Did the supplier or the packaging change?
3. What do the customers write on the form?
""",
    "in this chart": """\
Four bars of returned orders. **South** stands out with about 60; the others lie between 10 and 20.
""",
    "Write a function": """\
This one has no loop, and no surprise when nothing was ordered:

```python
def rate(returned: int, orders: int) -> float:
    return returned / orders if orders else 0.0


rate(61, 405)
```
""",
    "A haiku about returns": """\
Boxes go out, light.
Some come home again, heavy
with what was not said.
""",
    "A limerick about returns": """\
A shop that sold kettles by post
had returns that it feared the most;
    when it asked the South, "Why?",
    there came the reply:
"The lids leak. We use them for toast."
""",
    "KeyError": """\
The dictionary spells its keys in English, and the cell asks for `"Sued"`.

```python
returned = {"North": 13, "South": 61, "East": 19, "West": 15}
returned["South"] / 405
```
""",
    "does not fit": '{"product": "blender", "rating": 5, "mood": "delighted", "complaints": []}',
}
# Of the rows of a table: topic, mood and stars by words of the review.
_REVIEWS = {
    "Boils in two minutes": ("product", "positive", 5),
    "burns one side": ("product", "negative", 1),
    "A week late": ("delivery", "mixed", 3),
    "Great!": ("product", "positive", 5),
    "Forty euros": ("price", "negative", 1),
    "waited for an hour": ("service", "mixed", 3),
    "The new filter fits": ("service", "positive", 5),
    "does what it should": ("product", "positive", 4),
    "The crumbs are a feature": ("product", "mixed", 3),
    "smoothies on Tuesday": ("delivery", "positive", 5),
    "Third message": ("service", "negative", 1),
    "Cheaper elsewhere": ("price", "mixed", 3),
    "before the first tea": ("product", "positive", 4),
    "still going after a year": ("price", "positive", 5),
    "over the fence": ("delivery", "negative", 2),
}
# Where the large model is of another opinion: it hears irony.
_LARGE_REVIEWS = {
    "Forty euros": ("product", "negative", 1),
    "does what it should": ("product", "mixed", 3),
    "The crumbs are a feature": ("product", "negative", 2),
    "before the first tea": ("product", "negative", 1),
}
_LINES = {
    "our kettle": "Tea before you have found a cup.",
    "our toaster": "Both sides. Every time.",
    "our blender": "Soup, smoothie, silence: pick two.",
    "our milk frother": "Clouds, on demand.",
    "our waffle iron": "Sunday, any day of the week.",
    "our coffee grinder": "Loud once, good all morning.",
}
_LETTERS = {
    "order 1004 again": """\
{"order": 1004, "items": [
  {"product": "toaster", "quantity": 1, "wants": "refund"},
  {"product": "glass", "quantity": 2, "wants": "replacement"}
]}
""",
    "my money back": """\
{"order": 1013, "items": [{"product": "milk frother", "quantity": 1, "wants": "refund"}]}
""",
    "what does it cost": """\
{"order": null, "items": [{"product": "filter", "quantity": 3, "wants": "information"}]}
""",
    "nothing to complain about": '{"order": null, "items": []}',
}
_UNKNOWN = (
    "I am the demo model: a script, not a language model, and this prompt is not in it. "
    "Set OPENAI_API_KEY or OPENAI_BASE_URL and run the notebook again to ask a real one."
)
_server: ScriptedServer | None = None


def use_demo_model() -> None:
    """Answers from the demo model, unless a key or a server is set.

    With ``OPENAI_API_KEY`` or ``OPENAI_BASE_URL`` (or their ``LLM_MAGIC_`` forms, or a setting)
    the notebook runs live and this only says so. Where ``mode`` is ``replay``, its answers come
    from a cassette and no server is started.
    """
    global _server
    session = current()
    settings = session.settings
    settings.read_environment()
    replays = settings.mode == "replay"
    if not (replays or settings.base_url == URL) and (api_key() or settings.base_url != OPENAI_URL):
        print("Live: the answers come from a real server.")
        return
    if not replays and _server is None:
        models = {MODEL: _rows(_REVIEWS), LARGE_MODEL: _rows(_REVIEWS | _LARGE_REVIEWS)}
        _server = ScriptedServer(_answers(), default=_paced(_UNKNOWN), models=models)
        _server.start()
    if _server:
        # By a name of its own: the port is another one in each kernel, the answers are the same.
        session.routes[URL] = _server.url
    settings.base_url, settings.model = URL, MODEL
    settings.prices = {**settings.prices, **PRICES}
    print("No key: the answers come from the demo model, a script. Its prices are gpt-5-mini's.")


def _answers() -> dict[str, str | Reply]:
    short = (_LETTERS | _LINES).items()
    rows = {words: Reply(answer, delay=SECONDS_A_ROW) for words, answer in short}
    return {**{words: _paced(answer) for words, answer in _ANSWERS.items()}, **rows}


def _rows(reviews: Mapping[str, tuple[str, str, int]]) -> dict[str, str | Reply]:
    names = ("topic", "mood", "stars")
    return {
        words: Reply(json.dumps(dict(zip(names, said, strict=True))), delay=SECONDS_A_ROW)
        for words, said in reviews.items()
    }


def _paced(text: str) -> Reply:
    return Reply(text, first_token_delay=0.3, tokens_per_second=TOKENS_PER_SECOND)


def run_in_terminal(path: Path) -> bool:
    """Runs a notebook's cells in a terminal IPython, showing each as if it were typed.

    Args:
        path: The ``.ipynb`` file; its folder becomes the working folder.

    Returns:
        Whether every cell ran without an error.
    """
    from IPython.terminal.interactiveshell import TerminalInteractiveShell

    shell: Any = TerminalInteractiveShell.instance()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    # As Jupyter does: what a notebook names is beside it.
    os.chdir(path.parent)
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            print(f"\n{source}\n" if not source.startswith("#") else f"\n{source}")
            continue
        prompt = f"In [{shell.execution_count}]: "
        print(prompt + source.replace("\n", "\n" + "   ...: ".rjust(len(prompt))))
        if not shell.run_cell(source, store_history=True).success:
            return False
        print()
    return True


if __name__ == "__main__":
    os.environ.setdefault("IPYTHONDIR", str(Path(".venv").resolve() / "ipython"))
    notebooks = [Path(each).resolve() for each in sys.argv[1:]]
    sys.exit(not all(run_in_terminal(each) for each in notebooks))
