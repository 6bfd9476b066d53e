"""Pre-activation blocks as one operator against autograd, layer by layer."""

from __future__ import annotations

import functools

import pytest
import torch

from fastuiat_kernels import pack_conv3x3, pack_strided, preactivation_blocks

CASES = [[1], [1, 1], [2], [1, 2], [2, 1], [2, 2]]


class Blocks:
    """Random layers in fp64, scales of either sign; `plain` is what autograd differentiates."""

    def __init__(self, strides, channels=4, shape=(3, 8, 4)):
        random = torch.Generator().manual_seed(10 * len(strides) + sum(strides))
        normal = functools.partial(torch.randn, dtype=torch.float64, generator=random)
        batch, height, width = shape
        self.x = normal(batch, height, width, channels).permute(0, 3, 1, 2).requires_grad_()
        self.strides, self.layers, self.shifts = strides, [], []
        self.activations = [(normal(channels), normal(channels) / 3)]
        for stride in strides:
            filters, scale = stride * channels, self.activations[-1][0]
            self.layers.append((normal(filters, channels, 3, 3) / 5, stride, scale))
            if stride == 2:
                self.layers.append((normal(filters, channels, 1, 1) / 2, stride, scale))
            self.layers.append((normal(filters, filters, 3, 3) / 5, 1, torch.ones(filters)))
            self.shifts += [normal(filters) / 3 for _ in range(stride)]
            self.activations.append((normal(filters), normal(filters) / 3))
            channels, height, width = filters, height // stride, width // stride
        self.grad = normal(batch, height, width, channels).permute(0, 3, 1, 2)
        self.forward, self.backward = [], []
        for weight, stride, scale in self.layers:
            strided = weight.shape[2] == 1 or stride == 2
            pack = pack_strided if strided else pack_conv3x3
            self.forward.append(pack(weight))
            scaled = weight * scale[:, None, None].to(weight)
            self.backward.append(pack(scaled, backward=True))

    def active(self, x, place):
        scale, shift = self.activations[place]
        return (scale[:, None, None] * x + shift[:, None, None]).relu()

    def plain(self):
        x, layers, shifts = self.x, iter(self.layers), iter(self.shifts)

        def layer(x, shift=None):
            weight, stride, _ = next(layers)
            padding = weight.shape[2] // 2
            return torch.nn.functional.conv2d(x, weight, shift, stride=stride, padding=padding)

        for place, stride in enumerate(self.strides):
            active = self.active(x, place)
            inner = layer(active, next(shifts)).relu()
            shortcut = x if stride == 1 else layer(active, next(shifts))
            x = layer(inner) + shortcut
        return self.active(x, len(self.strides))

    def arguments(self, x):
        scales, shifts = zip(*self.activations[1:], strict=True)
        lists = (self.strides, self.forward, self.backward, self.shifts, scales, shifts)
        return x, self.active(x.detach(), 0), *map(list, lists)

    def agree(self, function):
        """Values and gradient of function are those of the layers one by one."""
        expected, out = self.plain(), function(*self.arguments(self.x))
        torch.testing.assert_close(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
        (wanted,) = torch.autograd.grad(expected, self.x, self.grad)
        (actual,) = torch.autograd.grad(out, self.x, self.grad)
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("strides", CASES, ids=str)
def test_values_and_gradients_are_autograds(strides):
    Blocks(strides).agree(preactivation_blocks)


def test_compiled():
    Blocks([1, 2]).agree(torch.compile(preactivation_blocks, fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize("strides", [[1], [2, 1]], ids=str)
def test_opcheck(strides):
    blocks = Blocks(strides)
    operator = torch.ops.fastuiat.preactivation_blocks.default
    arguments = blocks.arguments(blocks.x)
    torch.library.opcheck(operator, arguments)
    made = [t.detach() for t in operator(*arguments)]
    backward = torch.ops.fastuiat.preactivation_blocks_backward.default
    torch.library.opcheck(backward, (blocks.grad, strides, arguments[1], made, blocks.backward))


def test_nothing_but_the_images_is_differentiated():
    blocks = Blocks([2, 1])
    x, active, *lists = blocks.arguments(blocks.x)
    frozen = [tensor for several in lists[1:] for tensor in several]
    for tensor in (active, *frozen):
        tensor.requires_grad_()
    preactivation_blocks(x, active, *lists).sum().backward()
    assert x.grad is not None and all(tensor.grad is None for tensor in (active, *frozen))


TWO = Blocks([1, 2])


def parts(**changed):
    names = ("x", "active", "strides", "weights", "backward_weights", "shifts", "scales")
    given = dict(zip((*names, "next_shifts"), TWO.arguments(TWO.x), strict=True))
    return preactivation_blocks(**given | changed)


BAD = {
    "strides must be of 1 and 2, at least one, got []": {"strides": []},
    "strides [1, 2] have 5 layers, got 4 weights": {"weights": TWO.forward[:4]},
    "have 3 shifts and 2 scales, got 2, 2 and 2 next": {"shifts": TWO.shifts[:2]},
    "have 3 shifts and 2 scales, got 3, 1 and 2 next": {"scales": TWO.shifts[:1]},
    "active must be (3, 4, 8, 4), got (3, 4, 8)": {"active": TWO.x[..., 0]},
    "active must be channels-last": {"active": TWO.x.detach().contiguous()},
    "packed must be": {"weights": TWO.forward[::-1]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_a_value_error(message):
    with pytest.raises(ValueError) as error:
        parts(**BAD[message])
    assert message in str(error.value)
