"""Files of weights, read without running anything they hold, or called what they are."""

from __future__ import annotations

import collections
import datetime
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sized
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open

from fastuiat import sealed_tensors
from fastuiat.bounds import zip_of
from fastuiat.config import UserError, legible
from fastuiat.file_kinds import kind_of
from fastuiat.training.archive import sha256_verified
from fastuiat.training.outline import Outline, mapping_of, nets_in, outline

OLD = "a PyTorch file of the time before 1.6"
READ = ("a PyTorch file", OLD, "a safetensors file", None)
"""Kinds of files that are read, or that reading shows to be none."""
PICKLE = "a Python pickle"
PROGRAMS = ("a TorchScript program", "a torch.export program")
INSTEAD = {
    "a web page (HTML)": "what was downloaded is a page about it, get the file itself",
    "a Git-LFS pointer": "it stands for a file that `git lfs pull` fetches",
    "a git-annex pointer": "it stands for a file that `git annex get` fetches",
    "a TorchScript program": "torch.save(torch.jit.load({old}).state_dict(), {new}) makes one",
    "a torch.export program": "torch.save(torch.export.load({old}).state_dict, {new}) makes one",
    "a gzip file": "unpack it with gunzip",
    "a bzip2 file": "unpack it with bunzip2",
    "an xz file": "unpack it with unxz",
    "a tar archive": "unpack it and give what is inside",
    "a zip archive": "unpack it and give what is inside",
}
HARMFUL = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|runpy|pty|importlib|ctypes|commands|webbrowser)\."
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|getattr|setattr|__import__)$"
)
"""Functions that no file of weights needs."""


MOST_PICKLED = 1 << 22
"""Bytes of a file's pickle, or its instructions, each of which may make an object of sixty bytes.
A WRN-28-10 has 20,000 bytes."""


class Counted:
    """An open file from which PyTorch reads a pickle instruction by instruction, up to so many."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, MOST_PICKLED
        self.readline, self.readinto = file.readline, file.readinto  # type: ignore[attr-defined]
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        self._left -= 1
        if not self._left:
            raise pickle.UnpicklingError("a pickle without end")
        return self._file.read(count)


class Settings:
    """Attributes that a file holds as those of an object of another class."""


def path_text(*parts: str) -> str:
    return str(PurePosixPath(*parts))


class Text(str):
    """In the place of `str`, which would make a text of anything: gives the text itself."""

    def __new__(cls, text: str = "") -> Any:
        if not isinstance(text, str):
            raise pickle.UnpicklingError("a text of other values")
        return text


def plain_bytes(*_: Any) -> bytes:
    """Of an empty array: others' bytes are written as text."""
    return b""


def plain_list(*_: Any) -> list[Any]:
    return []


def plain_dict(*_: Any) -> dict[Any, Any]:
    return collections.OrderedDict()


