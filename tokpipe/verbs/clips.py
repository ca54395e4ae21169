"""``tokpipe ls``: the clips of an output, from its side tables."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

from tokpipe.errors import ConfigError
from tokpipe.reader import Output
from tokpipe.reader.search import side_rows, source_matcher
from tokpipe.stages.chunks import num_kept_latents, plan_chunks
from tokpipe.telemetry.human import counted

_COLUMNS = [
    *("clip_id", "source_uri", "segment", "n_segments", "start_pts_s", "end_pts_s"),
    *("n_frames", "fps", "marks"),
]
_HEADING = f"{'frames':>6}  {'seconds':>10}  {'codes':>10}  {'from-to (s)':>18}  source"


def clip_lines(
    output: Output,
    *,
    source: str | None = None,
    mark: str | None = None,
    limit: int = 0,
    as_json: bool = False,
) -> Iterator[str]:
    """Yield the totals, then a line per clip, then what was left out. Holds one side table.

    ``limit`` is 0 for all clips. With ``as_json``, yields only one JSON object per clip.
    """
    if not as_json:
        uri, rejected = output.store.uri, output.totals.num_rejected
        yield f"{uri}: {counted(output.num_clips, 'clip')}, {rejected:,} rejected" + (
            f" (tokpipe rejected {uri})" if rejected else ""
        )
        if output.incomplete:
            yield f"  {output.incomplete}"
    number = 0
    for clip in listed_clips(output, source=source, mark=mark):
        if limit and number == limit:
            if not as_json:
                yield f"only {limit:,} listed (--limit); there are more"
            return
        if as_json:
            yield json.dumps(clip)
        else:
            if not number:
                yield f"{'clip':{len(clip['clip_id'])}}  {_HEADING}"
            yield _line(clip)
        number += 1
    if not as_json and (source is not None or mark is not None):
        yield f"{number:,} of {output.num_clips:,} clips match"


def listed_clips(
    output: Output, *, source: str | None = None, mark: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the clips that match, as JSON objects, shard by shard.

    ``codes`` is [t, h, w]. t is None if another version of tokpipe wrote settings that are unknown
    here.
    """
    matches = source_matcher(source or "")
    num_latents = _latents_of(output)
    for info, row in side_rows(output, _COLUMNS):
        if matches(row["source_uri"]) and mark in (None, *row["marks"]):
            fps, num_frames = row.pop("fps"), row["n_frames"]
            grid = [num_latents(num_frames), *info.grid]
            yield {**row, "duration_s": num_frames / fps, "codes": grid}


def _line(clip: dict[str, Any]) -> str:
    grid = "x".join("?" if side is None else str(side) for side in clip["codes"])
    span = f"{clip['start_pts_s']:.2f}-{clip['end_pts_s']:.2f}"
    marks = f"  [{', '.join(clip['marks'])}]" if clip["marks"] else ""
    return (
        f"{clip['clip_id']}  {clip['n_frames']:>6,}  {clip['duration_s']:>10,.2f}  {grid:>10}  "
        f"{span:>18}  {clip['source_uri']}{marks}"
    )


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
