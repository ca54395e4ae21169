"""``tokpipe locate``: what of its source a code stands for, and the codes of a place."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError, NotFound, SourceError
from tokpipe.media.decoder import Probe
from tokpipe.media.geometry import Fit, fit_frame
from tokpipe.reader import Chunk, Clip, Output
from tokpipe.reader.search import side_rows
from tokpipe.reconstruct.sources import Sources
from tokpipe.types import Cut

_COLUMNS = [
    *("clip_id", "source_uri", "plan_row", "segment", "n_segments", "n_frames", "fps"),
    *("start_pts_s", "end_pts_s"),
]
_WHOLE = Cut(2**31, 2**31)


class _Seen(NamedTuple):
    """A clip's frames in its source."""

    fit: Fit
    size: tuple[int, int]  # (height, width) of the upright picture
    times_s: NDArray[np.float64]  # (T,)
    end_s: float  # When the last frame leaves the screen


class Located:
    """Codes, and what each stands for."""

    def __init__(
        self,
        output: Output,
        *,
        clip_id: str | None = None,
        position: int | None = None,
        source: str | None = None,
        time_s: float | None = None,
        x: float | None = None,
        y: float | None = None,
    ) -> None:
        """Locate one code of a clip, or find the codes of a place in a source.

        ``position`` is an index into the clip's codes, flattened as t, h, w or t, h, w, c. The
        place is a point of the upright picture, in its pixels, of the frame that the clip shows at
        ``time_s``. Finding codes needs the source. For locating a code, ``unknown`` says why its
        source was not looked at.
        """
        self._output, self.unknown = output, ""
        pieces = _WHOLE if output.tokenizer.chunk_policy == "streaming" else None
        match clip_id, position, source, time_s, x, y:
            case str(), int(), None, None, None, None:
                clip, seen = output.clip(clip_id), None
                if not 0 <= position < clip.codes.size:
                    has = f"clip {clip_id} has codes 0 to {clip.codes.size - 1:,}"
                    raise NotFound(f"--position {position}: {has}")
                try:
                    with Sources(output, pieces) as sources:
                        seen = _seen(sources, _row_of(clip))
                except (ConfigError, NotFound, SourceError) as error:
                    self.unknown = str(error)
                self.codes = [self._code(clip, np.unravel_index(position, clip.codes.shape), seen)]
            case None, None, str(), float(), float(), float():
                with Sources(output, pieces) as sources:
                    self.codes = [*self._codes_at(sources, source, time_s, (y, x))]
            case _:
                wanted = "--clip and --position, or --source, --time, --x and --y"
                raise ConfigError(f"locate: give {wanted}")

    def _code(self, clip: Clip, index: Sequence[Any], seen: _Seen | None) -> dict[str, Any]:
        spec, shape = self._output.tokenizer, clip.codes.shape
        latent, row, column = index[:3]
        chunk, latent, frames = next(islice(_latents(clip, spec.temporal_stride), latent, None))
        height, width = (side * spec.spatial_stride for side in shape[1:3])
        at = [spec.spatial_stride * int(one) for one in (row, column, row + 1, column + 1)]
        box = at[0], at[1], at[2], at[3]
        return {
            "clip_id": clip.clip_id,
            "position": int(np.ravel_multi_index(index, shape)),
            "index": [int(one) for one in index],
            "code": int(clip.codes[index]),
            "source_uri": clip.source_uri,
            "plan_row": clip.plan_row,
            "segment": clip.segment,
            "metadata": {name: str(value) for name, value in clip.metadata.items()},
            "chunk": chunk.chunk_index,
            "chunk_pts_s": [chunk.start_pts_s, chunk.end_pts_s],
            "latent_frame": latent,
            "frames": [*frames],
            "times_s": seen and seen.times_s[frames.start : frames.stop].tolist(),
            "box": box,
            "size": [height, width],
            "source_box": seen and seen.fit.in_picture(box, *seen.size),
            "source_size": seen and seen.size,
        }

    def _codes_at(
        self, sources: Sources, source: str, time_s: float, point: tuple[float, float]
    ) -> Iterator[dict[str, Any]]:
        rows = list(side_rows(self._output, _COLUMNS, source))
        rows = [row for row in rows if row["source_uri"] == source] or rows
        where, num_sources = self._output.store.uri, len({row["source_uri"] for row in rows})
        if num_sources != 1:
            found = f"{num_sources:,} sources with clips match {source!r}"
            raise NotFound(f"{where}: {found}. Name one, as tokpipe ls prints it")
        shown_s: dict[int, float] = {}  # Time of the frame on screen, by plan row
        problem = f"no clip of {source} shows {time_s:g} s"
        # Of a row, the last segment that has begun shows it; if it repeats a frame, others do too.
        for row in sorted(rows, key=lambda row: (row["start_pts_s"], row["segment"]), reverse=True):
            begins_s, plan_row = row["start_pts_s"], row["plan_row"]
            if begins_s > time_s or row["end_pts_s"] < shown_s.get(plan_row, begins_s):
                continue
            seen = _seen(sources, row)
            last = int(np.searchsorted(seen.times_s, time_s, side="right")) - 1
            at_s = shown_s.setdefault(plan_row, float(seen.times_s[last]))
            if not time_s < max(seen.end_s, row["end_pts_s"] + 1 / row["fps"]):
                continue
            place = seen.fit.in_output(point, *seen.size)
            if place is None:
                size = "x".join(map(str, seen.size))
                problem = f"no clip shows {point[::-1]} of the {size} picture"
                continue
            clip, spec = self._output.clip(row["clip_id"]), self._output.tokenizer
            grid = [one // spec.spatial_stride for one in place]
            for latent, (_, _, frames) in enumerate(_latents(clip, spec.temporal_stride)):
                if at_s in seen.times_s[frames.start : frames.stop]:
                    problem = ""
                    for level in np.ndindex(clip.codes.shape[3:]):
                        yield self._code(clip, (latent, *grid, *level), seen)
        if problem:
            raise NotFound(f"{where}: {problem}")

    def to_dict(self) -> dict[str, Any]:
        return {"codes": self.codes, "unknown": self.unknown}

    def lines(self) -> Iterator[str]:
        for code in self.codes:
            clip = f"clip {code['clip_id']}, at {tuple(code['index'])}"
            yield f"code {code['code']}: position {code['position']} of {clip}"
            more = "".join(f", {name}={value:.60}" for name, value in code["metadata"].items())
            yield f"  {code['source_uri']}: row {code['plan_row']:,} of the plan{more}"
            begins_s, ends_s = code["chunk_pts_s"]
            part = f"latent frame {code['latent_frame']} of chunk {code['chunk']}"
            yield f"  {part}, whose frames begin at {begins_s:.3f} s to {ends_s:.3f} s"
            times = "".join(f" {time_s:.3f}" for time_s in code["times_s"] or ())
            at = times and f", at{times} s"
            yield f"  frames {code['frames'] or 'none, only padding'}{at}"
            for name, where in (("box", "size"), ("source_box", "source_size")):
                if code[where] is not None:
                    found = code[name] and "rows {0:g} to {2:g}, columns {1:g} to {3:g}".format(
                        *code[name]
                    )
                    yield f"  {found or 'only background'} of {code[where]}"
        if self.unknown:
            yield f"times and the part of the source are unknown: {self.unknown}"


def _latents(clip: Clip, stride: int) -> Iterator[tuple[Chunk, int, range]]:
    """Yield each latent frame's chunk, place in it, and real frames; none if all are padding."""
    for chunk in clip.chunks:
        # What a first latent frame of one frame lacks shifts all of them.
        lag = stride - 1 if chunk.first_is_image else 0
        ends = [
            chunk.frame_start + min(max(latent * stride - lag, 0), chunk.n_frames)
            for latent in range(len(chunk.codes) + 1)
        ]
        yield from ((chunk, at, range(*both)) for at, both in enumerate(pairwise(ends)))


def _row_of(clip: Clip) -> dict[str, Any]:
    """Return the columns of a clip's row in the side table that ``_seen`` needs."""
    return {
        "source_uri": clip.source_uri,
        "plan_row": clip.plan_row,
        "segment": clip.segment,
        "n_segments": clip.num_segments,
        "n_frames": sum(chunk.n_frames for chunk in clip.chunks),
        "start_pts_s": clip.chunks[0].start_pts_s,
        "end_pts_s": clip.chunks[-1].end_pts_s,
    }


def _seen(sources: Sources, row: dict[str, Any]) -> _Seen:
    """Find a clip's frames in its source, which is opened but not decoded."""
    uri, num_frames = row["source_uri"], row["n_frames"]
    probe = sources.stage.probe(sources.item(row["plan_row"], row["segment"], row["n_segments"]))
    if not isinstance(probe, Probe):
        raise SourceError(probe.reason, f"{uri}: it cannot be read any more: {probe.message}")
    times_s = probe.times_s[:num_frames]
    ends = times_s[[0, -1]].tolist()
    if len(probe.times_s) <= num_frames or ends != [row["start_pts_s"], row["end_pts_s"]]:
        raise NotFound(f"{uri}: it was replaced by another video: its frames have other times")
    fit = fit_frame(*probe.shown, probe.size, sources.job.frames.fit)
    return _Seen(fit, probe.shown[:2], times_s, float(probe.times_s[num_frames]))
