"""Folders in archives of a bounded size, made in a bounded time, and back."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastuiat.bounds import opened

LIMIT = 15_500_000
"""Bytes of a file that may be carried away from a lent machine: there 16 MB are the most."""
MOST_UNPACKED = 1 << 30
"""Bytes that one of them may hold."""
LEVEL = 1
"""Of gzip: the GPU waits meanwhile, and higher ones are slow for little."""
HEADERS = 2048
"""Bytes that a file may take in a tar beside its own."""


@dataclass(frozen=True)
class Unit:
    """Files that are of use together alone, by their names in the archive."""

    name: str
    files: dict[str, Path]
    most: int | None = None
    """Bytes kept of each file, its last ones; all by default."""

    def read(self) -> dict[str, bytes]:
        """The content; a file that has gone meanwhile is left out."""
        found = {}
        for name, path in self.files.items():
            try:
                with open(path, "rb") as file:
                    size = file.seek(0, io.SEEK_END)
                    skipped = max(0, size - self.most) if self.most else 0
                    file.seek(skipped)
                    content = file.read()
            except OSError:
                continue
            said = f"… {skipped} bytes before this are left out …\n".encode() if skipped else b""
            found[name] = said + content
        return found

    @property
    def newest(self) -> float:
        """When the last of its files was written."""
        times = [0.0]
        for path in self.files.values():
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    @property
    def size(self) -> int:
        total = 0
        for path in self.files.values():
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                total += min(size, self.most or size) + HEADERS
        return total


def pack(units: Iterable[Unit], *, seconds: float = float("inf")) -> tuple[bytes, list[str]]:
    """(a tar.gz under LIMIT, the names of the units that it has not), first come first served.

    Whether a unit still fits is known only once it is compressed; here it has to fit as it is.
    """
    until = time.monotonic() + seconds
    buffer, left_out = io.BytesIO(), []
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for unit in units:
            packed.flush()
            full = buffer.tell() + unit.size + 4 * tarfile.RECORDSIZE > LIMIT
            if full or time.monotonic() > until:
                left_out.append(unit.name)
            else:
                for name, content in unit.read().items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), left_out


def unpack(archive: Path, folder: Path) -> bool:
    """Write the files of an archive below the folder; whether there was one that could be read, and
    was no larger than archives of ours become."""
    room = MOST_UNPACKED
    try:
        with opened(archive) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            for member in tar:
                room -= member.size
                if room < 0:
                    return False
                name = PurePosixPath(member.name)
                if not member.isfile() or name.is_absolute() or ".." in name.parts:
                    continue
                content = tar.extractfile(member)
                assert content is not None
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    except (OSError, EOFError, tarfile.TarError):
        return False
    return True


def by_folder(root: Path) -> list[Unit]:
    """The files below a folder, a unit for each folder that holds some, the newest first.

    What a compiler's cache keeps of one kernel lies in one folder, and is useless in part.
    """
    groups: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            groups.setdefault(path.parent, []).append(path)
    units = [
        Unit(str(folder.relative_to(root)), {p.relative_to(root).as_posix(): p for p in files})
        for folder, files in groups.items()
    ]
    return sorted(units, key=lambda unit: -unit.newest)
