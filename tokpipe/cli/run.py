"""Start a job, or resume it where an earlier run stopped."""

import argparse
import sys

from rich.console import Console

from tokpipe.cli.arguments import Parser, job_of
from tokpipe.cli.output import Result, print_lines
from tokpipe.errors import ConfigError
from tokpipe.runtime import submitted

TOO_MANY_REJECTED = 4

EXAMPLE = "tokpipe run jobs/demo.yaml"


def add_arguments(parser: Parser) -> None:
    parser.add_job()
    parser.add_flag("--dry-run", "only check the job, as tokpipe check does")
    what = "try rejected clips again, after fixing their files or the job's limits"
    parser.add_flag("--retry-rejected", what)
    what = "with --retry-rejected: only clips rejected for this reason"
    parser.add_argument("--reason", metavar="R", help=what)


def options_of(parsed: argparse.Namespace) -> list[str]:
    """Return the options of this verb that were given, for ``submit`` to pass on."""
    if parsed.reason is not None and not parsed.retry_rejected:
        raise ConfigError("--reason requires --retry-rejected")
    options = ["--dry-run"] * parsed.dry_run + ["--retry-rejected"] * parsed.retry_rejected
    return options if parsed.reason is None else [*options, "--reason", parsed.reason]


def run(parsed: argparse.Namespace) -> Result:
    # Not only what rich finds: FORCE_COLOR makes it move the cursor in a file too.
    console = Console(highlight=False, force_interactive=None if sys.stdout.isatty() else False)
    options_of(parsed)  # rejects those that do not go together
    with submitted.explained(parsed.job):
        if parsed.dry_run:
            from tokpipe.verbs.check import check

            return (one.text for one in check(job_of(parsed)))
        job = job_of(parsed)
    submitted.check_output(job)
    # Imported late: ray takes seconds, and a wrong job file is reported without it.
    from tokpipe.runtime.job import run_job
    from tokpipe.runtime.output import RetryRejected
    from tokpipe.runtime.summary import summary_lines

    retry = RetryRejected(parsed.reason) if parsed.retry_rejected else None
    outcome = run_job(job, console, retry)
    print_lines(summary_lines(job, outcome), console)
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.why or outcome.totals.rejected_fraction > job.max_rejected_fraction:
        return TOO_MANY_REJECTED
    return 0
