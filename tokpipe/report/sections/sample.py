"""Sections on a sample: how the codebook is used, how long clips are, and what they look like."""

import base64
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean, median_low

from tokpipe.report.charts import AxisTick, Column, columns_chart, count_ticks
from tokpipe.report.facts import NUM_FRAMES, Facts, Pair, Sample
from tokpipe.report.markup import Markup, details, figure, html, notice, table, tiles
from tokpipe.telemetry.human import counted

NUM_BARS = 64  # Columns of the histogram of codes
MAX_LENGTHS = 24  # Columns of a histogram of lengths


def codes(facts: Facts) -> list[Markup]:
    sample, size = facts.sample, facts.output.tokenizer.codebook_size
    usage = sample.usage
    if not usage.num_codes:
        return [*_damaged(sample), html("<p>There are no codes yet.</p>")]
    used, most_bits = usage.num_used, facts.max_bits_per_code
    values = [
        ("perplexity", f"{usage.perplexity:,.0f}", f"of at most {size:,}"),
        ("used", f"{used / size:.1%}", f"{used:,} of {size:,} codes occur"),
        ("dead", f"{size - used:,}", "codes that do not occur in the sample"),
        ("entropy", f"{usage.entropy_bits:.2f}", f"bits per code, of at most {most_bits:.2f}"),
    ]
    bars = min(NUM_BARS, size)
    edges = [index * size // bars for index in range(bars + 1)]
    labels = [f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)]
    ticks = [AxisTick(i * bars / 4, f"{min(i * size // 4, size - 1):,}") for i in range(5)]
    chart, numbers = _histogram(
        "How often codes occur",
        ("codes", "times"),
        dict(zip(labels, usage.histogram(bars).tolist(), strict=True)),
        ticks,
        f"{bars} equal parts of the codebook, from code 0 to {size - 1:,}.",
    )
    most = ((f"{code:,}", f"{share:.3%}") for code, share in usage.most_frequent(10))
    return [
        *_damaged(sample),
        html("<p>Counted over {}: {:,} codes.</p>", _extent(sample), usage.num_codes),
        tiles(values),
        chart,
        details(
            "Code usage as tables",
            table("The most frequent codes", ("code", "share"), most),
            numbers,
        ),
    ]


def lengths(facts: Facts) -> list[Markup]:
    sample = facts.sample
    if not sample.num_clips:
        return [html("<p>There are no clips yet.</p>")]
    charts, tables = zip(
        _length_chart("Frames per clip", sample.frames_per_clip),
        _length_chart("Codes per clip", sample.codes_per_clip),
        strict=True,
    )
    clips = counted(sample.num_clips, "clip")
    return [
        html("<p>Measured over {}: {}.</p>", _extent(sample), clips),
        html('<div class="pair">{}</div>', charts),
        details("Clip lengths as tables", *tables),
    ]


def _length_chart(title: str, lengths: Counter[int]) -> tuple[Markup, Markup]:
    low, high = min(lengths), max(lengths)
    width = math.ceil((high - low + 1) / MAX_LENGTHS)
    starts = range(low, high + 1, width)
    counts = [0] * len(starts)
    for length, number in lengths.items():
        counts[(length - low) // width] += number
    labels = [f"{at:,}" if width == 1 else f"{at:,} to {at + width - 1:,}" for at in starts]
    every = math.ceil(len(counts) / 5)
    ticks = [AxisTick(i + 0.5, f"{starts[i]:,}") for i in range(0, len(counts), every)]
    mean, median = fmean(lengths.elements()), median_low(lengths.elements())
    note = f"Mean {mean:,.1f}, median {median:,}, {low:,} to {high:,}."
    bars = dict(zip(labels, counts, strict=True))
    return _histogram(title, (title.lower(), "clips"), bars, ticks, note)


def _histogram(
    title: str, heads: tuple[str, str], bars: dict[str, int], ticks: list[AxisTick], note: str
) -> tuple[Markup, Markup]:
    rows = [(label, f"{count:,}") for label, count in bars.items()]
    columns = [
        Column(at, at + 1, count, f"{label}: {count:,}")
        for at, (label, count) in enumerate(bars.items())
    ]
    counts = count_ticks(max(bars.values()), whole=True)
    chart = columns_chart(title, columns, ticks=counts, x_ticks=ticks)
    return figure(title, chart, note), table(title, heads, rows)


def _extent(sample: Sample) -> str:
    of = counted(sample.num_shards_of, "shard")
    if sample.num_shards == sample.num_shards_of:
        return f"the whole output ({of})"
    return f"a sample of {sample.num_shards:,} of {of}, evenly spread"


def _damaged(sample: Sample) -> Iterator[Markup]:
    if count := len(sample.damaged):
        yield notice(
            f"{counted(count, 'shard')} of the sample could not be read and "
            f"{'is' if count == 1 else 'are'} left out. Run tokpipe audit."
        )
        yield html("<ul>{}</ul>", [html("<li>{}</li>", message) for message in sample.damaged])


def pictures(facts: Facts) -> list[Markup]:
    """Clips next to their reconstructions; empty if no pictures were requested."""
    found = facts.pairs
    if found is None:
        return []
    if found.problem is not None:
        return [notice("Clips cannot be decoded here. ", found.problem)]
    if not found.pairs:
        return [html("<p>There are no clips yet.</p>")]
    text = (
        f"{counted(len(found.pairs), 'clip')}, selected at random from the sample. Top: up to "
        f"{NUM_FRAMES} evenly spaced frames of the source, as the encoder saw it. Bottom: the same "
        f"frames, decoded from the codes. PSNR and SSIM are means over all decoded frames."
    )
    return [html('<p>{}</p><div class="pairs">{}</div>', text, map(_pair, found.pairs))]


def _pair(pair: Pair) -> Markup:
    clip = pair.clip
    height, width = pair.size
    quality = html("")
    if pair.psnr_db is not None and pair.ssim is not None:
        psnr = "equal" if math.isinf(pair.psnr_db) else f"{pair.psnr_db:.2f} dB"
        quality = html("<strong>PSNR {}, SSIM {:.3f}</strong> ", psnr, pair.ssim)
    shown = [
        (pair.source, "source", f"{pair.shown} frames of the source of clip {clip.clip_id}"),
        (pair.decoded, "from its codes", f"The same frames of {clip.clip_id}, from its codes"),
    ]
    rows = [
        html(
            '<div class="frames"><span class="which">{}</span><img '
            'src="data:image/jpeg;base64,{}" alt="{}" width="{}" height="{}"></div>',
            *(name, Markup(base64.b64encode(data).decode()), text, width * pair.shown, height),
        )
        for data, name, text in shown
        if data is not None
    ]
    return html(
        '<figure>{}{}<figcaption>{}<span class="uri">{}</span><span class="note">{}</span>'
        "</figcaption></figure>",
        rows,
        notice("Without its source. ", pair.problem) if pair.problem else "",
        quality,
        clip.source_uri,
        f"clip {clip.clip_id}, {counted(pair.num_frames, 'frame')} of {height}x{width}",
    )
