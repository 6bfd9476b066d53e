"""Files of strangers: small ones that claim to be large, sparse ones, and pickles of all kinds."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

MB = 1 << 20
TERABYTE = 1 << 40
BATCH = "cifar-10-batches-py/test_batch"
EVAL = ("--arch", "wrn-10-1", "--attacks", "clean", "--n", "8")


def zeros(begin: bytes, megabytes: int, wbits: int = -15) -> bytes:
    """Deflated: `begin`, and then so many zeros, a thousand times smaller, made in no time."""
    packer = zlib.compressobj(9, wbits=wbits)
    packed = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed + block * megabytes + packer.flush()


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """A zip of (name, deflated content, bytes that it claims to be), whose checksums are 0."""
    file, directory = b"", b""
    for name, content, claimed in members:
        extra = struct.pack("<HHQQ", 1, 16, claimed, len(content))
        about = struct.pack("<HHHHIII", 0, 8, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF)
        about += struct.pack("<HH", len(name), len(extra))
        directory += b"PK\1\2\x2d\0\x2d\0" + about + bytes(10) + struct.pack("<I", len(file))
        directory += name.encode() + extra
        file += b"PK\3\4\x2d\0" + about + name.encode() + extra + content
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(file), 0)
    return file + directory + b"PK\5\6" + end


def huge_directory(path: Path, size: int) -> None:
    """A sparse file whose end says that it is a zip, and that half of it is a table of contents."""
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size // 2, 100)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, size - 98, 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    sparse(path, b"PK\3\4", size, end)


def sparse(path: Path, begin: bytes = b"", size: int = TERABYTE, end: bytes = b"") -> Path:
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


def npy(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy of bytes."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def checkpoint(pickled: bytes) -> bytes:
    """What torch.save writes, around another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/version", "3\n")
    return file.getvalue()


def old_checkpoint(*pickles: bytes) -> bytes:
    """The same of the time before 1.6: a number, a version, a machine, and then the content."""
    begin = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join([*(pickle.dumps(value, 2) for value in begin), *pickles])


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def called(name: str, number: int) -> bytes:
    """Pickled: `name`, called with a number."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + pickle.dumps((number,), 2)[2:-1] + b"R"


class Code:
    """Runs a command when it is unpickled by whoever trusts it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def picture(path: Path, width: int, height: int, megabytes: int, colour: int = 2) -> None:
    """A PNG of zeros that says what it is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zeros(b"", megabytes, 15)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
