"""A killed attack goes on inside its batch: what the net has answered is not asked again."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fastuiat.evaluation import run_autoattack, tape
from fastuiat.evaluation.attacked_net import AttackedNet
from fastuiat.evaluation.tape import Tape

CPU = torch.device("cpu")
QUERIES = 400


class Slow(nn.Module):
    """Answers by a linear layer, counts the questions, and takes its time for each."""

    asked = 0  # of all copies

    def __init__(self, seconds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seconds = nn.Linear(192, 4), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Slow.asked += 1
        time.sleep(self.seconds)
        return self.layer(x.flatten(1))


def square_alone(adversary) -> None:
    adversary.attacks_to_run = ["square"]
    adversary.square.n_queries = QUERIES


def evaluate(state: Path, seconds: float = 0.0) -> tuple[list[bool], int]:
    """(verdicts, questions) of Square on six points at the border."""
    net = Slow(seconds).eval()
    Slow.asked = 0
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = net.layer(x.flatten(1)).argmax(dim=1)
    result = run_autoattack(net, x, y, eps=0.011, state_path=state, adjust=square_alone, device=CPU)
    return result.robust.tolist(), Slow.asked


def test_killed_inside_one_batch(start, tmp_path):
    verdicts, questions = evaluate(tmp_path / "whole")
    assert 0 < sum(verdicts) < 6 and questions > QUERIES
    state, answers = tmp_path / "state", tmp_path / "state.answers"
    sizes = []
    for _ in range(3):
        process = start(state, module=__file__)
        before = answers.stat().st_size if answers.exists() else 0
        while (answers.stat().st_size if answers.exists() else 0) < before + 3000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(answers.stat().st_size)
    assert sizes == sorted(set(sizes))  # each went further than the one before
    again, asked = evaluate(state)
    assert again == verdicts
    assert asked < questions - 3 * 3000 // 400  # an answer takes less than 400 bytes
    assert not answers.exists()


def test_damaged_and_foreign_answers_are_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tape, "WRITE_EVERY", 0.0)
    path = tmp_path / "answers"

    def answers(key: object, said: float) -> list[tuple[float, ...]]:
        written = Tape(path, key, CPU)
        one = [float(written.answer(lambda: torch.tensor([said]))[0]) for _ in range(3)]
        pair = written.answer(lambda: (torch.tensor([said, 1.0]), torch.tensor([2])))
        return [*one, *(float(t[0]) for t in pair)]

    assert answers("a", 1.0) == [1, 1, 1, 1, 2]
    assert answers("a", 5.0) == [1, 1, 1, 1, 2]
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    length = (len(content) - first) // 4  # about: three answers of one tensor, one of two
    for cut in range(first, len(content), 7):
        path.write_bytes(content[:cut])
        found = answers("a", 5.0)
        kept = found.index(5.0) if 5.0 in found else 4
        assert found == [*([1.0] * kept + [5.0] * 4)[:4], 2.0]
        assert kept <= (cut - first) / length + 1
        assert answers("a", 7.0) == found  # written behind what was whole
        flipped = bytearray(content)
        flipped[cut] ^= 1 << (cut % 8)
        path.write_bytes(flipped)
        assert answers("a", 5.0) == found
    assert answers("b", 9.0) == [9, 9, 9, 9, 2]
    assert answers("b", 0.0) == [9, 9, 9, 9, 2]


def test_of_a_quick_net_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tape, "QUICK", 100)
    written = Tape(tmp_path / "answers", "a", CPU)
    for _ in range(5):
        written.answer(lambda: torch.zeros(10))
    monkeypatch.setattr(tape, "WRITE_EVERY", 0.0)
    written.answer(lambda: torch.zeros(10))
    assert os.listdir(tmp_path) == []


def test_gradients_come_from_the_tape_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tape, "WRITE_EVERY", 0.0)
    net = AttackedNet(Slow(0.0))
    x, y = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    plain = net.get_logits_loss_grad_xent(x, y)
    for asked in (1, 0):
        net.tape, Slow.asked = Tape(tmp_path / "answers", "a", CPU), 0
        given = net.get_logits_loss_grad_xent(x, y)
        assert Slow.asked == asked
        assert all(torch.equal(a, b) for a, b in zip(given, plain, strict=True))
    inside = x.clone().requires_grad_()  # whoever takes the gradient has to go through the net
    assert net(inside).requires_grad


@pytest.mark.parametrize("largest", [1, 1000])
def test_a_tape_has_an_end(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(tape, "WRITE_EVERY", 0.0)
    path = tmp_path / "answers"
    free = Tape(path, "a", CPU)
    free.answer(lambda: torch.zeros(10))
    one = path.stat().st_size
    path.unlink()
    monkeypatch.setattr(tape, "LARGEST", largest)
    written = Tape(path, "a", CPU)
    for _ in range(50):
        written.answer(lambda: torch.zeros(10))
    assert one <= path.stat().st_size <= largest + one


if __name__ == "__main__":
    tape.WRITE_EVERY = 0.05
    evaluate(Path(sys.argv[1]), seconds=0.02)
