"""JSON with a checksum behind it: what was damaged on the way is noticed where it is read.

The checksum is 32 blanks at the end of a line or a document, which JSON allows and whose readers
pass over: the CRC-32 of all bytes before them, a space for 0 and a tab for 1. So the value is what
it is without one, for everybody who reads or compares it, and a program that writes it anew leaves
none. What has none (an older file, one of somebody's own) is believed as it is.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from fastuiat.bounds import parsed_json

LENGTH = 32
LEAST_LEFT = 4
"""Of a seal that was cut; fewer blanks may be anybody's."""
BLANKS = str.maketrans("01", " \t")
WHITE = b" \t\r\n"
"""What JSON passes over; a tab with one bit flipped may be a return."""


class Damaged(ValueError):
    """The content is another than was written, in words that follow the file's name."""


def seal_of(crc: int) -> bytes:
    return f"{crc:0{LENGTH}b}".translate(BLANKS).encode()


def is_seal(blanks: bytes) -> bool:
    """Whether it is one, damaged or not: nobody fills up with tabs to this length."""
    return len(blanks) == LENGTH and is_part(blanks)


def is_part(blanks: bytes) -> bool:
    """Whether it is what is left of one, or a whole one."""
    return len(blanks) >= LEAST_LEFT and b"\t" in blanks and not blanks.strip(WHITE)


def sealed(content: bytes) -> bytes:
    """A line of it, JSON text that does not end in blanks."""
    return content + seal_of(zlib.crc32(content)) + b"\n"


def line(value: Any) -> bytes:
    """`value` as a line of JSON, sealed."""
    return sealed(json.dumps(value).encode())


def document(value: Any) -> bytes:
    """`value` as indented JSON, sealed."""
    return sealed(json.dumps(value, indent=2).encode())


def is_beginning(text: bytes) -> bool:
    """Whether a killed process may have left it of a line: nothing that `line` does not write, and
    nothing behind the value but a part of its seal."""
    own = text.rstrip(WHITE)
    if not own.startswith(b"{") or not all(32 <= byte < 127 for byte in own):
        return False
    try:
        parsed_json(own.decode())
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except ValueError:
        return False
    return True


def unsealed(content: bytes) -> Any:
    """What a line or document says; ValueError on what is no JSON, Damaged on a wrong checksum."""
    own = content.rstrip(WHITE)
    seal = content[len(own) :].rstrip(b"\n")
    if is_seal(seal) and seal != seal_of(zlib.crc32(own)):
        raise Damaged(
            "its checksum is another: it was damaged, or edited by hand; then delete the blanks at "
            "its end"
        )
    if len(seal) < LENGTH and is_part(seal):
        raise ValueError("its end was cut off")
    return parsed_json(own.decode())
