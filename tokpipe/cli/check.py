"""``tokpipe check``: look for what would keep a job from running."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.telling import print_lines
from tokpipe.cli.verb import Verb, add_job_argument, add_json_argument, read_checkpoint
from tokpipe.config import load_job


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_argument(parser)
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    return check_job(parsed.job, as_json=parsed.json)


def check_job(job: Path, *, as_json: bool = False) -> int:
    """What ``tokpipe check`` does, and ``tokpipe run --dry-run`` too."""
    from tokpipe.verbs.check import check, findings_json

    found = check(load_job(job, read=read_checkpoint))
    print_lines([findings_json(found)] if as_json else (str(one) for one in found))
    return 0


VERB = Verb(
    "check",
    summary="look for what would keep a job from running",
    description="Check a job file, its sources, weights and output. Writes nothing, starts "
    "nothing, needs no GPU.",
    example="tokpipe check jobs/demo.yaml",
    add_arguments=_add_arguments,
    command=_command,
)
