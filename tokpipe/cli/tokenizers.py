"""The verb that makes checkpoint folders."""

import argparse
from pathlib import Path

from tokpipe.cli.arguments import Parser, Verb
from tokpipe.cli.output import Result


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
