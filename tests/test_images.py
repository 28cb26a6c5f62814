"""Images that are attached: ``-i`` on the line, ``images`` in Python, and what a dry run shows."""

import base64
import builtins
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import images
from llm_magic.errors import PromptError
from llm_magic.images import LARGEST_IMAGE, THUMBNAIL, image_files, image_of, thumbnail
from llm_magic.testing import ScriptedServer
from llm_magic.values import ImageValue, raster_type, to_prompt
from tests.conftest import KEY, Kernel, Terminal

Image = pytest.importorskip("PIL.Image")

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


def encoded(form: str = "PNG", size: tuple[int, int] = (4, 3), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def figure() -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([1, 2, 3])
    return drawn


def sent(server: ScriptedServer) -> list[bytes]:
    """The images of the last request."""
    content = server.requests[-1].body["messages"][-1]["content"]
    found = [image_of(part) for part in content]
    return [picture for picture in found if picture is not None]


def refused(terminal: Terminal, server: ScriptedServer, word: str) -> str:
    """What is said of an image that is not attached; nothing may have been sent."""
    ran = terminal.run(f"%%llm -m m -i {word}\nWhat is this?")
    assert type(ran.error) is PromptError
    assert "nothing was sent" in str(ran.error)
    assert len(ran.error._render_traceback_()) <= 3
    assert server.requests == []
    return str(ran.error)


@pytest.mark.parametrize("form", FORMATS)
def test_the_type_is_told_by_the_content(form: str) -> None:
    data = encoded(form)

    assert raster_type(data) == FORMATS[form]
    assert ImageValue(data).part()["image_url"]["url"].startswith(f"data:{FORMATS[form]};base64,")


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"RIFF1234WAVE", b"BM", b"\xff\xd8", b"%PDF-1.7"])
def test_nothing_else_gets_into_a_data_uri(data: bytes) -> None:
    assert raster_type(data) is None
    with pytest.raises(ValueError, match="no PNG"):
        ImageValue(data).part()


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_attached_as_it_is_whatever_it_is_called(
    form: str, terminal: Terminal, server: ScriptedServer
) -> None:
    Path("picture.dat").write_bytes(encoded(form))

    terminal.run("%%llm -m m -i picture.dat\nWhat is this?")

    words, picture = server.requests[0].body["messages"][0]["content"]
    assert words == {"type": "text", "text": "What is this?"}
    assert picture["image_url"]["url"].startswith(f"data:{FORMATS[form]};")
    assert sent(server) == [encoded(form)]


def test_the_line_magic_and_the_long_name(terminal: Terminal, server: ScriptedServer) -> None:
    Path("plot.png").write_bytes(encoded())

    terminal.run("%llm -m m --image=plot.png What is this?")

    assert sent(server) == [encoded()]


def test_several_keep_their_order(terminal: Terminal, server: ScriptedServer) -> None:
    Path("one.png").write_bytes(encoded(colour="red"))
    Path("two.png").write_bytes(encoded(colour="blue"))

    terminal.run("%%llm -m m -i two.png -i one.png\nWhich is red?")

    assert sent(server) == [encoded(colour="blue"), encoded(colour="red")]


