"""Decode the codes of one clip to a video or an image.

Shows what the codes preserve of a clip.
"""

import argparse

from tokpipe.cli.arguments import Parser, check_new_file, output_of
from tokpipe.cli.output import Result

EXAMPLE = "tokpipe decode jobs/demo.yaml --compare -o clip.mp4"


def add_arguments(parser: Parser) -> None:
    parser.add_output()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--clip", metavar="ID", help="clip id (default: the first clip)")
    parser.add_source("the first clip", which)
    parser.add_target("FILE", "FILE.mp4 for the whole clip, FILE.png for a few of its frames")
    what = "also decode the source, show it next to the clip, and print PSNR and SSIM"
    parser.add_flag("--compare", what)
    parser.add_device()
    parser.add_trust()


def run(parsed: argparse.Namespace) -> Result:
    check_new_file(parsed.path, ".mp4", ".png")
    from tokpipe.reconstruct.command import decode_clip

    return decode_clip(
        output_of(parsed),
        parsed.path,
        clip_id=parsed.clip,
        source=parsed.source,
        compare=parsed.compare,
        device=parsed.device,
    )
