"""What an encoder's work allows on a GPU: operations and bytes, divided by measured rates.

Needs torch alone, and no GPU: the encoder runs on tensors without data. Its kernels for GPUs are
replaced by stand-ins that count what each pass reads and writes, so the table follows the code::

    python -m benchmarks.roofline                       # prints the tables
    python -m benchmarks.roofline docs/performance.md   # and writes them there
"""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.encoder import FRAMES, GPU_CHANNELS, GPU_SIZE, build
from benchmarks.page import with_results
from tokpipe.models import blocks, group_norm

PAST = "past frames"
KINDS = ("convolutions", "norm + SiLU", PAST, "residual", "pooling", "bias")
LEVELS = ("0", "1", "2", "3 and middle")


@dataclass(frozen=True, slots=True)
class Rates:
    """What large matrix products and copies reach on a GPU."""

    gpu: str
    bf16_flops: float
    """Operations per second of bfloat16 products; those of TF32 have half the rate."""
    bytes_per_s: float
    """Bytes read and written."""


H200 = Rates("H200", 788e12, 4.3e12)
"""Measured on an H200: products of 8192 x 8192 random numbers, and copies between large tensors."""
_H200_BANDWIDTH, _H100_BANDWIDTH = 4.8e12, 3.35e12  # NVIDIA's data sheets, for SXM
H100 = Rates("H100", H200.bf16_flops, H200.bytes_per_s * _H100_BANDWIDTH / _H200_BANDWIDTH)
"""Scaled, not measured: by the data sheets both compute 989 TFLOP/s, and the bandwidths differ."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One kernel: what it computes, reads and writes."""

    level: str
    kind: str
    num_bytes: int
    flops: int = 0
    is_bf16: bool = False

    def seconds(self, rates: Rates, of_products: float = 1.0, of_copies: float = 1.0) -> float:
        """Time at these shares of the rates: the longer of computing and moving bytes."""
        flops = rates.bf16_flops * (1.0 if self.is_bf16 else 0.5)
        return max(self.flops / flops / of_products, self.num_bytes / rates.bytes_per_s / of_copies)


