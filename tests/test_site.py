"""How the documentation looks: pictures drawn from source, colours to be read."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskiq.batch import FlushReason

DOCS = Path(__file__).parent.parent / "docs"
PICTURES: dict[str, Any] = runpy.run_path(str(DOCS / "pictures.py"))
FLUSHES: dict[str, Any] = runpy.run_path(str(DOCS / "flushes.py"))
#: What draws each picture, and where that stands.
TARGETS: dict[Path, tuple[Any, str]] = {
    target: (draw, name)
    for name, drawing in {"pictures": PICTURES, "flushes": FLUSHES}.items()
    for target, draw in drawing["TARGETS"].items()
}

STYLE = (DOCS / "assets" / "extra.css").read_text("utf-8")
SCHEMES = ("default", "slate")

#: WCAG 2.2, level AA: the least contrast of text, and of what is no text.
TEXT, SIGN = 4.5, 3.0

#: Which colours stand on which, by their names without "--md-" and "-color".
PAGE = "default-bg"
ON_PAGE = ("default-fg", "default-fg--light", "typeset-a", "accent-fg")
BANNERS = ("primary-fg", "primary-fg--light", "primary-fg--dark")
FOOTERS = ("footer-bg", "footer-bg--dark")


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


def colours_of(scheme: str) -> dict[str, str]:
    """Give the colours of a scheme of the site, by their names."""
    [block] = re.findall(
        rf'^\[data-md-color-scheme="{scheme}"\] {{(.*?)^}}', STYLE, re.M | re.S
    )
    found = re.findall(r"--md-([a-z-]+?)-color(--[a-z]+)?: (#\w{6});", block)
    return {name + shade: colour for name, shade, colour in found}


def pairs_of(names: Iterable[str]) -> Iterator[tuple[str, str, float]]:
    """Give each text, what it stands on, and the contrast that it needs."""
    for name in names:
        if re.fullmatch(r"code-(fg|hl-[a-z]+)", name):
            yield name, "code-bg", TEXT
    for text in ON_PAGE:
        yield text, PAGE, TEXT
    for text in ("default-fg", "typeset-a", "accent-fg"):
        yield text, "code-bg", TEXT  # code that is a link, heads of tables
    yield "code-fg", "code-hl--light", TEXT  # a line that is marked
    yield "default-fg--lighter", PAGE, SIGN
    yield "accent-bg", "accent-fg", TEXT
    for banner in BANNERS:
        yield "primary-bg", banner, TEXT
        yield "primary-bg--light", banner, TEXT
    for footer in FOOTERS:
        for text in ("footer-fg", "footer-fg--light", "footer-fg--lighter"):
            yield text, footer, TEXT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_of_the_site_can_be_read_on_its_background(scheme: str) -> None:
    colours = colours_of(scheme)
    pairs = list(pairs_of(colours))
    assert sum(background == "code-bg" for _, background, _ in pairs) == 13 + 3
    faint = {
        (text, background): round(ratio, 2)
        for text, background, least in pairs
        if (ratio := contrast(colours[text], colours[background])) < least
    }
    assert faint == {}


def test_both_schemes_have_the_same_colours() -> None:
    light, dark = map(colours_of, SCHEMES)
    assert light.keys() == dark.keys()


def test_contrast_is_counted_as_the_standard_does() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("target", TARGETS, ids=[each.name for each in TARGETS])
def test_pictures_are_drawn_from_their_source(target: Path) -> None:
    draw, name = TARGETS[target]
    assert target.read_text("utf-8") == draw(), f"run: python docs/{name}.py"


def filled(drawing: dict[str, Any], kinds: str) -> list[str]:
    """Give the colours that a picture fills things of these kinds with."""
    style: str = drawing["STYLE"]
    return re.findall(rf"^\.(?:{kinds}) .*fill: (#\w{{6}})", style, re.M)


def test_every_text_of_the_picture_can_be_read_on_every_background_of_it() -> None:
    texts = filled(PICTURES, "title|code|value|note")
    assert len(texts) == 4
    for colour in texts:
        for background in (PICTURES["CARD"], PICTURES["PILL"]):
            assert contrast(colour, background) >= TEXT, (colour, background)


def test_texts_and_signs_of_the_time_lines_can_be_seen() -> None:
    card, blue, ink = (FLUSHES[name] for name in ("CARD", "BLUE", "INK"))
    texts = filled(FLUSHES, "title|reason|code|note|message")
    signs = filled(FLUSHES, "dot|batches|waiting|broker")
    assert (len(texts), len(signs)) == (5, 4)
    faint = [each for each in texts if contrast(each, card) < TEXT]
    faint += [each for each in signs if contrast(each, card) < SIGN]
    assert faint == []
    # The weights of messages stand in their dots: of the batch, and of the next one.
    assert contrast(ink, blue) >= TEXT
    assert contrast(blue, card) >= TEXT


def test_every_reason_that_a_batch_leaves_for_has_a_time_line() -> None:
    drawn = [case.reason for case in FLUSHES["CASES"]]
    assert {*drawn} == {*FlushReason}
    assert [FLUSHES["played"](case).reason for case in FLUSHES["CASES"]] == drawn


def test_the_picture_of_back_pressure_holds_what_the_guide_promises() -> None:
    most, slots = FLUSHES["PRESSED"].max_buffered, FLUSHES["SLOTS"]
    held = FLUSHES["Pressed"]().run()
    assert max(each.batches for each in held) == most
    assert max(each.waiting for each in held) == slots
    assert all(each.waiting == slots for each in held if each.broker)


def test_a_name_is_kept_whole_in_text_and_left_alone_in_blocks() -> None:
    hook = runpy.run_path(str(DOCS / "whole_words.py"))["on_page_content"]
    block = "<pre><code>taskiq --workers</code></pre>"
    marked = hook(f"<p><code>taskiq --max-async-tasks 5</code></p>{block}")
    whole = '<span class="whole">--max-async-tasks</span>'
    assert marked == f"<p><code>taskiq {whole} 5</code></p>{block}"
    assert ".md-typeset code .whole" in STYLE


def test_a_word_too_long_for_a_phone_may_break_where_its_names_end() -> None:
    hook = runpy.run_path(str(DOCS / "whole_words.py"))["on_page_content"]
    long = "rewrite(taskiq.testing.conformance_of_brokers)"
    broken = "rewrite(<wbr>taskiq.<wbr>testing.<wbr>conformance_of_brokers)"
    assert hook(f"<code>{long}</code>") == f"<code>{broken}</code>"
