"""The last lines of a run: what was done, how fast, what was rejected, and what to do next."""

import shlex
from collections.abc import Iterator

from tokpipe.config.job import JobConfig
from tokpipe.runtime.job import Outcome
from tokpipe.telemetry.human import counted, counts_text, duration, rate_text, slow_text
from tokpipe.telemetry.speed import advice, speed_of

MIN_JUDGED_S = 30.0  # The speed of a run that encodes for less time says nothing about a longer one


def summary_lines(job: JobConfig, outcome: Outcome) -> Iterator[str]:
    """Yield the summary of a run, line by line."""
    totals, uri = outcome.totals, shlex.quote(job.output.uri)
    too_many = totals.rejected_fraction > job.max_rejected_fraction
    left = f" with {counted(outcome.num_left, 'plan row')} left" if outcome.num_left else ""
    is_failed = bool(outcome.why) or (outcome.ended == "done" and too_many)
    ended = "failed" if is_failed else outcome.ended
    if outcome.was_done:
        num_clips = totals.num_clips + totals.num_rejected
        yield f"nothing left to do: {counted(num_clips, 'clip')} done before: {job.output.uri}"
    else:
        yield f"{ended} after {duration(outcome.elapsed_s)}{left}: {job.output.uri}"
    bits = f", {totals.bits_per_code:.1f} bits each" if totals.bits_per_code else ""
    yield f"  {totals.text()}{bits}"
    if totals.num_rejected:
        yield (
            f"  {totals.num_rejected:,} rejected: {counts_text(totals.rejected)} "
            f"(why: tokpipe rejected {uri})"
        )
    if outcome.left_out:
        yield f"  left out: {outcome.left_out}"
    if marked := outcome.account.marked:
        yield f"  marked in this run: {counts_text(marked)} (column marks of clips/)"
    yield from _speed_lines(outcome)
    if outcome.was_drained:
        yield "  stopped because the driver's node is draining"
    if outcome.ended == "stopped":
        yield f"  progress: tokpipe status {uri}"
        if not outcome.why:
            yield "  run the same command again to continue"
    else:
        yield f"  a page about it: tokpipe report {uri} -o report.html"
    if outcome.why:
        yield from f"failed: {outcome.why}".splitlines()
    elif is_failed:
        ((reason, _),) = totals.rejected.most_common(1)
        yield (
            f"failed: {totals.rejected_fraction:.1%} of the clips are rejected, more than "
            f"max_rejected_fraction={job.max_rejected_fraction:.1%}. The codes of the other clips "
            "are valid and stay. Check the reasons, then raise the limit, or fix the sources and "
            f"run again with --retry-rejected (--reason {reason} for those alone)"
        )


def _speed_lines(outcome: Outcome) -> Iterator[str]:
    """How fast the run was, what limited it, and what losses cost."""
    account, seconds = outcome.account, outcome.encoding_s
    num_clips, num_frames = account.clips.get("write", 0), account.num_frames
    speed = speed_of(account)
    if speed is not None and seconds < MIN_JUDGED_S:
        yield f"  encoding took {duration(seconds)}, too short to judge the speed"
    elif speed is not None:
        clips_per_s, frames_per_s = rate_text(num_clips / seconds), rate_text(num_frames / seconds)
        done = counted(num_clips, "clip")
        yield f"  this run: {done} at {clips_per_s} clips/s, {frames_per_s} frames/s"
        yield f"  {advice(speed)}"
        yield (
            f"  goodput {account.goodput or 0:.0%}: {account.useful_s:,.0f} of "
            f"{account.paid_s:,.0f} encoder seconds produced the codes committed by this run"
        )
    if slow := slow_text(account.slow_s):
        yield f"  slower than possible: {slow}"
    if account.lost_actors or account.lost_s:
        actors = ", ".join(f"{n:,} {stage}" for stage, n in sorted(account.lost_actors.items()))
        yield (
            f"  lost workers: {actors or 'none'}; {account.lost_s:,.0f} encoder seconds had to "
            "be repeated"
        )
