"""Long and large inputs, as fastuiat writes them: logs, run folders, bench records.

    python -m tests.large log --lines 1000000 RUN       # a run folder with a log of so many lines
    python -m tests.large runs --runs 300 FOLDER        # run folders FOLDER/run-001 …
    python -m tests.large records --records 10000 FILE  # bench records of two devices

Nothing is trained or measured: the numbers are drawn.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastuiat.bench.record import config_hash
from fastuiat.training.config import TrainConfig

CARDS = {"NVIDIA A100-SXM4-80GB": 400.0, "NVIDIA H100 80GB HBM3": 700.0}


def calls_in(action: Callable[[], Any]) -> int:
    """How many functions `action` calls, of Python and of C: work, whatever the clock says."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def moved() -> tuple[int, int]:
    """Bytes that this process has read and written, by system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counts["rchar"], counts["wchar"]


def log_lines(count: int, *, each: int = 100, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` lines of metrics.jsonl; every `each`-th one ends an epoch."""
    draw = random.Random(seed)
    for i in range(1, count + 1):
        epoch, ends = -(-i // each), i % each == 0
        line: dict[str, Any] = {"kind": "epoch" if ends else "train", "step": i, "epoch": epoch}
        speed = {"steps": 1, "images_per_second": draw.uniform(900, 1100)}
        if ends:
            for part in ("val", "test"):
                for kind in ("natural", "robust"):
                    line[f"{part}_{kind}"] = draw.random()
            clock = {"data_wait_percent": draw.random(), "validation_seconds": draw.random()}
        else:
            line |= {"lr": 0.1 * draw.random(), "loss": draw.random()}
            for name in ("robust_accuracy", "target_accuracy", "target_confidence"):
                line[name] = draw.random()
            line |= {"target_margin": draw.random(), "grad_zero_share": 0.0, "grad_nonfinite": 0.0}
            clock = {"data_wait_percent": draw.random(), "peak_memory_mib": draw.uniform(900, 999)}
        yield {**line, "clock": speed | clock}


def write_log(folder: Path, count: int, *, each: int = 100, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for line in log_lines(count, each=each, seed=seed):
            file.write(json.dumps(line) + "\n")


def write_run(
    folder: Path,
    *,
    lines: int,
    each: int = 100,
    levels: int = 9,
    images: int = 100,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """A run folder without checkpoints: `lines` of log, PGD at 2·`levels` radii, AutoAttack."""
    write_log(folder, lines, each=each, seed=seed)
    config = TrainConfig(dataset="digits", arch="wrn-10-1", method="uiat", seed=seed, out=folder)
    stored = config.to_json()
    stored["settings"] |= settings
    (folder / "config.json").write_text(json.dumps(stored, default=str))
    known = {"fastuiat": "0.1.0", "torch": "2", "threads": 2, "command": ["fastuiat", "train"]}
    (folder / "environment.json").write_text(json.dumps(known))
    margin = [random.Random(seed).gauss(8, 8) for _ in range(images)]
    radii = [level for level in range(-levels, levels + 1) if level]
    write_evaluation(folder, "clean", 0, [m > 0 for m in margin])
    for level in radii:
        write_evaluation(folder, "pgd", level, [m > level for m in margin])
    write_evaluation(folder, "autoattack", 8, [m > 9 for m in margin])
    return folder


def write_evaluation(
    folder: Path, attack: str, level: float, correct: list[bool], **more: Any
) -> None:
    """A record of RUN/eval; levels in 255ths."""
    (folder / "eval").mkdir(exist_ok=True)
    radius = {} if attack == "clean" else {"eps": f"{level}/255", "eps_value": level / 255}
    value = {
        "attack": attack,
        **radius,
        "accuracy": sum(correct) / len(correct),
        "n": len(correct),
        "dataset": "digits",
        "split": "test",
        "seed": 0,
        "seconds": 1.5,
        "checkpoint": {"sha256": "0" * 64, "weights": "raw"},
        "per_sample": "".join("1" if c else "0" for c in correct),
        **more,
    }
    (folder / "eval" / f"{attack}_{level}.json").write_text(json.dumps(value))


def bench_records(count: int, *, distinct: bool, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` records of `bench step`, half of them of each of two cards.

    All of one case, of which the newest counts; or `distinct`, each pair of another batch size.
    """
    draw = random.Random(seed)
    for i in range(count):
        batch = 1 + i // 2 if distinct else 128
        device = list(CARDS)[i % 2]
        seconds = draw.uniform(0.01, 0.1)
        config = {"arch": "resnet-18", "method": "uiat", "batch_size": batch, "phase": None}
        config |= {"epochs": 100, "num_classes": 10, "settings": {}, "precision": "bf16"}
        yield {
            "format": "fastuiat-bench-1",
            "suite": "step",
            "case": f"resnet-18/b{batch}/uiat",
            "provider": "fastuiat",
            "device": device,
            "device_type": "cuda",
            **dict.fromkeys(("median_s", "p20_s", "p80_s"), seconds),
            "n": 15,
            "extrapolated": False,
            "error": None,
            "samples_s": [seconds] * 15,
            "flops": 2.4e10 * batch,
            "config": config,
            "config_hash": config_hash(config),
            "cpu": {"name": "a CPU", "cpus": 8, "threads": 8},
            "gpu": {"name": device, "driver": "1.2", "power_limit_w": CARDS[device]},
            "versions": {"fastuiat": "0", "torch": "2", "triton": "3", "cuda": "13"},
            "commit": "0123456789",
            "dirty": False,
            "time": f"2026-01-02T{i // 3600 % 24:02}:{i // 60 % 60:02}:{i % 60:02}+00:00",
        }


def write_records(path: Path, count: int, *, distinct: bool) -> None:
    with open(path, "w") as file:
        for record in bench_records(count, distinct=distinct):
            file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write long and large inputs.")
    parser.add_argument("what", choices=("log", "runs", "records"))
    parser.add_argument("place", type=Path)
    parser.add_argument("--lines", type=int, default=1000, help="of each log")
    parser.add_argument("--each", type=int, default=100, help="lines of an epoch")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--distinct", action="store_true", help="no two records of one case")
    options = parser.parse_args()
    if options.what == "log":
        write_run(options.place, lines=options.lines, each=options.each)
    elif options.what == "runs":
        for i in range(1, options.runs + 1):
            folder = options.place / f"run-{i:03}"
            lam, seed = 1 + (i - 1) // 3 / 100, (i - 1) % 3
            write_run(folder, lines=options.lines, each=options.each, seed=seed, lam=lam)
    else:
        write_records(options.place, options.records, distinct=options.distinct)


if __name__ == "__main__":
    main()
