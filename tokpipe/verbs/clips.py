"""``tokpipe ls`` and ``tokpipe rejected``: the clips of an output, and those that it lacks."""

from collections.abc import Iterator
from itertools import islice

from tokpipe.reader import Output
from tokpipe.reader.search import side_rows
from tokpipe.telemetry.human import counted, json_line
from tokpipe.types import Rejected

_COLUMNS = [
    *("clip_id", "source_uri", "segment", "n_segments", "start_pts_s", "end_pts_s"),
    *("n_frames", "fps", "marks"),
]
_HEADING = f"{'frames':>6}  {'seconds':>10}  {'from-to (s)':>18}  source"


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
    clips = (
        {**row, "duration_s": row["n_frames"] / row["fps"]}
        for row in side_rows(output, _COLUMNS, source)
        if mark in (None, *row["marks"])
    )
    if as_json:
        yield from map(json_line, islice(clips, limit or None))
        return
    uri, rejected = output.store.uri, output.totals.num_rejected
    hint = f" (tokpipe rejected {uri})" if rejected else ""
    yield f"{uri}: {counted(output.num_clips, 'clip')}, {rejected:,} rejected{hint}"
    if output.incomplete:
        yield f"  {output.incomplete}"
    number = 0
    for number, clip in enumerate(clips, 1):
        if limit and number > limit:
            yield f"only {limit:,} listed (--limit); there are more"
            return
        if number == 1:
            yield f"{'clip':{len(clip['clip_id'])}}  {_HEADING}"
        span = f"{clip['start_pts_s']:.2f}-{clip['end_pts_s']:.2f}"
        marks = f"  [{', '.join(clip['marks'])}]" if clip["marks"] else ""
        figures = f"{clip['n_frames']:>6,}  {clip['duration_s']:>10,.2f}  {span:>18}"
        yield f"{clip['clip_id']}  {figures}  {clip['source_uri']}{marks}"
    if source is not None or mark is not None:
        yield f"{number:,} of {output.num_clips:,} clips match"


def rejected_lines(
    output: Output, *, reason: str | None = None, stage: str | None = None, as_json: bool = False
) -> Iterator[str]:
    """Yield the totals, then three lines per rejected clip, newest first.

    Reads the manifest backwards and holds one entry of it at a time. With ``as_json``, yields
    only one JSON object per clip, with every field of ``tokpipe.types.Rejected``.
    """
    if not as_json:
        yield output.totals.rejected_text()
        if output.incomplete:
            yield f"  {output.incomplete}"
    for one in output.rejected():
        if reason in (None, one.reason) and stage in (None, one.stage):
            yield from [json_line(one)] if as_json else _rejected_lines(one)


def _rejected_lines(rejected: Rejected) -> list[str]:
    ref = rejected.ref
    part = f" (segment {ref.segment} of {ref.num_segments})" if ref.num_segments > 1 else ""
    facts = {
        "stage": rejected.stage,
        "decoder": rejected.backend,
        "error": rejected.error,
        "attempts": rejected.attempts if rejected.attempts > 1 else None,
        "clip": ref.clip_id,
    }
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    source = f"{rejected.reason}: {ref.source_uri or '(purged)'}{part}"
    return [source, f"  {rejected.message}", f"  ({known})"]
