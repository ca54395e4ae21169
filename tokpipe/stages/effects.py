"""Which clips of an output get other codes because a setting of a job differs."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.stages.chunks import plan_chunks

Concerns = Callable[[Mapping[str, Any], JobConfig, JobConfig], bool]
"""Whether a clip gets other codes, from the job that made it and one that differs from that. A clip
has columns of side tables, its (height, width) as ``size``, and ``row_differs``."""


def always(*_: Any) -> bool:
    """Concerns every clip, as only making it again would show that one stays the same."""
    return True


def _cut_elsewhere(clip: Mapping[str, Any], before: JobConfig, after: JobConfig) -> bool:
    old, new = before.sampling.max_clip_frames, after.sampling.max_clip_frames
    if after.chunking.policy == "streaming":  # which cuts nothing
        new = 2**31
    # A damaged video can end before its last clip.
    is_end = clip["segment"] == clip["n_segments"] - 1 or clip["n_frames"] < old
    return not is_end or clip["segment"] * old % new > 0 or clip["n_frames"] > new


def _too_short(clip: Mapping[str, Any], _: JobConfig, after: JobConfig) -> bool:
    return clip["n_frames"] < after.sampling.min_clip_frames and "picture" not in clip["marks"]


def _resized(clip: Mapping[str, Any], before: JobConfig, after: JobConfig) -> bool:
    # Of sizes that are equally near, the first is taken.
    kept = [size for size in before.frames.sizes if size in after.frames.sizes]
    return clip["size"] not in kept or kept != [*after.frames.sizes]


def _other_chunks(clip: Mapping[str, Any], *jobs: JobConfig) -> bool:
    found = {plan_chunks(clip["n_frames"], one.chunking, one.tokenizer.traits) for one in jobs}
    return len(found) > 1


def _marked(*marks: str) -> Concerns:
    return lambda clip, *_: not {*marks}.isdisjoint(clip["marks"])


NONE = "dataset|on_duplicate|part|sources"
EFFECTS: dict[str, tuple[Concerns, str]] = {
    "rows": (lambda clip, *_: clip["row_differs"], "{} are of rows that are gone or changed"),
    "sampling.fps": (always, "up to {} get other frames"),
    "sampling.max_clip_frames": (_cut_elsewhere, "{} are cut elsewhere"),
    "sampling.min_clip_frames": (_too_short, "{} are too short"),
    "frames.(size|buckets)": (_resized, "up to {} get another size: it depends on their sources"),
    "frames.hdr": (_marked("hdr", "tonemapped"), "{} are of HDR videos"),
    "frames.deinterlace": (_marked("interlaced"), "{} are of interlaced videos"),
    "frames": (always, "up to {} look different: it depends on their sources"),
    "decode.on_damage": (_marked("damaged"), "{} are of damaged videos"),
    "decode.libraries.pillow": (_marked("picture"), "up to {} get other codes: pictures"),
    "chunking.policy: .*'streaming'": (always, "up to {} get other codes: those of other chunks"),
    "chunking": (_other_chunks, "up to {} get other codes: those of other chunks"),
    r"sources\.\d+\.(media|anim)": (always, "up to {} become pictures, or none"),
    NONE: (lambda *_: False, "no code depends on it, only what is shown of rows"),
    "": (always, "up to {} get other codes, as only encoding them shows"),
}
"""By pattern of a difference, of which the first counts: which clips it concerns, and how."""

LAID_OUT = ("sampling.max_clip_frames", "sampling.min_clip_frames", "frames.(size|buckets)")
"""Effects that a probe of the source shows exactly."""


def effect_of(difference: str) -> str:
    """Return the key in ``EFFECTS`` of a line of ``differences``."""
    return next(pattern for pattern in EFFECTS if re.match(pattern, difference))


def size_by_grid(job: JobConfig) -> dict[tuple[int, ...], tuple[int, int]]:
    """The job's frame sizes (height, width) by their grids of codes (h, w), where that is clear."""
    sizes = job.frames.sizes
    grids = [job.tokenizer.traits.grid(*size)[:2] for size in sizes]
    return {grid: size for grid, size in zip(grids, sizes, strict=True) if grids.count(grid) == 1}
