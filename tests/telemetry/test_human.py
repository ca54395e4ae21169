"""Figures for people, and as JSON for programs."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tokpipe.telemetry.human import json_line


@dataclass(frozen=True, slots=True)
class Found:
    path: Path
    psnr_db: float
    reasons: Counter[str]


def test_json_holds_dataclasses_and_names_of_any_bytes_and_null_for_infinity() -> None:
    line = json_line([Found(Path("a\udcff\n"), math.inf, Counter(b=2)), (math.nan, None, "ä")])
    assert "\n" not in line
    assert line.isascii()
    found = {"path": "a\udcff\n", "psnr_db": None, "reasons": {"b": 2}}
    assert json.loads(line) == [found, [None, None, "ä"]]
