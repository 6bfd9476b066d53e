"""One self-contained HTML page: tables and figures that read well on a phone and in the dark.

The page loads nothing. A figure is inline SVG whose text takes the page's font and whose
colours are CSS variables, so that it follows the reader's colour scheme.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastuiat.files import write_bytes

INK, MUTED, GRID = "#1c2430", "#5d6878", "#dde2e9"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#b87a00", "#3a93c9", "#6b6b6b", "#7a5195")
"""The first hues of Okabe and Ito's colour-blind safe set, the pale ones darkened to be lines."""
IN_THE_DARK = {
    INK: "#e7ebf1",
    MUTED: "#9da8b8",
    GRID: "#333c49",
    **dict(
        zip(
            PALETTE,
            (
                "#56b4e9",
                "#ff8a4c",
                "#2fcf9f",
                "#e59ac6",
                "#f0b429",
                "#8ccbf2",
                "#b5b5b5",
                "#b79adf",
            ),
            strict=True,
        )
    ),
}
"""What each colour of a figure becomes on a dark page."""
VARIABLES = {colour: f"--figure-{i}" for i, colour in enumerate(IN_THE_DARK)}

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """`with page_style():` or `@page_style()`: draw in it, or lines are matplotlib's own."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a letter in a name that the font lacks
        yield


PIXELS_PER_INCH = 96  # of CSS
WIDE = 6.0
"""Inches from which a figure takes the page's whole width."""


def empty_figure(width: float, height: float) -> Figure:
    """A figure without axes in the style of the page; inches."""
    with page_style():
        return Figure(figsize=(width, height))


def new_figure(width: float = 4.4, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure in the style of the page; inches, of which a phone shows about four across.

    Figures narrower than six inches stand side by side where the page is wide enough.
    """
    with page_style():
        figure = empty_figure(width, height)
        return figure, figure.subplots()


def drawn(figure: Figure, name: str) -> str:
    """The figure as an SVG document without a ground, the same text for the same drawing.

    Where its parts lie is settled here, once: that takes as long as drawing it.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    with page_style(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata=metadata)
    figure.set_layout_engine("none")
    return buffer.getvalue().decode()


def svg_file(svg: str) -> bytes:
    """An SVG document on white."""
    begin = svg.index(">", svg.index("<svg")) + 1
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{svg[:begin]}\n {ground}{svg[begin:]}".encode()


def png_file(figure: Figure) -> bytes:
    """The figure as a PNG file on white, at 200 dots per inch."""
    buffer = io.BytesIO()
    with page_style():
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(svg: str, figure: Figure, name: str, label: str) -> str:
    """An <svg> element for the page: ids of its own, its colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(rf"{colour}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    # Its size is the page's affair, up to where its text would outgrow the page's.
    width = 1.15 * figure.get_figwidth() * PIXELS_PER_INCH
    opening = re.sub(r' (?:width|height)="[^"]*"', "", svg[: svg.index(">")])
    style = f'style="max-width: {width:.0f}px" role="img" aria-label="{html.escape(label)}"'
    return f"{opening} {style}{svg[svg.index('>') :]}"


UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)
"""Controls, and marks that turn a line round: they may stand in the texts of others' files."""


class Marked(str):
    """A table's cell that stands out."""


Cell = str | int | float | None


def inline(text: str) -> str:
    """Escaped text; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def is_number(cell: Cell) -> bool:
    """Whether a cell is a number, perhaps with a spread and a unit."""
    if not isinstance(cell, str):
        return True
    number = r"[-−+]?\d[\d,.]*(/\d+)?"
    return bool(re.fullmatch(rf"–|{number}(\s*±\s*{number})?\s*(%|[A-Za-z/]{{1,9}})?", cell))


class Page:
    """Collects sections, text, tables and figures in reading order, then writes them.

    All text is escaped; between `backticks` it is set as code.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self.parts: list[str] = []
        self.headings: list[str] = []
        self.figures: dict[str, Figure] = {}
        self._drawn: dict[str, str] = {}
        self._figures_open = False

    def _add(self, part: str, *, figure: bool = False) -> None:
        """Append a part; neighbouring figures share a grid."""
        if figure != self._figures_open:
            self.parts.append('<div class="figures">' if figure else "</div>")
            self._figures_open = figure
        self.parts.append(part)

    def section(self, heading: str, note: str = "") -> None:
        """Begin a section; `note` is a paragraph beneath its heading."""
        self.headings.append(heading)
        self._add(f'<h2 id="section-{len(self.headings)}">{inline(heading)}</h2>')
        if note:
            self._add(f'<p class="note">{inline(note)}</p>')

    def text(self, paragraph: str) -> None:
        self._add(f"<p>{inline(paragraph)}</p>")

    def items(self, lines: Sequence[str]) -> None:
        """A list with bullets."""
        self._add("<ul>" + "\n".join(f"<li>{inline(line)}</li>" for line in lines) + "</ul>")

    def highlights(self, numbers: Sequence[tuple[str, str, str]]) -> None:
        """The few numbers that a reader looks for first: (name, value, what it is of)."""
        cells = "".join(
            f"<div><dt>{inline(name)}</dt><dd><strong>{inline(value)}</strong>"
            f"<span>{inline(of)}</span></dd></div>"
            for name, value, of in numbers
        )
        self._add(f'<dl class="highlights">{cells}</dl>')

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        note: str = "",
        folded: str = "",
    ) -> None:
        """A table; a column of numbers stands to the right, None is a dash.

        With `folded` only these words show until the reader opens it. ValueError where a row is not
        as long as the headings.
        """
        if any(len(row) != len(headings) for row in rows):
            raise ValueError("a table's rows must be as long as its headings")
        right = [all(is_number(row[i]) for row in rows) for i in range(len(headings))]

        def cells(tag: str, row: Sequence[Cell]) -> str:
            made = []
            for column, cell in enumerate(row):
                kinds = ["number"] * right[column] + ["marked"] * isinstance(cell, Marked)
                kind = f' class="{" ".join(kinds)}"' if kinds else ""
                name = "th" if column == 0 else tag
                scope = f' scope="{"col" if tag == "th" else "row"}"' if name == "th" else ""
                text = "–" if cell is None else inline(str(cell))
                made.append(f"<{name}{scope}{kind}>{text}</{name}>")
            return f"<tr>{''.join(made)}</tr>"

        body = "\n".join(cells("td", row) for row in rows)
        # A box that scrolls must be reachable by the keyboard.
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table>\n'
            f"<thead>{cells('th', headings)}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )
        if folded:
            table = f"<details><summary>{inline(folded)}</summary>{table}</details>"
        self._add(table)
        if note:
            self._add(f'<p class="note">{inline(note)}</p>')

    def figure(self, figure: Figure, *, caption: str, name: str) -> None:
        """A figure; `name` (letters, digits, hyphens; its own on the page) names its files."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name) or name in self.figures:
            raise ValueError(
                f"a figure wants a name of its own of letters and digits, not {name!r}"
            )
        self.figures[name] = figure
        self._drawn[name] = svg = drawn(figure, name)
        wide = ' class="wide"' if figure.get_figwidth() > WIDE else ""
        self._add(
            f'<figure{wide}><div class="scroll" tabindex="0">'
            f"{inline_svg(svg, figure, name, caption.replace('`', ''))}</div>"
            f"<figcaption>{inline(caption)}</figcaption></figure>",
            figure=True,
        )

    def html(self) -> str:
        """The whole document."""
        contents = "".join(
            f'<a href="#section-{i}">{inline(heading)}</a>'
            for i, heading in enumerate(self.headings, 1)
        )
        body = [f"<header><h1>{inline(self.title)}</h1>"]
        if self.lead:
            body.append(f'<p class="lead">{inline(self.lead)}</p>')
        if len(self.headings) > 2:
            body.append(f'<nav aria-label="contents">{contents}</nav>')
        body += ["</header>", "<main>", *self.parts]
        if self._figures_open:
            body.append("</div>")
        body.append("</main>")
        return UNSEEN.sub(
            "",
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{html.escape(self.title.replace('`', ''))}</title>\n"
            f"<style>\n{colours()}{CSS}</style>\n</head>\n<body>\n"
            + "\n".join(body)
            + "\n</body>\n</html>\n",
        )

    def write(self, path: Path, *, figures: Path | None = None) -> None:
        """Write the page, and each figure as NAME.svg and NAME.png into `figures`, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            for name, figure in self.figures.items():
                write_bytes(figures / f"{name}.svg", svg_file(self._drawn[name]))
                write_bytes(figures / f"{name}.png", png_file(figure))
        write_bytes(path, self.html().encode())


