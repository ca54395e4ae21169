"""The sources of an output's clips, and what of them its codes stand for."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import islice, pairwise, product
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError, NotFound, SourceError
from tokpipe.media.decoder import Probe
from tokpipe.media.geometry import Box, fit_frame
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Chunk, Clip, Output
from tokpipe.reader.search import side_rows
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut, WorkItem

_WHOLE = Cut(2**31, 2**31)


class Sources(ExitStack):
    """Opens sources as the job did. Use it as a context manager, to stop its decoder.

    Raises:
        ConfigError: a source is needed, and the caller does not trust what the output names.
    """

    def __init__(self, output: Output, pieces: Cut | None) -> None:
        super().__init__()
        self._output, self._pieces = output, pieces
        self._recorded = output.record.recorded_job(output.store.uri)

    @cached_property
    def _sources(self) -> tuple[PlanReader, DecodeStage]:
        """What names the sources, and what decodes them until this is closed."""
        job, output = self._recorded, self._output
        output.trust.check_sources(output.store.uri)
        plan = StoredPlan.of(output.record, output.state.growth)
        reader = PlanReader(output.store, plan, output.trust.sources or job.sources)
        how = job.sampling, job.frames, job.decode, output.trust.storage
        return reader, self.enter_context(DecodeStage(*how, self._pieces))

    def _item(self, plan_row: int) -> WorkItem:
        (item,) = self._sources[0].items([plan_row])
        # What the job of an output allows, its author wrote, who may be someone else, unless the
        # caller's own job file named the sources.
        return replace(item, allowed=item.allowed if self._output.trust.sources else ())


class Locator(Sources):
    """Says what codes stand for, each as a dict that docs/output.md describes."""

    def __init__(self, output: Output) -> None:
        super().__init__(output, _WHOLE)
        self._spec = output.tokenizer
        self._frames_per_clip = self._recorded.sampling.max_clip_frames
        if self._spec.chunk_policy == "streaming":  # clips are not cut into segments
            self._frames_per_clip = 0

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
            return self._code(clip, index, self._probe(clip.plan_row))
        except (ConfigError, SourceError) as error:
            return self._code(clip, index, unknown=str(error))

    def codes_at(self, source: str, time_s: float, x: float, y: float) -> list[dict[str, Any]]:
        """Locate the codes of a point of the source that matches, in the frame shown at a time.

        The point is in pixels of the upright picture. The time is a presentation time; if clips
        have fewer frames than the source, the frame is their last one until then.

        Raises:
            NotFound: no clip shows the point, or several sources match.
        """
        columns = ["clip_id", "source_uri", "plan_row", "segment", "n_frames", "fps"]
        rows = list(side_rows(self._output, columns, source))
        rows = [row for row in rows if row["source_uri"] == source] or rows
        if (number := len({row["source_uri"] for row in rows})) != 1:
            found = f"{number:,} sources with clips match {source!r}"
            raise NotFound(f"{self._output.store.uri}: {found}. Name one, as tokpipe ls prints it")
        codes: list[dict[str, Any]] = []
        for row in rows:
            probe = self._probe(row["plan_row"])
            times_s, end_s = probe.times_s[:-1], probe.times_s[-1]
            last = np.searchsorted(times_s, time_s, side="right") - 1
            # Several, perhaps of two segments, if the source has fewer frames per second.
            shown = np.flatnonzero(probe.times_s == probe.times_s[last])
            shown -= row["segment"] * self._frames_per_clip
            is_over = not time_s < max(end_s, times_s[-1] + 1 / row["fps"])
            if is_over or not ((shown >= 0) & (shown < row["n_frames"])).any():
                continue
            clip = self._output.clip(row["clip_id"])
            grid, more = clip.codes.shape[1:3], clip.codes.shape[3:]
            parts = {at: self._part(probe, self._box(*at)) for at in np.ndindex(*grid)}
            at = [at for at, b in parts.items() if b and b[0] <= y < b[2] and b[1] <= x < b[3]]
            for latent, (_, _, frames) in enumerate(_latents(clip, self._spec.temporal_stride)):
                if not set(shown.tolist()).isdisjoint(frames):
                    places = product([latent], at, np.ndindex(*more))
                    codes += [self._code(clip, (a, *b, *c), probe) for a, b, c in places]
        if not codes:
            where = f"column {x:g}, row {y:g} of {source} at {time_s:g} s"
            why = "It is outside of the picture or of all clips, or was cropped (frames.fit)"
            raise NotFound(f"{self._output.store.uri}: no code shows {where}. {why}")
        return codes

    def _code(
        self, clip: Clip, index: tuple[int, ...], probe: Probe | None = None, unknown: str = ""
    ) -> dict[str, Any]:
        latents = _latents(clip, self._spec.temporal_stride)
        chunk, latent, frames = next(islice(latents, index[0], None))
        box, times_s = self._box(*index[1:3]), None
        if probe is not None:
            first = clip.segment * self._frames_per_clip + chunk.frame_start
            known = probe.times_s[first : first + chunk.n_frames].tolist()
            if [*known[:1], *known[-1:]] != [chunk.start_pts_s, chunk.end_pts_s]:
                found = f"{clip.source_uri}: its frames have other times than those encoded"
                raise SourceError("changed", f"{found}: it was replaced by another video")
            times_s = [known[frame - chunk.frame_start] for frame in frames]
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
            "times_s": times_s,
            "box": box,
            "size": [side * self._spec.spatial_stride for side in clip.codes.shape[1:3]],
            "source_box": probe and self._part(probe, box),
            "source_size": probe and [*probe.shown[:2]],
            "unknown": unknown,
        }

    def _box(self, row: int, column: int) -> list[int]:
        return [self._spec.spatial_stride * at for at in (row, column, row + 1, column + 1)]

    def _part(self, probe: Probe, box: list[int]) -> Box | None:
        """Return which part of a source a part of its resized frame shows."""
        fit = fit_frame(*probe.shown, probe.size, self._recorded.frames.fit)
        return fit.in_picture(box, *probe.shown[:2])

    def _probe(self, plan_row: int) -> Probe:
        """Open the source of a plan row, which is not decoded."""
        probe = self._sources[1].probe(self._item(plan_row))
        if not isinstance(probe, Probe):
            raise SourceError(probe.reason, f"{probe.ref.source_uri}: {probe.message}")
        return probe


def _latents(clip: Clip, stride: int) -> Iterator[tuple[Chunk, int, range]]:
    """Yield each latent frame's chunk, place in it, and real frames; none if all are padding."""
    for chunk in clip.chunks:
        lag = stride - 1 if chunk.first_is_image else 0  # What its first latent frame lacks
        ends = (latent * stride - lag for latent in range(len(chunk.codes) + 1))
        ends = (chunk.frame_start + min(max(end, 0), chunk.n_frames) for end in ends)
        yield from ((chunk, at, range(*both)) for at, both in enumerate(pairwise(ends)))
