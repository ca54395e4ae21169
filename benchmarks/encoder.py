"""The encode path against plain eager code, and against the limits of the device.

Only needs torch and numpy, so that it runs on any machine with a GPU::

    python -m benchmarks.encoder
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.eager import encode_eagerly
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.timing import Times, by_turns, ratio
from examples.demo_tokenizer.scenes import make_palette, render_scene
from tokpipe.models import FSQ
from tokpipe.models.autoencoder_3d import Encoder3D
from tokpipe.models.process import keep_freed_memory, make_repeatable

FRAMES = 17
CPU_SIZES = ((32, 64), (64, 128))
"""(channels, rows and columns) of the cases on a CPU."""
GPU_CHANNELS, GPU_SIZE, GPU_BATCH = 128, 256, 4
CHECKPOINT = Path(__file__).parents[1] / "tokpipe/models/pretrained/fsq-4x8x8/model.safetensors"
COPIED_BYTES = 2**28
TURN_S = 2.0
"""At least how long the eager form computes in its turn; the others make as many calls. As in a
job, one chunk follows the other."""


@dataclass(frozen=True)
class Case:
    """One way to run one encoder on one input."""

    channels: int
    size: int
    batch: int = 1
    way: str = "ours"
    """``eager``, ``eager, kept memory`` or ``ours``."""
    dtype: str = "float32"
    device: str = "cpu"

    def prepared(self) -> Callable[[], object]:
        """A function that encodes once and waits for the result."""
        torch.manual_seed(0)
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        encoder = build(self.channels).to(device)
        x = torch.randn(self.batch, 3, FRAMES, self.size, self.size).to(device)
        if self.way == "ours":
            encoder.compute_in(dtype)
            x = x.contiguous(memory_format=torch.channels_last_3d)
        else:
            encoder, x = encoder.to(dtype), x.to(dtype)
        if self.way != "eager" and self.device == "cpu":
            keep_freed_memory()

        @torch.inference_mode()
        def call() -> None:
            encoder(x) if self.way == "ours" else encode_eagerly(encoder, x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return call


def build(
    channels: int, ch_mult: tuple[int, ...] = (1, 2, 4, 4), num_res_blocks: int = 2
) -> Encoder3D:
    """The published shape of encoder: four levels, two blocks each, 4x in time and 8x in space."""
    return Encoder3D(
        ch=channels,
        ch_mult=ch_mult,
        num_res_blocks=num_res_blocks,
        attn_resolutions=(),
        in_channels=3,
        resolution=256,
        z_channels=16,
        double_z=False,
    ).eval()


def run(quick: bool) -> Iterator[Result]:
    """Speeds on the CPU, agreement of codes, and speeds on the GPU if there is one."""
    make_repeatable()
    rounds = 1 if quick else 5
    for channels, size in CPU_SIZES[: 1 if quick else None]:
        yield from _on_cpu(channels, size // 2 if quick else size, rounds)
    yield from agreement("cpu", num_clips=1 if quick else 8)
    if torch.cuda.is_available():
        yield from _on_gpu(rounds)
        yield from agreement("cuda", num_clips=1 if quick else 8)
    else:
        yield Skipped("encoder, GPU bfloat16 against eager bfloat16", "there is no CUDA device")


def _on_cpu(channels: int, size: int, rounds: int) -> Iterator[Result]:
    """Run each way in a process that no other way has warmed up."""
    ways = {
        "eager": Case(channels, size, way="eager"),
        "kept": Case(channels, size, way="eager, kept memory"),
        "float32": Case(channels, size),
        "bfloat16": Case(channels, size, dtype="bfloat16"),
    }
    with ExitStack() as stack:
        pools = {way: stack.enter_context(_in_process(case)) for way, case in ways.items()}

        def call(way: str, number: int) -> Callable[[], None]:
            return lambda: pools[way].submit(_repeat, number).result()

        once = by_turns({"eager": call("eager", 1)}, rounds=1)["eager"].median
        number = max(1, round(TURN_S / once))
        together = by_turns({way: call(way, number) for way in ways}, rounds=rounds)
        times = {way: one.divided_by(number) for way, one in together.items()}
    flops, num_bytes = work_of(build(channels), torch.zeros(1, 3, FRAMES, size, size))
    about = f"ch {channels}, {FRAMES}x{size}x{size}"
    limits = _limits(torch.float32, "cpu", flops, num_bytes, times["float32"])
    has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    convolutions_s = _convolution_seconds(ways["bfloat16"])
    eager_s, float32_ratio = times["eager"].median, ratio(times["eager"], times["float32"])
    yield Figure(
        f"encoder, CPU bfloat16 against eager float32, {about}",
        ratio(times["eager"], times["bfloat16"]),
        "x",
        target=6,
        details={
            "seconds": times["bfloat16"].median,
            "eager_seconds": eager_s,
            "of_these_convolutions": convolutions_s,
            "limit": eager_s / convolutions_s,
            "share_of_limit": convolutions_s / times["bfloat16"].median,
        },
        remark="" if has_bfloat16 else "this CPU has no bfloat16: it computes in float32, rounded",
    )
    yield Figure(
        f"encoder, CPU float32 against eager float32, {about}",
        float32_ratio,
        "x",
        target=1.5,
        details={
            "seconds": times["float32"].median,
            "eager_seconds": eager_s,
            "against_eager_with_kept_memory": ratio(times["kept"], times["float32"]),
            **limits,
            "limit": float32_ratio / limits["share_of_matmul_peak"],
        },
    )


def _convolution_seconds(case: Case) -> float:
    """Seconds of one run spent in convolutions: no code around them can be faster."""
    call = case.prepared()
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            call()
    times = [one for one in profiled.key_averages() if one.key == "aten::mkldnn_convolution"]
    return sum(float(one.self_cpu_time_total) for one in times) / 3e6


def _on_gpu(rounds: int) -> Iterator[Result]:
    calls = {
        way: Case(GPU_CHANNELS, GPU_SIZE, GPU_BATCH, way, "bfloat16", "cuda").prepared()
        for way in ("eager", "ours")
    }
    times = by_turns(calls, rounds=max(3, rounds), warmups=3)
    x = torch.zeros(GPU_BATCH, 3, FRAMES, GPU_SIZE, GPU_SIZE, device="cuda", dtype=torch.bfloat16)
    flops, num_bytes = work_of(build(GPU_CHANNELS).to(x.device, x.dtype), x)
    limits = _limits(torch.bfloat16, "cuda", flops, num_bytes, times["ours"])
    about = f"ch {GPU_CHANNELS}, {GPU_BATCH} of {FRAMES}x{GPU_SIZE}x{GPU_SIZE}"
    yield Figure(
        f"encoder, GPU bfloat16 against eager bfloat16, {about}",
        ratio(times["eager"], times["ours"]),
        "x",
        target=2.5,
        details={"chunks_per_s": GPU_BATCH / times["ours"].median, **limits},
    )
    yield Figure(
        f"encoder, GPU bfloat16, share of the matmul peak, {about}",
        limits["share_of_matmul_peak"],
        "of it",
        target=0.55,
        details=limits,
    )


def work_of(encoder: Encoder3D, x: Tensor) -> tuple[int, int]:
    """Operations of all convolutions, and the bytes of their inputs and outputs."""
    flops = num_bytes = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, num_bytes
        assert isinstance(layer.weight, Tensor)
        flops += 2 * output.numel() * layer.weight[0].numel()
        num_bytes += (inputs[0].numel() + output.numel()) * output.element_size()

    hooks = [
        module.register_forward_hook(count)
        for module in encoder.modules()
        if isinstance(module, nn.Conv3d | nn.Conv2d)
    ]
    with torch.inference_mode():
        encoder(x)
    for hook in hooks:
        hook.remove()
    return flops, num_bytes


def _limits(
    dtype: torch.dtype, device: str, flops: int, num_bytes: int, times: Times
) -> dict[str, float]:
    """The share of the measured peak of matrix products, and of the bandwidth of copies."""
    side = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def waiting(call: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        return timed

    calls = {"product": waiting(lambda: a @ b), "copy": waiting(lambda: target.copy_(source))}
    best = by_turns(calls, rounds=5, warmups=2)
    peak = 2 * side**3 / best["product"].best
    bandwidth = 2 * COPIED_BYTES / best["copy"].best
    return {
        "gflops_per_s": flops / times.median / 1e9,
        "matmul_gflops_per_s": peak / 1e9,
        "share_of_matmul_peak": flops / peak / times.median,
        "share_of_copy_bandwidth": num_bytes / bandwidth / times.median,
    }


def agreement(device: str, num_clips: int, size: int = 128) -> Iterator[Result]:
    """Codes of the trained checkpoint, on moving scenes, against plain float32 on the CPU."""
    patches = [_patches(number, size) for number in range(num_clips)]
    quantizer, encoder = FSQ((8, 8, 8, 5, 5, 5)), trained_encoder()
    with torch.inference_mode():
        wanted = [quantizer.codes_of(encode_eagerly(encoder, x)) for x in patches]
    for dtype, target in ((torch.float32, 0.9999), (torch.bfloat16, 0.99)):
        encoder.to(device).compute_in(dtype)
        with torch.inference_mode():
            found = [quantizer.codes_of(encoder(x.to(device)).cpu()) for x in patches]
        same = torch.cat(
            [(one == other).flatten() for one, other in zip(found, wanted, strict=True)]
        )
        yield Figure(
            f"encoder, codes in {dtype} on {device} that match eager float32",
            float(same.float().mean()),
            "of all codes",
            target=target,
            details={"codes": same.numel()},
            remark=f"the trained checkpoint, 17 frames of {size}x{size}",
        )


def _patches(number: int, size: int) -> Tensor:
    """A moving scene in patches, as the checkpoint takes it: (1, 12, T, H/2, W/2) in [-1, 1]."""
    rng = np.random.default_rng(number)
    palette = make_palette(seed=number, num_textures=4, num_masks=4)
    pixels = render_scene(palette, rng, frames=FRAMES, height=size, width=size)
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return nn.functional.pixel_unshuffle(frames, 2).transpose(0, 1).unsqueeze(0)


def trained_encoder() -> Encoder3D:
    """The encoder of the built-in checkpoint, in float32."""
    from safetensors.torch import load_file  # which nothing else here needs

    encoder = Encoder3D(
        ch=32,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        attn_resolutions=(),
        in_channels=12,
        resolution=128,
        z_channels=6,
        double_z=False,
        norm="frame",
    ).eval()
    state = load_file(CHECKPOINT)
    names = [key for key in state if key.startswith("encoder.")]
    encoder.load_state_dict({key.removeprefix("encoder."): state[key].float() for key in names})
    return encoder


def _in_process(case: Case) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _prepare, (case,))


_prepared: list[Callable[[], object]] = []
"""In a worker process: the call of its case."""


def _prepare(case: Case) -> None:
    make_repeatable()
    _prepared.append(case.prepared())


def _repeat(number: int) -> None:
    for _ in range(number):
        _prepared[0]()


if __name__ == "__main__":
    for result in run("--quick" in sys.argv[1:]):
        print(result.line(), flush=True)
