"""Of several nets in a file the one that is meant is taken, and what was chosen is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastuiat
from fastuiat.config import UserError

ARCH = "wrn-10-1"
State = dict[str, torch.Tensor]


def net(seed: int) -> nn.Module:
    """With BatchNorm statistics of its own."""
    torch.manual_seed(seed)
    made = fastuiat.build_model(ARCH).eval()
    for name, buffer in made.named_buffers():
        if buffer.is_floating_point():
            buffer.normal_(0, 0.1) if name.endswith("mean") else buffer.uniform_(0.5, 1.5)
    return made


@pytest.fixture(scope="module")
def raw() -> State:
    return net(1).state_dict()


@pytest.fixture(scope="module")
def average() -> State:
    return net(2).state_dict()


@pytest.fixture
def loaded(tmp_path):
    """loaded(content, …) -> (the state dict that was taken, info)."""

    def load(content: Any, **said: Any) -> tuple[State, dict[str, Any]]:
        torch.save(content, tmp_path / "net.pt")
        model, info = fastuiat.load_checkpoint(tmp_path / "net.pt", ARCH, **said)
        return model.state_dict(), info

    return load


def is_same(state: State, expected: State) -> bool:
    return all(torch.equal(state[key], expected[key]) for key in state)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


AVERAGED = [
    "state_dict_ema", "ema", "model_ema", "ema_state_dict", "ema_model", "swa", "swa_state_dict",
    "avg_model", "wa", "averaged", "shadow", "ema_shadow", "model_swa", "netEMA", "ema_0.999",
    "averaged_model_state_dict", "polyak",
]  # fmt: skip
RAW = [
    "state_dict", "model", "net", "model_state_dict", "weights", "params", "network", "classifier",
    "model_state",
]  # fmt: skip


@pytest.mark.parametrize("name", AVERAGED)
def test_an_averaged_net_by_any_name(loaded, raw, average, name):
    for content in (
        {"state_dict": raw, name: average, "epoch": 7},
        {name: prefixed(average, "module."), "model": prefixed(raw, "module."), "acc": 0.5},
        {"epoch": 1, "state": {"net": raw, name: average}},
        {"checkpoint": {"net": raw}, name: {"module": average, "decay": 0.999}},
    ):
        state, info = loaded(content)
        assert is_same(state, average) and info["weights"] == "averaged", info
        assert name in info["nest"] and name in info["taken"] and info["chosen"] == []
        state, info = loaded(content, weights="raw")
        assert is_same(state, raw) and info["weights"] == "raw" and info["chosen"] == ["raw"]
        assert any(name in left for left in info["left_out"])


@pytest.mark.parametrize("name", RAW)
def test_a_raw_net_by_any_name(loaded, raw, average, name):
    state, info = loaded({name: raw, "optimizer": {"state": {0: {"momentum": average}}}})
    assert is_same(state, raw) and (info["nest"], info["weights"]) == (name, "raw")
    assert info["left_out"] == ["optimizer"]


def test_the_average_that_a_file_calls_its_model(loaded, raw, average):
    """As the public trainer of the DeepMind line writes it."""
    content = {"model_state_dict": average, "unaveraged_model_state_dict": raw}
    assert is_same(loaded(content)[0], average)
    assert is_same(loaded(content, weights="raw")[0], raw)


def test_averages_that_prefixes_set_apart(loaded, raw, average):
    for content in (
        {"state_dict": prefixed(raw, "model.") | prefixed(average, "model_ema.")},
        prefixed(raw, "online_model.") | prefixed(average, "ema_model.") | {"step": torch.ones(1)},
        raw | {"ema": average},
    ):
        content.pop("step", None)
        assert is_same(loaded(content)[0], average)
        state, info = loaded(content, weights="raw")
        assert is_same(state, raw) and info["left_out"]


def test_torchs_own_averaged_model(loaded, raw):
    model = net(3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(model)
    state, info = loaded(averaged.state_dict())
    assert is_same(state, averaged.module.state_dict())
    assert info["weights"] == "averaged" and info["left_out"] == ["n_averaged"]
    state, info = loaded({"net": raw, "swa": averaged.state_dict()}, weights="raw")
    assert is_same(state, raw)
    with pytest.raises(UserError, match=r"averaged net alone.*leave --weights raw out"):
        loaded({"swa": averaged.state_dict()}, weights="raw")


def test_an_average_of_parameters_alone_takes_the_raw_nets_statistics(loaded, raw):
    """As the common class of thirty lines keeps it, in `shadow`, by the parameters' names."""
    model = net(1)
    shadow = {name: 0.5 * p.data for name, p in model.named_parameters()}
    state, info = loaded({"model": raw, "ema": {"decay": 0.99, "shadow": shadow}})
    assert is_same(state, raw | shadow)
    assert any("BatchNorm statistics: those of model" in note for note in info["notes"])
    with pytest.raises(UserError, match=r"running_mean.* do not fit wrn-10-1$"):
        loaded({"ema": shadow})


