"""The command line: arguments in, exit codes out.

Exit codes: 0 every planned clip is tokenized or rejected, and few enough are rejected;
1 a bug; 2 the job file or a source is wrong; 3 the output has another plan or fingerprint;
4 too many clips rejected; 5 a store kept failing, or is unsafe; 6 another driver owns the
output; 7 no progress possible; 8 the output is damaged; 128 + n stopped by signal n, with
everything that was finished committed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import tokpipe
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import TokpipeError

TOO_MANY_REJECTED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``tokpipe`` command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="tokpipe", description="Pre-tokenize video datasets into discrete codes."
    )
    parser.add_argument("--version", action="version", version=f"tokpipe {tokpipe.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="start a job, or go on with it",
        description="Start a job, or go on with it where an earlier run ended.",
        epilog="example: tokpipe run jobs/demo.yaml",
    )
    add_run_arguments(run)
    parsed = parser.parse_args(arguments)
    return run_command(parsed)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``tokpipe run`` and ``python -m tokpipe.run`` take."""
    parser.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the job file, its sources and its output; write nothing, start nothing",
    )


def run_command(parsed: argparse.Namespace) -> int:
    """Carry out ``run`` and turn its end into an exit code."""
    console = Console(highlight=False)
    try:
        job = load_job(parsed.job, read=_read_checkpoint)
        if parsed.dry_run:
            from tokpipe.check import check_lines

            for line in check_lines(job):
                console.print(line, markup=False, soft_wrap=True)
            return 0
        # Only now, because these import torch and ray: a wrong job file is told at once.
        from tokpipe.runtime.job import run_job
        from tokpipe.runtime.summary import summary_lines

        outcome = run_job(job, console)
    except TokpipeError as error:
        Console(stderr=True).print(
            f"{type(error).__name__}: {error}", style="red", markup=False, soft_wrap=True
        )
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what is committed stays", style="red")
        return 128 + signal.SIGINT
    for line in summary_lines(job, outcome):
        console.print(line, markup=False, soft_wrap=True)
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.rejected_fraction > job.max_rejected_fraction:
        return TOO_MANY_REJECTED
    return 0


def _read_checkpoint(uri: str, options: StoreOptions) -> bytes:
    from tokpipe.weights import read_object  # stores are looked for only if a job needs one

    return read_object(uri, options)


if __name__ == "__main__":
    sys.exit(main())
