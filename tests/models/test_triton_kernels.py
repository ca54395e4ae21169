"""The kernels for GPUs, by Triton's interpreter, against the arithmetic of CPUs.

The interpreter has to be chosen before Triton is imported, so each check runs in its own process.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="there is none for this system")

NORMS = """
cases = ((2, 3, 5, 7, 64), 1, 2), ((2, 3, 5, 7, 96), 2, 2), ((1, 1, 1, 1, 32), 2, 0)
for shape, dims, past in cases:
    for dtype, out_dtype in ((wide, wide), (narrow, narrow), (wide, narrow), (narrow, wide)):
        x, norm, outs = torch.randn(shape).add(9).to(dtype), filled(shape[-1]), []
        for write in (norm_rows, triton_kernels.norm_triton):
            out = torch.zeros((shape[0], shape[1] + past, *shape[2:]), dtype=out_dtype)
            write(x, out[:, past:], norm, sample_dims=dims, with_silu=True)
            outs.append(out.float())
        torch.testing.assert_close(*outs, rtol=1e-2 if out_dtype == narrow else 1e-5, atol=1e-5)
        assert not outs[1][:, :past].any()
"""

SUMS = """
cases = ((2, 3, 5, 7, 64), narrow), ((1, 2, 9, 9, 96), wide), ((3, 1, 1, 1, 32), wide)
for dims in (1, 2):
    for shape, dtype in cases:
        x, h, bias = torch.randn(shape).add(9), torch.randn(shape).to(dtype), torch.randn(shape[-1])
        y, sums = triton_kernels.add_triton(x, h, bias, sample_dims=dims)
        assert torch.equal(y, x + (h.float() + bias))
        norm, outs = filled(shape[-1]), [torch.empty(shape) for _ in range(4)]
        for out, given, more in zip(
            outs, (y, y, h, h.float() + bias), ({}, {"sums": sums}, {"bias": bias}, {}), strict=True
        ):
            triton_kernels.norm_triton(given, out, norm, sample_dims=dims, with_silu=True, **more)
        assert torch.equal(outs[0], outs[1])
        torch.testing.assert_close(outs[2], outs[3], rtol=1e-5, atol=2e-6)
"""

NETWORKS = """
from tokpipe.models import Encoder3D, blocks, group_norm

triton_kernels.TILES = 2  # fewer empty ones: each takes the interpreter as long as a full one
shape = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 8}
x = torch.randn(2, 3, 3, 6, 4)
for kind, dtype, tolerance in (("clip", narrow, 3e-2), ("frame", wide, 2e-5)):
    encoder = Encoder3D(in_channels=3, z_channels=4, temporal_compress_times=2, norm=kind, **shape)
    encoder.requires_grad_(False).eval().compute_in(dtype)
    for part in encoder.modules():
        if isinstance(part, torch.nn.GroupNorm):
            torch.nn.init.uniform_(part.weight, 0.5, 2)
            torch.nn.init.uniform_(part.bias, -1, 1)
    with torch.no_grad():
        wanted, plain, real = encoder(x), group_norm.gpu_kernels, triton_kernels.add_triton
        group_norm.gpu_kernels = blocks.gpu_kernels = lambda x: triton_kernels
        sums = []
        triton_kernels.add_triton = lambda *a, **k: sums.append(real(*a, **k)) or sums[-1]
        found, alone = encoder(x), encoder(x[1:])
        if kind == "frame":
            head, state = encoder.stream(x[:1, :, :1], None)
            tail, _ = encoder.stream(x[:1, :, 1:], state)
            torch.testing.assert_close(torch.cat([head, tail], 2), found[:1], rtol=0, atol=2e-5)
        group_norm.gpu_kernels = blocks.gpu_kernels = plain
        triton_kernels.add_triton = real
    assert len(sums) >= 2 * 4, "every residual block of both calls"
    error = float((found - wanted).norm() / wanted.norm())
    assert 0 < error < tolerance, (kind, error)
    assert torch.equal(found[1:], alone), kind
"""

START = """
import torch
from tokpipe.models import triton_kernels
from tokpipe.models.rows import norm_rows

torch.manual_seed(0)
wide, narrow = torch.float32, torch.bfloat16

def filled(channels):
    norm = torch.nn.GroupNorm(32, channels, 1e-6).requires_grad_(False)
    norm.load_state_dict({key: torch.rand(channels) for key in ("weight", "bias")})
    return norm
"""


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(NORMS, id="norms have the values of the CPU"),
        pytest.param(SUMS, id="residual sums are exact, and carry what their norm needs"),
        pytest.param(NETWORKS, id="an encoder has the latents of the CPU, in any batch"),
    ],
)
def test_kernels_agree_with_the_cpu(check: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    code = f"{START}{check}\nprint('equal')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
