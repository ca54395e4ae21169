"""One small quantizer of every kind, three channels to three channels."""

import torch

from tokpipe.models import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GumbelQuantizer,
    Quantizer,
    VectorQuantizer,
)


def random_vq(n_e: int, e_dim: int) -> VectorQuantizer:
    """A codebook spread as far as the latents of these tests, from a fixed seed."""
    quantizer = VectorQuantizer(n_e, e_dim)
    generator = torch.Generator().manual_seed(1)
    quantizer.embedding.weight.data = torch.randn(n_e, e_dim, generator=generator)
    return quantizer.requires_grad_(False).eval()


def every_quantizer() -> dict[str, Quantizer]:
    """By name, in eval mode, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quantizers: dict[str, Quantizer] = {
            "fsq": FSQ((8, 5, 5)),
            "fsq_projected": FSQ((7, 6), dim=3),
            "lfq": LFQ(3),
            "lfq_little": LFQ(3, bit_order="little"),
            "lfq_projected": LFQ(dim=3, codebook_size=64),
            "vq": random_vq(40, 3),
            "vq_remapped": VectorQuantizer(40, 3, remap=[3, 1, 20, 39]),
            "vq_extra": VectorQuantizer(40, 3, remap=[3, 1, 20, 39], unknown_index="extra"),
            "ema": EMAVectorQuantizer(40, 3, 0.25),
            "gumbel": GumbelQuantizer(3, 3, 40),
            "gumbel_remapped": GumbelQuantizer(3, 3, 40, remap=[3, 1, 20, 39]),
        }
    return {name: quantizer.eval() for name, quantizer in quantizers.items()}
