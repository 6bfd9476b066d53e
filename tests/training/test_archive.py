"""A flipped bit anywhere in a file of torch.save is noticed; other writers' files are read."""

from __future__ import annotations

import hashlib
import io
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import fastuiat
from fastuiat.config import UserError
from fastuiat.training.archive import sha256_verified
from fastuiat.training.checkpoint import FORMAT, read

PATH = Path("net.pt")


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A run's checkpoint of a real net, with what stands beside its weights."""
    net = fastuiat.build_model("wrn-10-1")
    about = {"arch": "wrn-10-1", "activation": "relu", "num_classes": 10, "dataset": "digits"}
    content = {"format": FORMAT, "model": net.state_dict(), "net": about, "epoch": 1, "step": 1}
    return written(content | {"optimizer": {"momentum": [torch.randn(7)]}})


def written(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def is_refused(content: bytes) -> bool:
    try:
        sha256_verified(io.BytesIO(content), PATH)
    except UserError as error:
        return "damaged" in str(error) and "\n" not in str(error)
    return False


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def missed_bits(content: bytes) -> list[tuple[int, int]]:
    """(byte, bit) of each flip that is not noticed."""
    return [
        (place, bit)
        for place in range(len(content))
        for bit in range(8)
        if not is_refused(flipped(content, place, bit))
    ]


def test_each_single_bit_of_a_small_file():
    """Headers, padding, contents, descriptors and the directory, to the last bit."""
    small = written({"a": torch.randn(3, 4), "b": torch.arange(5)})
    assert not missed_bits(small)


def test_bits_and_ends_of_a_real_checkpoint(checkpoint, tmp_path):
    assert sha256_verified(io.BytesIO(checkpoint), PATH) == hashlib.sha256(checkpoint).hexdigest()
    draw = random.Random(0)
    for _ in range(200):
        place = draw.randrange(len(checkpoint))
        assert is_refused(flipped(checkpoint, place, draw.randrange(8))), place
    for _ in range(50):
        assert is_refused(checkpoint[: draw.randrange(22, len(checkpoint))])
    for more in (b"x", bytes(64)):
        assert is_refused(checkpoint + more)


@pytest.mark.parametrize("place", [0, 40, 2000, -30, -300, "middle", "pickle"])
def test_the_command_and_the_library_say_so_in_one_line(checkpoint, tmp_path, refusal, place):
    names = {"middle": len(checkpoint) // 2, "pickle": checkpoint.index(b"optimizer")}
    at = names.get(place, place) % len(checkpoint)
    path = tmp_path / "net.pt"
    path.write_bytes(flipped(checkpoint, at, 3))
    assert "damaged" in refusal("eval", "net.pt")
    for load in (fastuiat.load_checkpoint, read):
        with pytest.raises(UserError, match="damaged"):
            load(path)
    path.write_bytes(checkpoint)
    info = fastuiat.load_checkpoint(path)[1]
    assert info["sha256"] == hashlib.sha256(checkpoint).hexdigest()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_packed_anew_is_read(tmp_path, method):
    state = fastuiat.build_model("wrn-10-1").state_dict()
    with (
        zipfile.ZipFile(io.BytesIO(written(state))) as source,
        zipfile.ZipFile(tmp_path / "net.pt", "w", method) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    net, _ = fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    packed = (tmp_path / "net.pt").read_bytes()
    assert is_refused(flipped(packed, len(packed) // 2, 0))


def test_a_small_file_does_not_unpack_into_a_large_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("net/data.pkl", b"\x80\x02}.")
        target.writestr("net/data/0", bytes(80 << 20))
    with pytest.raises(UserError, match="form that torch"):
        fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")


def test_a_file_written_without_checksums_is_read():
    state = {"a": torch.randn(100)}
    was = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = written(state)
    finally:
        torch.serialization.set_crc32_options(was)
    assert sha256_verified(io.BytesIO(content), PATH) == hashlib.sha256(content).hexdigest()


def test_other_files_have_no_checksums():
    for content in (b"", b"P", b"\x80\x02", bytes(1000)):
        assert sha256_verified(io.BytesIO(content), PATH) == hashlib.sha256(content).hexdigest()


def test_one_empty_tensor_is_no_damage():
    """PyTorch streams no empty entry, which so is described otherwise than its neighbours."""
    for first, last in ((3, 5), (0, 5), (3, 0)):
        content = written({"a": torch.randn(first), "b": torch.randn(last)})
        assert sha256_verified(io.BytesIO(content), PATH) == hashlib.sha256(content).hexdigest()
    small = written({"a": torch.randn(3), "b": torch.empty(0), "c": torch.randn(2)})
    assert not missed_bits(small)


def test_a_traced_program_is_called_what_it_is(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.jit.trace(torch.nn.Linear(3, 2), torch.rand(1, 3))
    program.save(tmp_path / "net.pt")  # its example's entry is empty
    with pytest.raises(UserError, match=r"a TorchScript program, no checkpoint: torch\.save\("):
        fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")
