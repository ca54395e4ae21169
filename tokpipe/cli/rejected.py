"""List rejected clips, newest first, and why they were rejected.

After fixing their files or the job's limits, retry them with
tokpipe run JOB.yaml --retry-rejected.
"""

import argparse

from tokpipe.cli.arguments import Parser, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe rejected out/demo --reason truncated"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    parser.add_argument("--reason", metavar="R", help="only clips rejected for this reason")
    parser.add_argument("--stage", metavar="S", help="only clips rejected by this stage")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.clips import rejected_lines

    return rejected_lines(
        output_of(parsed), reason=parsed.reason, stage=parsed.stage, as_json=parsed.json
    )
