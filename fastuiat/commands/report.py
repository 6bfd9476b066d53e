"""`fastuiat report`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import parse
from fastuiat.config import UserError, parse_radius

if TYPE_CHECKING:
    import torch

    from fastuiat.data import ImageSet
    from fastuiat.report.document import FromNets
    from fastuiat.report.pictures import Pictures
    from fastuiat.report.runs import Run

PICTURED = 10
"""Classes in Figure 6."""
MOST_PICTURED = 4
"""Runs of which Figure 6 is drawn: it is of single nets, and a sweep has many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(OutputOptions):
    """Write one HTML page, and PNG and SVG files, of what runs came to."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; several are compared."""
    out: Path | None = None
    """The page; by default RUN/report.html, or report.html here for several runs."""
    data_dir: Path | None = None
    """By default the runs' own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where nets compute what the records do not hold."""


def report(argv: list[str]) -> None:
    options = parse(ReportOptions, argv, prog="fastuiat report")
    if not options.runs:
        raise UserError("name a run folder: fastuiat report RUN [RUN …]")
    from fastuiat.report.document import make_report
    from fastuiat.report.runs import read_runs

    runs = read_runs(options.runs)
    out = options.out or (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    refuse_place(out)
    output = Output(options)
    figures = out.with_name(f"{out.stem}-figures")
    with only_report(out, runs, output):
        page, left_out = make_report(runs, what_nets_tell(runs, options, output))
        try:
            page.write(out, figures=figures)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror}") from error
    lines = [f"report: {out}"]
    if page.figures:
        lines.append(f"figures: {figures}")
    if left_out:
        lines.append(
            f"left out: {len(left_out)}; the end of the page names the commands that make them"
        )
    written = {"report": out, "figures": figures if page.figures else None, "left_out": left_out}
    output.result(written, *lines)


def refuse_place(out: Path) -> None:
    """UserError where the page cannot be, before it is made."""
    try:
        if out.is_dir():
            raise UserError(f"{out} is a folder: give --out the name of a file")
        if out.exists() and not out.is_file():
            raise UserError(f"{out} is no plain file: give --out another name")
        above = next(parent for parent in out.absolute().parents if parent.exists())
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is no folder")


@contextlib.contextmanager
def only_report(out: Path, runs: list[Run], output: Output) -> Iterator[None]:
    """Nobody else writes in the run folder that the page goes into, if it does."""
    from fastuiat.writer import only_writer

    above = out.resolve().parents
    inside = [run.folder for run in runs if run.folder.resolve() in above]
    with contextlib.ExitStack() as stack:
        for folder in inside:
            busy = "wait until it ends, or give --out another place"
            stack.enter_context(only_writer(folder, advice=busy, say=output.say))
        yield


def what_nets_tell(runs: list[Run], options: ReportOptions, output: Output) -> FromNets:
    """What only the nets can tell; what they cannot is left out in words."""
    from fastuiat.progress import show_evaluation
    from fastuiat.report.curves import strength_sweep
    from fastuiat.report.document import MOST_DRAWN, FromNets

    if options.device == "cuda":
        device_of(options)  # UserError where there is none, whether a net is opened or not
    found = FromNets()
    with show_evaluation(output.console) as progress:
        swept = [(run, sweep) for run in runs if (sweep := strength_sweep(run))]
        for run, sweep in swept[:MOST_DRAWN]:
            losses = losses_of(run, sweep.records[0], options, progress)
            if isinstance(losses, str):
                found.left_out.append(losses)
            else:
                found.losses[run.label] = losses
    if len(runs) > MOST_PICTURED:
        found.left_out.append(
            "Inverse examples (Figure 6) are drawn for a few runs at a time: "
            f"`fastuiat report {runs[0].folder}`"
        )
        return found
    for run in runs:
        try:
            found.pictures[run.label] = pictures_of(run, options)
        except UserError as error:
            found.left_out.append(f"{run.label} has no inverse examples (Figure 6): {error}")
            continue
        if found.pictures[run.label].z is None:
            found.left_out.append(
                f"{run.label} has no z (Figure 6), which methods of universal inverse examples "
                "have: `fastuiat train --method uiat`"
            )
    return found


def device_of(options: ReportOptions) -> torch.device:
    from fastuiat.device import resolve_device

    return resolve_device(options.device)


def data_dir_of(run: Run, options: ReportOptions) -> Path:
    told = options.data_dir or run.config.get("data_dir") or "data"
    if not isinstance(told, str | Path):
        raise UserError(f"{run.folder / 'config.json'}: data_dir must be a path, not {told!r}")
    return Path(told)


