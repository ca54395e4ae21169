"""``python -m benchmarks``: measure how near this machine comes to what it can do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import BENCHMARKS
from benchmarks.command import run_benchmarks
from tokpipe.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks; return 0, or 2 if one is not known."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run benchmarks: each figure beside its limit or its target, in the same run.",
        epilog="example: python -m benchmarks encoder storage --json benchmarks/results",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    parser.add_argument(
        "--quick", action="store_true", help="run on small data: checks that the benchmarks work"
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write FOLDER/NAME.json")
    parsed = parser.parse_args(arguments)
    if parsed.list:
        for name, measures in BENCHMARKS.items():
            print(f"{name}: {measures}")
        return 0
    try:
        run_benchmarks(parsed.names, quick=parsed.quick, folder=parsed.json, say=print)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
