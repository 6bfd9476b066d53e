"""A batch in parts against the same written out, and ranks against parts."""

from __future__ import annotations

import copy
import socket
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastuiat
from fastuiat import methods
from fastuiat.config import OptimizerConfig, UserError
from fastuiat.data import Batch
from fastuiat.distributed import Ranks, ranks_of_this_process
from fastuiat.targets import universal_gradient

K, N, B, PARTS = 5, 24, 12, 3
SGD = OptimizerConfig(max_lr=0.1, weight_decay=5e-4)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return fastuiat.build_model("wrn-10-1", num_classes=K)


def make_method(name: str, **settings) -> methods.Method:
    if "attack" not in settings and name in ("sat", "uiat", "uiat-oneoff", "trades"):
        settings["attack"] = {"steps": 2}
    return fastuiat.create_method(name, num_classes=K, num_samples=N, epochs=4, **settings)


def make_batch(epoch: int, step: int = 0) -> Batch:
    g = torch.Generator().manual_seed(10 * epoch + step)
    x = torch.rand(B, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)
    y = torch.tensor([0, 0, 1, 3, 3, 3, 1, 0, 4, 4, 0, 1])  # class 2 is absent, 4 in one part alone
    index = (torch.arange(B) + 3 * epoch + step) % N
    return Batch(x, y, index, epoch, step)


def part_of(batch: Batch, i: int) -> Batch:
    x = batch.x[i::PARTS].contiguous(memory_format=torch.channels_last)
    return Batch(x, batch.y[i::PARTS], batch.index[i::PARTS], batch.epoch, batch.step)


def stepper(net, method, **more) -> fastuiat.TrainingStep:
    return fastuiat.TrainingStep(
        net, method, total_steps=8, optimizer=SGD, precision="fp32", compile=False, **more
    )


@pytest.mark.parametrize("reading", ["eval", "train", "attached"])
def test_against_the_parts_written_out(reading):
    net, method = make_net(), make_method("uiat", momentum_epoch=2, inverse_forward=reading)
    step = stepper(net, method, accumulate=PARTS)
    for epoch in (1, 2, 3):
        batch, z = make_batch(epoch), method.target.universal.bank.z.clone()
        made, totals = [], torch.zeros_like(z)
        for i in range(PARTS):
            part, twin, own = part_of(batch, i), copy.deepcopy(net).train(), copy.deepcopy(method)
            for module in own.modules():
                module.together = False  # a loop of one's own: it moves at once
            attacked = copy.deepcopy(twin).eval()
            x_adv = fastuiat.pgd(
                attacked, part.x, part.y, noise=part.noise("attack"),
                **method.config.attack.kwargs(),
            )  # fmt: skip
            x_inv = (part.x + z[part.y]).clamp(0, 1).to(memory_format=torch.channels_last)
            with torch.no_grad():
                view = step.view.shadow
                with view.mode("eval"):
                    grad, _ = universal_gradient(
                        view, part.x, x_adv, x_inv.requires_grad_(), part.y, 1.0
                    )
            for g, c in zip(grad, part.y.tolist(), strict=True):
                totals[c] += g
            loss = own.loss(twin, part).loss
            loss.backward()
            made.append((loss.item(), twin, own))
        grads = [
            sum(p.grad for p in ps) / PARTS
            for ps in zip(*(twin.parameters() for _, twin, _ in made), strict=True)
        ]
        out = step(batch)
        assert out.loss.item() == pytest.approx(sum(m[0] for m in made) / PARTS, rel=1e-5)
        for parameter, grad in zip(net.parameters(), grads, strict=True):
            assert (parameter.grad - grad).norm() <= 1e-4 * grad.norm() + 1e-7
        for name, buffer in net.named_buffers():
            parts = [dict(twin.named_buffers())[name].float() for _, twin, _ in made]
            assert torch.allclose(buffer.float(), sum(parts) / PARTS, atol=1e-6), name
        present = torch.zeros(K, dtype=torch.bool).index_fill_(0, batch.y, True)
        moved = torch.where(
            present[:, None, None, None], (z - 4 / 255 * totals.sign()).clamp(-4 / 255, 4 / 255), z
        )
        bank = method.target.universal.bank
        assert (bank.z == moved).float().mean() > 0.999  # an order of sums may turn a sign near 0
        assert torch.equal(bank.z[2], z[2])
        flipped = (moved.sign() != z.sign())[present].float().mean().item()
        assert out.metrics["z_flipped"].item() == pytest.approx(flipped, abs=1e-3)
        memory = method.target.memory
        if epoch >= 1:
            for i, (_, _, own) in enumerate(made):
                index = part_of(batch, i).index
                assert torch.equal(memory.seen[index], own.target.memory.seen[index])
                assert torch.allclose(
                    memory.probs[index], own.target.memory.probs[index], atol=1e-5
                )


