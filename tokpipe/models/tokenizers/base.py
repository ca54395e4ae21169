"""The interface of every tokenizer, and the checks and the loading that all of them share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from tokpipe.config.published import tensors_of
from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.config.traits import TokenizerTraits, by_codebook
from tokpipe.models.published import load_published
from tokpipe.models.quantizers.base import Quantizer, check_range
from tokpipe.models.streaming import StreamState

Part = TypeVar("Part", bound=nn.Module)

NOT_FINITE = -1
"""In place of a code where the latent has NaN or infinity."""


class VideoTokenizer(nn.Module, ABC):
    """Turns pixels into codes and codes into pixels, on the device of its weights.

    Shape letters: B clips, T frames, H rows and W columns of pixels; t, h, w the latent grid.
    Subclasses implement ``_encode`` and ``_decode`` on floats, in the layout and range that their
    ``traits`` declare. Shapes and types are checked here: a ``ValueError`` is the fault of the
    arguments, and a ``TypeError`` that of the model.
    """

    def __init__(self, traits: TokenizerTraits) -> None:
        super().__init__()
        self.traits = traits
        self.dtype = torch.float32

    # --- for callers ---

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 RGB -> int64 codes (B, t, h, w), or (B, t, h, w, c) with several
        per position, or ``NOT_FINITE``. T is ``first_frames + temporal_stride * k``, t is 1 + k;
        H and W are multiples of ``traits.side_multiple``."""
        self._check_pixels(pixels)
        self.traits.check_num_frames(pixels.shape[1], "frames of a chunk")
        return self._checked_codes(self._encode(self._floats(pixels)), pixels)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, t, h, w) of any integer type -> (B, T, H, W, 3) uint8 RGB."""
        codes = self._checked_input_codes(codes)
        num_frames = self.traits.num_frames(codes.shape[1])
        self.traits.check_num_frames(num_frames, "frames of these codes")
        return self._pixels(self._decode(self._folded(codes)), codes, num_frames)

    @torch.inference_mode()
    def encode_piece(self, pixels: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Encode the next frames of a clip, and return the state for the next piece; together the
        codes are those of the whole clip. The first piece (``state=None``) has as many frames as
        ``encode`` takes, each later one a multiple of the temporal stride."""
        self._check_streamable()
        self._check_pixels(pixels)
        if state is None:
            self.traits.check_num_frames(pixels.shape[1], "frames of a first piece")
        elif pixels.shape[1] % self.traits.temporal_stride:
            found = f"a later piece of {pixels.shape[1]} frames does not fill whole latent frames"
            raise ValueError(f"{found}: pass a multiple of {self.traits.temporal_stride}")
        codes, state = self._encode_piece(self._floats(pixels), state)
        return self._checked_codes(codes, pixels), state

    @torch.inference_mode()
    def decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Decode the next latent frames of a clip: the inverse of ``encode_piece``."""
        self._check_streamable()
        codes = self._checked_input_codes(codes)
        num_frames = self.traits.temporal_stride * codes.shape[1]
        if state is None:
            num_frames = self.traits.num_frames(codes.shape[1])
        floats, state = self._decode_piece(self._folded(codes), state)
        return self._pixels(floats, codes, num_frames), state

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let the networks compute in ``dtype``, if they can; a codebook is searched in float32.
        Rounds the weights irreversibly."""
        self._cast(dtype)
        self.dtype = dtype

    # --- for kinds of tokenizers ---

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Published weights by the keys of this class."""
        return state

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """Floats in the declared layout and range -> (B, t, h, w) codes of any integer type; under
        layout ``BCHW`` (B * T, 3, H, W) -> (B * T, h, w)."""

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """(B, t, h, w) int64 in the codebook -> floats in the declared layout and range; under
        layout ``BCHW`` (B * T, h, w) -> (B * T, 3, H, W)."""

    def _encode_piece(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Like ``_encode``, if declared to be streamable. By default, frames are encoded alone."""
        return self._encode(x), StreamState(type(self).__name__, ())

    def _decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Like ``_decode``, if declared to be streamable. By default, frames are decoded alone."""
        return self._decode(codes), StreamState(type(self).__name__, ())

    def _cast(self, dtype: torch.dtype) -> None:
        for part in self.children():
            if not isinstance(part, Quantizer):
                part.to(dtype)

    def _input_dtype(self) -> torch.dtype:
        return self.dtype

    # --- checks and conversions ---

    @staticmethod
    def _needed(part: Part | None) -> Part:
        if part is None:
            found = "this tokenizer was built without its decoder, so it cannot return pixels"
            raise ValueError(f"{found}: build it with build_tokenizer(..., with_decoder=True)")
        return part

    def _check_streamable(self) -> None:
        if (reason := self.traits.why_not_streamable) is not None:
            raise ValueError(
                f"this tokenizer cannot take a clip piece by piece: {reason}. The codes would not "
                "be those of the whole clip; encode independent chunks instead"
            )

    def _check_pixels(self, pixels: Tensor) -> None:
        fits = pixels.dtype == torch.uint8 and pixels.ndim == 5 and pixels.shape[-1] == 3
        if not fits or not pixels.numel():
            found = f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}, but the tokenizer"
            raise ValueError(f"{found} takes uint8 of (B, T, H, W, 3), none of them 0")
        self.traits.check_size(*pixels.shape[2:4])

    def _floats(self, pixels: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> the declared layout and range, as ``_encode`` takes it."""
        low, high = self.traits.value_range
        # Exact in float32, before any rounding to a narrower dtype.
        x = pixels.float().div_(255 / (high - low)).add_(low).to(self._input_dtype())
        return self._folded(x.movedim(-1, 1 if self.traits.layout == "BCTHW" else 2))

    def _checked_codes(self, codes: Tensor, pixels: Tensor) -> Tensor:
        """Check the result of ``_encode`` against the declared grid, but not its range."""
        clips, frames, height, width = pixels.shape[:4]
        latents = -(-frames // self.traits.temporal_stride)  # 1 + k of a first piece, too
        shape = [clips, latents, *self.traits.grid(height, width)]
        call = f"encoding {frames} frames of {height}x{width}"
        return self._unfolded(codes, "integers", shape, call).long()

    def _checked_input_codes(self, codes: Tensor) -> Tensor:
        """(B, t, h, w) of any integer type -> int64."""
        stride = self.traits.spatial_stride
        height, width = (side * stride for side in codes.shape[2:4]) if codes.ndim > 3 else (0, 0)
        wanted = self.traits.grid(height, width)
        if codes.shape[2:] != wanted or not _is_integer(codes) or not codes.numel():
            axes = "".join(f", {c}" for c in wanted[2:])
            found = f"codes are {codes.dtype} of shape {tuple(codes.shape)}, but the tokenizer"
            raise ValueError(f"{found} takes at least one integer of (B, t, h, w{axes})")
        codes = codes.long()  # few operations support uint16, uint32 and uint64
        check_codes(codes, self.traits)
        self.traits.check_size(height, width)
        return codes

    def _folded(self, given: Tensor) -> Tensor:
        return given.flatten(0, 1) if self.traits.layout == "BCHW" else given

    def _unfolded(self, result: object, kind: str, shape: list[int], call: str) -> Tensor:
        """Return what a model did as ``shape``; TypeError unless it returned ``kind``, integers or
        floats, of that shape, in which frames are clips under layout ``BCHW``."""
        is_folded = self.traits.layout == "BCHW"
        wanted = (shape[0] * shape[1], *shape[2:]) if is_folded else tuple(shape)
        found = f"a {type(result).__name__}"
        if isinstance(result, Tensor):
            is_kind = _is_integer(result) if kind == "integers" else result.is_floating_point()
            if is_kind and result.shape == wanted:
                return result.reshape(shape)
            found = f"{result.dtype} of shape {tuple(result.shape)}"
        what = f"{call} returned {found}, not {kind} of {wanted}"
        raise TypeError(f"{what} as its traits declare: correct either")

    def _pixels(self, floats: Tensor, codes: Tensor, num_frames: int) -> Tensor:
        """The result of ``_decode`` for (B, t, h, w) codes -> (B, T, H, W, 3) uint8."""
        stride, (low, high) = self.traits.spatial_stride, self.traits.value_range
        shape = [len(codes), num_frames, codes.shape[2] * stride, codes.shape[3] * stride]
        colours = 1 if self.traits.layout == "BCTHW" else 2
        shape.insert(colours, 3)
        call = f"decoding codes of shape {tuple(codes.shape)}"
        x = self._unfolded(floats, "floats", shape, call).movedim(colours, -1)
        x = x.float().sub(low).mul(255 / (high - low))
        if not x.isfinite().all():
            found = f"decoding produced NaN or infinity in {self.dtype}, which cannot become pixels"
            raise ValueError(f"{found}: check the weights, or compute in float32")
        return x.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def check_codes(codes: Tensor, traits: TokenizerTraits) -> None:
    """Raise ValueError for (B, t, h, w) or (B, t, h, w, c) codes outside their codebooks."""
    for part, size in by_codebook(codes, traits.sizes):
        check_range(part, size)


def codes_or_not_finite(quantizer: Quantizer, latent: Tensor) -> Tensor:
    """(B, C, ...) -> (B, ...) or (B, ..., c) int64, ``NOT_FINITE`` where the latent is not."""
    latent = latent.float()
    finite = latent.isfinite().all(dim=1)
    codes = quantizer.codes_of(latent.masked_fill(~finite.unsqueeze(1), 0))
    return codes.where(finite if codes.ndim == finite.ndim else finite.unsqueeze(-1), NOT_FINITE)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def renamed_keys(state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace each pattern, a regular expression, in turn in every key."""
    keys = dict(zip(state, state, strict=True))
    for pattern, replacement in patterns.items():
        keys = {key: re.sub(pattern, replacement, new) for key, new in keys.items()}
    return {keys[key]: value for key, value in state.items()}


def load_weights(
    module: nn.Module,
    weights: bytes,
    config: TokenizerConfig,
    *,
    with_decoder: bool,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> None:
    """Fill ``module`` from a safetensors file that has exactly its keys, once renamed. Keys that
    only decoding needs are optional for a module without a decoder."""
    source, parse = config.weights or "tokenizer.weights", safetensors.torch.load
    state = tensors_of(config, weights, source, with_decoder=with_decoder, parse=parse)
    load_published(module, rename(state), source=source)