def colours() -> str:
    """The figures' colours in both schemes, as CSS."""
    light = " ".join(f"{variable}: {colour};" for colour, variable in VARIABLES.items())
    dark = " ".join(f"{VARIABLES[colour]}: {other};" for colour, other in IN_THE_DARK.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f5f7fa; --ink: #1c2430; --muted: #566172; --rule: #dde2e9;
  --accent: #0067a3; --mark: #fff1d6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12161c; --raised: #1a2029; --ink: #e7ebf1; --muted: #9da8b8; --rule: #333c49;
    --accent: #6cbdf0; --mark: #453512;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.75rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); }
p { margin: .5rem 0 1rem; max-width: 46rem; }
.lead { color: var(--muted); font-size: 1.05rem; }
.note, figcaption { color: var(--muted); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .35rem .5rem; margin-top: 1rem; }
nav a { color: var(--accent); text-decoration: none; font-size: .9rem; padding: .15rem .65rem;
  border: 1px solid var(--rule); border-radius: 1rem; }
nav a:hover, nav a:focus-visible { border-color: var(--accent); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--raised); padding: .1em .3em; border-radius: .25rem; overflow-wrap: anywhere; }
li { margin: .3rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
.highlights { display: grid; gap: .75rem; margin: 1.5rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.highlights > div { background: var(--raised); border-radius: .6rem; padding: .8rem 1rem; }
.highlights dt { color: var(--muted); font-size: .85rem; }
.highlights dd { margin: 0; }
.highlights strong { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.highlights span { color: var(--muted); font-size: .8rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; margin: .25rem 0 .75rem; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; border-bottom-width: 2px; }
tbody th { font-weight: 500; }
th + th, td, th.number, td.number { padding-left: .9rem; }
tr > :first-child { padding-left: 0; }
summary { color: var(--accent); cursor: pointer; font-size: .9rem; margin: .25rem 0 .75rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.marked { background: var(--mark); }
.figures { display: grid; gap: 1.5rem 2rem; margin: 1rem 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure.wide svg { min-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  sans-serif !important; }
figure svg image { image-rendering: pixelated; }
figcaption { margin-top: .4rem; max-width: 46rem; }
@media (max-width: 30rem) { body { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.45rem; } }
@media print { body { max-width: none; } nav { display: none; } }
"""
