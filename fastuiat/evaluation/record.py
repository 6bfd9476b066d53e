"""An evaluation with everything that is needed to repeat it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fastuiat.config import UserError, legible, positive, radius_text, refuse_seed
from fastuiat.convolutions import repeatable
from fastuiat.data import ImageSet, fingerprinted, json_of
from fastuiat.distributed import ALONE, Ranks
from fastuiat.evaluation import attacks as registry
from fastuiat.evaluation.accuracy import Progress, Say
from fastuiat.evaluation.attacks import Attack, Evaluation, Outcome
from fastuiat.evaluation.attacks.gradient import STEPS
from fastuiat.evaluation.sharing import refuse_other_work
from fastuiat.evaluation.state import refuse_other_place
from fastuiat.evaluation.test_set import refuse_other_test_set
from fastuiat.files import json_in, write_json
from fastuiat.machine import summary
from fastuiat.network import modes_kept
from fastuiat.writer import is_run_folder, only_writer, refuse_links


def bits(correct: Tensor) -> str:
    """One character a sample: 1 where it was classified correctly."""
    return "".join("1" if c else "0" for c in correct.tolist())


def file_name(attack: Attack | str, eps: float, n: int, chosen: Sequence[str] = ()) -> str:
    """The record of an attack, without its folder and .json; `clean` has no radius.

    A bare name is the attack of the usual settings. `chosen` is load_checkpoint's: records of the
    last checkpoint and of raw weights stand beside those of what is taken by default.
    """
    attack = registry.create(attack) if isinstance(attack, str) else attack
    radius = f"_eps{radius_text(eps).replace('/', 'over')}" if attack.has_radius else ""
    return "_".join([f"{attack.label()}{radius}_n{n}", *chosen])


def record_of(
    evaluation: Evaluation, attack: Attack, eps: float, outcome: Outcome
) -> dict[str, Any]:
    """All that is needed to repeat the measurement, and its outcome sample by sample.

    Always: `attack` (its name), `accuracy` (a share), `correct`, `n`, `dataset`, `split`, `data`
    (fingerprint of all its test images, and what of them was checked), `classes` (their names,
    where they are known), `resolution` (pixels a side), `seed`, `batch_size`,
    `seconds`, the machine, `time`, `checkpoint` (what load_checkpoint tells: path, sha256, nest,
    normalisation, notes …), `of_this_run` (whether that lies in the run folder whose eval/ this is)
    and `per_sample`, a character 0 or 1 per sample in the data set's order; `ranks` where several
    have shared it out.
    All but clean: `eps` as text (`8/255`, `-8/255`: the inverse attack) and `eps_value`.
    pgd, cw: `alpha`, `steps`, `loss`, `start`, `restarts`, `inverse`, `restart_accuracy` (what
    holds after each restart, the last one being `accuracy`).
    autoattack: `version`, `package`, `parts` (accuracy after each attack, from `clean` on),
    `part_seconds` (without what was killed inside a batch), `part_points` (samples that it met),
    `runs` (the same for every target class and restart), `target_classes`, `left_out` (attacks that
    the number of classes does not allow), `warnings`, `compiled`, `compile_seconds`; `version`
    alone at eps 0.
    """
    return {
        "attack": attack.name,
        **({"eps": radius_text(eps), "eps_value": eps} if attack.has_radius else {}),
        **outcome.settings,
        "accuracy": outcome.accuracy,
        "correct": int(outcome.correct.sum()),
        "n": len(outcome.correct),
        "dataset": evaluation.images.name,
        "split": "test",
        "data": json_of(evaluation.images),
        **({"classes": list(classes)} if (classes := evaluation.images.classes) else {}),
        "resolution": evaluation.images.images.shape[1],
        "seed": evaluation.seed,
        "batch_size": evaluation.batch_size,
        "seconds": outcome.seconds,
        **({"ranks": evaluation.ranks.world} if evaluation.ranks.world > 1 else {}),
        **machine(evaluation.device),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "per_sample": bits(outcome.correct),
    }


def radii_of(eps: float | Sequence[float], attacks: Sequence[Attack]) -> list[float]:
    """The radii in order; UserError on a negative one for an attack that has no inverse."""
    radii = sorted({eps} if isinstance(eps, int | float) else set(eps))
    for attack in attacks:
        if radii[0] < 0 and attack.has_radius and not attack.has_inverse:
            raise UserError(f"{attack.name} has no inverse: give it radii from 0 on")
    return radii


@contextlib.contextmanager
def only_evaluation(out: Path, say: Say | None) -> Iterator[None]:
    """Nobody else writes OUT/eval meanwhile, nor the run whose folder OUT is."""
    refuse_links(out, ("eval",))
    home, folder = out if is_run_folder(out) else out / "eval", out / "eval"
    busy = "wait until it ends, or choose another --out"
    with only_writer(home, advice=busy, say=say):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error
        yield


@contextlib.contextmanager
def records_begun(
    out: Path, names: Sequence[str], info: Mapping[str, Any], images: ImageSet, say: Say | None
) -> Iterator[None]:
    """OUT/eval is nobody else's meanwhile; UserError where the records would replace others'."""
    assert images.fingerprint is not None
    with only_evaluation(out, say):
        for name in names:
            refuse_foreign(out / "eval" / f"{name}.json", info, lies_in(out, info))
        refuse_other_test_set(out / "eval", images.fingerprint, "choose another --out")
        yield


@repeatable()
def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    attacks: Sequence[str],
    eps: float | Sequence[float],
    n: int | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    out: Path,
    info: dict[str, Any],
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Measure each attack on the first n test images and write OUT/eval/<attack>.json.

    Each radius of `eps` has a record of its own; a negative one is the inverse attack, as in the
    paper's Figures 1 and 4. `info` is load_checkpoint's: which weights these are, by content.
    `settings` go to those attacks that have them. An unfinished AutoAttack is gone on with. Several
    `ranks` share the points out, and the first one writes.
    UserError where OUT/eval holds the results of other weights or another test set, or cannot be
    written, on a setting that no attack has, or on a negative radius for one without an inverse.
    """
    refuse_seed(seed)
    positive(batch_size=batch_size)
    made = registry.chosen(attacks, settings or {})
    radii = radii_of(eps, made)
    images = fingerprinted(images, "test")
    if n is not None:
        images = dataclasses.replace(images, images=images.images[:n], labels=images.labels[:n])
    folder = out / "eval"
    todo = [(a, e) for a in made for e in (radii if a.has_radius else radii[:1])]
    names = [file_name(*part, len(images.labels), info.get("chosen", ())) for part in todo]
    evaluation = Evaluation(
        model=model, images=images, seed=seed, batch_size=batch_size, device=device,
        progress=progress if ranks.is_first else None, say=say if ranks.is_first else None,
        ranks=ranks,
    )  # fmt: skip
    refuse_other_work(evaluation, made, radii)
    records = []
    with contextlib.ExitStack() as stack:
        with ranks.agreed():
            if ranks.is_first:
                stack.enter_context(records_begun(out, names, info, images, say))
        stack.enter_context(modes_kept(model))
        model.eval()
        about = {"checkpoint": info, "of_this_run": lies_in(out, info)}
        for (attack, radius), name in zip(todo, names, strict=True):
            state = folder / f"{name}.state"
            outcome = attack.measure(evaluation, radius, state)
            records.append(record_of(evaluation, attack, radius, outcome) | about)
            with ranks.agreed():
                if ranks.is_first:
                    refuse_other_place(folder)
                    write_json(folder / f"{name}.json", records[-1])
                    state.unlink(missing_ok=True)
    return records


