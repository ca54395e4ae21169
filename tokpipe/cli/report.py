"""Write a report on an output as one HTML file that works offline.

It shows throughput and what limited it, rejections, code usage, clip lengths, some clips next to
their sources, and provenance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.output import show
from tokpipe.cli.verb import (
    Verb,
    add_device_argument,
    add_output_arguments,
    add_shards_argument,
    count,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    parser.add_argument(
        "-o", dest="path", type=Path, required=True, metavar="FILE.html", help="where to write"
    )
    parser.add_argument(
        "--pairs",
        type=count,
        default=3,
        metavar="N",
        help="show N clips next to their sources; 0 needs neither torch nor sources (default: 3)",
    )
    add_shards_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="selects the clips (default: 0)")
    add_device_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reader import open_output
    from tokpipe.report import write_report

    written = write_report(
        open_output(parsed.output),
        parsed.path,
        num_shards=parsed.shards,
        num_pairs=parsed.pairs,
        seed=parsed.seed,
        device=parsed.device,
    )
    show(written, as_json=parsed.json)
    return 0


VERB = Verb(
    "report",
    summary="write a report on an output as one HTML page",
    description=__doc__,
    example="tokpipe report out/demo -o report.html",
    add_arguments=_add_arguments,
    command=_command,
)
