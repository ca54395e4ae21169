import pytest

from tokpipe.storage.read_ahead import read_ahead


@pytest.mark.parametrize("num_ahead", [0, 1, 3, 100])
def test_results_are_in_order_and_tasks_do_not_run_too_far_ahead(num_ahead: int) -> None:
    started: list[int] = []

    def task(item: int) -> int:
        started.append(item)
        return item * item

    results = read_ahead(task, range(20), num_ahead)
    for item in range(20):
        assert next(results) == item * item
        assert max(started) <= item + num_ahead
    assert list(results) == []


def test_an_error_is_raised_in_place_of_its_result() -> None:
    results = read_ahead(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_early_cancels_the_remaining_tasks() -> None:
    started: list[int] = []
    results = read_ahead(started.append, range(1000), 1)
    next(results)
    results.close()
    assert len(started) < 4
