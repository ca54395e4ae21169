"""Show an output's columns, a few clips, and how often codes occur in some of its shards."""

from __future__ import annotations

import argparse

from tokpipe.cli.output import show
from tokpipe.cli.verb import Verb, add_output_arguments, add_shards_argument, count


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    add_shards_argument(parser)
    parser.add_argument(
        "--clips", type=count, default=3, metavar="N", help="show N clips (default: 3)"
    )


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.verbs.inspect import inspect

    found = inspect(open_output(parsed.output), num_shards=parsed.shards, num_clips=parsed.clips)
    show(found, as_json=parsed.json)
    return 0


VERB = Verb(
    "inspect",
    summary="show an output's columns, clips and code usage",
    description=__doc__,
    example="tokpipe inspect out/demo --shards 0",
    add_arguments=_add_arguments,
    command=_command,
)
