"""`fastuiat bench autoattack`: the plain AutoAttack package beside `fastuiat eval`, same points.

Both run every attack of the standard version on the same net, images, labels and seed; the times
are of whole evaluations, compiling included, and the points that hold out are compared one by one.
Without a run the net is fresh and the radius so small that nearly all points hold out: the longest
that an evaluation of so many points can take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.bench import table
from fastuiat.bench.record import make_record
from fastuiat.bench.timing import Call, Clock, Plan, Provider, clock_for, interleaved
from fastuiat.evaluation import run_autoattack
from fastuiat.evaluation.package import MOST_TARGETS, package

PROVIDERS = ("package", "fastuiat")
EPS_OF_A_FRESH_NET = 1e-6


@dataclass(frozen=True, kw_only=True)
class Case:
    """The points, and how both evaluate them."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    batch_size: int
    package_batch_sizes: tuple[int, ...]
    share: float
    compile: bool | None
    device: torch.device

    def adjust(self, adversary: Any) -> None:
        """A share of each attack's iterations."""
        for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            attack.n_iter = max(1, round(attack.n_iter * self.share))
        adversary.square.n_queries = max(1, round(adversary.square.n_queries * self.share))


def fresh(arch: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of random weights whose logits are spread out, noise, and the labels it gives it."""
    from fastuiat.models import build_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_model(arch).eval()
        nn.init.normal_(getattr(net, net.head).weight)
        x = torch.rand(n, 3, 32, 32)
    with torch.no_grad():
        return net, x, torch.cat([net(part).argmax(dim=1) for part in x.split(64)])


class Evaluations:
    """The two ways; `robust` keeps what each found."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.robust: dict[str, Tensor] = {}
        self.compiled = False

    def providers(self, names: Sequence[str]) -> list[Provider]:
        rows: list[Provider] = []
        if "package" in names:
            for size in self.case.package_batch_sizes:
                rows.append(Provider(f"package b{size}", partial(self.package, size)))
        if "fastuiat" in names:
            rows.append(Provider("fastuiat", self.ours))
        return rows

    def package(self, batch_size: int) -> Call:
        case, (make, name) = self.case, package()
        size = "batch_size" if name.startswith("pyautoattack") else "bs"

        def evaluate() -> None:
            adversary = make(
                case.net, norm="Linf", eps=case.eps, seed=0, device=str(case.device)
            )  # standard
            case.adjust(adversary)
            x, y = case.x.to(case.device), case.y.to(case.device)
            with torch.no_grad():
                targets = min(MOST_TARGETS, case.net(x[:1]).shape[1] - 1)
                adversary.apgd_targeted.n_target_classes = targets
                adversary.fab.n_target_classes = targets
            out = adversary.run_standard_evaluation(x, y, **{size: batch_size})
            x_adv = out[0] if isinstance(out, tuple) else out
            with torch.no_grad():
                held = [
                    case.net(a).argmax(dim=1) == b
                    for a, b in zip(x_adv.split(batch_size), y.split(batch_size), strict=True)
                ]
            self.robust[f"package b{batch_size}"] = torch.cat(held).cpu()

        return evaluate

    def ours(self) -> Call:
        case = self.case

        def evaluate() -> None:
            with tempfile.TemporaryDirectory(prefix="fastuiat-bench-") as folder:
                result = run_autoattack(
                    case.net,
                    case.x,
                    case.y,
                    eps=case.eps,
                    batch_size=case.batch_size,
                    compile=case.compile,
                    state_path=Path(folder) / "state",
                    device=case.device,
                    adjust=case.adjust,
                )
            self.robust["fastuiat"], self.compiled = result.robust, result.compiled

        return evaluate


def measure(
    case: Case,
    *,
    plan: Plan,
    names: Sequence[str] = PROVIDERS,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """A record per row; `same_verdicts` counts the points on which it and the first row agree."""
    ways = Evaluations(case)
    case.net.to(case.device)
    measured = interleaved(
        ways.providers(names), clock=clock or clock_for(case.device), plan=plan, done=done
    )
    config = {"n": len(case.x), "batch_size": case.batch_size, "share": case.share}
    config |= {"eps": case.eps}
    reference = next((ways.robust[m.name] for m in measured if m.name in ways.robust), None)
    first = measured[0]
    records = []
    for m in measured:
        robust = ways.robust.get(m.name)
        both = m.samples and first.samples
        records.append(
            make_record(
                suite="autoattack",
                case=case.name,
                measured=m,
                device=case.device,
                config=config,
                first_s=m.first_s if m.samples else None,
                speedup=first.ratio_to(m).median if both else None,
                robust=int(robust.sum()) if robust is not None else None,
                same_verdicts=None
                if robust is None or reference is None
                else int((robust == reference).sum()),
                compiled=ways.compiled if m.name == "fastuiat" else False,
            )
        )
    return records


def show(records: Sequence[dict[str, Any]]) -> None:
    headings = ("way", "evaluation", "20–80%", "n", "faster", "hold out", "same verdicts", "first")
    rows = []
    for r in records:
        span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
        rows.append(
            (
                r["provider"],
                table.seconds(r["median_s"]),
                table.NONE if r["error"] else span,
                str(r["n"]),
                table.number(r["speedup"], ".2f") + ("×" if r["speedup"] else ""),
                table.number(r["robust"]),
                table.number(r["same_verdicts"]),
                table.seconds(r["first_s"]),
            )
        )
    first = records[0]
    notes = [f"{r['provider']}: {r['error']}" for r in records if r["error"]]
    if first["config"]["share"] != 1:
        notes.append(f"{100 * first['config']['share']:g}% of each attack's iterations")
    notes.append(f"{first['config']['n']} points; faster, same verdicts: against the first row")
    table.show(f"autoattack/{first['case']} on {first['device']}", headings, rows, notes)
