"""Write a commented job file for a folder of videos, a table or tars.

Looks at what is there, probes a few videos, and proposes sources, sizes and frame rate. Never
overwrites a file.
"""

import argparse
import shlex
from pathlib import Path

from tokpipe.cli.arguments import Parser
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe init videos/"


def add_arguments(parser: Parser) -> None:
    what = "a folder, table, tar, video or quoted glob, on this machine or in a store"
    parser.add_argument("folder", metavar="FOLDER", help=what)
    parser.add_argument(
        "-o",
        "--job",
        type=Path,
        metavar="FILE",
        help="the job file to write, which also names the dataset and the output (default: "
        "jobs/NAME.yaml, after the folder)",
    )


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.verbs.init import write_job

    path, notes = write_job(parsed.folder, parsed.job)
    steps = (f"  tokpipe {verb} {shlex.quote(str(path))}" for verb in ("check", "run"))
    return [*notes, f"wrote {path}; next:", *steps]
