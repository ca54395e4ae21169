"""The encode stage over eight batches: whether the GPU waits for anything. Needs pydantic."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.encoder import FRAMES, GPU_CHANNELS, GPU_SIZE
from benchmarks.gpu.record import Finding, Left, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timeline import gaps, hidden_copies, milliseconds_by, short
from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import ClipRef, DecodedClip, EncodedClip

BATCHES = 8
LEVELS = (8, 8, 8, 5, 5, 5)
MOST_IDLE = 0.05


def tokenizer_config(setting: Setting) -> NativeConfig:
    """A tokenizer with the published encoder and random weights."""
    tiny = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1}
    shape: dict[str, Any] = setting.of({"ch": GPU_CHANNELS}, tiny)
    encoder = Encoder3DConfig(**shape, z_channels=len(LEVELS))
    return NativeConfig(encoder=encoder, quantizer=FSQConfig(kind="fsq", levels=LEVELS))


def stage_for(setting: Setting, batch: int) -> EncodeStage:
    """A stage that is set up for chunks of one size."""
    stage = EncodeStage(
        tokenizer_config(setting),
        ChunkingConfig(chunk_frames=setting.of(FRAMES, 5)),
        EncodeConfig(dtype=setting.of("bfloat16", "float32"), batch_chunks=batch),
        largest=setting.of((FRAMES, GPU_SIZE, GPU_SIZE), (5, 8, 8)),
    )
    stage.setup(setting.device.type, None)
    return stage


def noise_clips(setting: Setting, number: int) -> list[DecodedClip]:
    """Clips of one chunk of noise each."""
    side, frames = setting.of(GPU_SIZE, 8), setting.of(FRAMES, 5)
    rng = np.random.default_rng(0)
    made = []
    for index in range(number):
        pixels = rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
        ref = ClipRef(f"clip-{index}", index, 0, 1, f"noise/{index}.mp4")
        made.append(DecodedClip(ref, pixels, np.arange(frames) / 8, 8.0, "pyav"))
    return made


def num_encoded(results: Sequence[object]) -> int:
    return sum(isinstance(one, EncodedClip) for one in results)


def run(setting: Setting) -> Iterator[Finding]:
    batch = setting.of(4, 1)
    stage, clips = stage_for(setting, batch), noise_clips(setting, setting.of(BATCHES * batch, 2))
    yield setting.claim("the start check passes at the job's shape, batch and dtype", True)
    for _ in range(2):
        fine = num_encoded(stage.process(clips))
    yield Row({"what": "how the stage computes", "found": str(stage.path or "on a CPU")})
    kernels = setting.kernels(lambda: stage.process(clips))
    busy, idle, longest = gaps(kernels)
    if not busy:
        yield Left("the profile", "the profiler saw no kernels")
        return
    seconds, waiting = (busy + idle) / 1e6, idle / (busy + idle)
    for what, value in (
        ("seconds, first to last kernel", seconds),
        ("chunks/s", len(clips) / seconds),
        ("share without a kernel", waiting),
        ("share of copies while kernels run", hidden_copies(kernels)),
    ):
        yield Row({"what": what, "found": setting.measured(value)})
    for gap, after, before in longest[: setting.of(8, 1)]:
        cells = {"gap, ms": setting.measured(gap / 1000), "after": after, "before": before}
        yield Row(cells, "The longest gaps")
    for name, took in milliseconds_by("kind", kernels):
        yield Row({"kind": name, "ms": setting.measured(took)}, "Time by kind")
    for name, took in milliseconds_by("name", kernels)[: setting.of(15, 2)]:
        yield Row({"kernel": short(name), "ms": setting.measured(took)}, "The longest kernels")
    yield setting.claim(
        f"the GPU waits for less than {MOST_IDLE:.0%} of the time",
        waiting < MOST_IDLE,
        f"{waiting:.1%}, the longest gap {longest[0][0] / 1e3 if longest else 0:.2f} ms",
    )
    yield setting.claim("every clip got codes", fine == len(clips), f"{fine} of {len(clips)}")
