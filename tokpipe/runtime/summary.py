"""The last lines of a run: what the output holds, what was rejected, what limited the speed."""

from collections.abc import Iterator

from tokpipe.config.job import JobConfig
from tokpipe.runtime.job import Outcome
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import counts_text, duration, size_text
from tokpipe.telemetry.speed import speed_text


def summary_lines(job: JobConfig, outcome: Outcome) -> Iterator[str]:
    """Yield the summary of a run, line by line."""
    totals = outcome.totals
    left = f" with {outcome.num_left:,} plan rows left" if outcome.ended == "stopped" else ""
    yield f"{outcome.ended} after {duration(outcome.elapsed_s)}{left}: {job.output.uri}"
    bits = f", {8 * totals.size_bytes / totals.num_codes:.1f} bits each" if totals.num_codes else ""
    yield (
        f"  {totals.num_clips:,} clips, {totals.num_frames:,} frames, {totals.num_codes:,} codes"
    )
    yield f"  {size_text(totals.size_bytes)} in {totals.num_shards:,} shards{bits}"
    if totals.num_rejected:
        yield f"  {totals.num_rejected:,} rejected: {counts_text(totals.rejected)}"
    if outcome.left_out:
        yield f"  left out: {outcome.left_out}"
    if marked := outcome.account.marked:
        yield f"  marked in this run: {counts_text(marked)} (column marks of clips/)"
    if speed := outcome.speed:
        yield f"  {speed_text(speed)}"
    yield from _goodput_lines(outcome.account)
    if outcome.was_drained:
        yield "  stopped because the driver's node is draining"
    if outcome.ended == "stopped":
        yield "  run the same command again to continue"
    elif outcome.rejected_fraction > job.max_rejected_fraction:
        yield (
            f"  failed: {outcome.rejected_fraction:.1%} of the clips are rejected, more than "
            f"max_rejected_fraction={job.max_rejected_fraction:.1%}. The codes of the other clips "
            "are valid and stay; check the reasons, then raise the limit or fix the sources"
        )


def _goodput_lines(account: Account) -> Iterator[str]:
    """How much encoder time was productive, and what losses cost."""
    if account.goodput is not None:
        yield (
            f"  goodput {account.goodput:.0%}: {account.useful_s:,.0f} of {account.paid_s:,.0f} "
            "encoder seconds produced the codes committed by this run"
        )
    if account.lost_actors or account.lost_s:
        actors = ", ".join(f"{n:,} {stage}" for stage, n in sorted(account.lost_actors.items()))
        yield (
            f"  lost workers: {actors or 'none'}; {account.lost_s:,.0f} encoder seconds had to "
            "be repeated"
        )
