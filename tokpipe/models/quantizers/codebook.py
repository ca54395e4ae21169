"""Quantizers with a learned codebook, of which some entries may be left out."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tokpipe.models.arguments import takes
from tokpipe.models.process import exact_float32_products
from tokpipe.models.quantizers.base import Quantized, Quantizer, project, search, straight_through

Remap = str | os.PathLike[str] | Sequence[int] | NDArray[Any] | Tensor
UnknownIndex = Literal["random", "extra"] | int


class CodebookQuantizer(Quantizer):
    """A quantizer whose vectors are rows of a codebook.

    ``remap`` lists the entries in use, as integers or as the path of a .npy file of them. Codes
    are then positions in that list, and ``codebook_size`` is its length. ``unknown_index`` says
    what an entry outside the list becomes; without ``remap`` it has no effect:

    - an integer: that position of the list.
    - ``"extra"``: one more code at the end, with the vector of the first in the list.
    - ``"random"``: the entry modulo the list's length (published code draws one per latent).
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
        if unknown_index not in ("random", "extra") and unknown_index not in range(num_used):
            raise ValueError(f"{unknown_index=}: use 'random', 'extra' or a code below {num_used}")
        has_extra = used is not None and unknown_index == "extra"
        super().__init__(num_used + has_extra, dim, latent_dim)
        self.num_vectors = num_vectors
        self.unknown_index = unknown_index
        self.register_constant("used", used)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Published form of ``vectors_of``: indices of any shape -> (..., dim), or with ``shape`` =
        (B, ..., dim) -> (B, dim, ...)."""
        vectors = self._vectors(self._checked(indices))
        return vectors if shape is None else vectors.reshape(tuple(shape)).movedim(-1, 1)

    def _entries_to_codes(self, entries: Tensor) -> Tensor:
        if self.used is None:
            return entries
        num_used = len(self.used)
        codes = torch.arange(self.num_vectors, device=entries.device) % num_used
        if self.unknown_index != "random":
            codes.fill_(num_used if self.unknown_index == "extra" else self.unknown_index)
        codes[self.used] = torch.arange(num_used, device=entries.device)
        return codes[entries]

    def _codes_to_entries(self, codes: Tensor) -> Tensor:
        if self.used is None:
            return codes
        return self.used[codes.where(codes < len(self.used), 0)]


def _used_entries(remap: Remap, num_vectors: int) -> Tensor:
    where = os.fspath(remap) if isinstance(remap, str | os.PathLike) else "remap"
    try:
        given = np.load(where, allow_pickle=False) if where != "remap" else remap
        used = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except (ValueError, EOFError) as error:
        problem = f"{where}: not a .npy file of integers ({error}): use numpy.save"
        raise ValueError(problem) from error
    entries = used.tolist() if used.ndim == 1 and used.dtype.kind in "iu" else []
    if not entries or len(set(entries).intersection(range(num_vectors))) < len(entries):
        raise ValueError(
            f"{where}: {used.tolist()!s:.60} of {used.dtype}, but the entries in use are a list of "
            f"at least one of the integers 0 to {num_vectors - 1}, each once"
        )
    return torch.from_numpy(used.astype(np.int64))


class VectorQuantizer(CodebookQuantizer):
    """Names the nearest code vector of a learned codebook, a row of ``embedding``.

    ``n_e`` vectors of ``e_dim`` channels, unbounded. ``search`` is by Euclidean distance, or for
    the greatest "dot" product or "cosine", for which latents and code vectors are first brought to
    length 1. IBQ encodes by "dot", but is trained by another loss.

    The loss pulls each vector to its latents, plus ``beta`` times the commitment of the latents to
    their vector. With ``legacy``, ``beta`` weighs the pull instead: a published mistake that
    published models were trained with, and so the published default. The loss has the same value
    either way, with other gradients. ``remap`` and ``unknown_index``: see ``CodebookQuantizer``.

    ``forward`` returns the codes flat, (N,), or (N, 1) under ``remap``, as published; with
    ``sane_index_shape`` as (B, ...), as ``codes_of`` does. Source: arXiv:1711.00937; published as
    ``VectorQuantizer2``, and as ``VectorQuantizer`` without ``legacy``: ``legacy=False`` here.
    """

    @takes("log_perplexity", "loss_key", embedding_weight_norm=(False,))
    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
        *,
        search: str = "nearest",
    ) -> None:
        super().__init__(n_e, e_dim, remap=remap, unknown_index=unknown_index)
        if search not in ("nearest", "dot", "cosine"):
            raise ValueError(f"{search=}: use 'nearest', 'dot' or 'cosine'")
        self.search = search
        self.beta = beta
        self.sane_index_shape = sane_index_shape
        self.legacy = legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64; of vectors equally near, the first."""
        return self._entries_to_codes(self._nearest_entries(self._scaled(latent)))

    def _scaled(self, vectors: Tensor, dim: int = 1) -> Tensor:
        """Latents or code vectors, their channels in ``dim``, as they are compared: float32."""
        vectors = vectors.float()
        return F.normalize(vectors, dim=dim) if self.search == "cosine" else vectors

    def _nearest_entries(self, latent: Tensor) -> Tensor:
        self._check_channels(latent)
        codebook = self._scaled(self.embedding.weight.detach())
        if self.search != "nearest":
            return search(latent, codebook, codebook.new_zeros(len(codebook)), -1)
        # Without the latent's norm, which would only lose precision.
        return search(latent, codebook, codebook.square().sum(1), -2)

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors = F.embedding(self._codes_to_entries(codes), self.embedding.weight)
        return self._scaled(vectors, dim=-1)

    @takes(temp=(None, 1.0), rescale_logits=(False,), return_logits=(False,))
    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss."""
        latent = self._scaled(latent)
        entries = self._nearest_entries(latent)
        vectors = self._scaled(self.embedding(entries).movedim(-1, 1))
        loss = self._loss(latent, vectors, entries)
        codes = self._entries_to_codes(entries)
        if not self.sane_index_shape:
            codes = codes.flatten() if self.used is None else codes.reshape(-1, 1)
        return Quantized(straight_through(latent, vectors), codes, loss)

    def _loss(self, latent: Tensor, vectors: Tensor, entries: Tensor) -> Tensor:
        """The loss of a training step; latent and vectors (B, dim, ...) float32."""
        commitment = F.mse_loss(latent, vectors.detach())
        pull = F.mse_loss(vectors, latent.detach())
        return commitment + self.beta * pull if self.legacy else self.beta * commitment + pull


class EMACodebook(nn.Embedding):
    """Code vectors as the quotient of two moving averages: of latents, and of their number. Frozen
    parameters, as published: ``weight`` and ``embed_avg`` (K, dim), ``cluster_size`` (K,)."""

    def __init__(self, num_vectors: int, dim: int, decay: float, eps: float) -> None:
        super().__init__(num_vectors, dim)
        if not 0 <= decay < 1 or eps <= 0:
            raise ValueError(f"{decay=} and {eps=}: decay is at least 0 and below 1, eps above 0")
        self.decay = decay
        self.eps = eps
        self.cluster_size = nn.Parameter(torch.zeros(num_vectors))
        self.embed_avg = nn.Parameter(self.weight.detach().clone())
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, latents: Tensor, entries: Tensor) -> None:
        """Take one step: latents (N, dim) float32 and the entries (N,) int64 that name them.

        Where ``torch.distributed`` is set up, all ranks must take it, each with its own latents.
        Latents that are not finite are left out: a single one would spoil the averages for good.
        """
        if torch.finfo(self.cluster_size.dtype).bits < 32:
            raise RuntimeError(
                f"the codebook's averages are {self.cluster_size.dtype}, in which steps of 1 - "
                f"decay = {1 - self.decay:.3g} round away. Train in float32, or under autocast"
            )
        finite = latents.isfinite().all(dim=1)
        latents = latents.where(finite[:, None], 0).to(self.embed_avg.dtype)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, entries, latents)
        ones = finite.to(self.cluster_size.dtype)
        counts = torch.zeros_like(self.cluster_size).index_add_(0, entries, ones)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # Smoothed, so that a vector without latents is not divided by zero.
        total, num = self.cluster_size.sum(), len(self.cluster_size)
        sizes = (self.cluster_size + self.eps) / (total + num * self.eps) * total
        self.weight.copy_(self.embed_avg / sizes.unsqueeze(1))


class EMAVectorQuantizer(VectorQuantizer):
    """``VectorQuantizer`` whose codebook is made of moving averages of the latents.

    ``n_embed`` vectors of ``embedding_dim`` channels. The loss is ``beta`` times the commitment of
    the latents to their vector. In ``train()`` mode each ``forward`` moves the codebook after
    using it, keeping ``decay`` of the averages; in ``eval()`` mode nothing moves. As published,
    averages start from random vectors and zero latents: vectors that the first step does not name
    are divided by ``eps``, and not used for about ``log(eps) / log(decay)`` steps, 1,146 by
    default. Published code ignores ``remap``. Source: arXiv:1711.00937, appendix A.1.
    """

    embedding: EMACodebook

    @takes("loss_key")
    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        super().__init__(n_embed, embedding_dim, beta, remap, unknown_index)
        self.embedding = EMACodebook(n_embed, embedding_dim, decay, eps)

    def _loss(self, latent: Tensor, vectors: Tensor, entries: Tensor) -> Tensor:
        loss = self.beta * F.mse_loss(latent, vectors.detach())
        if self.training:
            rows = latent.detach().movedim(1, -1).reshape(-1, self.dim)
            self.embedding.follow(rows, entries.flatten())
        return loss


class GumbelQuantizer(CodebookQuantizer):
    """Names the code of the greatest logit; in training, samples codes with Gumbel noise.

    Latents have ``num_hiddens`` channels, vectors ``embedding_dim``; there are ``n_embed`` codes.
    Only ``forward`` in ``train()`` mode draws noise, from PyTorch's global generator (published
    code always does). It returns the sampled codes, and their vectors with the gradient of the
    softmax at temperature ``temp_init`` or, without ``straight_through``, the softmax's mixture of
    vectors. The loss is ``kl_weight`` times the divergence of codes from the uniform distribution.

    ``remap`` keeps only the logits of the entries in use, so no entry is ever unknown, and
    ``unknown_index="extra"`` adds a code that never occurs.
    Source: arXiv:1611.01144, and github.com/karpathy/deep-vector-quantization.
    """

    @takes("use_vqinterface", "loss_key")
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
        return search(latent, weight, -bias, -1)

    def logits_of(self, latent: Tensor) -> Tensor:
        """(B, num_hiddens, ...) -> (B, K, ...) float32, K the number of entries in use."""
        self._check_channels(latent)
        return project(latent.movedim(1, -1), *self._projection()).movedim(-1, 1)

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight (K, num_hiddens) and bias (K,) of the entries in use, float32."""
        assert self.proj.bias is not None
        return self._in_use(self.proj.weight).flatten(1), self._in_use(self.proj.bias)

    def _in_use(self, rows: Tensor) -> Tensor:
        return rows.float() if self.used is None else rows.float()[self.used]

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(self._codes_to_entries(codes), self.embed.weight).float()

    @takes(return_logits=(False,))  # which logits_of returns
    def forward(self, latent: Tensor, temp: float | None = None) -> Quantized:
        """(B, num_hiddens, ...) -> vectors, codes, loss. ``temp`` overrides ``temp_init``."""
        temp = self.temperature if temp is None else _positive(temp)
        logits = self.logits_of(latent).movedim(1, -1)
        shares = logits.softmax(-1)
        divergence = (shares * (shares * self.num_vectors + 1e-10).log()).sum(-1).mean()
        noise = -torch.empty_like(logits).exponential_().log() if self.training else 0.0
        soft = ((logits + noise) / temp).softmax(-1)
        codes = soft.argmax(-1) if self.training else self.codes_of(latent)
        codebook = self._in_use(self.embed.weight)
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
