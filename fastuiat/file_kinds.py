"""What a file is, in words, by its first bytes: for messages about one that was not expected."""

from __future__ import annotations

import codecs
import os
import re
import stat
import zipfile
import zlib
from pathlib import Path

from fastuiat.bounds import zip_of

_BEGIN = 4096
"""As many bytes are looked at; a tar's mark ends at byte 262, a MATLAB 7.3 file's HDF5 at 520."""
_MARKS = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer"),
    (b"version https://hawser.github.com/spec/", "a Git-LFS pointer"),
    (b"/annex/objects/", "a git-annex pointer"),
    (b"\x93NUMPY", "a NumPy file of one array (.npy)"),
    (b"MATLAB 7.3 MAT-file", "a MATLAB 7.3 file (HDF5)"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF-", "a PDF document"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    # torch.save's own number, as a pickle, at the front of what it wrote before version 1.6.
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch file of the time before 1.6"),
)
_HTML = re.compile(rb"(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script)\b", re.I | re.S)
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def kind_of(path: str | Path) -> str | None:
    """`a web page (HTML)`, `a folder` …: what stands at `path`, with its article.

    None where nothing known is recognised, or nothing can be read there. What is no plain file is
    never opened, so nothing waits for a pipe's other end; of others a few KB are read, of a zip its
    table of contents.
    """
    try:
        status = os.stat(path)
        for is_special, words in _SPECIAL:
            if is_special(status.st_mode):
                return words
        with open(path, "rb") as file:
            begin = file.read(_BEGIN)
            file.seek(max(0, status.st_size - 8))
            end = file.read(8)
    except (OSError, ValueError):  # a ValueError: a NUL in the path
        return None
    if begin.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(path)
    if begin.startswith(b"\x1f\x8b"):
        return _kind_of_gzip(begin)
    return _kind_of_bytes(begin, status.st_size, end)


def reason_of(error: Exception) -> str:
    """What a reader says of a file, in one line and in printable letters: it may quote the file.

    The first line alone: NumPy's second one advises to trust the file.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0])[:200]


def _kind_of_bytes(begin: bytes, size: int, end: bytes) -> str | None:
    if not begin:
        return "an empty file"
    for mark, words in _MARKS:
        if begin.startswith(mark):
            return words
    if begin[257:262] == b"ustar":
        return "a tar archive"
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return "a WebP picture"
    header = int.from_bytes(begin[:8], "little")
    if begin[8:9] == b"{" and 2 <= header <= size - 8:
        return "a safetensors file"
    if begin[0] == 0x80 and begin[1:2] <= b"\x05" and end[-1:] == b".":
        return "a Python pickle"
    # Protobuf: field 1 is the IR's version, field 2 the producer's name.
    if re.match(rb"\x08[\x01-\x20]\x12.[\w.-]{2}", begin, re.S):
        return "an ONNX model"
    if end == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return "the index of a TensorFlow checkpoint"
    # A mapping, then its first key as a short text.
    if re.match(rb"([\x81-\x8f]|\xde..)[\xa1-\xbf][\w/ .-]{2}", begin, re.S):
        return "a MessagePack file, as Flax writes them"
    return _kind_of_text(begin)


def _kind_of_text(begin: bytes) -> str | None:
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a text file (UTF-16)"
    try:
        # Incremental: what was read may end inside a character.
        codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        return None
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", begin):
        return None
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(text):
        return "a web page (HTML)"
    if text.startswith(b"<?xml"):
        return "an XML file"
    if re.match(rb'\{\s*["}]|\[\s*[\[\]{"\d-]', text):
        return "a JSON file"
    return "a text file"


def _kind_of_gzip(begin: bytes) -> str:
    """Of what is packed only the first bytes are unpacked."""
    try:
        inside = zlib.decompressobj(wbits=31).decompress(begin, 512)
    except zlib.error:
        return "a gzip file, damaged"
    return "a tar archive, gzipped" if inside[257:262] == b"ustar" else "a gzip file"


def _kind_of_zip(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            names = zip_of(file).namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return "a zip archive (as of .npz and .pt), cut off or damaged"
    inside = {name.partition("/")[2] for name in names}  # torch's lie in a folder of one name
    if "data.pkl" in inside:
        scripted = "constants.pkl" in inside and any(n.startswith("code/") for n in inside)
        return "a TorchScript program" if scripted else "a PyTorch file"
    if "archive_format" in inside or "archive_format" in names:
        return "a torch.export program"
    if "model.weights.h5" in names:
        return "a Keras model"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy file of several arrays (.npz)"
    return "a zip archive"
