"""Wrong files: everything that fastuiat reads, with wrong values, wrong text, or no file at all.

What is read is a document (JSON, JSON lines, TOML), a file of weights or of images; of each one
value is replaced, or its text, or what stands there. The command that reads it must refuse in one
line and change nothing, or use it: a checksum is not in all of them, and no value but is possible.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.campaign import forked, spoiling
from tests.campaign.places import ON_RECORD, filled
from tests.campaign.trial import Trial
from tests.campaign.words import TRAIN, counted
from tests.imported import import_all

Words = tuple[str, ...]
EVAL: Words = ("--attacks", "clean", "--n", "8", "--device", "cpu")
RESUME: Words = ("train", "--resume", "../run")
READ_RUN: tuple[Words, ...] = (
    RESUME, ("eval", "../run", *EVAL), ("report", "../run", "--device", "cpu"),
    ("export", "../run", "--format", "robustbench"), ("train", *TRAIN, "--init", "../run"),
)  # fmt: skip
BENCH_GPU: Words = ("bench", "gpu", "--out", "../gpu-report")
EXTRA: Words = ("train", *TRAIN, "--extra-data", "../images.npy")
PUBLISHED: Words = ("--arch", "wrn-10-1", "--dataset", "digits")


@dataclass(frozen=True)
class Kind:
    """A file that is read: where it lies around the place, by which commands, how it is spoilt."""

    name: str
    path: str
    commands: tuple[Words, ...]
    spoil: Callable[[Path, random.Random, Iterator[Any]], str]
    weight: float = 1.0


# How each form of file is spoilt; all return what was done.


def document(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """A JSON document."""
    if random.random() < 0.35:
        return as_text(path, random)
    value, said = spoiling.spoilt_value(json.loads(path.read_text()), random, values)
    path.write_text(json.dumps(value, default=str))
    return said


def lines(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """JSON lines."""
    if random.random() < 0.35:
        return as_text(path, random)
    rows = path.read_text().splitlines()
    at = random.randrange(len(rows))
    value, said = spoiling.spoilt_value(json.loads(rows[at]), random, values)
    rows[at] = json.dumps(value, default=str).replace("\n", " ")
    path.write_text("\n".join(rows) + "\n")
    return f"line {at + 1}: {said}"


def toml(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    if random.random() < 0.5:
        return as_text(path, random)
    new = random.choice((
        "nan", "inf", "-1", "0x10", "1e999", "9" * 5000, "1979-05-27", "1979-05-27T07:32:00Z",
        "07:32:00", "[1, 2]", "{a = 1}", '"\\u001b[31m"', "true", '""', "[" * 2000, "'''a\nb'''",
        "{" * 500, '"x"' + "\n[attack]\neps = 1", "1\nseed = 2",
    ))  # fmt: skip
    rows = path.read_text().splitlines()
    at = random.randrange(len(rows))
    rows[at] = f"{rows[at].partition('=')[0]}= {new}"
    path.write_text("\n".join(rows) + "\n")
    return rows[at][:100]


def as_text(path: Path, random: random.Random) -> str:
    """What text, or what else, can be wrong with."""
    if random.random() < 0.2:
        return spoiling.in_place_of(path, random)
    way = random.choice(list(spoiling.TEXTS))
    path.write_bytes(spoiling.TEXTS[way](path.read_bytes(), random))
    return way


def weights(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """A file of torch.save: what is in it is saved again with something wrong."""
    if random.random() < 0.2:
        return as_text(path, random)
    content = torch.load(path, map_location="cpu", weights_only=True)
    value, said = spoiling.spoilt_value(content, random, values)
    try:
        torch.save(value, path)
    except (RuntimeError, ValueError, OverflowError):  # what no pickle has
        return as_text(path, random)
    return said


def safetensors(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """Its header is JSON behind eight bytes that say how long it is."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    value, said = spoiling.spoilt_value(header, random, values)
    text = json.dumps(value, default=str).encode()
    told = random.choice((len(text), len(text), len(text), 0, len(text) + 9, 1 << 62, 10))
    path.write_bytes(told.to_bytes(8, "little") + text + whole[8 + size :])
    return f"{said}, its length {told}"


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "float": lambda a: a.astype(np.float32), "int64": lambda a: a.astype(np.int64),
    "bool": lambda a: a.astype(bool), "text": lambda a: a.astype(str),
    "objects": lambda a: np.array([{}, 1], dtype=object), "complex": lambda a: a.astype(complex),
    "nothing": lambda a: a[:0], "a number": lambda a: np.array(5), "flat": lambda a: a.reshape(-1),
    "one more axis": lambda a: a[None], "one row": lambda a: a[:1], "turned": lambda a: a.T,
    "NaN": lambda a: np.full(a.shape, np.nan), "negative": lambda a: -1 - a.astype(np.int64),
    "huge": lambda a: a.astype(np.int64) + 2**60, "dates": lambda a: a.astype("datetime64[s]"),
    "in Fortran's order": np.asfortranarray, "big endian": lambda a: a.astype(">i8"),
    "fields": lambda a: np.zeros(len(a), dtype=[("a", "u1"), ("b", "f4")]),
    "one short": lambda a: a[:-1],
}  # fmt: skip


