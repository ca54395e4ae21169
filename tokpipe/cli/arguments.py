"""Arguments that several verbs take."""

import argparse
from pathlib import Path

import shtab

from tokpipe.config.job import StoreOptions


def add_job_argument(parser: argparse.ArgumentParser) -> None:
    _complete_files(parser.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file"))


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the output that a verb reads, and ``--json``."""
    _complete_files(
        parser.add_argument("output", metavar="OUT", help="the job's output, as in output.uri")
    )
    add_json_argument(parser)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)"
    )


def add_seed_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"selects the {what} (default: 0)")


def add_shards_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shards",
        type=count,
        default=8,
        metavar="N",
        help="count codes in N shards, spread evenly; 0 for all (default: 8)",
    )


def _complete_files(argument: argparse.Action) -> None:
    """Make shells complete an argument with file names."""
    vars(argument)["complete"] = shtab.FILE  # where shtab looks


def count(text: str) -> int:
    """Parse an integer that is 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def read_checkpoint(uri: str, options: StoreOptions) -> bytes:
    """Read a checkpoint's configuration, for ``load_job``."""
    from tokpipe.weights.read import read_object  # imports stores, which few jobs need here

    return read_object(uri, options)
