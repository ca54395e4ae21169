"""The program; see docs/clusters.md."""

import argparse
import sys
from dataclasses import asdict
from math import inf
from pathlib import Path

from infra.spot.forecast import Plays, measured
from infra.spot.trace import Trace
from tokpipe.config import load_job
from tokpipe.errors import TokpipeError
from tokpipe.telemetry.human import json_line
from tokpipe.verbs.forecast import Forecast
from tokpipe.verbs.locate import find_output


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.spot", description=__doc__)
    parser.add_argument("job", type=Path, metavar="JOB.yaml")
    parser.add_argument("trace", type=Path, metavar="TRACE.csv", help="prices and interruptions")
    like = "the output that was timed (default: the job's own)"
    parser.add_argument("--like", metavar="OUT", help=like)
    nodes = "the most nodes of a kind (repeat for others; default: all of the trace)"
    parser.add_argument("--nodes", metavar="KIND=N", help=nodes, action="append", type=_nodes)
    limit = parser.add_mutually_exclusive_group()
    what = "find the cheapest cluster for it"
    limit.add_argument("--deadline", type=_positive, metavar="HOURS", help=what)
    what = "find the fastest cluster for it"
    limit.add_argument("--budget", type=_positive, metavar="COST", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parsed = parser.parse_args()
    try:
        job, trace = load_job(parsed.job), Trace.read(parsed.trace)
        pace = measured(find_output(parsed.like or job.output.uri, job.storage))
        plan = Forecast(job)
        num_clips = round(plan.clips.value - plan.reused.value)
        forecast = Plays(job, num_clips, pace, trace).forecast(
            dict(parsed.nodes or ()),
            deadline_s=3600 * parsed.deadline if parsed.deadline else inf,
            budget=parsed.budget or inf,
        )
    except (TokpipeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TokpipeError) else 2
    if parsed.json:
        print(json_line({"num_clips": num_clips, **asdict(forecast)}))
    else:
        print(f"{job.dataset}: {plan.clips.text()} clips, {num_clips:,} to encode")
        print(*forecast.lines(), sep="\n")
    return 0


def _nodes(text: str) -> tuple[str, int]:
    kind, _, number = text.rpartition("=")
    return kind, int(number)


def _positive(text: str) -> float:
    if not 0 < float(text) < inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
