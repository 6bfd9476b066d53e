"""What others publish loads, and gives the logits that their own classes give."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import fastuiat
from fastuiat import data
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.evaluation import pixels

K = 7
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def settled(net: nn.Module) -> nn.Module:
    """With BatchNorm statistics, scales and shifts that are not those of a fresh net."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.2, generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def same_logits(file: Path, theirs: nn.Module, x: torch.Tensor, arch: str, **said) -> dict:
    net, info = fastuiat.load_checkpoint(file, arch, **said)
    assert not net.training
    with torch.no_grad():
        expected, logits = theirs(x), net(x)
        again, features = net(x, return_features=True)
    assert logits.shape == (2, K) and logits.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, logits) and features.ndim == 2
    assert info["num_classes"] == K
    return info


class BothNormalised(nn.Module):
    """A pre-activation block with a BatchNorm behind the shortcut's convolution."""

    def __init__(self, inputs: int, planes: int, stride: int = 1, **unused) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            conv = nn.Conv2d(inputs, planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(planes))

    expansion = 1

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if len(self.shortcut) else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def published_nets(robustbench):
    resnet, wide, deepmind, robust = map(
        robustbench, ("resnet", "wide_resnet", "dm_wide_resnet", "robust_resnet")
    )
    four = [2, 2, 2, 2]
    silu = dict.fromkeys(("activations",), ("SiLU",) * 4) | {"normalizations": ("BatchNorm",) * 4}
    stages = {"channel_configs": (64, 64, 128, 256, 512), "depth_configs": (2, 2, 2, 2)}
    stages |= {"stride_config": (1, 2, 2, 2), "kernel_size_configs": (3,) * 4}
    stages |= {"block_types": ("basic_block",) * 4, **silu}
    groups = {"channel_configs": (16, 32, 64, 128), "depth_configs": (2, 2, 2)}
    return {
        "resnet-18": lambda: resnet.ResNet(resnet.BasicBlock, four, num_classes=K),
        "prn-18": lambda: resnet.PreActResNet(resnet.PreActBlockV2, four, K, bn_before_fc=True),
        "prn-18 bn": lambda: resnet.PreActResNet(BothNormalised, four, K, bn_before_fc=True),
        "prn-18-v1": lambda: resnet.PreActResNet(resnet.PreActBlock, four, K),
        "prn-18-v1-bn": lambda: resnet.PreActResNet(resnet.PreActBlock, four, K, bn_before_fc=True),
        "wrn-16-2": lambda: wide.WideResNet(16, K, 2, sub_block1=True),
        "wrn-16-2 silu": lambda: robust.PreActResNet(K, **groups, activations=("SiLU",) * 3),
        "prn-18 silu": lambda: robust.PreActResNet(K, **stages),
        "wrn-10-1 dm": lambda: deepmind.DMWideResNet(K, 10, 1, deepmind.Swish),
        "wrn-16-2 dm": lambda: deepmind.DMWideResNet(K, 16, 2, nn.SiLU, MEAN, STD),
        "prn-18 dm": lambda: deepmind.DMPreActResNet(K, 18, 0, nn.SiLU),
    }


@pytest.mark.parametrize(
    "name",
    ["resnet-18", "prn-18", "prn-18 bn", "prn-18-v1", "prn-18-v1-bn", "wrn-16-2",
     "wrn-16-2 silu", "prn-18 silu", "wrn-10-1 dm", "wrn-16-2 dm", "prn-18 dm"],
)  # fmt: skip
def test_the_nets_that_are_published(robustbench, tmp_path, x, name):
    theirs = settled(published_nets(robustbench)[name]())
    arch, _, kind = name.partition(" ")
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    said = {"activation": "silu"} if kind == "silu" else {}
    info = same_logits(tmp_path / "net.pt", theirs, x, arch, **said)
    assert info["arch"] == ("dm-" + arch if kind == "dm" else arch)
    assert info["activation"] == ("silu" if kind in ("dm", "silu") else "relu")
    assert bool(info["normalisation"]) == (kind == "dm")


def test_the_batchnorm_that_a_raw_shortcut_net_ends_in_names_it(robustbench, tmp_path, x):
    """Either name reads either file: its keys show which it is, and what they leave open is said.

    Without that BatchNorm it is the raw-shortcut net also where prn-18 is said.
    """
    nets = published_nets(robustbench)
    for held, said in (
        ("prn-18-v1", "prn-18-v1-bn"), ("prn-18-v1-bn", "prn-18-v1"), ("prn-18-v1", "prn-18"),
    ):  # fmt: skip
        theirs = settled(nets[held]())
        torch.save(theirs.state_dict(), tmp_path / "net.pt")
        info = same_logits(tmp_path / "net.pt", theirs, x, said)
        assert info["arch"] == held and f"as a {held} with" in info["taken"]
        (note,) = [note for note in info["notes"] if "bn" in note and "shortcut" in note]
        assert said in note and held in note and ("--arch prn-18" in note) == (held != "prn-18-v1")
        ours = fastuiat.build_model(held, K)
        assert ours.state_dict().keys() == theirs.state_dict().keys()


