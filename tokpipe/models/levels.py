"""The levels of an encoder, a decoder or a U-Net: what happens at one image size.

Attribute names are state_dict keys: an interface.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Signature, signature
from itertools import zip_longest
from typing import Any, Literal, TypeAlias, TypeVar, cast

from torch import Tensor, nn

Factory: TypeAlias = Callable[..., nn.Module]
Init = TypeVar("Init", bound=Callable[..., None])


@dataclass(frozen=True)
class LevelPlan:
    """One level, before it is built."""

    index: int  # 0 for the finest level
    inputs: list[int]  # Channels that each block takes
    channels: int  # Channels that each block returns
    attends: bool  # Whether attention follows each block


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The levels of a network, by the published arguments that all networks share.

    ``resolution`` is nominal: with ``attn_resolutions`` it decides which levels have attention.
    """

    ch: int
    ch_mult: Sequence[int] = (1, 2, 4, 8)
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    dropout: float = 0.0
    resamp_with_conv: bool = True
    resolution: int

    def __post_init__(self) -> None:
        if not self.ch_mult or self.num_res_blocks < 1:
            raise ValueError(
                f"ch_mult={tuple(self.ch_mult)} with num_res_blocks={self.num_res_blocks}: "
                "residual blocks change the channels, so there must be a level, and at least one "
                "block at each"
            )

    @property
    def spatial_stride(self) -> int:
        """Rows and columns of the input per row and column of the coarsest level."""
        return int(2 ** (len(self.ch_mult) - 1))

    def down(self) -> list[LevelPlan]:
        """The levels from fine to coarse, with ``num_res_blocks`` blocks each."""
        return self._plans(self.ch, self.num_res_blocks, self.resolution, 1)

    def up(self) -> list[LevelPlan]:
        """The levels from coarse to fine, with one more block each."""
        # Sizes double from the coarsest, as published: halves lost on the way down stay lost.
        finest = self.resolution - self.resolution % self.spatial_stride
        return self._plans(self.ch * self.ch_mult[-1], self.num_res_blocks + 1, finest, -1)

    def _plans(self, channels: int, num_blocks: int, finest: int, step: int) -> list[LevelPlan]:
        plans = []
        for level in range(len(self.ch_mult))[::step]:
            inputs = [channels] + [self.ch * self.ch_mult[level]] * (num_blocks - 1)
            channels = self.ch * self.ch_mult[level]
            attends = finest >> level in self.attn_resolutions
            plans.append(LevelPlan(level, inputs, channels, attends))
        return plans


def passes_on_to(other: Callable[..., Any]) -> Callable[[Init], Init]:
    """In the signature of a constructor, show the arguments of ``other`` in place of ``**``."""

    def shown(init: Init) -> Init:
        own = {k: v for k, v in signature(init).parameters.items() if v.kind != v.VAR_KEYWORD}
        more = [v for k, v in signature(other).parameters.items() if k not in own]
        init.__signature__ = Signature([*own.values(), *more])  # type: ignore[attr-defined]
        return init

    return shown


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention where the plan says so.

    ``downsample`` or ``upsample`` leads to the next level, which the last one lacks.
    """

    def __init__(self, plan: LevelPlan, make_block: Factory, make_attn: Factory) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            make_block(in_channels=before, out_channels=plan.channels) for before in plan.inputs
        )
        self.attn = nn.ModuleList(make_attn(plan.channels) for _ in plan.inputs if plan.attends)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def steps(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Each block, with the attention that follows it."""
        return zip_longest(self.block, self.attn)


class Levels(nn.ModuleList):
    """The levels of a way ``down`` to the coarsest or ``up`` from it; number 0 is the finest."""

    def __init__(
        self,
        way: Literal["down", "up"],
        plans: Sequence[LevelPlan],
        make_block: Factory,
        make_attn: Factory,
        make_resampler: Callable[[LevelPlan], nn.Module],
    ) -> None:
        super().__init__()
        self.way = way
        for plan in plans:
            level = Level(plan, make_block, make_attn)
            if plan is not plans[-1]:  # after the blocks, as published: a seed draws in this order
                setattr(level, f"{way}sample", make_resampler(plan))
            self.insert(len(self) if way == "down" else 0, level)

    def in_order(self) -> list[Level]:
        """The levels as they run."""
        levels = list(cast(Iterable[Level], self))
        return levels if self.way == "down" else levels[::-1]

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
