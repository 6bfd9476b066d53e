"""A checksum in a safetensors file, whose format has none: blanks at the end of its header.

As in `sealed`, 32 of them are a CRC-32, here of all bytes of the file but themselves. The header is
JSON that may be padded, so that other readers pass over them; files of others have none.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

from fastuiat.sealed import LENGTH, is_seal, seal_of

PREFIX = struct.Struct("<Q")
"""The length of the header in bytes, with which a file begins."""
LONGEST = 100_000_000
"""Bytes of a header, as the format has it."""
CHUNK = 1 << 20


def sealed(content: bytes) -> bytes:
    """A whole file with its checksum; tensors stay aligned to eight bytes."""
    (length,) = PREFIX.unpack_from(content)
    end = PREFIX.size + length
    before = PREFIX.pack(length + LENGTH) + content[PREFIX.size : end]
    return before + seal_of(zlib.crc32(content[end:], zlib.crc32(before))) + content[end:]


def is_as_written(file: IO[bytes]) -> bool:
    """Whether an open file agrees with its checksum, or has none."""
    file.seek(0)
    begin = file.read(PREFIX.size)
    if len(begin) < PREFIX.size:
        return True  # it is no such file, as its reader says
    header = file.read(min(PREFIX.unpack(begin)[0], LONGEST))
    own, seal = header[:-LENGTH], header[-LENGTH:]
    if not is_seal(seal):
        return True
    crc = zlib.crc32(own, zlib.crc32(begin))
    while chunk := file.read(CHUNK):
        crc = zlib.crc32(chunk, crc)
    return seal == seal_of(crc)