def test_a_quoted_path_in_the_home_folder(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my plots").mkdir()
    (tmp_path / "my plots" / "a b.png").write_bytes(encoded())

    terminal.run('%%llm -m m -i "~/my plots/a b.png"\nWhat is this?')

    assert sent(server) == [encoded()]


def test_a_name_wins_over_a_file(terminal: Terminal, server: ScriptedServer) -> None:
    Path("photo").write_bytes(encoded(colour="red"))
    terminal["photo"] = Image.new("RGB", (2, 2), "blue")

    terminal.run("%%llm -m m -i photo\nWhat is this?")

    assert sent(server) == [to_prompt(terminal["photo"])]


def values() -> dict[str, Any]:
    Path("there.png").write_bytes(encoded())
    drawn = figure()
    return {
        "figure": drawn,
        "axes": drawn.axes[0],
        "photo": Image.new("RGB", (4, 3), "red"),
        "path": Path("there.png"),
        "text": "there.png",
        "data": encoded(),
        "changing": bytearray(encoded()),
        "view": memoryview(encoded()),
        "webp": encoded("WEBP"),
    }


@pytest.mark.parametrize("name", ["figure", "axes", "photo", "path", "text", "data", "changing"])
def test_what_a_name_may_hold(name: str, terminal: Terminal, server: ScriptedServer) -> None:
    terminal[name] = values()[name]

    terminal.run(f"%%llm -m m -i {name}\nWhat is this?")
    (picture,) = sent(server)

    assert Image.open(io.BytesIO(picture)).size > (3, 2)


@pytest.mark.usefixtures("provider")
def test_python_takes_the_same(server: ScriptedServer) -> None:
    given = values()

    llm_magic.ask("What are these?", images=list(given.values()))

    assert len(sent(server)) == len(given)
    assert sent(server)[0] == to_prompt(given["figure"])
    assert sent(server)[-1] == given["webp"]


def test_axes_give_their_figure() -> None:
    drawn = figure()

    assert images.image(drawn.axes[0]) == images.image(drawn)


def test_axes_of_a_figure_in_a_figure_give_the_whole() -> None:
    from matplotlib.figure import Figure

    whole = Figure(figsize=(1, 1))
    inner = whole.subfigures(1, 2)[0].subplots()

    assert images.image(inner) == images.image(whole)


def test_pyplot_is_its_current_figure(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("import matplotlib; matplotlib.use('agg')\nfrom matplotlib import pyplot as plt")
    terminal.run("plt.close('all'); plt.figure(figsize=(1, 1)); plt.plot([1, 2])")
    try:
        terminal.run("%%llm -m m -i plt\nWhat is this?")
        assert sent(server) == [to_prompt(terminal["plt"].gcf())]
    finally:
        terminal.run("plt.close('all')")


def test_pyplot_without_a_figure_says_how_to_keep_one(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("import matplotlib; matplotlib.use('agg')\nfrom matplotlib import pyplot as plt")
    terminal.run("plt.close('all')")

    assert "fig = plt.gcf()" in refused(terminal, server, "plt")


def test_images_of_the_template_come_first(terminal: Terminal, server: ScriptedServer) -> None:
    Path("last.png").write_bytes(encoded())
    terminal["photo"] = Image.new("RGB", (2, 2), "blue")

    terminal.run("%%llm -m m -i last.png\nLike {{ photo }} or not?")

    content = server.requests[0].body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url"]
    assert sent(server)[1] == encoded()


@pytest.mark.usefixtures("keeping")
def test_the_same_picture_is_the_same_question(terminal: Terminal, server: ScriptedServer) -> None:
    Path("one.png").write_bytes(encoded())
    Path("copy.png").write_bytes(encoded())

    first = terminal.run("%llm -m m -i one.png What is this?").value
    again = terminal.run("%llm -m m -i copy.png What is this?").value
    Path("one.png").write_bytes(encoded(colour="blue"))
    other = terminal.run("%llm -m m -i one.png What is this?").value

    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert len(server.requests) == 2


def test_a_missing_file_names_the_nearest(terminal: Terminal, server: ScriptedServer) -> None:
    Path("plots").mkdir()
    Path("plots/sales.png").write_bytes(encoded())

    said = refused(terminal, server, "plots/sale.png")

    assert "'plots/sale.png'" in said
    assert "Did you mean plots/sales.png?" in said


def test_a_missing_name_names_the_nearest_picture(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal["figure_1"] = figure()
    terminal["figure_2x"] = 1

    assert "Did you mean figure_1?" in refused(terminal, server, "figure_2")


def test_nothing_near_says_what_can_be_attached(terminal: Terminal, server: ScriptedServer) -> None:
    assert "PNG, JPEG, GIF or WebP" in refused(terminal, server, "zebra.png")


def test_a_folder_is_refused_with_an_image_in_it(
    terminal: Terminal, server: ScriptedServer
) -> None:
    Path("plots").mkdir()
    Path("plots/sales.png").write_bytes(encoded())

    said = refused(terminal, server, "plots")

    assert "is a folder" in said
    assert "plots/sales.png" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(terminal: Terminal, server: ScriptedServer) -> None:
    os.mkfifo("pipe.png")

    assert "is no file" in refused(terminal, server, "pipe.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read(terminal: Terminal, server: ScriptedServer) -> None:
    Path("mine.png").write_bytes(encoded())
    Path("mine.png").chmod(0)

    assert "cannot be read" in refused(terminal, server, "mine.png")


def test_a_path_that_no_system_has(terminal: Terminal, server: ScriptedServer) -> None:
    assert "'~nobody_here/plot.png'" in refused(terminal, server, "~nobody_here/plot.png")
    assert "cannot be read" in refused(terminal, server, "x" * 5000 + ".png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"region,sales\nNorth,1\n", "is no PNG, JPEG, GIF or WebP"),
        (b'<?xml version="1.0"?>\n<svg onload="alert(1)"/>', "is an SVG drawing"),
    ],
)
def test_a_file_that_is_no_image(
    content: bytes, said: str, terminal: Terminal, server: ScriptedServer
) -> None:
    """Its name does not help it."""
    Path("plot.png").write_bytes(content)

    assert f"plot.png {said}" in refused(terminal, server, "plot.png")


def test_a_file_that_is_too_large(terminal: Terminal, server: ScriptedServer) -> None:
    with Path("huge.png").open("wb") as file:
        file.write(encoded())
        file.truncate(LARGEST_IMAGE + 100_000)

    said = refused(terminal, server, "huge.png")

    assert "20.1 MB" in said
    assert "20.0 MB" in said
    assert "thumbnail" in said


def test_bytes_that_are_too_large() -> None:
    with pytest.raises(PromptError, match=r"The bytes has 20.0 MB"):
        images.image(encoded() + bytes(LARGEST_IMAGE))


def test_images_that_are_too_large_together(terminal: Terminal, server: ScriptedServer) -> None:
    for name in ("a", "b", "c"):
        with Path(f"{name}.png").open("wb") as file:
            file.write(encoded())
            file.truncate(LARGEST_IMAGE)

    said = refused(terminal, server, "a.png -i b.png -i c.png")

    assert "The 3 images have 60.0 MB" in said


@pytest.mark.parametrize("value", [3, [1, 2], None, len, {"a": 1}, object()])
def test_a_value_that_is_no_image(value: Any, terminal: Terminal, server: ScriptedServer) -> None:
    terminal["thing"] = value

    assert f"thing is no image, a {type(value).__name__};" in refused(terminal, server, "thing")


@pytest.mark.usefixtures("provider")
def test_python_is_refused_the_same(server: ScriptedServer) -> None:
    for value, said in ((3, "The int is no image"), ("cat.png", "There is no file 'cat.png'")):
        with pytest.raises(PromptError, match=said):
            llm_magic.ask("What is this?", images=[value])
    for value in ("cat.png", Path("cat.png"), encoded()):
        with pytest.raises(PromptError, match="images takes a list"):
            llm_magic.ask("What is this?", images=value)
    assert server.requests == []


def test_image_bytes_in_a_template_are_told_to_be_attached(terminal: Terminal) -> None:
    terminal["photo"] = encoded()

    ran = terminal.run("%%llm -m m\n{{ photo }}")

    assert "%%llm -i NAME" in str(ran.error)


def test_files_for_completion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("plots").mkdir()
    for name in ("a.png", "B.JPEG", "c.txt", ".hidden.png", "plots/d.webp"):
        Path(name).touch()

    assert image_files("") == ["B.JPEG", "a.png", "plots/"]
    assert image_files("plots/") == ["plots/d.webp"]
    assert image_files("~/a") == ["~/a.png"]
    assert image_files(".h") == [".hidden.png"]
    assert image_files("nowhere/") == []


# What a dry run shows.


def test_a_dry_run_has_marks_and_sizes_in_place_of_bytes(
    terminal: Terminal, server: ScriptedServer
) -> None:
    data = encoded(size=(300, 300))
    Path("plot.png").write_bytes(data)

    shown = terminal.run("%%llm --dry-run -m m -i plot.png\nWhat is this?").out

    assert f"What is this?[image_url: image/png, {len(data)} B]" in shown
    assert '"url": "data:image/png;base64,… (' in shown
    assert base64.b64encode(data).decode()[:60] not in shown
    assert server.requests == []


def test_a_thumbnail_is_small_and_a_small_image_stays() -> None:
    wide, high = ImageValue(encoded(size=(3000, 10))), ImageValue(encoded(size=(100, 900)))
    small = ImageValue(encoded(size=THUMBNAIL))

    assert Image.open(io.BytesIO(thumbnail(wide))).width == THUMBNAIL[0]
    assert Image.open(io.BytesIO(thumbnail(high))).height == THUMBNAIL[1]
    assert thumbnail(small) is small


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "RGBA"])
def test_a_thumbnail_of_any_kind_of_pixels(mode: str) -> None:
    out = io.BytesIO()
    form = "TIFF" if mode == "CMYK" else "PNG"
    picture = Image.new(mode, (50, 900))
    picture.save(out, "JPEG" if mode == "CMYK" else form)

    assert raster_type(thumbnail(ImageValue(out.getvalue()))) == "image/png"


def test_a_damaged_image_is_its_own_thumbnail() -> None:
    damaged = ImageValue(encoded(size=(900, 900))[:60])

    assert thumbnail(damaged) is damaged


def test_without_pil_the_image_is_its_own_thumbnail(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ImageValue(encoded(size=(900, 900)))
    real = builtins.__import__

    def without_pil(name: str, *rest: Any, **options: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_pil)

    assert thumbnail(whole) is whole


def url_of(kind: str, data: bytes) -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "data:image/png;base64,AAAA"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        url_of("image/svg+xml", b"<svg onload='alert(1)'/>"),
        url_of("image/png", b"<svg onload='alert(1)'/>"),
        url_of("text/html", b"<script>alert(1)</script>"),
    ],
)
def test_only_pixels_are_shown(part: dict[str, Any]) -> None:
    """By what the bytes are, not by what the part calls them."""
    assert image_of(part) is None


def test_a_wrong_label_does_not_get_into_the_page() -> None:
    found = image_of(url_of('image/svg+xml"><script>', encoded()))

    assert found is not None
    assert found.url().startswith("data:image/png;base64,")


@pytest.mark.kernel
def test_a_notebook_shows_them_small_beside_the_prompt(server: ScriptedServer) -> None:
    Path("plot.png").write_bytes(encoded(size=(2000, 1000)))
    Path("photo.jpg").write_bytes(encoded("JPEG"))
    kernel = Kernel(
        watched=True, environment={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
    )
    try:
        kernel.run("%load_ext llm_magic")
        shown = kernel.run("%%llm --dry-run -m m -i plot.png -i photo.jpg\nCompare <b>them</b>.")
    finally:
        kernel.stop()

    (display,) = shown.of("display_data")
    page = display["data"]["text/html"]
    first, second = (
        base64.b64decode(data) for data in re.findall(r'src="data:image/\w+;base64,([^"]*)"', page)
    )
    assert Image.open(io.BytesIO(first)).size == (512, 256)
    assert second == encoded("JPEG")
    assert "&lt;b&gt;them" in page
    assert "image 1: image/png" in page
    assert "data:image/png;base64,…" in display["data"]["text/plain"]
    assert server.requests == []
