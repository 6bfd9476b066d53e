"""Residual blocks as one operator against autograd, layer by layer."""

from __future__ import annotations

import functools

import pytest
import torch

from fastuiat_kernels import conv3x3_backward, pack_conv3x3, pack_strided, residual_blocks
from fastuiat_kernels.residual_blocks import LAYERS

CASES = [[1], [1, 1], [2], [1, 2], [2, 1], [2, 2]]


class Blocks:
    """Random layers in fp64; `plain` is what autograd differentiates."""

    def __init__(self, strides, channels=4, shape=(3, 8, 4)):
        random = torch.Generator().manual_seed(10 * len(strides) + sum(strides))
        normal = functools.partial(torch.randn, dtype=torch.float64, generator=random)
        batch, height, width = shape
        x = normal(batch, height, width, channels).permute(0, 3, 1, 2)
        self.strides, self.x = strides, x.requires_grad_()
        self.weights = []
        for stride in strides:
            filters = stride * channels
            self.weights.append(normal(filters, channels, 3, 3) / 5)
            if stride == 2:
                self.weights.append(normal(filters, channels, 1, 1) / 2)
            self.weights.append(normal(filters, filters, 3, 3) / 5)
            channels, height, width = filters, height // stride, width // stride
        self.shifts = [normal(len(weight)) / 3 for weight in self.weights]
        self.grad = normal(batch, height, width, channels).permute(0, 3, 1, 2)
        self.packed, self.backward = (
            [self.pack(k, backward) for k in range(len(self.weights))] for backward in (False, True)
        )

    def pack(self, k, backward):
        """The first two of three are those that stride."""
        place = 0
        for stride in self.strides:
            if k < place + LAYERS[stride]:
                pack = pack_strided if stride == 2 and k < place + 2 else pack_conv3x3
                return pack(self.weights[k], backward=backward)
            place += LAYERS[stride]
        raise AssertionError

    def plain(self):
        x, layers = self.x, iter(zip(self.weights, self.shifts, strict=True))

        def layer(x, stride=1):
            weight, shift = next(layers)
            padding = weight.shape[2] // 2
            return torch.nn.functional.conv2d(x, weight, shift, stride=stride, padding=padding)

        for stride in self.strides:
            inner = layer(x, stride).relu()
            shortcut = x if stride == 1 else layer(x, stride)
            x = (layer(inner) + shortcut).relu()
        return x

    def ours(self, x):
        return residual_blocks(x, self.strides, self.packed, self.backward, self.shifts)

    def agree(self, function, factor=1):
        """Values and gradient of function are factor times those of the layers one by one."""
        expected, out = factor * self.plain(), function(self.x)
        torch.testing.assert_close(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
        (wanted,) = torch.autograd.grad(expected, self.x, self.grad)
        (actual,) = torch.autograd.grad(out, self.x, self.grad)
        torch.testing.assert_close(actual, wanted)
        assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("strides", CASES, ids=str)
def test_values_and_gradients_are_autograds(strides):
    blocks = Blocks(strides)
    blocks.agree(blocks.ours)


@pytest.mark.parametrize("strides", [[1], [1, 2], [2, 1]], ids=str)
def test_compiled(strides):
    blocks = Blocks(strides)
    compiled = torch.compile(lambda x: 2 * blocks.ours(x), fullgraph=True, backend="aot_eager")
    blocks.agree(compiled, factor=2)


@pytest.mark.parametrize("strides", [[1], [2, 1]], ids=str)
def test_opcheck(strides):
    blocks = Blocks(strides)
    operator = torch.ops.fastuiat.residual_blocks.default
    arguments = (blocks.x, strides, blocks.packed, blocks.backward, blocks.shifts, True)
    torch.library.opcheck(operator, arguments)
    made = [t.detach() for t in operator(*arguments)]
    backward = torch.ops.fastuiat.residual_blocks_backward.default
    torch.library.opcheck(
        backward, (blocks.grad, strides, made, blocks.backward, blocks.x.detach())
    )


def test_where_the_mask_belongs():
    """The first block's output, the second one's input, masks the sum of both gradients that come
    to it. To mask the convolution's alone leaves what the shortcut brings."""
    blocks = Blocks([1, 1])
    (wanted,) = torch.autograd.grad(blocks.plain(), [blocks.x], blocks.grad)
    made = torch.ops.fastuiat.residual_blocks(
        blocks.x, [1, 1], blocks.packed, blocks.backward, blocks.shifts, False
    )

    def gradient(masked):
        grad = torch.where(made[3] > 0, blocks.grad, 0.0)
        for k in (2, 0):
            inner = conv3x3_backward(grad, blocks.backward[k + 1], mask=made[k])
            mask = made[k - 1] if k else None
            grad = conv3x3_backward(
                inner, blocks.backward[k], mask=mask, residual=grad, masked=masked
            )
        return grad

    torch.testing.assert_close(gradient("both"), wanted)
    wrong = (gradient("product") - wanted).norm() / wanted.norm()
    assert wrong > 0.1


@pytest.mark.parametrize("strides", [[1], [2, 1]], ids=str)
def test_behind_a_relu_the_gradient_is_that_of_what_went_into_it(strides):
    blocks = Blocks(strides)
    before = blocks.x.detach().requires_grad_()
    blocks.x = before.relu()
    (wanted,) = torch.autograd.grad(blocks.plain(), before, blocks.grad, retain_graph=True)
    lists = blocks.strides, blocks.packed, blocks.backward, blocks.shifts
    out = residual_blocks(blocks.x, *lists, activated=True)
    (actual,) = torch.autograd.grad(out, blocks.x, blocks.grad)
    assert 0.3 < (wanted == 0).double().mean() < 0.7
    torch.testing.assert_close(actual, wanted)


def test_nothing_but_the_images_is_differentiated():
    blocks = Blocks([2, 1])
    frozen = (*blocks.packed, *blocks.backward, *blocks.shifts)
    for tensor in frozen:
        tensor.requires_grad_()
    blocks.ours(blocks.x).sum().backward()
    assert blocks.x.grad is not None and all(tensor.grad is None for tensor in frozen)


def test_it_is_differentiated_once():
    blocks = Blocks([1])
    out = blocks.ours(blocks.x).square().sum()
    (grad,) = torch.autograd.grad(out, blocks.x, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.grad(grad.square().sum(), blocks.x)


ONE, TWO = Blocks([1]), Blocks([1, 2])


def parts(x=TWO.x, strides=(1, 2), packed=TWO.packed, backward=TWO.backward, shifts=TWO.shifts):
    return residual_blocks(x, strides, packed, backward, shifts)


BAD = {
    "strides must be of 1 and 2, at least one, got []": lambda: parts(strides=[]),
    "strides must be of 1 and 2, at least one, got [3]": lambda: parts(strides=[3]),
    "strides [1, 2] have 5 layers, got 4 weights and 5 backward weights": lambda: parts(
        packed=TWO.packed[:4]
    ),
    "strides [1] have 2 layers, got 5 weights": lambda: parts(strides=[1]),
    "got 5 weights and 2 backward weights": lambda: parts(backward=ONE.backward),
    "5 layers have as many shifts, got 1": lambda: parts(shifts=TWO.shifts[:1]),
    "x must be (B, C, H, W)": lambda: parts(TWO.x[0]),
    "x must be channels-last": lambda: parts(TWO.x.contiguous()),
    "with sides that 2 divides, got (3, 4, 7, 4)": lambda: parts(Blocks([1], shape=(3, 7, 4)).x),
    "packed must be": lambda: parts(packed=TWO.packed[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_a_value_error(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
