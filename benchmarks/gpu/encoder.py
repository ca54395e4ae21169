"""The published encoder in bfloat16: plain eager code, tokpipe's, and tokpipe's as graphs."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.eager import encode_eagerly
from benchmarks.encoder import FRAMES, GPU_CHANNELS, GPU_SIZE, agreement, build
from benchmarks.figures import Figure
from benchmarks.gpu.rates import COPIES, PRODUCTS
from benchmarks.gpu.record import Cell, Finding, Left, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timeline import CONVOLUTIONS, NORMS, OTHERS, milliseconds_by
from tokpipe.models import FSQ
from tokpipe.models.autoencoder_3d import Encoder3D
from tokpipe.models.graphs import Call, CudaGraphs, GraphedCall

BATCHES, TINY_BATCHES = (4, 1, 8), (1, 2)
SHAPE, TINY_SHAPE = (GPU_CHANNELS,), (32, (1, 1, 1), 1)
"""Arguments of ``build``."""
LEVELS = (8, 8, 8, 5, 5, 5)
"""Of the quantizer that turns latents into codes here."""


def encoder_for(setting: Setting, dtype: torch.dtype = torch.bfloat16) -> Encoder3D:
    torch.manual_seed(0)
    encoder = build(*setting.of(SHAPE, TINY_SHAPE)).requires_grad_(False).to(setting.device)
    encoder.compute_in(dtype)
    return encoder


def clips_for(setting: Setting, batch: int, size: tuple[int, int] | None = None) -> Tensor:
    """Noise in [-1, 1], channels innermost; a clip's pixels only depend on its number."""
    height, width = size or setting.of((GPU_SIZE, GPU_SIZE), (8, 8))
    frames = setting.of(FRAMES, 5)
    clips = []
    for number in range(batch):
        generator = torch.Generator(setting.device).manual_seed(number)
        shape = (1, 3, frames, height, width)
        clips.append(torch.rand(shape, generator=generator, device=setting.device))
    pixels = torch.cat(clips).mul_(2).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last_3d)


def codes_of(latents: Tensor, spread: Tensor) -> Tensor:
    """Codes of the first channels of latents, whose standard deviation is ``spread``."""
    return FSQ(LEVELS).codes_of(latents[:, : len(LEVELS)].float() * (2 / spread))


def run(setting: Setting) -> Iterator[Finding]:
    encoder, plain = encoder_for(setting), eager_for(setting)
    flops = sum(one.flops for one in roofline.passes())
    peak, rates = setting.values.get(PRODUCTS), _rates(setting)
    best: dict[str, float] = {}
    for way, batch in product(("ours", "graphs", "eager"), setting.of(BATCHES, TINY_BATCHES)):
        if setting.left_s < 8:
            yield Left(f"{way}, batch {batch}", "its time is used up")
            continue
        setting.free_bytes()  # of the graph before
        x = clips_for(setting, batch)
        row: dict[str, Cell] = {"way": way, "batch": batch}
        if way == "eager":
            x = x.to(plain.conv_in.conv.weight.dtype, memory_format=torch.contiguous_format)
            call: Call = partial(encode_eagerly, plain)
        elif way == "graphs":
            call = captured(setting, encoder, x)
            row["bits of ours"] = torch.equal(call(x), encoder(x))
        else:
            call = encoder
            if not setting.is_dry:
                _, cost = CudaGraphs(setting.device).measured(call, x)
                row |= {"launch ms": cost.launch_s * 1e3, "run ms": cost.run_s * 1e3}
        peak_bytes = setting.peak_bytes(partial(call, x))
        per_s = batch / setting.seconds(partial(call, x))
        best[way] = max(best.get(way, 0.0), per_s)
        row |= {
            "chunks/s": setting.measured(per_s),
            "ms per chunk": setting.measured(1000 / per_s),
            "share of products": setting.measured(flops * per_s / peak if peak else None, 3),
            "peak GB": setting.measured(peak_bytes / 1e9),
        }
        yield Row(row)
        if way == "ours":
            yield _memory(setting, batch, peak_bytes)
        if way == "graphs":
            has_bits = row["bits of ours"] is True
            yield setting.claim(f"a graph of a batch of {batch} has the bits of calls", has_bits)
    yield from _by_kind(setting, encoder)
    ours = best.get("ours")
    if ours and (eager := best.get("eager")):
        yield setting.claim(
            "2.5 times as fast as eager bfloat16", ours >= 2.5 * eager, f"{ours / eager:.2f}"
        )
    if ours and peak and rates:
        share, most = (
            flops * ours / peak,
            roofline.milliseconds(roofline.passes(), rates, 0.75, 0.8),
        )
        yield setting.claim("55 % of the rate of products", share >= 0.55, f"{share:.1%}")
        yield setting.claim(
            "as fast as convolutions at 75 % and other passes at 80 % of their rates allow",
            1000 / ours <= most,
            f"{1000 / ours:.1f} ms per chunk, {most:.1f} by these rates",
        )


