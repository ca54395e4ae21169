"""What ran on a GPU and when: gaps between kernels, and time by kind of kernel."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Kernel(NamedTuple):
    """One run of a kernel or copy on the GPU; in dry runs an operation of the CPU."""

    name: str
    start_us: float
    end_us: float

    @property
    def is_copy(self) -> bool:
        """To or from the host."""
        return bool(re.search("HtoD|DtoH", self.name))

    @property
    def kind(self) -> str:
        return next((kind for kind, like in _KINDS.items() if re.search(like, self.name)), OTHERS)


COPIES, NORMS, CONVOLUTIONS, OTHERS = "copies", "norms and residual sums", "convolutions", "others"
_KINDS = {
    COPIES: "HtoD|DtoH",
    NORMS: "_sum_kernel|_apply_kernel",
    CONVOLUTIONS: "conv|xmma|cutlass|cudnn|gemm|fprop",
}
"""By their names. Others are PyTorch's: pooling, biases, past frames, conversions."""


def gaps(kernels: Sequence[Kernel]) -> tuple[float, float, list[tuple[float, str, str]]]:
    """Microseconds with and without a running kernel, and the gaps between kernels, longest first.

    Copies to and from the host do not count: the GPU's processors wait during them.
    """
    busy, found = 0.0, list[tuple[float, str, str]]()
    last: Kernel | None = None
    for kernel in kernels:
        if kernel.is_copy:
            continue
        if last is None or kernel.start_us > last.end_us:
            if last is not None:
                gap = kernel.start_us - last.end_us
                found.append((gap, short(last.name, 50), short(kernel.name, 50)))
            busy += kernel.end_us - kernel.start_us
        else:
            busy += max(0.0, kernel.end_us - last.end_us)
        if last is None or kernel.end_us > last.end_us:
            last = kernel
    return busy, sum(gap for gap, *_ in found), sorted(found, reverse=True)


def hidden_copies(kernels: Sequence[Kernel]) -> float | None:
    """Share of the time of copies to and from the host during which a kernel ran."""
    copies = [one for one in kernels if one.is_copy]
    total = sum(one.end_us - one.start_us for one in copies)
    if not total:
        return None
    hidden = 0.0
    for copy in copies:
        within = [
            Kernel("", max(one.start_us, copy.start_us), min(one.end_us, copy.end_us))
            for one in kernels
            if not one.is_copy and one.start_us < copy.end_us and one.end_us > copy.start_us
        ]
        hidden += gaps(within)[0]
    return hidden / total


def milliseconds_by(key: str, kernels: Sequence[Kernel]) -> list[tuple[str, float]]:
    """Time by ``kind`` or ``name``, most first."""
    times: dict[str, float] = defaultdict(float)
    for one in kernels:
        times[getattr(one, key)] += (one.end_us - one.start_us) / 1000
    return sorted(times.items(), key=lambda pair: -pair[1])


def short(name: str, most: int = 90) -> str:
    """The name of a kernel, without the arguments of its templates if it is long."""
    return name if len(name) <= most else f"{name[:most]}…"
