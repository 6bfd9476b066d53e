"""A stage of residual blocks as one operator against autograd, layer by layer."""

from __future__ import annotations

import functools

import pytest
import torch

from fastuiat_kernels import conv3x3_backward, pack_conv3x3, residual_stage

CASES = [(head, blocks) for head in (False, True) for blocks in (0, 1, 2) if head or blocks]


class Stage:
    """Random layers in fp64; `plain` is what autograd differentiates."""

    def __init__(self, head, blocks, channels=6, shape=(3, 5, 4)):
        random = torch.Generator().manual_seed(2 * blocks + head)
        normal = functools.partial(torch.randn, dtype=torch.float64, generator=random)
        layers = 2 * blocks + head
        self.weights = [normal(channels, channels, 3, 3) / 5 for _ in range(layers)]
        self.shifts = [normal(channels) / 3 for _ in range(layers)]
        batch, height, width = shape
        images = [normal(batch, height, width, channels).permute(0, 3, 1, 2) for _ in range(3)]
        self.x, self.grad = images[0].requires_grad_(), images[2]
        self.residual = images[1].requires_grad_() if head else None
        self.inputs = [self.x] if self.residual is None else [self.x, self.residual]
        self.packed = [pack_conv3x3(weight) for weight in self.weights]
        self.backward = [pack_conv3x3(weight, backward=True) for weight in self.weights]

    def layer(self, x, k):
        shift = self.shifts[k][:, None, None]
        return torch.nn.functional.conv2d(x, self.weights[k], padding=1) + shift

    def plain(self):
        x = self.x
        if self.residual is not None:
            x = (self.layer(x, 0) + self.residual).relu()
        for k in range(len(self.weights) % 2, len(self.weights), 2):
            x = (self.layer(self.layer(x, k).relu(), k + 1) + x).relu()
        return x

    def ours(self, x, residual=None):
        return residual_stage(x, self.packed, self.backward, self.shifts, residual=residual)


@pytest.mark.parametrize(("head", "blocks"), CASES)
def test_values_and_gradients_are_autograds(head, blocks):
    stage = Stage(head, blocks)
    expected, out = stage.plain(), stage.ours(*stage.inputs)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.autograd.grad(expected, stage.inputs, stage.grad)
    for actual, one in zip(torch.autograd.grad(out, stage.inputs, stage.grad), wanted, strict=True):
        torch.testing.assert_close(actual, one)


def test_compiled():
    stage = Stage(head=True, blocks=1)
    compiled = torch.compile(
        lambda *inputs: 2 * stage.ours(*inputs), fullgraph=True, backend="aot_eager"
    )
    expected = 2 * stage.plain()
    out = compiled(*stage.inputs)
    torch.testing.assert_close(out, expected)
    wanted = torch.autograd.grad(expected, stage.inputs, stage.grad)
    for actual, one in zip(torch.autograd.grad(out, stage.inputs, stage.grad), wanted, strict=True):
        torch.testing.assert_close(actual, one)


@pytest.mark.parametrize(("head", "blocks"), [(False, 1), (True, 1)])
def test_opcheck(head, blocks):
    stage = Stage(head, blocks)
    operator = torch.ops.fastuiat.residual_stage.default
    torch.library.opcheck(
        operator, (stage.x, stage.residual, stage.packed, stage.backward, stage.shifts)
    )


def test_where_the_mask_belongs():
    """The first block's output, the second one's input, masks the sum of both gradients that come
    to it. To mask the convolution's alone leaves what the shortcut brings."""
    stage = Stage(False, 2)
    (wanted,) = torch.autograd.grad(stage.plain(), [stage.x], stage.grad)
    made = torch.ops.fastuiat.residual_stage(
        stage.x, None, stage.packed, stage.backward, stage.shifts
    )

    def gradient(masked):
        grad = torch.where(made[3] > 0, stage.grad, 0.0)
        for k in (2, 0):
            inner = conv3x3_backward(grad, stage.backward[k + 1], mask=made[k])
            mask = made[k - 1] if k else None
            grad = conv3x3_backward(
                inner, stage.backward[k], mask=mask, residual=grad, masked=masked
            )
        return grad

    torch.testing.assert_close(gradient("both"), wanted)
    wrong = (gradient("product") - wanted).norm() / wanted.norm()
    assert wrong > 0.1


def test_nothing_but_the_images_is_differentiated():
    stage = Stage(True, 1)
    for tensor in (*stage.packed, *stage.shifts):
        tensor.requires_grad_()
    stage.ours(*stage.inputs).sum().backward()
    assert stage.x.grad is not None and stage.residual.grad is not None
    assert all(t.grad is None for t in (*stage.packed, *stage.shifts))


def test_errors():
    stage = Stage(True, 1)
    for wrong in (
        lambda: residual_stage(stage.x, [], [], []),
        lambda: stage.ours(stage.x),  # three layers and nothing that the first one adds
        lambda: residual_stage(stage.x, stage.packed[:2], stage.backward, stage.shifts[:2]),
    ):
        with pytest.raises(ValueError, match="a block has two of each"):
            wrong()
    with pytest.raises(ValueError, match="x must be channels-last"):
        stage.ours(stage.x.detach().contiguous(), stage.residual)
