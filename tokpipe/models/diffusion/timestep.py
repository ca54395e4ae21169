"""Embeds the timestep, by which a diffusion model knows the noise level of its input."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.operations import silu


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """(B,) of any real dtype -> (B, embedding_dim) float32 in [-1, 1]: sines, then cosines.

    The half ``n = embedding_dim // 2`` has angles ``t * 10000 ** (-i / (n - 1))``, from a period
    of ``2 pi`` steps to one of ``20000 pi``. An odd dim ends in a zero. Computed in float32
    whatever the dtype of ``timesteps``, of which whole numbers up to 2**24 are exact.
    Source: tensor2tensor, as in Denoising Diffusion Probabilistic Models, arXiv:2006.11239;
    arguments as in CogVideo's ``sgm.modules.diffusionmodules.model``.
    """
    if timesteps.ndim != 1:
        raise ValueError(
            f"timesteps have shape {tuple(timesteps.shape)}, but each input has one: pass (B,)"
        )
    half = embedding_dim // 2
    if half < 2:
        raise ValueError(
            f"embedding_dim={embedding_dim} leaves room for {half} period(s), but the series "
            "needs two at least: use 4 or more"
        )
    # On the CPU, so that the periods are the same bits on every device.
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    rates = torch.exp(steps * -(math.log(10000) / (half - 1))).to(timesteps.device)
    angles = timesteps.float()[:, None] * rates
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, embedding_dim % 2))


class TimestepEmbedding(nn.Module):
    """The sinusoidal embedding of ``channels`` after two dense layers of four times as many.

    Source: arXiv:2006.11239; keys as in CogVideo (``temb.dense.0``, ``temb.dense.1``).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        hidden = 4 * channels
        self.dense = nn.ModuleList([nn.Linear(channels, hidden), nn.Linear(hidden, hidden)])

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) -> (B, 4 * channels), in the dtype of the weights."""
        first, second = self.dense
        assert isinstance(first, nn.Linear)
        # The angles of late timesteps need float32: bfloat16 has no odd numbers above 256.
        embedding = get_timestep_embedding(timesteps, self.channels).to(first.weight.dtype)
        y: Tensor = second(silu(first(embedding)))
        return y