def eager_for(setting: Setting) -> Encoder3D:
    torch.manual_seed(0)
    dtype = setting.of(torch.bfloat16, torch.float32)  # CPUs pool in time in float32 only
    return build(*setting.of(SHAPE, TINY_SHAPE)).requires_grad_(False).to(setting.device, dtype)


def _rates(setting: Setting) -> roofline.Rates | None:
    peak, copies = setting.values.get(PRODUCTS), setting.values.get(COPIES)
    return roofline.Rates("this GPU", peak, copies) if peak and copies else None


def _by_kind(setting: Setting, encoder: Encoder3D) -> Iterator[Row]:
    """Time of a chunk in a batch of four by kind of kernel, next to the prediction."""
    x, rates = clips_for(setting, setting.of(4, 1)), _rates(setting)
    for kind, took in milliseconds_by("kind", setting.kernels(lambda: encoder(x))):
        passes = [one for one in roofline.passes() if _KINDS.get(one.kind, OTHERS) == kind]
        cells = {
            "kind": kind,
            "ms per chunk": setting.measured(took / len(x)),
            "predicted ms": setting.measured(
                roofline.milliseconds(passes, rates) if rates else None, 3
            ),
        }
        yield Row(cells, "Where the time goes")


_KINDS = {"convolutions": CONVOLUTIONS, "norm + SiLU": NORMS, "residual": NORMS}


def captured(setting: Setting, call: Call, x: Tensor) -> Call:
    """A graph of ``call``, whether it would pay or not; in a dry run the call."""
    return call if setting.is_dry else CudaGraphs(setting.device).captured(call, x)


def graphed(setting: Setting, call: Call) -> Call:
    """``call``, captured for each shape that recurs, as jobs do; in a dry run the call."""
    return call if setting.is_dry else GraphedCall(call, CudaGraphs(setting.device))


def _memory(setting: Setting, batch: int, peak_bytes: int) -> Finding:
    """Whether the prediction of a peak holds: of a tokenizer with this encoder."""
    try:
        from benchmarks.gpu.stage import tokenizer_config
        from tokpipe.models.memory import peak_bytes as predict
        from tokpipe.models.tokenizers import build_on_meta
    except ImportError as error:
        return Left(f"the predicted peak of a batch of {batch}", str(error))
    tokenizer = build_on_meta(tokenizer_config(setting), setting.of(torch.bfloat16, torch.float32))
    frames, side = setting.of((FRAMES, GPU_SIZE), (5, 8))
    predicted = predict(tokenizer, (batch, frames, side, side))
    return setting.claim(
        f"the predicted peak of a batch of {batch} is right to 10 %",
        abs(peak_bytes / predicted - 1) < 0.1,
        f"{peak_bytes / 1e9:.2f} GB, predicted {predicted / 1e9:.2f}",
    )


def codes(setting: Setting) -> Iterator[Finding]:
    """Whether bits depend on anything but a clip's pixels, and codes on the arithmetic."""
    encoder = encoder_for(setting)
    batch = setting.of(4, 2)
    x = clips_for(setting, batch)
    wanted = encoder(x)
    spread = wanted.std()
    repeats = all(torch.equal(encoder(x), wanted) for _ in range(3))
    yield setting.claim("the same call has the same bits", repeats)
    last = torch.channels_last_3d
    turned = [
        torch.equal(encoder(x.roll(by, 0).contiguous(memory_format=last)), wanted.roll(by, 0))
        for by in range(1, batch)
    ]
    yield setting.claim("bits do not depend on a clip's position in the batch", all(turned))
    others = torch.cat([x[:1], torch.zeros_like(x[1:])]).contiguous(memory_format=last)
    alone = torch.equal(encoder(others)[:1], wanted[:1])
    yield setting.claim("nor on the other clips of the batch", alone)
    for size in setting.of((1, 2, 8), (1,)):
        some = clips_for(setting, size)
        both = min(size, batch)
        found = encoder(some)[:both]
        unlike = codes_of(found, spread) != codes_of(wanted[:both], spread)
        yield Row(
            {
                "batch": size,
                f"bits of a batch of {batch}": torch.equal(found, wanted[:both]),
                "largest difference": float((found - wanted[:both]).abs().max()),
                "other codes": setting.measured(float(unlike.float().mean())),
            },
            "The same clips in batches of other sizes",
        )
    for result in agreement(setting.device.type, *setting.of((8, 128), (1, 32))):
        assert isinstance(result, Figure)
        yield Row({"codes": result.name, "share": result.value}, "The trained checkpoint")
        least = 0.9999 if "float32 on" in result.name else 0.995
        yield setting.claim(
            f"{result.name}: at least {least:.2%}", result.value >= least, f"{result.value:.3%}"
        )
