"""Verbs that make tokenizers."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from tokpipe.cli.arguments import Parser, Verb
from tokpipe.cli.output import Result, print_lines
from tokpipe.errors import RuntimeFault
from tokpipe.telemetry.logs import PlainFormatter


class Convert(
    Verb, example="tokpipe convert movqgan_270M.ckpt --kind movqgan -o tokenizers/movqgan"
):
    """Make a checkpoint folder from a training checkpoint.

    The folder holds config.yaml and model.safetensors. Code in the checkpoint is never run.
    """

    def add_arguments(self, parser: Parser) -> None:
        what = "a .ckpt, .pt or .pth file written by torch.save, or a .safetensors file"
        parser.add_argument("source", type=Path, metavar="CKPT", help=what)
        parser.add_target("FOLDER", "where to write")
        settings = parser.add_mutually_exclusive_group(required=True)
        what = "derive the settings from the weights' shapes"
        settings.add_argument("--kind", choices=["movqgan", "emu3"], help=what)
        what = "read the settings from a tokenizer section"
        settings.add_argument("--config", type=Path, metavar="YAML", help=what)
        parser.add_text("--state", "KEY", "entry of the checkpoint that holds the weights")
        parser.add_flag("--ema", "take the moving averages of the weights")
        what = "take only keys with this prefix, and remove the prefix"
        parser.add_text("--strip", "PREFIX", what)
        what = "leave out keys with this prefix; can be repeated"
        parser.add_argument("--drop", action="append", default=[], metavar="PREFIX", help=what)

    def run(self, parsed: argparse.Namespace) -> Result:
        from tokpipe.weights.convert import Choices, convert

        choices = Choices(parsed.state, parsed.ema, parsed.strip, tuple(parsed.drop))
        return convert(
            parsed.source, parsed.path, kind=parsed.kind, config=parsed.config, choices=choices
        )


class Train(Verb, example="tokpipe train examples/demo_tokenizer/train.yaml"):
    """Train a tokenizer, continuing from the last checkpoint in its output.

    Ctrl-C and SIGTERM stop it after the current step, with a checkpoint; the same command
    continues.
    """

    def add_arguments(self, parser: Parser) -> None:
        parser.add_argument("file", type=Path, metavar="TRAINING.yaml", help="the training file")

    def run(self, parsed: argparse.Namespace) -> Result:
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
