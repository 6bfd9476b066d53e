"""Figure 6: images, their inverse examples, and the perturbations magnified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastuiat.report.page import MUTED, empty_figure, house_style

ROWS = 5
"""Images of one figure: two figures stand side by side."""
ACROSS = 10
"""Perturbations in a row of the gallery of z."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Arrays of Figure 6: images (B, H, W, C) in [0, 1], probabilities of the true class (B,)."""

    labels: Sequence[int]
    """Each image's class."""
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


def magnified(perturbation: np.ndarray, eps: float) -> np.ndarray:
    """−eps … eps as 0 … 1: grey where nothing is added."""
    return np.clip(0.5 + perturbation / (2 * eps), 0, 1)


def show(axes: Axes, image: np.ndarray, below: str = "") -> None:
    # `none` embeds the pixels as they are; the page enlarges them without blur.
    axes.imshow(np.clip(image, 0, 1), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if below:
        axes.set_xlabel(below, fontsize=8, color=MUTED, labelpad=2)


@house_style()
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
        figure = empty_figure(4.4, 0.35 + len(rows) * (0.2 + 4.2 / len(heads)))
        grid = figure.subplots(len(rows), len(heads), squeeze=False)
        for line, i in zip(grid, rows, strict=True):
            x, x_inv = pictures.x[i], pictures.x_inv[i]
            show(line[0], x, f"{pictures.p[i]:.3f}")
            show(line[1], magnified(x_inv - x, pictures.eps))
            show(line[2], x_inv, f"{pictures.p_inv[i]:.3f}")
            if pictures.x_universal is not None and pictures.z is not None:
                assert pictures.p_universal is not None
                show(line[3], magnified(pictures.z[pictures.labels[i]], pictures.eps))
                show(line[4], pictures.x_universal[i], f"{pictures.p_universal[i]:.3f}")
            line[0].set_ylabel(f"class {pictures.labels[i]}", fontsize=8.5)
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(head, fontsize=8.5, loc="center", pad=4)
        figures.append(figure)
    return figures


@house_style()
def universal_gallery(z: np.ndarray, eps: float) -> Figure:
    """z of every class, magnified; z (K, H, W, C)."""
    lines = -(-len(z) // ACROSS)
    figure = empty_figure(7.2, 0.1 + 0.86 * lines)
    grid = figure.subplots(lines, ACROSS, squeeze=False).ravel()
    for axes in grid[len(z) :]:
        axes.set_visible(False)
    for label, axes in enumerate(grid[: len(z)]):
        show(axes, magnified(z[label], eps), str(label))
    return figure
