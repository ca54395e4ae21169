"""What a verb of the command line is, and the arguments that several of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shtab

from tokpipe.config.job import StoreOptions


@dataclass(frozen=True, slots=True)
class Verb:
    """One word after ``tokpipe``. ``command`` turns parsed arguments into an exit code."""

    name: str
    summary: str
    """A few words for the list of verbs."""
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    command: Callable[[argparse.Namespace], int]


def add_job_argument(parser: argparse.ArgumentParser) -> None:
    complete_files(parser.add_argument("job", type=Path, metavar="JOB.yaml", help="the job file"))


def complete_files(argument: argparse.Action) -> None:
    """Have shells complete an argument by the names of files."""
    vars(argument)["complete"] = shtab.FILE  # where shtab looks


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument(
        "output", metavar="OUT", help="the output of a job: its output.uri"
    )
    complete_files(output)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as one line of JSON")


def count(text: str) -> int:
    """Parse a number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def read_checkpoint(uri: str, options: StoreOptions) -> bytes:
    """What ``load_job`` reads a checkpoint's configuration with."""
    from tokpipe.weights.read import read_object  # stores are looked for only if a job needs one

    return read_object(uri, options)
