"""What is exported gives, loaded by the other side, the logits that it had."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import nn

import fastuiat
from fastuiat import export as library
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.evaluation.robustbench import zoo_class
from fastuiat.models.normalised import Normalised

K = 10
WORDS = """train --dataset digits --arch wrn-10-1 --activation silu --loader resident --no-compile
    --steps 1 --batch-size 64 --val-size 64 --max-steps 4 --epochs 3 --weight-averaging 0.9
    --quiet"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("export") / "runs" / "silu"
    main([*WORDS.split(), "--out", str(run)])
    return run


@pytest.fixture
def exported(finished, capsys):
    """exported(words) -> (the JSON document, the net as load_checkpoint gives it)."""

    def run(*words: str) -> tuple[dict, nn.Module]:
        capsys.readouterr()
        main(["export", str(finished), "--json", *words])
        which = words[words.index("--weights") + 1] if "--weights" in words else "averaged"
        return json.loads(capsys.readouterr().out), fastuiat.load_checkpoint(
            finished, weights=which
        )[0]

    return run


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def same_logits(net: nn.Module, theirs) -> None:
    for count in (1, 5):
        x = images(count)
        expected = net(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(theirs(x), expected, atol=1e-5, rtol=0)


def test_safetensors(exported, finished):
    for weights in ("averaged", "raw"):
        document, net = exported("--format", "safetensors", "--weights", weights)
        with safe_open(document["path"], framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            said = file.metadata()
        trained_on = json.loads(said.pop("data"))
        assert trained_on["train"]["n"] == 1438 and trained_on["extra"] is None
        assert said == {
            "arch": "wrn-10-1", "num_classes": "10", "activation": "silu", "dataset": "digits",
        }  # fmt: skip
        theirs = fastuiat.build_model("wrn-10-1", 10, "silu").eval()
        theirs.load_state_dict(state, strict=True)
        same_logits(net, theirs)
        again, info = fastuiat.load_checkpoint(document["path"])  # the file says which net it is
        assert info["dataset"] == "digits"
        same_logits(net, again)
    averaged, raw = (fastuiat.load_checkpoint(finished, weights=w)[0] for w in ("averaged", "raw"))
    assert (averaged(images(1)) - raw(images(1))).abs().max() > 1e-4


@pytest.mark.slow
def test_onnx(exported, tmp_path):
    document, net = exported("--format", "onnx", "--out", str(tmp_path / "deep" / "net.onnx"))
    onnx.checker.check_model(document["path"], full_check=True)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["net.onnx"]  # no file beside it
    session = onnxruntime.InferenceSession(document["path"], providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["arch"] == "wrn-10-1"
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    same_logits(net, lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]))
    assert 0 <= document["difference"] <= 1e-5


def test_torch_export(exported):
    document, net = exported("--format", "torch-export")
    said = {"info.json": ""}
    program = torch.export.load(document["path"], extra_files=said)
    assert json.loads(said["info.json"])["activation"] == "silu"
    same_logits(net, program.module())


def made(robustbench, constructor: str) -> nn.Module:
    names = ("resnet", "wide_resnet", "dm_wide_resnet", "robust_resnet")
    return eval(constructor, {name: robustbench(name) for name in names} | {"nn": nn}).eval()


def test_robustbench_from_a_run(exported, robustbench):
    document, net = exported("--format", "robustbench")
    theirs = made(robustbench, document["constructor"])
    theirs.load_state_dict(torch.load(document["path"], weights_only=True), strict=True)
    same_logits(net, theirs)


@pytest.mark.parametrize(
    "arch, activation",
    [("resnet-18", "relu"), ("prn-18", "relu"), ("prn-18", "silu"), ("prn-18-v1", "relu"),
     ("prn-18-v1-bn", "relu"), ("wrn-16-2", "relu"), ("wrn-16-2", "silu"),
     ("dm-wrn-16-2", "silu"), ("dm-wrn-10-1", "relu"), ("dm-prn-18", "silu")],
)  # fmt: skip
def test_every_net_in_its_robustbench_class(robustbench, arch, activation):
    torch.manual_seed(5)
    net = fastuiat.build_model(arch, K, activation).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", ".bias")):
            tensor.normal_(0, 0.1)
        elif name in ("mean", "std"):
            tensor.add_(0.05)
    entry = zoo_class(net, {"arch": arch, "activation": activation, "num_classes": K})
    theirs = made(robustbench, entry.constructor)
    theirs.load_state_dict(entry.state, strict=True)
    assert all(v.is_contiguous() for v in entry.state.values())
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), net(x), atol=1e-5, rtol=1e-5)


