"""The Gumbel quantizer: the latent is projected to one logit per code."""

import torch
from torch import Tensor, nn

from tokpipe.models.process import exact_float32_products
from tokpipe.models.quantizers.base import Quantized
from tokpipe.models.quantizers.codebook import CodebookQuantizer, Remap, UnknownIndex
from tokpipe.models.quantizers.nearest import project, search


class GumbelQuantizer(CodebookQuantizer):
    """Names the code of the greatest logit; in training, samples codes with Gumbel noise.

    Latents have ``num_hiddens`` channels, vectors ``embedding_dim``; there are ``n_embed`` codes.
    Only ``forward`` in ``train()`` mode draws noise, from PyTorch's global generator. It returns
    the sampled codes, and their vectors with the gradient of the softmax at temperature
    ``temp_init`` or, without ``straight_through``, the softmax's mixture of vectors. The loss is
    ``kl_weight`` times the divergence of the codes' distribution from the uniform one. (Published
    code samples in ``eval()`` mode as well, so its codes differ from run to run.)

    ``remap`` keeps only the logits of the entries in use, so no entry is ever unknown, and
    ``unknown_index="extra"`` adds a code that never occurs.
    Source: arXiv:1611.01144, and github.com/karpathy/deep-vector-quantization.
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        super().__init__(
            n_embed, embedding_dim, latent_dim=num_hiddens, remap=remap, unknown_index=unknown_index
        )
        self.straight_through = straight_through
        self.kl_weight = kl_weight
        self.temperature = _positive(temp_init)
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, num_hiddens, ...) -> (B, ...) int64; of equal logits, the first."""
        self._check_channels(latent)
        weight, bias = self._projection()
        return search(latent, weight.detach(), -bias.detach(), -1)

    def logits_of(self, latent: Tensor) -> Tensor:
        """(B, num_hiddens, ...) -> (B, K, ...) float32, K the number of entries in use."""
        self._check_channels(latent)
        return project(latent.movedim(1, -1), *self._projection()).movedim(-1, 1)

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight (K, num_hiddens) and bias (K,) of the entries in use, float32."""
        assert self.proj.bias is not None
        weight, bias = self.proj.weight.float().flatten(1), self.proj.bias.float()
        return (weight, bias) if self.used is None else (weight[self.used], bias[self.used])

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.embed(self._codes_to_entries(codes))
        return vectors.float()

    def forward(self, latent: Tensor, temp: float | None = None) -> Quantized:
        """(B, num_hiddens, ...) -> vectors, codes, loss. ``temp`` overrides ``temp_init``."""
        temp = self.temperature if temp is None else _positive(temp)
        logits = self.logits_of(latent).movedim(1, -1)
        shares = logits.softmax(-1)
        divergence = (shares * (shares * self.num_vectors + 1e-10).log()).sum(-1).mean()
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            soft = ((logits + noise) / temp).softmax(-1)
            codes = soft.argmax(-1)
        else:
            soft = (logits / temp).softmax(-1)
            codes = self.codes_of(latent)
        codebook = self.embed.weight.float()
        codebook = codebook if self.used is None else codebook[self.used]
        with exact_float32_products(latent.device):
            if self.straight_through or not self.training:
                # The second term is zero, and carries the gradient of the softmax.
                vectors = self._vectors(codes) + (soft - soft.detach()) @ codebook
            else:
                vectors = soft @ codebook
        return Quantized(vectors.movedim(-1, 1), codes, self.kl_weight * divergence)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    return temperature
