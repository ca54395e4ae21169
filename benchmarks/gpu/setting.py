"""Where sections run: the device, how calls are timed, and what earlier sections measured."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.record import Claim
from benchmarks.gpu.timeline import Kernel

TIMED_S = 0.3
"""About how long a call is repeated."""


@dataclass
class Setting:
    """What a section needs. On a CPU everything is a dry run."""

    device: torch.device
    values: dict[str, float] = field(default_factory=dict)
    """What earlier sections measured."""
    share: Callable[[dict[str, float]], None] = lambda _: None
    deadline: float = float("inf")

    @property
    def is_dry(self) -> bool:
        return self.device.type != "cuda"

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def measured(self, value: float | None, digits: int = 4) -> float | None:
        """A time, a rate or an amount of memory; None in a dry run, whose figures are a CPU's."""
        if value is None or self.is_dry:
            return None
        return float(f"{value:.{digits}g}")

    def keep(self, name: str, value: float) -> None:
        """Let later sections have a value."""
        self.values[name] = value
        self.share({name: value})

    def claim(self, text: str, holds: bool | None, found: str = "") -> Claim:
        """A claim, which a dry run neither proves nor refutes."""
        return Claim(text, None, "") if self.is_dry else Claim(text, holds, found)

    def of(self, real: Any, tiny: Any) -> Any:
        """``real``, or in a dry run ``tiny``."""
        return tiny if self.is_dry else real

    def wait(self) -> None:
        if not self.is_dry:
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Free what a section has left; after an error of the GPU it cannot."""
        gc.collect()
        if not self.is_dry:
            try:
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
            except RuntimeError:
                raise SystemExit("the GPU's context is unusable after this section") from None

    def free_bytes(self) -> int:
        """Memory that nothing uses, without what the allocator keeps for later."""
        if self.is_dry:
            return 2**62
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds of a call on the device, after two others."""
        if self.is_dry:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        call()
        number = max(1, min(50, round(TIMED_S / max(self._once(call), 1e-6))))
        return statistics.median(self._once(call) for _ in range(number))

    def _once(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """The most that tensors took during a call, with those that were there before."""
        if self.is_dry:
            call()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def kernels(self, call: Callable[[], object]) -> list[Kernel]:
        """What a call runs on the device, in order of its start."""
        kind, activity = self.of(("CUDA", ProfilerActivity.CUDA), ("CPU", ProfilerActivity.CPU))
        with profile(activities=[activity]) as profiled:
            call()
            self.wait()
        found = [
            Kernel(event.name, event.time_range.start, event.time_range.end)
            for event in profiled.events() or ()
            if event.device_type.name == kind
        ]
        return sorted(found, key=lambda one: one.start_us)
