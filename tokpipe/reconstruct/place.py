"""``tokpipe locate``: what of its source a code stands for, and the codes of a place."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice, pairwise, product
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

_WHOLE = Cut(2**31, 2**31)


class _Seen(NamedTuple):
    """A plan row in its source."""

    fit: Fit
    size: tuple[int, int]  # (height, width) of the upright picture
    times_s: NDArray[np.float64]  # (T,) of the frames of all its clips
    end_s: float  # When the last of them leaves the screen


class Locator(ExitStack):
    """Says what codes of an output stand for. Use it as a context manager, to close sources.

    A code is described by a dict. Its ``frames`` are counted in its clip, and none if it only
    encodes padding; ``times_s`` are their presentation times. ``box`` is what it covers of a frame
    of ``size`` (height, width), and ``source_box`` what that shows of the source's upright picture,
    without what the container hides, of ``source_size``. Boxes are (top, left, bottom, right) in
    pixels; None if it is only background.
    """

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output, self._spec = output, output.tokenizer
        sampling = output.record.recorded_job(output.store.uri).sampling
        is_streamed = self._spec.chunk_policy == "streaming"  # and then not cut into segments
        self._frames_per_clip = _WHOLE.first if is_streamed else sampling.max_clip_frames
        self._frame_s = 1 / sampling.fps if sampling.fps else 0.0

    @cached_property
    def _sources(self) -> Sources:
        return self.enter_context(Sources(self._output, _WHOLE))

    def code(self, clip_id: str, position: int) -> dict[str, Any]:
        """Locate a code of a clip by its index in the codes, flattened as t, h, w or t, h, w, c.

        If its source cannot be read, or is not trusted, ``unknown`` says so, and ``times_s``,
        ``source_box`` and ``source_size`` are None.
        """
        clip = self._output.clip(clip_id)
        if not 0 <= position < clip.codes.size:
            found = f"it has positions 0 to {clip.codes.size - 1:,}"
            raise NotFound(f"clip {clip_id} has no code at position {position}: {found}")
        index = (*map(int, np.unravel_index(position, clip.codes.shape)),)
        try:
            return self._code(clip, index, self._seen(clip.plan_row, clip.source_uri))
        except (ConfigError, SourceError) as error:
            return self._code(clip, index, unknown=str(error))

    def codes_at(self, source: str, time_s: float, x: float, y: float) -> list[dict[str, Any]]:
        """Locate the codes of a point of the source that matches, in the frame shown at a time.

        The point is in pixels of the upright picture. The time is a presentation time; if clips
        have fewer frames than the source, the frame is their last one until then.

        Raises:
            NotFound: no clip shows the point, or several sources match.
        """
        columns = ["clip_id", "source_uri", "plan_row", "segment"]
        rows = list(side_rows(self._output, columns, source))
        rows = [row for row in rows if row["source_uri"] == source] or rows
        if (number := len({row["source_uri"] for row in rows})) != 1:
            found = f"{number:,} sources with clips match {source!r}"
            raise NotFound(f"{self._output.store.uri}: {found}. Name one, as tokpipe ls prints it")
        clips = {(row["plan_row"], row["segment"]): row["clip_id"] for row in rows}
        codes: list[dict[str, Any]] = []
        for plan_row in sorted({plan_row for plan_row, _ in clips}):
            seen = self._seen(plan_row, rows[0]["source_uri"])
            last = int(np.searchsorted(seen.times_s, time_s, side="right")) - 1
            if last < 0 or not time_s < max(seen.end_s, seen.times_s[-1] + self._frame_s):
                continue
            # Several, perhaps of two segments, if the source has fewer frames per second.
            shown = np.flatnonzero(seen.times_s == seen.times_s[last])
            for segment in sorted({*(shown // self._frames_per_clip).tolist()}):
                if clip_id := clips.get((plan_row, segment)):  # else it was rejected
                    frames = {*(shown - segment * self._frames_per_clip).tolist()}
                    codes += self._codes_of(self._output.clip(clip_id), frames, seen, y, x)
        if not codes:
            where = f"column {x:g}, row {y:g} of {source} at {time_s:g} s"
            why = "It is outside of the picture or of all clips, or was cropped (frames.fit)"
            raise NotFound(f"{self._output.store.uri}: no code shows {where}. {why}")
        return codes

    def _codes_of(
        self, clip: Clip, frames: set[int], seen: _Seen, y: float, x: float
    ) -> Iterator[dict[str, Any]]:
        """Locate the codes of a clip for a point of some of its frames."""
        grid, more = clip.codes.shape[1:3], clip.codes.shape[3:]
        boxes = [(seen.fit.in_picture(self._box(*at), *seen.size), at) for at in np.ndindex(*grid)]
        at = [at for box, at in boxes if box and box[0] <= y < box[2] and box[1] <= x < box[3]]
        for latent, (_, _, covered) in enumerate(_latents(clip, self._spec.temporal_stride)):
            if not frames.isdisjoint(covered):
                for place, rest in product(at, np.ndindex(*more)):
                    yield self._code(clip, (latent, *place, *rest), seen)

    def _code(
        self, clip: Clip, index: tuple[int, ...], seen: _Seen | None = None, unknown: str = ""
    ) -> dict[str, Any]:
        latents = _latents(clip, self._spec.temporal_stride)
        chunk, latent, frames = next(islice(latents, index[0], None))
        box, times_s = self._box(*index[1:3]), None
        if seen is not None:
            first = clip.segment * self._frames_per_clip + chunk.frame_start
            times_s = seen.times_s[first : first + chunk.n_frames].tolist()
            if [len(times_s), *times_s[:1], *times_s[-1:]] != [
                *(chunk.n_frames, chunk.start_pts_s, chunk.end_pts_s)
            ]:
                found = f"{clip.source_uri}: its frames have other times than those encoded"
                raise SourceError("changed", f"{found}, so it was replaced by another video")
        return {
            "code": int(clip.codes[index]),
            "clip_id": clip.clip_id,
            "position": int(np.ravel_multi_index(index, clip.codes.shape)),
            "index": [*index],
            "source_uri": clip.source_uri,
            "plan_row": clip.plan_row,
            "segment": clip.segment,
            "metadata": {name: str(value) for name, value in clip.metadata.items()},
            "chunk": chunk.chunk_index,
            "chunk_ends_s": [chunk.start_pts_s, chunk.end_pts_s],
            "latent_frame": latent,
            "frames": [*frames],
            "times_s": times_s and [times_s[frame - chunk.frame_start] for frame in frames],
            "box": box,
            "size": [side * self._spec.spatial_stride for side in clip.codes.shape[1:3]],
            "source_box": seen and seen.fit.in_picture(box, *seen.size),
            "source_size": seen and [*seen.size],
            "unknown": unknown,
        }

    def _box(self, row: int, column: int) -> list[int]:
        stride = self._spec.spatial_stride
        return [row * stride, column * stride, (row + 1) * stride, (column + 1) * stride]

    def _seen(self, plan_row: int, source_uri: str) -> _Seen:
        """Find the frames of a row in its source, which is opened but not decoded."""
        probe = self._sources.stage.probe(self._sources.item(plan_row))
        if not isinstance(probe, Probe):
            found = f"{source_uri}: it cannot be read any more: {probe.message}"
            raise SourceError(probe.reason, found)
        fit = fit_frame(*probe.shown, probe.size, self._sources.job.frames.fit)
        return _Seen(fit, probe.shown[:2], probe.times_s[:-1], float(probe.times_s[-1]))


def _latents(clip: Clip, stride: int) -> Iterator[tuple[Chunk, int, range]]:
    """Yield each latent frame's chunk, place in it, and real frames; none if all are padding."""
    for chunk in clip.chunks:
        # A first latent frame of one frame shifts the others.
        lag = stride - 1 if chunk.first_is_image else 0
        ends = [
            chunk.frame_start + min(max(latent * stride - lag, 0), chunk.n_frames)
            for latent in range(len(chunk.codes) + 1)
        ]
        yield from ((chunk, at, range(*both)) for at, both in enumerate(pairwise(ends)))


def locate(
    output: Output,
    *,
    clip_id: str | None,
    position: int | None,
    source: str | None,
    time_s: float | None,
    x: float | None,
    y: float | None,
) -> dict[str, Any]:
    """Return the codes that the command line names."""
    with Locator(output) as locator:
        match clip_id, position, source, time_s, x, y:
            case str(), int(), None, None, None, None:
                return {"codes": [locator.code(clip_id, position)]}
            case None, None, str(), float(), float(), float():
                return {"codes": locator.codes_at(source, time_s, x, y)}
    wanted = "--clip and --position, or --source, --time, --x and --y"
    raise ConfigError(f"locate: give {wanted}, and nothing else of these")
