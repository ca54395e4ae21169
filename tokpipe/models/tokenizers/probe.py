"""Whether a tokenizer keeps to its traits, and a device to the codes of the CPU, before any video.

Not every build of a device's libraries does. cuDNN 9.10 silently computes wrong sums in 3D
convolutions of bfloat16 (github.com/pytorch/pytorch/issues/163539).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import ConfigError, NodeTrouble
from tokpipe.models.tokenizers.base import NOT_FINITE, VideoTokenizer

MOST_UNLIKE = 0.1
"""Share of codes that rounding may change when a clip is encoded together with another."""

FLOAT32_AGREEMENT = 0.9
"""Rounding in another order changes few codes: fewer than 1 in 1,000 with every tokenizer tried."""

NARROW_AGREEMENT = 0.5
"""Types of 8 or 11 bits change 1 to 15 codes of 100, depending on how fine the codebook is. After
wrong sums hardly any code stays, where codebooks are large."""


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
    except (Exception, SystemExit) as error:  # user code may raise anything
        text = f"{type(error).__name__}: {str(error).strip()[-800:]}"
        raise ConfigError(f"{what}, probed by {call}, raised {text}. {remedy}") from error


def _is_unlike(codes: Tensor, others: Tensor) -> bool:
    return float((codes != others).float().mean()) > MOST_UNLIKE


class Parity:
    """A tokenizer's codes of a small test picture, on the CPU in float32."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        self._pixels = moving_picture(tokenizer.traits)
        self._wanted = tokenizer.encode(self._pixels)

    def agreement(self, tokenizer: VideoTokenizer, device: torch.device) -> float:
        """Share of codes that stay the same with the tokenizer on ``device``, 0 to 1.

        Codes of latents that are not finite do not count: narrow types may overflow, and clips
        where they do are rejected.
        """
        found = tokenizer.encode(self._pixels.to(device)).cpu()
        finite = found != NOT_FINITE
        if not finite.any():
            return 1.0
        return float((found == self._wanted)[finite].float().mean())

    def check(self, tokenizer: VideoTokenizer, device: torch.device) -> None:
        """Raise NodeTrouble if fewer codes agree than rounding explains."""
        is_wide = tokenizer.dtype == torch.float32
        least = FLOAT32_AGREEMENT if is_wide else NARROW_AGREEMENT
        share = self.agreement(tokenizer, device)
        if share < least:
            raise NodeTrouble(
                f"encode: {share:.0%} of the codes of a test picture in {tokenizer.dtype} on "
                f"{_name(device)} match float32 on the CPU; with rounding alone, at least "
                f"{least:.0%} would. Codes made here would be silently wrong. The likely "
                "cause is the build of PyTorch or cuDNN, or the device's memory: use another "
                "version, or encode.dtype: float32"
            )


def moving_picture(traits: TokenizerTraits) -> Tensor:
    """(1, T, H, W, 3) uint8 of two latent frames or a whole chunk, the same in every call."""
    side = traits.side_multiple * -(-64 // traits.side_multiple)
    frames = traits.chunk_frames or traits.num_frames(2)
    coarse = torch.rand((1, 3, 2, 12, 12), generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, (frames, side, side), mode="trilinear", align_corners=True)
    return smooth.mul_(255).to(torch.uint8).movedim(1, -1).contiguous()


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the device {device}"
    return f"{torch.cuda.get_device_name(device)} (cuDNN {torch.backends.cudnn.version()})"
