"""``tokpipe plan``: say what a job will give and cost, before it is started."""

from __future__ import annotations

import argparse

from tokpipe.cli.telling import tell
from tokpipe.cli.verb import Verb, add_job_argument, add_json_argument, count, read_checkpoint
from tokpipe.config import load_job


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_argument(parser)
    parser.add_argument(
        "--sample", type=count, default=64, metavar="N", help="look into N videos (64)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which videos those are")
    parser.add_argument(
        "--like",
        metavar="OUT",
        help="an output of the same tokenizer and GPU, whose cost per code is taken; the job's own "
        "when left out",
    )
    parser.add_argument(
        "--codes-per-s", type=float, metavar="X", help="of one encoder, in place of --like"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of one encoder (GPU) for an hour")
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.verbs.forecast import forecast

    found = forecast(
        load_job(parsed.job, read=read_checkpoint),
        num_sampled=max(1, parsed.sample),
        seed=parsed.seed,
        like=parsed.like,
        codes_per_s=parsed.codes_per_s,
        price_per_hour=parsed.price,
    )
    tell(found, as_json=parsed.json)
    return 0


VERB = Verb(
    "plan",
    summary="say what a job will give and cost, before it is started",
    description="Count a job's clips, look into a sample of its videos without decoding them, "
    "and say how many frames, codes, bytes and encoder hours there will be. Of a job that is "
    "done, also how far off this was. Writes nothing.",
    example="tokpipe plan jobs/webvid.yaml --like s3://bucket/codes/trial --price 2.5",
    add_arguments=_add_arguments,
    command=_command,
)
