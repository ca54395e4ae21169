"""Decode the codes of one clip to a video or an image, to see what they kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.output import show
from tokpipe.cli.verb import Verb, add_device_argument, add_output_arguments


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output_arguments(parser)
    parser.add_argument("--clip", metavar="ID", help="clip id (default: the first clip)")
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
        help="also decode the source, show it next to the clip, and print PSNR and SSIM",
    )
    add_device_argument(parser)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.reconstruct.command import decode_clip

    decoded = decode_clip(
        parsed.output, parsed.clip, parsed.path, compare=parsed.compare, device=parsed.device
    )
    show(decoded, as_json=parsed.json)
    return 0


VERB = Verb(
    "decode",
    summary="decode the codes of one clip to a video or an image",
    description=__doc__,
    example="tokpipe decode out/demo --compare -o clip.mp4",
    add_arguments=_add_arguments,
    command=_command,
)
