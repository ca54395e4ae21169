"""Facts as one page of HTML, which loads nothing from anywhere.

Everything that comes out of an output is escaped, and the page's own policy forbids what could
still slip through: it allows no request, and no script but the one that changes the theme.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from itertools import pairwise

import numpy as np

import tokpipe
from tokpipe.redact import redact
from tokpipe.report.charts import NOTHING, Series, bars, lines
from tokpipe.report.facts import Facts
from tokpipe.report.history import History, Span
from tokpipe.runtime.protocol import Stage
from tokpipe.runtime.speed import ACTIVITIES, OF_STAGE, Seconds, speed_of, speed_text
from tokpipe.texts import duration, size_text

_THEME = """
const root = document.documentElement, button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const dark = getComputedStyle(root).colorScheme === "dark" || (root.dataset.theme === undefined
    && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
});
"""
_CODE_BINS = 128
_LENGTH_BINS = 40


def page_html(facts: Facts, *, now: datetime | None = None) -> str:
    """The whole page."""
    now = now or datetime.now(timezone.utc)
    sections = {
        "Throughput": _throughput(facts.history),
        "Limits": _limits(facts.history),
        "Rejected": _rejected(facts),
        "Codes": _codes(facts),
        "Clips": _clips(facts),
        "Reconstructions": _pairs(facts),
        "Provenance": _provenance(facts),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}" aria-labelledby="{name.lower()}-title">'
        f'<h2 id="{name.lower()}-title">{name}</h2>{"".join(parts)}</section>'
        for name, parts in sections.items()
    )
    title = f"{facts.output.record.dataset}: tokpipe report"
    style = files("tokpipe.report").joinpath("page.css").read_text()
    digest = base64.b64encode(hashlib.sha256(_THEME.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f'<header>{_head(facts)}<nav aria-label="Sections">{links}'
        '<button id="theme" type="button" hidden>Light or dark</button></nav></header>'
        f'<main id="content">{_summary(facts)}{body}</main>'
        f"<footer>Made by tokpipe {escape(tokpipe.__version__)}, {_when(now)}.</footer>"
        f"<script>{_THEME}</script></body></html>\n"
    )


def _head(facts: Facts) -> str:
    record, done = facts.output.record, facts.output.num_rows_done
    state = (
        "done: every planned clip is tokenized or rejected"
        if done == record.num_rows
        else f"not finished: {done:,} of {record.num_rows:,} plan rows are settled"
    )
    return (
        f"<h1>{escape(record.dataset)}</h1>"
        f'<p class="where">{escape(redact(facts.output.store.uri))}</p>'
        f'<p class="state">{state}</p>'
    )


def _summary(facts: Facts) -> str:
    totals, history = facts.output.totals, facts.history
    bits = 8 * totals.size_bytes / totals.num_codes if totals.num_codes else 0.0
    settled = totals.num_clips + totals.num_rejected
    cards = [
        (
            "Clips",
            f"{totals.num_clips:,}",
            f"in {totals.num_shards:,} shard{'' if totals.num_shards == 1 else 's'}",
        ),
        ("Frames", f"{totals.num_frames:,}", "after resampling"),
        ("Codes", f"{totals.num_codes:,}", f"{bits:.2f} bits each, all files counted"),
        ("Size", size_text(totals.size_bytes), "shards and side tables"),
        (
            "Rejected",
            f"{totals.num_rejected:,}",
            f"{totals.num_rejected / settled:.2%} of the clips" if settled else "of no clips yet",
        ),
        ("Time", duration(history.elapsed_s), "first to last commit, pauses included"),
    ]
    if totals.goodput is not None:
        paid = duration(totals.paid_s)
        cards.append(("Goodput", f"{totals.goodput:.0%}", f"of {paid} of encoders"))
    if speed := speed_of(_seconds(history)):
        limit = f"limited by {speed.limit}" if speed.limit else "no stage was busy for long"
        cards.append(("Speed of light", f"{speed.share:.0%}", limit))
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{about}</small></dd></div>"
        for name, value, about in cards
    )
    return (
        '<section id="summary" aria-labelledby="summary-title">'
        f'<h2 id="summary-title">Summary</h2><dl class="cards">{items}</dl></section>'
    )


def _throughput(history: History) -> Iterator[str]:
    if not history.spans:
        yield '<p class="note">Nothing is committed yet.</p>'
        return
    if history.num_read < history.num_entries:
        yield (
            f'<p class="note">Times are those of {history.num_read:,} of {history.num_entries:,} '
            "commits, and those between lie between them.</p>"
        )
    yield (
        '<p class="note">By the times of commits: a clip counts when its shard was committed. '
        f"Each step is {history.spans[0].seconds:,.3g} s long.</p>"
    )
    rates = {
        "Clips": [span.num_clips / span.seconds for span in history.spans],
        "Codes": [span.num_codes / span.seconds for span in history.spans],
    }
    for title, values in rates.items():
        series = [Series(title, values)]
        yield lines(title, _times(history), series, x_ends=_ends(history), unit="per second")


def _limits(history: History) -> Iterator[str]:
    seconds = _seconds(history)
    if not any(seconds.up.values()):
        yield (
            '<p class="note">This output has no record of what its actors did: it was made by an '
            "older tokpipe, or has no commit yet.</p>"
        )
        return
    if speed := speed_of(seconds):
        yield f"<p>Over all runs: {escape(speed_text(speed))}.</p>"
    stages = list(OF_STAGE)
    yield lines(
        "Busy share of the actors of each stage",
        _times(history),
        [
            Series(stage, [_busy(span, stage) for span in history.spans], colour)
            for colour, stage in enumerate(stages, 1)
        ],
        x_ends=_ends(history),
        unit="of the time for which they were up",
        top=1.0,
    )
    yield (
        '<div class="scroll"><table><thead><tr><th class="text" scope="col">What actors spent time '
        'on</th><th scope="col">Time of all actors</th><th scope="col">Of the time that its '
        "stage was up</th></tr></thead><tbody>"
    )
    for stage, activities in OF_STAGE.items():
        up = seconds.up.get(stage, 0.0)
        for activity in activities:
            spent = seconds.spent.get(activity, 0.0)
            share = f"{min(1.0, spent / up):.1%}" if up else NOTHING
            yield (
                f'<tr><th scope="row">{activity}</th><td>{duration(spent)}</td>'
                f"<td>{share}</td></tr>"
            )
    yield "</tbody></table></div>"


def _rejected(facts: Facts) -> Iterator[str]:
    rejected = facts.output.totals.rejected
    if not rejected:
        yield '<p class="note">No clip was rejected.</p>'
        return
    yield (
        '<div class="scroll"><table><thead><tr><th class="text" scope="col">Reason</th>'
        '<th scope="col">Clips</th><th class="text" scope="col">For example</th></tr></thead>'
        "<tbody>"
    )
    for reason, number in rejected.most_common():
        examples = "".join(
            f"<div>{escape(redact(one.ref.source_uri))}: {escape(redact(one.message))}</div>"
            for one in facts.history.examples.get(reason, ())
        )
        yield (
            f'<tr><th scope="row">{escape(reason)}</th><td>{number:,}</td>'
            f'<td class="text">{examples}</td></tr>'
        )
    yield "</tbody></table></div>"


def _codes(facts: Facts) -> Iterator[str]:
    usage, size = facts.inspection.usage, facts.output.tokenizer.codebook_size
    if not usage.num_codes:
        yield '<p class="note">No codes yet.</p>'
        return
    yield _of_shards(facts)
    used = len(usage.codes)
    pairs = [
        ("Counted", f"{usage.num_codes:,}", "codes"),
        ("In use", f"{used / size:.1%}", f"{used:,} of {size:,} codes"),
        ("Never seen", f"{size - used:,}", "codes of the codebook"),
        ("Perplexity", f"{usage.perplexity:,.0f}", f"of {size:,} at most"),
        ("Entropy", f"{usage.entropy_bits:.2f}", f"bits, of {math.log2(size):.2f}"),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{about}</small></dd></div>"
        for name, value, about in pairs
    )
    yield f'<dl class="cards">{items}</dl>'
    bins = min(_CODE_BINS, size)
    edges = [number * size // bins for number in range(bins + 1)]
    yield bars(
        "How often codes occur, by equal parts of the codebook",
        [f"codes {edges[n]:,} to {edges[n + 1] - 1:,}" for n in range(bins)],
        Series("Codes", usage.histogram(bins).tolist()),
        x_ends=("0", f"{size - 1:,}"),
        unit="codes",
    )
    order = np.sort(usage.counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(order), min(60, len(order))).round().astype(int))
    yield lines(
        "How often the most frequent codes occur",
        [f"the {rank:,} most frequent" for rank in ranks],
        [Series("Share", (np.cumsum(order)[ranks - 1] / usage.num_codes).tolist(), 3)],
        x_ends=("1", f"{len(order):,} codes"),
        unit="share of all that were counted, over a logarithmic number of codes",
        top=1.0,
    )


def _clips(facts: Facts) -> Iterator[str]:
    frames = facts.clip_frames
    if not len(frames):
        yield '<p class="note">No clips yet.</p>'
        return
    yield _of_shards(facts)
    low, high = int(frames.min()), int(frames.max())
    bins = min(_LENGTH_BINS, high - low + 1)
    edges = np.linspace(low, high + 1, bins + 1).round().astype(int)
    counts = np.histogram(frames, edges)[0]
    yield bars(
        "Clip lengths",
        [
            f"{begin:,} frames" if end - begin == 1 else f"{begin:,} to {end - 1:,} frames"
            for begin, end in pairwise(edges)
        ],
        Series("Clips", counts.tolist(), 2),
        x_ends=(f"{low:,} frames", f"{high:,} frames"),
        unit="clips",
    )
    middle, mean = np.median(frames), frames.mean()
    yield (
        f'<p class="note">{len(frames):,} clips of {low:,} to {high:,} frames; median '
        f"{middle:,.0f}, mean {mean:,.1f}.</p>"
    )


def _pairs(facts: Facts) -> Iterator[str]:
    if facts.why_no_pairs is not None:
        yield (
            '<p class="problem">Clips could not be put beside their sources: '
            f"{escape(facts.why_no_pairs)}</p>"
        )
    elif not facts.pairs:
        yield '<p class="note">None were asked for, or there are no clips yet.</p>'
    else:
        yield (
            '<p class="note">Clips chosen at random. Above, frames of the source; below, what '
            "their codes give back.</p>"
        )
    for pair in facts.pairs:
        psnr, ssim = pair.quality.psnr_db, pair.quality.ssim
        quality = f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"
        yield (
            f"<figure><figcaption>{escape(pair.clip_id)} <span>{quality}</span></figcaption>"
            f'<img alt="Frames of the source above their reconstructions, {quality}" '
            f'src="data:image/png;base64,{pair.png}">'
            f'<p class="where">{escape(pair.source_uri)}</p></figure>'
        )


def _provenance(facts: Facts) -> Iterator[str]:
    record, spec = facts.output.record, facts.output.tokenizer
    rows: dict[str, str] = {
        "Fingerprint": record.fingerprint,
        "Plan": str(record.plan.get("plan_id", "")),
        "Begun": record.created_at,
        "By tokpipe": record.tokpipe_version,
        "Tokenizer": f"{spec.name}, {spec.codebook_size:,} codes ({spec.code_dtype})",
        "A code stands for": f"{spec.temporal_stride}x{spec.spatial_stride}x{spec.spatial_stride} "
        "pixels (time, rows, columns)",
        "Libraries": ", ".join(f"{name} {version}" for name, version in record.libraries.items()),
        "Runs begun": ", ".join(_when(start) for start in facts.history.starts),
    }
    yield _table(rows)
    job = redact(json.dumps(record.job, indent=2))
    yield (
        "<details><summary>The job, with every default</summary>"
        f'<pre tabindex="0">{escape(job)}</pre></details>'
    )


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(
        f'<tr><th scope="row">{name}</th><td class="text">{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><tbody>{body}</tbody></table>"


def _of_shards(facts: Facts) -> str:
    counted, total = facts.inspection.num_shards, len(facts.output.shards)
    if counted == total:
        return ""
    return f'<p class="note">From {counted:,} of {total:,} shards, spread evenly.</p>'


def _seconds(history: History) -> Seconds:
    use = history.actors
    spent = {one: use.spent_s.get(one, 0.0) for one in ACTIVITIES}
    return Seconds(spent, {stage: use.up_s.get(stage, 0.0) for stage in OF_STAGE})


def _busy(span: Span, stage: Stage) -> float | None:
    up = span.actors.up_s.get(stage, 0.0)
    if up <= 0:
        return None
    spent = sum(span.actors.spent_s.get(one, 0.0) for one in OF_STAGE[stage])
    return min(1.0, spent / up)


def _times(history: History) -> list[str]:
    return [f"{span.start:%Y-%m-%d %H:%M:%S}" for span in history.spans]


def _ends(history: History) -> tuple[str, str]:
    first = history.spans[0].start
    return f"{first:%Y-%m-%d %H:%M} UTC", f"+{duration(history.elapsed_s)}"


def _when(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
