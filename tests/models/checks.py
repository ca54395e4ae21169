"""Checks that tests of several networks share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Batch = list[int]


def assert_same_bits(
    run: Callable[[Batch], Tensor | list[Tensor]],
    batches: Sequence[Batch] = ([0], [0, 1], [3, 2, 0, 1]),
    threads: Sequence[int] = (1, 2),
) -> None:
    """``run`` gets the samples of a batch; its result for sample 0 must keep its bits."""
    before, seen = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            for batch in batches:
                with torch.inference_mode():
                    seen.append(run(batch)[batch.index(0)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, seen[0]) for result in seen)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, relative to that of ``wanted``."""
    return float((found.detach().float() - wanted.detach()).norm() / wanted.detach().norm())


def changed_frames(module: Callable[[Tensor], Tensor], x: Tensor, frame: int) -> list[int]:
    """The output frames that differ when input frame ``frame`` and all later ones do."""
    edited = x.clone()
    edited[:, :, frame:] += 1.0
    before, after = module(x), module(edited)
    return (before != after).any(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
