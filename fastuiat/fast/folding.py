"""BatchNorm in eval mode folded into the convolution before it.

γ(w∗x − μ)/σ + β is (γ/σ·w)∗x + (β − γμ/σ): one multiplication per weight in place of one per pixel,
forward and backward.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from fastuiat.fast.regions import Regions
from fastuiat.models import Classifier


class Shift(nn.Module):
    """What is left of a folded BatchNorm: x (B, C, H, W) plus a number per channel.

    Added in fp32 at least: as a bias of the convolution it would be rounded to the net's dtype.
    """

    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros_like(norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift[:, None, None]).to(x.dtype)


class LayersWhole(fx.Tracer):
    """Records convolutions and BatchNorms as one step each, whatever they do inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, nn.Conv2d | nn.BatchNorm2d)
        return layer or super().is_leaf_module(m, module_qualified_name)


def foldable(net: Classifier) -> list[tuple[str, str]]:
    """Names of (convolution, BatchNorm): one without bias, whose output goes to the other alone."""
    layers = dict(net.named_modules())
    pairs = []
    for node in LayersWhole().trace(net, {"return_features": False}).nodes:
        if node.op != "call_module" or not isinstance(layers[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if source.op == "call_module" and len(source.users) == 1:
            conv = layers[source.target]
            if isinstance(conv, nn.Conv2d) and conv.bias is None:
                pairs.append((source.target, node.target))
    return pairs


def shared_copy(net: nn.Module) -> nn.Module:
    """A copy in eval mode, with the very parameters and buffers of the net."""
    twin = copy.deepcopy(net).eval()
    for module, owner in zip(twin.modules(), net.modules(), strict=True):
        for key, parameter in owner.named_parameters(recurse=False):
            setattr(module, key, parameter)
        for key, buffer in owner.named_buffers(recurse=False):
            setattr(module, key, buffer)
    return twin


class Folded:
    """`net`, a copy of `frozen` with its BatchNorms folded; what is not folded is shared with it.

    The factors come from `live`, in its dtype, at each `refresh`.
    """

    def __init__(self, live: Classifier, frozen: nn.Module) -> None:
        self.net = shared_copy(frozen)
        own, folded = dict(live.named_modules()), dict(self.net.named_modules())
        self._layers: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, Shift]] = []
        for conv_name, norm_name in foldable(live):
            conv, norm, twin = own[conv_name], own[norm_name], folded[conv_name]
            assert isinstance(conv, nn.Conv2d) and isinstance(twin, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            twin.weight = nn.Parameter(twin.weight.detach().clone(), requires_grad=False)
            shift = Shift(norm)
            self.net.set_submodule(norm_name, shift)
            self._layers.append((conv, norm, twin, shift))

    def takes(self, x: Tensor) -> bool:
        """Whether it is for images of this size: of any."""
        return True

    def refresh(self, regions: Regions) -> None:
        """Fold the live weights and running statistics as they are now."""
        with torch.no_grad():
            for conv, norm, twin, shift in self._layers:
                assert norm.running_mean is not None and norm.running_var is not None
                factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
                torch.mul(conv.weight, factor[:, None, None, None], out=twin.weight.data)
                torch.addcmul(norm.bias, norm.running_mean, factor, value=-1, out=shift.shift)
