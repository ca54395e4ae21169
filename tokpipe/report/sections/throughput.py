"""Frames per second over time, and how each stage's actors spent their time."""

from functools import partial

from tokpipe.report.charts import AxisTick, BarPart, Column, bars_chart, columns_chart, count_ticks
from tokpipe.report.facts import Facts
from tokpipe.report.history import History, StageUse
from tokpipe.report.markup import UNKNOWN, Markup, details, figure, html, table
from tokpipe.telemetry.human import duration
from tokpipe.telemetry.speed import advice

_WORK = ("decode", "encode", "write")
"""Activities that process clips; the others (download, transfer) move them."""


def throughput(facts: Facts) -> list[Markup]:
    history = facts.history
    if not history.whole["frames"]:
        return [html("<p>No frames have been committed yet.</p>")]
    partly = (
        "<p>Read: {:,} of {:,} commits. Totals are exact. Times and actor seconds are estimated "
        "from these commits.</p>"
    )
    num_entries = facts.output.state.next_seq
    is_partly = history.num_read < num_entries
    note = [html(partly, history.num_read, num_entries)] if is_partly else []
    return [*note, *_over_time(history), *_by_stage(history)]


def _over_time(history: History) -> list[Markup]:
    steps, step_s = history.steps, history.step_s
    starts = sorted({at // step_s * step_s for at in history.starts_s} - {0})
    resumed = f" Dashed lines: a driver started ({len(starts)})." if starts else ""
    charts = [
        figure(
            "Frames per second",
            columns_chart(
                f"Frames per second over {duration(history.worked_s)} of working time",
                [Column(one.begin_s, one.end_s, one.frames_per_s) for one in steps],
                ticks=count_ticks(max(one.frames_per_s for one in steps)),
                marks=starts,
            ),
            f"Steps of {duration(step_s)}, without the time between runs.{resumed}",
        )
    ]
    speeds = [step.speed for step in steps]
    if any(speeds):
        shares = [
            Column(step.begin_s, step.end_s, None if speed is None else speed.share)
            for step, speed in zip(steps, speeds, strict=True)
        ]
        charts.append(
            figure(
                "Fraction of the speed of light",
                columns_chart(
                    "Fraction of their time in which encoders computed",
                    shares,
                    ticks=[AxisTick(at, f"{at:.0%}") for at in (0.0, 0.5, 1.0)],
                    marks=starts,
                ),
                "How busy the encoders were. A job cannot be faster than its encoders.",
            )
        )
    rows = []
    for step, speed in zip(steps, speeds, strict=True):
        time = f"{duration(step.begin_s)} to {duration(step.end_s)}"
        busy = [UNKNOWN] * 2 if speed is None else [f"{speed.share:.0%}", speed.limit or "none"]
        rows.append((time, f"{step['clips']:,.1f}", f"{step.frames_per_s:,.1f}", *busy))
    columns = ("working time", "clips", "frames/s", "speed of light", "limited by")
    return [
        html('<div class="pair">{}</div>', charts),
        details("Throughput over time as a table", table("Throughput over time", columns, rows)),
    ]


def _by_stage(history: History) -> list[Markup]:
    stages, speed = history.stages(), history.whole.speed
    if not stages or speed is None:
        return [
            html(
                "<p>This output does not record how actors spent their time: the version of "
                "tokpipe that wrote it recorded only encoder time.</p>"
            )
        ]
    light = '<p class="limit"><strong>{:.0%} of the speed of light</strong>: {}.</p>'
    item = '<li><span class="swatch {}" aria-hidden="true"></span>{}</li>'
    kinds = ("work", "moving", "track")
    activities = ("/".join(_WORK), "download/transfer", "waiting")
    legend = map(partial(html, item), kinds, activities)
    return [
        html(light, speed.share, advice(speed)),
        figure(
            "How actors spent their time",
            bars_chart("Fraction of each stage's time by activity", [*map(_stage_bar, stages)]),
            "The mean number of actors that were up, and how busy they were.",
            html('<ul class="legend">{}</ul>', legend),
        ),
        details(
            "Stages as a table",
            table(
                "How each stage's actors spent their time",
                ("stage", "actors", *activities, "frames/s if never waiting"),
                map(_stage_row, stages),
            ),
        ),
    ]


def _stage_bar(use: StageUse) -> tuple[str, str, list[BarPart]]:
    parts = [
        BarPart(fraction, "work" if name in _WORK else "moving", f"{name} {fraction:.1%}")
        for name, fraction in sorted(use.fractions.items(), key=lambda one: one[0] not in _WORK)
    ]
    actors = f"{use.actors:,.1f}"
    label = f"{use.stage}: {actors} actor{'' if actors == '1.0' else 's'}"
    return label, f"busy {1 - use.waiting:.0%}", parts


def _stage_row(use: StageUse) -> tuple[str, ...]:
    working = sum(fraction for name, fraction in use.fractions.items() if name in _WORK)
    moving = 1 - use.waiting - working
    rate = UNKNOWN if use.own_frames_per_s is None else f"{use.own_frames_per_s:,.1f}"
    fractions = (f"{fraction:.1%}" for fraction in (working, moving, use.waiting))
    return (use.stage, f"{use.actors:,.1f}", *fractions, rate)
