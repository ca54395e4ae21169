"""What happens at one image size of a network. Attribute names are state_dict keys."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor, nn

Factory: TypeAlias = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """A network's levels, by the published arguments that all networks share. With ``resolution``,
    which is nominal, ``attn_resolutions`` decides which levels have attention."""

    ch: int
    ch_mult: Sequence[int] = (1, 2, 4, 8)
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    dropout: float = 0.0
    resamp_with_conv: bool = True
    resolution: int

    def __post_init__(self) -> None:
        if not self.ch_mult or self.num_res_blocks < 1:
            found = f"ch_mult={tuple(self.ch_mult)} with num_res_blocks={self.num_res_blocks}"
            raise ValueError(f"{found}: there must be a level, and at least one block at each")

    @property
    def spatial_stride(self) -> int:
        """Pixels per row and column of the coarsest level."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from fine to coarse."""
        return [self.ch * multiple for multiple in self.ch_mult]


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention if there is any. All levels but the
    last end in ``downsample`` or ``upsample``."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def steps(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Each block, with the attention that follows it."""
        return zip_longest(self.block, self.attn)


class Levels(nn.ModuleList):
    """The levels of a way ``down`` to the coarsest or ``up`` from it; number 0 is the finest.

    The way up has ``more_up`` blocks more at each level. The first resamplers, or with
    ``time_last`` the last, also halve or double time, up to ``temporal_stride``; None is for
    images. ``skips`` are the channels of activations that blocks take as well, the last first.
    """

    def __init__(
        self,
        way: Literal["down", "up"],
        pyramid: Pyramid,
        make_block: Factory,
        make_attn: Factory,
        make_resampler: Callable[..., nn.Module | None],
        *,
        temporal_stride: int | None = None,
        time_last: bool = False,
        skips: Sequence[int] = (),
        more_up: int = 1,
    ) -> None:
        super().__init__()
        self.way = way
        widths, size, num_blocks = pyramid.widths, pyramid.resolution, pyramid.num_res_blocks
        before, order, kept = pyramid.ch, range(len(widths)), reversed(skips)
        if way == "up":
            # Sizes double from the coarsest, as published: halves lost on the way down stay lost.
            size -= size % pyramid.spatial_stride
            before, order, num_blocks = widths[-1], order[::-1], num_blocks + more_up
        for number, at in enumerate(order):
            inputs = [before] + [widths[at]] * (num_blocks - 1)
            if skips:
                inputs = [channels + next(kept) for channels in inputs]
            before = widths[at]
            blocks = [make_block(in_channels=width, out_channels=before) for width in inputs]
            attends = size >> at in pyramid.attn_resolutions
            level = Level(blocks, [make_attn(before) for _ in inputs if attends])
            if at != order[-1]:  # after the blocks, as published: a seed draws in this order
                halvings = len(widths) - 2 - number if time_last else number
                in_time = () if temporal_stride is None else (2**halvings < temporal_stride,)
                resampler = make_resampler(before, pyramid.resamp_with_conv, *in_time)
                setattr(level, f"{way}sample", resampler)
            self.insert(len(self) if way == "down" else 0, level)

    def in_order(self) -> list[Level]:
        """The levels as they run."""
        return list(cast(Iterable[Level], self))[:: 1 if self.way == "down" else -1]

    def forward(self, h: Tensor, *context: Any) -> Tensor:
        """Run all: blocks and attention also get the ``context``, resamplers only its stream."""
        for step, given in self.run(*context):
            h = step(h, *given)
        return h

    def run(self, *context: Any) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """The steps of ``forward``. A caller that keeps nothing else has each one's input freed
        as soon as the next begins, where a call of a module holds its arguments to the end."""
        for level in self.in_order():
            for block, attn in level.steps():
                yield block, (None, *context)
                if attn is not None:
                    yield attn, context
            if (resample := level.downsample or level.upsample) is not None:
                yield resample, context[1:]


class MidBlocks(nn.Module):
    """Two residual blocks at the coarsest size, with attention between them if there is any."""

    def __init__(
        self, channels: int, make_block: Factory, make_attn: Factory | None = None
    ) -> None:
        super().__init__()
        first, last = (make_block(in_channels=channels, out_channels=channels) for _ in range(2))
        self.block_1 = first
        self.attn_1 = None if make_attn is None else make_attn(channels)
        self.block_2 = last

    def forward(self, h: Tensor, temb: Tensor | None = None, *context: Any) -> Tensor:
        """(B, C, ...) -> the same shape."""
        h = self.block_1(h, temb, *context)
        if self.attn_1 is not None:
            h = self.attn_1(h, *context)
        return self.block_2(h, temb, *context)
