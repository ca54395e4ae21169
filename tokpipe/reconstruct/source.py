"""The frames that an encoder saw: the source of a clip, decoded again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import NotFound, SourceError
from tokpipe.plan import PlanReader
from tokpipe.reader import Clip
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import DecodedClip


class SourceFrames:
    """Decodes sources as the job did: the same sampling, size and decoder.

    Args:
        scratch: a local folder for what has to be fetched.
    """

    def __init__(self, job: JobConfig, plan: PlanReader, scratch: Path) -> None:
        self._plan = plan
        self._stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job))
        self._stage.setup(scratch)

    def close(self) -> None:
        """End the decoding child and remove what was fetched."""
        self._stage.close()

    def frames(self, clip: Clip) -> Iterator[NDArray[np.uint8]]:
        """Yield the clip's (T, H, W, 3) frames, in one piece or several.

        Raises:
            SourceError: the source is gone, or is not what it was.
        """
        for decoded in self.decoded(clip):
            yield decoded.frames

    def decoded(self, clip: Clip) -> Iterator[DecodedClip]:
        """Yield what an encoder gets of the clip: one piece, or several where clips are streamed.

        Raises:
            SourceError: the source is gone, or is not what it was.
        """
        (item,) = self._plan.items(
            self._plan.part_of(clip.plan_row), np.array([clip.plan_row], np.int64)
        )
        item = replace(item, segment=clip.segment, num_segments=clip.num_segments)
        last = False
        while not last:
            (decoded,) = self._stage.process([item])
            if not isinstance(decoded, DecodedClip):
                raise SourceError(
                    decoded.reason,
                    f"{clip.source_uri}: cannot be compared with clip {clip.clip_id}, because it "
                    f"does not decode any more: {decoded.message}. Decode without comparing, or "
                    "bring back the file that was tokenized",
                )
            yield decoded
            last = decoded.piece.is_last
            item = replace(item, piece=item.piece + 1, num_pieces=decoded.piece.num_pieces)


class Rechunked:
    """A stream of frame blocks, taken by number of frames."""

    def __init__(self, blocks: Iterator[NDArray[np.uint8]]) -> None:
        self._blocks = blocks
        self._rest: NDArray[np.uint8] | None = None

    def take(self, count: int, clip: Clip) -> NDArray[np.uint8]:
        taken: list[NDArray[np.uint8]] = []
        missing = count
        while missing:
            if self._rest is None or not len(self._rest):
                self._rest = next(self._blocks, None)
                if self._rest is None:
                    raise NotFound(
                        f"{clip.source_uri}: gives fewer frames than were encoded as clip "
                        f"{clip.clip_id}, so it was replaced by another video. Comparing the two "
                        "would mean nothing. Decode without comparing"
                    )
            taken.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(taken[-1])
        return np.concatenate(taken)
