import math
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.telemetry.usage import CodeUsage


def numpy_measures(codes: np.ndarray[Any, Any], size: int) -> dict[str, float]:
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / max(1, counts.sum())
    entropy = float(-(shares * np.log2(shares)).sum())
    used = int((counts > 0).sum())
    return {
        "num_codes": len(codes), "num_used": used, "used_fraction": used / size,
        "entropy_bits": entropy, "perplexity": 2**entropy,
    }  # fmt: skip


def measures(found: CodeUsage) -> dict[str, float]:
    names = "num_codes", "num_used", "used_fraction", "entropy_bits", "perplexity"
    return {name: getattr(found, name) for name in names}


def test_measures_are_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.zipf(1.3, (2, rng.integers(1, 9), 5)) % 500 for _ in range(40)]
    found = CodeUsage(500)
    for index, batch in enumerate(batches):
        codes = batch.astype([np.int64, np.uint16, np.int32, np.uint32][index % 4])
        found.update(torch.from_numpy(codes) if index % 4 < 2 else codes)
        codes[:] = 3  # a counted batch may be overwritten
        if index == 20:
            found.perplexity  # noqa: B018  reading changes nothing
    codes = np.concatenate([batch.ravel() for batch in batches])
    assert measures(found) == pytest.approx(numpy_measures(codes, 500))
    assert np.array_equal(found.histogram(500), np.bincount(codes, minlength=500))
    assert np.array_equal(found.histogram(7), np.bincount(codes * 7 // 500, minlength=7))


def test_perplexity_is_the_number_of_equally_frequent_codes() -> None:
    even, one, none = CodeUsage(1024), CodeUsage(1024), CodeUsage(1024)
    even.update(torch.arange(1024).repeat(3))
    one.update(torch.full((5, 5), 7))
    none.update(torch.empty(0, 4, dtype=torch.int64))
    assert (even.entropy_bits, even.perplexity, even.used_fraction) == (10, 1024, 1)
    assert (one.entropy_bits, one.perplexity, one.num_used) == (0, 1, 1)
    assert (none.entropy_bits, none.perplexity, none.num_used, none.num_codes) == (0, 1, 0, 0)


def test_memory_depends_only_on_the_number_of_distinct_codes() -> None:
    found, rng = CodeUsage(2**62), np.random.default_rng(0)
    names = rng.integers(0, 2**62, 1000)
    for _ in range(40):
        found.update(rng.choice(names, 50_000))
        assert len(found.codes) == len(found.counts) <= 1000
    assert (found.num_codes, found.num_used) == (2_000_000, 1000)
    assert math.log2(found.perplexity) == pytest.approx(math.log2(1000), abs=0.01)


def test_invalid_codes_are_rejected_and_not_counted() -> None:
    found = CodeUsage(8)
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match=r"but the codebook has 0 to 7: leave out markers"):
            found.update(torch.tensor([0, wrong]))
    assert found.num_codes == found.num_used == 0


def test_the_histogram_of_a_codebook_of_64_bits_does_not_overflow() -> None:
    found = CodeUsage(2**63)
    found.update(np.array([0, 2**62, 2**63 - 1], np.uint64))
    assert found.histogram(4).tolist() == [1, 0, 1, 1]
    odd = CodeUsage(2**41 + 1)
    odd.update([0, 2**41])
    assert odd.histogram(4).tolist() == [1, 0, 0, 1]
    assert found.num_used == 3
