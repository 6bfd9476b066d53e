"""What fastuiat writes and reads back, each kind with its files, who writes and who reads them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastuiat import data
from fastuiat.bench.gpu import recorded
from fastuiat.bench.record import RecordFile, make_record
from fastuiat.bench.timing import Measurement
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.data import beton, preparation
from fastuiat.files import write_json
from fastuiat.interrupts import Interrupted
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.trainer import Trainer

CONFIG = TrainConfig(
    dataset="digits", arch="wrn-10-1", method="natural", loader="resident", precision="fp32",
    compile=False, device="cpu", val_size=16, train_size=256, batch_size=64, epochs=3, log_every=1,
)  # fmt: skip
EVAL = ("--attacks", "clean", "--n", "8", "--batch-size", "8", "--device", "cpu")
TIMES = {"seconds", "time", "path", "compile_seconds", "part_seconds"}


@dataclass(frozen=True)
class Subject:
    """`make` writes the files, `read` reads them; both in the folder that is theirs.

    `read` returns what is compared. `may_be_cut`: an end that is missing is not what a writer that
    was killed leaves.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[[], object]
    read: Callable[[], Any]
    may_be_cut: bool = True
    begins_with: Callable[[], object] | None = None
    """Makes what several subjects have, in a folder that is copied for each of them."""
    imports: tuple[str, ...] = ()
    """What this one's command imports late, and a fork should find, beside tests/imported.py."""


def quiet(_: str) -> None:
    pass


def trained() -> None:
    run.train(replace(CONFIG, out=Path("run")), say=quiet)


def stopped() -> None:
    """A run that a signal ends in its third epoch."""
    take = Trainer.take_step

    def stopping(self: Any, batch: Any) -> None:
        take(self, batch)
        if self.step == 9:
            self.stop_signal = 15

    Trainer.take_step = stopping  # type: ignore[method-assign]
    try:
        trained()
    except Interrupted:
        return
    raise AssertionError("it was not stopped")


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def json_files(*globs: str) -> list[Any]:
    """Without what no two runs share."""
    paths = sorted(p for glob in globs for p in Path().glob(glob))
    return [without(json.loads(path.read_text()), TIMES) for path in paths]


def resumed() -> Any:
    main(["train", "--resume", "run"])
    last = torch.load("run/checkpoints/last.pt", weights_only=True)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    weights = {name: tensor.numpy().tobytes() for name, tensor in last["model"].items()}
    return weights, [without(line, {"clock"}) for line in lines]


def evaluated_run() -> None:
    main(["eval", "run", "--attacks", "clean", "pgd", "--eps", "8/255", *EVAL[2:]])
    main(["report", "run", "--data-dir", "."])


def evaluate(*words: str) -> Callable[[], Any]:
    def read() -> Any:
        main(["eval", *words, *EVAL, "--out", "new"])
        return json_files("new/eval/*.json")

    return read


def reported() -> str:
    main(["report", "run", "--out", "new.html", "--data-dir", "."])
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.+]*", "", Path("new.html").read_text())


def measured_again() -> Any:
    main(["eval", "run", *EVAL])
    return json_files("run/eval/clean*.json")


AUTOATTACK = ("eval", "run", "--attacks", "autoattack", "--version", "rand", "--eps", "0.5/255",
              "--n", "8", "--batch-size", "4", "--device", "cpu")  # fmt: skip


def attacked_in_part() -> None:
    """An AutoAttack that ends after its second batch, with its state and answers on the disk."""
    from fastuiat.evaluation import autoattack, tape

    tape.WRITE_EVERY = 0.0
    write, count = autoattack.write_state, 0

    def stopping(*words: Any) -> None:
        nonlocal count
        write(*words)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    autoattack.write_state = stopping  # type: ignore[assignment]
    try:
        main([*AUTOATTACK])
    except (KeyboardInterrupt, SystemExit):
        assert list(Path("run/eval").glob("*.state"))
        return
    raise AssertionError("it was not stopped")


def attacked() -> Any:
    main([*AUTOATTACK])
    return json_files("run/eval/autoattack*.json")


def records() -> list[dict[str, Any]]:
    return [
        make_record(
            suite="step", case="wrn-10-1/b4/sat", device=torch.device("cpu"),
            measured=Measurement(name=provider, samples=[seconds, 1.1 * seconds, 1.2 * seconds]),
            config={"batch_size": 4}, arch="wrn-10-1", batch=4, method="sat", dtype="fp32",
            images_per_second=4 / seconds,
        )
        for provider, seconds in (("fastuiat", 0.1), ("by hand", 0.3))
    ]  # fmt: skip


def benched() -> None:
    for name in ("one machine", "another"):
        with RecordFile(Path(f"{name.split()[0]}.jsonl")) as file:
            for record in records():
                file.write([record | {"device": name, "cpu": None}])


def compared() -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(["bench", "compare", "one.jsonl", "another.jsonl", "--no-bounds"])
    print(said.getvalue())
    return said.getvalue()


def gpu_report() -> None:
    Path("report").mkdir()
    Path("results").mkdir()
    tests = {"total": 2, "passed": 2, "failed": 0, "skipped": 0}
    stages = {"step": {"verdict": "passed", "time": "2026-01-01T00:00:00", "tests": tests}}
    write_json(Path("report/state.json"), {
        "format": "fastuiat-gpu-1", "id": "0123456789ab", "time": "2026-01-01T00:00:00+00:00",
        "device": "a GPU", "versions": {"torch": "2.9"}, "commit": "ab" * 20, "sources": "0" * 16,
        "calls": [], "stages": stages,
    })  # fmt: skip
    with RecordFile(Path("report/records.jsonl")) as file:
        file.write(records())


