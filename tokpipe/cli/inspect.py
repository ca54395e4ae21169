"""Show an output's columns, a few clips, and how often codes occur."""

import argparse

from tokpipe.cli.arguments import add_count, add_output_arguments, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe inspect out/demo --shards 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    add_count(parser, "--shards", 8, "count codes in N shards, spread evenly; 0 for all")
    add_count(parser, "--clips", 3, "show N clips")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.inspect import inspect

    return inspect(output_of(parsed), num_shards=parsed.shards, num_clips=parsed.clips)
