"""What a submission to RobustBench holds: a state dict for one of its classes, and model_info."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastuiat.config import UserError, radius_text
from fastuiat.models.deepmind import DeepMindPreActResNet18, DeepMindWideResNet, NormalisedInside
from fastuiat.models.layouts import ROBUST_RESNET, renamed
from fastuiat.models.libraries import OWN
from fastuiat.models.normalised import Normalised
from fastuiat.models.preact_resnet import VARIANTS, PreActResNet18
from fastuiat.models.resnet import ResNet18
from fastuiat.models.wide_resnet import WideResNet

TEST_IMAGES = 10_000
"""RobustBench counts on CIFAR's whole test set."""


@dataclass(frozen=True)
class ZooClass:
    """Which class of robustbench.model_zoo a net fits, and its state dict there.

    It is one of the architectures, or of the models in cifar10 and cifar100.
    """

    constructor: str
    """A call that makes the net, its module's name included."""
    architecture: str
    """As the leaderboard writes it."""
    state: dict[str, Tensor]


def robust_resnet(channels: list[int], blocks: list[int], strides: list[int], classes: int) -> str:
    """The call for a net of basic blocks with SiLU, one entry of everything for each stage."""
    stages = len(blocks)
    each: dict[str, list[Any]] = {
        "channel_configs": channels,
        "depth_configs": blocks,
        "stride_config": strides,
        "drop_rate_config": [0.0] * stages,
        "kernel_size_configs": [3] * stages,
        "block_types": ["basic_block"] * stages,
        "activations": ["SiLU"] * stages,
        "normalizations": ["BatchNorm"] * stages,
    }
    words = ", ".join(f"{name}={tuple(values)}" for name, values in each.items())
    return f"robust_resnet.PreActResNet(num_classes={classes}, {words})"


