"""Quantizers that keep a learnt codebook, of which some entries may be left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.models.quantizers.base import Quantizer

Remap = str | os.PathLike[str] | Sequence[int] | NDArray[Any] | Tensor
UnknownIndex = Literal["random", "extra"] | int


class CodebookQuantizer(Quantizer):
    """A quantizer whose vectors are rows of a codebook.

    ``remap`` names the entries in use, as integers or as the path of a .npy file of them. Codes
    are then positions in that list, and ``codebook_size`` is its length. What an entry outside of
    the list becomes is said by ``unknown_index``:

    - an integer: that position of the list.
    - ``"extra"``: one more code at the end, which stands for the vector of the first in the list.
    - ``"random"``: some position of the list. The published code draws it anew for every latent,
      so that no two runs give the same codes; here it is the entry modulo the list's length,
      which is always the same.

    Without ``remap``, ``unknown_index`` has nothing to say. State: ``used``, as published.
    """

    used: Tensor | None

    def __init__(
        self,
        num_vectors: int,
        dim: int,
        *,
        latent_dim: int | None = None,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        if num_vectors < 1 or dim < 1:
            raise ValueError(f"a codebook of {num_vectors} vectors of {dim} channels holds nothing")
        used = None if remap is None else _used_entries(remap, num_vectors)
        num_used = num_vectors if used is None else len(used)
        if unknown_index not in ("random", "extra") and (
            not isinstance(unknown_index, int) or not 0 <= unknown_index < num_used
        ):
            raise ValueError(
                f"unknown_index={unknown_index!r}: use 'random', 'extra' or one of the "
                f"{num_used} positions from 0 on; any other code would name no vector"
            )
        extra = used is not None and unknown_index == "extra"
        super().__init__(num_used + extra, dim, latent_dim)
        self.num_vectors = num_vectors
        self.unknown_index = unknown_index
        self.register_buffer("used", used)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Code vectors by the published interface.

        ``indices`` of any shape -> (..., dim) or, with ``shape`` = (B, ..., dim), (B, dim, ...).
        Raises as ``vectors_of`` does.
        """
        vectors = self._vectors(self._checked(indices))
        return vectors if shape is None else vectors.reshape(tuple(shape)).movedim(-1, 1)

    def _entries_to_codes(self, entries: Tensor) -> Tensor:
        """Rows of the codebook -> codes."""
        if self.used is None:
            return entries
        positions = torch.full((self.num_vectors,), -1, device=entries.device)
        positions[self.used] = torch.arange(len(self.used), device=entries.device)
        codes = positions[entries]
        if self.unknown_index == "random":
            return codes.where(codes >= 0, entries % len(self.used))
        unknown = len(self.used) if self.unknown_index == "extra" else self.unknown_index
        return codes.where(codes >= 0, unknown)

    def _codes_to_entries(self, codes: Tensor) -> Tensor:
        """Codes -> rows of the codebook."""
        if self.used is None:
            return codes
        entries: Tensor = self.used[codes.where(codes < len(self.used), 0)]
        return entries


def _loaded(path: str | os.PathLike[str]) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{os.fspath(path)}: is no .npy file of integers ({error}), so the entries in use are "
            "unknown. Write it by numpy.save"
        ) from error
    return loaded


def _used_entries(remap: Remap, num_vectors: int) -> Tensor:
    where, given = "remap", remap
    if isinstance(given, str | os.PathLike):
        where, given = os.fspath(given), _loaded(given)
    used = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if used.ndim != 1 or not used.size or used.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: holds {used.dtype} of shape {used.shape}, but the entries in use are a "
            "list of integers, one at least"
        )
    if used.min() < 0 or used.max() >= num_vectors:
        raise ValueError(
            f"{where}: names entries {used.min()} to {used.max()}, but the codebook has 0 to "
            f"{num_vectors - 1}: it belongs to another codebook"
        )
    if len(np.unique(used)) != len(used):
        raise ValueError(
            f"{where}: names an entry twice, so one of its codes would never be made; "
            "name each once"
        )
    return torch.from_numpy(used.astype(np.int64))
