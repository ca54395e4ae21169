"""``tokpipe status``: say how far a job is, wherever it runs."""

from __future__ import annotations

import argparse

from tokpipe.cli.telling import tell
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument
from tokpipe.config.job import StoreOptions


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.storage import open_store
    from tokpipe.verbs.status import status

    found = status(open_store(parsed.output, StoreOptions()))
    tell(found, as_json=parsed.json)
    return 0


VERB = Verb(
    "status",
    summary="say how far a job is, wherever it runs",
    description="Say how far a job is, at what rate and for how long still, and what it holds, "
    "from its output alone: the job may run elsewhere, be done, or have been stopped.",
    example="tokpipe status s3://bucket/codes/webvid",
    add_arguments=_add_arguments,
    command=_command,
)