def test_one_part_is_no_part():
    """`accumulate=1` takes the path that it always took, to the bit."""
    first, second = make_net(), make_net()
    steps = [
        stepper(first, make_method("uiat")),
        stepper(second, make_method("uiat"), accumulate=1),
    ]
    for epoch in (1, 2):
        for step in steps:
            step(make_batch(epoch))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_one_off_memory_is_asked_for_the_whole_batch():
    """A part with samples that epoch T' did not visit makes all parts predict them."""
    method = make_method("uiat-oneoff", oneoff_epoch=1)
    step = stepper(make_net(), method, accumulate=PARTS)
    step(make_batch(1))
    visited = make_batch(1).index
    memory = method.target.memory
    before = memory.probs.clone()
    step(make_batch(2))
    seen = torch.cat([visited, make_batch(2).index]).unique()
    assert memory.seen.nonzero().flatten().tolist() == seen.tolist()
    assert torch.equal(memory.probs[visited], before[visited])
    fresh = [i for i in make_batch(2).index.tolist() if i not in visited.tolist()]
    assert fresh and torch.allclose(memory.probs[fresh].sum(dim=1), torch.ones(len(fresh)))


def test_parts_that_do_not_divide_the_batch():
    step = stepper(make_net(), make_method("sat"), accumulate=5)
    with pytest.raises(UserError, match="a batch of 12 images does not divide into 5 parts"):
        step(make_batch(1))
    with pytest.raises(UserError, match="accumulate must be positive, got 0"):
        stepper(make_net(), make_method("sat"), accumulate=0)


METHODS = ["uiat", "uiat-oneoff", "trades", "n-fgsm+uiat"]


def trained(name: str, ranks: Ranks, accumulate: int) -> dict[str, torch.Tensor]:
    """The state after four steps, of which this rank sees its rows; and what they said."""
    net, method = make_net(), make_method(name)
    step = stepper(net, method, ranks=ranks, accumulate=accumulate, weight_averaging=0.9)
    said = []
    for epoch in (1, 2, 3, 4):
        whole = make_batch(epoch)
        rows = slice(ranks.rank, None, ranks.world)
        x = whole.x[rows].contiguous(memory_format=torch.channels_last)
        batch = Batch(
            x,
            whole.y[rows],
            whole.index[rows],
            epoch,
            0,
            host_whole=whole.index,
        )
        out = step(batch)
        said.append(torch.stack([out.loss, *(out.metrics[k].float() for k in sorted(out.metrics))]))
    state = step.state_dict()
    return {
        **{f"model.{k}": v for k, v in state["model"].items()},
        **{f"averaged.{k}": v for k, v in state["averaged"].items()},
        **{f"method.{k}": v for k, v in state["method"].items()},
        "said": torch.stack(said),
    }


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_are_two_parts(name, start, tmp_path):
    port = free_port()
    ranks = [start(name, rank, port, tmp_path, module=__file__) for rank in range(2)]
    assert [process.wait(120) for process in ranks] == [0, 0], ranks[0].stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = trained(name, Ranks(), 2)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key  # the same bits on every rank
        mine, theirs = value.double(), alone[key].double()
        close = (mine - theirs).abs() <= 1e-4 + 1e-3 * theirs.abs()
        assert close.double().mean() > 0.99, key  # signs near 0 may turn


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    name, rank, port, folder = sys.argv[1:]
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2
    )
    torch.save(trained(name, ranks_of_this_process(), 1), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
