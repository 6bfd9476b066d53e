"""The order of samples: exact counts, no repeats, whole cycles, pure in (seed, epoch)."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastuiat.config import UserError
from fastuiat.data import Order, order, validation_split


def plain(seed, train_index, batch_size):
    return Order(seed=seed, train_index=train_index, batch_size=batch_size)


def mixed(num=97, batch_size=20, num_extra=500, share=0.3, seed=0, **more):
    return Order(
        seed=seed,
        train_index=np.arange(num),
        batch_size=batch_size,
        num_extra=num_extra,
        first_extra=num,
        extra_share=share,
        **more,
    )


@given(num=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_plain_epochs_are_permutations(num, batch, seed):
    if batch > num:
        with pytest.raises(UserError, match="--batch-size"):
            plain(seed, np.arange(num), batch)
        return
    epoch = plain(seed, np.arange(num) * 3, batch)
    batches = epoch.batches(2)
    assert batches.shape == (num // batch, batch) == (epoch.steps_per_epoch, batch)
    assert len(np.unique(batches)) == batches.size and np.isin(batches, epoch.train_index).all()
    np.testing.assert_array_equal(batches, plain(seed, np.arange(num) * 3, batch).batches(2))


def test_epochs_and_seeds_differ():
    one = plain(0, np.arange(100), 10)
    assert (one.batches(1) != one.batches(2)).any()
    assert (one.batches(1) != plain(1, np.arange(100), 10).batches(1)).any()


@given(
    batch=st.integers(2, 30),
    spare=st.integers(0, 60),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    seed=st.integers(0, 99),
    first=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_mixed_batches(batch, spare, share, seed, first):
    generated = round(batch * share)
    num = batch - generated + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "IMAGES_PER_MIXED_EPOCH", 157)
        mix = mixed(num, batch, 40, share, seed)
        epochs = [mix.batches(e) for e in range(first, first + 3)]
        again = mixed(num, batch, 40, share, seed).batches(first + 1)
    np.testing.assert_array_equal(epochs[1], again)
    assert epochs[0].shape == (-(-157 // batch), batch)
    rows = np.concatenate(epochs)
    assert all(len(set(row)) == batch for row in rows.tolist())
    assert ((rows >= num).sum(axis=1) == generated).all()
    assert rows.min() >= 0 and rows.max() < num + 40
    stream = rows[:, : batch - generated].reshape(-1)
    start = (first - 1) * (-(-157 // batch)) * (batch - generated)
    for border in range(-start % num, len(stream) - num + 1, num):
        assert len(set(stream[border : border + num])) == num


def test_a_deferred_sample_comes_in_the_next_batch():
    mix = mixed(num=10, batch_size=5, share=0.2, num_extra=9)  # 4 originals of 10
    deferred = 0
    for cycle in range(1, 200, 2):  # two samples of the previous cycle share the first batch
        tail, raw = mix._shuffled(cycle - 1)[-2:], mix._shuffled(cycle)
        late = [i for i in raw[:2] if i in tail]
        (ordered,) = mix._cycles(cycle, cycle)
        assert set(late) <= set(ordered[2:6])
        deferred += len(late)
    assert deferred


def test_generated_are_drawn_anew_from_the_whole_pool():
    mix = mixed(num=2000, batch_size=500, num_extra=3000, share=0.5)
    drawn = mix.batches(1)[:, 250:]
    counts = np.bincount(drawn.reshape(-1) - 2000, minlength=3000)
    assert counts.min() > 0 and counts.max() > counts.min()
    assert (mix.batches(2)[:, 250:] != drawn).any()


def test_the_papers_mix_is_fast_at_epoch_400():
    mix = mixed(num=48_976, batch_size=512, num_extra=1_000_000, share=0.7)
    assert (mix.steps_per_epoch, mix.extra_per_batch) == (98, 358)
    begin = time.perf_counter()
    assert mix.batches(400).shape == (98, 512)
    assert time.perf_counter() - begin < 2


def test_ranks_partition_each_batch():
    whole = mixed(batch_size=20).batches(3)
    parts = [mixed(batch_size=20, rank=r, world=4).batches(3) for r in range(4)]
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[:, rank::4])
    with pytest.raises(UserError, match="3 ranks"):
        mixed(batch_size=20, world=3)


@pytest.mark.parametrize("wrong", [{"num_extra": 5}, {"num": 13}])
def test_impossible_mixes(wrong):
    with pytest.raises(UserError):
        mixed(**wrong)


def test_validation_split():
    train, val = validation_split(100, 30, seed=0)
    assert (len(train), len(val)) == (70, 30) and train.dtype == val.dtype == np.int64
    assert sorted([*train, *val]) == list(range(100))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    np.testing.assert_array_equal(val, validation_split(100, 30, seed=0)[1])
    assert (val != validation_split(100, 30, seed=1)[1]).any()
    assert len(validation_split(100, 0, seed=0)[1]) == 0
    for size in (100, 101):
        with pytest.raises(UserError, match="--val-size"):
            validation_split(100, size, seed=0)


def test_a_part_to_train_on():
    """It is no matter of the validation part, and a larger one holds the smaller."""
    whole, val = validation_split(100, 30, seed=0)
    parts = [validation_split(100, 30, seed=0, train_size=size) for size in (1, 40, 70)]
    assert [len(train) for train, _ in parts] == [1, 40, 70]
    assert set(parts[0][0]) < set(parts[1][0]) < set(parts[2][0]) == set(whole)
    assert all(np.array_equal(own, val) for _, own in parts)
    with pytest.raises(UserError, match="--train-size 71 is more than the 70"):
        validation_split(100, 30, seed=0, train_size=71)
