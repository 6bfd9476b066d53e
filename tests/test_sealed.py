"""One flipped bit, wherever it is, shows in what has a checksum; without one all is as it was."""

from __future__ import annotations

import io
import json
import zlib

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fastuiat import sealed, sealed_tensors
from fastuiat.files import json_in, write_json

VALUES = [
    {},
    {"kind": "train", "loss": 0.1 + 0.2, "none": None, "clock": {"images_per_second": 1e-9}},
    {"text": "blanks  \t and }\n", "per_sample": "0101", "yes": True},
    [1, [2.5, "three"]],
]


def flipped(content: bytes):
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("value", VALUES[:3], ids=["empty", "line", "text"])
def test_what_a_kill_leaves_of_a_line_and_what_it_does_not(value):
    whole = sealed.line(value)
    assert all(sealed.is_beginning(whole[:end]) for end in range(1, len(whole)))
    for bit in range(8):  # of the end of the line
        assert not sealed.is_beginning(whole[:-1] + bytes([whole[-1] ^ 1 << bit]))
    for begin in range(len(whole) - 1):
        zeros = whole[:begin] + bytes(len(whole) - begin)
        assert not sealed.is_beginning(zeros)
    assert not any(map(sealed.is_beginning, (b"", b"[1", b"page", b'{"a": 1} {"b"', 9**5 * b"[")))


@pytest.mark.parametrize("form", [sealed.line, sealed.document])
@pytest.mark.parametrize("value", VALUES, ids=["empty", "line", "text", "list"])
def test_every_flipped_bit_shows(form, value):
    content = form(value)
    assert json.loads(content) == sealed.unsealed(content) == value
    for changed in flipped(content):
        with pytest.raises(ValueError):
            sealed.unsealed(changed)


def test_the_checksum_is_a_crc_32_in_blanks():
    content = sealed.line({"a": 1})
    bits = "".join("1" if c == ord("\t") else "0" for c in content[-33:-1])
    assert int(bits, 2) == zlib.crc32(b'{"a": 1}') and content.endswith(b"\n")
    assert set(content[-33:-1]) <= {ord(" "), ord("\t")}


def test_what_has_no_checksum_is_believed():
    for text in (b'{"a": 1}', b'{"a": 1}\n', b'{"a": 1}  \r\n', b' {"a": 1}' + b" " * 40):
        assert sealed.unsealed(text) == {"a": 1}
    again = json.dumps(sealed.unsealed(sealed.document({"a": 1})) | {"a": 2}, indent=2)
    assert sealed.unsealed(again.encode()) == {"a": 2}


def test_cut_and_zeroed(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"values": list(range(300))})
    content = path.read_bytes()
    for damaged in (content[:-5], content[:700], content[:512] + bytes(512) + content[1024:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            json_in(path)
    path.write_bytes(content.replace(b"299", b"298"))
    with pytest.raises(sealed.Damaged, match="edited by hand"):
        json_in(path)


def test_nested_too_deeply():
    with pytest.raises(ValueError, match="nested too deeply"):
        sealed.unsealed(b"[" * 100_000)


def test_a_safetensors_file_of_ours_shows_every_flipped_bit():
    tensors = {"w": torch.arange(2.0), "b": torch.ones(1)}
    content = sealed_tensors.sealed(save(tensors, {"arch": "wrn-10-1"}))
    assert set(load(content)) == {"w", "b"}
    assert int.from_bytes(content[:8], "little") % 8 == 0
    for changed in flipped(content):
        if sealed_tensors.is_as_written(io.BytesIO(changed)):
            with pytest.raises(SafetensorError):
                load(changed)
    assert sealed_tensors.is_as_written(io.BytesIO(content))
    for padded in (save(tensors), b"\x28" + bytes(7) + b"{}" + b" " * 38):
        assert sealed_tensors.is_as_written(io.BytesIO(padded))
