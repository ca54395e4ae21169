"""``tokpipe diff``: what differs between a job and an output, and which clips keep their codes."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tokpipe.config.job import JobConfig
from tokpipe.errors import TokpipeError
from tokpipe.formats.job_record import compared, differences
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges, plan_now
from tokpipe.reader import Output
from tokpipe.stages.chunks import plan_chunks
from tokpipe.stages.decode import decoder_versions
from tokpipe.telemetry.human import counted
from tokpipe.weights.read import read_weights

_COLUMNS = ["plan_row", "segment", "n_segments", "n_frames", "marks"]
_OF_PLAN = "dataset|on_duplicate|part|sources"
_APART: Any = dict.fromkeys(("sources", "tokenizer", "storage", "runtime"), True)
_APART |= {"output": {"uri"}, "decode": {"backend"}}
"""What is compared by its effects, or has none on the output."""


class Diff:
    """What differs between a job and an output, and for how many clips it matters."""

    def __init__(self, job: JobConfig, output: Output) -> None:
        """Compare settings, rows and columns. Reads all side tables, but opens no source.

        Raises:
            ConfigError: another version of tokpipe recorded settings that are unknown here.
        """
        record, store, growth = output.record, output.store, output.state.growth
        before, job = record.settled(record.recorded_job(store.uri)), record.settled(job)
        weights = read_weights(job.tokenizer, job.storage).hash
        decoders = decoder_versions(job.decode, job.has_pictures)
        both = compared(store, record, job, weights, decoders, growth, extends=True)
        old, new = ({**one, "sources": dict(enumerate(one["sources"]))} for one in both)
        found = differences(old, new, "->")
        old, new = (one.model_dump(mode="json", exclude=_APART) for one in (before, job))
        self.without_codes = [one for one in differences(old, new, "->") if one not in found]
        """What differs and decides about no codes."""
        of_plan = [bool(re.match(_OF_PLAN, one)) for one in found]
        self.has_other_codes, self.has_other_plan = not all(of_plan), any(of_plan)
        plan, rows = StoredPlan.of(record, growth), np.zeros(output.num_rows, bool)
        self.source_changes: SourceChanges | None = None
        try:
            with plan_now(job.model_copy(update={"dataset": record.dataset})) as now:
                self.source_changes, rows = SourceChanges.between((store, plan), now)
            columns = now[1].columns
            self.without_codes += differences({"column": plan.columns}, {"column": columns}, "->")
            self.has_other_plan |= bool(columns.items() - plan.columns.items())
            found += [f"rows: {text}" for text in [self.source_changes.text] if text]
        except TokpipeError as error:
            found.append(f"rows: not compared, as the sources cannot be planned now: {error}")
        effects = {text: next(one for one in _EFFECTS if re.match(one, text)) for text in found}
        sizes = {before.tokenizer.traits.grid(*size)[:2]: size for size in before.frames.sizes}
        numbers, self.num_kept = Counter[str](), 0
        """Clips that keep their codes, at least."""
        for info in output.shards:
            for clip in output.side_table(info, _COLUMNS).to_pylist():
                clip |= {"size": sizes.get(info.grid), "row_differs": rows[clip["plan_row"]]}
                touched = [
                    one for one in {*effects.values()} if _EFFECTS[one][0](clip, before, job)
                ]
                numbers.update(touched)
                self.num_kept += not touched
        self.uri, self.num_clips = store.uri, output.num_clips
        self.differences: list[dict[str, Any]] = [
            {"text": text, "num_clips": numbers[one], "effect": _EFFECTS[one][1]}
            for text, one in effects.items()
        ]
        """What differs, with the most clips that get other codes or none."""
        self.next = self._next(output.num_rows_left)
        """What to do, in words."""

    def _next(self, num_rows_left: int) -> str:
        if self.has_other_codes:
            return (
                "use a new output prefix, or restore the settings. Under another fingerprint, the "
                "output cannot be continued, and reuse takes nothing from it"
            )
        if self.has_other_plan:
            return f"use a new output prefix, with reuse: [{self.uri}]"
        if self.source_changes is not None and self.source_changes.num_new:
            return f"tokpipe run --extend, with output.uri: {self.uri}, adds the new rows"
        if num_rows_left:
            return f"tokpipe run settles what is left, {counted(num_rows_left, 'plan row')}"
        return "nothing is to be done: rows that are gone or changed keep their clips"

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> Iterator[str]:
        of_all = f"of {counted(self.num_clips, 'clip')}"
        yield f"{self.uri}: at least {self.num_kept:,} {of_all} keep their codes"
        for one in self.differences:
            yield f"  {one['text']}"
            yield "    " + one["effect"].format(f"{one['num_clips']:,} {of_all}")
        yield from (f"  no code depends on {text}" for text in self.without_codes)
        yield f"next: {self.next}"


def _cut_elsewhere(clip: Any, before: JobConfig, after: JobConfig) -> bool:
    old, new = (
        2**31 if job.chunking.policy == "streaming" else job.sampling.max_clip_frames
        for job in (before, after)
    )
    # A damaged video can end before its last clip.
    is_end = clip["segment"] == clip["n_segments"] - 1 or clip["n_frames"] < old
    return not is_end or clip["segment"] * old % new > 0 or clip["n_frames"] > new


def _too_short(clip: Any, _: JobConfig, after: JobConfig) -> bool:
    return clip["n_frames"] < after.sampling.min_clip_frames and "picture" not in clip["marks"]


def _resized(clip: Any, before: JobConfig, after: JobConfig) -> bool:
    # Of sizes that are equally near, the first is taken.
    kept = [size for size in before.frames.sizes if size in after.frames.sizes]
    return clip["size"] not in kept or kept != [*after.frames.sizes]


def _other_chunks(clip: Any, *jobs: JobConfig) -> bool:
    found = {plan_chunks(clip["n_frames"], one.chunking, one.tokenizer.traits) for one in jobs}
    return len(found) > 1 or any(one.chunking.policy == "streaming" for one in jobs)


def _marked(*marks: str) -> Callable[..., bool]:
    return lambda clip, *_: not {*marks}.isdisjoint(clip["marks"])


_EFFECTS: dict[str, tuple[Callable[[Any, JobConfig, JobConfig], bool], str]] = {
    "rows: not": (lambda *_: False, "counted as if the sources were as planned"),
    "rows": (lambda clip, *_: clip["row_differs"], "{} are of rows that are gone or changed"),
    "sampling.fps": (lambda clip, *_: "picture" not in clip["marks"], "up to {} get other frames"),
    "sampling.max_clip_frames": (_cut_elsewhere, "{} are cut elsewhere"),
    "sampling.min_clip_frames": (_too_short, "{} are too short"),
    "frames.(size|buckets)": (_resized, "up to {} get another size: it depends on their sources"),
    "frames.hdr": (_marked("hdr", "tonemapped"), "{} are of HDR videos"),
    "frames.deinterlace": (_marked("interlaced"), "{} are of interlaced videos"),
    "frames": (lambda *_: True, "up to {} look different: it depends on their sources"),
    "decode.on_damage": (_marked("damaged"), "{} are of damaged videos"),
    "decode.libraries.pillow": (_marked("picture"), "up to {} get other codes: pictures"),
    "chunking": (_other_chunks, "up to {} get other codes: those of other chunks"),
    r"sources\.\d+\.(media|anim)": (lambda *_: True, "up to {} become pictures, or none"),
    _OF_PLAN: (lambda *_: False, "no code depends on it; where rows differ, it is shown below"),
    "": (lambda *_: True, "up to {} get other codes, as only encoding them shows"),
}
"""By pattern of the setting's name, of which the first counts: which clips it concerns, and how."""
