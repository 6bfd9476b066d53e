"""Where the checkpoint of a run is: asked without PyTorch by those who may not need to read it."""

from __future__ import annotations

from pathlib import Path

from fastuiat.config import UserError, legible


def locate(path: str | Path, which: str = "best") -> Path:
    """The checkpoint file of a run folder (`best`, else `last`), or the file itself."""
    path = Path(path)
    try:
        if not path.is_dir():
            return path
    except OSError as error:  # of a name that no file can have
        raise UserError(f"{legible(path)} cannot be read: {error.strerror}") from error
    for name in dict.fromkeys((which, "last")):
        if (file := path / "checkpoints" / f"{name}.pt").is_file():
            return file
    is_run = (path / "config.json").is_file()
    why = "none was saved yet, or they were removed" if is_run else "is it a run folder?"
    raise UserError(f"{path} holds no checkpoints/{which}.pt: {why}")
