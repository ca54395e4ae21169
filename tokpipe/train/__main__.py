"""``python -m tokpipe.train CONFIG.yaml``: train a tokenizer."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from tokpipe.errors import TokpipeError
from tokpipe.train.config import load_training
from tokpipe.train.loop import train


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when training is done, 1 when it was stopped, 2 when the training file is wrong.

    SIGINT and SIGTERM stop it after the current step, with a checkpoint.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tokpipe.train",
        description="Train a tokenizer, continuing from the last checkpoint in its output.",
    )
    parser.add_argument("config", type=Path, help="training file (YAML)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        folder = train(load_training(given.config), stop)
    except TokpipeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if folder is None:
        sys.stderr.write("stopped; run the same command to continue\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
