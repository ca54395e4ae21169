"""Replays calls on a GPU as CUDA graphs: one launch in place of hundreds of small kernels."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tokpipe.errors import NodeTrouble
from tokpipe.models.process import computes

_log = logging.getLogger(__name__)

Call = Callable[[Tensor], Tensor]

MOST_SHAPES = 8
"""Graphs that are made. Room for later shapes would be made over and over, where they recur."""

CAPTURED_AT = 3  # Calls with one shape after which it is captured

LAUNCH_SHARE = 0.5
"""Shapes are captured whose launches take more than this share of the time that kernels run:
otherwise launches hide behind the kernels before them."""

POOL_SHARE = 0.1
"""Share of the GPU's memory that graphs may keep. In rising order, each needs more of the pool."""


class Cost(NamedTuple):
    """What one call took."""

    launch_s: float  # Until the host had launched all kernels
    run_s: float  # Until the device was done
    num_bytes: int  # Of the device's memory, at the most


class CudaGraphs:
    """CUDA graphs of one GPU, which share their intermediate memory. Source: PyTorch's notes on
    CUDA graphs: a warm-up on a side stream, then the capture."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self.most_bytes = POOL_SHARE * torch.cuda.get_device_properties(device).total_memory

    def measured(self, call: Call, x: Tensor) -> tuple[Tensor, Cost]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)  # or launches would hide behind what still runs
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        start.record()
        began = time.perf_counter()
        result = call(x)
        launch_s = time.perf_counter() - began
        end.record()
        end.synchronize()
        num_bytes = torch.cuda.max_memory_allocated(self._device) - before
        return result, Cost(launch_s, start.elapsed_time(end) / 1000, num_bytes)

    def captured(self, call: Call, x: Tensor) -> Call:
        """A function that replays ``call``, of the shape of ``x``."""
        given = x.clone()
        current, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call(given)
        current.wait_stream(side)
        torch.cuda.empty_cache()  # the graph needs what plain calls have cached
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = call(given)

        def replay(x: Tensor) -> Tensor:
            given.copy_(x)
            graph.replay()
            return result.clone()

        return replay

    def works(self) -> bool:
        """Whether plain calls are possible again after a capture failed."""
        return computes(self._device) and not torch.cuda.is_current_stream_capturing()


class GraphedCall:
    """``call`` with one tensor, replayed as a graph for shapes that recur and gain by it, if the
    graph reproduced its bits when captured. Results are copies. A failed capture is the last one:
    it may have left memory that cannot be freed."""

    def __init__(self, call: Call, graphs: CudaGraphs) -> None:
        self._call = call
        self._maker = graphs
        self._counts: Counter[tuple[torch.Size, torch.dtype]] = Counter()
        self._graphs: dict[tuple[torch.Size, torch.dtype], Call] = {}
        self._bytes = 0
        self._off = ""  # Why nothing is captured any more
        self._why = "no shape recurred"  # Why nothing is captured yet

    @property
    def state(self) -> str:
        """What is replayed, or why nothing is, in words."""
        if self._off or not self._graphs:
            return f"off: {self._off or self._why}"
        return f"on for {len(self._graphs)} of {len(self._counts)} shapes"

    @property
    def trouble(self) -> str:
        """Why nothing is captured any more, without details; empty if nothing is wrong."""
        return self._off.partition(":")[0]

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """``call(x)``; NodeTrouble if a failed capture left the device unusable in this process."""
        shape = x.shape, x.dtype
        if (replay := self._graphs.get(shape)) is not None:
            return replay(x)
        self._counts[shape] += 1
        if self._off or self._counts[shape] != CAPTURED_AT:
            return self._call(x)
        result, cost = self._maker.measured(self._call, x)
        if cost.launch_s < LAUNCH_SHARE * cost.run_s:
            self._why = f"kernels run for longer than their launches take ({cost.run_s:.3g} s)"
        elif len(self._graphs) == MOST_SHAPES:
            self._why = f"{MOST_SHAPES} shapes have graphs"
        elif self._bytes + cost.num_bytes > self._maker.most_bytes:
            self._why = "graphs would take too much memory"
        else:
            self._bytes += cost.num_bytes
            self._capture(x, result)
        return result

    def drop(self, why: str) -> bool:
        """Free all graphs and make no others; return whether there were any."""
        had_any = bool(self._graphs)
        self._graphs.clear()
        self._off = why
        return had_any

    def _capture(self, x: Tensor, wanted: Tensor) -> None:
        try:
            replay = self._maker.captured(self._call, x)
            if torch.equal(replay(x), wanted):
                self._graphs[x.shape, x.dtype] = replay
                return
            problem = "the results of a graph differ"
        except Exception as error:  # out of memory, or an operation that a graph cannot hold
            problem = f"capturing failed: {type(error).__name__}: {error}"
        self._off = problem
        _log.warning("shape %s is not replayed as a graph: %s", tuple(x.shape), problem)
        if not self._maker.works():
            state = "The device no longer computes in this process, which is replaced"
            raise NodeTrouble(f"encode: {problem}. {state}; no clip is to blame")
