"""The checksums in torch.save's zip archives and the frame around them, verified in one pass.

Every entry's CRC-32 is compared. What no checksum covers (headers, padding, the directory) is told
twice in such a file or is alike in all entries, so that one flipped bit there shows as well.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fastuiat.bounds import memory, packs_too_much, zip_of
from fastuiat.config import UserError, legible

LOCAL = struct.Struct("<4sHHHHHIIIHH")
END64 = struct.Struct("<4sQHHIIQQQQ")
LOCATOR = struct.Struct("<4sIQI")
END = struct.Struct("<4sHHHHIIH")
WRITERS_OF_64 = {(0x031E, 45), (45, 45)}
"""(made by, needed) of zip64 directories as PyTorch and Python write them."""
STREAMED = 8
"""The flag of an entry whose checksum and sizes stand behind its content."""
UNDATED = (1980, 0, 0, 0, 0, 0)
"""When PyTorch says that it wrote each entry."""
CHUNK = 1 << 20


class Damaged(Exception):
    """What is wrong, in words that go on from `is damaged: `."""


class Odd(Exception):
    """A form of zip archive that torch.save does not write."""


def sha256_verified(file: IO[bytes], path: Path) -> str:
    """The SHA-256 of an open file in hexadecimal; UserError where it is a zip and damaged.

    It is read once from beginning to end, in pieces; `path` is its name in the message. What is
    larger than the memory is refused at once.
    """
    digest = hashlib.sha256()
    file.seek(0)
    begin = file.read(4)
    size = file.seek(0, 2)
    file.seek(max(0, size - END.size))
    is_zip = b"PK" in (begin[:2], file.read(2))  # a flipped bit may be in one of them
    if size > memory():
        raise UserError(f"{path} has {size / 1e9:,.3g} GB, more than there is memory")
    file.seek(0)
    try:
        if is_zip:
            verify(file, digest.update)
    except (Damaged, zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError) as error:
        said = error if isinstance(error, Damaged) else "its directory cannot be read"
        raise UserError(f"{path} is truncated or damaged: {said}: get it anew") from error
    except (
        Odd,
        NotImplementedError,
        RuntimeError,
    ) as error:  # of zipfile: compressed or locked some way
        said = "is damaged, or a zip archive of a form that torch.save does not write"
        raise UserError(f"{path} {said}") from error
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def verify(file: IO[bytes], passed: Callable[[bytes], Any]) -> None:
    """Read a zip archive to its end, handing every byte to `passed`; Damaged on what disagrees."""
    archive = zip_of(file)
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if len({entry.orig_filename for entry in entries}) < len(entries):
        raise Damaged("two entries have one name")
    has_checksums = any(entry.CRC for entry in entries)  # they can be switched off in torch.save
    refuse_odd(zip(entries, map(described, entries), strict=True))
    frames = []
    file.seek(0)
    for entry in entries:
        frames.append(verify_entry(archive, file, entry, has_checksums, passed))
    refuse_odd(zip(entries, frames, strict=True))
    if file.tell() != archive.start_dir:
        raise Damaged("its directory begins elsewhere")
    tail = file.read()
    passed(tail)
    verify_end(tail, archive, len(entries))


def refuse_odd(told: Iterable[tuple[zipfile.ZipInfo, tuple[Any, ...]]]) -> None:
    """Damaged where one entry alone is described in another way than all the others.

    In archives that others than PyTorch packed, dates and methods differ by right.
    """
    told = list(told)
    undated = sum(entry.date_time == UNDATED for entry, _ in told)
    if 2 * undated <= len(told):
        return
    counts = Counter(frame for _, frame in told)
    if len(told) > 2 and len(counts) == 2 and min(counts.values()) == 1:
        odd = min(counts, key=lambda frame: counts[frame])
        name = next(entry.orig_filename for entry, frame in told if frame == odd)
        name = legible(name)
        raise Damaged(f"the header of {name} is unlike the others'")


def described(entry: zipfile.ZipInfo) -> tuple[Any, ...]:
    """What the directory says of an entry and is the same of all in a file of torch.save.

    There an empty entry alone has no descriptor: nothing was streamed.
    """
    flags = entry.flag_bits | (0 if entry.file_size else STREAMED)
    return (
        entry.create_system, entry.create_version, entry.extract_version, entry.reserved,
        flags, entry.compress_type, entry.date_time, entry.volume, entry.internal_attr,
        entry.external_attr, entry.comment,
    )  # fmt: skip


def verify_entry(
    archive: zipfile.ZipFile,
    file: IO[bytes],
    entry: zipfile.ZipInfo,
    has_checksums: bool,
    passed: Callable[[bytes], Any],
) -> tuple[Any, ...]:
    """Read one entry, header to descriptor; what of its frame is alike in all of torch.save's."""

    def taken(count: int) -> bytes:
        content = file.read(count)
        if len(content) < count:
            raise Damaged(f"it ends within {name}")
        passed(content)
        return content

    name = legible(entry.orig_filename)
    if file.tell() != entry.header_offset:
        raise Damaged(f"{name} begins elsewhere")
    mark, version, flags, method, time, date, crc, packed, size, length, extra = LOCAL.unpack(
        taken(LOCAL.size)
    )
    told = entry.CRC, entry.compress_size, entry.file_size
    own = taken(length) == encoded_name(entry)
    own &= mark == b"PK\x03\x04" and (flags, method) == (entry.flag_bits, entry.compress_type)
    own &= moment(date, time) == entry.date_time
    here = (crc, packed, size)
    # Of an entry above 4 GB the sizes stand in the extra field.
    own &= here == told or here == (0, 0, 0) or (0xFFFFFFFF in here and crc in (0, entry.CRC))
    if not own:
        raise Damaged(f"the header of {name} is not what the directory says")
    padded = padding_is_whole(taken(extra))
    if verify_content(archive, file, entry, taken) != entry.CRC and has_checksums:
        raise Damaged(f"{name} has another checksum than when it was written")
    streamed = b""
    if flags & STREAMED:
        streamed = taken(4)
        rest = taken(8) if streamed == b"PK\x07\x08" else streamed + taken(4)
        wide = max(told) > 0xFFFFFFFF
        rest += taken(12 if wide else 4)
        if struct.unpack("<IQQ" if wide else "<III", rest) != told:
            raise Damaged(f"the sizes of {name} are told in two ways")
    alike = here == (0, 0, 0), streamed[:2] if entry.file_size else b"PK"
    return version == entry.extract_version, padded, *alike


