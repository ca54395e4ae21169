"""The state that a causal network carries from one piece of a clip to the next."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class StreamState:
    """The last inputs of a network's causal convolutions: all it needs of the pieces before,
    whatever the clip's length. Tensors are copies without gradients, and no call changes them: a
    state can be pickled and used again."""

    network: str  # The network that made it, for the error when it is passed to another
    tensors: tuple[Tensor, ...]

    def check(self, network: str) -> None:
        """Raise ValueError unless ``network`` made this state."""
        if self.network != network:
            found = f"the state was made by {self.network}, but passed to {network}"
            raise ValueError(f"{found}. Pass that of the piece before, or None to start a clip")

    def to(self, device: torch.device | str) -> "StreamState":
        return StreamState(self.network, tuple(tensor.to(device) for tensor in self.tensors))

    def __reduce__(self) -> tuple[Any, ...]:
        # As byte arrays, which pickle does not copy: 240 MB in 0.2 s instead of 1.7 s.
        tensors = [tensor.cpu().contiguous() for tensor in self.tensors]
        given = [(tensor.view(torch.uint8).numpy(), tensor.dtype) for tensor in tensors]
        return _unpickled, (self.network, given)


def _unpickled(network: str, given: list[tuple[NDArray[np.uint8], torch.dtype]]) -> StreamState:
    with warnings.catch_warnings():
        # Arrays may be in memory shared with other processes. No call writes to a state.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = tuple(torch.from_numpy(array).view(dtype) for array, dtype in given)
    return StreamState(network, tensors)


class Stream:
    """One piece on its way through a network: hands each layer its old frames, keeps its new ones.

    Layers call it in the order in which they run. Without a state, the piece starts its clip.
    """

    def __init__(self, module: nn.Module, state: StreamState | None) -> None:
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        self.network = f"{type(module).__name__} of {num_parameters:,} parameters"
        if state is not None:
            state.check(self.network)
        self.is_first = state is None
        self._old = [] if state is None else list(state.tensors)
        self._new: list[Tensor] = []

    def past(self, x: Tensor, frames: int) -> Tensor:
        """The (B, C, frames, H, W) that the running layer saw before ``x`` of (B, C, T, H, W)."""
        wanted = f"{x.dtype} of {(*x.shape[:2], frames, *x.shape[3:])} on {x.device}"
        past = self._old[len(self._new)] if len(self._new) < len(self._old) else x.new_empty(0)
        found = f"{past.dtype} of {tuple(past.shape)} on {past.device}"
        if found != wanted:
            raise ValueError(
                f"the state of {self.network} carries {found} where this piece needs {wanted}: "
                "pass that of the piece before, on its device in its dtype, or None to start a clip"
            )
        return past

    def keep(self, x: Tensor, frames: int) -> None:
        """Carry a copy of the last ``frames`` of ``x``; a view would keep all of ``x`` alive."""
        last = x.detach()[:, :, x.shape[2] - frames :]
        self._new.append(last.clone(memory_format=torch.contiguous_format))

    def state(self) -> StreamState:
        """The state for the next piece, once every layer has run."""
        return StreamState(self.network, tuple(self._new))
