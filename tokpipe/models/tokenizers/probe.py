"""Whether a tokenizer keeps to its traits, and a device to the codes of the CPU, before any video.

Not every build of a device's libraries does. cuDNN 9.8 to 9.14 silently computed wrong sums in
large 3D convolutions of 16 bits. PyTorch does without it for contiguous tensors, but not for
channels-last ones, which this package has (github.com/pytorch/pytorch/issues/163539).
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import ConfigError, NodeTrouble
from tokpipe.models.group_norm import plain_norms
from tokpipe.models.process import encoder_class
from tokpipe.models.tokenizers.base import NOT_FINITE, VideoTokenizer, check_codes
from tokpipe.models.tokenizers.native import NativeTokenizer

MOST_UNLIKE = 0.1
"""Share of codes that rounding may change when a clip is encoded together with another."""

FLOAT32_CHANGES = 0.002
"""Share of codes that rounding in another order changes: fewer than half of that were measured."""

NARROW_CHANGES = 0.5
"""No tokenizer has more codes changed by types of 8 or 11 bits; most far fewer, see ``Parity``."""

SURPRISE, CALIBRATION_SURPRISE = 14.0, 5.0
"""-ln of the chance that sampling alone makes a check fail, or the small picture mislead it."""

BLOCK = 4  # Rows and columns of codes that are also judged by themselves: one tile may be wrong


def probe(
    tokenizer: VideoTokenizer,
    what: str,
    *,
    with_decoder: bool,
    size: tuple[int, int] | None = None,
    device: torch.device | None = None,
    pixels: Tensor | None = None,
) -> dict[str, float]:
    """Encode two clips of noise, together and in other ways; decode them if there is a decoder.

    Messages call the tokenizer ``what``. ``size`` is (height, width), by default a few latents
    high and, unless only squares are allowed, one more wide. ``pixels`` (2, T, H, W, 3) take the
    place of the noise. Returns the share of codes that each other way left the same.
    """
    traits = tokenizer.traits
    if pixels is None:
        side = traits.side_multiple * -(-32 // traits.side_multiple)
        wide = side if traits.square_only else side + traits.side_multiple
        height, width = size or traits.frame_size or (side, wide)
        frames = traits.chunk_frames or traits.num_frames(2)
        noise = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (2, frames, height, width, 3), generator=noise)
        pixels = pixels.to(torch.uint8).to(device or "cpu")
    _, frames, height, width, _ = pixels.shape
    call = f"encoding 2 clips of {frames} frames of {height}x{width}, in {tokenizer.dtype}"
    same: dict[str, float] = {}
    with _reported(what, call):
        codes = tokenizer.encode(pixels)
        check_codes(codes, traits)
        same["again"] = equal_share(tokenizer.encode(pixels), codes)
        if same["again"] < 1:
            raise TypeError("different codes the second time: it must not sample, or keep state")
        beside = tokenizer.encode(torch.cat([255 - pixels[:1], pixels[1:]]))
        same["alone"] = equal_share(tokenizer.encode(pixels[1:]), codes[1:])
        same["beside another clip"] = equal_share(beside[1:], codes[1:])
        if same["alone"] < 1 - MOST_UNLIKE or same["beside another clip"] < 1:
            raise TypeError("different codes for the second clip than alone: no clip may change it")
    if traits.why_not_streamable is None:
        with _reported(what, f"{call}, in pieces"):
            head, state = tokenizer.encode_piece(pixels[:, : traits.first_frames], None)
            tail, _ = tokenizer.encode_piece(pixels[:, traits.first_frames :], state)
            same["in pieces"] = equal_share(codes, torch.cat([head, tail], dim=1))
            if same["in pieces"] < 1 - MOST_UNLIKE:
                raise TypeError("different codes than whole: declare why_not_streamable")
    if with_decoder:
        with _reported(what, f"decoding codes of shape {tuple(codes.shape)}"):
            tokenizer.decode(codes)
    return same


@contextmanager
def _reported(what: str, call: str) -> Iterator[None]:
    """Turn anything that a call raises into a ConfigError."""
    remedy = "Its codes would be wrong, or the job would fail: correct the tokenizer or its traits"
    try:
        yield
    except (Exception, SystemExit) as error:  # user code may raise anything
        text = f"{type(error).__name__}: {str(error).strip()[-800:]}"
        raise ConfigError(f"{what}, probed by {call}, raised {text}. {remedy}") from error


def equal_share(codes: Tensor, others: Tensor) -> float:
    return float((codes == others).double().mean())


class Parity:
    """Codes of test pictures that a tokenizer must also make on a device, but for rounding. They
    are those of the CPU in float32, where ``dtype`` is tried on the small picture, to learn how
    many of them it changes."""

    def __init__(self, tokenizer: VideoTokenizer, dtype: torch.dtype) -> None:
        self._picture = moving_picture(tokenizer.traits)
        self._wanted = tokenizer.encode(self._picture)
        self._changes = FLOAT32_CHANGES if dtype == torch.float32 else NARROW_CHANGES
        if dtype != torch.float32:
            with suppress(Exception):  # it cannot be copied, or computes nothing in dtype on CPUs
                narrow = copy.deepcopy(tokenizer)
                narrow.compute_in(dtype)
                found = narrow.encode(self._picture)
                same = (found == self._wanted)[found != NOT_FINITE]
                shares = torch.linspace(FLOAT32_CHANGES, NARROW_CHANGES, 500).tolist()
                likely = [p for p in shares if _surprise(same, 1 - p) < CALIBRATION_SURPRISE]
                self._changes = max(likely, default=NARROW_CHANGES)

    def check_float32(
        self, tokenizer: VideoTokenizer, device: torch.device, shape: tuple[int, int, int] | None
    ) -> None:
        """Compare float32 on the device and on the CPU, then encode (T, H, W) for ``check``."""
        # Networks that are not ours may round on GPUs even so.
        changes = FLOAT32_CHANGES * (1 if isinstance(tokenizer, NativeTokenizer) else 10)
        found = tokenizer.encode(self._picture.to(device)).cpu()
        _compare(found, self._wanted, changes, f"in {tokenizer.dtype} on {encoder_class(device)}")
        if shape is not None:
            picture = moving_picture(tokenizer.traits, shape)
            with plain_norms():
                self._wanted = tokenizer.encode(picture.to(device)).cpu()
            self._picture = picture

    def check(self, tokenizer: VideoTokenizer, device: torch.device, rows: int) -> None:
        """Compare a batch of the same picture, computed as the job does, with float32. Raises
        NodeTrouble if more codes differ than rounding explains, anywhere or in one place."""
        where = f"in {tokenizer.dtype} on {encoder_class(device)}"
        pixels = self._picture.to(device).expand(rows, -1, -1, -1, -1)
        found = tokenizer.encode(pixels).cpu()
        for row in found:
            _compare(row[None], self._wanted, self._changes, where)
        if isinstance(tokenizer, NativeTokenizer) and not torch.equal(found[1:], found[:-1]):
            raise _wrong(f"the {rows} rows of a batch of one test picture {where} differ")


def _compare(found: Tensor, wanted: Tensor, changes: float, where: str) -> None:
    """``NOT_FINITE`` does not count: narrow types may overflow, and such clips are rejected."""
    finite = found != NOT_FINITE
    differs = (found != wanted) & finite
    sides = [min(BLOCK, side) for side in found.shape[2:]]
    blocks = differs.unfold(2, sides[0], 1).unfold(3, sides[1], 1).flatten(4).flatten(0, 3)
    worst = blocks[blocks.sum(1).argmax()]
    by_chance = math.log(len(blocks)) + SURPRISE
    if _surprise(differs[finite], changes) > SURPRISE or _surprise(worst, changes) > by_chance:
        share = 1 - float(differs[finite].float().mean())
        raise _wrong(
            f"{share:.1%} of the codes of a test picture {where} match float32, and in one place "
            f"{int(worst.sum())} of {len(worst)} do not. Rounding explains {changes:.1%}"
        )


def _surprise(differs: Tensor, share: float) -> float:
    """-ln of the chance (Chernoff's bound) of so many differences or more if ``share`` differ."""
    if not len(found := differs.flatten()) or (part := float(found.float().mean())) <= share:
        return 0.0
    rest = (1 - part) * math.log((1 - part) / (1 - share)) if part < 1 else 0.0
    return len(found) * (part * math.log(part / share) + rest)


def _wrong(found: str) -> NodeTrouble:
    return NodeTrouble(
        f"encode: {found}. Codes made here would be silently wrong. The likely cause is the build "
        "of PyTorch or cuDNN, or the device's memory: use another version, or encode.dtype: float32"
    )


def moving_picture(traits: TokenizerTraits, shape: tuple[int, int, int] | None = None) -> Tensor:
    """(1, T, H, W, 3) uint8, the same in every call; by default, two latent frames or a chunk."""
    side = traits.side_multiple * -(-96 // traits.side_multiple)
    height, width = traits.frame_size or (side, side)
    shape = shape or (traits.chunk_frames or traits.num_frames(2), height, width)
    points = [2 + size // cell for size, cell in zip(shape, (4, 6, 6), strict=True)]
    coarse = torch.rand((1, 3, *points), generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, shape, mode="trilinear", align_corners=True)
    return smooth.mul_(255).to(torch.uint8).movedim(1, -1).contiguous()
