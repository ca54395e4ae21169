"""Measures how well a codebook is used, over any number of batches."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class CodeUsage:
    """Counts codes, batch by batch. Memory grows with the distinct codes, not the codebook."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.num_codes = 0  # Codes counted, with repetitions
        self.codes: NDArray[np.int64] = np.empty(0, np.int64)  # Distinct codes seen, ascending
        self.counts: NDArray[np.int64] = np.empty(0, np.int64)  # How often each of them occurred

    def update(self, codes: Any) -> None:
        """Count codes: a tensor on any device or an array, of any shape and integer type.
        ValueError, and nothing is counted, if a code is outside ``range(codebook_size)``, such as
        the -1 that marks a latent that was not finite."""
        array = codes.detach().cpu().numpy() if hasattr(codes, "detach") else np.asarray(codes)
        if not array.size:
            return
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"codes from {low} to {high}, but the codebook has 0 to {self.codebook_size - 1}: "
                "leave out markers of missing codes, and count other codebooks separately"
            )
        self.num_codes += array.size
        new, counts = np.unique(array, return_counts=True)
        known = np.concatenate([self.codes, new.astype(np.int64)])
        self.codes, where = np.unique(known, return_inverse=True)
        self.counts = np.bincount(where, np.concatenate([self.counts, counts])).astype(np.int64)

    def histogram(self, num_bins: int) -> NDArray[np.int64]:
        """Return how many codes fell into each of ``num_bins`` equal parts of the codebook."""
        shift = max(0, self.codebook_size.bit_length() - 40)  # the product must fit 64 bits
        size = -(-self.codebook_size >> shift)  # rounded up, so that the last code is in it
        bins = (self.codes >> shift) * num_bins // size
        return np.bincount(bins, self.counts, num_bins).astype(np.int64)

    def most_frequent(self, number: int = 5) -> list[tuple[int, float]]:
        """Return the most frequent codes, each with its fraction of all codes."""
        order = np.argsort(-self.counts, kind="stable")[:number]
        return [(int(self.codes[i]), float(self.counts[i] / self.num_codes)) for i in order]

    @property
    def num_used(self) -> int:
        """Distinct codes seen."""
        return len(self.codes)

    @property
    def used_fraction(self) -> float:
        """Fraction of the codebook that was seen, 0 to 1."""
        return self.num_used / self.codebook_size

    @property
    def entropy_bits(self) -> float:
        """Entropy of a code, 0 to log2(codebook_size); 0 if no codes were counted."""
        shares = self.counts / max(1, self.num_codes)
        return max(0.0, float(-(shares * np.log2(shares)).sum()))

    @property
    def perplexity(self) -> float:
        """``2**entropy_bits``: the number of equally frequent codes with this entropy."""
        return math.pow(2.0, self.entropy_bits)
