"""Show a job's progress, rate, time left and what it has written.

Reads only the output, so the job may be running elsewhere, finished or stopped.
"""

import argparse

from tokpipe.cli.arguments import Parser, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe status s3://bucket/codes/webvid"

add_arguments = Parser.add_output


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.status import status

    return status(output_of(parsed))
