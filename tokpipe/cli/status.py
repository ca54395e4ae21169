"""Show a job's progress, rate, time left and what it has written.

Reads only the output, so the job may be running elsewhere, finished or stopped.
"""

import argparse

from tokpipe.cli.arguments import add_output_arguments, output_of
from tokpipe.cli.output import show

EXAMPLE = "tokpipe status s3://bucket/codes/webvid"

add_arguments = add_output_arguments


def run(parsed: argparse.Namespace) -> int:
    from tokpipe.storage import open_store
    from tokpipe.verbs.status import status

    show(status(open_store(*output_of(parsed))), as_json=parsed.json)
    return 0
