"""The key figures, and how far the job is."""

from tokpipe.report.facts import Facts
from tokpipe.report.markup import UNKNOWN, Markup, html, short, tiles
from tokpipe.telemetry.human import counted, duration, size_text


def headline(facts: Facts) -> Markup:
    totals, history = facts.status.totals, facts.history
    bits, rate, goodput = totals.bits_per_code, facts.frames_per_s, totals.goodput
    drivers = counted(len(history.starts_s), "driver")
    return tiles(
        [
            ("clips", short(totals.num_clips), f"of {counted(facts.status.num_rows, 'plan row')}"),
            (
                "frames",
                short(totals.num_frames),
                UNKNOWN if rate is None else f"{rate:,.1f} per second of working time",
            ),
            ("codes", short(totals.num_codes), f"in {counted(totals.num_rows, 'chunk')}"),
            (
                "bits per code",
                UNKNOWN if bits is None else f"{bits:.2f}",
                f"stored, everything included; uncompressed: {facts.max_bits_per_code:.2f}",
            ),
            ("stored", size_text(totals.size_bytes), f"in {counted(totals.num_shards, 'shard')}"),
            ("rejected", short(totals.num_rejected), f"{totals.rejected_fraction:.2%} of clips"),
            (
                "goodput",
                UNKNOWN if goodput is None else f"{goodput:.0%}",
                "of encoder time produced committed codes",
            ),
            ("working time", duration(history.worked_s), f"of {drivers}"),
        ]
    )


def state_line(facts: Facts) -> Markup:
    status = facts.status
    rows = counted(status.num_rows, "plan row")
    if status.is_done:
        kind, badge = "done", "done"
        text = f"Settled: all of {rows}."
    else:
        kind, badge = "partly", f"{status.num_rows_done / status.num_rows:.1%} done"
        text = f"Settled: {status.num_rows_done:,} of {rows}."
        if status.clips_per_s is not None and status.left_s is not None:
            text += f" Recently {status.clips_per_s:,.1f} clips/s, {duration(status.left_s)} left."
    if status.last_commit_age_s is None:
        text += " Nothing has been committed yet."
    else:
        text += f" Last commit {duration(status.last_commit_age_s)} before this report."
    return html('<p class="state"><span class="badge {}">{}</span> {}</p>', kind, badge, text)
