"""Whether a device returns the codes that the CPU returns in float32.

Not every build of its libraries does. cuDNN 9.10 silently computes wrong sums in 3D convolutions
of bfloat16 (github.com/pytorch/pytorch/issues/163539), and PyTorch 2.9 avoids it at ten times the
cost.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import NodeTrouble
from tokpipe.models.tokenizers.base import NOT_FINITE, VideoTokenizer

FLOAT32_AGREEMENT = 0.9
"""Rounding in another order changes few codes: fewer than 1 in 1,000 with every tokenizer tried."""

NARROW_AGREEMENT = 0.5
"""Types of 8 or 11 bits change 1 to 15 codes of 100, depending on how fine the codebook is. After
wrong sums hardly any code stays, where codebooks are large."""

_SOUND_CUDNN = 91500
"""From this version on, PyTorch lets cuDNN compute 3D convolutions of bfloat16 and float16."""

_log = logging.getLogger(__name__)


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
        """Reject a device that computes something else.

        Raises:
            NodeTrouble: fewer codes agree than rounding explains.
        """
        _warn_of_slow_convolutions(tokenizer.dtype, device)
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


def _warn_of_slow_convolutions(dtype: torch.dtype, device: torch.device) -> None:
    version = torch.backends.cudnn.version() if device.type == "cuda" else None
    if version is not None and version < _SOUND_CUDNN and dtype != torch.float32:
        _log.warning(
            "PyTorch does not trust cuDNN %d with 3D convolutions of %s: encoding will take many "
            "times as long and as much memory; install nvidia-cudnn-cu12>=9.15",
            *(version, dtype),
        )
