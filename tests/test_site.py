"""How the documentation looks: pictures drawn from source, colours to be read."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PICTURES: dict[str, Any] = runpy.run_path(str(DOCS / "pictures.py"))
TARGETS: dict[Path, Any] = PICTURES["TARGETS"]

#: WCAG 2.2, level AA: the least contrast of text.
TEXT = 4.5


def luminance(colour: str) -> float:
    """Give how bright a colour is, as WCAG counts it: 0 for black, 1 for white."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4
        for each in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Give the ratio of two colours, 1 to 21."""
    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)


def test_contrast_is_counted_as_the_standard_does() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("target", TARGETS, ids=[each.name for each in TARGETS])
def test_pictures_are_drawn_from_their_source(target: Path) -> None:
    drawn = TARGETS[target]()
    assert target.read_text("utf-8") == drawn, "run: python docs/pictures.py"


def test_every_text_of_the_picture_can_be_read_on_every_background_of_it() -> None:
    style: str = PICTURES["STYLE"]
    texts = re.findall(r"^\.(?:title|code|value|note) .*fill: (#\w{6})", style, re.M)
    assert len(texts) == 4
    for colour in texts:
        for background in (PICTURES["CARD"], PICTURES["PILL"]):
            assert contrast(colour, background) >= TEXT, (colour, background)
