"""The table of figures in README.md quotes stored results of the benchmarks."""

import json
import re

from tests.pages import REPOSITORY

QUOTED = {
    "its slowest stage alone": ["whole job / its slowest stage alone, 720p to 128x128 on 2 cores"],
    "Ray Data": ["whole job against Ray Data by hand, 2 cores"],
    "DataLoader": ["whole job against a DataLoader loop, 2 cores"],
    "The encoder in bfloat16": [
        "encoder, CPU bfloat16 against eager float32, ch 32, 17x64x64",
        "encoder, CPU bfloat16 against eager float32, ch 64, 17x128x128",
        "encoder, codes in torch.bfloat16 on cpu that match eager float32",
    ],
    "Driver and Ray": ["dispatcher and Ray with free stages, 2 cores"],
    "Planning ten million": ["plan: time"],
    "Resuming a job of ten million": ["resume: time"],
}
"""Words of a row -> the results in its last cell, in order."""


def stored() -> dict[str, float]:
    files = (REPOSITORY / "benchmarks/results").glob("*.json")
    results = [one for path in files for one in json.loads(path.read_text())["results"]]
    return {one["name"]: one["value"] for one in results if "value" in one}


def test_every_figure_is_a_stored_result() -> None:
    page = (REPOSITORY / "README.md").read_text()
    table = page.partition("\n## How fast it is\n")[2].partition("\n\nFigures")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[3:]]
    assert len(rows) == len(QUOTED)
    values = stored()
    for what, cell in rows:
        (names,) = (names for words, names in QUOTED.items() if words in what)
        figures = re.findall(r"(\d[\d,]*(?:\.(\d+))?) (x|to|s|%|clips)", cell)
        assert len(figures) == len(names), cell
        for (text, decimals, unit), name in zip(figures, names, strict=True):
            value = values[name] * (100 if unit == "%" else 1)
            assert text == f"{value:,.{len(decimals)}f}", f"{what}: {name} is {value}"