class Normalise(nn.Module):
    def __init__(self, names: tuple[str, str] | None) -> None:
        super().__init__()
        self.values = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        for name, value in zip(names or (), self.values, strict=False):
            self.register_buffer(name, value)

    def forward(self, x):
        return (x - self.values[0]) / self.values[1]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return settled(fastuiat.build_model("wrn-10-1", K))


WRAPPED = {
    "plain": lambda s: s,
    "with an epoch": lambda s: {"net": s, "acc": 0.5, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
    "twice": lambda s: {"state_dict": {"model": s}},
    "best and last": lambda s: {"last": {k: v * 0 for k, v in s.items()}, "best": s},
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.model.{k}": v for k, v in s.items()},
    "sequential": lambda s: {f"0.{k}": v for k, v in s.items()},
    "dead part": lambda s: s | {"sub_block1.layer.0.bn1.weight": torch.ones(16)},
    "old": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappings(tmp_path, x, how):
    net = tiny()
    torch.save(WRAPPED[how](net.state_dict()), tmp_path / "net.pt")
    info = same_logits(tmp_path / "net.pt", net, x, "wrn-10-1")
    assert info["weights"] == "raw" and len(info["notes"]) == 1
    assert "--mean and --std" in info["notes"][0]


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), None])
def test_a_normalisation_in_front(tmp_path, x, names):
    theirs = nn.Sequential(Normalise(names), tiny())
    torch.save(nn.DataParallel(theirs).state_dict(), tmp_path / "net.pt")
    if names is None:
        _, info = fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")
        assert "--mean and --std" in info["notes"][0] and info["normalisation"] is None
    said = {} if names else {"normalise": (MEAN, STD)}
    info = same_logits(tmp_path / "net.pt", theirs, x, "wrn-10-1", **said)
    found = info["normalisation"]
    assert (found["mean"], found["std"]) == (list(MEAN), list(STD)) and not info["notes"]
    held = names and f"the file: module.0.{names[0]}, module.0.{names[1]}"
    assert found["from"] == (held or "--mean and --std")
    if names:
        with pytest.raises(UserError, match="leave --mean and --std out"):
            fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1", normalise=(MEAN, STD))


def test_buffers_beside_the_net_are_its_normalisation(tmp_path, x):
    net = tiny()
    state = net.state_dict() | {
        "mu": torch.tensor(MEAN).view(1, 3, 1, 1),
        "sigma": torch.tensor(STD).view(1, 3, 1, 1),
    }
    torch.save(state, tmp_path / "net.pt")
    same_logits(tmp_path / "net.pt", nn.Sequential(Normalise(None), net), x, "wrn-10-1")


