"""Formats figures for people and, as JSON, for programs."""

import json
import math
from collections import Counter
from collections.abc import Mapping

from pydantic_core import to_jsonable_python


def duration(seconds: float) -> str:
    """Format seconds as ``0:07``, ``12:30``, ``3:05:00`` or ``2d 03:00``."""
    whole = round(seconds)
    days, hours = whole // 86_400, whole // 3_600 % 24
    minutes, rest = whole // 60 % 60, whole % 60
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size_text(size_bytes: float) -> str:
    """Format bytes as ``512 B``, ``1.5 MiB`` or ``2.0 TiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def rate_text(rate: float) -> str:
    """Format a rate as ``1,234.5``, or as ``0.02`` if it is small."""
    return f"{rate:,.1f}" if rate >= 9.995 else f"{rate:.2f}"


def share_text(share: float) -> str:
    """Format a fraction done as ``12.3%``; as ``100.0%`` only if everything is done."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def short(number: float, *, exact_below: float = 1e7) -> str:
    """Format a count as ``9,876,543``; from ``exact_below`` on as ``12.35 M`` or ``4.6 B``."""
    if number < exact_below:
        return f"{number:,.10g}"
    sizes = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
    size, unit = next(one for one in sizes if number >= one[0])
    return f"{number / size:,.4g} {unit}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return ``1 shard`` or ``2 shards``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def counts_text(counts: Mapping[str, int]) -> str:
    """Format counts, the largest first: ``truncated 1,200, no_video 3``; empty if none."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(counts).most_common())


def slow_text(slow_s: Mapping[str, float]) -> str:
    """Say why encoders were slower than they could be; empty if they were not."""
    return "; ".join(f"{why} ({duration(s)} of encoding)" for why, s in slow_s.items())


def json_line(value: object) -> str:
    """Return dataclasses and plain data as JSON, with null for infinity and NaN."""
    return json.dumps(to_jsonable_python(value, inf_nan_mode="null"))
