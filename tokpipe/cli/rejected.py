"""``tokpipe rejected``: list the clips that were refused, and why."""

from __future__ import annotations

import argparse

from tokpipe.cli.telling import print_lines
from tokpipe.cli.verb import Verb, add_output_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument("--reason", metavar="R", help="only those refused for this reason")
    parser.add_argument("--stage", metavar="S", help="only those refused by this stage")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.verbs.rejected import rejected_lines

    lines = rejected_lines(
        open_output(parsed.output), reason=parsed.reason, stage=parsed.stage, as_json=parsed.json
    )
    print_lines(lines)
    return 0


VERB = Verb(
    "rejected",
    summary="list the clips that were refused, and why",
    description="List the clips that were refused, the newest first, and why. After their "
    "files or the job's limits were mended: tokpipe run JOB.yaml --retry-rejected.",
    example="tokpipe rejected out/demo --reason truncated",
    add_arguments=_add_arguments,
    command=_command,
)
