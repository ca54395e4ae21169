"""Reads and writes values of Thrift's compact protocol, in which Parquet describes its files.

A struct is a dict from field id to ``(type, value)``, a list is ``(type, values)``. What is read
is written again as the same bytes, fields included that nobody here knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

Struct: TypeAlias = "dict[int, tuple[int, Any]]"

_LONG = 15
"""A list of so many elements or more has its length behind this mark."""


def read_struct(data: bytes | memoryview, start: int = 0) -> tuple[Struct, int]:
    """Return the struct that begins at ``start``, and where it ends."""
    reader = _Reader(data, start)
    return reader.struct(), reader.at


def write_struct(value: Struct) -> bytes:
    """Return the bytes of a struct."""
    out = bytearray()
    _write_struct(out, value)
    return bytes(out)


def varint(value: int) -> bytes:
    """A number from 0 on in groups of seven bits, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self.data = data
        self.at = at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def bytes(self, number: int) -> bytes:
        self.at += number
        return bytes(self.data[self.at - number : self.at])

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            fields[number] = (kind, kind == TRUE if kind in (TRUE, FALSE) else self.value(kind))
        return fields

    def value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE, I8):  # a boolean in a list is a byte of its own
            return self.byte()
        if kind in (I16, I32, I64):
            return self.integer()
        if kind == DOUBLE:
            return self.bytes(8)
        if kind == BINARY:
            return self.bytes(self.varint())
        if kind in (LIST, SET):
            head = self.byte()
            number = head >> 4 if head >> 4 < _LONG else self.varint()
            return head & 15, [self.value(head & 15) for _ in range(number)]
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"type {kind} of the compact protocol is not known here")


def _write_struct(out: bytearray, value: Struct) -> None:
    before = 0
    for number, (kind, inner) in value.items():
        if kind in (TRUE, FALSE):
            kind = TRUE if inner else FALSE
        if 0 < number - before < _LONG + 1:
            out.append((number - before) << 4 | kind)
        else:
            out.append(kind)
            out += _integer(number)
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, inner)
        before = number
    out.append(0)


def _integer(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _write_list(out: bytearray, value: tuple[int, Sequence[Any]]) -> None:
    kind, values = value
    if len(values) < _LONG:
        out.append(len(values) << 4 | kind)
    else:
        out.append(_LONG << 4 | kind)
        out += varint(len(values))
    for one in values:
        _write_value(out, kind, one)


def _write_binary(out: bytearray, value: bytes) -> None:
    out += varint(len(value))
    out += value


_WRITERS: dict[int, Callable[[bytearray, Any], None]] = {
    **dict.fromkeys((TRUE, FALSE, I8), bytearray.append),
    **dict.fromkeys((I16, I32, I64), lambda out, value: out.extend(_integer(value))),
    DOUBLE: lambda out, value: out.extend(value),
    BINARY: _write_binary,
    **dict.fromkeys((LIST, SET), _write_list),
    STRUCT: _write_struct,
}


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    _WRITERS[kind](out, value)
