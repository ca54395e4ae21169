"""``tokpipe convert``: make a checkpoint folder of a training checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.telling import print_lines
from tokpipe.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="CKPT", help=".ckpt, .pt or .pth of torch.save, .safetensors"
    )
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    settings = parser.add_mutually_exclusive_group(required=True)
    settings.add_argument("--kind", choices=["movqgan", "emu3"], help="read its settings off it")
    settings.add_argument("--config", type=Path, metavar="YAML", help="or a tokenizer section")
    parser.add_argument("--state", metavar="KEY", help="entry that holds the weights")
    parser.add_argument(
        "--ema", action="store_true", help="take moving averages in place of the weights"
    )
    parser.add_argument(
        "--strip", metavar="PREFIX", help="take only keys that begin so, without that beginning"
    )
    parser.add_argument(
        "--drop", action="append", default=[], metavar="PREFIX", help="leave keys out; repeatable"
    )


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.weights.convert import Choices, convert  # imports torch at its end

    choices = Choices(parsed.state, parsed.ema, parsed.strip, tuple(parsed.drop))
    lines = convert(
        parsed.source, parsed.folder, kind=parsed.kind, config=parsed.config, choices=choices
    )
    print_lines(lines)
    return 0


VERB = Verb(
    "convert",
    summary="make a checkpoint folder of a training checkpoint",
    description="Make a checkpoint folder (config.yaml and model.safetensors) of a training "
    "checkpoint. Nothing that is in the checkpoint is run.",
    example="tokpipe convert movqgan_270M.ckpt --kind movqgan -o tokenizers/movqgan",
    add_arguments=_add_arguments,
    command=_command,
)
