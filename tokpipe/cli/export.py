"""Write all clips of an output to a local folder in another loader's format.

Checks the counts; the folder only appears once it is complete.
"""

import argparse

from tokpipe.cli.arguments import add_output_arguments, add_target, output_of
from tokpipe.cli.output import Result
from tokpipe.export import FORMATS

EXAMPLE = "tokpipe export out/demo --to memmap -o out/demo-memmap"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    about = "; ".join(f"{name}: {about}" for name, about in FORMATS.items())
    parser.add_argument("--to", choices=list(FORMATS), required=True, help=about)
    add_target(parser, "FOLDER", "must not exist yet")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="export what there is, although the job has not finished",
    )


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.export import export_output

    output, allow_partial = output_of(parsed), parsed.allow_partial
    return export_output(output, parsed.to, parsed.path, allow_partial=allow_partial)
