"""``tokpipe clean``: remove what killed workers left in an output."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict

from tokpipe.cli.telling import print_lines
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument
from tokpipe.config.job import StoreOptions


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument(
        "--older-than",
        type=_seconds,
        default="2d",
        metavar="AGE",
        help="age of what is removed, such as 90m, 12h or 2d (the default); an hour or more",
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, say what would be")
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.audit import clean
    from tokpipe.storage import open_store

    store = open_store(parsed.output, StoreOptions())
    removed = clean(store, older_than_s=parsed.older_than, dry_run=parsed.dry_run)
    if parsed.json:
        line = json.dumps({**asdict(removed), "dry_run": parsed.dry_run})
    else:
        line = (
            f"{store.uri}: {'would remove' if parsed.dry_run else 'removed'} "
            f"{removed.num_objects:,} unlisted objects, {removed.size_bytes / 1e6:,.1f} MB"
        )
    print_lines([line])
    return 0


def _seconds(text: str) -> float:
    """Parse an age such as 90m, 12h or 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write 90m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


VERB = Verb(
    "clean",
    summary="remove what killed workers left in an output",
    description="Remove objects that neither the manifest nor job.json names: what killed "
    "workers and drivers have left. Nothing that a reader sees is touched.",
    example="tokpipe clean out/demo --older-than 2d --dry-run",
    add_arguments=_add_arguments,
    command=_command,
)