def test_safetensors_under_any_name(tmp_path, x):
    net = tiny()
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.safetensors").read_bytes())
    for name in ("net.safetensors", "net.pt"):
        same_logits(tmp_path / name, net, x, "wrn-10-1")
    whole = (tmp_path / "net.pt").read_bytes()
    for content in (whole[:-5], b"", b"junk" * 9):
        (tmp_path / "net.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="truncated or no safetensors file"):
            fastuiat.load_checkpoint(tmp_path / "net.safetensors", "wrn-10-1")


def state_of(arch: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        net = fastuiat.build_model(arch, K)
    return {k: torch.zeros(v.shape) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    "state, arch, said",
    [
        (lambda: state_of("wrn-16-2"), "wrn-10-1",
         r"conv1.*more do not fit wrn-10-1; it looks like wrn-16-2 with 7 classes"),
        (lambda: state_of("wrn-10-1"), None, r"with --arch; it looks like wrn-10-1 with 7"),
        (lambda: state_of("resnet-18"), "prn-18", r"looks like resnet-18"),
        (lambda: state_of("prn-18"), "resnet-18", r"looks like prn-18"),
        (lambda: state_of("dm-wrn-16-2"), "wrn-10-2", r"looks like dm-wrn-16-2 with 7 classes"),
        (lambda: state_of("wrn-10-1"), "dm-wrn-10-1", r"looks like wrn-10-1"),
        (lambda: state_of("wrn-10-1") | {"fc.weight": torch.zeros(9, 64)}, "wrn-10-1",
         r": fc.bias do not fit"),
        (lambda: {"features.0.weight": torch.zeros(64, 3, 3, 3)}, "resnet-18",
         r"and \d+ more do not fit resnet-18$"),
        (lambda: {"epoch": 3, "net": {}}, "resnet-18", r"holds no state dict"),
    ],
)  # fmt: skip
def test_a_misfit_is_named(tmp_path, state, arch, said):
    torch.save(state(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=said) as refused:
        fastuiat.load_checkpoint(tmp_path / "net.pt", arch)
    keys = str(refused.value).partition("another net: ")[2].partition(" do not fit")[0]
    assert "\n" not in str(refused.value) and keys.count(",") <= 4


def test_deeper_nets_and_other_layouts_are_recognised(tmp_path):
    state = state_of("resnet-18")
    deeper = {k.replace("layer1.1", "layer1.2"): v for k, v in state.items() if "layer1.1" in k}
    theirs = {"shortcut": "downsample", "linear": "fc"}
    downsample = {
        next((k.replace(a, b) for a, b in theirs.items() if a in k), k): v for k, v in state.items()
    }
    for content, looks in ((state | deeper, r"resnet-\?"), (downsample, "a torchvision ResNet-18")):
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(UserError, match=f"looks like {looks}"):
            fastuiat.load_checkpoint(tmp_path / "net.pt", "resnet-18")


def test_what_cannot_be_read_unrun_says_how_to_convert(tmp_path):
    torch.save({"net": tiny(), "scale": collections.Counter()}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"refused unread.*weights_only=False.*keeps the weights"):
        fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")


def test_the_dm_nets_are_built_by_name_in_any_precision(x):
    for arch in ("dm-wrn-10-1", "dm-prn-18"):
        net = fastuiat.build_model(arch, K, "silu").double()
        assert net(x.double()).dtype == torch.float64
    cast = fastuiat.build_model("dm-wrn-10-1", K, "silu").eval()
    for module in cast.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    assert cast(x.bfloat16()).shape == (2, K)


def test_the_constants_of_a_dm_net(robustbench, tmp_path, x):
    """RobustBench keeps them out of its files, the DeepMind line's own files may hold them."""
    deepmind = robustbench("dm_wide_resnet")
    mean, std = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
    theirs = settled(deepmind.DMWideResNet(K, 10, 1, nn.SiLU, mean, std))
    state = theirs.state_dict()
    torch.save(state, tmp_path / "without.pt")
    torch.save(state | {"mean": theirs.mean, "std": theirs.std}, tmp_path / "with.pt")
    same_logits(tmp_path / "without.pt", theirs, x, "wrn-10-1", normalise=(mean, std))
    same_logits(tmp_path / "with.pt", theirs, x, "wrn-10-1")
    hundred = fastuiat.build_model("dm-wrn-10-1", 100, "silu")
    assert hundred.mean.flatten().tolist() == pytest.approx(deepmind.CIFAR100_MEAN)


def test_eval_of_a_published_file(tmp_path, capsys, monkeypatch):
    """And what is said of a normalisation that left no trace."""
    monkeypatch.chdir(tmp_path)
    net = fastuiat.build_model("wrn-10-1", 10).eval()
    torch.save({"state_dict": {f"1.{k}": v for k, v in net.state_dict().items()}}, "net.pt")
    words = ["eval", "net.pt", "--arch", "wrn-10-1", "--dataset", "digits", "--n", "64", "--json"]
    accuracies = []
    for more in ([], ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.3", "0.4"]):
        main([*words, "--attacks", "clean", *more, "--out", f"out-{len(more)}"])
        out, err = capsys.readouterr()
        (record,) = json.loads(out)["records"]
        assert ("give --mean and --std" in err) == (not more)
        assert bool(record["checkpoint"]["normalisation"]) == bool(more)
        assert record["checkpoint"]["taken"] in err
        accuracies.append(record["accuracy"])
    digits = data.load("digits", Path("data"), "test")
    x = pixels(digits.images[:64], torch.device("cpu"))
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.3, 0.4]]).view(2, 3, 1, 1)
    with torch.no_grad():
        answers = [net(x).argmax(1), net((x - mean) / std).argmax(1)]
    hits = [a == torch.from_numpy(digits.labels[:64]) for a in answers]
    assert accuracies == [h.float().mean().item() for h in hits]


def test_a_dm_net_trains_and_is_gone_on_with(tmp_path):
    """Its normalisation is in the run's own checkpoints."""
    words = """train --dataset digits --arch dm-wrn-10-1 --activation silu --loader resident
        --no-compile --precision bf16 --method uiat --steps 1 --batch-size 32 --val-size 32
        --max-steps 2 --weight-averaging 0.9 --quiet"""
    main([*words.split(), "--out", str(tmp_path / "run")])
    net, info = fastuiat.load_checkpoint(tmp_path / "run")
    assert info["arch"] == "dm-wrn-10-1" and info["weights"] == "averaged"
    assert net.mean.flatten().tolist() == pytest.approx(MEAN)
