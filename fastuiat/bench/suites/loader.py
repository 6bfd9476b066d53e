"""`fastuiat bench loader`: an epoch of batches without a training step.

ffcv and resident are the loaders of `fastuiat train` and give the same batches; torchvision is the
loader that most code uses: a Dataset of PIL images, torchvision's transforms, worker processes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from fastuiat import data
from fastuiat.bench import columns, table
from fastuiat.bench.call_memory import ResidentPeak, resident_peak
from fastuiat.bench.record import make_record
from fastuiat.bench.suite import (
    Columns,
    Done,
    Measuring,
    Rate,
    Record,
    Records,
    Size,
    Suite,
    Visit,
    register,
)
from fastuiat.bench.timing import Call, Clock, Plan, Provider, clock_for, interleaved
from fastuiat.config import UserError, positive
from fastuiat.device import resolve_device

Kind = Literal["ffcv", "resident", "torchvision"]
PROVIDERS: tuple[Kind, ...] = get_args(Kind)
NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Images:
    """Synthetic images of CIFAR's shape, and how they are to be read."""

    n: int
    batch_size: int
    workers: int
    device: torch.device

    @property
    def name(self) -> str:
        return f"n{self.n}/b{self.batch_size}/w{self.workers}"

    @property
    def per_epoch(self) -> int:
        """Images of an epoch, its incomplete last batch left out."""
        return self.n // self.batch_size * self.batch_size

    def make(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (self.n, 32, 32, 3), dtype=np.uint8)
        return images, random.integers(0, NUM_CLASSES, self.n)


class PILImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """(image, label) one by one, augmented by torchvision as CIFAR code usually is."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class LoaderProviders:
    """The three loaders over the same images; `close` ends what they have running."""

    def __init__(self, setting: Images, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        self.images, self.labels = setting.make()
        self.open: list[Any] = []
        self.memory: dict[str, int | None] = {}
        """The most resident memory of making a loader and its first epoch, beyond that before."""

    def providers(self, names: Sequence[str]) -> list[Provider]:
        builders: dict[str, Callable[[], Call]] = {
            "ffcv": lambda: self.ours("ffcv"),
            "resident": lambda: self.ours("resident"),
            "torchvision": self.torchvision,
        }
        return [Provider(n, functools.partial(self.metered, n, builders[n])) for n in names]

    def metered(self, name: str, build: Callable[[], Call]) -> Call:
        """The loader's epochs; the first one also notes what memory it took to get there."""
        watch = ResidentPeak()
        epoch = build()

        def first_or_later() -> None:
            epoch()
            if name not in self.memory:
                self.memory[name] = watch.bytes()

        return first_or_later

    def ours(self, kind: str) -> Call:
        s = self.setting
        order = data.Order(seed=0, train_index=np.arange(s.n), batch_size=s.batch_size)
        loader = data.make_loader(
            kind,
            self.images,
            self.labels,
            order,
            device=s.device,
            flip=True,
            workers=s.workers,
            cache_dir=self.folder,
            name="synthetic",
        )
        self.open.append(loader)
        epochs = itertools.count(1)
        return lambda: exhaust(loader.epoch(next(epochs)))

    def torchvision(self) -> Call:
        s = self.setting
        loader = torch.utils.data.DataLoader(
            PILImages(self.images, self.labels),
            batch_size=s.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=s.workers,
            persistent_workers=True,
            pin_memory=s.device.type == "cuda",
        )

        def on_device() -> Iterator[Any]:
            for x, y in loader:
                yield x.to(s.device, non_blocking=True), y.to(s.device, non_blocking=True)

        return lambda: exhaust(on_device())

    def close(self) -> None:
        for loader in self.open:
            loader.close()


def exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def measure(
    setting: Images,
    *,
    plan: Plan,
    names: Sequence[str] = PROVIDERS,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """Records of the loaders, one each: seconds are those of an epoch."""
    with tempfile.TemporaryDirectory(prefix="fastuiat-bench-") as folder:
        ways = LoaderProviders(setting, Path(folder))
        with contextlib.closing(ways):
            measured = interleaved(
                ways.providers(names),
                clock=clock or clock_for(setting.device),
                plan=plan,
                peak=resident_peak,
                done=done,
            )
    config = {"n": setting.n, "batch_size": setting.batch_size, "workers": setting.workers}
    return [
        make_record(
            suite="loader",
            case=setting.name,
            measured=m,
            device=setting.device,
            config=config,
            images_per_s=setting.per_epoch / m.spread.median if m.samples else None,
            prepare_s=m.build_s if m.samples else None,
            first_epoch_s=m.first_s if m.samples else None,
            memory_bytes=ways.memory.get(m.name),
        )
        for m in measured
    ]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(Measuring):
    """Time an epoch of batches from each loader, on synthetic images."""

    n: int = 50_000
    """Images."""
    batch_size: int = 128
    """Images per batch."""
    workers: int = 1
    """Threads of the FFCV loader, processes of torchvision's."""
    providers: tuple[Kind, ...] = PROVIDERS
    """Which loaders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(n=self.n, batch_size=self.batch_size, workers=self.workers)
        if self.n < self.batch_size:
            raise UserError(f"--n {self.n} makes no batch of {self.batch_size}")


@register("loader")
class LoaderSuite(Suite):
    Options = LoaderOptions
    rank = 3
    help = "images per second of the FFCV, the resident and torchvision's loader"
    title = "The loaders"
    what = "the time of an epoch of batches, without training"
    unit = "an epoch"
    rate = Rate("images per second", "images/s", "images_per_s", form=",.0f")
    tour_share = 0.1

    def columns(self) -> Columns:
        return {
            "case": columns.case,
            "loader": columns.provider,
            "images/s": columns.number("images_per_s", ",.0f"),
            "epoch": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "first epoch": columns.seconds("first_epoch_s"),
            "prepare": columns.seconds("prepare_s"),
        }

    def measure(self, options: LoaderOptions, done: Done) -> Records:
        images = Images(
            n=options.n,
            batch_size=options.batch_size,
            workers=options.workers,
            device=resolve_device(options.device),
        )
        return measure(images, plan=options.plan(warmup=0), names=options.providers, done=done)

    def show(self, records: Sequence[Record]) -> None:
        headings = (
            "loader", "epoch", "20–80%", "n", "images/s", "first epoch", "prepare", "memory",
            "growth",
        )  # fmt: skip
        rows = []
        for r in records:
            span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
            rows.append(
                (
                    r["provider"],
                    table.seconds(r["median_s"]),
                    table.NONE if r["error"] else span,
                    str(r["n"]),
                    table.number(r["images_per_s"]),
                    table.seconds(r["first_epoch_s"]),
                    table.seconds(r["prepare_s"]),
                    table.size(r["memory_bytes"]),
                    table.size(r["peak_bytes"]),
                )
            )
        notes = [f"{r['provider']}: {r['error']}" for r in records if r["error"]]
        notes.append(
            "memory: this process's, to the end of the first epoch; growth: of one more at the end"
        )
        first = records[0]
        table.show(f"loader/{first['case']} on {first['device']}", headings, rows, notes)

    def figures(self, records: Sequence[Record]) -> str:
        said = [f"{r['provider']} {r['images_per_s']:,.0f}" for r in records if r["images_per_s"]]
        return f"{', '.join(said)} images/s" if said else "not measured"

    def visit(self, visit: Visit) -> Records:
        images = Images(
            n=visit.size.images,
            batch_size=visit.size.batch_size,
            workers=1,
            device=visit.setting.device,
        )
        plan = Plan(warmup=0, rounds=visit.rounds, until=visit.until)
        records = visit.keep(measure(images, plan=plan, done=visit.done))
        self.show(records)
        return records

    def tour_line(self, size: Size, records: Sequence[Record]) -> str:
        return f"loaders: {self.figures(records)}"
