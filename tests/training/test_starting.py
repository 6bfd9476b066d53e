"""`--init` and `--freeze-epochs`: what a run begins with, and what is held of it at first."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import fastuiat
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.interrupts import Interrupted
from fastuiat.training import run
from fastuiat.training.averaging import Averaged
from fastuiat.training.checkpoint import save_checkpoint
from fastuiat.training.config import TrainConfig
from fastuiat.training.folder import config_of
from fastuiat.training.optim import make_optimizer
from fastuiat.training.starting import HeadFirst, begun
from fastuiat.training.trainer import Trainer
from tests.processes import Process
from tests.training.tiny import StopsAt

sys.path.insert(0, str(Path(__file__).parent))
from library_steps import images, method_of

HEAD = {"fc.weight", "fc.bias"}


def net_of(seed: int, num_classes: int = 10, arch: str = "wrn-10-1") -> torch.nn.Module:
    torch.manual_seed(seed)
    net = fastuiat.build_model(arch, num_classes)
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            value.uniform_(0.5, 1.5)
    return net


def content_of(model: dict, averaged: dict | None = None, classes: int = 10) -> dict[str, Any]:
    net = {"arch": "wrn-10-1", "activation": "relu", "num_classes": classes, "dataset": "digits"}
    return {"net": net, "model": model, "averaged": averaged, "epoch": 3, "step": 9}


def started(init: Path, arch: str = "wrn-10-1") -> tuple[dict, dict, str, list]:
    """(the entries before and after, what is said) of a run's net that begins with a file."""
    torch.manual_seed(7)
    net = fastuiat.build_model(arch, 10)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    info = {"arch": arch, "activation": "relu", "num_classes": 10, "dataset": "digits"}
    begins, start = begun(init, net, info, None)
    assert start is not None
    return before, begins.state_dict(), start.taken, start.notes


def same(a: dict, b: dict) -> set[str]:
    return {key for key in a if torch.equal(a[key], b[key])}


