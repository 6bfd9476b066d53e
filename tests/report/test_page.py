"""The page in a real browser: quiet, self-contained, no wider than a phone, legible in the dark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastuiat.report.page import Marked, Page, new_figure, page_style

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import open_browser

CONTRAST = """
const luminance = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
    const linear = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const ground = luminance(getComputedStyle(document.body).backgroundColor);
const contrast = colour => {
    const [low, high] = [ground, luminance(colour)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
};
const worst = (query, property) => Math.min(
    ...[...document.querySelectorAll(query)].map(e => contrast(getComputedStyle(e)[property])));
return {
    text: worst('h1, h2, p, td, th, figcaption, nav a', 'color'),
    label: worst('figure svg text', 'fill'),
    line: worst('figure svg [id*=line2d] > path[clip-path]:not([style*="--figure-2)"])', 'stroke'),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    sizes: [...document.querySelectorAll('figure:not(.wide) svg text')].map(
        e => e.getBoundingClientRect().height),
};
"""


def draw(page: Page, name: str, width: float = 4.4) -> None:
    figure, axes = new_figure(width)
    with page_style():
        for i in range(8):
            axes.plot([1, 2, 3], [i, i + 1, i], marker="o", label=f"$run$ <{i}>")
        axes.legend()
        axes.set_xlabel("epoch")
    page.figure(figure, caption=f"What `{name}` shows", name=name)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    page = Page("<script>throw 1</script> & co", "`code` & a word of no end: " + "x" * 400)
    page.section("Curves & <b>")
    draw(page, "first")
    draw(page, "second")
    draw(page, "wide", 9)
    page.section("Numbers", "a note")
    rows = [["sat", "47.68 %", Marked("0.1")], ["long " * 30, "–", "<img src=x onerror=alert(1)>"]]
    page.table(["method", "accuracy", "setting"], rows)
    page.section("End")
    page.text("done")
    path = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    page.write(path, figures=path.parent / "figures")
    return path


@pytest.mark.slow
def test_a_page_is_whole_on_every_screen(page):
    with open_browser() as browser:
        sights = [
            browser.look(page, width=width, dark=dark, script=CONTRAST)
            for width in (1280, 390)
            for dark in (False, True)
        ]
    for sight in sights:
        assert sight.errors == [] and sight.requests == []
        assert sight.scroll_width == sight.window_width
        assert sight.screenshot.startswith(b"\x89PNG")
        # WCAG's bounds for text and for graphics.
        assert sight.value["text"] > 4.5 and sight.value["label"] > 4.5
        assert sight.value["line"] > 3
        ids = sight.value["ids"]
        assert len(ids) == len(set(ids)) > 20
        assert min(sight.value["sizes"]) > 8
    assert [sight.window_width for sight in sights] == [1280, 1280, 390, 390]
    light, dark = sights[:2]
    assert light.screenshot != dark.screenshot


@pytest.mark.slow
def test_the_browser_sees_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width">'
        '<div style="width: 600px">wide</div><script>throw Error("no")</script>'
        '<img src="missing.png">'
    )
    with open_browser() as browser:
        sight = browser.look(bad, width=390)
    assert any("Uncaught Error: no" in line for line in sight.errors)
    assert [Path(url).name for url in sight.requests] == ["missing.png"]
    assert sight.scroll_width > sight.window_width == 390


def test_text_is_escaped_and_files_are_as_they_are_named(page):
    text = page.read_text()
    assert "<script>" not in text and "<img" not in text.replace("<image", "")
    assert "&lt;script&gt;throw 1&lt;/script&gt; &amp; co" in text
    assert "http" not in text.replace("http://www.w3.org/", "")  # names of namespaces
    figures = page.parent / "figures"
    assert {p.name for p in figures.iterdir()} == {
        f"{name}.{kind}" for name in ("first", "second", "wide") for kind in ("svg", "png")
    }
    assert "$run$ &lt;3&gt;" in (figures / "first.svg").read_text()
    assert "var(--" not in (figures / "first.svg").read_text()


def test_the_same_page_is_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        page = Page("same")
        draw(page, "figure")
        page.write(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_misuse_is_refused():
    page = Page("misuse")
    draw(page, "one")
    for name in ("one", "two words", '"><script>'):
        with pytest.raises(ValueError, match="name of its own"):
            draw(page, name)
    with pytest.raises(ValueError, match="as long as"):
        page.table(["a", "b"], [["only one"]])
