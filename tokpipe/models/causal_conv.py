"""Convolution over time in which the present never sees the future."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.arguments import takes
from tokpipe.models.group_norm import GroupNorm
from tokpipe.models.operations import Conv3d
from tokpipe.models.streaming import Stream

PadMode = Literal["first", "constant", "reflect", "constant_causal", "constant_published"]

NOT_CAUSAL = {"reflect", "constant_published"}
"""Pad modes under which frames see later ones."""


class CausalConv3d(nn.Module):
    """3D convolution padded in time so that output ``j`` ends at frame ``s * (j+1) - 1``.

    With ``s = 1`` it returns as many frames as it takes. ``pad_mode`` is what comes before frame 0:

    - ``first``: copies of frame 0, so a single frame is a valid clip. Causal.
    - ``constant``, ``constant_causal``: zeros. Causal.
    - ``reflect``: frames 1, 2, ... mirrored, after zeros if too few: frame 0 sees later ones.
    - ``constant_published``: what published code computes under ``constant``, by a padding in the
      wrong order: a 3x3x3 kernel gets two columns of zeros on the left, and a frame of them before
      and after the clip. Not causal, shifted in width, and kernels that are not cubes change the
      size. ``load_published`` refuses weights under ``constant`` until one of the two is chosen.

    Space is padded with zeros. ``stride`` and ``dilation`` only apply to time; ``options`` are
    those of ``nn.Conv3d``. Source: MAGVIT-v2, arXiv:2310.05737; arguments and keys as in CogVideo.
    """

    @takes("padding_mode", padding=(0,))
    def __init__(
        self,
        chan_in: int,
        chan_out: int,
        kernel_size: int | tuple[int, int, int],
        pad_mode: PadMode = "constant",
        *,
        stride: int = 1,
        dilation: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 3 or kernel[1] % 2 == 0 or kernel[2] % 2 == 0:
            raise ValueError(f"{kernel_size=}: use an odd size, or three, the last two odd")
        if pad_mode not in get_args(PadMode):
            raise ValueError(f"{pad_mode=}: use one of {get_args(PadMode)}")
        span = dilation * (kernel[0] - 1) + 1
        past, rows, columns = span - stride, kernel[1] // 2, kernel[2] // 2
        if past < 0:
            found = f"{stride=} is longer than the {span} frames read"
            raise ValueError(f"{found}, and would skip frame 0: use less")
        self.pad_mode = pad_mode
        self.is_ambiguous = pad_mode == "constant" and any((past, rows, columns))
        is_published = pad_mode == "constant_published"
        self.past_frames = 0 if is_published else past
        # Of columns, rows and frames, where published code means frames, columns and rows.
        mistaken = (past, 0, columns, columns, rows, rows)
        self.pad = nn.ConstantPad3d(mistaken, 0) if is_published else nn.Identity()
        padding = 0 if is_published else (0, rows, columns)
        steps: dict[str, Any] = {"stride": (stride, 1, 1), "dilation": (dilation, 1, 1)}
        self.conv = Conv3d(chan_in, chan_out, kernel, padding=padding, **steps, **options)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T // stride, H, W)."""
        return self.conv(self.padded(x, stream))

    def padded(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """What ``conv`` reads: ``x`` behind its past."""
        self._check_frames(x, stream)
        if self.past_frames:
            x = torch.cat([self._past(x, stream), x], dim=2)
            if stream is not None:
                stream.keep(x, self.past_frames)
        return self.pad(x)

    def silu_input(
        self,
        norm: GroupNorm,
        x: Tensor,
        stream: Stream | None = None,
        *,
        bias: Tensor | None = None,
    ) -> Tensor:
        """What ``conv`` reads: ``silu(norm(x + bias))`` behind its past, as ``norm.write`` does."""
        self._check_frames(x, stream)
        past, dtype = self.past_frames, self.conv.weight.dtype
        shape = (*x.shape[:2], past + x.shape[2], *x.shape[3:])
        padded = torch.empty(
            shape, dtype=dtype, device=x.device, memory_format=torch.channels_last_3d
        )
        present = padded[:, :, past:]
        norm.write(x, present, with_silu=True, bias=bias)
        if past:
            padded[:, :, :past] = self._past(present, stream)
            if stream is not None:
                stream.keep(padded, past)
        return self.pad(padded)

    def _check_frames(self, x: Tensor, stream: Stream | None) -> None:
        frames, stride = x.shape[2], self.conv.stride[0]
        if frames < stride or (stream is not None and frames % stride):
            found = f"{frames} frames do not fill an output of stride {stride}"
            raise ValueError(f"{found}: pass a multiple of it")

    def _past(self, x: Tensor, stream: Stream | None) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_in, past_frames, H, W)."""
        if stream is not None and not stream.is_first:
            return stream.past(x, self.past_frames)
        if self.pad_mode != "reflect":
            first = x[:, :, :1] if self.pad_mode == "first" else torch.zeros_like(x[:, :, :1])
            return first.expand(-1, -1, self.past_frames, -1, -1)
        mirrored = x[:, :, 1 : self.past_frames + 1].flip(2)
        return F.pad(mirrored, (0, 0, 0, 0, self.past_frames - mirrored.shape[2], 0))
