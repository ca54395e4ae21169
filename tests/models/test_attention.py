import pytest
import torch

from tests.models.checks import assert_same_bits
from tokpipe.models.operations import attention


@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize("positions", [1, 5, 6, 9, 24, 32, 33, 65])
def test_results_have_the_same_bits_in_any_batch_on_any_number_of_threads(
    positions: int, layout: str
) -> None:
    images = torch.randn(3, 4, 1, 128, positions)  # q, k and v of four images

    def run(batch: list[int]) -> torch.Tensor:
        q, k, v = images[:, batch].mT
        if layout == "channels last":
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return attention(q, k, v)

    assert_same_bits(run, threads=(1, 2, 3))


@pytest.mark.parametrize("shape", [(1, 1, 6, 32), (1, 3, 6, 32), (2, 1, 40, 32)])
def test_attention_averages_values_by_similarity(shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    found = attention(q, k, v)
    wanted = (q @ k.mT / 32**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(shape, dtype=torch.float64)
    totals = ((y * weights).sum() for y in (found, wanted))
    gradients = (torch.autograd.grad(total, (q, k, v), retain_graph=True) for total in totals)
    torch.testing.assert_close(*gradients)
