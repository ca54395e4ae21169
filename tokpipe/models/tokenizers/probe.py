"""Checks a tokenizer against its declared traits, on noise, before it sees any video."""

import torch
from torch import Tensor

from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers.base import VideoTokenizer

MOST_UNLIKE = 0.1
"""Share of codes that rounding may change when a clip is encoded together with another."""


def probe(
    tokenizer: VideoTokenizer,
    what: str,
    *,
    with_decoder: bool,
    size: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> None:
    """Encode two clips of noise, together, again and alone; decode them if there is a decoder.

    Messages call the tokenizer ``what``. ``size`` is (height, width), by default a few latents
    high and, unless only squares are allowed, one more wide.
    """
    traits = tokenizer.traits
    side = traits.side_multiple * -(-32 // traits.side_multiple)
    height, width = size or (side, side if traits.square_only else side + traits.side_multiple)
    frames = traits.chunk_frames or traits.num_frames(2)
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, frames, height, width, 3), generator=noise)
    pixels = pixels.to(torch.uint8).to(device or "cpu")
    call = f"2 clips of {frames} frames of {height}x{width}, in {tokenizer.dtype}"
    try:
        codes = tokenizer.encode(pixels)
        again, alone = tokenizer.encode(pixels), tokenizer.encode(pixels[1:])
    except Exception as error:  # user code may raise anything
        raise _rejected(what, f"encoding {call}, raised {_text(error)}") from error
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= traits.codebook_size:
        raise _rejected(
            what,
            f"encoding {call}, returned codes from {low} to {high}, but its codebook has 0 to "
            f"{traits.codebook_size - 1}",
        )
    if not torch.equal(codes, again):
        raise _rejected(
            what,
            f"encoding {call}, returned different codes the second time: it must not sample, or "
            "keep state between calls",
        )
    if _share_unlike(codes[1:], alone) > MOST_UNLIKE:
        raise _rejected(
            what,
            f"encoding {call}, returned different codes for the second clip than alone: a clip's "
            "codes must not depend on other clips of the batch",
        )
    if traits.why_not_streamable is None:
        _probe_pieces(tokenizer, what, pixels, call)
    if with_decoder:
        try:
            tokenizer.decode(codes)
        except Exception as error:
            raise _rejected(
                what, f"decoding codes of shape {tuple(codes.shape)}, raised {_text(error)}"
            ) from error


def _probe_pieces(tokenizer: VideoTokenizer, what: str, pixels: Tensor, call: str) -> None:
    first = tokenizer.traits.first_frames
    try:
        whole = tokenizer.encode(pixels)
        head, state = tokenizer.encode_piece(pixels[:, :first], None)
        tail, _ = tokenizer.encode_piece(pixels[:, first:], state)
    except Exception as error:
        raise _rejected(what, f"encoding {call}, in pieces, raised {_text(error)}") from error
    if _share_unlike(whole, torch.cat([head, tail], dim=1)) > MOST_UNLIKE:
        raise _rejected(
            what,
            f"encoding {call}, returned different codes in pieces than whole: declare "
            "why_not_streamable",
        )


def _share_unlike(codes: Tensor, others: Tensor) -> float:
    return float((codes != others).float().mean())


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[-800:]}"


def _rejected(what: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{what}, probed by {problem}. Its codes would be wrong, or the job would fail at its "
        "first batch: correct the tokenizer or its declared traits"
    )
