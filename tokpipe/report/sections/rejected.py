"""Rejected clips by reason."""

from tokpipe.report.charts import BarPart, bars_chart
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, details, figure, html, table


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
    examples = facts.history.examples_of(reason)
    rows = ((one.ref.source_uri, one.stage, one.message, one.ref.clip_id) for one in examples)
    columns = ("source", "stage", "message", "clip")
    caption = f"Newest clips rejected for {reason}"
    heading = html("<h3>{} ({:,})</h3>", reason, count)
    return [heading, table(caption, columns, rows, is_numeric=False)]
