"""``python -m examples.train_tokenizer TRAINING.yaml``: trains a tokenizer.

It starts, prints and ends as ``tokpipe`` does; docs/training.md lists its exit codes. Imports are
late, because ``tokpipe.cli.main`` first sees to it that Ctrl-C prints no traceback.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tokpipe.cli

if TYPE_CHECKING:
    import argparse


def parse(words: Sequence[str]) -> "argparse.Namespace":
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(
        prog="python -m examples.train_tokenizer",
        description="Train a tokenizer, continuing from the last checkpoint in its output. Ctrl-C "
        "and SIGTERM stop it after the current step, with a checkpoint; the same command "
        "continues.",
        epilog="example: python -m examples.train_tokenizer examples/train_tokenizer/small.yaml",
    )
    parser.add_argument("file", type=Path, metavar="TRAINING.yaml", help="the training file")
    parser.set_defaults(run=run)
    return parser.parse_args(words)


def run(parsed: "argparse.Namespace") -> list[str] | int:
    """Train, and return the tokenizer's folder, or 128 + n if signal n stopped the run."""
    import logging
    import signal
    import threading

    from examples.train_tokenizer.config import load_training
    from tokpipe.cli.output import print_lines
    from tokpipe.errors import RuntimeFault
    from tokpipe.telemetry.logs import PlainFormatter

    config = load_training(parsed.file)
    # Only now: torch takes seconds, and a wrong training file is reported without it.
    from examples.train_tokenizer.loop import train

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(PlainFormatter("%(asctime)s %(message)s"))
    stop, received = threading.Event(), []

    def receive(number: int, _: object) -> None:
        received.append(number)
        stop.set()

    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        folder = train(config, stop)
    except FloatingPointError as error:
        raise RuntimeFault(str(error)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if folder is None:
        print_lines(["stopped with a checkpoint; run the same command to continue"])
        return 128 + received[0]
    return [str(folder)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; without arguments, as a process."""
    return tokpipe.cli.main(arguments, parse)


if __name__ == "__main__":
    sys.exit(main())
