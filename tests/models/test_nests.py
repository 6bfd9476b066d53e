"""Of several nets in a file the one that is meant is taken, and what was chosen is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastuiat
from fastuiat.config import UserError

sys.path.insert(0, str(Path(__file__).parent))
from published_nets import ARCH, net_of

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def raw() -> State:
    return net_of(1).state_dict()


@pytest.fixture(scope="module")
def average() -> State:
    return net_of(2).state_dict()


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
        # A LightningModule that holds torch's AveragedModel beside its net.
        {
            "state_dict": prefixed(raw, "model.")
            | prefixed(average, "ema_model.module.")
            | {"ema_model.n_averaged": torch.tensor(5)}
        },
        prefixed(raw, "net.") | prefixed(average, "a.module.") | {"a.n_averaged": torch.ones(1)},
    ):
        content.pop("step", None)
        assert is_same(loaded(content)[0], average)
        state, info = loaded(content, weights="raw")
        assert is_same(state, raw) and info["left_out"]


def test_torchs_own_averaged_model(loaded, raw):
    model = net_of(3)
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
    model = net_of(1)
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


@pytest.mark.parametrize(
    "name", ["sma", "exponential_average", "mean_teacher", "ema_teacher", "teacher_ema"]
)
def test_further_names_of_averages(loaded, raw, average, name):
    state, info = loaded({"state_dict": raw, name: average})
    assert is_same(state, average) and info["weights"] == "averaged"
    assert not any("not taken" in note for note in info["notes"])
    assert is_same(loaded({"state_dict": raw, name: average}, weights="raw")[0], raw)


@pytest.mark.parametrize(
    "name", ["model_wo_ema", "model_before_swa", "pre_ema", "net_without_ema", "noema_model"]
)
def test_a_net_that_is_no_average_by_its_name(loaded, raw, average, name):
    state, info = loaded({name: raw, "model": average})
    assert is_same(state, average) and info["weights"] == "averaged"
    assert is_same(loaded({name: raw, "model_ema": average}, weights="raw")[0], raw)


@pytest.mark.parametrize(
    "name",
    ["target", "target_net", "momentum_model", "slow_model", "mt_model", "smoothed", "swag",
     "lookahead", "eval_model", "tau_0.995", "teacher"],
)  # fmt: skip
def test_another_net_of_the_same_shape_is_said(loaded, raw, average, name):
    state, info = loaded({"state_dict": raw, name: average, "epoch": 3})
    assert is_same(state, raw) and name in info["left_out"]
    assert f"{name} is another net of this shape: not taken" in info["notes"]
    _, info = loaded({"state_dict": raw, name: raw})
    assert not any("not taken" in note for note in info["notes"])


def test_partners_are_not_said_and_an_average_beside_the_best_is(loaded, raw, average):
    for content in (
        {"best": raw, "last": average},
        {"best_state_dict": raw, "state_dict": average},
        {"state_dict": raw, "model_ema": average},
        {"best_ema": raw, "ema": average, "best": average, "model": average},
    ):
        for said in ({}, {"which": "last"}, {"weights": "raw"}):
            notes = " ".join(loaded(content, **said)[1]["notes"])
            assert "not taken" not in notes, (content.keys(), said)
    state, info = loaded({"best": raw, "ema": average})
    assert is_same(state, raw) and "ema is an averaged net: not taken" in info["notes"]


def test_all_that_was_left_out_is_listed_and_a_dozen_shown(loaded, raw):
    beside = {"epoch": 3, "best_acc": 0.5, "args": None, "optimizer": {"s": torch.ones(3, 3, 3, 3)}}
    _, info = loaded(raw | beside)
    assert info["left_out"] == list(beside)
    _, info = loaded({"a": {"state_dict": raw, "optim": {"x": 1}, "lr": 3}, "b": 1})
    assert sorted(info["left_out"]) == ["a.lr", "a.optim", "b"]
    _, info = loaded({"state_dict": raw, "delta": torch.ones(10, 3, 32, 32)})
    assert info["left_out"] == ["delta"]
    _, info = loaded({"net": raw} | {f"k{i}": i for i in range(30)})
    assert len(info["left_out"]) == 30
    assert "k11 and 18 more" in info["taken"] and "k12" not in info["taken"]


def test_a_net_under_a_number(loaded, raw, average):
    state, info = loaded({0: raw, 1: 3})
    assert is_same(state, raw) and (info["nest"], info["left_out"]) == ("0", ["1"])
    with pytest.raises(UserError, match=r"several nets \(0, 1\).*\[0\]"):
        loaded({0: raw, 1: average})


def test_what_the_common_class_of_averages_keeps_beside_them(loaded, raw, average):
    counters = {"initted": torch.tensor(True), "step": torch.tensor(3)}
    content = prefixed(raw, "online_model.") | prefixed(average, "ema_model.") | counters
    assert is_same(loaded(content)[0], average)
    state, info = loaded(content, weights="raw")
    assert is_same(state, raw) and {*counters} <= {*info["left_out"]}


def test_several_averages_and_one_that_averages_nothing_yet(loaded, raw, average):
    with pytest.raises(UserError, match=r"several nets \(emas\.0\.99, emas\.0\.999\)"):
        loaded({"model": raw, "emas": {"0.99": average, "0.999": net_of(3).state_dict()}})
    fresh = AveragedModel(net_of(3), use_buffers=True)
    _, info = loaded({"model": raw, "swa_model": fresh.state_dict()})
    assert info["weights"] == "averaged"
    assert any("averages nothing yet" in note for note in info["notes"])
    fresh.update_parameters(net_of(3))
    _, info = loaded({"model": raw, "swa_model": fresh.state_dict()})
    assert not any("averages nothing" in note for note in info["notes"])
