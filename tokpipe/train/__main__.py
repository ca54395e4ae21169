"""``python -m tokpipe.train CONFIG.yaml``: train a tokenizer."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tokpipe.errors import TokpipeError
from tokpipe.train.config import load_training
from tokpipe.train.loop import train


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when training is done, 2 when the training file is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tokpipe.train",
        description="Train a tokenizer, going on from the last checkpoint in its output.",
    )
    parser.add_argument("config", type=Path, help="training file (YAML)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        folder = train(load_training(given.config))
    except TokpipeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
