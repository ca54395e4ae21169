"""``python -m tokpipe.run JOB.yaml``: the command that a cluster is given."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tokpipe.cli import add_run_arguments, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; return its exit code (see ``tokpipe.cli``)."""
    parser = argparse.ArgumentParser(
        prog="python -m tokpipe.run", description="Start a job, or go on with it."
    )
    add_run_arguments(parser)
    return run_command(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