def arrays(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """An .npz of images and labels."""
    if random.random() < 0.3:
        return as_text(path, random)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    name, way = random.choice(list(content)), random.choice([*ARRAYS, "renamed", "removed"])
    array = content.pop(name)
    if way == "renamed":
        content[random.choice(("images", "x", "../x", "\x1b[31m", "a" * 200))] = array
    elif way != "removed":
        content[name] = ARRAYS[way](array)
    with open(path, "wb") as file:
        np.savez(file, **content)
    return f"{name} {way}"


def array(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """A .npy, or its header: a Python literal of so many bytes."""
    way = random.random()
    if way < 0.2:
        return as_text(path, random)
    if way < 0.6:
        kind = random.choice(list(ARRAYS))
        np.save(path, ARRAYS[kind](np.load(path)))
        return kind
    whole = path.read_bytes()
    end = 10 + int.from_bytes(whole[8:10], "little")
    said = random.choice((
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32, 32, 3)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 32, 32, 3)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (40,)}", b"{}", b"[]", b"(" * 5000,
        b"{'descr': '|u1', 'fortran_order': 1, 'shape': 40}", b"__import__('os').getcwd()",
        b"{'descr': '|V99999999', 'fortran_order': False, 'shape': (40,)}", b"\x00" * 50,
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (41, 32, 32, 3)}",
        b"{'descr': [('a', '|u1', (1000000, 1000000))], 'fortran_order': False, 'shape': (40,)}",
    ))  # fmt: skip
    text = said + b"\n"
    path.write_bytes(whole[:8] + len(text).to_bytes(2, "little") + text + whole[end:])
    return f"the header {said[:90]!r}"


def bytes_of(path: Path, random: random.Random, values: Iterator[Any]) -> str:
    """A binary file: cut, filled with others' bytes, or something else."""
    if random.random() < 0.4:
        return as_text(path, random)
    content = bytearray(path.read_bytes())
    at = random.randrange(min(len(content), random.choice((64, 4096, len(content)))))
    new = random.choice((b"\xff" * 8, b"\0" * 8, random.randbytes(8), b"\x7f\xff\xff\xff" * 4))
    content[at : at + len(new)] = new
    path.write_bytes(content)
    return f"{new.hex()} at {at}"