@dataclass
class _Recorder(TorchDispatchMode):
    """Records the passes of one call of an encoder on tensors without data."""

    passes: list[Pass] = field(default_factory=list)
    level: str = LEVELS[0]
    kind: str = PAST
    """What operations outside of convolutions and kernels belong to."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing the compiler takes seconds, and nothing is compiled here

    def add(self, kind: str, *tensors: Tensor, flops: int = 0, is_bf16: bool = False) -> None:
        num_bytes = sum(_bytes_of(one) for one in tensors)
        self.passes.append(Pass(self.level, kind, num_bytes, flops, is_bf16))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            x, weight, bias = args[:3]
            flops = 2 * result.numel() * weight[0].numel()
            self.add("convolutions", x, result, flops=flops, is_bf16=x.dtype == torch.bfloat16)
            if bias is not None:  # PyTorch adds it in a pass over the whole result
                self.add("bias", result, result)
        elif not _is_view(func) and "empty" not in name:
            given = {"copy_": args[1:2], "fill_": (), "zero_": ()}.get(name, args)
            moved = tree_leaves((given, result))
            self.add(self.kind, *(one for one in moved if isinstance(one, Tensor)))
        return result

    # --- stand-ins for tokpipe.models.triton_kernels ---

    def norm_triton(self, x: Tensor, out: Tensor, *_: Any, sums: Any = None, **__: Any) -> None:
        if sums is None:
            self.add("norm + SiLU", x)
        self.add("norm + SiLU", x, out)

    def add_triton(self, x: Tensor, h: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Any]:
        return self.residual(x, h), object()

    def residual(self, x: Tensor, h: Tensor) -> Tensor:
        y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, h.dtype))
        self.add("residual", x, h, y)
        return y


def _is_view(func: Any) -> bool:
    """Whether an operation returns the memory that it was given, unchanged."""
    aliases = [one.alias_info for one in func._schema.returns]
    return any(one is not None and not one.is_write for one in aliases)


def _bytes_of(x: Tensor) -> int:
    """Of the elements in memory: expanded dimensions are read once."""
    stored = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        stored *= size if stride else 1
    return stored * x.element_size()


@cache
def passes(*, former: bool = False, batch: int = 1) -> tuple[Pass, ...]:
    """The passes of the published encoder in bfloat16, 17 frames of 256x256.

    ``former``: with each bias in a pass of its own, and so the sums of each norm.
    """
    with torch.device("meta"):
        encoder = build(GPU_CHANNELS)
        x = torch.empty(batch, 3, FRAMES, GPU_SIZE, GPU_SIZE)
        x = x.contiguous(memory_format=torch.channels_last_3d)
    encoder.compute_in(torch.bfloat16)
    recorder = _Recorder()
    for name, module in encoder.named_modules():
        if isinstance(module, blocks.ResnetBlock3D | blocks.DownSample3D):
            level = name.split(".")[1] if name.startswith("down.") else LEVELS[-1]
            _at(module, recorder, level if level in LEVELS else LEVELS[-1])
    kernels = SimpleNamespace(norm_triton=recorder.norm_triton, add_triton=recorder.add_triton)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(group_norm, "gpu_kernels", return_value=kernels))
        folded = None if former else kernels
        enter(mock.patch.object(blocks, "gpu_kernels", return_value=folded))
        enter(mock.patch.object(blocks, "residual", recorder.residual))
        enter(torch.no_grad())
        enter(recorder)
        encoder(x)
    return tuple(recorder.passes)


def _at(module: nn.Module, recorder: _Recorder, level: str) -> None:
    kind = "pooling" if isinstance(module, blocks.DownSample3D) else PAST

    def enter(*_: Any) -> None:
        recorder.level, recorder.kind = level, kind

    def leave(*_: Any) -> None:
        recorder.kind = PAST

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def milliseconds(found: Iterable[Pass], rates: Rates, *shares: float) -> float:
    return 1000 * sum(one.seconds(rates, *shares) for one in found)


def share_of_peak(found: Iterable[Pass], rates: Rates, *shares: float) -> float:
    """Operations divided by what products would do in the time of all passes."""
    flops = sum(one.flops for one in found)
    return flops / rates.bf16_flops / milliseconds(found, rates, *shares) * 1000


SCENARIOS = ((1.0, 1.0), (0.75, 0.8), (0.6, 0.8))
"""Shares of the rates that convolutions and other passes reach."""


def text() -> str:
    """The tables of the page."""
    former, ours = passes(former=True), passes()
    without = [one for one in ours if one.kind != "bias"]
    lines = [
        f"Predicted for one chunk on an {H200.gpu}, in ms, with all biases and sums in passes of "
        "their own / as they are now:",
        "",
        f"| level | TFLOP | {' | '.join(KINDS)} |",
        f"|{'---|' * (2 + len(KINDS))}",
    ]
    for level in (*LEVELS, "sum"):
        both = [[one for one in some if level in (one.level, "sum")] for some in (former, ours)]
        cells = [
            " / ".join(f"{milliseconds(_of(kind, some), H200):.2f}" for some in both)
            for kind in KINDS
        ]
        cells = [" / ".join(dict.fromkeys(cell.split(" / "))) for cell in cells]
        tera = sum(one.flops for one in both[1]) / 1e12
        lines.append(f"| {level} | {tera:.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "Predicted ms per chunk, chunks per second, and share of the rate of matrix products:",
        "",
        "| GPU | convolutions and other passes reach | before | now | with no bias in a pass "
        "of its own |",
        "|---|---|---|---|---|",
    ]
    for rates in (H200, H100):
        for shares in SCENARIOS:
            reached = "all" if shares == (1.0, 1.0) else "{:.0%} and {:.0%}".format(*shares)
            cells = [_cell(some, rates, *shares) for some in (former, ours, without)]
            lines.append(f"| {rates.gpu} | {reached} of their rates | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of(kind: str, found: Iterable[Pass]) -> list[Pass]:
    return [one for one in found if one.kind == kind]


def _cell(found: Iterable[Pass], rates: Rates, *shares: float) -> str:
    took, share = milliseconds(found, rates, *shares), share_of_peak(found, rates, *shares)
    return f"{took:.1f} ms, {1000 / took:.0f}/s, {share:.1%}"


def main(arguments: list[str]) -> None:
    if not arguments:
        print(text(), end="")
        return
    page = Path(arguments[0])
    page.write_text(with_results(page.read_text(), text(), "roofline"))


if __name__ == "__main__":
    main(sys.argv[1:])
