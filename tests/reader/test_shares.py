"""Readers share several sources: every item once, in proportion at any moment."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.reader.order import Remaining, Share, quotas


def of_sizes(sizes: list[int], seed: int = 0) -> Remaining:
    return Remaining(sizes, [0] * len(sizes), [[]] * len(sizes), seed)


def items_of(share: Share, number: int | None = None) -> list[tuple[int, int]]:
    """(source, position) of the first ``number`` items that a reader takes, or of all."""
    counts = share.counts(0)
    found = []
    for _ in range(len(share) if number is None else number):
        source, position = share.item(counts)
        found.append((source, position))
        counts[source] += 1
        assert share.counts(len(found)) == counts, "a search and a walk agree"
    return found


@given(st.lists(st.integers(0, 25), min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_any_numbers_of_readers_take_every_item_once(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    left, seen = of_sizes(sizes, seed), []
    for _ in range(data.draw(st.integers(0, 4))):
        number = data.draw(st.integers(1, 7))
        shares = [Share(left, reader, number) for reader in range(number)]
        assert sum(map(len, shares)) == len(left)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        taken = [data.draw(st.integers(0, len(share))) for share in shares]
        for share, count in zip(shares, taken, strict=True):
            seen += items_of(share, count)
        left = left.after(taken)
        assert len(left) == sum(sizes) - len(seen)
    seen += items_of(Share(left, 0, 1))
    assert sorted(seen) == [(k, item) for k, size in enumerate(sizes) for item in range(size)]


@pytest.mark.parametrize(
    "weights", [[1, 1], [7, 3], [0.9, 0.1], [0.999, 0.001], [6, 3, 1], [4, 3, 2, 0.5, 0.5]], ids=str
)
@pytest.mark.parametrize("num_readers", [1, 2, 3, 8, 13, 24])
def test_every_reader_is_in_proportion_at_any_moment(weights: Any, num_readers: int) -> None:
    per_reader = 600
    left = of_sizes(quotas(weights, per_reader * num_readers))
    due = np.outer(np.arange(1, per_reader + 1), np.array(weights) / sum(weights))
    together = np.zeros_like(due)
    for reader in range(num_readers):
        share = Share(left, reader, num_readers)
        counts, taken = share.counts(0), np.zeros_like(due)
        for row in taken:
            counts[share.item(counts)[0]] += 1
            row[:] = counts
        assert np.abs(taken - due).max() < 2.5, "too many or too few clips"
        together += taken
    # All readers together, after every round: batches over all ranks are in proportion.
    assert np.abs(together - num_readers * due).max() < 2.5 + num_readers / 4


def test_a_state_far_into_an_epoch_is_found_by_search() -> None:
    left = of_sizes([70_000_000_000, 30_000_000_001], seed=5)
    share = Share(left, 3, 7)
    counts = share.counts(10_000_000_000)
    assert sum(counts) == 10_000_000_000
    assert abs(counts[0] - 7_000_000_000) < 3
    for _ in range(10):
        counts[share.item(counts)[0]] += 1
    assert counts == share.counts(10_000_000_010)
    with pytest.raises(ValueError, match=r"cannot have taken 11 of 10 items"):
        Share(of_sizes([7, 3]), 0, 1).counts(11)


def test_readers_of_equal_speed_leave_few_pending_items() -> None:
    left = of_sizes([700_000, 300_000]).after([10_000] * 24)
    assert sum(map(len, left.pending)) < 24 * 5
    taken = [end - size for end, size in zip(left.ends, left.sizes, strict=True)]
    assert taken == pytest.approx([168_000, 72_000], abs=10)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.integers(0, 10_000))
def test_quotas_are_integers_next_to_what_is_due(weights: list[float], number: int) -> None:
    found = quotas(weights, number)
    assert sum(found) == number
    for weight, one in zip(weights, found, strict=True):
        assert abs(one - number * weight / sum(weights)) < 1 + 1e-6


def test_orders_never_change() -> None:
    # Fixed here, because a run that resumes years later must find the same.
    shares = [Share(of_sizes([6, 3], seed=1), reader, 2) for reader in range(2)]
    assert [items_of(share) for share in shares] == [
        [(0, 0), (1, 0), (0, 2), (0, 4), (1, 2)],
        [(0, 1), (0, 3), (1, 1), (0, 5)],
    ]
    assert quotas([1, 2], 10) == quotas([0.25, 0.5], 10) == [3, 7]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_are_not_positive_numbers_are_rejected(weight: float) -> None:
    with pytest.raises(ValueError, match="each must be finite and above 0"):
        quotas([1, weight], 10)
