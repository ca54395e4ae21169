"""megatron-core's own datasets read an export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.export.by_libraries import output_of
from tests.export.export_helpers import template_file
from tests.pages import REPOSITORY
from tokpipe.export import export_output
from tokpipe.reader.compose import Template
from tokpipe.reader.sequences import default_template

LENGTH = 20


@pytest.mark.skipif(sys.platform != "linux", reason="megatron-core has wheels for Linux only")
@pytest.mark.parametrize("with_template", [False, True], ids=["codes", "template"])
@pytest.mark.parametrize("codebook_size", [8192, 262_144], ids=["uint16", "int32"])
def test_megatron_reads_it(codebook_size: int, with_template: bool, tmp_path: Path) -> None:
    output = output_of([(2, 3), (4, 4)], codebook_size)
    template = default_template(output.tokenizer)
    if with_template:
        template = Template.load(template_file(tmp_path, codebook_size=codebook_size))
    given = template if with_template else None
    export_output(output, "megatron", tmp_path / "export", template=given)
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.export.by_megatron", str(tmp_path / "export/tokens")),
            *(str(tmp_path / "found.npz"), str(LENGTH), str(template.vocabulary.size)),
        ],
        cwd=REPOSITORY,
        check=True,
    )
    found = np.load(tmp_path / "found.npz")
    documents = [
        template.compose(clip.codes, {"caption": f"caption {clip.plan_row}", "fps": 8.0}).tokens
        for clip in output.clips()
    ]
    about = json.loads((tmp_path / "export/metadata.json").read_text())
    assert found["tokens"].dtype == about["token_dtype"]
    np.testing.assert_array_equal(found["tokens"], np.concatenate(documents))
    np.testing.assert_array_equal(found["lengths"], list(map(len, documents)))
    np.testing.assert_array_equal(found["documents"], range(len(documents) + 1))
    # What GPTDataset gives to a model: its documents in its order, cut, and shuffled.
    stream = np.concatenate([documents[number] for number in found["document_index"]])
    assert len(found["samples"]) == (len(stream) - 1) // LENGTH > 1
    for sample, place in zip(found["samples"], found["shuffle_index"], strict=True):
        start = int(place) * LENGTH
        np.testing.assert_array_equal(sample, stream[start : start + LENGTH + 1])
