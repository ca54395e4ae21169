"""``tokpipe run`` and ``python -m tokpipe.run``: start a job, or go on with it."""

from __future__ import annotations

import argparse

from rich.console import Console

from tokpipe.cli.check import check_job
from tokpipe.cli.telling import print_lines, reporting
from tokpipe.cli.verb import Verb, add_job_argument, read_checkpoint
from tokpipe.config import load_job
from tokpipe.errors import ConfigError

TOO_MANY_REJECTED = 4


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``tokpipe run`` and ``python -m tokpipe.run`` take."""
    add_job_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="the same as tokpipe check: write nothing, start nothing",
    )
    parser.add_argument(
        "--retry-rejected",
        action="store_true",
        help="try rejected clips again, after their files or the job's limits were mended",
    )
    parser.add_argument(
        "--reason", metavar="R", help="with --retry-rejected: only those rejected for this reason"
    )


def run_command(parsed: argparse.Namespace) -> int:
    """Carry out ``run`` and turn its end into an exit code."""
    return reporting(_run, parsed)


def _run(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    if parsed.reason is not None and not parsed.retry_rejected:
        raise ConfigError(
            "--reason chooses among the clips that --retry-rejected tries again, and stands alone: "
            "give both, or neither"
        )
    if parsed.dry_run:
        return check_job(parsed.job)
    job = load_job(parsed.job, read=read_checkpoint)
    # Only now, because these import ray: a wrong job file is told at once.
    from tokpipe.runtime.job import run_job
    from tokpipe.runtime.output import RetryRejected
    from tokpipe.runtime.summary import summary_lines

    retry = RetryRejected(parsed.reason) if parsed.retry_rejected else None
    outcome = run_job(job, console, retry)
    print_lines(summary_lines(job, outcome), console)
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.rejected_fraction > job.max_rejected_fraction:
        return TOO_MANY_REJECTED
    return 0


VERB = Verb(
    "run",
    summary="start a job, or go on with it",
    description="Start a job, or go on with it where an earlier run ended.",
    example="tokpipe run jobs/demo.yaml",
    add_arguments=add_run_arguments,
    command=_run,
)
