"""A picture file as a square of RGB bytes, by Pillow.

Run as a program it answers on its standard output what its standard input asks: many of them read a
folder on all cores. It imports nothing of the package, so one is there in a fifth of a second.
"""

from __future__ import annotations

import io
import pickle
import signal
import sys
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
LONGEST = 64
"""Of a longer side, in shorter ones, only the middle is looked at."""
MOST_SCANS = 200
"""Of a JPEG; those that are sent coarse first have ten. Each goes over the whole picture."""
MOST_STORED = 1024
"""Pixels a side of a stored one."""
QUALITY = 95
"""Of a stored JPEG, whose colours are as fine as its brightness."""


class Request(NamedTuple):
    """Pictures to be read: paths, or pictures uint8 (n, H, W, 3 or 1)."""

    pictures: list[str] | np.ndarray
    resolution: int
    as_jpeg: bool


class Answer(NamedTuple):
    """The squares that could be read, as bytes of a JPEG or uint8 (N, N, 3), and of the others
    their places in the request and what is wrong with them."""

    squares: list[bytes | np.ndarray]
    broken: list[tuple[int, str]]


def in_colour(picture: Image.Image) -> Image.Image:
    """Upright RGB: 16 bits of grey become 8, transparency is dropped."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        grey = np.asarray(picture) >> 8
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def square(picture: Image.Image, resolution: int) -> np.ndarray:
    """The middle of an RGB picture, uint8 (N, N, 3): as torchvision's Resize(N), CenterCrop(N)."""
    width, height = picture.size
    short, long = sorted(picture.size)
    if long > LONGEST * short:
        left, top = ((max(0, side - LONGEST * short)) // 2 for side in picture.size)
        picture = picture.crop((left, top, width - left, height - top))
        width, height = picture.size
        short, long = sorted(picture.size)
    if short != resolution:
        longer = int(resolution * long / short)
        size = (resolution, longer) if width <= height else (longer, resolution)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2) for side in picture.size)
    return np.asarray(picture.crop((left, top, left + resolution, top + resolution)))


def read(path: str, resolution: int) -> np.ndarray:
    """A file as uint8 (N, N, 3). Whatever Pillow raises on a broken one is passed on.

    So is what it raises on one of more than 179 million pixels.
    """
    with Image.open(path, formats=FORMATS) as picture:
        if picture.format == "JPEG":
            refuse_scans(path)
        return square(in_colour(picture), resolution)


def refuse_scans(path: str) -> None:
    """ValueError on a JPEG that goes over its pixels again and again."""
    with open(path, "rb") as file:
        last, scans = b"", 0
        while piece := file.read(1 << 20):
            scans += (last + piece).count(b"\xff\xda")
            last = piece[-1:]
    if scans > MOST_SCANS:
        raise ValueError(f"it has {scans} scans")


def jpeg_of(pixels: np.ndarray) -> bytes:
    """uint8 (N, N, 3) as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def pixels_of(jpeg: bytes) -> np.ndarray:
    """What `jpeg_of` stored, uint8 (N, N, 3): both loaders decode by this."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        if max(picture.size) > MOST_STORED:
            raise ValueError("no picture that is stored")
        return np.asarray(picture)


def what_is_wrong(error: BaseException) -> str:
    """In one printable line."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        line = error.strerror
    if line.startswith("cannot identify"):
        line = "no JPEG, PNG, WebP or BMP picture"
    return "".join(c if c.isprintable() else "?" for c in line)[:200]


def answer(request: Request) -> Answer:
    squares: list[bytes | np.ndarray] = []
    broken = []
    for i, picture in enumerate(request.pictures):
        try:
            if isinstance(picture, str):
                pixels = read(picture, request.resolution)
            else:
                array = picture[..., 0] if picture.shape[-1] == 1 else picture
                image = Image.fromarray(np.ascontiguousarray(array))
                pixels = square(image.convert("RGB"), request.resolution)
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            broken.append((i, what_is_wrong(error)))
        else:
            squares.append(jpeg_of(pixels) if request.as_jpeg else pixels)
    return Answer(squares, broken)


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer plain tuples of a Request until there is no other, or nobody who asks."""
    while True:
        try:
            asked = pickle.load(questions)
        except (EOFError, pickle.UnpicklingError):  # the end, or that of one killed as it asked
            return
        try:
            pickle.dump(tuple(answer(Request(*asked))), answers, protocol=5)
            answers.flush()
        except BrokenPipeError:
            return


PROGRAM = [
    sys.executable,
    "-c",
    f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')",
]
"""The command that serves; by its path, since the package's name would import the package."""

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its end is that of its questions
    warnings.simplefilter("ignore")  # of large pictures, transparency, broken EXIF
    serve(sys.stdin.buffer, sys.stdout.buffer)
