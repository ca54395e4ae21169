"""The frames that an encoder saw: the source of a clip, decoded again."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tokpipe.config.job import JobConfig
from tokpipe.errors import NotFound, SourceError
from tokpipe.media.quality import Frames
from tokpipe.plan import PlanReader
from tokpipe.reader import Clip
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import DecodedClip


class SourceFrames:
    """Decodes sources as the job did: with the same sampling, size and decoder."""

    def __init__(self, job: JobConfig, plan: PlanReader) -> None:
        self._plan = plan
        self._stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job))
        self._stage.setup()

    def close(self) -> None:
        """Stop the decoding process and remove fetched sources."""
        self._stage.close()

    def blocks(self, clip: Clip) -> Iterator[Frames]:
        """Yield the (T, H, W, 3) frames of each chunk of the clip."""
        pieces = (decoded.frames for decoded in self.decoded(clip))
        rest = np.empty((0, 0, 0, 3), np.uint8)
        for chunk in clip.chunks:
            while len(rest) < chunk.n_frames:
                if (piece := next(pieces, None)) is None:
                    raise NotFound(
                        f"{clip.source_uri}: has fewer frames than were encoded as clip "
                        f"{clip.clip_id}, so it was replaced by another video. The comparison "
                        "would be meaningless. Decode without comparing"
                    )
                rest = np.concatenate([rest, piece]) if len(rest) else piece
            yield rest[: chunk.n_frames]
            rest = rest[chunk.n_frames :]

    def decoded(self, clip: Clip) -> Iterator[DecodedClip]:
        """Yield what an encoder receives of the clip: one piece, or several if it is streamed."""
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
                    "restore the file that was tokenized",
                )
            yield decoded
            last = decoded.piece.is_last
            item = replace(item, piece=item.piece + 1, num_pieces=decoded.piece.num_pieces)
