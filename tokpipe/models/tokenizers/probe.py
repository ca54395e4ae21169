"""Checks a tokenizer against its declared traits, on noise, before it sees any video."""

from collections.abc import Iterator
from contextlib import contextmanager

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
    call = f"encoding 2 clips of {frames} frames of {height}x{width}, in {tokenizer.dtype}"
    with _reported(what, call):
        codes, again, alone = map(tokenizer.encode, (pixels, pixels, pixels[1:]))
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= traits.codebook_size:
            raise _Wrong(
                f"codes from {low} to {high}, but its codebook has 0 to {traits.codebook_size - 1}"
            )
        if not torch.equal(codes, again):
            raise _Wrong(
                "different codes the second time: it must not sample, or keep state between calls"
            )
        if _is_unlike(codes[1:], alone):
            raise _Wrong(
                "different codes for the second clip than alone: a clip's codes must not depend on "
                "other clips of the batch"
            )
    if traits.why_not_streamable is None:
        with _reported(what, f"{call}, in pieces"):
            head, state = tokenizer.encode_piece(pixels[:, : traits.first_frames], None)
            tail, _ = tokenizer.encode_piece(pixels[:, traits.first_frames :], state)
            if _is_unlike(codes, torch.cat([head, tail], dim=1)):
                raise _Wrong("different codes than whole: declare why_not_streamable")
    if with_decoder:
        with _reported(what, f"decoding codes of shape {tuple(codes.shape)}"):
            tokenizer.decode(codes)


class _Wrong(Exception):
    """Codes that were returned, but cannot be right."""


@contextmanager
def _reported(what: str, call: str) -> Iterator[None]:
    """Turn anything that a call raises into a ConfigError."""
    remedy = (
        "Its codes would be wrong, or the job would fail at its first batch: correct the tokenizer "
        "or its declared traits"
    )
    try:
        yield
    except _Wrong as problem:
        raise ConfigError(f"{what}, probed by {call}, returned {problem}. {remedy}") from None
    except Exception as error:  # user code may raise anything
        text = f"{type(error).__name__}: {str(error).strip()[-800:]}"
        raise ConfigError(f"{what}, probed by {call}, raised {text}. {remedy}") from error


def _is_unlike(codes: Tensor, others: Tensor) -> bool:
    return float((codes != others).float().mean()) > MOST_UNLIKE
