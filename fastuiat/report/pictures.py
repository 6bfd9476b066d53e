"""Figure 6: images, their inverse examples, and the perturbations magnified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastuiat.report.page import MUTED, new_figure, page_style

ROWS = 5
"""Images of one figure: two figures stand side by side."""
GAP, GAP_BELOW = 3, 7
"""Pixels between tiles, and beneath them for words, of pictures 32 pixels large."""
Tile = np.ndarray | None
"""A picture (H, W, C) in [0, 1], or an empty place."""
LONGEST_NAME, LONGEST_IN_GALLERY = 14, 11
"""Letters beneath a tile."""
HEAD = 0.25
"""Inches for the words above the first row."""
ACROSS = 10
"""Perturbations in a row of the gallery of z."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Arrays of Figure 6: images (B, H, W, C) in [0, 1], probabilities of the true class (B,)."""

    labels: Sequence[int]
    """Each image's class."""
    classes: Sequence[str] = ()
    """Names of all classes, where they are known."""
    x: np.ndarray
    x_inv: np.ndarray
    x_universal: np.ndarray | None
    p: np.ndarray
    p_inv: np.ndarray
    p_universal: np.ndarray | None
    z: np.ndarray | None
    """All classes' universal perturbations (K, H, W, C)."""
    eps: float
    """Radius of the perturbations, in pixel units."""


def name_of(label: int, classes: Sequence[str], longest: int) -> str:
    """Of a class, as short as a tile is wide; its number where it has no name."""
    if label >= len(classes):
        return f"class {label}"
    name = classes[label].replace("_", " ")
    plain = "".join(letter if letter.isprintable() else "?" for letter in name).replace("$", r"\$")
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def magnified(perturbation: np.ndarray, eps: float) -> np.ndarray:
    """−eps … eps as 0 … 1: grey where nothing is added."""
    return np.clip(0.5 + perturbation / (2 * eps), 0, 1)


def mosaic(tiles: Sequence[Sequence[Tile]], width: float) -> tuple[Figure, Axes]:
    """Equally large tiles (H, W, C) in rows, with gaps, `width` inches across; axes in pixels.

    One image: an axes for each tile takes seconds to lay out. Beneath each row is room for words.
    """
    first = tiles[0][0]
    assert first is not None
    height, wide = first.shape[:2]
    down, across = height + GAP_BELOW * height // 32, wide + GAP * wide // 32
    ground = np.zeros((down * len(tiles), across * len(tiles[0]), 4), dtype=np.float32)
    for i, row in enumerate(tiles):
        for k, tile in enumerate(row):
            if tile is not None:
                place = ground[i * down : i * down + height, k * across : k * across + wide]
                place[..., :3], place[..., 3] = np.clip(tile, 0, 1), 1
    lines, columns = ground.shape[:2]
    figure, axes = new_figure(width, width * lines / columns + HEAD)
    # `none` embeds the pixels as they are; the page enlarges them without blur.
    axes.imshow(ground, interpolation="none")
    axes.set_axis_off()
    return figure, axes


def caption_tiles(axes: Axes, i: int, words: Sequence[str], shape: Sequence[int]) -> None:
    """Words beneath the tiles (H, W, …) of row i."""
    height, wide = shape[:2]
    down, across = height + GAP_BELOW * height // 32, wide + GAP * wide // 32
    for k, word in enumerate(words):
        place = (k * across + wide / 2 - 0.5, i * down + height + 0.5)
        axes.text(*place, word, fontsize=8, color=MUTED, ha="center", va="top")


@page_style()
def inverse_pictures(pictures: Pictures) -> list[Figure]:
    """A row per image: x, its inverse perturbation and example, z and the universal example.

    Beneath each is the probability that the net gives the true class.
    """
    figures = []
    heads = ["natural", "inverse δ", "inverse"]
    if pictures.x_universal is not None:
        heads += ["z", "universal"]
    for begin in range(0, len(pictures.x), ROWS):
        rows = range(begin, min(begin + ROWS, len(pictures.x)))
        tiles: list[list[Tile]] = []
        words: list[list[str]] = []
        for i in rows:
            x, x_inv, label = pictures.x[i], pictures.x_inv[i], pictures.labels[i]
            tiles.append([x, magnified(x_inv - x, pictures.eps), x_inv])
            words.append(
                [
                    f"{pictures.p[i]:.3f}",
                    name_of(label, pictures.classes, LONGEST_NAME),
                    f"{pictures.p_inv[i]:.3f}",
                ]
            )
            if pictures.x_universal is not None and pictures.z is not None:
                assert pictures.p_universal is not None
                tiles[-1] += [magnified(pictures.z[label], pictures.eps), pictures.x_universal[i]]
                words[-1] += ["", f"{pictures.p_universal[i]:.3f}"]
        figure, axes = mosaic(tiles, 4.4)
        for i, line in enumerate(words):
            caption_tiles(axes, i, line, pictures.x[0].shape)
        wide = pictures.x.shape[2]
        for k, head in enumerate(heads):
            place = (k * (wide + GAP * wide // 32) + wide / 2 - 0.5, -1.5)
            axes.text(*place, head, fontsize=8.5, ha="center", va="bottom")
        figures.append(figure)
    return figures


@page_style()
def universal_gallery(z: np.ndarray, eps: float, classes: Sequence[str] = ()) -> Figure:
    """z of every class, magnified; z (K, H, W, C)."""
    pictures: list[Tile] = [magnified(one, eps) for one in z]
    pictures += [None] * (-len(pictures) % ACROSS)
    tiles = [pictures[i : i + ACROSS] for i in range(0, len(pictures), ACROSS)]
    figure, axes = mosaic(tiles, 7.2)
    for i in range(len(tiles)):
        labels = range(i * ACROSS, min((i + 1) * ACROSS, len(z)))
        caption_tiles(
            axes,
            i,
            [name_of(k, classes, LONGEST_IN_GALLERY) if classes else str(k) for k in labels],
            z[0].shape,
        )
    return figure
