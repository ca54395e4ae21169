"""Which calls are replayed, and only once checked. Captures here are plain calls."""

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from tokpipe.errors import NodeTrouble
from tokpipe.models.graphs import (
    CAPTURED_AT,
    MOST_SHAPES,
    Call,
    Cost,
    CudaGraphs,
    GraphedCall,
)


class Captures(CudaGraphs):
    """Captures as a GPU would, with one input and one output at fixed addresses."""

    most_bytes = 100.0

    def __init__(self, *, wrong: float = 0.0, launch_s: float = 1.0, num_bytes: int = 1) -> None:
        self.made: Counter[tuple[int, ...]] = Counter()
        self.replayed: Counter[tuple[int, ...]] = Counter()
        self.wrong = wrong
        self.cost = Cost(launch_s, 1.0, num_bytes)
        self.is_sound = True

    def measured(self, call: Call, x: Tensor) -> tuple[Tensor, Cost]:
        return call(x), self.cost

    def captured(self, call: Call, x: Tensor) -> Call:
        self.made[tuple(x.shape)] += 1
        given, result = x.clone(), torch.empty_like(call(x))

        def replay(x: Tensor) -> Tensor:
            self.replayed[tuple(x.shape)] += 1
            given.copy_(x)
            result.copy_(call(given) + self.wrong)
            return result.clone()

        return replay

    def works(self) -> bool:
        return self.is_sound


class Failing(Captures):
    def captured(self, call: Call, x: Tensor) -> Call:
        self.made[tuple(x.shape)] += 1
        raise RuntimeError("operation not permitted when stream is capturing")


def double(x: Tensor) -> Tensor:
    return x * 2


def call_with(graphed: GraphedCall, sizes: Iterable[int], times: int = CAPTURED_AT + 1) -> None:
    for size in sizes:
        for _ in range(times):
            assert torch.equal(graphed(torch.ones(size)), torch.full((size,), 2.0))


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
    assert graphed.state == f"on for 1 of {1 + CAPTURED_AT + 4} shapes"


@pytest.mark.parametrize("num_shapes", [9, 20])
def test_no_shape_is_captured_twice_however_many_there_are(num_shapes: int) -> None:
    captures = Captures()
    graphed = GraphedCall(double, captures)
    for _ in range(3000 // num_shapes):
        call_with(graphed, range(1, num_shapes + 1), times=1)
    assert sum(captures.made.values()) == MOST_SHAPES
    assert set(captures.made.values()) == {1}


@pytest.mark.parametrize(
    ("captures", "num_made", "why"),
    [
        (Captures(launch_s=0.1), 0, "kernels run for longer"),
        (Captures(num_bytes=101), 0, "too much memory"),
        (Captures(num_bytes=30), 3, "on for 3 of 5"),
    ],
    ids=["launches hide behind kernels", "one is too large", "their sum is bounded"],
)
def test_graphs_are_made_only_where_they_gain_and_fit(
    captures: Captures, num_made: int, why: str
) -> None:
    graphed = GraphedCall(double, captures)
    call_with(graphed, range(1, 6))
    assert len(captures.made) == num_made
    assert why in graphed.state


@pytest.mark.parametrize(
    ("captures", "problem"), [(Captures(wrong=1.0), "a graph differ"), (Failing(), "not permitted")]
)
def test_after_a_graph_that_fails_or_differs_none_is_made(
    captures: Captures, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphed = GraphedCall(double, captures)
    call_with(graphed, (2, 3))
    assert caplog.text.count(problem) == 1
    assert problem in graphed.state
    assert sum(captures.made.values()) == 1


def test_a_failed_capture_that_breaks_the_device_ends_the_process() -> None:
    captures = Failing()
    captures.is_sound = False
    with pytest.raises(NodeTrouble, match="which is replaced"):
        call_with(GraphedCall(double, captures), [2])


def test_dropped_graphs_are_not_made_again() -> None:
    captures = Captures()
    graphed = GraphedCall(double, captures)
    assert not graphed.drop("no")
    graphed = GraphedCall(double, captures)
    call_with(graphed, [2])
    assert graphed.drop("memory was needed")
    call_with(graphed, [2, 3])
    assert captures.made == {(2,): 1}


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
    graphed = GraphedCall(convolution, CudaGraphs(torch.device("cuda")))
    for number in range(CAPTURED_AT + 4):
        x = torch.full((2, 3, 16, 16), float(number), device="cuda")
        assert torch.equal(graphed(x), convolution(x))
    assert graphed.state.startswith("on")
