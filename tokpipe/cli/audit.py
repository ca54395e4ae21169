"""``tokpipe audit``: check that an output is whole: every clip, every byte."""

from __future__ import annotations

import argparse

from rich.console import Console

from tokpipe.cli.telling import print_lines, tell
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument, count
from tokpipe.config.job import StoreOptions
from tokpipe.errors import CorruptOutput


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument(
        "--depth",
        choices=["manifest", "sizes", "bytes"],
        default="bytes",
        help="read the plan and the manifest; also look up the size of each listed object; or read "
        "every byte of them (the default)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="the job is not finished: rows left are no defect"
    )
    parser.add_argument(
        "--sample",
        type=count,
        default=0,
        metavar="N",
        help="also encode N random clips again from their sources, and compare the codes",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which clips those are")
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.audit import audit
    from tokpipe.storage import open_store

    errors = Console(stderr=True, highlight=False)
    report = audit(
        open_store(parsed.output, StoreOptions()),
        depth=parsed.depth,
        partial=parsed.partial,
        sample=parsed.sample,
        seed=parsed.seed,
        say=lambda line: print_lines([line], errors),
    )
    tell(report, as_json=parsed.json)
    return 0 if report.is_clean else CorruptOutput.exit_code


VERB = Verb(
    "audit",
    summary="check that an output is whole: every clip, every byte",
    description="Check that every planned clip is tokenized or rejected, once, and that every "
    "listed object is what was written. Exit code 8 on any defect. Writes nothing.",
    example="tokpipe audit out/demo --sample 10",
    add_arguments=_add_arguments,
    command=_command,
)
