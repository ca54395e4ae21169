"""Show an output's columns, a few clips, and how often codes occur."""

import argparse

from tokpipe.cli.arguments import add_output_arguments, add_shards_argument, count, output_of
from tokpipe.cli.output import show

EXAMPLE = "tokpipe inspect out/demo --shards 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    add_shards_argument(parser)
    parser.add_argument(
        "--clips", type=count, default=3, metavar="N", help="show N clips (default: 3)"
    )


def run(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.verbs.inspect import inspect

    found = inspect(
        open_output(*output_of(parsed)), num_shards=parsed.shards, num_clips=parsed.clips
    )
    show(found, as_json=parsed.json)
    return 0
