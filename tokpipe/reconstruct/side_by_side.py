"""Clips of an output as frames, next to the frames of their sources."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from typing import Self

import torch

from tokpipe.errors import ConfigError
from tokpipe.media.quality import Frames
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Clip, Output
from tokpipe.reconstruct.reconstructor import Reconstructor
from tokpipe.reconstruct.source import SourceFrames


class SideBySide:
    """Decodes clips and their sources. Use it as a context manager, to stop the source decoder.

    Raises:
        ConfigError: torch cannot use the device, or the tokenizer has no decoder, or its weights
            differ from those that encoded.
    """

    def __init__(self, output: Output, device: str = "auto") -> None:
        self._output = output
        self._job = output.record.job_config(output.store.uri)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(1, device=device)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            problem = f"--device {device}: torch cannot use it here ({error}). Use cpu or auto"
            raise ConfigError(problem) from error
        self._reconstructor = Reconstructor(self._job, output.tokenizer, device)
        self._sources: SourceFrames | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def blocks(self, clip: Clip, *, with_source: bool) -> Iterator[tuple[Frames, Frames | None]]:
        """Yield the (T, H, W, 3) frames of each chunk of a clip, and the same frames of its source.

        Sources are decoded again as the job did.
        """
        sources = self._opened().blocks(clip) if with_source else repeat(None)
        return zip(self._reconstructor.frames(clip.chunks), sources, strict=False)

    def _opened(self) -> SourceFrames:
        if self._sources is None:
            plan = StoredPlan.from_json(self._output.record.plan)
            reader = PlanReader(self._output.store, plan, self._job.sources)
            self._sources = SourceFrames(self._job, reader)
            self._stack.callback(self._sources.close)
        return self._sources
