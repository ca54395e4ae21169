"""The encode stage over eight batches: whether the GPU waits for anything. Needs pydantic."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.encoder import FRAMES, GPU_CHANNELS, GPU_SIZE
from benchmarks.gpu.record import Finding, Row
from benchmarks.gpu.setting import Kernel, Setting, short
from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import ClipRef, DecodedClip, EncodedClip

BATCHES = 8
LEVELS = (8, 8, 8, 5, 5, 5)
MOST_IDLE = 0.05
KINDS = {
    "copies to the GPU": "HtoD",
    "copies from the GPU": "DtoH",
    "norm and residual sums": "_sum_kernel|_apply_kernel",
    "convolutions": "conv|xmma|cutlass|cudnn|gemm|fprop|sm90|sm80",
}
"""By their names; the rest is PyTorch's own."""


def tokenizer_config(setting: Setting) -> NativeConfig:
    """A tokenizer with the published encoder and random weights."""
    shape = setting.of({"ch": GPU_CHANNELS}, {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1})
    encoder = Encoder3DConfig(**shape, z_channels=len(LEVELS))
    return NativeConfig(encoder=encoder, quantizer=FSQConfig(kind="fsq", levels=LEVELS))


def run(setting: Setting) -> Iterator[Finding]:
    stage = EncodeStage(
        tokenizer_config(setting),
        ChunkingConfig(chunk_frames=setting.of(FRAMES, 5)),
        EncodeConfig(dtype=setting.of("bfloat16", "float32"), batch_chunks=setting.of(4, 1)),
    )
    stage.setup(setting.device.type, None)
    clips = clips_for(setting, setting.of(BATCHES * 4, 2))
    for _ in range(2):
        results = stage.process(clips)
    kernels = setting.kernels(lambda: stage.process(clips))
    fine = sum(isinstance(one, EncodedClip) for one in results)
    yield Row({"what": "clips that got codes", "found": f"{fine} of {len(clips)}"})
    busy, idle, longest = gaps(kernels)
    seconds, waiting = (busy + idle) / 1e6, idle / (busy + idle)
    for what, value in (
        ("seconds, first to last kernel", seconds),
        ("chunks/s", len(clips) / seconds),
        ("share without a kernel", waiting),
        ("share of copies while kernels run", hidden_copies(kernels)),
    ):
        yield Row({"what": what, "found": setting.measured(value)})
    for gap in longest[:5]:
        row = {"gap, ms": setting.measured(gap[0] / 1e3), "after": gap[1], "before": gap[2]}
        yield Row(row if not setting.is_dry else dict.fromkeys(row), "The longest gaps")
    yield from _by_kind(setting, kernels)
    yield setting.claim(
        f"the GPU waits for less than {MOST_IDLE:.0%} of the time",
        waiting < MOST_IDLE,
        f"{waiting:.1%}" + (f", the longest gap {longest[0][0] / 1e3:.2f} ms" if longest else ""),
    )
    yield setting.claim("every clip got codes", fine == len(clips), f"{fine} of {len(clips)}")


def clips_for(setting: Setting, number: int) -> list[DecodedClip]:
    """Clips of one chunk of noise each."""
    side, frames = setting.of(GPU_SIZE, 8), setting.of(FRAMES, 5)
    rng = np.random.default_rng(0)
    made = []
    for index in range(number):
        pixels = rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
        ref = ClipRef(f"clip-{index}", index, 0, 1, f"noise/{index}.mp4")
        made.append(DecodedClip(ref, pixels, np.arange(frames) / 8, 8.0, "pyav"))
    return made


def _is_copy(kernel: Kernel) -> bool:
    return bool(re.search("HtoD|DtoH", kernel.name))


def gaps(kernels: Sequence[Kernel]) -> tuple[float, float, list[tuple[float, str, str]]]:
    """Microseconds with and without a running kernel, and the gaps between kernels, longest first.

    Copies to and from the host do not count: the GPU's processors wait during them.
    """
    busy, found = 0.0, []
    last: Kernel | None = None
    for kernel in kernels:
        if _is_copy(kernel):
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
    copies = [one for one in kernels if _is_copy(one)]
    total = sum(one.end_us - one.start_us for one in copies)
    if not total:
        return None
    hidden = 0.0
    for copy in copies:
        within = [
            Kernel("", max(one.start_us, copy.start_us), min(one.end_us, copy.end_us))
            for one in kernels
            if not _is_copy(one) and one.start_us < copy.end_us and one.end_us > copy.start_us
        ]
        hidden += gaps(within)[0]
    return hidden / total


def _by_kind(setting: Setting, kernels: Sequence[Kernel]) -> Iterator[Row]:
    times = Counter[str]()
    counts = Counter[str]()
    names = Counter[str]()
    for one in kernels:
        kind = next((kind for kind, like in KINDS.items() if re.search(like, one.name)), "others")
        took = one.end_us - one.start_us
        times[kind] += took
        names[short(one.name)] += took
        counts[kind] += 1
    for kind, took in times.most_common():
        cells = {"kind": kind, "kernels": counts[kind], "ms": setting.measured(took / 1e3)}
        yield Row(cells if not setting.is_dry else cells | {"kernels": None}, "Time by kind")
    for name, took in names.most_common(setting.of(15, 2)):
        yield Row({"kernel": name, "ms": setting.measured(took / 1e3)}, "The longest kernels")
