from __future__ import annotations

import threading

import pytest

from tokpipe.storage.read_ahead import read_ahead


@pytest.mark.parametrize("num_ahead", [0, 1, 3, 100])
def test_results_come_in_order_and_not_too_far_ahead(num_ahead: int) -> None:
    started: list[int] = []
    lock = threading.Lock()

    def task(item: int) -> int:
        with lock:
            started.append(item)
        return item * item

    results = read_ahead(task, range(20), num_ahead)
    for item in range(20):
        assert next(results) == item * item
        assert max(started) <= item + num_ahead
    assert list(results) == []


def test_an_error_is_raised_where_its_result_would_be() -> None:
    results = read_ahead(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_waits_for_nothing() -> None:
    started: list[int] = []
    results = read_ahead(started.append, range(1000), 1)
    next(results)
    results.close()
    assert len(started) < 4
