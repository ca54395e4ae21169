"""Write all clips of an output to a local folder in the format of another loader.

Counts are checked, and the folder appears once it is complete.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.output import show
from tokpipe.cli.verb import Verb, add_output_arguments
from tokpipe.export.catalogue import FORMATS


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    parser.add_argument(
        "--to",
        dest="format",
        choices=list(FORMATS),
        required=True,
        help="; ".join(f"{name}: {about}" for name, about in FORMATS.items()),
    )
    parser.add_argument(
        "-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="must not exist yet"
    )


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.export import export_output
    from tokpipe.reader import open_output

    exported = export_output(open_output(parsed.output), parsed.format, parsed.folder)
    show(exported, as_json=parsed.json)
    return 0


VERB = Verb(
    "export",
    summary="write an output in the format of another loader",
    description=__doc__,
    example="tokpipe export out/demo --to memmap -o out/demo-memmap",
    add_arguments=_add_arguments,
    command=_command,
)
