"""Estimate a job's output, time and cost. Writes nothing.

Counts all clips, probes a sample of the videos without decoding them, and estimates frames, codes,
bytes and encoder hours.
"""

import argparse

from tokpipe.cli.arguments import Parser, job_of, positive
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe plan jobs/webvid.yaml --codes-per-s 250000 --price 2.5"


def add_arguments(parser: Parser) -> None:
    parser.add_job()
    parser.add_json()
    parser.add_count("--sample", 64, "probe N videos", least=1)
    parser.add_count("--seed", 0, "selects the videos")
    speed = "speed of one encoder, as tokpipe status shows it for a similar output"
    parser.add_argument("--codes-per-s", type=positive, metavar="X", help=speed)
    parser.add_argument("--price", type=float, metavar="P", help="price of one encoder (GPU) hour")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.forecast import forecast

    return forecast(
        job_of(parsed),
        num_sampled=parsed.sample,
        seed=parsed.seed,
        codes_per_s=parsed.codes_per_s,
        price_per_hour=parsed.price,
    )
