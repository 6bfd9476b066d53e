"""`fastuiat bench layers`: a frozen ResNet-18's layers, by cuDNN and by `fastuiat_kernels`.

cudnn: the convolutions alone, in the layer's precision. with-graph: with what stands around them in
the net (BatchNorm, shortcut, ReLU; their masks backward), compiled. fastuiat: all of it by conv3x3
or strided3x3. Of the first layer: the gradient of images, then with an attack's step by it, then
both by conv3x3_sign_step. On a GPU by replays, as the kernels are timed. Elsewhere all three are
PyTorch's convolutions, and nothing is to be learnt of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastuiat.bench import columns
from fastuiat.bench.calls import Function, time_ways
from fastuiat.bench.floors import peak_flops
from fastuiat.bench.record import make_record
from fastuiat.bench.suite import Columns, Done, Measuring, Record, Records, Suite, register
from fastuiat.config import UserError, positive
from fastuiat.convolutions import repeatable
from fastuiat.device import DTYPES, resolve_device
from fastuiat.fast.fused import STEM_CHANNELS
from fastuiat_kernels import (
    conv3x3,
    conv3x3_backward,
    conv3x3_sign_step,
    pack_conv3x3,
    pack_image_gradient,
    pack_strided,
    sign_step,
    strided3x3,
    strided3x3_backward,
)

Direction = Literal["forward", "backward"]
MIN_SAMPLE_S = 5e-3
SHAPES = (
    (64, 32, 1),
    (128, 16, 1),
    (256, 8, 1),
    (512, 4, 1),
    (64, 32, 2),
    (128, 16, 2),
    (256, 8, 2),
)
"""(channels, width, stride) of what is met in ResNet-18; striding doubles the channels."""
IMAGE = (3, 32)
"""Those of what its first layer takes."""


@dataclass(frozen=True)
class Layer:
    """One, at a batch size, in one direction; where it strides, with its shortcut's convolution."""

    channels: int
    width: int
    stride: int
    batch: int
    direction: Direction
    dtype: torch.dtype
    device: torch.device

    @property
    def name(self) -> str:
        strided = ", strided" if self.stride == 2 else ""
        return f"{self.channels} channels at {self.width}×{self.width}{strided}/{self.direction}"

    @property
    def filters(self) -> int:
        return self.channels * self.stride

    @property
    def flops(self) -> int:
        """Operations of its convolutions."""
        pixels = self.batch * (self.width // self.stride) ** 2
        return 2 * pixels * self.channels * self.filters * (9 if self.stride == 1 else 10)

    def inputs(self) -> dict[str, Tensor]:
        """Activations as behind a ReLU, gradients, and weights of both layouts; channels-last."""
        random = torch.Generator(self.device).manual_seed(self.channels)
        out = self.width // self.stride

        def drawn(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=random, device=self.device)
            return values.to(self.dtype).contiguous(memory_format=torch.channels_last)

        weight = drawn(self.filters, self.channels, 3, 3) / (9 * self.channels) ** 0.5
        short = drawn(self.filters, self.channels, 1, 1) / self.channels**0.5
        pack = pack_conv3x3 if self.stride == 1 else pack_strided
        backward = self.direction == "backward"
        return {
            "x": drawn(self.batch, self.channels, self.width, self.width).relu(),
            "grad": drawn(self.batch, self.filters, out, out),
            "other": drawn(self.batch, self.filters, out, out),
            "weight": weight,
            "short": short,
            "packed": pack(weight, backward=backward),
            "packed_short": pack_strided(short, backward=backward),
            "factor": torch.rand(self.filters, generator=random, device=self.device) + 0.5,
            "shift": torch.randn(self.filters, generator=random, device=self.device),
        }

    def moved(self, inputs: Mapping[str, Tensor]) -> int:
        """Bytes that it must read and write at least: its images, and its weights once."""
        size = inputs["x"].element_size()
        outs = 2 * inputs["grad"].numel()
        ins = inputs["x"].numel() * (1 if self.direction == "forward" else 2)
        weights = inputs["packed"].numel() + (self.stride - 1) * inputs["packed_short"].numel()
        return size * (outs + ins + weights)

    def ways(self) -> dict[str, Callable[[], Function]]:
        """Those of its stride and direction; each takes all of `inputs()`."""
        alone, around, ours = WAYS[self.stride, self.direction]
        return {
            "cudnn": lambda: alone,
            "with-graph": lambda: torch.compile(around, fullgraph=True, dynamic=False),
            "fastuiat": lambda: ours,
        }


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Of a convolution's input, by the operator that autograd calls."""
    pad = weight.shape[2] // 2
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1,
        [True, False, False],
    )  # fmt: skip
    found: Tensor = gradients[0]
    return found


