"""timm's and torchvision's nets by name: what they are, and which names and images are refused."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import timm
import torch
import torchvision

import fastuiat
from fastuiat.config import UserError
from fastuiat.models.heads import head_keys
from fastuiat.models.libraries import at_size, refuse_images


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize(
    "name, make",
    [
        ("timm:test_resnet", partial(timm.create_model, "test_resnet", num_classes=7)),
        ("timm:test_vit", partial(timm.create_model, "test_vit", num_classes=7, img_size=32)),
        ("timm:test_vit@64", partial(timm.create_model, "test_vit", num_classes=7, img_size=64)),
        ("torchvision:squeezenet1_1", partial(torchvision.models.squeezenet1_1, num_classes=7)),
    ],
)
def test_a_net_is_the_library_s_own(name, make):
    torch.manual_seed(0)
    theirs = make()
    torch.manual_seed(0)
    net = fastuiat.build_model(name, num_classes=7)
    assert type(net) is type(theirs) and same(net, theirs)
    wide = [p for p in net.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)


TWO_HEADS = [f"{h}.linear.{kind}" for h in ("head", "head_dist") for kind in ("weight", "bias")]


def test_the_head_is_what_follows_the_classes():
    for name, expected in {
        "timm:test_vit": {"head.weight": 0, "head.bias": 0},
        "timm:levit_128s": dict.fromkeys(TWO_HEADS, 0),
        "torchvision:squeezenet1_1": {"classifier.1.weight": 0, "classifier.1.bias": 0},
        "wrn-10-1": {"fc.weight": 0, "fc.bias": 0},
        "resnet-18": {"linear.weight": 0, "linear.bias": 0},
    }.items():
        assert head_keys(partial(fastuiat.build_model, name), 10) == expected


@pytest.mark.parametrize(
    "name, said",
    [
        ("timm:resnet_18", "unknown net 'timm:resnet_18': the nearest are timm:resnet18, timm:"),
        ("torchvision:resnet19", "the nearest are torchvision:resnet18, torchvision:"),
        ("timm:resnet18.a1_in1k", "say timm:resnet18, and --init FILE"),
        ("timm:hf-hub:timm/resnet18", "unknown net"),
        ("tim:resnet18", "unknown net 'tim:resnet18': choose from"),
        ("timm:", "unknown net 'timm:'"),
        ("timm:test_vit@x", "behind @ stands the images' size"),
        ("timm:test_vit@0", "behind @ stands the images' size"),
        ("timm:test_resnet@32", "takes images of any size: leave @32 out"),
        ("torchvision:vit_b_16@33", "cannot be made for 33×33 pixels"),
    ],
)
def test_names_that_are_none(name, said):
    with pytest.raises(UserError) as error:
        fastuiat.build_model(name)
    assert said in str(error.value)
    if "nearest" in said:
        assert str(error.value).count(name.split(":")[0] + ":") == 4


@pytest.mark.parametrize(
    "name, size, said",
    [
        ("timm:inception_v3", 32, "does not take images of 32×32 pixels: Calculated padded input"),
        ("torchvision:alexnet", 32, "does not take images of 32×32 pixels"),
        ("torchvision:maxvit_t", 32, "cannot be made for 32×32 pixels"),
        ("torchvision:vit_b_16@64", 32, "does not take images of 32×32 pixels"),
        ("timm:test_resnet", 32, None),
        ("timm:test_vit@64", 64, None),
        ("torchvision:googlenet", 32, None),
    ],
)
def test_images_that_a_net_does_not_take(name, size, said):
    state = torch.get_rng_state()

    def refuse() -> None:
        refuse_images(partial(fastuiat.build_model, name, 7), name, 7, (3, size, size))

    if said is None:
        refuse()
    else:
        with pytest.raises(UserError, match=said):
            refuse()
    assert torch.equal(torch.get_rng_state(), state)


def test_what_gives_no_logits_is_refused():
    for make, said in (
        (lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 7, 1)), r"gives \(2, 7, 8, 8\) where"),
        (lambda: torch.nn.LSTM(8, 7), "does not take images"),
    ):
        with pytest.raises(UserError, match=said):
            refuse_images(make, "a net", 7, (3, 8, 8))


def test_a_net_that_computes_while_it_is_asked_is_asked_as_it_is():
    class Looks(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.sum().item() == 0
            return super().forward(x.flatten(1))

    refuse_images(lambda: Looks(3, 7), "a net", 7, (3, 1, 1))


def test_a_net_that_is_made_for_one_size_has_it_in_its_name():
    assert at_size("timm:test_vit", 64) == "timm:test_vit@64"
    for name in ("timm:test_resnet", "wrn-10-1", "torchvision:resnet18"):
        assert at_size(name, 64) == name
    assert at_size("timm:test_vit", 32) == "timm:test_vit"


def test_a_library_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm: pip install 'fastuiat\[timm\]'"):
        fastuiat.build_model("timm:test_resnet")
