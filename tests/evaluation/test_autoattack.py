"""AutoAttack: the package's own verdicts, batch by batch, from wherever a killed run stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fastuiat.config import UserError
from fastuiat.evaluation import run_autoattack
from fastuiat.evaluation.autoattack import package

K, N, EPS = 4, 12, 0.01
CPU = torch.device("cpu")


def small_net() -> nn.Module:
    """Enough of a net for every attack to have some work to do."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, K, bias=False)
    )
    return net.eval()


def points(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Images under labels that the net mostly gives them; two are wrong from the start."""
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    y = net(x).argmax(dim=1)
    y[:2] = (y[:2] + 1) % K
    return x, y


@pytest.mark.parametrize("batch_size", [N, 5])
def test_agrees_with_the_plain_package(tmp_path, batch_size):
    net = small_net()
    x, y = points(net)
    ours = run_autoattack(
        net, x, y, eps=EPS, batch_size=batch_size, state_path=tmp_path / "state", device=CPU
    )
    make, _ = package()
    plain = make(net, norm="Linf", eps=EPS, version="standard", seed=0, device="cpu")
    plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = K - 1
    x_adv, _ = plain.run_standard_evaluation(x, y, batch_size=batch_size)
    with torch.no_grad():
        expected = net(x_adv).argmax(dim=1) == y
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert torch.equal(ours.robust, expected)
    assert not ours.robust[:2].any() and 0 < ours.robust.sum() < N  # some of each
    assert list(ours.accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert sorted(ours.accuracy.values(), reverse=True) == list(ours.accuracy.values())
    assert ours.accuracy["square"] == pytest.approx(expected.float().mean().item())


def test_state_of_something_else_is_refused(tmp_path):
    net = small_net()
    x, y = points(net)
    state = tmp_path / "state"
    run_autoattack(net, x[:2], y[:2], eps=EPS, state_path=state, device=CPU)
    with pytest.raises(UserError, match="another checkpoint or other settings"):
        run_autoattack(net, x[:2], y[:2], eps=EPS / 2, state_path=state, device=CPU)
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(UserError, match="another checkpoint or other settings"):
        run_autoattack(net, x[:2], y[:2], eps=EPS, state_path=state, device=CPU)
    state.write_text(state.read_text()[:-5])
    with pytest.raises(UserError, match="damaged"):
        run_autoattack(net, x[:2], y[:2], eps=EPS, state_path=state, device=CPU)


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    net = small_net()
    x, y = points(net)
    with torch.no_grad():
        net[3].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="non-finite logits"):
        run_autoattack(net, x, y, eps=EPS, state_path=tmp_path / "state", device=CPU)


def evaluation(folder: Path) -> subprocess.Popen[bytes]:
    """This file as a program: the evaluation of small_net in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.PIPE)


def test_a_killed_evaluation_goes_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    process = evaluation(whole)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    positions = []
    process = evaluation(broken)
    for _ in range(3):
        written: set[str] = set()
        while len(written) < 3 and process.poll() is None:  # two batches further
            if (broken / "state").exists():
                written.add((broken / "state").read_text())
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = json.loads((broken / "state").read_text())
        begun = state["queue"] is not None
        positions.append((state["attack"], -len(state["queue"]) if begun else -N - 1))
        process = evaluation(broken)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert positions == sorted(set(positions))  # each went further than the one before
    assert (broken / "result").read_text() == (whole / "result").read_text()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    network = small_net()
    result = run_autoattack(
        network, *points(network), eps=3 * EPS, batch_size=3, state_path=place / "state", device=CPU
    )
    (place / "result").write_text(json.dumps([result.robust.tolist(), result.accuracy]))
