"""Rejected clips by reason."""

from __future__ import annotations

from tokpipe.report.charts import Part, bars_chart
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, joined
from tokpipe.report.parts import details, figure, section, table
from tokpipe.report.refusals import Refusal


def rejected(facts: Facts) -> Markup:
    """By reason, with examples."""
    refusals = facts.refusals
    if not refusals:
        return section("rejected", "Rejected clips", el("p", "No clip was rejected."))
    most = refusals[0].count
    total = facts.status.totals.num_rejected
    chart = bars_chart(
        "Rejected clips by reason",
        [
            (
                one.reason,
                f"{one.count:,}",
                [Part(one.count / most, "bad", f"{one.reason}: {one.count / total:.1%} of them")],
            )
            for one in refusals
        ],
    )
    return section(
        "rejected",
        "Rejected clips",
        figure(
            f"{total:,} clips by reason",
            chart,
            f"{facts.rejected_share:.2%} of the clips. The verb rejected lists them all.",
        ),
        details("Examples of each reason", *map(_examples, refusals), is_open=len(refusals) <= 3),
    )


def _examples(refusal: Refusal) -> Markup:
    rows = (
        (one.ref.source_uri, one.stage, one.message, one.ref.clip_id) for one in refusal.examples
    )
    return joined(
        el("h3", f"{refusal.reason} ({refusal.count:,})"),
        table(
            f"Clips rejected for {refusal.reason}, the newest",
            ("source", "stage", "message", "clip"),
            rows,
            numbers_from=9,
        ),
    )