class Copies:
    """Makes plain values out of others, up to MOST_PICKLED of them in all.

    A few bytes of a pickle may name a list or a range of millions, as often as they like.
    """

    def __init__(self) -> None:
        self.left = MOST_PICKLED

    def spent(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError("values without end")

    def made_of(self, kind: Any) -> Callable[..., Any]:
        def make(*values: Any) -> Any:
            for value in values:
                self.spent(len(value) if isinstance(value, Sized) else 1)
            return kind(*values)

        return make

    def range(self, *bounds: int) -> range:
        made = range(*bounds)
        self.spent(len(made))
        return made


def read_as() -> list[Any]:
    """(what is made, the name in a file that it is made for): plain values, no code of the file's.

    Names that moved between versions of their packages stand under each. For one file.
    """
    copies = Copies()
    array, number = np.zeros(1), np.float64(0)
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSUMm"}
    made: dict[Any, tuple[str, ...]] = {
        array.__reduce__()[0]: ("numpy.core.multiarray._reconstruct",
                                "numpy._core.multiarray._reconstruct"),
        number.__reduce__()[0]: ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        np.ndarray: ("numpy.ndarray",),
        np.dtype: ("numpy.dtype",),
        Settings: ("argparse.Namespace", "types.SimpleNamespace"),
        plain_dict: ("collections.defaultdict",),
        plain_list: ("collections.deque",),
        collections.OrderedDict: ("easydict.EasyDict", "yacs.config.CfgNode", "addict.addict.Dict",
                                  "munch.Munch"),
        path_text: tuple(f"pathlib{module}.{name}" for module in ("", "._local") for name in
                         ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
        plain_bytes: ("builtins.bytes",),
        datetime.datetime: ("datetime.datetime",),
        datetime.date: ("datetime.date",),
        datetime.timedelta: ("datetime.timedelta",),
    }  # fmt: skip
    made |= {kind: (f"builtins.{kind.__name__}",) for kind in (int, float, bool, slice)}
    made |= {
        copies.made_of(kind): (f"builtins.{kind.__name__}",) for kind in (list, dict, frozenset)
    }
    made |= {copies.range: ("builtins.range",)}
    made |= {Text: ("builtins.str", "torch.torch_version.TorchVersion")}
    made |= {kind: (f"numpy.dtypes.{kind.__name__}",) for kind in kinds}
    return [(what, name) for what, names in made.items() for name in names]


def read_with_sha256(path: Path) -> tuple[dict[str, Any], str]:
    """(plain content on the CPU, SHA-256) of a file of torch.save, of the very same bytes.

    Code in it is refused, never run. Its checksums are compared where it has them. UserError on
    anything that is no such file.
    """
    file, kind = opened(path)
    with file:
        if kind in PROGRAMS:  # whose entries differ by right: no checksum tells more of them
            refuse_others(path, kind)
        sha256 = sha256_verified(file, path)
        refuse_others(path, kind)
        held = bytes_held(file, path)
        file.seek(0)
        content = unpickled(file, path, kind)
    refuse_claims(content, held, path)
    if not isinstance(content, dict):
        what = type(content).__name__
        raise UserError(f"{path} holds a {what} and no state dict, which is a dict of tensors")
    return content, sha256


def bytes_held(file: IO[bytes], path: Path) -> int:
    """Of all that a file holds, unpacked; UserError where its pickle is no state dict's by size."""
    try:
        members = zip_of(file).infolist()
    except (zipfile.BadZipFile, ValueError):  # it is none
        return file.seek(0, 2)
    for member in members:
        if member.filename.endswith("/data.pkl") and member.file_size > MOST_PICKLED:
            raise UserError(
                f"{path} holds {member.file_size:,} bytes of names and plain values, which no "
                "state dict has: keep its tensors alone"
            )
    return sum(member.file_size for member in members)


def refuse_claims(content: Any, held: int, path: Path) -> None:
    """UserError where tensors and arrays have room for much more than so many bytes of a file.

    A call of torch.Tensor with a number makes one, and whoever reads it fills the memory.
    """
    left = held + MOST_PICKLED
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Settings):
            waiting += vars(value).values()
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
            storage = value.untyped_storage()
            if storage.device.type == "cpu" and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                left -= storage.nbytes()
        elif isinstance(value, np.ndarray):
            left -= value.nbytes
        if left < 0:
            raise UserError(f"{path} is damaged: its tensors claim more than its {held:,} bytes")


def opened(path: Path) -> tuple[IO[bytes], str | None]:
    """(the open file, its kind); UserError where it is not there, or nothing to be read."""
    kind = kind_of(path)
    if kind == "a folder" or not path.exists():
        raise UserError(f"{path} does not exist" if kind is None else f"{path} is a folder")
    if not path.is_file():
        raise UserError(f"{path} is {kind or 'no file'}, no checkpoint")
    if kind is not None and "zip" not in kind and "Torch" not in kind and "torch" not in kind:
        refuse_others(path, kind)
    try:
        return open(path, "rb"), kind
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def refuse_others(path: Path, kind: str | None) -> None:
    """UserError, with what to do, on a file that is whole and no checkpoint."""
    if kind in READ:
        return
    assert kind is not None
    if kind == PICKLE:
        advice = advice_for(path, outlined(path, kind), "pickle.load(open({old}, 'rb'))")
        raise UserError(f"{path} is a Python pickle, not written by torch.save{advice}")
    advice = next((INSTEAD[k] for k in INSTEAD if kind.startswith(k)), "")
    if kind == "a tar archive" and is_of_2016(path):
        kind = "a PyTorch file of before version 0.1.10"
        advice = (
            "torch.save(torch.load({old}, weights_only=False), {new}) makes a file that is read"
        )
    advice = advice.format(old=repr(str(path)), new=repr(new_name(path)))
    raise UserError(f"{path} is {kind}, no checkpoint" + (f": {advice}" if advice else ""))


def is_of_2016(path: Path) -> bool:
    """Whether a tar holds what torch.save put into one then."""
    try:
        with tarfile.open(path) as archive:
            names = {archive.next().name for _ in range(4)}  # type: ignore[union-attr]
    except (OSError, AttributeError, tarfile.TarError):
        return False
    return names >= {"storages", "tensors", "pickle"}


def unpickled(file: IO[bytes], path: Path, kind: str | None) -> Any:
    """What PyTorch's reader of plain values makes of it; UserError on anything else."""
    try:
        with torch.serialization.safe_globals(read_as()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it cannot read, which is said below
            source: Any = file if "zip" in str(kind) or kind == READ[0] else Counted(file)
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        found = outlined(path, kind)
        if found is None or not isinstance(error, pickle.UnpicklingError):
            raise UserError(f"{path} is truncated, damaged or no checkpoint") from error
        loader = "torch.load({old}, map_location='cpu', weights_only=False)"
        what = "what PyTorch does not read as plain values"
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            what = legible(refused[1])
        elif found.protocol > 2:
            what = f"a pickle of protocol {found.protocol}, which PyTorch does not read safely,"
        raise UserError(
            f"{path} holds {what} and is refused unread{advice_for(path, found, loader)}"
        ) from error


def outlined(path: Path, kind: str | None) -> Outline | None:
    """What a file would make, as far as its pickle says; None where it holds none."""
    try:
        with open(path, "rb") as file:
            if kind == OLD:
                for _ in range(3):  # a number, a version, the writer's machine
                    outline(file)
            if kind in (OLD, PICKLE):
                return outline(file)
            archive = zip_of(file)
            names = archive.namelist()
            return outline(archive.read(next(n for n in names if n.endswith("/data.pkl"))))
    except (OSError, ValueError, StopIteration, MemoryError, zipfile.BadZipFile):
        return None


def new_name(path: Path) -> str:
    return str(path.with_name(f"{path.stem}-weights.pt"))


def advice_for(path: Path, found: Outline | None, loader: str) -> str:
    """The file's keys, and a line of Python that keeps the weights of this very file."""
    if found is None:
        return ""
    keys = list(mapping_of(found.content) or {})
    said = "" if not keys else f"; its keys are {', '.join(map(legible, keys[:8]))}"
    said += f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    if harmful := next(filter(HARMFUL.match, found.names), None):
        return f"{said}: it would run {legible(harmful)}, so do not load it elsewhere either"
    nets = list(nets_in(found.content))
    if not nets:
        return said
    keys_to, is_whole = nets[0]
    place = "".join(f"[{key!r}]" for key in keys_to) + (".state_dict()" if is_whole else "")
    load = loader.format(old=repr(str(path)))
    line = f"torch.save({load}{place}, {new_name(path)!r})"
    return f"{said}: where you trust it, {line} keeps the weights alone"


def is_safetensors(path: Path) -> bool:
    """Whether a file is named so, or begins as one."""
    return path.is_file() and (
        path.suffix == ".safetensors" or kind_of(path) == "a safetensors file"
    )


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """(tensors, metadata, SHA-256) of a safetensors file; UserError where it is damaged.

    Its header must say of every byte which tensor's it is; files of fastuiat hold a checksum.
    """
    try:
        with open(path, "rb") as file:
            sha256 = sha256_verified(file, path)
            if not sealed_tensors.is_as_written(file):
                raise UserError(f"{path} is damaged: it has not its checksum; get it anew")
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()
            content = {name: tensors.get_tensor(name) for name in names}
            return content, tensors.metadata() or {}, sha256
    except UserError:
        raise
    except Exception as error:
        kind = kind_of(path)
        known = f": it is {kind}" if kind not in (None, "a safetensors file") else ""
        raise UserError(f"{path} is truncated or no safetensors file{known}") from error
