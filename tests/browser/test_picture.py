"""The README's picture is one that its script takes."""

import struct
from pathlib import Path

import pytest
from playwright.sync_api import Playwright

from tests.browser.picture import PICTURE, take
from tests.browser.site import Site

pytestmark = pytest.mark.browser
MOST_BYTES = 150_000


def size(picture: Path) -> tuple[int, int]:
    """Width and height, from the head of a PNG."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize("front_end", ["lab"], indirect=True, scope="package")
def test_the_script_takes_the_picture_of_the_readme(
    playwright: Playwright, site: Site, tmp_path: Path
) -> None:
    """As wide, and as high but for the fonts of the machine."""
    take(playwright, site, tmp_path / "cell.png")

    (width, height), (shown_width, shown_height) = size(tmp_path / "cell.png"), size(PICTURE)
    assert width == shown_width
    assert height == pytest.approx(shown_height, rel=0.1)


def test_the_picture_is_small() -> None:
    assert PICTURE.stat().st_size < MOST_BYTES
