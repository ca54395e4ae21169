"""Show how much of a job is done, its rate, the time left and what it has written.

Reads the output alone, so the job may be running elsewhere, finished or stopped.
"""

from __future__ import annotations

import argparse

from tokpipe.cli.output import show
from tokpipe.cli.verb import Verb, add_output_arguments
from tokpipe.config.job import StoreOptions


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.storage import open_store
    from tokpipe.verbs.status import status

    show(status(open_store(parsed.output, StoreOptions())), as_json=parsed.json)
    return 0


VERB = Verb(
    "status",
    summary="show a job's progress, wherever it runs",
    description=__doc__,
    example="tokpipe status s3://bucket/codes/webvid",
    add_arguments=add_output_arguments,
    command=_command,
)
