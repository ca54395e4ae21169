"""How much memory of a GPU an encoder takes, found without one: it runs on tensors without data."""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokpipe.models.tokenizers.base import VideoTokenizer


class LiveBytes(TorchDispatchMode):
    """Follows what operations return until it is freed; ``peak`` is the most bytes at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held = WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Without a device, PyTorch would choose the kernel that holds all scores.
        is_fused = func is torch.ops.aten.scaled_dot_product_attention.default and args[0].is_meta
        result = torch.empty_like(args[0]) if is_fused else func(*args, **(kwargs or {}))
        self.follow(*tree_leaves(result))
        return result

    def follow(self, *results: Any) -> None:
        """Count the tensors among these, and those that share memory once."""
        self._held.update(one.untyped_storage() for one in results if isinstance(one, Tensor))
        self.peak = max(self.peak, sum(one.nbytes() for one in self._held))


def peak_bytes(
    tokenizer: VideoTokenizer, shape: tuple[int, int, int, int], *, in_pieces: bool = False
) -> int:
    """Most bytes held while (B, T, H, W) pixels are encoded, with them and the weights.
    ``tokenizer`` is on "meta". With ``in_pieces`` a chunk follows from the state after this one."""
    counted, first_frames = LiveBytes(), tokenizer.traits.first_frames
    counted.follow(*tokenizer.parameters(), *tokenizer.buffers())
    with counted:
        pixels = torch.empty((*shape, 3), dtype=torch.uint8, device="meta")
        if in_pieces and shape[1] > first_frames:
            _, state = tokenizer.encode_piece(pixels, None)
            tokenizer.encode_piece(pixels[:, first_frames:], state)
        else:
            tokenizer.encode(pixels)
    return counted.peak
