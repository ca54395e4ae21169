"""Train a tokenizer, continuing from the last checkpoint in its output.

Ctrl-C and SIGTERM stop it after the current step, with a checkpoint; the same command continues.
"""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from tokpipe.cli.arguments import Parser
from tokpipe.cli.output import Result, print_lines
from tokpipe.errors import RuntimeFault
from tokpipe.telemetry.logs import PlainFormatter

EXAMPLE = "tokpipe train examples/demo_tokenizer/train.yaml"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", type=Path, metavar="TRAINING.yaml", help="the training file")


def run(parsed: argparse.Namespace) -> Result:
    # Imported late: torch takes seconds, and a wrong training file is reported without it.
    from tokpipe.train.config import load_training

    config = load_training(parsed.file)
    from tokpipe.train.loop import train

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(PlainFormatter("%(asctime)s %(message)s"))
    stop, received = threading.Event(), []

    def receive(number: int, _: object) -> None:
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
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
