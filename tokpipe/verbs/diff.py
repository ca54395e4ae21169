"""``tokpipe diff``: what differs between a job and an output, and which clips keep their codes."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.formats.job_record import compared, differences
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges, plan_now
from tokpipe.reader import Output
from tokpipe.stages.chunks import plan_chunks
from tokpipe.stages.decode import decoder_versions
from tokpipe.telemetry.human import counted
from tokpipe.verbs.check import CheckResult
from tokpipe.weights.read import read_weights

_COLUMNS = ["segment", "n_segments", "n_frames", "marks", "plan_row"]
_KIND = [*_COLUMNS[:-1], "row_differs", "size"]  # Many clips have all of these in common
_NONE = "dataset|on_duplicate|part|sources"
_APART: Any = dict.fromkeys(("sources", "tokenizer", "storage", "runtime"), True)
_APART |= {"output": {"uri"}, "decode": {"backend"}}  # Compared by its effects, or has none


def diff(job: JobConfig, output: Output) -> Iterator[CheckResult]:
    """Yield what differs and for how many clips it matters, how many keep their codes, what to do.
    Reads all side tables and lists the sources, but opens none."""
    record, store, growth = output.record, output.store, output.state.growth
    before, job = record.settled(record.recorded_job(store.uri)), record.settled(job)
    weights = read_weights(job.tokenizer, job.storage).hash
    decoders = decoder_versions(job.decode, job.has_pictures)
    both = compared(store, record, job, weights, decoders, growth, extends=True)
    old, new = ({**one, "sources": dict(enumerate(one["sources"]))} for one in both)
    found = {
        text: next(one for one in _EFFECTS if re.match(one, text))
        for text in differences(old, new, "->")
    }
    has_other_codes, has_other_plan = bool({*found.values()} - {_NONE}), bool(found)
    old, new = (one.model_dump(mode="json", exclude=_APART) for one in (before, job))
    names = {one.partition(":")[0] for one in found}
    others = (one for one in differences(old, new, "->") if one.partition(":")[0] not in names)
    found |= dict.fromkeys(others, _NONE)
    plan = StoredPlan.of(record, growth)
    with plan_now(job.model_copy(update={"dataset": record.dataset})) as now:
        changes, rows = SourceChanges.between((store, plan), now)
    columns = now[1].columns
    has_other_plan |= bool(columns.items() - plan.columns.items())
    found |= {f"column {one}": _NONE for one in differences(plan.columns, columns, "->")}
    found |= {f"rows: {text}": "rows" for text in [changes.text] if text}
    sizes = {before.tokenizer.traits.grid(*size)[:2]: size for size in before.frames.sizes}
    kinds, touched, num_kept = Counter[tuple[Any, ...]](), Counter[str](), 0
    for info in output.shards:
        *own, marks, row = (one.to_pylist() for one in output.side_table(info, _COLUMNS).columns)
        kinds.update(zip(*own, map(tuple, marks), rows[row].tolist(), repeat(sizes.get(info.grid))))
    for kind, number in kinds.items():
        clip = dict(zip(_KIND, kind, strict=True))
        by = [one for one in {*found.values()} if _EFFECTS[one][0](clip, before, job)]
        touched.update(dict.fromkeys(by, number))
        num_kept += 0 if by else number
    of_all = f"of {counted(output.num_clips, 'clip')}"
    for text, one in found.items():
        how = _EFFECTS[one][1].format(f"{touched[one]:,} {of_all}")
        facts = {"text": text, "num_clips": touched[one]}
        yield CheckResult("difference", f"{text} ({how})", facts)
    kept = {"num_kept": num_kept, "num_clips": output.num_clips}
    yield CheckResult("clips", f"at least {num_kept:,} {of_all} keep their codes", kept)
    todo = "nothing is to be done: rows that are gone or changed keep their clips"
    if has_other_codes:
        todo = "restore the settings, or use a new output prefix, for which reuse takes no clips "
        todo += "of another fingerprint"
    elif has_other_plan:
        todo = f"use a new output prefix, with reuse: [{store.uri}]"
    elif changes.num_new:
        todo = f"tokpipe run --extend, with output.uri: {store.uri}, adds the new rows"
    elif left := output.num_rows_left:
        todo = f"tokpipe run settles what is left, {counted(left, 'plan row')}"
    yield CheckResult("next", f"next: {todo}", {"todo": todo})


def _cut_elsewhere(clip: Any, before: JobConfig, after: JobConfig) -> bool:
    old, new = before.sampling.max_clip_frames, after.sampling.max_clip_frames
    if after.chunking.policy == "streaming":  # which cuts nothing
        new = 2**31
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
    _NONE: (lambda *_: False, "no code depends on it, only what is shown of rows"),
    "": (lambda *_: True, "up to {} get other codes, as only encoding them shows"),
}
"""By pattern of the setting's name, of which the first counts: which clips it concerns, and how."""
