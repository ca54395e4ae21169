"""What to write in place of a wrong value: its likely meaning, or else what the key accepts."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from tokpipe.config.sources import TABLE_ENDING

_ALIASES = {"gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_UNITS = {"": 1, "%": 0.01, "fps": 1, "px": 1, "s": 1, "min": 60, "h": 3600}
_UNITS |= {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY = re.compile(rf"([-+.\de]+?)\s*({'|'.join(_UNITS)})")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def remedy(annotation: Any, found: Any) -> str:
    """Say what to write in place of a value."""
    if isinstance(found, str) and found and (section := _with_uri(annotation, found)):
        return f"write {in_yaml(section)}"
    adapter = TypeAdapter(annotation)
    for candidate in _candidates(annotation, found):
        with suppress(ValueError):  # not strict, so that "8" and 8.0 are read as 8
            value = adapter.validate_json(json.dumps(candidate, allow_nan=False))
            plain = adapter.dump_python(value, mode="json", exclude_unset=True)
            meant = re.sub(r"\b(\d+)\.0(?=[,\]]|$)", r"\1", in_yaml(plain))
            if meant != in_yaml(found):
                return f"write {meant}"
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
        f" {text} {bound:,}"
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
        fields = annotation.model_fields
        return f"a section with {', '.join(_required(fields) or fields)}"
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


def _candidates(annotation: Any, found: Any) -> Iterator[Any]:
    """Yield what ``found`` may stand for, likely or not."""
    if found is None or isinstance(found, bool):
        return
    yield found
    yield [found]
    if isinstance(found, list) and len(found) == 1:
        yield found * 2  # a square
        yield found[0]
    if isinstance(found, (dict, list)):
        return
    text = str(found).strip().lower()
    if get_origin(bare(annotation)) is Literal:
        options = {str(option).lower(): option for option in get_args(bare(annotation))}
        text = _ALIASES.get(text, text).replace("-", "_")
        yield from map(options.get, difflib.get_close_matches(text, options, n=1))
    if match := _QUANTITY.fullmatch(text):
        with suppress(ValueError):
            number = float(match[1]) * _UNITS[match[2]]
            yield from (number, [number], [number, number])
    if len(numbers := re.split(r"\s*[x×*,; ]\s*", text)) > 1:  # noqa: RUF001
        yield numbers
    yield re.sub(r"[^\w.-]+", "-", str(found))


def _with_uri(annotation: Any, uri: str) -> Any:
    """Return the section, or the list of it, that needs no more than a URI; None if none does."""
    if section := _entries(annotation):
        inner = _with_uri(section, uri)
        return inner and [inner]
    kinds = kinds_of(annotation)
    kind = "webdataset" if uri.endswith(".tar") else "files"
    if kind in kinds:
        return None if TABLE_ENDING.search(uri) else {"kind": kind, "uri": uri}
    model = _models_of(annotation).get("")
    return {"uri": uri} if model and _required(model.model_fields) == ["uri"] else None


def _required(fields: Mapping[str, FieldInfo]) -> list[str]:
    return [name for name, info in fields.items() if info.is_required()]


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


def _models_of(annotation: Any) -> dict[str, Any]:
    """Return the models that a section may be read as, by kind; ``""`` if there is only one."""
    annotation = bare(annotation)
    if isinstance(annotation, type(BaseModel)):
        return {"": annotation}
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    members = [one for one in map(bare, union) if isinstance(one, type(BaseModel))]
    return {get_args(one.model_fields["kind"].annotation)[0]: one for one in members}


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the models of a discriminated union by kind; empty for any other annotation."""
    return {kind: model for kind, model in _models_of(annotation).items() if kind}


def is_section(annotation: Any) -> bool:
    return bool(_models_of(annotation))


def sections_of(annotation: Any, above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section at any depth: its dotted key, and a model that it may be read as."""
    for model in (_models_of(annotation) or _models_of(_entries(annotation))).values():
        yield above, model
        for name, info in model.model_fields.items():
            yield from sections_of(info.annotation, f"{above}.{name}".lstrip("."))
