"""The job: how far it is, what it rejected, and how the codes were made."""

import yaml

import tokpipe
from tokpipe.formats.job_record import flatten
from tokpipe.report.charts import BarPart, bars_chart
from tokpipe.report.facts import Facts
from tokpipe.report.markup import (
    UNKNOWN,
    Markup,
    details,
    figure,
    html,
    moment,
    short,
    table,
    tiles,
)
from tokpipe.telemetry.human import counted, duration, size_text, slow_text
from tokpipe.telemetry.redact import redact_nested


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
    kind, badge, text = "done", "done", f"Settled: all of {rows}."
    if not status.is_done:
        kind, badge = "partly", f"{status.num_rows_done / status.num_rows:.1%} done"
        text = f"Settled: {status.num_rows_done:,} of {rows}."
        if status.clips_per_s is not None and status.left_s is not None:
            text += f" Recently {status.clips_per_s:,.1f} clips/s, {duration(status.left_s)} left."
    if status.last_commit_age_s is None:
        text += " Nothing has been committed yet."
    else:
        text += f" Last commit {duration(status.last_commit_age_s)} before this report."
    if slow := slow_text(status.totals.slow_s):
        text += f" Slower than possible: {slow}."
    return html('<p class="state"><span class="badge {}">{}</span> {}</p>', kind, badge, text)


def rejected(facts: Facts) -> list[Markup]:
    reasons = facts.status.totals.rejected.most_common()
    if not reasons:
        return [html("<p>No clip was rejected.</p>")]
    most = reasons[0][1]
    totals, total = facts.status.totals, facts.status.totals.num_rejected
    bars = [
        (
            reason,
            f"{count:,}",
            [BarPart(count / most, "bad", f"{reason}: {count / total:.1%} of the rejected clips")],
        )
        for reason, count in reasons
    ]
    examples = [part for reason, count in reasons for part in _examples(facts, reason, count)]
    return [
        figure(
            f"{total:,} clips by reason",
            bars_chart("Rejected clips by reason", bars),
            f"{totals.rejected_fraction:.2%} of the clips. tokpipe rejected lists all of them.",
        ),
        details("Examples of each reason", *examples, is_open=len(reasons) <= 3),
    ]


def _examples(facts: Facts, reason: str, count: int) -> list[Markup]:
    examples = facts.history.examples[reason]
    rows = ((one.ref.source_uri, one.stage, one.message, one.ref.clip_id) for one in examples)
    columns = ("source", "stage", "message", "clip")
    caption = f"Newest clips rejected for {reason}"
    heading = html("<h3>{} ({:,})</h3>", reason, count)
    return [heading, table(caption, columns, rows, is_numeric=False)]


def provenance(facts: Facts) -> list[Markup]:
    """Dataset, tokenizer, versions, and the job with every default."""
    record, status, history = facts.output.record, facts.status, facts.history
    spec, stride = record.tokenizer, record.tokenizer.spatial_stride
    times = history.first_at, history.last_at
    commits = " to ".join(moment(at) for at in times if at)
    known = {
        "dataset": record.dataset,
        "output": status.uri,
        "fingerprint": record.fingerprint,
        "tokenizer": f"{spec.name}, {spec.codebook_size:,} codes, each of {spec.temporal_stride}x"
        f"{stride}x{stride} pixels, chunks {spec.chunk_policy}",
        "weights": spec.weights_hash,
        "licence of the weights": spec.licence or "not declared",
        "started": f"{moment(record.created_at)} by tokpipe {record.tokpipe_version}",
        "tokpipe versions": ", ".join(history.versions) or UNKNOWN,
        "first and last commit": commits or UNKNOWN,
        "clips by encoder": status.totals.encoders_text(),
        "newest driver": status.driver or UNKNOWN,
        "manifest": counted(facts.output.state.next_seq, "entry", "entries"),
        "this report": f"{moment(facts.made_at)} by tokpipe {tokpipe.__version__}",
    }
    job = yaml.safe_dump(redact_nested(record.job), sort_keys=False, allow_unicode=True, width=88)
    flat = flatten(redact_nested(record.settings))
    settings = [(name, str(value)) for name, value in flat.items()]
    code = '<pre tabindex="0" role="region" aria-label="The resolved job"><code>{}</code></pre>'
    tables = {
        "Settings behind the fingerprint": ("setting", settings),
        "Libraries at the first start": ("library", sorted(record.libraries.items())),
    }
    entry = "<div><dt>{}</dt><dd>{}</dd></div>"
    return [
        html("<dl>{}</dl>", [html(entry, *item) for item in known.items()]),
        details("The resolved job", html(code, job)),
        *(
            details(title, table(title, (column, "value"), rows, is_numeric=False))
            for title, (column, rows) in tables.items()
        ),
    ]
