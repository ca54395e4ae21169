"""Write a report on an output as one HTML file that works offline.

Shows throughput and what limited it, rejections, code usage, clip lengths, some clips next to
their sources, and provenance.
"""

import argparse

from tokpipe.cli.arguments import Parser, check_new_file, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe report jobs/demo.yaml -o report.html"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    parser.add_target("FILE.html", "where to write")
    pairs = "show N clips next to their sources; 0 needs neither torch nor sources"
    parser.add_count("--pairs", 3, pairs)
    parser.add_count("--shards", 8, "count codes in N shards, spread evenly; 0 for all")
    parser.add_count("--seed", 0, "selects the clips")
    parser.add_device()
    parser.add_trust()


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
