"""How the codebook is used."""

from __future__ import annotations

from tokpipe.report.charts import Tick, columns_chart
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el
from tokpipe.report.parts import details, figure, notice, section, table, tiles
from tokpipe.report.sections.sampled import damaged, sample_text

NUM_BARS = 64
"""Columns of the histogram."""
FEW_CODES = 20
"""A sample of fewer codes than this many times the codebook's size leaves out some by chance."""


def codes(facts: Facts) -> Markup:
    """How the codebook is used."""
    sample, spec = facts.sample, facts.record.tokenizer
    usage = sample.usage
    if not usage.num_codes:
        return section("codes", "Code usage", *damaged(sample), el("p", "There are no codes yet."))
    size = spec.codebook_size
    used = len(usage.codes)
    values = [
        ("perplexity", f"{usage.perplexity:,.0f}", f"of at most {size:,}"),
        ("used", f"{used / size:.1%}", f"{used:,} of {size:,} codes occur"),
        ("dead", f"{size - used:,}", "codes that never occur in the sample"),
        (
            "entropy",
            f"{usage.entropy_bits:.2f}",
            f"bits a code, of at most {facts.bits_at_most:.2f}",
        ),
    ]
    bars = min(NUM_BARS, size)
    counts = usage.histogram(bars).tolist()
    edges = [index * size // bars for index in range(bars)] + [size]
    titles = [
        f"codes {edges[i]:,} to {edges[i + 1] - 1:,}: {count:,}" for i, count in enumerate(counts)
    ]
    ticks = [Tick(i * bars / 4, f"{min(i * size // 4, size - 1):,}") for i in range(5)]
    few = usage.num_codes < FEW_CODES * size
    return section(
        "codes",
        "Code usage",
        *damaged(sample),
        el("p", f"Counted over {sample_text(sample)}: {usage.num_codes:,} codes."),
        tiles(values),
        *(
            [
                notice(
                    f"So few codes leave out some by chance: count at least {FEW_CODES * size:,} "
                    "before calling one dead, with more shards if there are any."
                )
            ]
            if few and used < size
            else []
        ),
        figure(
            "How often codes occur",
            columns_chart("How often codes occur, by their number", counts, titles, x_ticks=ticks),
            f"{bars} equal parts of the codebook, from code 0 to {size - 1:,}.",
        ),
        details(
            "Code usage as tables",
            table(
                "The most frequent codes",
                ("code", "share"),
                ((f"{code:,}", f"{share:.3%}") for code, share in usage.most_frequent(10)),
            ),
            table(
                "How often codes occur",
                ("codes", "times"),
                (
                    (f"{edges[i]:,} to {edges[i + 1] - 1:,}", f"{count:,}")
                    for i, count in enumerate(counts)
                ),
            ),
        ),
    )