def _normed(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    return (x.float() * factor[:, None, None] + shift[:, None, None]).to(x.dtype)


def _scaled(grad: Tensor, factor: Tensor) -> Tensor:
    return (grad.float() * factor[:, None, None]).to(grad.dtype)


def _alone(x: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _alone_backward(x: Tensor, grad: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return _gradient(grad, x, weight, 1)


def _around(
    x: Tensor, other: Tensor, weight: Tensor, factor: Tensor, shift: Tensor, **_: Any
) -> Tensor:
    return (_normed(F.conv2d(x, weight, padding=1), factor, shift) + other).relu()


def _around_backward(
    x: Tensor, grad: Tensor, other: Tensor, weight: Tensor, factor: Tensor, **_: Any
) -> Tensor:
    return (_gradient(_scaled(grad, factor), x, weight, 1) + other) * (x > 0)


def _ours(x: Tensor, other: Tensor, packed: Tensor, shift: Tensor, **_: Any) -> Any:
    return conv3x3(x, packed, shift, residual=other, relu=True)


def _ours_backward(x: Tensor, grad: Tensor, other: Tensor, packed: Tensor, **_: Any) -> Tensor:
    return conv3x3_backward(grad, packed, mask=x, residual=other)


def _strided_alone(x: Tensor, weight: Tensor, short: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    return F.conv2d(x, weight, stride=2, padding=1), F.conv2d(x, short, stride=2)


def _strided_alone_backward(
    x: Tensor, grad: Tensor, other: Tensor, weight: Tensor, short: Tensor, **_: Any
) -> tuple[Tensor, Tensor]:
    return _gradient(grad, x, weight, 2), _gradient(other, x, short, 2)


def _strided_around(
    x: Tensor, weight: Tensor, short: Tensor, factor: Tensor, shift: Tensor, **_: Any
) -> tuple[Tensor, Tensor]:
    out, residual = _strided_alone(x, weight, short)
    return _normed(out, factor, shift).relu(), _normed(residual, factor, shift)


def _strided_around_backward(
    x: Tensor, grad: Tensor, other: Tensor, weight: Tensor, short: Tensor, factor: Tensor, **_: Any
) -> Tensor:
    first = _gradient(_scaled(grad, factor), x, weight, 2)
    return (first + _gradient(_scaled(other, factor), x, short, 2)) * (x > 0)


def _strided_ours(
    x: Tensor, packed: Tensor, packed_short: Tensor, shift: Tensor, **_: Any
) -> tuple[Tensor, Tensor]:
    return strided3x3(x, packed, shift, packed_short, shift)


def _strided_ours_backward(
    x: Tensor, grad: Tensor, other: Tensor, packed: Tensor, packed_short: Tensor, **_: Any
) -> Tensor:
    return strided3x3_backward(grad, other, packed, packed_short, x)


WAYS: dict[tuple[int, Direction], tuple[Function, Function, Function]] = {
    (1, "forward"): (_alone, _around, _ours),
    (1, "backward"): (_alone_backward, _around_backward, _ours_backward),
    (2, "forward"): (_strided_alone, _strided_around, _strided_ours),
    (2, "backward"): (_strided_alone_backward, _strided_around_backward, _strided_ours_backward),
}
"""By stride and direction: cuDNN alone, with what stands around it, and ours."""


class FirstLayer(Layer):
    """That of images, backward: its gradient, and an attack's step by that. cuDNN is given images
    with as many channels as the fused net gives it."""

    @property
    def name(self) -> str:
        return f"{self.channels} channels at {self.width}×{self.width}/{self.direction}"

    @property
    def filters(self) -> int:
        return 64

    def inputs(self) -> dict[str, Tensor]:
        random = torch.Generator(self.device).manual_seed(self.channels)

        def drawn(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=random, device=self.device)
            return values.contiguous(memory_format=torch.channels_last)

        images = self.batch, self.channels, self.width, self.width
        x, grad = drawn(*images).sigmoid(), drawn(self.batch, self.filters, *images[2:])
        weight = (drawn(self.filters, self.channels, 3, 3) / 9).to(self.dtype)
        more = (0, 0, 0, 0, 0, STEM_CHANNELS - self.channels)
        return {
            "x": x,
            "x_adv": x + drawn(*images) / 64,
            "grad": grad.to(self.dtype),
            "wide": F.pad(x.to(self.dtype), more),
            "weight": F.pad(weight, more),
            "packed": pack_image_gradient(weight),
        }

    def moved(self, inputs: Mapping[str, Tensor]) -> int:
        """Bytes that gradient and step must read and write at least."""
        named = (inputs[name] for name in ("x", "x_adv", "x", "grad", "packed"))
        return sum(tensor.numel() * tensor.element_size() for tensor in named)

    def ways(self) -> dict[str, Callable[[], Function]]:
        return {
            "cudnn": lambda: _image_gradient,
            "with-graph": lambda: torch.compile(_image_step, fullgraph=True, dynamic=False),
            "fastuiat": lambda: _image_step_ours,
        }


STEP: dict[str, Any] = {"alpha": 2 / 255, "eps": 8 / 255}


def _image_gradient(wide: Tensor, grad: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return _gradient(grad, wide, weight, 1)


def _image_step(x: Tensor, x_adv: Tensor, **given: Tensor) -> Tensor:
    gradient = _image_gradient(**given)[:, : x.shape[1]]
    return sign_step(x, x_adv, torch.empty_like(x).copy_(gradient), **STEP)


def _image_step_ours(x: Tensor, x_adv: Tensor, grad: Tensor, packed: Tensor, **_: Any) -> Tensor:
    return conv3x3_sign_step(x, x_adv, grad, packed, **STEP)


def layers_at(options: LayerOptions, device: torch.device) -> Iterator[Layer]:
    """Those of ResNet-18 whose images are of the widths that are asked for."""
    batch, dtype = options.batch_size, DTYPES[options.precision]
    directions: tuple[Direction, ...] = ("forward", "backward")
    for channels, width, stride in SHAPES:
        for direction in directions:
            if width in options.widths:
                yield Layer(channels, width, stride, batch, direction, dtype, device)
    if IMAGE[1] in options.widths:
        yield FirstLayer(*IMAGE, 1, batch, "backward", dtype, device)


@dataclass(frozen=True, kw_only=True)
class LayerOptions(Measuring):
    """Time a frozen ResNet-18's layers: cuDNN alone, with its pointwise graph, and our kernels."""

    batch_size: int = 128
    """Images."""
    precision: Literal["bf16", "fp16"] = "bf16"
    """Of images and weights."""
    widths: tuple[int, ...] = (32, 16, 8, 4)
    """Of the images that the layers take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(batch_size=self.batch_size)
        known = sorted({width for _, width, _ in SHAPES})
        if not self.widths or set(self.widths) - set(known):
            raise UserError(
                f"--widths {' '.join(map(str, self.widths))}: choose from "
                f"{', '.join(map(str, known))}, the pixels a side of what ResNet-18's layers take"
            )


@register("layers")
class LayerSuite(Suite):
    Options = LayerOptions
    rank = 3
    help = "a frozen ResNet-18's layers: cuDNN, cuDNN with its pointwise graph, and our kernels"
    title = "The layers of a frozen net"

    def columns(self) -> Columns:
        return {
            "layer": columns.case,
            "provider": columns.provider,
            "arithmetic": columns.arithmetic,
            "median": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "÷ fastuiat": columns.number("ratio_median", ".2f"),
            "TFLOP/s": columns.number("tflops_per_s", ".3g"),
            "of peak": columns.percent("peak_share"),
            "timed by": lambda r: r["timed"],
        }

    def measure(self, options: LayerOptions, done: Done) -> Records:
        device = resolve_device(options.device)
        records: Records = []
        for layer in layers_at(options, device):
            done(layer.name)
            records += self.measured(layer, options)
        return records

    def measured(self, layer: Layer, options: LayerOptions) -> Records:
        """By every provider."""
        moved = layer.moved(layer.inputs())
        plan = options.plan(min_sample_s=MIN_SAMPLE_S)
        with repeatable():
            timed = time_ways(layer.ways(), layer.inputs, moved, layer.device, plan=plan)
        peak = peak_flops(layer.device, options.precision)
        records: list[Record] = []
        for t in timed.values():
            seconds = t.best.spread.median if t.best.samples else None
            rate = layer.flops / seconds if seconds else None
            records.append(
                make_record(
                    suite="layers",
                    case=layer.name,
                    measured=t.best,
                    device=layer.device,
                    config={
                        "channels": layer.channels,
                        "width": layer.width,
                        "stride": layer.stride,
                        "direction": layer.direction,
                        "batch_size": layer.batch,
                        "precision": options.precision,
                    },
                    flops=layer.flops,
                    bytes_moved=moved,
                    tflops_per_s=rate and rate / 1e12,
                    peak_share=rate / peak if rate and peak else None,
                    ratio_median=t.ratio_to(timed["fastuiat"]),
                    **t.fields(),
                )
            )
        return records

    def figures(self, records: Sequence[Record]) -> str:
        """Of how many layers ours is the faster, and how the sums compare."""
        by = {
            name: {r["case"]: r["median_s"] for r in records if r["provider"] == name and r["n"]}
            for name in ("with-graph", "fastuiat")
        }
        both = sorted(by["with-graph"].keys() & by["fastuiat"].keys())
        if not both:
            return "not measured"
        theirs, ours = ([by[name][case] for case in both] for name in by)
        faster = sum(a > b for a, b in zip(theirs, ours, strict=True))
        return (
            f"fastuiat faster in {faster} of {len(both)} layers, "
            f"{sum(theirs) / sum(ours):.2f} times as fast in their sum as cuDNN with its graph"
        )
