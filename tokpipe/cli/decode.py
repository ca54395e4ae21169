"""Decode the codes of one clip to a video or an image.

Shows what the codes preserve of a clip.
"""

import argparse
from pathlib import Path

from tokpipe.cli.arguments import add_device_argument, add_output_arguments
from tokpipe.cli.output import show

EXAMPLE = "tokpipe decode out/demo --compare -o clip.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(parsed: argparse.Namespace) -> int:
    from tokpipe.reconstruct.command import decode_clip

    decoded = decode_clip(
        parsed.output, parsed.clip, parsed.path, compare=parsed.compare, device=parsed.device
    )
    show(decoded, as_json=parsed.json)
    return 0
