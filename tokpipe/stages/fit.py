"""Whether a job's chunks fit into the memory of GPUs, and how many at a time, before it runs."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.stages.chunks import largest_chunk

GB = 10**9
CARDS = {"T4": 16, "V100": 16, "A10G": 24, "L4": 24, "A100": 40, "A100-40G": 40, "L40S": 48}
CARDS |= {"A100-80G": 80, "H100": 80, "H200": 141}
"""GB by Ray's name; the smaller for kinds of two sizes. PyTorch reports 3 % less to 7 % more."""
SHOWN = ("L4", "A100-40G", "A100-80G", "H100", "H200")

BATCH_SHARE = 0.8
"""Of a card, for a batch of several chunks. CUDA graphs may keep another tenth
(``graphs.POOL_SHARE``); the rest is for the context, cuDNN's workspaces and fragmentation."""
CONTEXT_BYTES = GB
"""Of each process, for the CUDA context and handles of libraries. One chunk may have the rest:
where memory is short there are no graphs, and cuDNN takes kernels without a workspace."""

Shape = tuple[int, int, int]  # (T, H, W) of a chunk


class EncoderMemory:
    """Predicts what a job's encoder takes of a GPU where Triton works. Needs torch, but no GPU."""

    def __init__(self, job: JobConfig) -> None:
        self._job, self._streams = job, job.chunking.policy == "streaming"
        self._share = min(1.0, job.runtime.encode.gpus or 1.0)
        self._shapes = [(largest_chunk(job)[0], *size) for size in job.frames.sizes]
        self.why_not = ""  # Why nothing can be predicted
        try:
            import torch  # Late: it takes seconds, and drivers may not have it

            from tokpipe.models.memory import peak_bytes
            from tokpipe.models.tokenizers import build_on_meta

            encoder = build_on_meta(job.tokenizer, getattr(torch, job.encode.dtype))
            peak = partial(peak_bytes, encoder, in_pieces=self._streams)
            self._bytes = cache(lambda shape, rows: peak((rows, *shape)))  # Cards ask for the same
            self._bytes(self._shapes[0], 1)
        except Exception as error:  # or a tokenizer's package is missing, or has changed
            self.why_not = " ".join(str(error).split())

    def batch_chunks(self, cards: Mapping[str, float]) -> tuple[int, str]:
        """``encode.batch_chunks`` for cards of so many bytes, by name, and why it is that.

        Raises ConfigError if the smallest card has too little memory.
        """
        encode, auto = self._job.encode, self._job.encode.batch_chunks == "auto"
        rows = 1 if self._streams else encode.batch_rows
        if self.why_not or not cards:
            why = self.why_not or "no live node has a GPU of known size"
            return rows if auto else encode.batch_rows, f"memory was not predicted: {why}"
        card, card_bytes = min(cards.items(), key=lambda one: one[1])
        has, least = f"{self._share * card_bytes / GB:.1f} GB ({card})", 1 if auto else rows
        worst = max(self._shapes, key=lambda shape: self._bytes(shape, least))
        most, what = self._rows_on(worst, card_bytes), f"chunks of {_text(worst)} in {encode.dtype}"
        if not self._fits(worst, least, card_bytes):
            do = f"encode.batch_chunks: {most}" if most else self._smaller(worst, card_bytes)
            raise ConfigError(
                f"encode: {what}, {least} at a time, take {self._bytes(worst, least) / GB:.1f} GB "
                f"of a GPU's memory, and CUDA {CONTEXT_BYTES / GB:.0f} GB, but an encoder has "
                f"{has}. It would run out of memory, so nothing was started. Use {do}, or only "
                "GPUs with more memory (runtime.encode.accelerator_type)"
            )
        need = self._bytes(worst, most if auto else rows) / GB
        return most if auto else encode.batch_rows, f"{what} take {need:.1f} of {has}"

    def by_size(self) -> Iterator[dict[str, Any]]:
        """What common cards hold of each frame size: a line of ``text``, and its facts."""
        for shape in self._shapes if not self.why_not else ():
            rows = {name: self._rows_on(shape, CARDS[name] * GB) for name in SHOWN}
            smaller = {n: self._smaller(shape, CARDS[n] * GB) for n in SHOWN if not rows[n]}
            found = (f"{n} {rows[n] or f'none, but {smaller[n]}'}" for n in SHOWN)
            size, cards = self._bytes(shape, 1), ", ".join(found)
            text = f"chunks of {_text(shape)} take {size / GB:.1f} GB of a GPU; at a time: {cards}"
            yield {"text": text, "shape": shape, "size_bytes": size, "batch_chunks": rows}

    def _rows_on(self, shape: Shape, card_bytes: float) -> int:
        """How many chunks to encode at a time, 0 if not even one fits. More than 8 gain nothing."""
        most = BATCH_SHARE * self._share * card_bytes
        several = (n for n in (8, 4, 2) if not self._streams and self._bytes(shape, n) <= most)
        return next(several, int(self._fits(shape, 1, card_bytes)))

    def _fits(self, shape: Shape, rows: int, card_bytes: float) -> bool:
        return self._bytes(shape, rows) <= self._share * card_bytes - CONTEXT_BYTES

    def _smaller(self, shape: Shape, card_bytes: float) -> str:
        """The largest frames of the same form of which one chunk fits."""
        (frames, height, width), step = shape, self._job.tokenizer.traits.side_multiple
        sides = ((n, max(1, round(n * width / height))) for n in range(height // step - 1, 0, -1))
        sizes = ((frames, n * step, m * step) for n, m in sides)
        found = next((one for one in sizes if self._fits(one, 1, card_bytes)), None)
        return f"chunks of {_text(found)}" if found else "a smaller encoder"


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def card_bytes() -> int:
    """Memory of the GPU of this process, as PyTorch reports it."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
