"""``tokpipe inspect``: show what an output's codes mean and look like."""

from __future__ import annotations

import argparse

from tokpipe.cli.telling import tell
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument, count


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument(
        "--shards",
        type=count,
        default=8,
        metavar="N",
        help="count the codes of N shards, spread evenly (8 when left out); 0 for all",
    )
    parser.add_argument("--clips", type=count, default=3, metavar="N", help="show N clips")
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.verbs.inspect import inspect

    found = inspect(open_output(parsed.output), num_shards=parsed.shards, num_clips=parsed.clips)
    tell(found, as_json=parsed.json)
    return 0


VERB = Verb(
    "inspect",
    summary="show what an output's codes mean and look like",
    description="Show the columns of an output, a few clips, and how often its codes occur, "
    "from a few of its shards.",
    example="tokpipe inspect out/demo --shards 0",
    add_arguments=_add_arguments,
    command=_command,
)
