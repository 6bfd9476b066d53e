"""AutoAttack: the package's own verdicts, on full batches, from wherever a killed run stopped."""

from __future__ import annotations

import base64
import json
import re
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastuiat.config import UserError
from fastuiat.evaluation import attacked_net, autoattack, run_autoattack
from fastuiat.evaluation.package import package
from fastuiat.evaluation.state import set_stream, stream_text

K, N, EPS = 4, 12, 0.01
CPU = torch.device("cpu")


def small_net(classes: int = K) -> nn.Module:
    """Enough of a net for every attack to have some work to do."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, classes, bias=False)
    )
    return net.eval()


def points(net: nn.Module, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Images under labels that the net mostly gives them; two are wrong from the start."""
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = net(x)
    y = logits.argmax(dim=1)
    y[:2] = (y[:2] + 1) % logits.shape[1]
    return x, y


def few_steps(adversary: Any) -> None:
    """The same attacks with a tenth of their iterations."""
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.n_iter = 10
    adversary.apgd.eot_iter = min(adversary.apgd.eot_iter, 2)
    adversary.square.n_queries = 100


def single_steps(adversary: Any) -> None:
    few_steps(adversary)
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 1
    adversary.square.n_queries = 1


class Accuracies:
    """A logger for the plain package: its accuracies as it prints them."""

    def __init__(self) -> None:
        self.accuracy: dict[str, str] = {}

    def debug(self, message: str) -> None:
        match = re.match(r"robust accuracy after (\S+): (\S+)", message)
        if match:
            self.accuracy[match[1].lower()] = match[2]

    warning = info = debug


@pytest.mark.parametrize(
    ("version", "batch_size"), [("standard", N), ("standard", 5), ("plus", N), ("rand", N)]
)
def test_agrees_with_the_plain_package(tmp_path, version, batch_size):
    net = small_net()
    x, y = points(net)
    said: list[str] = []
    ours = run_autoattack(
        net, x, y, eps=EPS, version=version, seed=3, batch_size=batch_size, device=CPU,
        state_path=tmp_path / "state", adjust=few_steps, say=said.append,
    )  # fmt: skip
    plain = package()[0](net, norm="Linf", eps=EPS, version=version, seed=3, device="cpu")
    few_steps(plain)
    plain.logger = printed = Accuracies()
    plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = K - 1
    x_adv, _ = plain.run_standard_evaluation(x, y, batch_size=batch_size)
    with torch.no_grad():
        expected = net(x_adv).argmax(dim=1) == y
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert torch.equal(ours.robust, expected)
    assert not ours.robust[:2].any() and 0 < ours.robust.sum() < N  # some of each
    after = dict(list(ours.accuracy.items())[1:])
    assert {attack: f"{share:.2%}" for attack, share in after.items()} == printed.accuracy
    assert list(after) == list(plain.attacks_to_run)
    assert [s for s in said if s.startswith("autoattack")] and not ours.compiled
    # A row per target class and restart, each beginning with what the one before it left.
    count = {"apgd-ce": 5 if version == "plus" else 1, "apgd-dlr": 5 if version == "plus" else 1}
    count |= {"apgd-t": K - 1, "fab-t": K - 1, "fab": 5, "square": 1}
    assert [p["attack"] for p in ours.parts] == [a for a in after for _ in range(count[a])]
    standing = N - 2
    for part in ours.parts:
        assert part["points"] == standing
        standing -= part["fallen"]
    assert standing == ours.robust.sum()


def test_batches_are_filled_from_the_points_that_stand(tmp_path, monkeypatch):
    net = small_net()
    x, y = points(net)
    sizes: dict[Any, list[int]] = {}
    attack = autoattack.perturb

    def watched(adversary, run, x, y):
        sizes.setdefault(run, []).append(len(x))
        return attack(adversary, run, x, y)

    monkeypatch.setattr(autoattack, "perturb", watched)
    result = run_autoattack(net, x, y, eps=2 * EPS, batch_size=3, device=CPU,
                            state_path=tmp_path / "state", adjust=few_steps)  # fmt: skip
    batches = list(sizes.values())
    for part, of_run in zip(result.parts, batches, strict=False):
        whole, rest = divmod(part["points"], 3)
        assert of_run == [3] * whole + [rest] * (rest > 0)
    targets = [p["points"] for p in result.parts if p["attack"] == "apgd-t"]
    assert len(set(targets)) > 1  # points left between two target classes


