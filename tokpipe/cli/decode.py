"""``tokpipe decode``: turn the codes of one clip back into pixels."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.telling import tell
from tokpipe.cli.verb import Verb, add_json_argument, add_output_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_argument(parser)
    parser.add_argument("--clip", metavar="ID", help="clip id; the first clip when left out")
    parser.add_argument(
        "-o",
        dest="path",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.mp4 for the whole clip, FILE.png for a few of its frames",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="decode the source again, show it too, and print PSNR and SSIM against it",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; a GPU if there is one when left out"
    )
    add_json_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reconstruct.command import decode_clip  # imports torch

    decoded = decode_clip(
        parsed.output, parsed.clip, parsed.path, compare=parsed.compare, device=parsed.device
    )
    tell(decoded, as_json=parsed.json)
    return 0


VERB = Verb(
    "decode",
    summary="turn the codes of one clip back into pixels",
    description="Turn the codes of one clip back into pixels, to look at them.",
    example="tokpipe decode out/demo --compare -o clip.mp4",
    add_arguments=_add_arguments,
    command=_command,
)
