"""The report of one run or several: its figures and tables in order, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastuiat.config import radius_text
from fastuiat.report.curves import (
    difference_curves,
    learning_curves,
    learning_lines,
    robust_overfitting,
    robust_spread,
    strength_curves,
    strength_sweep,
)
from fastuiat.report.page import Page
from fastuiat.report.pictures import Pictures, inverse_pictures, universal_gallery
from fastuiat.report.runs import Record, Run
from fastuiat.report.sensitivity import sensitivities, sensitivity_curves
from fastuiat.report.tables import (
    Rows,
    at_training_radius,
    autoattack_parts,
    environments_beside,
    epoch_seconds,
    evaluations_beside,
    evaluations_of,
    kinds_of,
    settings_beside,
    timing_beside,
)
from fastuiat.report.words import (
    listed,
    other_test_sets,
    overfitting_note,
    slug,
    tested,
    thinning_note,
)

SWEEP = "--eps-sweep -16/255 16/255 17"
RADII = "0 2/255 4/255 6/255 8/255 10/255 12/255 14/255 16/255"
MOST_TOGETHER = 8
"""Curves in one picture that an eye can still tell apart."""
MOST_DRAWN = 24
"""Figures of one kind: each takes a quarter of a second."""
MOST_KINDS = 200
"""Measurements in one table, which has a column for each run."""


@dataclass
class FromNets:
    """What only the nets can tell, by the run's label, and in words what they could not."""

    losses: dict[str, Sequence[float]] = field(default_factory=dict)
    """Natural loss of each sample of the run's strength sweep."""
    pictures: dict[str, Pictures] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


