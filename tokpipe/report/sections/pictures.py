"""Clips as the encoder saw them, and as their codes reconstruct them."""

import base64
import math

from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, notice
from tokpipe.report.pairs import NUM_FRAMES, Pair
from tokpipe.telemetry.human import counted


def pictures(facts: Facts) -> list[Markup]:
    """Clips next to their reconstructions; empty if no pictures were requested."""
    found = facts.pairs
    if found is None:
        return []
    if found.problem is not None:
        return [notice("Clips cannot be decoded here. ", found.problem)]
    if not found.pairs:
        return [el("p", "There are no clips yet.")]
    text = (
        f"{counted(len(found.pairs), 'clip')}, selected at random from the sample. Top: up to "
        f"{NUM_FRAMES} evenly spaced frames of the source, as the encoder saw it. Bottom: the same "
        f"frames, decoded from the codes. PSNR and SSIM are means over all decoded frames."
    )
    return [el("p", text), el("div", *map(_pair, found.pairs), class_="pairs")]


def _pair(pair: Pair) -> Markup:
    clip = pair.clip
    height, width = pair.size
    quality = []
    if pair.psnr_db is not None and pair.ssim is not None:
        psnr = "equal" if math.isinf(pair.psnr_db) else f"{pair.psnr_db:.2f} dB"
        quality = [el("strong", f"PSNR {psnr}, SSIM {pair.ssim:.3f}"), " "]
    shown = [
        (pair.source, "source", f"{pair.shown} frames of the source of clip {clip.clip_id}"),
        (pair.decoded, "from its codes", f"The same frames of {clip.clip_id}, from its codes"),
    ]
    rows = [
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
            class_="frames",
        )
        for data, name, text in shown
        if data is not None
    ]
    about = f"clip {clip.clip_id}, {counted(pair.num_frames, 'frame')} of {height}x{width}"
    return el(
        "figure",
        *rows,
        *([notice("Without its source. ", pair.problem)] if pair.problem else []),
        el(
            "figcaption",
            *quality,
            el("span", clip.source_uri, class_="uri"),
            el("span", about, class_="note"),
        ),
    )
