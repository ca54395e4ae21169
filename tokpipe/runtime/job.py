"""One run of a job, from its settings to an outcome and its summary."""

import os
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from rich.console import Console

import tokpipe
from tokpipe.config.job import JobConfig
from tokpipe.errors import RuntimeFault, TokpipeError, UnsafeStore
from tokpipe.formats.manifest import Totals
from tokpipe.plan.changes import HOW_TO_EXTEND, SourceChanges
from tokpipe.runtime.assemble import JobOutput, RetryRejected, Run
from tokpipe.runtime.cluster import connected, warn_of_unused
from tokpipe.runtime.console import say
from tokpipe.runtime.metrics import JobMetrics
from tokpipe.runtime.progress import ProgressView
from tokpipe.runtime.shell import Shell
from tokpipe.runtime.signals import OF_RUN
from tokpipe.runtime.snapshot import Snapshot, Snapshots, no_room
from tokpipe.storage import probe_store
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import counted, counts_text, duration, rate_text, slow_text
from tokpipe.telemetry.logs import driver_log, log_event

MAX_COMPARED_ROWS = 20_000  # Of a plan that runs compare with its sources: about 20 requests
MIN_JUDGED_S = 30.0  # The speed of a run that encodes for less time says nothing about a longer one


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what its output holds at the end."""

    ended: Literal["done", "stopped"]
    totals: Totals
    elapsed_s: float
    num_left: int  # Plan rows that are not settled
    left_out: str = ""  # What the sources found and did not take, as text
    account: Account = field(default_factory=Account)  # What this run did
    encoding_s: float = 0.0  # Seconds of it since the first encoder was up
    signal: int | None = None  # The signal that stopped the run, or SIGTERM if its node is draining
    was_drained: bool = False  # The run stopped because the driver's node is draining
    why: str = ""  # Why the run stopped early, if it is because of its rejections
    was_done: bool = False  # Earlier runs had already settled every plan row
    changes: str = ""  # How the sources differ from the plan, as text


def run_job(
    job: JobConfig, console: Console, retry: RetryRejected | None = None, *, extend: bool = False
) -> Outcome:
    """Start or resume a job, and work until it is done or a signal stops it. With ``extend``, what
    is new in its sources joins the plan first. No error undoes a commit."""
    started = time.monotonic()
    OF_RUN.say = lambda text: say(console, text, "yellow")
    output = JobOutput(job, extend=extend)
    changes = "" if extend else _changes_text(output)
    if output.state is not None and output.is_done(retry):
        elapsed_s, left_out = time.monotonic() - started, output.plan.left_out.text
        totals = output.state.totals
        return Outcome("done", totals, elapsed_s, 0, left_out, was_done=True, changes=changes)
    try:
        probe_store(output.store)
    except UnsafeStore as error:
        if not job.output.accept_unsafe_store:
            raise
        say(console, f"warning: {error}", "yellow")
    say(console, "connecting to Ray ...")
    with connected(job.runtime.cluster) as (unused, is_local):
        record = output.start(console)
        with (
            ProgressView(console, job.runtime.progress_interval_s) as view,
            driver_log(job.runtime.log_path, partial(say, console), output.log_context),
        ):
            warn_of_unused(unused)
            run = Run(output, console, retry)
            shell, state, plan = Shell(run), run.committer.state, output.plan
            committed, left_out = state.committed, plan.left_out.text
            log_event(
                "run_started",
                f"{job.output.uri}: {plan.num_rows:,} plan rows on {record.device}",
                output_uri=job.output.uri,
                fingerprint=record.fingerprint,
                num_rows=plan.num_rows,
                num_rows_done=committed.num_done,
                device=record.device,
                host=socket.gethostname(),
                pid=os.getpid(),
                tokpipe_version=tokpipe.__version__,
            )
            new = f", {output.growth.num_rows:,} of them new" if output.growth else ""
            rows = f"{counted(plan.num_rows, 'plan row')}{new}"
            where = f"{committed.num_done:,} settled before; encoding on {record.device}"
            say(console, f"{job.output.uri}: {rows}, {where}")
            if left_out:
                say(console, f"left out: {left_out}")
            snapshots, metrics = Snapshots(state, started), JobMetrics(job.dataset, plan.plan_id)

            def show_progress() -> Snapshot:
                if is_local and (lack := no_room(run.dispatcher)):
                    raise RuntimeFault(
                        f"{lack}. A Ray that a run starts gets no other nodes. Committed work is "
                        "kept. Change the setting, or set RAY_ADDRESS to a cluster with room"
                    )
                snapshot = snapshots.take(run.dispatcher)
                view.show(snapshot)
                metrics.show(snapshot)
                return snapshot

            OF_RUN.stop = shell.stop
            finish = shell.run(show_progress)
            encoding_s = show_progress().encoding_s
            names = "num_shards", "num_clips", "num_frames", "num_codes", "size_bytes", "rejected"
            log_event(
                "run_ended",
                f"{finish.outcome}: the output holds {state.totals.num_clips:,} clips",
                outcome=finish.outcome,
                num_rows_done=state.committed.num_done,
                **{name: getattr(state.totals, name) for name in names},
            )
    stopped_by = next(iter(OF_RUN.received), signal.SIGTERM if shell.was_drained else None)
    return Outcome(
        finish.outcome,
        state.totals,
        time.monotonic() - started,
        state.committed.num_unsettled,
        left_out,
        run.dispatcher.out.account,
        encoding_s,
        stopped_by if finish.outcome == "stopped" else None,
        shell.was_drained,
        finish.why,
        changes=changes,
    )


def _changes_text(output: JobOutput) -> str:
    """How the sources differ from the plan of an output that was started, if that is fast to say.
    An error in them is no more than text, since the plan is stored."""
    job, is_tar = output.job, any(one.kind == "webdataset" for one in output.job.sources)
    num_parts = job.part.of if job.part else 1  # whose rows are all listed
    if output.record is None or is_tar or output.plan.num_rows * num_parts > MAX_COMPARED_ROWS:
        return ""
    try:
        return SourceChanges.of_output(job, output.store, output.plan).text
    except TokpipeError as error:
        return f"unknown, because the sources cannot be planned again: {error}"


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
        reasons = counts_text(totals.rejected)
        yield f"  {totals.num_rejected:,} rejected: {reasons} (why: tokpipe rejected {uri})"
    if outcome.left_out:
        yield f"  left out: {outcome.left_out}"
    if outcome.changes:
        yield f"  since it was planned: {outcome.changes}. {HOW_TO_EXTEND}"
    if marked := outcome.account.marked:
        yield f"  marked in this run: {counts_text(marked)} (column marks of clips/)"
    if num_reused := outcome.account.clips.get("reuse"):
        yield f"  {counted(num_reused, 'clip')} of this run taken from the outputs under reuse"
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
    speed, num_clips, num_frames = account.speed, account.clips.get("write", 0), account.num_frames
    if speed is not None and seconds < MIN_JUDGED_S:
        yield f"  encoding took {duration(seconds)}, too short to judge the speed"
    elif speed is not None:
        clips_per_s, frames_per_s = rate_text(num_clips / seconds), rate_text(num_frames / seconds)
        done = counted(num_clips, "clip")
        yield f"  this run: {done} at {clips_per_s} clips/s, {frames_per_s} frames/s"
        yield f"  {speed.advice}"
        useful = f"{account.useful_s:,.0f} of {account.paid_s:,.0f} encoder seconds produced"
        yield f"  goodput {account.goodput or 0:.0%}: {useful} the codes committed by this run"
    if slow := slow_text(account.slow_s):
        yield f"  slower than possible: {slow}"
    if account.lost_actors or account.lost_s:
        actors = ", ".join(f"{n:,} {stage}" for stage, n in sorted(account.lost_actors.items()))
        yield f"  lost workers: {actors or 'none'}; {account.lost_s:,.0f} encoder seconds repeated"
