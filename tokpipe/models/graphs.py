"""Replays calls on a GPU as CUDA graphs: one launch in place of hundreds of small kernels."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

Call = Callable[[Tensor], Tensor]

MOST_SHAPES = 8
"""Graphs that are kept, the most recently used. Each holds its input and result; they share the
memory in between, since no two run at once."""

CAPTURED_AT = 3  # Calls with one shape after which it is captured


class GraphedCall:
    """``call`` with one tensor, replayed as a graph for shapes that recur.

    A graph is only used if it reproduced the bits of ``call`` when captured. Otherwise, and where
    capturing fails, that shape is called directly. Results are copies, which the next replay does
    not change.
    """

    def __init__(self, call: Call, capture: Callable[[Call, Tensor], Call] | None = None) -> None:
        """``capture`` makes a replaying function from a call and its first input, for tests."""
        self._call = call
        self._capture = capture or _Capture()
        self._counts: Counter[tuple[torch.Size, torch.dtype]] = Counter()
        self._graphs: OrderedDict[tuple[torch.Size, torch.dtype], Call | None] = OrderedDict()
        """By shape; None where capturing failed."""

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """The result of ``call(x)``; raises what it raises."""
        shape = x.shape, x.dtype
        self._counts[shape] += 1
        if shape not in self._graphs:
            result = self._call(x)
            if self._counts[shape] >= CAPTURED_AT:
                self._keep(shape, self._captured(x, result))
            return result
        self._graphs.move_to_end(shape)
        replay = self._graphs[shape]
        return self._call(x) if replay is None else replay(x)

    def _captured(self, x: Tensor, wanted: Tensor) -> Call | None:
        try:
            replay = self._capture(self._call, x)
            if torch.equal(replay(x), wanted):
                return replay
            problem = "its results differ"
        except Exception as error:  # out of memory, or an operation that a graph cannot hold
            problem = f"{type(error).__name__}: {error}"
        _log.warning("shape %s is not replayed as a graph: %s", tuple(x.shape), problem)
        return None

    def _keep(self, shape: tuple[torch.Size, torch.dtype], replay: Call | None) -> None:
        self._graphs[shape] = replay
        if len(self._graphs) > MOST_SHAPES:
            forgotten, _ = self._graphs.popitem(last=False)
            self._counts[forgotten] = 0


class _Capture:
    """Captures CUDA graphs that share their intermediate memory.

    Source: PyTorch's notes on CUDA graphs: a warm-up on a side stream, then the capture.
    """

    def __init__(self) -> None:
        self._pool: Any = None  # PyTorch does not export its type

    def __call__(self, call: Call, x: Tensor) -> Call:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        given = x.clone()
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            call(given)
        torch.cuda.current_stream(x.device).wait_stream(side)
        torch.cuda.empty_cache()  # the graph needs what plain calls have cached
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = call(given)

        def replay(x: Tensor) -> Tensor:
            given.copy_(x)
            graph.replay()
            return result.clone()

        return replay
