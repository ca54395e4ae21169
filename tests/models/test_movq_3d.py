from __future__ import annotations

import pytest
import torch

from tests.models import golden_fixtures as golden
from tokpipe.models.movq_3d import MOVQDecoder3D


@pytest.mark.parametrize("case", ["movq_decoder_3d", "movq_decoder_3d_post_quant_conv"])
def test_matches_the_published_values(case: str) -> None:
    with torch.no_grad():
        found = golden.build(case, MOVQDecoder3D)(*golden.inputs(case))
    golden.assert_agree(found, golden.outputs(case)["output"])
