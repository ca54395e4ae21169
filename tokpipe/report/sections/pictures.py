"""Clips as the source showed them, and as their codes show them."""

from __future__ import annotations

import base64
import math

from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, joined
from tokpipe.report.pairs import NUM_FRAMES, Pair
from tokpipe.report.parts import counted, notice, section


def pictures(facts: Facts) -> Markup:
    """Sources and what their codes show."""
    found = facts.pairs
    title = "Source and reconstruction"
    if found is None:
        return joined()
    if found.problem is not None:
        return section("pairs", title, notice("No clip could be decoded here. ", found.problem))
    if not found.pairs:
        return section("pairs", title, el("p", "There are no clips yet."))
    psnrs = found.psnrs_db
    summary = (
        f"PSNR {min(psnrs):.1f} to {max(psnrs):.1f} dB, mean {sum(psnrs) / len(psnrs):.1f} dB. "
        if len(psnrs) > 1
        else ""
    )
    return section(
        "pairs",
        title,
        el(
            "p",
            f"{counted(len(found.pairs), 'clip')} of the sample, chosen at random. Above, up to "
            f"{NUM_FRAMES} frames of the source as the encoder saw it, evenly spaced; below, what "
            f"the decoder makes of their codes. {summary}PSNR and SSIM are means over all frames "
            "that were decoded.",
        ),
        el("div", *map(_pair, found.pairs), class_="pairs"),
    )


def _pair(pair: Pair) -> Markup:
    clip = pair.clip
    height, width = pair.size
    quality = []
    if pair.psnr_db is not None and pair.ssim is not None:
        psnr = "equal" if math.isinf(pair.psnr_db) else f"{pair.psnr_db:.2f} dB"
        quality = [el("strong", f"PSNR {psnr}, SSIM {pair.ssim:.3f}"), " "]
    pictures = [
        (pair.source, "source", f"{pair.shown} frames of the source of clip {clip.clip_id}"),
        (
            pair.decoded,
            "from its codes",
            f"The same frames of clip {clip.clip_id}, decoded from its codes",
        ),
    ]
    shown = [
        el(
            "div",
            el("span", name, class_="which"),
            el(
                "img",
                src=Markup(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"),
                alt=text,
                width=width * pair.shown,
                height=height,
            ),
            class_="film",
        )
        for data, name, text in pictures
        if data is not None
    ]
    return el(
        "figure",
        *shown,
        *([notice("Without its source. ", pair.problem)] if pair.problem else []),
        el(
            "figcaption",
            *quality,
            el("span", clip.source_uri, class_="uri"),
            el(
                "span",
                f"clip {clip.clip_id}, {counted(pair.num_frames, 'frame')} of {height}x{width}",
                class_="note",
            ),
        ),
    )
