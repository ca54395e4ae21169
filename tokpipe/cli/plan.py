"""Estimate a job's output, time and cost. Writes nothing.

Counts all clips, probes a sample of the videos without decoding them, and estimates frames, codes,
bytes and encoder hours.
"""

import argparse

from tokpipe.cli.arguments import Parser, job_of, positive
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe plan jobs/webvid.yaml --like s3://bucket/codes/trial --price 2.5"


def add_arguments(parser: Parser) -> None:
    parser.add_job()
    parser.add_json()
    parser.add_count("--sample", 64, "probe N videos", least=1)
    parser.add_count("--seed", 0, "selects the videos")
    parser.add_argument(
        "--like",
        metavar="OUT",
        help="predict time and size from this output (or that of this job file) with the same "
        "tokenizer and GPU (default: the job's own output)",
    )
    speed = "speed of one encoder, instead of --like"
    parser.add_argument("--codes-per-s", type=positive, metavar="X", help=speed)
    parser.add_argument("--price", type=float, metavar="P", help="price of one encoder (GPU) hour")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.forecast import forecast

    return forecast(
        job_of(parsed),
        num_sampled=parsed.sample,
        seed=parsed.seed,
        like=parsed.like,
        codes_per_s=parsed.codes_per_s,
        price_per_hour=parsed.price,
    )
