"""``tokpipe ls``: the clips of an output, from its side tables."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from tokpipe.errors import ConfigError
from tokpipe.reader import Output
from tokpipe.reader.search import side_rows, source_matcher
from tokpipe.stages.chunks import num_kept_latents, plan_chunks

_SHORTEST_SOURCE = 24


@dataclass(frozen=True, slots=True)
class ListedClip:
    """One tokenized clip."""

    clip_id: str
    source_uri: str
    segment: int
    num_segments: int
    start_pts_s: float
    end_pts_s: float
    num_frames: int
    duration_s: float
    codes: tuple[int | None, int, int]
    """(t, h, w); t is None if another version of tokpipe wrote settings that are unknown here."""
    marks: tuple[str, ...]

    def line(self, width: int | None) -> str:
        """Return one line for people, at most ``width`` wide if the source can be shortened."""
        grid = "x".join("?" if side is None else str(side) for side in self.codes)
        span = f"{self.start_pts_s:.2f}-{self.end_pts_s:.2f}"
        marks = f"  [{', '.join(self.marks)}]" if self.marks else ""
        known = (
            f"{self.clip_id}  {self.num_frames:>6,}  {self.duration_s:>10,.2f}  {grid:>10}  "
            f"{span:>18}  "
        )
        left = None if width is None else width - len(known) - len(marks)
        return f"{known}{_shortened(self.source_uri, left)}{marks}"


_HEADING = f"{'frames':>6}  {'seconds':>10}  {'codes':>10}  {'from-to (s)':>18}  source"


def clip_lines(
    output: Output,
    *,
    source: str | None = None,
    mark: str | None = None,
    limit: int = 0,
    as_json: bool = False,
    width: int | None = None,
) -> Iterator[str]:
    """Yield the totals, then a line per clip, then what was left out. Holds one side table.

    Args:
        source: only clips whose source matches, as in ``source_matcher``.
        mark: only clips with this mark.
        limit: stop after this many clips; 0 for all.
        as_json: yield only one JSON object per clip.
        width: of the terminal that the lines are for; None leaves sources whole.
    """
    if not as_json:
        uri, rejected = output.store.uri, output.totals.num_rejected
        yield f"{uri}: {output.num_clips:,} clips, {rejected:,} rejected" + (
            f" (tokpipe rejected {uri})" if rejected else ""
        )
    number = 0
    for clip in listed_clips(output, source=source, mark=mark):
        if limit and number == limit:
            if not as_json:
                yield f"only {limit:,} listed (--limit); there are more"
            return
        if as_json:
            yield json.dumps(asdict(clip))
        else:
            if not number:
                yield f"{'clip':{len(clip.clip_id)}}  {_HEADING}"
            yield clip.line(width)
        number += 1
    if not as_json and (source is not None or mark is not None):
        yield f"{number:,} of {output.num_clips:,} clips match"


def listed_clips(
    output: Output, *, source: str | None = None, mark: str | None = None
) -> Iterator[ListedClip]:
    """Yield the clips that match, shard by shard."""
    matches = None if source is None else source_matcher(source)
    num_latents = _latents_of(output)
    for info, row in side_rows(output, _COLUMNS):
        if (matches is None or matches(row["source_uri"])) and (mark in (None, *row["marks"])):
            yield ListedClip(
                clip_id=row["clip_id"],
                source_uri=row["source_uri"],
                segment=row["segment"],
                num_segments=row["n_segments"],
                start_pts_s=row["start_pts_s"],
                end_pts_s=row["end_pts_s"],
                num_frames=row["n_frames"],
                duration_s=row["n_frames"] / row["fps"],
                codes=(num_latents(row["n_frames"]), *info.grid),
                marks=tuple(row["marks"]),
            )


_COLUMNS = [
    *("clip_id", "source_uri", "segment", "n_segments", "start_pts_s", "end_pts_s"),
    *("n_frames", "fps", "marks"),
]


def _latents_of(output: Output) -> Callable[[int], int | None]:
    """Return what turns the frames of a clip into its latent frames; side tables lack them."""
    try:
        job = output.record.job_config(output.store.uri)
    except ConfigError:
        return lambda _: None
    traits = job.tokenizer.traits

    @functools.lru_cache(maxsize=1024)
    def num_latents(num_frames: int) -> int:
        spans = plan_chunks(num_frames, job.chunking, traits)
        return sum(num_kept_latents(span, traits) for span in spans)

    return num_latents


def _shortened(text: str, width: int | None) -> str:
    """Cut out the middle of a text, so that both ends can be recognized."""
    if width is None or len(text) <= (width := max(width, _SHORTEST_SOURCE)):
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[-(width - 1 - head) :]}"
