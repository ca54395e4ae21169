"""Which calls are replayed, and only once checked. Captures here are plain calls."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.models.graphs import CAPTURED_AT, MOST_SHAPES, Call, GraphedCall


class Captures:
    """Captures as a GPU would, with one input and one output at fixed addresses."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.made: Counter[tuple[int, ...]] = Counter()
        self.replayed: Counter[tuple[int, ...]] = Counter()
        self.wrong = wrong

    def __call__(self, call: Call, x: Tensor) -> Call:
        self.made[tuple(x.shape)] += 1
        given, result = x.clone(), torch.empty_like(call(x))

        def replay(x: Tensor) -> Tensor:
            self.replayed[tuple(x.shape)] += 1
            given.copy_(x)
            result.copy_(call(given) + self.wrong)
            return result.clone()

        return replay


def double(x: Tensor) -> Tensor:
    return x * 2


def test_recurring_shapes_are_replayed() -> None:
    captures = Captures()
    graphed = GraphedCall(double, captures)
    results = []
    for number in range(CAPTURED_AT + 4):
        x = torch.full((3,), float(number))
        results.append((graphed(x), x))
        graphed(torch.zeros(number + 10))  # never twice
    for result, x in results:
        assert torch.equal(result, x * 2), "results are copies"
    assert captures.made == {(3,): 1}
    assert captures.replayed == {(3,): 1 + 4}


def test_the_most_recently_used_graphs_are_kept() -> None:
    captures = Captures()
    graphed = GraphedCall(double, captures)
    for size in range(1, MOST_SHAPES + 2):
        for _ in range(CAPTURED_AT + 1):
            graphed(torch.zeros(size))
    before = captures.made[(1,)]
    for _ in range(CAPTURED_AT):
        graphed(torch.zeros(1))
    assert captures.made[(1,)] == before + 1, "it had gone, and was made again"
    assert captures.made[(MOST_SHAPES + 1,)] == 1


def not_permitted(call: Call, x: Tensor) -> Call:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("capture", "problem"),
    [(Captures(wrong=1.0), "its results differ"), (not_permitted, "not permitted")],
)
def test_a_graph_that_fails_or_differs_is_not_used(
    capture: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphed = GraphedCall(double, capture)
    for _ in range(CAPTURED_AT + 3):
        assert torch.equal(graphed(torch.ones(2)), torch.full((2,), 2.0))
    assert caplog.text.count(problem) == 1


def test_errors_of_the_call_pass_through() -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    graphed = GraphedCall(fails, Captures())
    for _ in range(CAPTURED_AT + 1):
        with pytest.raises(torch.OutOfMemoryError):
            graphed(torch.ones(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_replays_give_the_bits_of_calls() -> None:
    convolution = torch.nn.Conv2d(3, 8, 3).cuda().requires_grad_(False)
    graphed = GraphedCall(convolution)
    for number in range(CAPTURED_AT + 4):
        x = torch.full((2, 3, 16, 16), float(number), device="cuda")
        assert torch.equal(graphed(x), convolution(x))
    assert all(graphed._graphs.values())
