"""List rejected clips, newest first, and why they were rejected.

After fixing their files or the job's limits, try them again with
tokpipe run JOB.yaml --retry-rejected.
"""

from __future__ import annotations

import argparse

from tokpipe.cli.output import print_lines
from tokpipe.cli.verb import Verb, add_output_arguments


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    parser.add_argument("--reason", metavar="R", help="only clips rejected for this reason")
    parser.add_argument("--stage", metavar="S", help="only clips rejected by this stage")


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.verbs.rejected import rejected_lines

    print_lines(
        rejected_lines(
            open_output(parsed.output),
            reason=parsed.reason,
            stage=parsed.stage,
            as_json=parsed.json,
        )
    )
    return 0


VERB = Verb(
    "rejected",
    summary="list rejected clips and why they were rejected",
    description=__doc__,
    example="tokpipe rejected out/demo --reason truncated",
    add_arguments=_add_arguments,
    command=_command,
)
