"""Check a job file, its sources, weights and output.

Writes nothing, starts nothing and needs no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.output import print_json, print_lines
from tokpipe.cli.verb import Verb, add_job_argument, add_json_argument, read_checkpoint
from tokpipe.config import load_job


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_argument(parser)
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    return check_job(parsed.job, as_json=parsed.json)


def check_job(job: Path, *, as_json: bool = False) -> int:
    """Run ``tokpipe check``, which is also ``tokpipe run --dry-run``."""
    from tokpipe.verbs.check import check

    checked = check(load_job(job, read=read_checkpoint))
    if as_json:
        print_json([{"subject": one.subject, **one.facts} for one in checked])
    else:
        print_lines(one.text for one in checked)
    return 0


VERB = Verb(
    "check",
    summary="look for anything that would keep a job from running",
    description=__doc__,
    example="tokpipe check jobs/demo.yaml",
    add_arguments=_add_arguments,
    command=_command,
)
