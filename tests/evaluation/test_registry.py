"""An attack of an evaluation is one class; a flag that does nothing for those chosen is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fastuiat import data
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.evaluation import attacks
from fastuiat.evaluation.attacks import Attack, base, register
from fastuiat.models import build_model
from fastuiat.training.checkpoint import FORMAT

N = 40


@pytest.fixture
def registry():
    before = dict(base.REGISTRY)
    yield base.REGISTRY
    base.REGISTRY.clear()
    base.REGISTRY.update(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A net of digits that is right about half the time, as a run's checkpoint."""
    torch.manual_seed(0)
    net = build_model("wrn-10-1").eval()
    test = data.load("digits", "unused", "test")
    with torch.no_grad():
        features = net(to_tensor(test.images), return_features=True)[1]
        centred = features - features.mean(dim=0)
        for k in range(10):
            net.fc.weight[k] = centred[torch.from_numpy(test.labels) == k].mean(dim=0)
        net.fc.bias.copy_(-(net.fc.weight * features.mean(dim=0)).sum(dim=1))
    path = tmp_path_factory.mktemp("net") / "net.pt"
    about = {"arch": "wrn-10-1", "activation": "relu", "num_classes": 10, "dataset": "digits"}
    content = {"format": FORMAT, "model": net.state_dict(), "net": about, "epoch": 1, "step": 1}
    torch.save(content, path)
    return path


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def evaluated(capsys, *words) -> list[dict]:
    capsys.readouterr()
    main(["eval", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)["records"]


class Shift(Attack):
    """The images made brighter by eps, up to `--most` times."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        most: int = 1
        """How often the shift is added."""

    def perturb(self, model: nn.Module, x, y, *, eps, noise):
        return (x + self.config.most * eps).clamp(0, 1)


def test_an_attack_is_one_class(registry, checkpoint, tmp_path, capsys):
    register("shift")(Shift)
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "clean,autoattack,pgd,cw,shift" in said
    assert "--most INT How often the shift is added. (default: 1)" in said
    words = ["--attacks", "clean", "shift", "--n", N, "--eps", "-64/255", "0", "64/255"]
    records = evaluated(capsys, checkpoint, *words, "--most", "2", "--out", tmp_path)
    clean, *shifted = records
    net, _ = load(checkpoint)
    test = data.load("digits", "unused", "test")
    x, y = to_tensor(test.images[:N]), torch.from_numpy(test.labels[:N])
    expected = []
    for eps in (-64 / 255, 0.0, 64 / 255):
        with torch.no_grad():
            expected.append((net((x + 2 * eps).clamp(0, 1)).argmax(dim=1) == y).float().mean())
    assert [r["accuracy"] for r in shifted] == pytest.approx([e.item() for e in expected])
    assert clean["accuracy"] == shifted[1]["accuracy"] > 0.2 and "eps" not in clean
    assert len({r["accuracy"] for r in shifted}) > 1
    assert {r["most"] for r in shifted} == {2} and shifted[0]["inverse"]
    files = sorted(p.name for p in (tmp_path / "eval").iterdir())
    assert files == [
        f"clean_n{N}.json",
        *(f"shift_most2_eps{e}over255_n{N}.json" for e in (-64, 0, 64)),
    ]


def load(path):
    from fastuiat import load_checkpoint

    return load_checkpoint(path)


def test_restarts_are_the_base_class_s(registry, checkpoint, tmp_path, capsys):
    """A field `restarts` is all that an attack says of them."""

    @register("noise")
    class Noisy(Attack):
        @dataclass(frozen=True, kw_only=True)
        class Config(Attack.Config):
            restarts: int = 1

        def perturb(self, model, x, y, *, eps, noise):
            drawn = torch.Generator().manual_seed(int(noise.key.sum()) % 2**31)
            shift = 2 * torch.rand(len(x), 1, 1, 1, generator=drawn) - 1
            return (x + eps * shift).clamp(0, 1)

    words = (checkpoint, "--attacks", "noise", "--n", N, "--eps", "0.3", "--restarts", "4")
    (record,) = evaluated(capsys, *words, "--out", tmp_path)
    held = record["restart_accuracy"]
    assert len(held) == 4 and held == sorted(held, reverse=True) and held[0] > held[-1]
    assert record["accuracy"] == held[-1] and record["restarts"] == 4


def test_two_defaults_of_one_flag_are_refused(registry):
    class Other(Attack):
        @dataclass(frozen=True, kw_only=True)
        class Config(Attack.Config):
            steps: int = 7

    with pytest.raises(TypeError, match="other and pgd share a setting of two defaults"):
        register("other")(Other)
    assert "other" not in attacks.names()

    @register("longer")
    class Longer(attacks.get("pgd")):
        @dataclass(frozen=True, kw_only=True)
        class Config(attacks.get("pgd").Config):
            decay: float = 0.5

    assert attacks.owners("steps") == ["pgd", "cw", "longer"]
    assert Longer.Config in attacks.configs()
    assert attacks.get("pgd").Config not in attacks.configs()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--attacks autoattack --steps 20",
            "--steps does nothing for --attacks autoattack: it is a setting of pgd and cw",
        ),
        ("--attacks autoattack --alpha 2/255", "--alpha does nothing"),
        ("--attacks clean autoattack --restarts=2", "--restarts does nothing for --attacks clean"),
        ("--attacks pgd --version standard", "for --attacks pgd: it is a setting of autoattack"),
        ("--compile off", "--compile does nothing for --attacks clean pgd"),
        ("--attacks clean --steps 20", "--steps does nothing"),
        ("--attacks clean --eps 8/255", "--eps does nothing for --attacks clean"),
        ("--attacks clean --eps-sweep 0 8/255 3", "--eps-sweep does nothing for --attacks clean"),
        ("--attacks clean --eps_sweep 0 8/255 3", "--eps-sweep does nothing"),
        ("--eps 8/255 --eps-sweep 0 8/255 3", "--eps does nothing beside --eps-sweep"),
        ("--attacks autoattack --version rand --compile on", "--compile on does nothing"),
        ("--attacks clean --which best", "--which chooses from a run folder"),
        ("--attacks pgd --loss ce", "--loss"),
        ("--attacks fgsm", "fgsm"),
    ],
)
def test_a_flag_that_does_nothing_is_refused(refusal, checkpoint, words, said):
    assert said in refusal("eval", str(checkpoint), *words.split())
    assert not (checkpoint.parent / "eval").exists()


def test_flags_that_do_something_are_taken(checkpoint, tmp_path, capsys):
    words = ["--attacks", "pgd", "autoattack", "--eps", "0", "--steps", "3", "--version", "plus"]
    records = evaluated(capsys, checkpoint, *words, "--n", "8", "--out", tmp_path)
    assert [r["attack"] for r in records] == ["pgd", "autoattack"]
    assert records[0]["steps"] == 3 and records[1]["version"] == "plus"


def test_the_library_refuses_settings_that_no_attack_has():
    with pytest.raises(UserError, match="steps does nothing for clean: it is a setting of pgd, cw"):
        attacks.chosen(["clean"], {"steps": 3})
    with pytest.raises(UserError, match="unknown attack 'x': choose from clean, autoattack"):
        attacks.chosen(["x"], {})
    with pytest.raises(UserError, match="pgd has no setting 'version': choose from alpha, steps"):
        attacks.create("pgd", version="plus")
    with pytest.raises(UserError, match="--steps must be above 0"):
        attacks.create("pgd", steps=0)