def zoo_class(net: nn.Module, info: dict[str, Any]) -> ZooClass:
    """The class that computes what a net of ours does; UserError where RobustBench has none."""
    arch, silu, classes = info["arch"], info["activation"] == "silu", info["num_classes"]
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    four = [2, 2, 2, 2]
    if isinstance(net, NormalisedInside):
        mean, std = (tuple(t.flatten().tolist()) for t in (net.mean, net.std))
        words = f"activation_fn=nn.{'SiLU' if silu else 'ReLU'}, mean={mean}, std={std}"
        state = {k: v for k, v in state.items() if k not in ("mean", "std")}
        if isinstance(net, DeepMindPreActResNet18):
            call = f"DMPreActResNet(num_classes={classes}, depth=18, width=0, {words})"
            return ZooClass(f"dm_wide_resnet.{call}", "PreActResNet-18", state)
        assert isinstance(net, DeepMindWideResNet)
        depth, width = arch.split("-")[2:]
        call = f"DMWideResNet(num_classes={classes}, depth={depth}, width={width}, {words})"
        return ZooClass(f"dm_wide_resnet.{call}", f"WideResNet-{depth}-{width}", state)
    if isinstance(net, WideResNet):
        depth, width = map(int, arch.split("-")[1:])
        call = f"wide_resnet.WideResNet(depth={depth}, widen_factor={width}, num_classes={classes})"
        if silu:
            channels = [16, 16 * width, 32 * width, 64 * width]
            call = robust_resnet(channels, [(depth - 4) // 6] * 3, [1, 2, 2], classes)
            state = renamed(state, ROBUST_RESNET["wrn"])
        return ZooClass(call, f"WideResNet-{depth}-{width}", state)
    if isinstance(net, ResNet18) and not silu:
        call = f"resnet.ResNet(resnet.BasicBlock, {four}, num_classes={classes})"
        return ZooClass(call, "ResNet-18", state)
    if isinstance(net, PreActResNet18) and not net.variant.shortcut_bn:
        variant = net.variant
        if not silu:
            block = "PreActBlock" if variant.raw_shortcut else "PreActBlockV2"
            final = f"bn_before_fc={variant.final_bn}"
            call = f"PreActResNet(resnet.{block}, {four}, num_classes={classes}, {final})"
            return ZooClass(f"resnet.{call}", "PreActResNet-18", state)
        if variant.final_bn and not variant.raw_shortcut:
            call = robust_resnet([64, 64, 128, 256, 512], four, [1, 2, 2, 2], classes)
            return ZooClass(call, "PreActResNet-18", renamed(state, ROBUST_RESNET["prn"]))
    if isinstance(net, Normalised) and (entry := normalised_class(net, info)):
        return entry
    front = "a normalisation in front of " if isinstance(net, Normalised) else ""
    activation = "" if info["activation"] == OWN else f" with {info['activation']}"
    raise UserError(
        f"RobustBench has no class for {front}a {arch}{activation}: "
        "use --format safetensors, onnx or torch-export"
    )


NORMALISED = {
    ("prn-18-v1", 10): "cifar10.Wong2020FastNet()",
    ("prn-18", 10): "cifar10.Rice2020OverfittingNetL2()",
    ("prn-18", 100): "cifar100.Rice2020OverfittingNet()",
}
"""By arch and classes; these take no other number of them."""


def normalised_class(net: Normalised, info: dict[str, Any]) -> ZooClass | None:
    """The class of the model zoo that normalises inside, and else is what the net is; or None.

    There are few: most are for one data set's classes, whose constants the state dict replaces.
    """
    inner, classes = net.net, info["num_classes"]
    if info["activation"] != "relu":
        return None
    call, architecture = None, "ResNet-18"
    if isinstance(inner, PreActResNet18):
        known = {VARIANTS[name]: c for (name, k), c in NORMALISED.items() if k == classes}
        call, architecture = known.get(inner.variant), "PreActResNet-18"
    elif isinstance(inner, ResNet18):
        call = f"cifar10.Modas2021PRIMEResNet18(num_classes={classes})"
    elif isinstance(inner, WideResNet) and classes in (10, 100):
        depth, width = map(int, info["arch"].split("-")[1:])
        wide = {10: "cifar10.Rice2020OverfittingNet", 100: "cifar100.Wu2020AdversarialNet"}
        call = f"{wide[classes]}(depth={depth}, widen_factor={width})"
        architecture = f"WideResNet-{depth}-{width}"
    if call is None:
        return None
    state = {k: v.contiguous() for k, v in inner.state_dict().items()}
    return ZooClass(call, architecture, state | {"mu": net.mean, "sigma": net.std})


def measured(records: list[dict[str, Any]], attack: str, eps: float | None) -> str | None:
    """Accuracy in percent on the whole test set as RobustBench counts it, or None."""
    for record in records:
        standard = attack == "clean" or (
            record.get("version") == "standard" and record.get("eps_value") == eps
        )
        if record["attack"] == attack and standard and record["n"] == TEST_IMAGES:
            return f"{100 * record['accuracy']:.2f}"
    return None


def model_info(
    entry: ZooClass,
    info: dict[str, Any],
    records: list[dict[str, Any]],
    *,
    eps: float | None,
    extra_data: str | None,
) -> dict[str, Any]:
    """The fields of RobustBench's model_info JSON; None in those that nobody has filled.

    `records` are the evaluations of this very net. `extra_data` is the run's: generated images do
    not count as additional data there, other images do and only the user knows which they are.
    """
    robust = measured(records, "autoattack", eps)
    generated = extra_data == "ddpm1m"
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None if extra_data and not generated else False,
        "number_forward_passes": 1,
        "dataset": info.get("dataset"),
        "venue": None,
        "architecture": entry.architecture,
        "eps": None if eps is None else radius_text(eps),
        "clean_acc": measured(records, "clean", None),
        "reported": robust,
        "autoattack_acc": robust,
        "footnote": "Trained with 1M generated images (DDPM)." if generated else None,
        "unreliable": False,
    }
