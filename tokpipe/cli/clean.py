"""Remove objects that killed workers and drivers left in an output.

These are objects that neither the manifest nor job.json lists. Readers never see them. Until every
row of the plan is settled, shards are kept: they may belong to a driver, or to entries that were
lost.
"""

import argparse
import json
import re
from dataclasses import asdict

from tokpipe.cli.arguments import Parser, store_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe clean out/demo --older-than 2d --dry-run"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    what = "remove objects older than this, such as 90m, 12h or 2d; at least 1h (default: 2d)"
    parser.add_argument("--older-than", type=_seconds, default="2d", metavar="AGE", help=what)
    parser.add_flag("--partial", "also remove shards of a job that will never be finished")
    parser.add_flag("--dry-run", "remove nothing, print what would be removed")


def run(parsed: argparse.Namespace) -> Result:
    from tokpipe.audit import clean

    store = store_of(parsed)
    age_s, is_dry = parsed.older_than, parsed.dry_run
    removed = clean(store, older_than_s=age_s, partial=parsed.partial, dry_run=is_dry)
    if parsed.json:
        return [json.dumps({**asdict(removed), "dry_run": parsed.dry_run})]
    done = "would remove" if parsed.dry_run else "removed"
    size = f"{removed.size_bytes / 1e6:,.1f} MB"
    lines = [f"{store.uri}: {done} {removed.num_objects:,} unlisted objects, {size}"]
    if removed.num_kept:
        lines.append(
            f"kept {removed.num_kept:,} unlisted shards and side tables: the job has not finished, "
            "so they may belong to a driver, or to manifest entries that were lost. Finish it "
            "first, or use --partial if it never will be finished"
        )
    return lines


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: write 90m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