def model_of_the_zoo(robustbench, constructor: str) -> nn.Module:
    """A class of robustbench's model_zoo/cifar10.py or cifar100.py, as its own source defines it.

    The files themselves import a dozen packages that these classes do not need.
    """
    module, name = constructor.partition("(")[0].split(".")
    package = importlib.util.find_spec("robustbench")
    assert package is not None and package.origin
    source = (Path(package.origin).parent / "model_zoo" / f"{module}.py").read_text()
    (found,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    resnet, wide = robustbench("resnet"), robustbench("wide_resnet")
    names = {"torch": torch, "WideResNet": wide.WideResNet, **vars(resnet)}
    exec(ast.unparse(found), names)
    return eval(constructor.partition(".")[2], names).eval()


@pytest.mark.parametrize(
    "arch, classes",
    [("prn-18-v1", 10), ("prn-18", 10), ("prn-18", 100), ("resnet-18", 7), ("wrn-16-2", 10),
     ("wrn-10-1", 100)],
)  # fmt: skip
def test_a_normalised_net_in_the_class_that_normalises(
    robustbench, tmp_path, capsys, arch, classes
):
    """Wong2020FastNet, the Rice2020 nets and others keep mu and sigma in their state dict."""
    torch.manual_seed(6)
    net = fastuiat.build_model(arch, classes).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", ".bias")):
            tensor.normal_(0, 0.1)
    torch.save({"net": net.state_dict()}, tmp_path / "net.pt")
    words = f"export {tmp_path / 'net.pt'} --format robustbench --arch {arch} --json"
    main([*words.split(), "--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6"])
    document = json.loads(capsys.readouterr().out)
    assert document["difference"] <= 1e-5
    theirs = model_of_the_zoo(robustbench, document["constructor"])
    theirs.load_state_dict(torch.load(document["path"], weights_only=True), strict=True)
    x = images(2)
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).view(2, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), net((x - mean) / std), atol=1e-5, rtol=1e-5)


def record(info: dict, attack: str, accuracy: float, n: int = 10_000, **more) -> dict:
    said = {"attack": attack, "accuracy": accuracy, "n": n, "checkpoint": info}
    return (
        said | ({} if attack == "clean" else {"eps_value": 8 / 255, "version": "standard"}) | more
    )


def test_model_info(exported, finished, tmp_path):
    out = tmp_path / "sub.pt"
    document, _ = exported("--format", "robustbench", "--out", str(out))
    path = Path(document["model_info"])
    assert path == tmp_path / "sub.json"
    fields = json.loads(path.read_text())
    assert fields["architecture"] == "WideResNet-10-1" and fields["dataset"] == "digits"
    assert fields["eps"] == "8/255" and fields["number_forward_passes"] == 1
    assert fields["additional_data"] is False and fields["unreliable"] is False
    blank = ["link", "name", "authors", "venue", "clean_acc", "reported", "autoattack_acc"]
    assert [k for k, v in fields.items() if v is None and k != "footnote"] == blank
    assert document["open_fields"] == blank
    info = fastuiat.load_checkpoint(finished)[1]
    others = dict(info, sha256="0"), dict(info, weights="raw")
    found = {
        "clean": record(info, "clean", 0.8501),
        "aa": record(info, "autoattack", 0.49114),
        "few": record(info, "clean", 1.0, n=1000),
        "part": record(info, "autoattack", 1.0, version="plus"),
        "radius": record(info, "autoattack", 1.0, eps_value=4 / 255),
        "other": record(others[0], "clean", 1.0),
        "a-raw": record(others[1], "autoattack", 1.0),
    }
    (finished / "eval").mkdir(exist_ok=True)
    for name, content in found.items():
        (finished / "eval" / f"{name}.json").write_text(json.dumps(content))
    try:
        path.write_text(json.dumps(fields | {"name": "Mine", "venue": "Here", "extra": 1}))
        document, _ = exported("--format", "robustbench", "--out", str(out))
        fields = json.loads(path.read_text())
        assert (fields["clean_acc"], fields["autoattack_acc"]) == ("85.01", "49.11")
        assert fields["reported"] == "49.11"
        assert (fields["name"], fields["venue"], fields["extra"]) == ("Mine", "Here", 1)
        assert document["open_fields"] == ["link", "authors"]
        # The accuracies are those of these weights alone, whatever stood there.
        document, _ = exported("--format", "robustbench", "--out", str(out), "--which", "last",
                               "--weights", "raw")  # fmt: skip
        fields = json.loads(path.read_text())
        assert fields["clean_acc"] is None and fields["name"] == "Mine"
    finally:
        for name in found:
            (finished / "eval" / f"{name}.json").unlink()


