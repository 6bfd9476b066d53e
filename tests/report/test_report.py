"""`fastuiat report` on a real run and doctored copies: what it draws, leaves out and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastuiat
from fastuiat import data
from fastuiat.cli import main
from fastuiat.commands.report import ReportOptions, losses_of
from fastuiat.config import UserError
from fastuiat.evaluation.inverse import first_of_each_class, inverse_examples, natural_losses
from fastuiat.files import sha256_of
from fastuiat.report import curves, document
from fastuiat.report.runs import Record, labels_of, read_run, read_runs
from fastuiat.report.sensitivity import sensitivities, sensitivity_curves
from fastuiat.training.checkpoint_file import locate

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import open_browser

CPU = torch.device("cpu")
N, EPOCHS = 40, 5
SWEEP = (-16, -8, -4, 0, 4, 8, 16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two steps of a real run, and a real evaluation of it."""
    folder = tmp_path_factory.mktemp("report") / "run"
    small = "--dataset digits --arch wrn-10-1 --loader resident --no-compile --steps 1"
    size = "--batch-size 32 --val-size 16 --max-steps 2 --log-every 1"
    main(["train", *small.split(), *size.split(), "--epochs", str(EPOCHS), "--out", str(folder)])
    main(["eval", str(folder), "--attacks", "clean", "pgd", "--n", "8", "--batch-size", "8"])
    return folder


def copy(trained: Path, folder: Path, **settings) -> Path:
    """The run elsewhere, with other settings of its method."""
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "eval")
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_metrics(folder: Path, seed: int) -> list[dict]:
    """Metrics of five epochs with two log lines each; returns the lines."""
    draw = np.random.default_rng(seed)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        for half in (1, 2):
            clock = {"images_per_second": 100.0, "peak_memory_mib": 500.0 + epoch}
            values = {"loss": 1.0, "robust_accuracy": draw.random()}
            step = 10 * epoch - 10 + 5 * half
            lines.append({"kind": "train", "step": step, "epoch": epoch, **values, "clock": clock})
        shares = {f"{p}_{k}": draw.random() for p in ("val", "test") for k in ("natural", "robust")}
        clock = {"images_per_second": 64.0, "data_wait_percent": 1.0, "validation_seconds": 2.0}
        line = {"kind": "epoch", "step": 10 * epoch, "epoch": epoch, **shares, "clock": clock}
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def write_record(folder: Path, attack: str, level: float, correct: np.ndarray, **more) -> None:
    """An evaluation record of the run's best checkpoint."""
    (folder / "eval").mkdir(exist_ok=True)
    radius = {"eps": f"{level}/255", "eps_value": level / 255}
    value = {
        "attack": attack,
        **({} if attack == "clean" else radius),
        "accuracy": float(correct.mean()),
        "n": len(correct),
        "dataset": "digits",
        "split": "test",
        "seed": 0,
        "seconds": 1.5,
        "checkpoint": {"sha256": sha256_of(locate(folder)), "weights": "raw"},
        "per_sample": "".join("1" if c else "0" for c in correct),
    } | more
    (folder / "eval" / f"{attack}_{level}.json").write_text(json.dumps(value))


def evaluate(folder: Path, seed: int) -> dict[tuple[str, int], np.ndarray]:
    """Clean, a PGD sweep over both directions, AutoAttack at three radii; returns the outcomes."""
    margin = np.random.default_rng(seed).normal(8, 8, N)
    outcomes = {("clean", 0): margin > 0}
    outcomes |= {("pgd", level): margin > level for level in SWEEP if level}
    outcomes |= {("autoattack", level): margin > level + 1 for level in (4, 8, 16)}
    for (attack, level), correct in outcomes.items():
        write_record(folder, attack, level, correct)
    return outcomes


