"""The published encoder in bfloat16: plain eager code, tokpipe's, and tokpipe's as graphs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.eager import encode_eagerly
from benchmarks.encoder import FRAMES, GPU_CHANNELS, GPU_SIZE, agreement, build
from benchmarks.figures import Figure
from benchmarks.gpu.rates import COPIES, PRODUCTS
from benchmarks.gpu.record import Finding, Left, Row
from benchmarks.gpu.setting import Setting
from tokpipe.models.encoder_3d import Encoder3D
from tokpipe.models.graphs import CAPTURED_AT
from tokpipe.models.quantizers import FSQ

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
    torch.manual_seed(0)
    eager_dtype = setting.of(torch.bfloat16, torch.float32)  # CPUs pool in time in float32 only
    plain = build(*setting.of(SHAPE, TINY_SHAPE)).requires_grad_(False)
    plain = plain.to(setting.device, eager_dtype)
    encoder = encoder_for(setting)
    passes = roofline.passes()
    flops = sum(one.flops for one in passes)
    peak, copies = setting.values.get(PRODUCTS), setting.values.get(COPIES)
    rates = roofline.Rates("this GPU", peak, copies) if peak and copies else None
    predicted = roofline.milliseconds(passes, rates) if rates else None
    best: dict[str, float] = {}
    for batch in setting.of(BATCHES, TINY_BATCHES):
        x = clips_for(setting, batch)
        narrow = x.to(eager_dtype, memory_format=torch.contiguous_format)
        wanted = encoder(x)
        ways: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
            "ours": (encoder, x),
            "eager": (partial(encode_eagerly, plain), narrow),
            "graphs": (graphed(setting, encoder), x),
        }
        for way, (call, given) in ways.items():
            if setting.left_s < 8:
                yield Left(f"{way}, batch {batch}", "its time is used up")
                continue
            for _ in range(CAPTURED_AT):
                result = call(given)
            peak_bytes = setting.peak_bytes(partial(call, given))
            seconds = setting.seconds(partial(call, given))
            per_s = batch / seconds
            best[way] = max(best.get(way, 0.0), per_s)
            row: dict[str, Any] = {
                "way": way,
                "batch": batch,
                "chunks/s": setting.measured(per_s),
                "ms per chunk": setting.measured(1000 / per_s),
                "predicted ms": setting.measured(predicted, 3),
                "share of products": setting.measured(flops * per_s / peak if peak else None, 3),
                "peak GB": setting.measured(peak_bytes / 1e9),
                "bits of ours": torch.equal(result, wanted),
            }
            if way == "ours":
                bytes_predicted = predicted_bytes(setting, batch)
                row["predicted GB"] = setting.measured(bytes_predicted and bytes_predicted / 1e9)
                if bytes_predicted:
                    yield setting.claim(
                        f"the predicted peak of a batch of {batch} is right to 10 %",
                        abs(peak_bytes / bytes_predicted - 1) < 0.1,
                        f"{peak_bytes / 1e9:.2f} GB, predicted {bytes_predicted / 1e9:.2f}",
                    )
            if way == "graphs":
                row["graphs"] = str(getattr(call, "state", ""))
            yield Row(row)
            if row["bits of ours"] is False and way == "graphs":
                yield setting.claim("a graph has the bits of a call", False, f"batch {batch}")
    if "eager" in best and "ours" in best:
        faster = best["ours"] / best["eager"]
        yield setting.claim("2.5 times as fast as eager bfloat16", faster >= 2.5, f"{faster:.2f}")
    if peak and "ours" in best:
        share = flops * best["ours"] / peak
        yield setting.claim("55 % of the rate of products", share >= 0.55, f"{share:.1%}")
        assert predicted is not None
        yield setting.claim(
            "no slower than convolutions at 75 % and other passes at 80 % of their rates",
            rates is not None
            and 1000 / best["ours"] <= roofline.milliseconds(passes, rates, 0.75, 0.8),
            f"{1000 / best['ours']:.1f} ms per chunk, {predicted:.1f} at most by these rates",
        )


def graphed(setting: Setting, call: Callable[[Tensor], Tensor]) -> Any:
    """``call``, captured for each shape that recurs; in a dry run by a plain call."""
    from tokpipe.models import graphs

    module: Any = graphs
    if hasattr(module, "CudaGraphs") and not setting.is_dry:
        return module.GraphedCall(call, module.CudaGraphs(setting.device))
    return call if setting.is_dry else module.GraphedCall(call)


def predicted_bytes(setting: Setting, batch: int) -> int | None:
    """The predicted peak of an encoder with a tokenizer around it, where it can be predicted."""
    try:
        import importlib

        memory: Any = importlib.import_module("tokpipe.models.memory")
        from benchmarks.gpu.stage import tokenizer_config
    except ImportError:
        return None
    predictor = memory.Predictor(tokenizer_config(setting), torch.bfloat16)
    side = setting.of(GPU_SIZE, 8)
    return int(predictor.peak_bytes(setting.of(FRAMES, 5), side, side, batch))


def codes(setting: Setting) -> Iterator[Finding]:
    """Whether bits depend on anything but a clip's pixels, and codes on the arithmetic."""
    encoder = encoder_for(setting)
    batch = setting.of(4, 2)
    x = clips_for(setting, batch)
    wanted = encoder(x)
    spread = wanted.std()
    repeats = all(torch.equal(encoder(x), wanted) for _ in range(3))
    yield setting.claim("the same call has the same bits", repeats)
    turned = [torch.equal(encoder(x.roll(by, 0)), wanted.roll(by, 0)) for by in range(1, batch)]
    yield setting.claim("bits do not depend on a clip's position in the batch", all(turned))
    others = torch.cat([x[:1], torch.zeros_like(x[1:])])
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
