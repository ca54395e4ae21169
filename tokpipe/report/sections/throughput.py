"""Frames per second over time, and what each stage's actors did."""

from __future__ import annotations

from collections.abc import Iterator

from tokpipe.report.charts import Part, Span, bars_chart, count_ticks, share_ticks, steps_chart
from tokpipe.report.facts import Facts
from tokpipe.report.history import History, StageUse, Step
from tokpipe.report.markup import Markup, el, joined
from tokpipe.report.parts import UNKNOWN, details, figure, legend, section, table
from tokpipe.telemetry.human import duration
from tokpipe.telemetry.speed import Speed

_WORK = ("decode", "encode", "write")
"""Activities that turn clips into something else; the others bring them somewhere."""


def throughput(facts: Facts) -> Markup:
    """Over time, and by stage."""
    history = facts.history
    steps = list(history.steps())
    if not any(step["frames"] for step in steps):
        return section("throughput", "Throughput", el("p", "No frames were committed yet."))
    return section(
        "throughput",
        "Throughput",
        *_partly(facts),
        _over_time(history, steps),
        _by_stage(facts),
    )


def _partly(facts: Facts) -> Iterator[Markup]:
    if facts.num_read < facts.num_entries:
        yield el(
            "p",
            f"Read: {facts.num_read:,} of {facts.num_entries:,} commits. What was made is exact, "
            "when it was made lies between these, and their actors stand for all.",
        )


def _over_time(history: History, steps: list[Step]) -> Markup:
    starts = [step.begin_s for step in steps if step.num_drivers][1:]
    resumed = f" Dashed lines: a driver began anew ({len(starts)})." if starts else ""
    about = f"Steps of {duration(history.step_s)}; time between runs is left out.{resumed}"
    charts = [
        figure(
            "Frames per second",
            steps_chart(
                f"Frames per second over {duration(history.worked_s)} of work",
                [Span(one.begin_s, one.end_s, one.frames_per_s) for one in steps],
                ticks=count_ticks(max(one.frames_per_s for one in steps)),
                marks=starts,
            ),
            about,
        )
    ]
    speeds = [step.speed for step in steps]
    if any(speeds):
        charts.append(
            figure(
                "Share of the speed of light",
                steps_chart(
                    "Share of their time in which encoders computed",
                    [
                        Span(one.begin_s, one.end_s, None if speed is None else speed.share)
                        for one, speed in zip(steps, speeds, strict=True)
                    ],
                    ticks=share_ticks(),
                    marks=starts,
                ),
                "A job cannot be faster than its encoders: how much of their time they compute.",
            )
        )
    rows = (
        (
            f"{duration(step.begin_s)} to {duration(step.end_s)}",
            f"{step['clips']:,.1f}",
            f"{step.frames_per_s:,.1f}",
            UNKNOWN if speed is None else f"{speed.share:.0%}",
            UNKNOWN if speed is None else speed.limit or "none",
        )
        for step, speed in zip(steps, speeds, strict=True)
    )
    columns = ("time at work", "clips", "frames/s", "speed of light", "limited by")
    return joined(
        el("div", *charts, class_="pair"),
        details("Throughput over time as a table", table("Throughput over time", columns, rows)),
    )


def _by_stage(facts: Facts) -> Markup:
    stages, speed = facts.history.stages(), facts.speed
    if not stages or speed is None:
        return el(
            "p",
            "What each stage's actors spent their time on is not recorded in this output: the "
            "tokpipe that made it told only what its encoders cost.",
        )
    keys = [("work", "/".join(_WORK)), ("moving", "download/transfer"), ("track", "waiting")]
    shown = figure(
        "Where the actors' time went",
        bars_chart("Share of each stage's time by what it went into", map(_stage_bar, stages)),
        "How many actors were up on average, and for what part of their time they were busy.",
        legend(keys),
    )
    columns = ("stage", "actors", "/".join(_WORK), "download/transfer", "waiting")
    return joined(
        el("p", *_limit(speed), class_="limit"),
        shown,
        details(
            "Stages as a table",
            table(
                "What each stage's actors did",
                (*columns, "frames/s if never waiting"),
                (_stage_row(use) for use in stages),
            ),
        ),
    )


def _limit(speed: Speed) -> Iterator[str]:
    yield "The whole job ran at "
    yield el("strong", f"{speed.share:.0%} of the speed of light")
    if speed.limit is None:
        yield "; no stage was busy for long, as in small jobs, which mostly start and stop."
        return
    yield ", limited by "
    yield el("strong", speed.limit)
    yield f" (busy {speed.limit_share:.0%})"
    yield ": as fast as its encoders." if speed.limit == "encode" else "."


def _stage_bar(use: StageUse) -> tuple[str, str, list[Part]]:
    own_first = sorted(use.shares, key=lambda name: name not in _WORK)
    parts = [
        Part(
            use.shares[name],
            "work" if name in _WORK else "moving",
            f"{name} {use.shares[name]:.1%}",
        )
        for name in own_first
    ]
    actors = f"{use.actors:,.1f} actor{'' if f'{use.actors:.1f}' == '1.0' else 's'}"
    return f"{use.stage}: {actors}", f"busy {1 - use.waiting:.0%}", parts


def _stage_row(use: StageUse) -> tuple[str, ...]:
    working = sum(share for name, share in use.shares.items() if name in _WORK)
    rate = UNKNOWN if use.own_frames_per_s is None else f"{use.own_frames_per_s:,.1f}"
    return (
        use.stage,
        f"{use.actors:,.1f}",
        f"{working:.1%}",
        f"{1 - use.waiting - working:.1%}",
        f"{use.waiting:.1%}",
        rate,
    )
