"""PGD and CW with restarts and negative radii, against loops written out here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastuiat.commands.evaluate import eval_class, negative_radii
from fastuiat.commands.parsing import parse
from fastuiat.config import UserError
from fastuiat.data import ImageSet
from fastuiat.evaluation import attacks, evaluate
from fastuiat.evaluation.record import file_name
from fastuiat_kernels import noise_key, random_start

K, N, SEED, CPU = 4, 150, 5, torch.device("cpu")
ALPHA, STEPS, RESTARTS = 0.1 / 255, 2, 4
SETTINGS = {"alpha": ALPHA, "steps": STEPS, "restarts": RESTARTS}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, K)).eval()


@pytest.fixture(scope="module")
def images(net) -> ImageSet:
    pictures = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = net(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255).argmax(dim=1).numpy()
    labels[::3] = (labels[::3] + 1) % K  # wrong to begin with
    return ImageSet(name="noise", images=pictures, labels=labels, num_classes=K)


def loss_of(attack: str, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if attack == "pgd":
        return F.cross_entropy(logits, y, reduction="sum")
    others = logits.masked_fill(F.one_hot(y, K).bool(), -torch.inf).amax(dim=1)
    return (others - logits[torch.arange(len(y)), y]).sum()


def held(net: nn.Module, images: ImageSet, attack: str, eps: float, restart: int) -> np.ndarray:
    """Which samples are right after one restart, all of them attacked in one batch."""
    x = torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255
    y, radius, direction = torch.from_numpy(images.labels), abs(eps), 1 if eps > 0 else -1
    key = noise_key(SEED, restart, 0, f"eval-{attack}")
    moved = random_start(x, torch.arange(N), key, eps=radius, kind="uniform")
    for _ in range(STEPS):
        moved = moved.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(attack, net(moved), y), moved)
        moved = moved + direction * ALPHA * grad.sign()
        moved = moved.clamp(min=x - radius).clamp(max=x + radius).clamp(0, 1)
    return (net(moved).argmax(dim=1) == y).numpy()


@pytest.mark.parametrize("attack", ["pgd", "cw"])
@pytest.mark.parametrize("batch_size", [N, 7])
def test_restarts_and_inverse_radii(net, images, tmp_path, attack, batch_size):
    radii = (-8 / 255, 0.0, 8 / 255)
    records = evaluate(
        net, images, attacks=[attack], eps=radii, n=None, seed=SEED, batch_size=batch_size,
        device=CPU, out=tmp_path, info={"path": "net"},
        settings=SETTINGS,
    )  # fmt: skip
    inverse, clean, adversarial = records
    for record, worst in ((inverse, np.logical_or), (adversarial, np.logical_and)):
        alone = [held(net, images, attack, record["eps_value"], r) for r in range(RESTARTS)]
        expected = worst.accumulate(alone)
        assert record["per_sample"] == "".join("01"[int(v)] for v in expected[-1])
        assert record["restart_accuracy"] == pytest.approx(expected.mean(axis=1))
        assert record["accuracy"] == record["restart_accuracy"][-1]
        assert len(set(record["restart_accuracy"])) > 1  # a later restart found something
    assert adversarial["accuracy"] < clean["accuracy"] < inverse["accuracy"]
    assert (inverse["eps"], clean["eps"], inverse["inverse"]) == ("-8/255", "0/255", True)
    for record in records:
        name = file_name(attacks.create(attack, **SETTINGS), record["eps_value"], N)
        assert json.loads((tmp_path / "eval" / f"{name}.json").read_text()) == record


def test_autoattack_at_radius_0_is_the_clean_net_and_has_no_inverse(net, images, tmp_path):
    settings = {"n": 9, "seed": 0, "batch_size": 4, "device": CPU, "out": tmp_path, "info": {}}
    clean, nothing = evaluate(net, images, attacks=["clean", "autoattack"], eps=0.0, **settings)
    assert clean["per_sample"] == nothing["per_sample"]
    assert nothing["eps"] == "0/255" and "eps" not in clean
    with pytest.raises(UserError, match="no inverse"):
        evaluate(net, images, attacks=["autoattack"], eps=[-0.1, 0.1], **settings)


def test_only_what_is_unusual_is_in_a_file_name():
    assert file_name("pgd", 8 / 255, 100) == "pgd-20_eps8over255_n100"
    assert file_name("clean", 8 / 255, 100) == "clean_n100"
    assert file_name("autoattack", 8 / 255, 9) == "autoattack_eps8over255_n9"
    plus = attacks.create("autoattack", version="plus", compile="off")
    assert file_name(plus, 0.1, 9) == "autoattack_plus_eps0.1_n9"
    strong = attacks.create("cw", alpha="1/255", steps=50, restarts=5)
    assert file_name(strong, -8 / 255, 9) == "cw-50_alpha1over255_r5_eps-8over255_n9"


def test_radii_on_the_command_line():
    def radii(words: str) -> list[float]:
        argv = negative_radii(["run", *words.split()])
        options = parse(eval_class(), argv, prog="fastuiat eval")
        return [255 * r for r in options.eps_sweep or options.eps]

    assert radii("--eps -16/255 0 8/255") == pytest.approx([-16, 0, 8])
    assert radii("--eps-sweep -16/255 16/255 33") == pytest.approx(range(-16, 17))
    with pytest.raises(UserError, match="LO below HI"):
        radii("--eps-sweep 8/255 8/255 3")
