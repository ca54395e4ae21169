"""All that the page shows, gathered from an output."""

from __future__ import annotations

import base64
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import TokpipeError
from tokpipe.inspection import Inspection, inspect
from tokpipe.quality import Quality
from tokpipe.reader import Output
from tokpipe.redact import redact
from tokpipe.report.history import History, read_history


@dataclass(frozen=True, slots=True)
class Pair:
    """One clip beside what its codes still know of it."""

    clip_id: str
    source_uri: str
    png: str
    """A picture in base64: frames of the source, and those of the codes below them."""
    quality: Quality


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to tell about an output."""

    output: Output
    history: History
    inspection: Inspection
    """Codes of some of its shards, counted."""
    clip_frames: NDArray[np.int64]
    """Frames of each clip of these shards."""
    pairs: list[Pair] = field(default_factory=list)
    why_no_pairs: str | None = None
    """What kept clips from being decoded."""

    @property
    def num_rows(self) -> int:
        return self.output.record.num_rows


def gather(output: Output, *, num_shards: int, num_pairs: int, seed: int = 0) -> Facts:
    """Read an output's manifest, some of its shards, and the sources of some of its clips.

    Args:
        num_shards: shards whose codes and clips are counted, spread evenly; 0 for all.
        num_pairs: clips to decode and to put beside their sources, 0 for none. That this fails
            is told in place of them.

    Raises:
        CorruptOutput: what is read of the output is damaged.
    """
    inspection = inspect(output, num_shards=num_shards, num_clips=0)
    chosen = random.Random(seed)
    clips: list[tuple[int, str]] = []
    frames: list[NDArray[np.int64]] = []
    for number in inspection.shards:
        table = output.side_table(output.shards[number])
        frames.append(table.column("n_frames").to_numpy().astype(np.int64))
        clips += ((number, clip_id) for clip_id in table.column("clip_id").to_pylist())
    pairs: list[Pair] = []
    problem = None
    if num_pairs and clips:
        try:
            for number, clip_id in chosen.sample(clips, min(num_pairs, len(clips))):
                pairs.append(_pair(output, number, clip_id))
        except ImportError as error:
            problem = f"torch is needed to decode codes, and is not installed here ({error})"
        except TokpipeError as error:
            problem = redact(str(error))
    return Facts(
        output,
        read_history(output.store, output.num_entries, output.shards),
        inspection,
        np.concatenate(frames) if frames else np.zeros(0, np.int64),
        pairs,
        problem,
    )


def _pair(output: Output, number: int, clip_id: str) -> Pair:
    from tokpipe.reconstruct.command import write_clip  # imports torch

    clip = output.clip_of_shard(number, clip_id)
    assert clip is not None, "its side table lists it"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.png"
        decoded = write_clip(output, clip, path, compare=True)
        assert decoded.quality is not None
        return Pair(
            clip.clip_id,
            redact(clip.source_uri),
            base64.b64encode(path.read_bytes()).decode(),
            decoded.quality,
        )
