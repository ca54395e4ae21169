"""The sources of an output's clips, and what of them its codes stand for."""

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, product, starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import NotFound, SourceError
from tokpipe.media.decoder import Probe
from tokpipe.media.geometry import fit_frame
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Clip, Output
from tokpipe.reader.search import side_rows
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut, WorkItem


class Sources(ExitStack):
    """Opens sources as a job did, if they are trusted. As a context manager, stops its decoder."""

    def __init__(self, output: Output, job: JobConfig, pieces: Cut | None) -> None:
        super().__init__()
        self._output, self._job, self._pieces = output, job, pieces

    @cached_property
    def _opened(self) -> tuple[PlanReader, DecodeStage]:
        """What names the sources, and what decodes them until this is closed."""
        job, output = self._job, self._output
        output.trust.check_sources(output.store.uri)
        plan = StoredPlan.of(output.record, output.state.growth)
        reader = PlanReader(output.store, plan, output.trust.sources or job.sources)
        how = job.sampling, job.frames, job.decode, output.trust.storage
        return reader, self.enter_context(DecodeStage(*how, self._pieces))

    def _source(self, plan_row: int) -> tuple[DecodeStage, WorkItem]:
        plan, stage = self._opened
        (item,) = plan.items([plan_row])
        # What the job of an output allows, its author wrote, who may be someone else, unless the
        # caller's own job file named the sources.
        return stage, replace(item, allowed=item.allowed if self._output.trust.sources else ())


class Locator(Sources):
    """Says what codes stand for, each as a dict that docs/output.md describes."""

    def __init__(self, output: Output) -> None:
        all_frames, uri = Cut(2**31, 2**31), output.store.uri
        super().__init__(output, output.record.recorded_job(uri), all_frames)

    def code(self, clip_id: str, position: int) -> dict[str, Any]:
        """Locate a code by its index in the codes of its clip, flattened."""
        clip = self._output.clip(clip_id)
        if not 0 <= position < clip.codes.size:
            found = f"it has positions 0 to {clip.codes.size - 1:,}"
            raise NotFound(f"clip {clip_id} has no code at position {position}: {found}")
        index = np.unravel_index(position, clip.codes.shape)
        return self._code(clip, [*map(int, index)], self._probe(clip.plan_row))

    def codes_at(self, source: str, time_s: float, x: float, y: float) -> list[dict[str, Any]]:
        """Locate the codes of a point, in pixels of the upright picture, of the matching source.

        They are of what the clip shows at this presentation time: its last frame until then.
        """
        uri, sampling = self._output.store.uri, self._job.sampling
        columns = ["clip_id", "source_uri", "plan_row", "segment", "n_frames"]
        rows = list(side_rows(self._output, columns, source))
        rows = [row for row in rows if row["source_uri"] == source] or rows
        if (number := len({row["source_uri"] for row in rows})) != 1:
            found = f"{number:,} sources with clips match {source!r}"
            raise NotFound(f"{uri}: {found}. Name one, as tokpipe ls prints it")
        codes: list[dict[str, Any]] = []
        for row in rows:
            probe = self._probe(row["plan_row"])
            times_s = probe.times_s.copy()
            times_s[-1] = max(times_s[-1], times_s[-2] + 1 / (sampling.fps or math.inf))
            last = np.searchsorted(times_s, time_s, side="right") - 1
            # Several if a frame is repeated; the end, which is in no clip, if none is on screen.
            shown = np.flatnonzero(times_s == times_s[last])
            shown -= row["segment"] * sampling.max_clip_frames
            if not np.isin(shown, range(row["n_frames"])).any():
                continue
            clip, (rows_at, columns_at) = self._output.clip(row["clip_id"]), self._edges(probe)
            places = [
                [t for t, frames in enumerate(self._frames(clip)) if np.isin(shown, frames).any()],
                np.flatnonzero((rows_at[:-1] <= y) & (y < rows_at[1:])).tolist(),
                np.flatnonzero((columns_at[:-1] <= x) & (x < columns_at[1:])).tolist(),
                *map(range, clip.codes.shape[3:]),
            ]
            codes += [self._code(clip, [*index], probe) for index in product(*places)]
        if not codes:
            where = f"column {x:g}, row {y:g} of {source} at {time_s:g} s"
            why = "It is outside of the picture or of all clips, or was cropped (frames.fit)"
            raise NotFound(f"{uri}: no code shows {where}. {why}")
        return codes

    def _code(self, clip: Clip, index: list[int], probe: Probe) -> dict[str, Any]:
        frames, chunks = self._frames(clip), clip.chunks
        times_s = probe.times_s[clip.segment * self._job.sampling.max_clip_frames :].tolist()
        known, last = [chunks[0].start_pts_s, chunks[-1].end_pts_s], frames[-1].stop - 1
        if [*times_s[:1], *times_s[last:][:1]] != known:
            why = "its frames have other times than those encoded: it was replaced by another video"
            raise SourceError("changed", f"{clip.source_uri}: {why}")
        ends = (index[1], index[2], index[1] + 1, index[2] + 1)  # Top, left, bottom, right
        box = [float(edges[at]) for edges, at in zip(self._edges(probe) * 2, ends, strict=True)]
        return {
            "code": int(clip.codes[(*index,)]),
            "clip_id": clip.clip_id,
            "position": int(np.ravel_multi_index(index, clip.codes.shape)),
            "index": index,
            "source_uri": clip.source_uri,
            "plan_row": clip.plan_row,
            "segment": clip.segment,
            "metadata": {name: str(value) for name, value in clip.metadata.items()},
            "frames": [*frames[index[0]]],
            "times_s": [times_s[frame] for frame in frames[index[0]]],
            "box": [self._output.tokenizer.spatial_stride * end for end in ends],
            "size": [*probe.size],
            "source_box": box if box[0] < box[2] and box[1] < box[3] else None,
            "source_size": [*probe.shown[:2]],
        }

    def _frames(self, clip: Clip) -> list[range]:
        """The frames of the clip that each latent frame encodes: none if it encodes padding."""
        stride, found = self._output.tokenizer.temporal_stride, list[range]()
        for chunk in clip.chunks:
            lag = stride - 1 if chunk.first_is_image else 0  # What its first latent frame lacks
            ends = np.arange(len(chunk.codes) + 1) * stride - lag
            ends = chunk.frame_start + ends.clip(0, chunk.n_frames)
            found += starmap(range, pairwise(ends.tolist()))
        return found

    def _edges(self, probe: Probe) -> list[NDArray[np.float64]]:
        """Where in the upright source the rows and the columns of codes begin, and the last end."""
        fit = fit_frame(*probe.shown, probe.size, self._job.frames.fit)
        stride = self._output.tokenizer.spatial_stride
        return [one[::stride] for one in fit.edges(*probe.shown[:2])]

    def _probe(self, plan_row: int) -> Probe:
        """Open the source of a plan row, which is not decoded."""
        stage, item = self._source(plan_row)
        probe = stage.probe(item)
        if not isinstance(probe, Probe):
            raise SourceError(probe.reason, f"{probe.ref.source_uri}: {probe.message}")
        return probe
