from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tokpipe.models.attention import attention


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize("positions", [1, 5, 6, 9, 24, 32, 33, 65])
@pytest.mark.usefixtures("threads")
def test_results_are_the_same_bits_in_any_batch_on_any_number_of_threads(
    positions: int, layout: str
) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 4, 1, 128, positions)  # q, k and v of four images
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch in ([0], [0, 1], [3, 2, 0, 1]):
            q, k, v = images[:, batch].mT
            if layout == "channels last":
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            with torch.inference_mode():
                seen.append(attention(q, k, v)[batch.index(0)])
    assert all(torch.equal(image, seen[0]) for image in seen)


@pytest.mark.parametrize("shape", [(1, 1, 6, 32), (1, 3, 6, 32), (2, 1, 40, 32)])
def test_values_are_averaged_by_likeness(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    found = attention(q, k, v)
    wanted = (q @ k.mT / 32**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((y * weights).sum(), (q, k, v), retain_graph=True)
        for y in (found, wanted)
    ]
    torch.testing.assert_close(*gradients)
