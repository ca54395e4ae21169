"""What to write in place of a wrong value: its likely meaning, or else what the key accepts."""

import difflib
import json
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

_ALIASES = {"gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_TRUTHS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_UNITS: dict[str, dict[str, float]] = {
    "": {"": 1, "%": 0.01, "fps": 1, "hz": 1, "px": 1, "frames": 1},
    "_s": {"ms": 0.001, "s": 1, "sec": 1, "seconds": 1, "m": 60, "min": 60, "h": 3600},
    "_bytes": {
        unit: base ** (power + 1)
        for power, letter in enumerate("kmgt")
        for base, units in ((1000, (letter, f"{letter}b")), (1024, (f"{letter}ib",)))
        for unit in units
    },
}
"""Factors by the ending of a key, the first for all keys."""
_QUANTITY = re.compile(r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-z%]*)")
_SIZES = re.compile(r"[\[(]?\s*[\d.]+(\s*[x×*,; ]\s*[\d.]+)+\s*[\])]?")  # noqa: RUF001
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def remedy(annotation: Any, found: Any, key: str) -> str:
    """Say what to write in place of a value that was found at ``key``."""
    meant = _meant(annotation, found, key)
    if meant is not None and _is_valid(annotation, meant) and in_yaml(meant) != in_yaml(found):
        return f"write {in_yaml(meant)}"
    wanted = accepted(annotation)
    if "native" in kinds_of(annotation) and isinstance(found, str):
        return f"write {{checkpoint: {found}}} if that is a checkpoint, or else {wanted}"
    if isinstance(found, list) and is_section(annotation):
        return f"remove the dashes before its keys: {wanted}"
    if found and isinstance(found, dict) and is_section(_entries(annotation)):
        return f"write a list: put a dash before its first key, as in '- {next(iter(found))}: ...'"
    if found is None and not any(one.is_required() for one in _fields(annotation)):
        return f"write {wanted}, or remove the key"
    if "${" in str(found):
        return f"write {wanted}; variables are expanded in paths and URIs only"
    return f"write {wanted}"


def accepted(annotation: Any) -> str:
    """Describe what an annotation accepts, such as ``a whole number above 0``."""
    limits = [
        f" {text} {bound:,g}"
        for one in _rules(annotation)
        for name, text in _LIMITS.items()
        if (bound := getattr(one, name, None)) is not None
    ]
    annotation = bare(annotation)
    arguments = get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation] + " and".join(limits)
    if kinds := kinds_of(annotation):
        return f"a section with kind: {one_of(kinds)}"
    if is_section(annotation):
        return f"a section with {', '.join(annotation.model_fields)}"
    if get_origin(annotation) is Literal:
        return one_of(arguments)
    if get_origin(annotation) is tuple:
        number = "" if arguments[-1] is Ellipsis else f" of {len(arguments)} values"
        return f"a list{number}, each {accepted(arguments[0])}"
    return "a mapping"


def one_of(values: Any) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def in_yaml(value: Any) -> str:
    """Return a value as it is written in a job file, on one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False
    )
    return text.partition("\n")[0]


def _meant(annotation: Any, found: Any, key: str) -> Any:
    """Return what ``found`` may stand for, not checked against all rules; None if unknown."""
    annotation = bare(annotation)
    arguments, text = get_args(annotation), str(found).strip().lower()
    if found is None or isinstance(found, dict):
        return [found] if found and is_section(_entries(annotation)) else None
    if get_origin(annotation) is Literal:
        text = _ALIASES.get(text, text).replace("-", "_")
        options = {str(option).lower(): option for option in arguments}
        return options.get(next(iter(difflib.get_close_matches(text, options, n=1)), ""))
    if get_origin(annotation) is tuple:
        return _meant_list(arguments, found, key)
    if isinstance(found, list):
        return _meant(annotation, found[0], key) if len(found) == 1 else None
    if annotation is bool:
        return _TRUTHS.get({"1": "yes", "0": "no"}.get(text, text))
    if annotation is str:
        return re.sub(r"[^\w.-]+", "-", text if isinstance(found, bool) else str(found))
    match = _QUANTITY.fullmatch(text)
    if annotation not in (int, float) or match is None or isinstance(found, bool):
        return None
    number, unit = float(match[1].replace("_", "")), match[2]
    factors = [table[unit] for end, table in _UNITS.items() if key.endswith(end) and unit in table]
    if not factors:
        return None
    number *= factors[0]
    return int(number) if number.is_integer() else number


def _meant_list(arguments: tuple[Any, ...], found: Any, key: str) -> Any:
    if isinstance(found, str) and _SIZES.fullmatch(found):
        found = re.findall(r"[\d.]+", found)
    values = found if isinstance(found, list) else [found]
    is_any_length = arguments[-1] is Ellipsis
    if (
        is_any_length
        and get_origin(bare(arguments[0])) is tuple
        and not isinstance(values[0], list)
    ):
        values = [values]  # one size, where a list of sizes belongs
    if not is_any_length and len(values) == 1:
        values = values * len(arguments)  # a square
    return [_meant(arguments[0], value, key) for value in values]


def _is_valid(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _entries(annotation: Any) -> Any:
    """Return the annotation of a list's entries; None if it describes no list."""
    annotation = bare(annotation)
    return get_args(annotation)[0] if get_origin(annotation) is tuple else None


def bare(annotation: Any) -> Any:
    """Return an annotation without its rules and without ``| None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return bare(members[0])
    return annotation


def _fields(annotation: Any) -> list[FieldInfo]:
    """Return the field that ``explain`` has put beside an annotation, if it belongs to one."""
    return [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, FieldInfo)]


def _rules(annotation: Any) -> Iterator[Any]:
    for one in getattr(annotation, "__metadata__", ()):
        yield from one.metadata if isinstance(one, FieldInfo) else [one]
    inner = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    for one in inner:
        yield from _rules(one)


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the models of a discriminated union by kind; empty for any other annotation."""
    annotation = bare(annotation)
    if get_origin(annotation) not in (Union, UnionType):
        return {}
    members = filter(_is_model, map(bare, get_args(annotation)))
    return {get_args(one.model_fields["kind"].annotation)[0]: one for one in members}


def _members(annotation: Any) -> list[Any]:
    """Return the models that a section may be read as."""
    annotation = bare(annotation)
    return [annotation] if _is_model(annotation) else list(kinds_of(annotation).values())


def is_section(annotation: Any) -> bool:
    return bool(_members(annotation))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def places_of_keys(annotation: Any, above: str = "") -> dict[str, set[str]]:
    """Return for each key the sections that have it, at any depth."""
    places: dict[str, set[str]] = {}
    for model in _members(annotation) or _members(_entries(annotation)):
        for name, info in model.model_fields.items():
            places.setdefault(name, set()).add(above or "the top level")
            below = places_of_keys(info.annotation, f"{above}.{name}".lstrip("."))
            for key, found in below.items():
                places.setdefault(key, set()).update(found)
    return places
