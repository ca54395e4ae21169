"""What exports are checked by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """How much an export holds."""

    num_clips: int
    num_codes: int
