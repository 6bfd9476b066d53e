"""The watch reports the epoch in which PGD accuracy collapses, once, across a resume as well."""

from __future__ import annotations

import torch

from fastuiat.training.catastrophic import CatastrophicWatch

CPU = torch.device("cpu")


def run(watch, epochs, first=1):
    """epochs: (accuracies of the steps on x̂, validation accuracy) each."""
    found = []
    for epoch, (steps, val_robust) in enumerate(epochs, start=first):
        for accuracy in steps:
            watch.see({"robust_accuracy": torch.tensor(accuracy)})
        if watch.judge(epoch, val_robust):
            found.append(epoch)
    return found


def test_collapse_is_reported_once_in_its_epoch():
    epochs = [([0.2, 0.3], 0.3), ([0.4, 0.4], 0.4), ([0.9, 0.7], 0.1), ([0.9, 0.95], 0.0)]
    watch = CatastrophicWatch(10, CPU)
    assert run(watch, epochs) == [3]
    assert watch.epoch == 3


def test_across_a_resume():
    first, second = CatastrophicWatch(10, CPU), CatastrophicWatch(10, CPU)
    run(first, [([0.2], 0.4)])
    first.see({"robust_accuracy": torch.tensor(0.1)})  # stopped inside the epoch
    second.restore(first.state())
    assert run(second, [([0.5], 0.1)], first=2) == [2]
    third = CatastrophicWatch(10, CPU)
    third.restore(second.state())
    assert run(third, [([0.9], 0.0)], first=3) == []


def test_a_net_that_never_withstood_pgd():
    epochs = [([0.1, 0.3], 0.0), ([0.4, 0.5], 0.08), ([0.7, 0.9], 0.03), ([0.95], 0.02)]
    assert run(CatastrophicWatch(10, CPU), epochs) == [3]
    assert run(CatastrophicWatch(10, CPU), [([0.98], 0.03)]) == [1]
    hundred = [([0.3], 0.01), ([0.6], 0.01)]
    assert run(CatastrophicWatch(100, CPU), hundred) == [2]


def test_what_is_no_catastrophe():
    for epochs in (
        [([0.4], 0.4), ([0.3], 0.1)],  # the training accuracy falls with it
        [([0.3], 0.4), ([0.4], 0.2)],  # exactly half is no collapse
        [([0.1], 0.15), ([0.2], 0.05)],  # never much above chance
        [([0.3], 0.4), ([0.4], None)],  # not validated
        [([], 0.4), ([], 0.0)],  # a method that does not attack
        [([0.45], 0.02), ([0.49], 0.1)],  # its own attack is not learnt either
        [([0.6], 0.16), ([0.99], 0.4)],  # overfitting, of the robust kind
    ):
        assert run(CatastrophicWatch(10, CPU), epochs) == []
