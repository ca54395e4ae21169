"""Clips of an output as frames, beside those that their sources gave."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Clip, Output
from tokpipe.reconstruct.reconstructor import Reconstructor
from tokpipe.reconstruct.source import Rechunked, SourceFrames

Frames = NDArray[np.uint8]


class SideBySide:
    """Used as a context manager, which ends with the decoder of sources and what it fetched.

    Args:
        device: ``"auto"``, or a torch device.

    Raises:
        ConfigError: the tokenizer has no decoder, or its weights are not those that encoded.
    """

    def __init__(self, output: Output, device: str = "auto") -> None:
        self._output = output
        self._job = output.record.job_config(output.store.uri)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._reconstructor = Reconstructor(self._job, output.tokenizer, device)
        self._sources: SourceFrames | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def blocks(self, clip: Clip, *, with_source: bool) -> Iterator[tuple[Frames, Frames | None]]:
        """Yield the (T, H, W, 3) frames of each chunk of a clip, and the same of its source.

        Sources are decoded again as the job did.

        Raises:
            SourceError, NotFound: the source is gone, or is not what it was.
        """
        sources = Rechunked(self._opened().frames(clip)) if with_source else None
        for block in self._reconstructor.frames(clip.chunks):
            yield block, None if sources is None else sources.take(len(block), clip)

    def _opened(self) -> SourceFrames:
        if self._sources is None:
            scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            plan = PlanReader(self._output.store, StoredPlan.from_json(self._output.record.plan))
            self._sources = SourceFrames(self._job, plan, scratch)
            self._stack.callback(self._sources.close)
        return self._sources