def machine(device: torch.device) -> dict[str, Any]:
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return {"device": device.type, **summary(device), "precision": "tf32" if tf32 else "fp32"}


IDENTITY = ("sha256", "nest", "weights", "arch", "activation")
"""What makes weights the same, beside the numbers of their normalisation: never a path."""


def same_weights(owner: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether a record's checkpoint is the one of `info`, by content.

    Older records tell less; what tells no checksum is compared by its path.
    """
    if not info.get("sha256"):
        return bool(owner.get("path") == info.get("path"))
    if any(owner.get(name) != info.get(name) for name in IDENTITY if name in owner):
        return False
    here, there = (d.get("normalisation") or {} for d in (info, owner))
    unlike = any(here.get(name) != there.get(name) for name in ("mean", "std"))
    return "sha256" in owner and not ("normalisation" in owner and unlike)


def lies_in(out: Path, info: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is one of the run folder `out`."""
    file = Path(info.get("path") or "").resolve()
    return file.parent == (out / "checkpoints").resolve() and file.is_file()


def refuse_foreign(path: Path, info: Mapping[str, Any], of_this_run: bool) -> None:
    """UserError where the record of other weights would be written over.

    A run's own records are renewed when it has trained on.
    """
    if not path.exists():
        return
    try:
        record = json_in(path)
        owner = record["checkpoint"]
        was_own = record.get("of_this_run", owner["path"] == info.get("path"))
        is_same = same_weights(owner, info)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no evaluation record: remove it or choose --out") from error
    if not is_same and not (of_this_run and was_own):
        same_file = owner.get("sha256") == info.get("sha256")
        what = "another choice from this file" if same_file else "another checkpoint"
        words = [owner.get("path"), owner.get("nest"), owner.get("weights")]
        if constants := owner.get("normalisation"):
            words.append(f"mean {constants['mean']}")
        there = ", ".join(legible(word) for word in words if word)
        raise UserError(f"{path} is of {what} ({there}): choose another --out")


def name_of(record: dict[str, Any]) -> str:
    """The attack as a table calls it: the usual one by its name alone."""
    attack, unusual = str(record["attack"]), []
    if record.get("steps", STEPS) != STEPS:
        attack += f"-{record['steps']}"
    if record.get("restarts", 1) != 1:
        unusual.append(f"{record['restarts']} restarts")
    if record.get("version", "standard") != "standard":
        unusual.append(record["version"])
    unusual += (record.get("checkpoint") or {}).get("chosen") or []
    return ", ".join([attack, *unusual])


def table(records: list[dict[str, Any]]) -> Table:
    """The records as rows: attack, radius, points, accuracy, time."""
    result = Table(title=f"{records[0]['checkpoint'].get('path')} on {records[0]['dataset']}")
    for heading, justify in (
        ("attack", "left"),
        ("eps", "right"),
        ("n", "right"),
        ("accuracy", "right"),
        ("s", "right"),
    ):
        result.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for record in records:
        result.add_row(
            name_of(record),
            record.get("eps", "–"),
            str(record["n"]),
            f"{100 * record['accuracy']:.2f}%",
            f"{record['seconds']:.1f}",
        )
    return result
