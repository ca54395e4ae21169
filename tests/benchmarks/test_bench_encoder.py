"""The encoder benchmark compares equal computations, and needs only torch."""

import subprocess
import sys

import pytest
import torch

from benchmarks.eager import encode_eagerly
from benchmarks.encoder import build, trained_encoder, work_of

NOT_NEEDED = ("ray", "pydantic", "pyarrow", "decord", "av", "fsspec", "s3fs", "rich", "yaml")


@pytest.mark.parametrize("trained", [False, True], ids=["published shape", "checkpoint"])
def test_the_baseline_computes_the_same(trained: bool) -> None:
    torch.manual_seed(0)
    encoder = trained_encoder() if trained else build(32)
    x = torch.randn(2, encoder.conv_in.conv.in_channels, 9, 32, 32)
    with torch.inference_mode():
        eager, ours = encode_eagerly(encoder, x), encoder(x)
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def test_work_is_at_least_that_of_the_first_layer_and_scales_with_the_batch() -> None:
    encoder = build(32)
    x = torch.zeros(1, 3, 5, 16, 16)
    flops, num_bytes = work_of(encoder, x)
    first = 2 * (5 * 16 * 16) * 32 * 3 * 27
    assert first < flops < 1000 * first
    assert num_bytes > 4 * (5 * 16 * 16) * 32
    assert work_of(encoder, x.repeat(2, 1, 1, 1, 1)) == (2 * flops, 2 * num_bytes)


@pytest.mark.slow
def test_it_runs_with_torch_alone() -> None:
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"
        "from benchmarks.encoder import run\n"
        "if __name__ == '__main__':\n"
        "    for result in run(True): print(result.line())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("CPU float32 against eager float32" in line for line in lines)
    assert any("CPU bfloat16 against eager float32" in line for line in lines)
    agreements = [line for line in lines if "that match eager float32" in line]
    assert len(agreements) >= 2
    assert all(", pass" in line for line in agreements), "codes must agree on any machine"
