"""``tokpipe report``: write all that an output tells about itself as a page of HTML."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.telling import tell
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument, count


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument(
        "-o", dest="path", type=Path, required=True, metavar="FILE.html", help="what to write"
    )
    parser.add_argument(
        "--pairs",
        type=count,
        default=3,
        metavar="N",
        help="show N clips beside their sources (3); 0 needs neither torch nor sources",
    )
    parser.add_argument(
        "--shards",
        type=count,
        default=8,
        metavar="N",
        help="count the codes of N shards, spread evenly (8); 0 for all",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which clips are shown")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; a GPU if there is one when left out"
    )
    add_json_argument(parser)


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
    tell(written, as_json=parsed.json)
    return 0


VERB = Verb(
    "report",
    summary="write what an output tells about itself as a page of HTML",
    description="Write one HTML file that needs no network: throughput, what limited it, what was "
    "rejected, how codes are used, how long clips are, some of them beside their sources, and "
    "where it all comes from.",
    example="tokpipe report out/demo -o report.html",
    add_arguments=_add_arguments,
    command=_command,
)