@pytest.fixture(scope="module")
def full(trained, tmp_path_factory):
    """(a run that has everything, its metrics, its outcomes)."""
    folder = copy(trained, tmp_path_factory.mktemp("full") / "everything")
    return folder, write_metrics(folder, 1), evaluate(folder, 1)


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    folder = copy(trained, tmp_path_factory.mktemp("other") / "lam", lam=1.5)
    return folder, write_metrics(folder, 2), evaluate(folder, 2)


def drawn(figure) -> dict[str, np.ndarray]:
    """The points of every labelled line."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in lines}


def test_learning_curves_are_the_metrics(full):
    folder, lines, _ = full
    points = drawn(curves.learning_curves(read_runs([folder])[0]))
    epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = [line for line in lines if line["kind"] == "train"]
    for part, name in (("val", "validation"), ("test", "test")):
        for kind in ("natural", "robust"):
            expected = [(e["epoch"], 100 * e[f"{part}_{kind}"]) for e in epochs]
            np.testing.assert_allclose(points[f"{kind}, {name}"], expected)
    means = [
        (a["epoch"], 50 * (a["robust_accuracy"] + b["robust_accuracy"]))
        for a, b in zip(steps[::2], steps[1::2], strict=True)
    ]
    np.testing.assert_allclose(points["robust, training"], means)
    assert len(points) == 5


def test_the_halves_are_ranked_by_natural_loss(full):
    folder, _, outcomes = full
    model, _ = fastuiat.load_checkpoint(folder)
    images = data.load("digits", Path("data"), "test")
    images = dataclasses.replace(images, images=images.images[:N], labels=images.labels[:N])
    x = torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = model(x).double()
    y = torch.from_numpy(images.labels)
    expected = logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    losses = natural_losses(model, images, batch_size=7, device=CPU)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-5)

    run = read_runs([folder])[0]
    sweep = curves.strength_sweep(run)
    assert sweep is not None
    points = drawn(curves.strength_curves(run, sweep, losses.tolist()))
    ranked = sorted(range(N), key=lambda i: (float(losses[i]), i))
    for name, rows in (("lower", ranked[: N // 2]), ("higher", ranked[N // 2 :])):
        wanted = []
        for level in SWEEP:
            correct = outcomes["pgd" if level else "clean", level]
            wanted.append((level, 100 * sum(bool(correct[i]) for i in rows) / len(rows)))
        np.testing.assert_allclose(points[f"half with the {name} loss"], wanted, atol=1e-9)


def test_differences_and_sensitivity_are_the_records(full, other, trained, tmp_path):
    # λ is 3.5 in one and 1.5 in the other; a second seed of the other, and a run that differs in
    # more than λ.
    (first, _, a), (second, _, b) = full, other
    reseeded = copy(trained, tmp_path / "reseeded", lam=1.5)
    config = json.loads((reseeded / "config.json").read_text())
    (reseeded / "config.json").write_text(json.dumps(config | {"seed": 1}))
    c = evaluate(reseeded, 3)
    unlike = copy(trained, tmp_path / "unlike", lam=2.5, beta=0.5)
    evaluate(unlike, 4)
    runs = read_runs([first, second, reseeded, unlike])

    points = drawn(curves.difference_curves(runs[:2]))[f"{runs[0].label} − {runs[1].label}"]
    wanted = [(0, 100 * (a["clean", 0].mean() - b["clean", 0].mean()))]
    for level in (4, 8, 16):
        gain = a["autoattack", level].mean() - b["autoattack", level].mean()
        wanted.append((level, 100 * gain))
    np.testing.assert_allclose(points, wanted, atol=1e-9)
    found = curves.difference(*runs[:2])
    paired = a["autoattack", 8].astype(float) - b["autoattack", 8]
    error = np.sqrt((paired**2).mean() - paired.mean() ** 2) / np.sqrt(N)
    assert found is not None and found.errors[2] == pytest.approx(100 * error)

    (one,) = sensitivities(runs)
    assert one.setting == "lam" and one.values == [1.5, 3.5]
    assert one.attack.values["attack"] == "autoattack" and round(255 * one.attack.eps) == 8
    key = ("autoattack", 8)
    assert sorted(one.robust[1.5]) == sorted([100 * b[key].mean(), 100 * c[key].mean()])
    assert one.natural[3.5] == [100 * a["clean", 0].mean()]
    upper, lower = sensitivity_curves(one).axes
    mean = 50 * (b[key].mean() + c[key].mean())
    np.testing.assert_allclose(
        lower.lines[0].get_xydata(), [(1.5, mean), (3.5, 100 * a[key].mean())]
    )
    assert upper.get_ylabel() == "natural, %"


def test_inverse_examples_raise_the_likelihood_and_stay_in_the_ball(full):
    folder, _, _ = full
    model, _ = fastuiat.load_checkpoint(folder)
    state = torch.load(locate(folder), weights_only=True)["method"]
    z = state["target.universal.bank.z"]
    assert z.abs().max() == pytest.approx(4 / 255)  # two steps have moved it
    images = data.load("digits", Path("data"), "test")
    x, y = first_of_each_class(images, 10)
    assert y.tolist() == list(range(10))
    assert (images.images[(images.labels == 7).argmax()] / 255).sum() == pytest.approx(
        float(x[7].sum()), rel=1e-5
    )
    made = inverse_examples(model, x, y, z, eps=4 / 255, device=CPU)
    assert made.x_universal is not None and made.p_universal is not None
    assert (made.x_inv - x).abs().max() <= 4 / 255 + 1e-6
    assert (made.p_inv > made.p).all()
    torch.testing.assert_close(made.x_universal, (x + z[y]).clamp(0, 1))
    with torch.no_grad():
        p = torch.softmax(model(made.x_universal), dim=1)[torch.arange(10), y]
    torch.testing.assert_close(made.p_universal, p)


@pytest.mark.slow
def test_the_pages_in_a_browser(full, other, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["report", str(full[0])])
    main(["report", str(full[0]), str(other[0])])
    said = capsys.readouterr().out
    pages = [full[0] / "report.html", tmp_path / "report.html"]
    assert f"report: {pages[0]}" in said and "report: report.html" in said
    unfold = "document.querySelectorAll('details').forEach(d => d.open = true);"
    seen = "return [...document.querySelectorAll('h2')].map(h => h.textContent);"
    with open_browser() as browser:
        for page in pages:
            for width, dark in ((1280, False), (390, True)):
                sight = browser.look(page, width=width, dark=dark, script=unfold + seen)
                assert sight.errors == [] and sight.requests == []
                assert sight.scroll_width == sight.window_width == width
                common = ["Accuracy under attack", "Learning curves", "Accuracy against strength"]
                assert sight.value[:3] == common
                assert {"Inverse examples", "Timing", "Settings", "Environment"} < set(sight.value)
                both = {"Difference under AutoAttack", "Sensitivity"} <= set(sight.value)
                assert both == (page == pages[1])
    figures = {path.name for path in (tmp_path / "report-figures").iterdir()}
    stems = {name.rsplit(".", 1)[0] for name in figures}
    assert figures == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert {"autoattack-difference", "robust-overfitting", "sensitivity-lam-1"} < stems
    assert len([stem for stem in stems if stem.startswith("strength-")]) == 2
    # Seconds of an epoch: ten steps of 32 images at 64 images/s.
    text = pages[0].read_text()
    assert re.search(r'<td class="number">5\.0</td><td class="number">64</td>', text)
    assert ">505</td>" in text  # MiB
    assert '<th scope="row">attack.eps</th><td>8/255</td>' in text


def test_natural_losses_are_kept_and_belong_to_their_checkpoint(full):
    folder = full[0]
    run = read_run(folder)
    sweep = curves.strength_sweep(run)
    assert sweep is not None

    def losses(record=sweep.records[0]):
        return losses_of(run, record, ReportOptions(runs=(folder,), device="cpu"), None)

    kept = folder / "eval" / f"natural-loss_n{N}.json"
    kept.unlink(missing_ok=True)
    first = losses()
    stored = json.loads(kept.read_text())
    assert stored["loss"] == first and stored["sha256"] == sha256_of(locate(folder))
    kept.write_text(json.dumps(stored | {"loss": [99.0, *first[1:]]}))
    assert losses()[0] == 99.0  # not computed again
    kept.write_text(json.dumps(stored | {"sha256": "another", "loss": [99.0, *first[1:]]}))
    assert losses() == first
    other = dict(sweep.records[0].values) | {"checkpoint": {"sha256": "gone"}}
    assert "not in its checkpoints any more" in losses(Record(other, folder / "eval"))


@pytest.mark.parametrize("told", [float("nan"), ["data"], {"a": 1}, True])
def test_a_place_of_data_that_is_none_is_said(trained, tmp_path, told):
    folder = copy(trained, tmp_path / "run")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data_dir": told}))
    main(["report", str(folder)])
    text = (folder / "report.html").read_text()
    assert "has no inverse examples (Figure 6)" in text and "data_dir must be a path" in text


@pytest.mark.parametrize(
    "z, said",
    [
        ([None, 1e266, []], "is no tensor of images"),
        (torch.zeros(10, 3), "is no tensor of images"),
        (torch.zeros(2, 3, 32, 32), "is not of its classes"),
        (torch.zeros(10, 1, 28, 28), "is not of its classes"),
    ],
)
def test_a_z_that_is_none_is_said(trained, tmp_path, z, said):
    folder = copy(trained, tmp_path / "run")
    content = torch.load(locate(folder), weights_only=True)
    name = next(name for name in content["method"] if name.endswith("bank.z"))
    content["method"][name] = z
    torch.save(content, locate(folder))
    main(["report", str(folder)])
    assert said in (folder / "report.html").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, 10**400, [[]]])
def test_settings_that_are_none_are_told_or_refused(trained, tmp_path, value):
    """A report of two runs, one of which says odd things of itself."""
    first, other = copy(trained, tmp_path / "a"), tmp_path / "b"
    for name in ("seed", "batch_size", "momentum_epoch"):
        shutil.rmtree(other, ignore_errors=True)
        copy(trained, other, **{name: value})
        document.make_report(read_runs([first, other]), document.FromNets())
    shutil.rmtree(other)
    copy(trained, other)
    config = json.loads((other / "config.json").read_text())
    config["settings"] |= {"attack": {"eps": 8 / 255, "alpha": value}, "inverse_eps": value}
    (other / "config.json").write_text(json.dumps(config))
    document.make_report(read_runs([first, other]), document.FromNets())
    config["settings"]["attack"]["eps"] = value
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"b/config\.json: .* radius"):
        read_runs([first, other])


def test_what_a_run_lacks_is_named_with_its_command(trained, tmp_path, monkeypatch, capsys):
    bare = copy(trained, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    for name in ("metrics.jsonl", "environment.json"):
        (bare / name).unlink()
    main(["report", str(bare), "--out", str(tmp_path / "a" / "page.html")])
    text = (tmp_path / "a" / "page.html").read_text()
    end = text[text.index("Not on this page</h2>") :]
    for command in (
        f"fastuiat eval {bare} --attacks clean pgd cw autoattack --eps 8/255",
        f"fastuiat eval {bare} --attacks pgd --eps-sweep -16/255 16/255",
        f"fastuiat train --resume {bare}",
        f"fastuiat report {bare} OTHER",
        "checkpoints/best.pt",
    ):
        assert command in end, command
    assert "<figure" not in text and "Learning curves</h2>" not in text
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "attacks, command",
    [
        ([["clean"], ["cw", "pgd"]], "fastuiat eval a --attacks clean pgd"),
        ([["cw", "pgd"], ["clean"]], "fastuiat eval b --attacks clean pgd"),
        ([["cw", "pgd"], ["pgd"], ["cw"]], "fastuiat eval c --attacks clean pgd"),
        ([["autoattack"], ["cw"], ["cw"]], "fastuiat eval a --attacks clean cw"),
    ],
)
def test_the_command_is_of_the_run_that_lacks_what_others_have(
    attacks, command, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, kinds in zip("abc", attacks, strict=False):
        folder = copy(trained, Path(name))
        shutil.rmtree(folder / "eval", ignore_errors=True)
        for kind in kinds:
            write_record(folder, kind, 8, np.ones(N))
    with pytest.raises(UserError, match=f"share no attack .*{command}$"):
        read_runs([Path(name) for name, _ in zip("abc", attacks, strict=False)])


def test_runs_of_a_sweep_are_called_by_what_tells_them_apart(tmp_path):
    rows = [tmp_path / "figure3" / f"lam-{lam}" / "seed-0" for lam in (1.5, 2.5)]
    assert labels_of(rows) == ["lam-1.5", "lam-2.5"]
    assert labels_of([rows[0], rows[0].with_name("seed-1")]) == ["seed-0", "seed-1"]
    assert labels_of([tmp_path / "a", tmp_path / "a" / "b"]) == [".", "b"]
    assert labels_of([rows[0]]) == ["seed-0"]


def damage(name: str, folder: Path) -> None:
    if name == "metrics":
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"kind": "epoch", "st\n')
    elif name == "foreign metrics":
        (folder / "metrics.jsonl").write_text("[1, 2]\n")
    elif name == "record":
        (folder / "eval" / "pgd_8.json").write_text("{")
    elif name == "foreign record":
        (folder / "eval" / "pgd_8.json").write_text('{"attack": "pgd", "accuracy": "high"}')
    elif name == "short record":
        write_record(folder, "pgd", 8, np.ones(N), per_sample="101")
    elif name == "config":
        (folder / "config.json").write_text("[]")


@pytest.mark.parametrize(
    "name, said",
    [
        ("metrics", r"metrics\.jsonl, line 16 is no line of metrics"),
        ("foreign metrics", "line 1 is no line of metrics"),
        ("record", r"pgd_8\.json cannot be read as JSON"),
        ("foreign record", r"pgd_8\.json is no evaluation record"),
        ("short record", r"pgd_8\.json is no evaluation record"),
        ("config", r"config\.json holds no settings"),
        ("nothing", r"does not exist"),
        ("parent", r"has no config\.json; it holds runs: give .*bad"),
        ("twice", "is given twice"),
        ("folder", "is a folder: give --out"),
        ("none", "name a run folder"),
        ("no common attack", r"share no attack \(bad: autoattack, pgd; cw: cw\).*eval .*cw --att"),
        ("no attack", r"share no attack .*cw: none.*fastuiat eval .*cw --attacks clean"),
    ],
)
def test_bad_input_is_one_line(name, said, full, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    shutil.copytree(full[0], folder)
    damage(name, folder)
    lone = copy(full[0], tmp_path / "cw")
    write_record(lone, "clean" if name == "no attack" else "cw", 8, np.ones(N))
    words = {
        "nothing": [folder / "no"],
        "parent": [tmp_path],
        "twice": [folder, Path("bad")],
        "folder": [folder, "--out", tmp_path],
        "none": [],
        "no common attack": [folder, lone],
        "no attack": [folder, lone],
    }.get(name, [folder])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, words)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.startswith("fastuiat: ")
    assert re.search(said, error), error
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_real_evaluation_is_read_as_it_was_written(trained):
    run = read_run(trained)
    assert [record.attack for record in run.records] == ["clean", "pgd"]
    assert run.records[1].eps == pytest.approx(8 / 255) and run.records[1].n == 8
    correct = run.records[1].correct
    assert correct is not None and 100 * np.mean(correct) == pytest.approx(run.records[1].percent)
    assert len(run.epochs) == 1 and len(run.steps) == 2 and run.settings["attack.steps"] == 1