def test_state_of_something_else_is_refused(tmp_path):
    net = small_net()
    x, y = points(net)
    state = tmp_path / "state"

    def run(**changes):
        settings = {"eps": EPS, "adjust": single_steps} | changes
        return run_autoattack(net, x[:4], y[:4], state_path=state, device=CPU, **settings)

    run()
    for other in ({"eps": EPS / 2}, {"version": "rand"}, {"adjust": few_steps}, {"seed": 1}):
        with pytest.raises(UserError, match="another checkpoint or other settings"):
            run(**other)
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(UserError, match="another checkpoint or other settings"):
        run()
    state.write_text(state.read_text()[:-5])
    with pytest.raises(UserError, match="damaged"):
        run()


class Softmax(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


class Noisy(nn.Sequential):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


class Purifying(nn.Sequential):
    """Takes a step of its own before it answers."""

    def forward(self, x):
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(super().forward(moved).square().sum(), moved)
        return super().forward(x - 1e-3 * grad.sign())


class Flat(nn.Sequential):
    """Right, but without a slope."""

    def forward(self, x):
        return 3 * super().forward(x).sign() + super().forward(x).detach()


@pytest.mark.parametrize(
    ("kind", "version", "warning"),
    [
        (Softmax, "standard", "probabilities"),
        (Noisy, "standard", "--version rand"),
        (Noisy, "rand", None),
        (Purifying, "standard", "differentiates"),
        (Flat, "standard", "zero gradients"),
        (nn.Sequential, "standard", None),
    ],
)
def test_warns_as_the_package_does(tmp_path, kind, version, warning):
    net = kind(*small_net(11)).eval()
    x, y = points(small_net(11))
    said: list[str] = []
    result = run_autoattack(net, x, y, eps=EPS, version=version, say=said.append, device=CPU,
                            state_path=tmp_path / "state", adjust=single_steps)  # fmt: skip
    found = [w for w in result.warnings if not w.startswith("square took")]
    assert [bool(re.search(warning or "", w)) for w in found] == [True] * bool(warning), found
    assert [s for s in said if s.startswith("warning")] == [
        f"warning: {w}" for w in result.warnings
    ]


@pytest.mark.parametrize(
    ("classes", "version", "left_out", "run"),
    [
        (3, "standard", ["apgd-t"], ["apgd-ce", "fab-t", "square"]),
        (2, "plus", ["apgd-dlr", "apgd-t"], ["apgd-ce", "fab", "square", "fab-t"]),
    ],
)
def test_few_classes(tmp_path, classes, version, left_out, run):
    net = small_net(classes)
    x, y = points(net)
    result = run_autoattack(net, x, y, eps=EPS, version=version, device=CPU,
                            state_path=tmp_path / "state", adjust=single_steps)  # fmt: skip
    assert result.left_out == left_out and list(result.accuracy) == ["clean", *run]
    assert result.target_classes == classes - 1
    assert any(" and ".join(left_out) in w and "left out" in w for w in result.warnings)


def test_nets_that_cannot_be_attacked_are_refused(tmp_path):
    for net, words in ((small_net(1), "nothing to confuse"), (small_net(), "non-finite logits")):
        x, y = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64)
        if "finite" in words:
            with torch.no_grad():
                net[3].weight.fill_(float("nan"))
        with pytest.raises(UserError, match=words):
            run_autoattack(net, x, y, eps=EPS, state_path=tmp_path / "state", device=CPU)
    with pytest.raises(UserError, match="choose from standard, plus, rand"):
        run_autoattack(net, x, y, eps=EPS, version="x", state_path=tmp_path / "s", device=CPU)


