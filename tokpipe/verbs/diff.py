"""``tokpipe diff``: what differs between a job and an output, and which clips keep their codes."""

from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.formats.job_record import compared, differences
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges, plan_now
from tokpipe.reader import Output
from tokpipe.stages.decode import decoder_versions
from tokpipe.stages.effects import EFFECTS, NONE, always, effect_of, size_by_grid
from tokpipe.telemetry.human import counted
from tokpipe.verbs.check import CheckResult
from tokpipe.weights.read import read_weights

_COLUMNS = ["segment", "n_segments", "n_frames", "marks", "plan_row"]
_KIND = [*_COLUMNS[:-1], "row_differs", "size"]  # Many clips have all of these in common
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
    found = {text: effect_of(text) for text in differences(old, new, "->")}
    has_other_codes = any(EFFECTS[one][0] is always for one in found.values())
    has_other_plan = bool(found)
    old, new = (one.model_dump(mode="json", exclude=_APART) for one in (before, job))
    names = {one.partition(":")[0] for one in found}
    others = (one for one in differences(old, new, "->") if one.partition(":")[0] not in names)
    found |= dict.fromkeys(others, NONE)
    plan = StoredPlan.of(record, growth)
    with plan_now(job.model_copy(update={"dataset": record.dataset})) as now:
        changes, rows = SourceChanges.between((store, plan), now)
    columns = now[1].columns
    has_other_plan |= bool(columns.items() - plan.columns.items())
    found |= {f"column {one}": NONE for one in differences(plan.columns, columns, "->")}
    found |= {f"rows: {text}": "rows" for text in [changes.text] if text}
    kinds, touched, num_kept = Counter[tuple[Any, ...]](), Counter[str](), 0
    sizes = size_by_grid(before)
    for info in output.shards:
        *own, marks, row = (one.to_pylist() for one in output.side_table(info, _COLUMNS).columns)
        kinds.update(zip(*own, map(tuple, marks), rows[row].tolist(), repeat(sizes.get(info.grid))))
    for kind, number in kinds.items():
        clip = dict(zip(_KIND, kind, strict=True))
        by = [one for one in {*found.values()} if EFFECTS[one][0](clip, before, job)]
        touched.update(dict.fromkeys(by, number))
        num_kept += 0 if by else number
    of_all = f"of {counted(output.num_clips, 'clip')}"
    for text, one in found.items():
        how = EFFECTS[one][1].format(f"{touched[one]:,} {of_all}")
        facts = {"text": text, "num_clips": touched[one]}
        yield CheckResult("difference", f"{text} ({how})", facts)
    kept = {"num_kept": num_kept, "num_clips": output.num_clips}
    yield CheckResult("clips", f"at least {num_kept:,} {of_all} keep their codes", kept)
    todo = "nothing is to be done: rows that are gone or changed keep their clips"
    if has_other_codes:
        todo = "restore the settings, or use a new output prefix, for which no clip can be reused"
    elif has_other_plan:
        todo = f"use a new output prefix, with reuse: [{store.uri}]"
    elif changes.num_new:
        todo = f"tokpipe run --extend, with output.uri: {store.uri}, adds the new rows"
    elif left := output.num_rows_left:
        todo = f"tokpipe run settles what is left, {counted(left, 'plan row')}"
    yield CheckResult("next", f"next: {todo}", {"todo": todo})