def test_generated_images_are_a_footnote():
    entry = zoo_class(
        fastuiat.build_model("wrn-10-1"),
        {"arch": "wrn-10-1", "activation": "relu", "num_classes": 10},
    )
    for extra, additional, noted in (("ddpm1m", False, True), ("my.npz", None, False)):
        fields = library.model_info(entry, {"dataset": "cifar10"}, [], eps=None, extra_data=extra)
        assert fields["additional_data"] is additional and bool(fields["footnote"]) is noted


def test_a_published_file_can_be_exported(robustbench, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mean = (0.1, 0.2, 0.3)
    net = fastuiat.build_model("dm-wrn-10-1", K, "silu").eval()
    state = {f"module.{k}": v for k, v in net.state_dict().items() if k not in ("mean", "std")}
    torch.save(state, "net.pt")
    words = "export net.pt --format robustbench --arch wrn-10-1 --json"
    main([*words.split(), "--mean", *map(str, mean), "--std", "1", "1", "0.5"])
    document = json.loads(capsys.readouterr().out)
    assert document["arch"] == "dm-wrn-10-1" and document["path"] == "export/net.pt"
    theirs = made(robustbench, document["constructor"])
    theirs.load_state_dict(torch.load(document["path"], weights_only=True), strict=True)
    net.mean.copy_(torch.tensor(mean).view(3, 1, 1))
    net.std.copy_(torch.tensor((1.0, 1.0, 0.5)).view(3, 1, 1))
    same_logits(net, theirs)


def said_by(words: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and err.startswith("fastuiat: ")
    return err


def test_refusals(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    best = finished / "checkpoints" / "best.pt"
    before = best.read_bytes()
    assert "is the checkpoint itself" in said_by(
        f"export {finished} --format robustbench --out {best}", capsys
    )
    assert "cannot be written" in said_by(
        f"export {finished} --format safetensors --out file/net", capsys
    )
    assert "--mean and --std go together" in said_by(
        f"export {finished} --format onnx --mean 0 0 0", capsys
    )
    assert "'zip'" in said_by(f"export {finished} --format zip", capsys)
    assert "not of a prn-18" in said_by(f"export {finished} --format onnx --arch prn-18", capsys)
    (tmp_path / "net.json").write_text("[1]")
    assert "is no model_info" in said_by(
        f"export {finished} --format robustbench --out net.pt", capsys
    )
    assert not (tmp_path / "net.pt").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'fastuiat[export]'" in said_by(f"export {finished} --format onnx", capsys)
    assert best.read_bytes() == before


def test_nets_without_a_class_name_the_formats_that_remain():
    silu = fastuiat.build_model("resnet-18", K, "silu")
    plain = Normalised(fastuiat.build_model("wrn-10-1", 7), torch.zeros(3), torch.ones(3))
    for net, arch, activation, front in (
        (silu, "resnet-18", "silu", "a resnet"), (plain, "wrn-10-1", "relu", "a normalisation in"),
    ):  # fmt: skip
        info = {"arch": arch, "activation": activation, "num_classes": 10 if net is silu else 7}
        said = rf"no class for {front}.*safetensors, onnx or torch-export"
        with pytest.raises(UserError, match=said):
            zoo_class(net, info)


def test_a_file_with_other_logits_is_not_written(finished, tmp_path, monkeypatch):
    net, info = fastuiat.load_checkpoint(finished)

    def broken(net, info):
        state = {k: v.contiguous() for k, v in net.state_dict().items()}
        return library.safetensors.torch.save(state | {"fc.bias": state["fc.bias"] + 1e-3})

    monkeypatch.setattr(library, "safetensors_bytes", broken)
    with pytest.raises(UserError, match=r"gives other logits, by 1\.0e-03: not written"):
        library.export(net, info, "safetensors", tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
