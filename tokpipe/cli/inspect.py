"""Show an output's columns, a few clips, and how often codes occur."""

import argparse

from tokpipe.cli.arguments import Parser, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe inspect out/demo --shards 0"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    parser.add_count("--shards", 8, "count codes in N shards, spread evenly; 0 for all")
    parser.add_count("--clips", 3, "show N clips")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.inspect import inspect

    return inspect(output_of(parsed), num_shards=parsed.shards, num_clips=parsed.clips)
