"""Quantizers with a learned codebook, of which some entries may be left out."""

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

    ``remap`` lists the entries in use, as integers or as the path of a .npy file of them. Codes
    are then positions in that list, and ``codebook_size`` is its length. ``unknown_index`` says
    what an entry outside the list becomes; without ``remap`` it has no effect:

    - an integer: that position of the list.
    - ``"extra"``: one more code at the end, with the vector of the first in the list.
    - ``"random"``: the entry modulo the list's length. (Published code draws a new position for
      every latent, so that no two runs return the same codes.)

    State: ``used``, as published.
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
            raise ValueError(f"a codebook of {num_vectors} vectors of {dim} channels is empty")
        used = None if remap is None else _used_entries(remap, num_vectors)
        num_used = num_vectors if used is None else len(used)
        if unknown_index not in ("random", "extra") and (
            not isinstance(unknown_index, int) or not 0 <= unknown_index < num_used
        ):
            raise ValueError(
                f"unknown_index={unknown_index!r}: use 'random', 'extra' or a position below "
                f"{num_used}; any other code would name no vector"
            )
        extra = used is not None and unknown_index == "extra"
        super().__init__(num_used + extra, dim, latent_dim)
        self.num_vectors = num_vectors
        self.unknown_index = unknown_index
        self.register_buffer("used", used)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Published form of ``vectors_of``: indices of any shape -> (..., dim).

        With ``shape`` = (B, ..., dim) the result is (B, dim, ...).
        """
        vectors = self._vectors(self._checked(indices))
        return vectors if shape is None else vectors.reshape(tuple(shape)).movedim(-1, 1)

    def _flat(self, codes: Tensor) -> Tensor:
        """(B, ...) -> (N,), or (N, 1) under ``remap``, as published."""
        return codes.flatten() if self.used is None else codes.reshape(-1, 1)

    def _entries_to_codes(self, entries: Tensor) -> Tensor:
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
        if self.used is None:
            return codes
        entries: Tensor = self.used[codes.where(codes < len(self.used), 0)]
        return entries


def _used_entries(remap: Remap, num_vectors: int) -> Tensor:
    where = os.fspath(remap) if isinstance(remap, str | os.PathLike) else "remap"
    try:
        given = np.load(where, allow_pickle=False) if where != "remap" else remap
        used = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{where}: not a .npy file of integers ({error}): use numpy.save"
        ) from error
    problem = None
    if used.ndim != 1 or not used.size or used.dtype.kind not in "iu":
        problem = f"holds {used.dtype} of shape {used.shape}"
    elif used.min() < 0 or used.max() >= num_vectors:
        problem = f"names entries {used.min()} to {used.max()}"
    elif len(np.unique(used)) != len(used):
        problem = "names an entry twice"
    if problem is not None:
        raise ValueError(
            f"{where}: {problem}, but the codebook has 0 to {num_vectors - 1}, and the entries in "
            "use are a list of at least one of these integers, each once"
        )
    return torch.from_numpy(used.astype(np.int64))
