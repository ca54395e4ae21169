"""Write all clips of an output to a local folder in another loader's format.

Checks the counts; the folder only appears once it is complete.
"""

import argparse

from tokpipe.cli.arguments import Parser, output_of
from tokpipe.cli.output import Result
from tokpipe.export import FORMATS

EXAMPLE = "tokpipe export out/demo --to memmap -o out/demo-memmap"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    about = "; ".join(f"{name}: {about}" for name, about in FORMATS.items())
    parser.add_argument("--to", choices=list(FORMATS), required=True, help=about)
    parser.add_target("FOLDER", "must not exist yet")
    what = "export what there is, although the job has not finished"
    parser.add_flag("--allow-partial", what)


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.export import export_output

    output, allow_partial = output_of(parsed), parsed.allow_partial
    return export_output(output, parsed.to, parsed.path, allow_partial=allow_partial)