def test_images(run: Run, info: dict[str, Any], options: ReportOptions) -> ImageSet:
    """As the run's own data are used: published, or unchecked where it said so; as its net, which
    `info` is of, knows them."""
    from fastuiat import data

    unchecked = run.config.get("unchecked_data") is True
    how = data.Preparation(resolution=info.get("resolution"), seed=info.get("split_seed", 0))
    folder = data_dir_of(run, options)
    return data.load(info["dataset"], folder, "test", unchecked=unchecked, how=how)


def losses_of(run: Run, record: Any, options: ReportOptions, progress: Any) -> list[float] | str:
    """Natural losses of the images of a sweep, kept in RUN/eval; or why there are none."""
    from fastuiat.files import sha256_of, write_json
    from fastuiat.report.runs import read_json
    from fastuiat.writer import only_writer

    kept = run.folder / "eval" / f"natural-loss_n{record.n}.json"
    weights = (record.values.get("checkpoint") or {}).get("weights", "averaged")
    identity = {
        "measure": "natural loss",
        "sha256": record.sha256,
        "weights": weights,
        "dataset": record.values.get("dataset"),
        "n": record.n,
    }
    if kept.exists():
        stored = read_json(kept)
        loss = stored.pop("loss", []) if isinstance(stored, dict) else []
        if stored == identity and len(loss) == record.n:
            return loss
    files = [run.folder / "checkpoints" / f"{which}.pt" for which in ("best", "last")]
    file = next((f for f in files if f.is_file() and sha256_of(f) == record.sha256), None)
    if file is None:
        return (
            f"The weights of the PGD sweep of {run.label} are not in its checkpoints any more, so "
            "its images cannot be ranked (Figures 1 and 4): measure it anew with "
            f"`fastuiat eval {run.folder}`"
        )
    from fastuiat.evaluation.inverse import natural_losses
    from fastuiat.training.checkpoint import open_checkpoint

    try:
        model, info = open_checkpoint(file, weights=weights)
        images = test_images(run, info, options)
    except UserError as error:
        return f"The images of {run.label} cannot be ranked (Figures 1 and 4): {error}"
    assert images.fingerprint is not None
    if record.test_set not in (None, images.fingerprint.sha256):
        return f"The test images of {run.label} are not those of its PGD sweep any more"
    n = record.n
    images = dataclasses.replace(images, images=images.images[:n], labels=images.labels[:n])
    if info["dataset"] != record.values.get("dataset") or len(images.labels) != n:
        return f"The PGD sweep of {run.label} is not of {info['dataset']}'s first {n} test images"
    loss = natural_losses(model, images, device=device_of(options), progress=progress).tolist()
    # Another report makes them anew where this folder is not ours to write.
    with contextlib.suppress(UserError, OSError), only_writer(run.folder, advice=""):
        write_json(kept, identity | {"loss": loss})
    return loss


def pictures_of(run: Run, options: ReportOptions) -> Pictures:
    """Figure 6 of a run's best checkpoint; UserError where checkpoint or images are missing."""
    from fastuiat.training.checkpoint_file import locate

    file = locate(run.folder)  # a run that has none costs no PyTorch: 600 MB, three seconds
    from fastuiat.evaluation.inverse import first_of_each_class, inverse_examples
    from fastuiat.report.pictures import Pictures
    from fastuiat.training.checkpoint import open_checkpoint, read

    model, info = open_checkpoint(file)
    images = test_images(run, info, options)
    x, y = first_of_each_class(images, PICTURED)
    z = universal_perturbations(read(file))
    eps = parse_radius(run.settings.get("inverse_eps", 4 / 255))
    if z is not None and (len(z) <= y.max() or z.shape[1:] != x.shape[1:]):
        raise UserError(f"the z in its checkpoint, {tuple(z.shape)}, is not of its classes' images")
    made = inverse_examples(model, x, y, z, eps=eps, device=device_of(options))

    def picture(tensor: Any) -> Any:
        return None if tensor is None else tensor.permute(0, 2, 3, 1).numpy()

    return Pictures(
        labels=made.labels.tolist(),
        classes=info.get("classes") or images.classes,
        x=picture(made.x),
        x_inv=picture(made.x_inv),
        x_universal=picture(made.x_universal),
        p=made.p.numpy(),
        p_inv=made.p_inv.numpy(),
        p_universal=None if made.p_universal is None else made.p_universal.numpy(),
        z=picture(z),
        eps=eps,
    )


def universal_perturbations(checkpoint: dict[str, Any]) -> Any:
    """z (K, C, H, W) of the method's state, or None of a method without one; UserError on a z that
    is none."""
    from torch import Tensor

    state = checkpoint.get("method")
    state = state if isinstance(state, dict) else {}
    z = next((value for name, value in state.items() if str(name).endswith("bank.z")), None)
    if z is None or (isinstance(z, Tensor) and z.ndim == 4 and z.is_floating_point()):
        return z
    raise UserError("the z in its checkpoint is no tensor of images")
