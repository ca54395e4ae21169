"""Clips as the encoder saw them, and as their codes reconstruct them."""

import base64
import math

from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, html, notice
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
        return [html("<p>There are no clips yet.</p>")]
    text = (
        f"{counted(len(found.pairs), 'clip')}, selected at random from the sample. Top: up to "
        f"{NUM_FRAMES} evenly spaced frames of the source, as the encoder saw it. Bottom: the same "
        f"frames, decoded from the codes. PSNR and SSIM are means over all decoded frames."
    )
    return [html('<p>{}</p><div class="pairs">{}</div>', text, map(_pair, found.pairs))]


def _pair(pair: Pair) -> Markup:
    clip = pair.clip
    height, width = pair.size
    quality = html("")
    if pair.psnr_db is not None and pair.ssim is not None:
        psnr = "equal" if math.isinf(pair.psnr_db) else f"{pair.psnr_db:.2f} dB"
        quality = html("<strong>PSNR {}, SSIM {:.3f}</strong> ", psnr, pair.ssim)
    shown = [
        (pair.source, "source", f"{pair.shown} frames of the source of clip {clip.clip_id}"),
        (pair.decoded, "from its codes", f"The same frames of {clip.clip_id}, from its codes"),
    ]
    rows = [
        html(
            '<div class="frames"><span class="which">{}</span><img '
            'src="data:image/jpeg;base64,{}" alt="{}" width="{}" height="{}"></div>',
            *(name, Markup(base64.b64encode(data).decode()), text, width * pair.shown, height),
        )
        for data, name, text in shown
        if data is not None
    ]
    return html(
        '<figure>{}{}<figcaption>{}<span class="uri">{}</span><span class="note">{}</span>'
        "</figcaption></figure>",
        rows,
        notice("Without its source. ", pair.problem) if pair.problem else "",
        quality,
        clip.source_uri,
        f"clip {clip.clip_id}, {counted(pair.num_frames, 'frame')} of {height}x{width}",
    )