def test_best_and_last(loaded, raw, average):
    for content in (
        {"best": raw, "last": average},
        {"last": {"state_dict": average}, "best": {"state_dict": raw}},
        {"best_state_dict": raw, "state_dict": average},
        {"model_best": raw, "model_last": average, "epoch": 3},
    ):
        state, info = loaded(content)
        assert is_same(state, raw) and info["which"] == "best" and info["chosen"] == []
        state, info = loaded(content, which="last")
        assert is_same(state, average) and info["which"] == "last" and info["chosen"] == ["last"]
    state, info = loaded({"best": {"net": raw, "ema": average}, "last": {"net": average}})
    assert is_same(state, average) and info["nest"] == "best.ema"
    _, info = loaded({"net": raw}, which="last")
    assert info["which"] is None and any("one net only" in note for note in info["notes"])


def test_two_nets_of_which_neither_is_named_are_refused(loaded, raw, average):
    with pytest.raises(UserError, match=r"several nets \(net1, net2\).*\['net1'\]"):
        loaded({"net1": raw, "net2": average})
    with pytest.raises(UserError, match=r"several nets \(net1, net2\)") as refused:
        loaded(prefixed(raw, "net1.") | prefixed(average, "net2."))
    line = str(refused.value).partition("keep the one that is meant, as ")[2].partition(" does")[0]
    kept: list[State] = []
    exec(line.replace("torch.save(", "keep(").replace(", NEW)", ")"),
         {"torch": torch, "keep": kept.append})  # fmt: skip
    assert is_same(kept[0], raw)
    assert is_same(loaded({"net1": raw, "net2": dict(raw)})[0], raw)
    state, info = loaded({"model": raw, "teacher": average})
    assert is_same(state, raw) and info["left_out"] == ["teacher"]
    other = fastuiat.build_model("resnet-18").state_dict()
    assert is_same(loaded({"generator": other, "student": raw})[0], raw)


def test_an_average_without_names_is_said(loaded, raw):
    """As torch-ema stores it: a list in the order of the parameters."""
    ema = {"decay": 0.99, "shadow_params": [v for v in raw.values() if v.ndim], "num_updates": 3}
    state, info = loaded({"model": raw, "ema": ema})
    assert is_same(state, raw) and info["weights"] == "raw" and info["left_out"] == ["ema"]
    assert any("ema.shadow_params is an average without names" in note for note in info["notes"])


def test_a_claimed_size_takes_no_memory(loaded, raw):
    """An expanded view of one number stands for ten million classes."""
    huge = {"fc.weight": torch.zeros(1).expand(10**7, 64), "fc.bias": torch.zeros(1).expand(10**7)}
    with pytest.raises(UserError, match=r"damaged: fc.* claims \d+ values and holds 1"):
        loaded(raw | huge)


def test_arrays_are_weights_too(loaded, raw):
    assert is_same(loaded({"params": {k: v.numpy() for k, v in raw.items()}})[0], raw)