def encoded_name(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def moment(date: int, time: int) -> tuple[int, ...]:
    """A zip's date and time as zipfile gives them, each bit of them in one of the numbers."""
    day = (date >> 9) + 1980, (date >> 5) & 0xF, date & 0x1F
    return *day, time >> 11, (time >> 5) & 0x3F, (time & 0x1F) * 2


def verify_content(
    archive: zipfile.ZipFile,
    file: IO[bytes],
    entry: zipfile.ZipInfo,
    taken: Callable[[int], bytes],
) -> int:
    """The CRC-32 of an entry's content, which is stored as it is or, by other writers, deflated."""
    crc, size = 0, 0
    unpack = zlib.decompressobj(-15) if entry.compress_type == zipfile.ZIP_DEFLATED else None
    if unpack is None and entry.compress_type != zipfile.ZIP_STORED:
        raise Odd
    if entry.flag_bits & 1 or packs_too_much(entry.compress_size, entry.file_size):
        raise Odd  # encrypted, or made to fill the memory
    if unpack is None and entry.compress_size != entry.file_size:
        raise Damaged(f"the sizes of {legible(entry.orig_filename)} are told in two ways")
    for count in pieces(entry.compress_size):
        content = taken(count)
        if unpack is None:
            crc = zlib.crc32(content, crc)
            continue
        while content:
            part = unpack.decompress(content, CHUNK)
            crc, size = zlib.crc32(part, crc), size + len(part)
            content = unpack.unconsumed_tail
            if size > entry.file_size:
                raise Damaged(f"{legible(entry.orig_filename)} goes on behind its end")
    return zlib.crc32(unpack.flush(), crc) if unpack else crc


def pieces(size: int) -> Iterator[int]:
    for begin in range(0, size, CHUNK):
        yield min(CHUNK, size - begin)


def padding_is_whole(extra: bytes) -> bool:
    """Whether extra fields end where they should and PyTorch's padding is one character."""
    while extra:
        if len(extra) < 4:
            return False
        mark, length = struct.unpack("<2sH", extra[:4])
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if len(content) < length or (mark == b"FB" and len(set(content) | {ord("Z")}) > 1):
            return False
        if mark not in (b"FB", b"\x01\0"):
            return False
    return True


def verify_end(tail: bytes, archive: zipfile.ZipFile, count: int) -> None:
    """Compare what stands from the directory on with the directory's own place and size."""
    begin, size, right = archive.start_dir, 0, True
    for entry in archive.infolist():
        name = encoded_name(entry)
        lengths = len(name), len(entry.extra), len(entry.comment)
        right &= struct.unpack_from("<HHH", tail, size + 28) == lengths
        size += 46 + sum(lengths)
    after = tail[size:]
    if after[:4] == b"PK\x06\x06":
        _, length, made, needed, *places = END64.unpack(after[: END64.size])
        right &= length == 44 and (made, needed) in WRITERS_OF_64
        right &= places == [0, 0, count, count, size, begin]
        after = after[END64.size :]
        right &= LOCATOR.unpack(after[: LOCATOR.size]) == (b"PK\x06\x07", 0, begin + size, 1)
        after = after[LOCATOR.size :]
    mark, *disks, here, total, length, place, comment = END.unpack(after[: END.size])
    right &= mark == b"PK\x05\x06" and disks == [0, 0] and here == total
    right &= total in (count, 0xFFFF) and length in (size, 0xFFFFFFFF)
    right &= place in (begin, 0xFFFFFFFF) and len(after) == END.size + comment
    if not right:
        raise Damaged("the end of its directory is not what the directory is")
