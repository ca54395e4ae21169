"""Checks settings against pydantic models and explains what is wrong in terms of the file."""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tokpipe.errors import ConfigError

_MAX_CHARS = 80
_MISSPELT = 0.7  # How alike: "gpu" is no misspelt "cpu", nor "chunk_frames" "frames"

Location = tuple[int | str, ...]
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def validate_settings(
    expected: Any,
    data: Any,
    *,
    name: str,
    context: Mapping[str, Any] | None = None,
    tokenizer_from: str | None = None,
) -> Any:
    """Check ``data``, as read from YAML or JSON, and build what ``expected`` describes.

    A ConfigError is one line: ``name``, the file of ``data``, then each wrong key, what was found
    and what would be right. ``tokenizer_from`` is the file of its ``tokenizer``, if another one.
    """
    # Strict models accept a list for a tuple only when they parse JSON.
    text = json.dumps(data, default=str)
    try:
        return TypeAdapter(expected).validate_json(text, context=dict(context or {}))
    except ValidationError as error:
        found: dict[Location, str] = {}
        for detail in error.errors(include_url=False):
            place, message = _explained(expected, data, detail)
            where = ".".join(map(str, place[: -1 if detail["type"] == "extra_forbidden" else None]))
            if tokenizer_from is not None and place[:1] == ("tokenizer",):
                where = f"{where} (in {tokenizer_from})"
            found.setdefault(place, f"{where}: {message}" if where else message)
        # Without consequences of what is wrong within a section.
        inner = {other[:end] for other in found for end in range(len(other))}
        problems = [text for place, text in found.items() if place not in inner]
        raise ConfigError(f"{name}: {'; '.join(problems)}") from error


def _explained(expected: Any, data: Any, detail: ErrorDetails) -> tuple[Location, str]:
    """Return where a problem is, as written in the file, and what to write there."""
    trail = _trail(expected, detail["loc"])
    place, annotation = tuple(part for part, _ in trail[1:]), trail[-1][1]
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        key, keys = str(place[-1]), sorted(bare(trail[-2][1]).model_fields)
        near = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=_MISSPELT)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys here are: {', '.join(keys)}"
        return place, f"unknown key {key!r}; {hint}"
    if kind == "value_error":
        return place, detail["msg"].removeprefix("Value error, ")
    if kind == "missing" and isinstance(place[-1], str):
        return place, f"is missing: write {accepted(annotation)}"
    if kind.startswith("union_tag") and isinstance(found, dict):
        kinds = kinds_of(annotation)
        if "kind" not in found:
            return place, f"has no kind: write kind: {one_of(kinds)}"
        return (*place, "kind"), f"found {_text(found['kind'])}; write {one_of(kinds)}"
    # A list is judged as a whole: [128] lacks a number, "128" in it is not the only mistake.
    while isinstance(trail[-1][0], int) and not is_section(trail[-1][1]):
        trail.pop()
    place = tuple(part for part, _ in trail[1:])
    for part in place:
        data = data[part]
    return place, f"found {_text(data)}; {_remedy(trail[-1][1], data)}"


def _text(found: Any) -> str:
    text = "nothing" if found is None else in_yaml(found)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} ..."


def _trail(annotation: Any, location: Location) -> list[tuple[int | str, Any]]:
    """Return the keys that lead to an error, from the file on, each with its annotation."""
    trail: list[tuple[int | str, Any]] = [("", annotation)]
    for part in location:
        key, annotation = trail[-1]
        if kinds := kinds_of(annotation):  # pydantic also names the kind of each section
            trail[-1] = (key, kinds.get(str(part)))
            continue
        annotation = bare(annotation)
        if get_origin(annotation) in (Union, UnionType):
            continue  # of plain values: the part names one of them
        inner = None
        if (origin := get_origin(annotation)) in (tuple, dict, Mapping):
            inner = get_args(annotation)[origin is not tuple]
        elif is_section(annotation) and (field := annotation.model_fields.get(str(part))):
            inner = Annotated[(field.annotation, field)]
        trail.append((part, inner))
    return trail


def _remedy(annotation: Any, found: Any) -> str:
    """Say what to write in place of a value: what it may stand for, if that can be guessed."""
    adapter, is_plain = TypeAdapter(annotation), not isinstance(found, (dict, list))
    # [128] is a square, or needs no brackets.
    one = found[0] if isinstance(found, list) and len(found) == 1 else found
    candidates = [found, [found], [one, one], one, *[str(found)] * is_plain]
    for candidate in () if found is None or isinstance(found, bool) else candidates:
        with suppress(ValueError):  # not strict, so that "8" and 8.0 are read as 8
            value = adapter.validate_json(json.dumps(candidate, allow_nan=False))
            meant = in_yaml(adapter.dump_python(value, mode="json", exclude_unset=True))
            if meant != in_yaml(found):
                return f"write {meant}"
    return f"write {accepted(annotation)}"


def accepted(annotation: Any) -> str:
    """Describe what an annotation accepts, such as ``a whole number above 0``."""
    pairs = ((getattr(one, name, None), name) for one in _rules(annotation) for name in _LIMITS)
    limits = [f" {_LIMITS[name]} {bound:,}" for bound, name in pairs if bound is not None]
    given = (getattr(one, "examples", None) for one in getattr(annotation, "__metadata__", ()))
    examples = [f" such as {one_of(one)}" for one in given if one]
    annotation = bare(annotation)
    arguments = get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation] + " and".join(limits or examples)
    if kinds := kinds_of(annotation):
        return f"a section with kind: {one_of(kinds)}"
    if is_section(annotation):
        required = [k for k, info in annotation.model_fields.items() if info.is_required()]
        return f"a section with {', '.join(required or annotation.model_fields)}"
    if get_origin(annotation) is Literal:
        return one_of(arguments)
    if get_origin(annotation) in (Union, UnionType):
        return one_of(map(accepted, arguments))
    if get_origin(annotation) is tuple:
        number = "" if arguments[-1] is Ellipsis else f" of {len(arguments)} values"
        return f"a list{number}, each {accepted(arguments[0])}"
    return "a mapping"


def one_of(values: Any) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def in_yaml(value: Any) -> str:
    """Return a value as it is written in a job file, on one line."""
    how: Any = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False}
    return str(yaml.safe_dump(value, width=10_000, **how)).partition("\n")[0]


def bare(annotation: Any) -> Any:
    """Return an annotation without its rules and without ``| None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return bare(members[0])
    return annotation


def _rules(annotation: Any) -> Iterator[Any]:
    for one in getattr(annotation, "__metadata__", ()):
        yield from getattr(one, "metadata", [one])
    inner = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    for one in inner:
        yield from _rules(one)


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the models of a discriminated union by kind; empty for any other annotation."""
    annotation = bare(annotation)
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    members = [one for one in map(bare, union) if isinstance(one, type(BaseModel))]
    return {kind: one for one in members for kind in get_args(one.model_fields["kind"].annotation)}


def is_section(annotation: Any) -> bool:
    return isinstance(bare(annotation), type(BaseModel)) or bool(kinds_of(annotation))
