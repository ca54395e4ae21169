"""Reads the start and end times of clips, from numbers or text."""

import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_CLOCK = r"^(?:(?P<hours>\d+):)?(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2}(?:\.\d+)?)$"
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def holds_seconds(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold times."""
    types = pa.types
    kinds = (types.is_integer, types.is_decimal, types.is_duration, types.is_time, types.is_string)
    return any(is_kind(kind) for is_kind in (types.is_floating, *kinds))


def to_seconds(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return (seconds as float64, whether the value is unusable).

    Numbers are seconds. Durations and times of day are converted. Text is a number or
    ``[HH:]MM:SS[.mmm]``, as in tables of scene cuts. Null and empty text become null, which means
    the start or the end of the video. Other text, NaN, infinities and negative times are unusable.
    """
    kind = values.type
    if pa.types.is_string(kind):
        seconds, is_text = _from_text(values)
    else:
        if pa.types.is_duration(kind) or pa.types.is_time(kind):
            units = pc.cast(values, pa.int32() if kind.bit_width == 32 else pa.int64())
            seconds = pc.divide(pc.cast(units, pa.float64()), _PER_SECOND[kind.unit])
        else:
            seconds = pc.cast(values, pa.float64(), safe=False)
        is_text = pa.repeat(False, len(values))
    out_of_range = pc.or_(pc.invert(pc.is_finite(seconds)), pc.less(seconds, 0.0))
    unusable = pc.or_(is_text, pc.fill_null(out_of_range, False))
    # -0.0 and 0.0 are the same time, so they must have the same clip id.
    seconds = pc.add(pc.if_else(unusable, pa.scalar(None, pa.float64()), seconds), 0.0)
    return seconds, unusable


def _from_text(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    text = pc.utf8_trim_whitespace(values)
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    is_number = pc.match_substring_regex(text, _NUMBER)
    number = pc.cast(pc.if_else(is_number, text, pa.scalar(None, pa.string())), pa.float64())
    parts = pc.extract_regex(text, _CLOCK)
    hours = pc.struct_field(parts, "hours")
    hours = pc.cast(pc.if_else(pc.equal(hours, ""), "0", hours), pa.float64())
    minutes = pc.cast(pc.struct_field(parts, "minutes"), pa.float64())
    clock = pc.add(pc.multiply(hours, 3600.0), pc.multiply(minutes, 60.0))
    clock = pc.add(clock, pc.cast(pc.struct_field(parts, "seconds"), pa.float64()))
    seconds = pc.coalesce(number, clock)
    is_neither = pc.and_(pc.is_valid(text), pc.is_null(seconds))
    return seconds, is_neither
