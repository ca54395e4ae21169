"""Memory: what fails when it is short, what many shapes leave behind, and failed captures."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.encoder import clips_for, codes_of, encoder_for, graphed
from benchmarks.gpu.record import Finding, Left, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timeline import short
from tokpipe.models.graphs import CAPTURED_AT
from tokpipe.stages.device import trouble_of

LEFT_FREE = (0.9, 0.6, 0.35, 0.15, 0.03)
"""Shares of what a batch takes, which are left free in turn."""
SIDES = (128, 144, 160, 176, 192, 208, 224, 256)
SMALL_SIDES = (24, 32, 40, 48, 56, 64, 72, 80, 88, 96)
"""Of single clips, where launching kernels takes longer than running them."""
TINY_SIDES = (8, 16)


def pressure(setting: Setting) -> Iterator[Finding]:
    """Batches of eight clips with too little memory, halved until they fit."""
    encoder, batch = encoder_for(setting), setting.of(8, 2)
    x = clips_for(setting, batch)
    wanted = encoder(x)
    spread = wanted.std()
    usual = {one.name for one in setting.kernels(lambda: encoder(x))}
    needs = setting.peak_bytes(lambda: encoder(x)) - allocated(setting)
    by_size = {}
    for rows in _halves(batch):
        by_size[rows] = torch.cat([encoder(part) for part in x.split(rows)])
    calls_it, same_bits, fitted = list[str](), True, True
    for left_free in setting.of(LEFT_FREE, LEFT_FREE[-1:]):
        if setting.left_s < 4:
            yield Left(f"{left_free:.0%} of the memory", "its time is used up")
            continue
        filler = _fill(setting, int(needs * left_free))
        for rows in _halves(batch):
            found, problem = _attempt(setting, encoder, x.split(rows))
            row: dict[str, Any] = {
                "left free": f"{left_free:.0%} of {needs / 1e9:.1f} GB" if needs else None,
                "batch": rows,
            }
            if problem is not None:
                name = trouble_of(problem)
                calls_it.append(name)
                row |= {
                    "raises": f"{type(problem).__name__}: {str(problem)[:240]}",
                    "tokpipe calls it": name,
                }
                yield Row(row)
                continue
            assert found is not None
            row["same bits as with enough memory"] = torch.equal(found, by_size[rows])
            unlike = codes_of(found, spread) != codes_of(wanted, spread)
            row["codes unlike the full batch's"] = setting.measured(float(unlike.float().mean()))
            same_bits &= bool(row["same bits as with enough memory"])
            if rows == batch and not setting.is_dry:
                names = {one.name for one in setting.kernels(lambda: encoder(x))}
                row["other kernels"] = ", ".join(map(short, names - usual))
            yield Row(row)
            break
        else:
            fitted &= left_free < 0.15
        del filler
    yield setting.claim(
        "every error of too little memory is recognized",
        {*calls_it} <= {"memory"},
        f"{len(calls_it)} errors",
    )
    yield setting.claim("bits do not depend on how much memory is free", same_bits)
    yield setting.claim("a batch of 1 fits what 15 % of a batch of 8 takes", fitted)
    yield from _stage_under_pressure(setting, needs)


def _stage_under_pressure(setting: Setting, needs: int) -> Iterator[Finding]:
    """The encode stage where half of a batch fits."""
    try:
        from benchmarks.gpu.stage import noise_clips, num_encoded, stage_for
    except ImportError as error:
        yield Left("the encode stage with too little memory", str(error))
        return
    batch = setting.of(8, 2)
    stage, clips = stage_for(setting, batch), noise_clips(setting, batch)
    stage.process(clips)
    filler = _fill(setting, int(needs * 0.6))
    results = stage.process(clips)
    del filler
    fine = num_encoded(results)
    marks = [getattr(one, "marks", type(one).__name__) for one in results]
    yield Row({"clips": len(clips), "with codes": fine, "marks": str(marks)}, "The encode stage")
    yield setting.claim("with too little memory, the stage still encodes every clip", fine == batch)


def _halves(batch: int) -> list[int]:
    return [batch >> step for step in range(batch.bit_length())]


def _fill(setting: Setting, leave: int) -> Tensor | None:
    """A tensor that leaves so many bytes of the device free."""
    free = setting.free_bytes()
    if setting.is_dry or free <= leave:
        return None
    return torch.empty(free - leave, dtype=torch.uint8, device=setting.device)


def _attempt(
    setting: Setting, call: Callable[[Tensor], Tensor], parts: tuple[Tensor, ...]
) -> tuple[Tensor | None, Exception | None]:
    try:
        found = torch.cat([call(part) for part in parts])
        setting.wait()
        return found, None
    except Exception as error:
        return None, error.with_traceback(None)  # which would keep the tensors of its frames


def allocated(setting: Setting) -> int:
    return 0 if setting.is_dry else torch.cuda.memory_allocated(setting.device)


def reserved(setting: Setting) -> int:
    return 0 if setting.is_dry else torch.cuda.memory_reserved(setting.device)


def allocator(setting: Setting) -> Iterator[Finding]:
    """Eight shapes, rising and falling, called directly and through graphs."""
    encoder, most, largest = encoder_for(setting), dict[str, int](), 0
    eight, ten = setting.of((SIDES, SMALL_SIDES), (TINY_SIDES, TINY_SIDES))
    for way, batch, order, order_name in (
        ("calls", setting.of(8, 1), eight, "rising"),
        ("graphs", setting.of(8, 1), eight, "rising"),
        ("graphs", setting.of(8, 1), eight[::-1], "falling"),
        ("graphs", 1, ten, "rising, small"),
        ("graphs", 1, ten[::-1], "falling, small"),
        ("calls", setting.of(8, 1), eight[::-1], "falling"),
    ):
        setting.free_bytes()
        call: Any = encoder if way == "calls" else graphed(setting, encoder)
        for side in order:
            if setting.left_s < 3:
                yield Left(f"{way}, {order_name}, {side}", "its time is used up")
                continue
            x = clips_for(setting, batch, (side, side))
            problem = ""
            try:
                for _ in range(CAPTURED_AT + 1):
                    call(x)
                setting.wait()
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if way == "calls" and side == max(eight):
                largest = max(largest, setting.peak_bytes(partial(encoder, x)))
            most[way] = max(most.get(way, 0), reserved(setting))
            yield Row(
                {
                    "way": way,
                    "order": order_name,
                    "shape": f"{batch} of {side}x{side}",
                    "allocated GB": setting.measured(allocated(setting) / 1e9),
                    "reserved GB": setting.measured(reserved(setting) / 1e9),
                    "graphs": str(getattr(call, "state", "")),
                    "raised": problem,
                }
            )
            del x
        del call
    for way in most:
        yield setting.claim(
            f"{way} of many shapes reserve at most twice what the largest takes",
            most[way] <= 2 * largest,
            f"{most[way] / 1e9:.1f} GB, {largest / 1e9:.1f} GB by the largest alone",
        )


def capture(setting: Setting) -> Iterator[Finding]:
    """A call that no graph can hold, and what works after it."""
    setting.free_bytes()
    before = {"allocated": allocated(setting), "reserved": reserved(setting)}

    def reads(x: Tensor) -> Tensor:
        return x + float(x.sum().item() > 0)  # waits for the device, which a capture cannot

    x = torch.ones(1024, device=setting.device)
    call, problem = graphed(setting, reads), ""
    try:
        results = [float(call(x)[0]) for _ in range(CAPTURED_AT + 2)]
    except Exception as error:
        results, problem = [], f"{type(error).__name__}: {error}"
    yield Row({"step": "calls that a graph cannot hold", "result": problem or str(results)})
    steps: dict[str, Callable[[], object]] = {
        "the same call again": lambda: float(call(x)[0]),
        "a plain sum": lambda: float((x + x).sum()),
        "an upload": lambda: float(torch.ones(8).to(setting.device).sum()),
        "freeing kept memory": lambda: setting.free_bytes() > 0,
        "another graph": lambda: [float(graph(x)[0]) for _ in range(CAPTURED_AT + 2)][-1],
        "whether a capture is still on": lambda: (
            False if setting.is_dry else torch.cuda.is_current_stream_capturing()
        ),
    }
    graph = graphed(setting, lambda x: x * 3)
    all_work = not problem and results == [2.0] * len(results)
    for name, step in steps.items():
        try:
            result = str(step())
            all_work &= result != "True" or name != "whether a capture is still on"
        except Exception as error:
            result, all_work = f"{type(error).__name__}: {str(error)[:240]}", False
        yield Row({"step": name, "result": result})
    setting.free_bytes()
    for what, count in (("allocated", allocated), ("reserved", reserved)):
        kept = setting.measured(float(count(setting) - before[what]))
        yield Row({"step": f"bytes that stay {what}", "result": kept})
    yield setting.claim("after a capture failed, the process goes on as before", all_work, problem)