def gpu_report_kept() -> Any:
    try:
        recorded.add(Path("report"), Path("results"))
        return recorded.table_of(Path("results")), sums("results")
    except UserError as error:
        return refused(error)


def refused(error: UserError) -> Any:
    """As the command line does."""
    import sys

    print(f"fastuiat: {error}", file=sys.stderr)
    sys.exit(2)


def sums(*folders: str) -> list[str]:
    files = [p for folder in folders for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return [f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]


REPRODUCED = ("reproduce", "table6", "--rows", "iat", "--dataset", "digits", "--arch", "wrn-10-1",
              "--epochs", "1", "--n", "8", "--device", "cpu", "--record")  # fmt: skip


def ledger() -> None:
    from fastuiat.reproduce.ledger import Ledger
    from fastuiat.reproduce.rows import Options, rows_of, scale_of

    options = Options(table="table6", rows=("iat",), dataset="digits", arch="wrn-10-1", epochs=1,
                      n=8, device="cpu")  # fmt: skip
    (row,), columns = rows_of(options), scale_of(options).columns
    made = {"time": "2026-01-01T00:00:00+00:00", "device": "a CPU", "jobs": 1, "precision": "fp32"}
    content = {"accuracies": dict.fromkeys(columns, 50.0), "n": dict.fromkeys(columns, 8),
               "curve": [], "made": made, "seconds_per_epoch": 1.0}  # fmt: skip
    for seed in scale_of(options).seeds:
        Ledger(Path("ledger.jsonl"), "table6").add(row, seed, content)


def reproduced() -> Any:
    main([*REPRODUCED, "ledger.jsonl", "--out", "new"])
    return json_files("new/*.json")


def pictures() -> None:
    drawn = np.random.default_rng(0)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        Path("pictures", name).mkdir(parents=True)
        for i in range(6):
            pixels = drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("pictures", name, f"{i}.png"))


def prepared() -> Any:
    how = preparation.Preparation(resolution=16, say=print)
    try:
        found = data.load("folder:pictures", Path("data"), "train", how=how)
    except UserError as error:
        return refused(error)
    assert found.fingerprint is not None
    return found.fingerprint.to_json(), hashlib.sha256(np.asarray(found.images)).hexdigest()


def pictures_prepared() -> None:
    pictures()
    prepared()


def pictures_in_part() -> None:
    """A preparation that ends in the middle of its pictures."""
    pictures()
    preparation.CHUNK = 3
    write_at, count = preparation.write_at, 0

    def stopping(*words: Any) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        write_at(*words)

    preparation.write_at = stopping
    try:
        prepared()
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not stopped")


def pool() -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(0)
    return drawn.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), np.arange(40) % 10


def training_file() -> None:
    beton.prepare(*pool(), Path("cache"), "pool")


def training_file_read() -> Any:
    try:
        return beton.prepare(*pool(), Path("cache"), "pool").name
    except UserError as error:
        return refused(error)


def exported() -> None:
    main(["export", "run", "--format", "safetensors", "--out", "net.safetensors"])


def exported_class() -> None:
    main(["export", "run", "--format", "robustbench", "--out", "net.pt"])


def extra() -> None:
    images, labels = pool()
    np.savez("stored.npz", image=images, label=labels)
    np.savez_compressed("packed.npz", image=images, label=labels)


def extra_read() -> Any:
    try:
        return [
            data.load_extra(Path(f"{name}.npz"), "cifar10", Path()).fingerprint.to_json()
            for name in ("stored", "packed")
        ]
    except UserError as error:
        return refused(error)


def as_it_is() -> None:
    pass


DIGITS = ("--dataset", "digits")
SUBJECTS = (
    Subject("checkpoint", ("run/checkpoints/best.pt",), as_it_is, evaluate("run"),
            begins_with=trained),
    Subject("resume", ("run/checkpoints/last.pt",), as_it_is, resumed, begins_with=stopped),
    Subject("settings", ("run/config.json", "run/environment.json"), as_it_is, resumed,
            begins_with=stopped),
    Subject("log", ("run/metrics.jsonl",), as_it_is, resumed, begins_with=stopped),
    Subject("report", ("run/*.json", "run/metrics.jsonl", "run/eval/*.json"), evaluated_run,
            reported, begins_with=trained),
    Subject("record", ("run/eval/clean*.json",), evaluated_run, measured_again,
            begins_with=trained),
    Subject("autoattack", ("run/eval/*.state*",), attacked_in_part, attacked, begins_with=trained),
    Subject("bench", ("one.jsonl", "another.jsonl"), benched, compared, may_be_cut=False),
    Subject("gpu", ("report/*.json*",), gpu_report, gpu_report_kept, may_be_cut=False),
    Subject("ledger", ("ledger.jsonl",), ledger, reproduced, may_be_cut=False),
    Subject("prepared", ("data/**/*.beton", "data/**/*.json"), pictures_prepared, prepared),
    Subject("progress", ("data/**/.*",), pictures_in_part, prepared),
    Subject("beton", ("cache/*.beton", "cache/*.json"), training_file, training_file_read,
            imports=("ffcv.fields",)),
    Subject("safetensors", ("net.safetensors",), exported, evaluate("net.safetensors", *DIGITS),
            begins_with=trained),
    Subject("class", ("net.pt",), exported_class,
            evaluate("net.pt", "--arch", "wrn-10-1", *DIGITS), begins_with=trained),
    Subject("npz", ("*.npz",), extra, extra_read),
)  # fmt: skip