class Report:
    """Fills a page section by section; `left_out` says what is not on it and what would make it."""

    def __init__(self, runs: Sequence[Run], from_nets: FromNets) -> None:
        self.runs, self.from_nets = runs, from_nets
        self.left_out: list[str] = []
        self.page = Page(self.title(), self.lead())
        # Two labels may differ by what no file's name holds.
        self.slugs = {run.label: f"{slug(run.label)}-{i}" for i, run in enumerate(runs, 1)}
        if len(set(map(slug, self.slugs))) == len(runs):
            self.slugs = {run.label: slug(run.label) for run in runs}

    def title(self) -> str:
        return self.runs[0].label if len(self.runs) == 1 else f"{len(self.runs)} runs compared"

    def lead(self) -> str:
        titles = dict.fromkeys(run.title for run in self.runs)
        if len(self.runs) > 1:
            return "; ".join(titles)
        c = self.runs[0].config
        more = [f"{c[name]} {word}" for name, word in (("epochs", "epochs"),) if name in c]
        more += [f"seed {c['seed']}"] if "seed" in c else []
        return " · ".join([*titles, *more])

    def make(self) -> Page:
        self.highlights()
        self.evaluations()
        self.learning()
        self.strength()
        self.differences()
        self.sensitivity()
        self.pictures()
        self.timing()
        self.settings()
        self.environment()
        self.left_out += self.from_nets.left_out
        if self.left_out:
            self.page.section("Not on this page", "What the runs lack, and what would make it.")
            self.page.items(self.left_out)
        return self.page

    def highlights(self) -> None:
        """One run's accuracies at the radius that it was trained for, and its speed."""
        if len(self.runs) > 1:
            return
        run, found = self.runs[0], []
        for attack, name in (
            ("clean", "Natural"),
            ("pgd", "PGD"),
            ("cw", "CW"),
            ("autoattack", "AutoAttack"),
        ):
            record = run.record(attack, None if attack == "clean" else run.eps)
            if record:
                of = "" if attack == "clean" else f"ε = {radius_text(record.eps)}, "
                found.append((name, f"{record.percent:.1f} %", f"{of}{record.n:,} images"))
        if len(seconds := epoch_seconds(run)):
            device = str(run.config.get("device", ""))
            value = sorted(seconds)[len(seconds) // 2]
            found.append(("Training", f"{value:,.1f} s", f"an epoch, {device}"))
        if found:
            self.page.highlights(found)

    def evaluations(self) -> None:
        lacking = [run for run in self.runs if not run.records]
        attacks = "clean pgd cw autoattack"
        self.lack(
            lacking,
            "no evaluation",
            f"fastuiat eval RUN --attacks {attacks} --eps {radius_text(self.runs[0].eps)}",
        )
        if len(lacking) == len(self.runs):
            return
        self.page.section("Accuracy under attack")
        mixed = [run.label for run in self.runs if len({r.sha256 for r in run.records}) > 1]
        note = "Share of images whose final adversarial point is still classified correctly."
        if mixed:
            note += f" The records of {listed(mixed)} are of more than one checkpoint."
        if others := other_test_sets(self.runs):
            note += (
                f" The test sets differ: {listed(others)} have other images or labels than "
                f"{self.runs[0].label} under the same name."
            )
        if len(self.runs) > 1:
            note += " The best of each row is marked."
            self.evaluations_of_all(note)
            return
        run = self.runs[0]
        note += " s.e.: standard error of a share of so many independent images."
        first = at_training_radius(self.runs, run.records) or run.records
        self.page.table(*evaluations_of(first), note=note)
        if len(first) < len(run.records):
            self.page.table(
                *evaluations_of(run.records), folded=f"All {len(run.records)} measurements"
            )
        record = run.record("autoattack", run.eps)
        if record and (parts := autoattack_parts(record)):
            note = f"AutoAttack at ε = {radius_text(record.eps)}, attack by attack."
            self.page.table(*parts, note=note)

    def evaluations_of_all(self, note: str) -> None:
        """Several runs' measurements beside each other."""
        every = kinds_of(self.runs)
        first = at_training_radius(self.runs, every) or every
        table = evaluations_beside(self.runs, first[:MOST_KINDS])
        self.page.table(*table, note=note + self.cut(first))
        if len(first) < len(every):
            table = evaluations_beside(self.runs, every[:MOST_KINDS])
            self.page.table(*table, folded=f"All {len(every):,} measurements{self.cut(every)}")

    def cut(self, kinds: Sequence[Record]) -> str:
        """In words, what a table does not hold."""
        if len(kinds) <= MOST_KINDS:
            return ""
        return f" (here the first {MOST_KINDS}; a page of fewer runs has the others)"

    def drawn(self, runs: Sequence[Run], what: str) -> Sequence[Run]:
        """As many as there are to be figures of; the next is named for the others."""
        if len(runs) > MOST_DRAWN:
            self.left_out.append(
                f"{what} of {len(runs) - MOST_DRAWN:,} more runs: `fastuiat report "
                f"{runs[MOST_DRAWN].folder}`, and so for each"
            )
        return runs[:MOST_DRAWN]

    def learning(self) -> None:
        logged = [run for run in self.runs if learning_lines(run)]
        drawn = self.drawn(logged, "Learning curves (Figure 2)")
        self.lack(
            [run for run in self.runs if not run.epochs],
            "not come to the end of an epoch, so there are no learning curves",
            "fastuiat train --resume RUN",
        )
        self.lack(
            [run for run in self.runs if run.epochs and not tested(run)],
            "no test accuracy by epoch, which shows robust overfitting (Figure 2)",
            "fastuiat train --config RUN/config.json --out OTHER --test-every 1",
        )
        if not drawn:
            return
        self.page.section(
            "Learning curves",
            "Figure 2. Robust accuracy is under PGD-10 on the test and validation images; on the "
            "training images it is under the training's own attack, of a net still changing. "
            "A test curve that falls while training goes on is robust overfitting.",
        )
        if len(logged) > MOST_DRAWN and (both := robust_spread(logged)):
            figure, where = both
            caption = f"Robust accuracy on the {where} images, over all runs that have come so far."
            self.page.figure(figure, caption=caption, name="robust-spread")
        for run in drawn:
            curves = learning_curves(run)
            assert curves is not None
            self.page.figure(
                curves,
                caption=f"{run.label}: {run.title}.{overfitting_note(run)}{thinning_note(run)}",
                name=f"learning-curves-{self.slugs[run.label]}",
            )
        if 2 <= len(logged) <= MOST_TOGETHER and (both := robust_overfitting(logged)):
            figure, where = both
            caption = f"Robust accuracy of all runs on the {where} images."
            self.page.figure(figure, caption=caption, name="robust-overfitting")

    def strength(self) -> None:
        swept = {run.label: strength_sweep(run) for run in self.runs}
        self.lack(
            [run for run in self.runs if swept[run.label] is None],
            "no PGD sweep over both directions (Figures 1 and 4)",
            f"fastuiat eval RUN --attacks pgd {SWEEP}",
        )
        found = [run for run in self.runs if swept[run.label]]
        drawn = [
            (run, sweep)
            for run in self.drawn(found, "Accuracy against strength (Figures 1 and 4)")
            if (sweep := swept[run.label]) and run.label in self.from_nets.losses
        ]
        if drawn:
            self.page.section(
                "Accuracy against strength",
                "Figures 1 and 4. PGD-20 from the inverse attack (below 0) to the adversarial one, "
                "for the halves of the images with the lower and the higher natural loss. The "
                "green line is the images as they are.",
            )
        for run, sweep in drawn:
            self.page.figure(
                strength_curves(run, sweep, self.from_nets.losses[run.label]),
                caption=f"{run.label}, {sweep.records[0].n:,} images; the gap between the halves "
                f"is marked at ε = {radius_text(run.eps)}.",
                name=f"strength-{self.slugs[run.label]}",
            )

    def differences(self) -> None:
        if len(self.runs) == 1:
            self.left_out.append(
                "A difference of two runs (Figure 5) and a sensitivity (Figures 3 and 7) need more "
                f"runs: `fastuiat report {self.runs[0].folder} OTHER`"
            )
            return
        if len(self.runs) > MOST_TOGETHER:
            first, second = self.runs[0].folder, self.runs[1].folder
            self.left_out.append(
                "The AutoAttack difference (Figure 5) is drawn for a few runs at a time: "
                f"`fastuiat report {first} {second}`"
            )
            return
        figure = difference_curves(self.runs)
        if figure is None:
            self.left_out.append(
                f"{self.runs[0].label} and another run were not measured by AutoAttack at two "
                "radii on the same images (Figure 5): for each, `fastuiat eval "
                f"{self.runs[0].folder} --attacks clean autoattack --eps {RADII}`"
            )
            return
        self.page.section("Difference under AutoAttack")
        self.page.figure(
            figure,
            caption=f"Figure 5. Accuracy of {self.runs[0].label} minus the other's: above 0 it "
            "holds better. The band is 1.96 standard errors of the paired images; dotted: its "
            "training radius.",
            name="autoattack-difference",
        )

    def sensitivity(self) -> None:
        if len(self.runs) == 1:
            return
        found = sensitivities(self.runs)
        if not found:
            self.left_out.append(
                "No runs here differ in one number alone and share an evaluation on the same "
                "images (Figures 3 and 7): `fastuiat reproduce figure3`"
            )
            return
        self.page.section(
            "Sensitivity", "Figures 3 and 7. Runs that differ in one setting and in nothing else."
        )
        if len(found) > MOST_DRAWN:
            found = sorted(found, key=lambda one: -len(one.values))
            self.left_out.append(
                f"{len(found) - MOST_DRAWN:,} more groups of runs that differ in one number "
                "(Figures 3 and 7), none of them of more values than those drawn: a page of fewer "
                f"runs has them, `fastuiat report {self.runs[0].folder} OTHER`"
            )
        for i, one in enumerate(found[:MOST_DRAWN], 1):
            seeds = max(map(len, one.natural.values()))
            spread = f" Mean and standard deviation over {seeds} seeds." if seeds > 1 else ""
            self.page.figure(
                sensitivity_curves(one),
                caption=f"{one.setting} of {one.fixed}: natural accuracy, and {one.attack.attack} "
                f"at ε = {radius_text(one.attack.eps)}, on {one.attack.n:,} images.{spread}",
                name=f"sensitivity-{slug(one.setting)}-{i}",
            )

    def pictures(self) -> None:
        if not self.from_nets.pictures:
            return
        self.page.section(
            "Inverse examples",
            "Figure 6. Grey is no change. Beneath each image is the probability that the net gives "
            "its class.",
        )
        for label, pictures in self.from_nets.pictures.items():
            radius = radius_text(pictures.eps)
            times = f"{1 / (2 * pictures.eps):.0f}"
            for i, figure in enumerate(inverse_pictures(pictures), 1):
                self.page.figure(
                    figure,
                    caption=f"{label}: inverse examples within {radius}, perturbations magnified "
                    f"{times} times.",
                    name=f"inverse-{self.slugs[label]}-{i}",
                )
            if pictures.z is not None and len(pictures.z) > len(pictures.x):
                self.page.figure(
                    universal_gallery(pictures.z, pictures.eps, pictures.classes),
                    caption=f"{label}: z of every class, magnified {times} times.",
                    name=f"universal-{self.slugs[label]}",
                )

    def timing(self) -> None:
        if not any(run.epochs for run in self.runs):
            return
        self.page.section("Timing")
        self.page.table(
            *timing_beside(self.runs),
            note="Medians over the epochs; s/epoch is training alone. On a CPU the memory is that "
            "of the whole process, on CUDA that of its tensors.",
        )

    def settings(self) -> None:
        self.page.section("Settings")
        self.beside(*settings_beside(self.runs))

    def environment(self) -> None:
        lacking = [run for run in self.runs if not run.environment]
        self.lack(lacking, "no environment.json, which its training writes", "fastuiat train")
        if len(lacking) < len(self.runs):
            self.page.section("Environment")
            self.beside(*environments_beside(self.runs))

    def beside(self, differing: Rows, shared: Rows) -> None:
        """What differs between the runs, then what does not."""
        if differing[1]:
            self.page.table(*differing, note="What differs between the runs.")
        alone = len(self.runs) == 1
        self.page.table(*shared, folded="" if alone else f"{len(shared[1])} that all runs share")

    def lack(self, runs: Sequence[Run], what: str, command: str) -> None:
        """One line that some runs have none of something, and the command for the first."""
        if not runs:
            return
        names = listed([run.label for run in runs])
        verb = "has" if len(runs) == 1 else "have"
        for_each = "" if len(runs) == 1 else ", and so for each"
        command = command.replace("RUN", str(runs[0].folder))
        self.left_out.append(f"{names} {verb} {what}: `{command}`{for_each}")


def make_report(runs: Sequence[Run], from_nets: FromNets) -> tuple[Page, list[str]]:
    """(the page, a line for each thing that is not on it with the command that makes it)."""
    report = Report(runs, from_nets)
    return report.make(), report.left_out