def test_of_a_run_its_best_and_averaged_weights(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    states = [net_of(seed).state_dict() for seed in range(4)]
    for name, at in (("best", 0), ("last", 2)):
        content = content_of(states[at], states[at + 1])
        save_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.pt", content)
    for given, expected, said in (
        (tmp_path / "run", states[1], "the averaged weights, digits epoch 3"),
        (tmp_path / "run/checkpoints/last.pt", states[3], "the averaged weights, digits epoch 3"),
    ):
        _, after, taken, notes = started(given)
        assert same(after, expected) == set(expected)
        assert said in taken and taken.endswith("nothing is new") and notes == []
    save_checkpoint(tmp_path / "raw.pt", content_of(states[0]))
    _, after, taken, _ = started(tmp_path / "raw.pt")
    assert same(after, states[0]) == set(after) and "the raw weights" in taken


@pytest.mark.parametrize("kind", ["run", "plain", "wrapped", "safetensors", "robust_resnet"])
def test_the_head_is_new_where_the_classes_differ(kind, tmp_path):
    theirs = net_of(0, num_classes=7).state_dict()
    file = tmp_path / "net.pt"
    if kind == "run":
        save_checkpoint(file, content_of(theirs, classes=7))
    elif kind == "safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in theirs.items()}, file)
    elif kind == "robust_resnet":  # RobustBench's names of it
        names = {"conv1.": "stem_conv.", "bn1.": "norm1.", "block1.": "blocks.0."}
        names |= {"block2.": "blocks.1.", "block3.": "blocks.2."}
        renamed = {}
        for key, value in theirs.items():
            old = next((name for name in names if key.startswith(name)), "")
            key = names.get(old, "") + key.removeprefix(old)
            renamed[key.replace(".convShortcut.", ".shortcut.0.")] = value
        torch.save(renamed, file)
    else:
        prefix = "module." if kind == "wrapped" else ""
        torch.save({"state_dict": {prefix + k: v for k, v in theirs.items()}, "epoch": 3}, file)
    before, after, taken, notes = started(file)
    assert same(before, after) >= HEAD
    assert same(after, theirs | {k: before[k] for k in HEAD}) == set(after)
    assert taken.startswith(f"{len(after) - 2} of {len(after)} entries taken from {file}")
    assert taken.endswith("new: fc.weight, fc.bias, of 10 classes in place of 7")
    assert bool(notes) == (kind != "run"), "what was done to the pixels is not known of others'"


def test_a_net_that_does_not_fit_is_told_by_five_keys_at_most(tmp_path):
    save_checkpoint(tmp_path / "own.pt", content_of(net_of(0).state_dict()))
    torch.save(net_of(0).state_dict(), tmp_path / "bare.pt")
    for name, hint in (("own.pt", "it is of a wrn-10-1"), ("bare.pt", "looks like wrn-10-1")):
        with pytest.raises(UserError) as error:
            started(tmp_path / name, arch="wrn-16-2")
        said = str(error.value)
        assert "do not fit wrn-16-2" in said and hint in said
        assert said.split("do not fit")[0].count(".weight") <= 5 and " more" in said


def test_what_cannot_begin_a_run(tmp_path, refusal, small_run):
    state = net_of(0).state_dict()
    bad = {name: torch.full_like(state[name], torch.inf) for name in ("fc.bias", "conv1.weight")}
    torch.save(state | {"fc.bias": bad["fc.bias"]}, tmp_path / "bare.pt")
    own = content_of(state | {"conv1.weight": bad["conv1.weight"]})
    save_checkpoint(tmp_path / "own.pt", own)
    (tmp_path / "page.pt").write_text("<!doctype html><html></html>")
    (tmp_path / "empty").mkdir()
    for words, said in {
        "--init nowhere": "nowhere does not exist",
        "--init empty": "holds no checkpoints/best.pt",
        "--init page.pt": "web page",
        "--init bare.pt": "not finite: fc.bias",
        "--init own.pt": "not finite: conv1.weight",
        "--freeze-epochs 1": "add --init",
        "--init own.pt --freeze-epochs 3 --epochs 2": "must be from 0 to the run's 2 epochs",
        "--init own.pt --freeze-epochs -1": "--freeze-epochs must be from 0",
    }.items():
        assert said in refusal("train", *small_run, "--method", "natural", *words.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arch", ["wrn-10-1", "timm:test_resnet"])
def test_a_normalisation_in_the_file_stands_before_the_net_from_then_on(
    arch, tmp_path, monkeypatch, small_run, capsys
):
    """In the run, its checkpoint, one that goes on from it, and one that begins with it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theirs = fastuiat.build_model(arch, 7).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    inside = {f"net.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"mean": mean, "std": std, **inside}, "theirs.pt")
    words = "--method uiat --steps 1 --train-size 32 --batch-size 16 --epochs 1 --val-size 0 "
    words += f"--freeze-epochs 1 --max-lr 1e-30 --arch {arch}"
    flags = [*small_run, *words.split()]
    main(["train", *flags, "--init", "theirs.pt", "--max-steps", "1", "--out", "a"])
    assert "behind their normalisation" in capsys.readouterr().out
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps(config | {"max_steps": None}))
    last = torch.load("a/checkpoints/last.pt", weights_only=True)
    last["settings"]["max_steps"] = None
    torch.save(last, "a/checkpoints/last.pt")
    main(["train", "--resume", "a"])
    main(["train", *flags, "--init", "a", "--out", "b"])
    x = torch.rand(4, 3, 32, 32)
    normalised = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    for name in ("a", "b"):
        net, info = fastuiat.load_checkpoint(name)
        assert info["step"] == 2 and info["normalisation"]["mean"] == pytest.approx(mean.tolist())
        theirs = fastuiat.build_model(arch, 10).eval()
        state = {k.removeprefix("net."): v for k, v in net.state_dict().items()}
        theirs.load_state_dict({k: state[k] for k in theirs.state_dict()})
        same_body = same({k: v for k, v in theirs.state_dict().items()}, {
            k: inside[f"net.{k}"] for k in theirs.state_dict()})  # fmt: skip
        assert same_body == set(theirs.state_dict()) - HEAD, "the head alone learned"
        with torch.no_grad():
            assert torch.allclose(net(x), theirs(normalised), atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_head_learns_first_and_all_of_it_later(compiled, small_net, counted):
    torch.manual_seed(0)
    net = small_net()
    averaged = 0.9
    step = fastuiat.TrainingStep(
        net, method_of("sat", attack={"steps": 1}), total_steps=6, precision="fp32",
        compile=compiled, weight_averaging=averaged,
    )  # fmt: skip
    first = HeadFirst(net, HEAD, epochs=2)
    states = []
    for epoch in (1, 2, 3):
        first.begin(epoch, step.optimizer)
        for _ in range(2):
            step(*images(epoch), epoch=epoch)
            net.eval()  # as a validation leaves it
        states.append({k: v.clone() for k, v in step.state_dict()["model"].items()})
        states[-1] |= {f"mean.{k}": v.clone() for k, v in step.averaged.state_dict().items()}
    moving = {k for k in states[0] if k.removeprefix("mean.") in HEAD}
    assert same(states[0], states[1]) == set(states[0]) - moving, "statistics are held as well"
    assert same(states[1], states[2]) == set()
    assert bool(counted) == compiled


def test_a_parameter_that_joins_has_the_momentum_of_a_first_step():
    """Against SGD's own rule: v ← g, w ← w − lr·(g + μ·v) with Nesterov, without decay."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    config = fastuiat.OptimizerConfig(max_lr=0.5, momentum=0.9, weight_decay=0.0)
    optimizer = make_optimizer(net, config)
    first = HeadFirst(net, {"1.weight"}, epochs=1)
    for epoch in (1, 2):
        first.begin(epoch, optimizer)
        optimizer.zero_grad(set_to_none=True)
        before = net[0].weight.detach().clone()
        net(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
    expected = before - 0.5 * 1.9 * net[0].weight.grad
    assert torch.allclose(net[0].weight, expected)


def kill_at(process: Process, log: Path, lines: int) -> None:
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.slow
def test_killed_while_the_head_learns_and_after_it_ends_in_the_same_bits(
    tmp_path, monkeypatch, small_run, capsys, start
):
    """Of another library's net; the file that it began with is gone by then, its record stays."""
    monkeypatch.chdir(tmp_path)
    theirs = timm.create_model("test_vit", num_classes=7, img_size=32)
    torch.save(theirs.state_dict(), "net.pt")
    words = "--method sat --steps 1 --train-size 64 --batch-size 16 --epochs 4 --freeze-epochs 2 "
    words += "--weight-averaging 0.9 --log-every 1 --checkpoint-minutes 0.0001 --init net.pt"
    flags = [*small_run, "--arch", "timm:test_vit", *words.split()]
    main(["train", *flags, "--out", "whole"])
    said = capsys.readouterr().out
    assert "--init: 78 of 80 entries taken from net.pt" in said
    begun = json.loads(Path("whole/environment.json").read_text())["init"]
    assert begun["taken"] in said and begun["path"] == "net.pt" and len(begun["sha256"]) == 64
    log = tmp_path / "broken" / "metrics.jsonl"
    kill_at(start("train", *flags, "--out", "broken"), log, 3)
    Path("net.pt").rename("gone.pt")
    with pytest.raises(Interrupted):
        run.resume(
            config_of(Path("broken")),
            Path("broken"),
            progress=StopsAt(12, signal.SIGTERM),
            say=print,
        )
    main(["train", "--resume", "broken"])
    ends = [torch.load(f"{r}/checkpoints/last.pt", weights_only=True) for r in ("whole", "broken")]
    for part in ("model", "averaged", "method"):
        assert same(ends[0][part], ends[1][part]) == set(ends[0][part]) == set(ends[1][part])
    momenta = [end["optimizer"]["state"] for end in ends]
    assert all(same(momenta[0][i], momenta[1][i]) == {"momentum_buffer"} for i in momenta[0])
    assert ends[0]["step"] == ends[1]["step"] == 16

    net, info = fastuiat.load_checkpoint("broken")
    assert (info["arch"], info["num_classes"]) == ("timm:test_vit", 10)
    main(["eval", "broken", "--attacks", "clean", "--n", "8"])
    for form, suffix in (("safetensors", "safetensors"), ("torch-export", "pt2")):
        main(["export", "broken", "--format", form, "--out", f"net.{suffix}"])
    elsewhere = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    elsewhere.load_state_dict(safetensors.torch.load_file("net.safetensors"))
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(elsewhere(x), net(x))
        assert torch.allclose(torch.export.load("net.pt2").module()(x), net(x), atol=1e-6)
    again, info = fastuiat.load_checkpoint("net.safetensors")
    assert same(again.state_dict(), net.state_dict()) == set(net.state_dict())
    assert info["arch"] == "timm:test_vit"


def test_a_run_that_is_killed_before_its_first_step_has_kept_its_start(tmp_path):
    """And one that was killed before even that takes it from the file again."""
    torch.save(net_of(3).state_dict(), tmp_path / "net.pt")
    config = TrainConfig(
        dataset="digits", arch="wrn-10-1", method="natural", val_size=64, max_steps=1,
        loader="resident", precision="fp32", compile=False, init=tmp_path / "net.pt",
        out=tmp_path / "run",
    )  # fmt: skip

    class Killed(BaseException):
        pass

    def killed(self: Trainer, *_: Any) -> None:
        raise Killed

    last = tmp_path / "run" / "checkpoints" / "last.pt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train", killed)
        run.train(config, say=lambda line: None)
    kept = torch.load(last, weights_only=True)
    assert kept["step"] == 0 and same(kept["model"], net_of(3).state_dict()) == set(kept["model"])
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train", killed)
        last.unlink()
        run.resume(config_of(tmp_path / "run"), tmp_path / "run", say=notes.append)
    assert any(note.startswith("--init: 46 of 46") for note in notes)
    again = torch.load(last, weights_only=True)
    assert same(kept["model"], again["model"]) == set(kept["model"])


def test_what_is_held_stays_what_it_is_in_the_average():
    net = net_of(1)
    averaged = Averaged(net, 0.99)
    for step in range(50):
        averaged.update(step)
    assert same(averaged.net.state_dict(), net.state_dict()) == set(net.state_dict())
