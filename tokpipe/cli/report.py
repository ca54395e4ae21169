"""Write a report on an output as one HTML file that works offline.

Shows throughput and what limited it, rejections, code usage, clip lengths, some clips next to
their sources, and provenance.
"""

import argparse

from tokpipe.cli.arguments import (
    add_count,
    add_device_argument,
    add_output_arguments,
    add_target,
    check_new_file,
    output_of,
)
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe report out/demo -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    add_target(parser, "FILE.html", "where to write")
    pairs = "show N clips next to their sources; 0 needs neither torch nor sources"
    add_count(parser, "--pairs", 3, pairs)
    add_count(parser, "--shards", 8, "count codes in N shards, spread evenly; 0 for all")
    add_count(parser, "--seed", 0, "selects the clips")
    add_device_argument(parser)


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.report import write_report

    check_new_file(parsed.path, ".html", ".htm")
    return write_report(
        output_of(parsed),
        parsed.path,
        num_shards=parsed.shards,
        num_pairs=parsed.pairs,
        seed=parsed.seed,
        device=parsed.device,
    )