@pytest.mark.slow
def test_the_compiled_net_gives_the_same_verdicts(tmp_path, monkeypatch):
    net = small_net()
    x, y = points(net, 24)

    def run(name, **settings):
        return run_autoattack(net, x, y, eps=EPS, version="plus", state_path=tmp_path / name,
                              adjust=few_steps, device=CPU, **settings)  # fmt: skip

    plain, compiled = run("plain"), run("compiled", compile=True)
    assert compiled.compiled and not plain.compiled
    assert (compiled.robust != plain.robust).sum() <= 1  # one may lie at the border
    monkeypatch.setattr(attacked_net, "compile_alone", lambda *_, **__: lambda x: 1 / 0)
    failed = run("failed", compile=True)
    assert torch.equal(failed.robust, plain.robust) and not failed.compiled
    assert any("not compiled: division by zero" in w for w in failed.warnings)


def outcome(folder: Path, progress: Any = None) -> list[Any]:
    """The evaluation of small_net in `folder`, without its times."""
    net = small_net()
    result = run_autoattack(net, *points(net), eps=EPS, version="plus", batch_size=3, device=CPU,
                            state_path=folder / "state", adjust=few_steps,
                            progress=progress)  # fmt: skip
    parts = [{k: v for k, v in part.items() if k != "seconds"} for part in result.parts]
    return [result.robust.tolist(), result.accuracy, result.points, parts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return outcome(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_goes_on_from_every_batch(tmp_path, whole):
    """Stopped after each batch in turn, the random numbers of all places kept."""

    class Stopped(Exception):
        pass

    def stop(name, done, total):
        raise Stopped

    stops = 0
    while True:
        try:
            result = outcome(tmp_path, stop)
            break
        except Stopped:
            stops += 1
    assert stops > 30
    assert result == whole


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(start, tmp_path, whole):
    positions = []
    for _ in range(2):
        process = start(tmp_path, module=__file__)
        written: set[str] = set()
        while len(written) < 3 and process.poll() is None:  # two batches further
            if (tmp_path / "state").exists():
                written.add((tmp_path / "state").read_text())
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = json.loads((tmp_path / "state").read_text())
        begun = state["queue"] is not None
        positions.append((state["run"], -len(state["queue"]) if begun else -N - 1))
    assert positions == sorted(set(positions))  # each went further than the one before
    assert outcome(tmp_path) == whole


class Stopped(Exception):
    pass


def stop_behind_the_first_batch(name, done, total):
    raise Stopped


def test_a_changed_state_is_not_believed(tmp_path):
    with pytest.raises(Stopped):
        outcome(tmp_path, stop_behind_the_first_batch)
    path = tmp_path / "state"
    whole = path.read_bytes()
    told = json.loads(whole)
    del told["checksum"]
    changes = [
        {"run": 99}, {"run": -1}, {"run": "x"}, {"run": told["run"] + 1}, {"queue": [10**6]},
        {"robust": told["robust"][3:]}, {"clean": [1] * N}, {"seconds": {}}, {"robust": 5},
    ]  # fmt: skip
    for changed in changes:  # each with the checksum of before
        path.write_text(json.dumps(json.loads(whole) | changed))
        with pytest.raises(UserError, match="is damaged: delete it to start again"):
            outcome(tmp_path)
    impossible = [c for c in changes if c not in ({"run": told["run"] + 1}, {"seconds": {}})]
    for changed in impossible:  # and without one, as older files are
        path.write_text(json.dumps(told | changed))
        with pytest.raises(UserError, match="is damaged: delete it to start again"):
            outcome(tmp_path)
    for at in range(0, len(whole), len(whole) // 60):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"is damaged|belongs to another"):
            outcome(tmp_path)
    path.write_text(json.dumps(told))
    with pytest.raises(Stopped):
        outcome(tmp_path, stop_behind_the_first_batch)


def test_random_numbers_that_are_none_are_refused():
    bomb = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    for text in ("", "AAAA", "é", bomb, base64.b64encode(zlib.compress(b"short")).decode()):
        with pytest.raises(UserError, match="delete it to start again"):
            set_stream(text, torch.device("cpu"))
    before = torch.get_rng_state()
    set_stream(stream_text(torch.device("cpu")), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


if __name__ == "__main__":
    outcome(Path(sys.argv[1]))