KINDS = [
    Kind("config.json", "run/config.json", (*READ_RUN, ("train", *TRAIN, "--config", "../run")),
         document, 3),
    Kind("environment.json", "run/environment.json", (RESUME, READ_RUN[2]), document),
    Kind("metrics.jsonl", "run/metrics.jsonl", (RESUME, READ_RUN[2]), lines, 2),
    Kind("evaluation", "run/eval/clean_n8.json",
         (READ_RUN[1], READ_RUN[2], READ_RUN[3]), document, 2),
    Kind("pgd evaluation", "run/eval/pgd-20_eps8over255_n8.json", (READ_RUN[2], READ_RUN[3]),
         document, 2),
    Kind("AutoAttack's state", "run/eval/autoattack_eps8over255_n8.state",
         (("eval", "../run", "--attacks", "autoattack", "--n", "8"),), document),
    Kind("natural losses", "run/eval/natural-loss_n8.json", (READ_RUN[2],), document),
    Kind("lock", "run/.lock", (RESUME, READ_RUN[1]), document, 0.3),
    Kind("settings in JSON", "settings.json",
         (("train", *TRAIN, "--config", "../settings.json"),), document, 3),
    Kind("settings in TOML", "settings.toml",
         (("train", *TRAIN, "--config", "../settings.toml"),), toml, 2),
    Kind("bench records", "records.jsonl", (
        ("bench", "compare", "../records.jsonl", "--no-bounds"),
        ("bench", "compare", "../records.jsonl", "--csv", "new.csv", "--html", "new.html"),
        ("bench", "compare", "../records.jsonl", "--baseline", "../records.jsonl"),
        ("bench", "scaling", "--device", "cpu", "--json", "../records.jsonl"),
    ), lines, 3),
    Kind("report of bench gpu", "gpu-report/state.json", (BENCH_GPU,), document, 2),
    Kind("records of bench gpu", "gpu-report/records.jsonl", (BENCH_GPU,), lines),
    Kind("reproduce's record", "ledger.jsonl", (ON_RECORD,), lines, 3),
    Kind("model_info", "model.json",
         (("export", "../run", "--format", "robustbench", "--out", "../model.pt"),), document),
    Kind("last.pt", "run/checkpoints/last.pt", (*READ_RUN, READ_RUN[0]), weights, 4),
    Kind("best.pt", "run/checkpoints/best.pt", READ_RUN[1:], weights, 3),
    Kind("helper", "run/checkpoints/last.pt",
         (("train", "--method", "hat", *TRAIN, "--helper", "../run"),), weights),
    Kind("published weights", "net.pt", (
        ("eval", "../net.pt", *PUBLISHED, *EVAL, "--out", "new"), ("eval", "../net.pt", *EVAL),
        ("export", "../net.pt", *PUBLISHED[:2], "--format", "safetensors", "--out", "new.st"),
        ("train", *TRAIN, "--init", "../net.pt"),
    ), weights, 3),
    Kind("safetensors", "net.safetensors", (
        ("eval", "../net.safetensors", *PUBLISHED, *EVAL, "--out", "new"),
        ("train", *TRAIN, "--init", "../net.safetensors"),
    ), safetensors, 2),
    Kind("extra data", "file.npz", (("train", *TRAIN, "--extra-data", "../file.npz"),), arrays, 2),
    Kind("a data set", "file.npz", (("train", *TRAIN, "--dataset", "npz:../file.npz"),), arrays),
    Kind("extra images", "images.npy", (EXTRA,), array, 2),
    Kind("extra labels", "labels.npy", (EXTRA,), array),
]  # fmt: skip


def beside(folder: Path) -> None:
    """The files of KINDS that are made of a run's."""
    run = folder / "run"
    settings = {"method": "sat", "max-lr": 0.1, "attack": {"eps": "8/255", "steps": 2}}
    (folder / "settings.json").write_text(json.dumps(settings | {"epochs": 3, "seed": 1}))
    (folder / "settings.toml").write_text(
        'method = "sat"\nmax-lr = 0.1\nepochs = 3\nflip = true\nattack.steps = 2\neps = "4/255"\n'
    )
    weights = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    torch.save({"state_dict": weights, "epoch": 3, "args": {"lr": 0.1}}, folder / "net.pt")
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "net.safetensors")
    np.save(folder / "labels.npy", np.arange(40) % 10)


def trials(random: random.Random, folder: Path) -> Iterator[Trial]:
    """Endless; the first makes a run, records and the rest."""
    import_all()
    fill = filled(folder / "kept", beside)
    place = forked.Place(folder / "place", fill)
    values = spoiling.values(random.randrange(1 << 30))
    messages: set[str] = set()
    try:
        while True:
            kind = random.choices(KINDS, [kind.weight for kind in KINDS])[0]
            words, said = random.choice(kind.commands), []

            def spoil(around: Path, kind: Kind = kind, said: list[str] = said) -> None:
                said.append(kind.spoil(around / kind.path, random, values))

            tried = place.run(words, spoil)
            what = f"{kind.name}, {said[0]}: {' '.join(words)}"
            what += tried.told() if tried.faults else ""
            yield Trial("files", what, tried.faults, counted(tried.outcome, messages))
    finally:
        shutil.rmtree(folder / "place", ignore_errors=True)
