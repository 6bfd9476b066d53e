"""The paper's data sets, radii and nets, from files as they are published to an evaluated run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

import fastuiat as package
from fastuiat import data, methods

RNG = np.random.default_rng(0)
QUICK = ["--arch", "wrn-10-1", "--batch-size", "32", "--val-size", "16", "--steps", "2"]
QUICK += ["--log-every", "1", "--loader", "resident", "--no-compile", "--data-dir", "files"]
QUICK += ["--unchecked-data"]  # they are made here


def pixels(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def cifar_file(path: Path, count: int, key: str, classes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pixels(count).transpose(0, 3, 1, 2).reshape(count, 3072)
    labels = (np.arange(count) % classes).tolist()
    path.write_bytes(pickle.dumps({b"data": rows, key.encode(): labels}, protocol=2))


def write_cifar10(folder: Path, per_file: int = 20) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        cifar_file(folder / "cifar-10-batches-py" / name, per_file, "labels", 10)


def write_cifar100(folder: Path) -> None:
    cifar_file(folder / "cifar-100-python" / "train", 200, "fine_labels", 100)
    cifar_file(folder / "cifar-100-python" / "test", 100, "fine_labels", 100)


def write_svhn(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 120), ("test", 40)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        content = {"X": pixels(count).transpose(1, 2, 3, 0), "y": labels}
        savemat(folder / f"{split}_32x32.mat", content)


def trained(fastuiat, tmp_path: Path, *words: str) -> tuple[dict, dict]:
    """(config.json, last checkpoint) of a run to its end."""
    done = fastuiat("train", *words, "--out", "run")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    return config, torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)


def evaluated(fastuiat, tmp_path: Path, *words: str) -> list[dict]:
    done = fastuiat("eval", "run", "--n", "16", "--unchecked-data", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "run/eval").glob("*.json"))]


@pytest.mark.slow
def test_svhn(fastuiat, tmp_path):
    write_svhn(tmp_path / "files")
    recipe = ["--recipe", "table1/svhn/uiat-oneoff", *QUICK, "--epochs", "2"]
    config, last = trained(fastuiat, tmp_path, *recipe)
    assert config["settings"]["lam"] == 3.0
    assert config["settings"]["attack"]["alpha"] == pytest.approx(1 / 255)
    assert last["epoch"] == 2 and last["method"]["target.universal.bank.z"].shape[0] == 10
    assert last["method"]["target.memory.seen"].sum() == 96  # 3 batches, 104 images to train on
    records = evaluated(fastuiat, tmp_path, "--attacks", "clean", "pgd", "cw")
    assert {r["dataset"] for r in records} == {"svhn"} and {r["n"] for r in records} == {16}


def test_svhn_is_cropped_only(tmp_path):
    """A picture brighter to the right stays so in every batch."""
    info = data.dataset_info("svhn")
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3))
    images = np.repeat(ramp[None], 64, axis=0)
    order = data.Order(seed=0, train_index=np.arange(64), batch_size=64)
    loader = data.ResidentLoader(
        images, np.zeros(64, np.int64), order, device=torch.device("cpu"), flip=info.flip
    )
    places = set()
    for epoch in (1, 2, 3):
        for batch in loader.epoch(epoch):
            middle = batch.x[:, 0, 16, 4:28]
            assert (middle.diff(dim=1) > 0).all()
            places |= set((255 * batch.x[:, 0, 16, 16]).round().tolist())
    assert len(places) == 9  # every horizontal shift occurs


@pytest.mark.slow
def test_cifar100(fastuiat, tmp_path):
    write_cifar100(tmp_path / "files")
    recipe = ["--recipe", "table1/cifar100/uiat", *QUICK, "--epochs", "2"]
    config, last = trained(fastuiat, tmp_path, *recipe)
    assert config["dataset"] == "cifar100" and config["settings"]["lam"] == 3.5
    assert last["model"]["fc.weight"].shape == (100, 64)
    assert last["method"]["target.universal.bank.z"].shape == (100, 3, 32, 32)
    assert last["method"]["target.memory.probs"].shape == (200, 100)
    (record,) = evaluated(fastuiat, tmp_path, "--attacks", "pgd")
    assert record["dataset"] == "cifar100"


@pytest.mark.slow
def test_large_radius(fastuiat, tmp_path):
    write_cifar10(tmp_path / "files")
    recipe = ["--recipe", "table3/eps-16/uiat-oneoff", *QUICK, "--steps", "10", "--epochs", "1"]
    config, _ = trained(fastuiat, tmp_path, *recipe)
    assert config["settings"]["attack"]["eps"] == pytest.approx(16 / 255)
    assert config["settings"]["inverse_eps"] == pytest.approx(4 / 255)
    (record,) = evaluated(fastuiat, tmp_path, "--attacks", "pgd", "--eps", "16/255")
    assert record["eps"] == "16/255"


def test_generated_images_and_silu(fastuiat, tmp_path):
    """Table 4: the pool by its published name, a SiLU net, averaged weights, memory over all."""
    write_cifar10(tmp_path / "files")
    labels = np.arange(300) % 10
    np.savez(tmp_path / "files" / "cifar10_ddpm.npz", image=pixels(300), label=labels)
    recipe = ["--recipe", "table4/cifar10/prn-18/uiat-oneoff", *QUICK[2:]]
    recipe += ["--batch-size", "10", "--steps", "1", "--max-steps", "2", "--oneoff-epoch", "1"]
    config, last = trained(fastuiat, tmp_path, *recipe)
    assert config["activation"] == "silu" and config["extra_share"] == 0.7
    seen = last["method"]["target.memory.seen"]
    assert seen.shape == (400,) and seen[:100].sum() == 6 and seen[100:].sum() == 14
    assert last["averaged"].keys() == last["model"].keys()
    model, info = package.load_checkpoint(tmp_path / "run")
    assert (info["arch"], info["activation"], info["weights"]) == ("prn-18", "silu", "averaged")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("arch", ["prn-18", "wrn-28-10"])
def test_silu_nets_compute_silu(arch):
    """A SiLU net with ReLU's weights gives other logits, and negative activations pass through."""
    net = package.build_model(arch.replace("28-10", "10-1"), activation="silu")
    twin = package.build_model(arch.replace("28-10", "10-1"), activation="relu")
    twin.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(net.eval().features(x), twin.eval().features(x))
    assert net.features(x).min() < 0 <= twin.features(x).min()


def test_wrn_34_10_takes_a_step(tmp_path):
    """46.2 M parameters; one UIAT step on CIFAR-10's own files moves all of them."""
    write_cifar10(tmp_path, per_file=2)
    images = data.load("cifar10", tmp_path, "train", unchecked=True)
    order = data.Order(seed=0, train_index=np.arange(10), batch_size=2)
    loader = data.ResidentLoader(
        images.images, images.labels, order, device=torch.device("cpu"), flip=True
    )
    net = package.build_model("wrn-34-10").train()
    assert sum(p.numel() for p in net.parameters()) == 46_160_474
    method = methods.create("uiat", num_classes=10, num_samples=10, attack={"steps": 1})
    out = method.loss(net, next(loader.epoch(1)))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
