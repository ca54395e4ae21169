"""Checks settings against pydantic models and explains what is wrong in terms of the file."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tokpipe.config.sources import TABLE_ENDING
from tokpipe.errors import ConfigError

_MAX_CHARS = 80
_MEAN_URI = ("path", "file", "folder", "url")

Location = tuple[int | str, ...]
_ALIASES = {"gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_UNITS = {"": 1, "%": 0.01, "fps": 1, "px": 1, "s": 1, "min": 60, "h": 3600}
_UNITS |= {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY = re.compile(rf"([-+.\de]+?)\s*({'|'.join(_UNITS)})")
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

    A ConfigError is one line that names each wrong key, what was found and what would be right. It
    starts with ``name``, the file that ``data`` comes from; ``tokenizer_from`` is that of the
    ``tokenizer`` section, if it is another one.
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
    annotation, place = _follow(expected, detail["loc"])
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        section, _ = _follow(expected, detail["loc"][:-1])
        return place, _unknown_key(str(place[-1]), bare(section), expected)
    if kind == "value_error":
        return place, detail["msg"].removeprefix("Value error, ")
    if kind == "missing" and isinstance(place[-1], str):
        return place, f"is missing: write {accepted(annotation)}{_purpose(annotation)}"
    if kind.startswith("union_tag") and isinstance(found, dict):
        kinds = kinds_of(annotation)
        if "kind" not in found:
            return place, f"has no kind: write kind: {one_of(kinds)}"
        near = difflib.get_close_matches(str(found["kind"]).lower(), kinds, n=1)
        return (*place, "kind"), f"found {_text(found['kind'])}; write {one_of(near or kinds)}"
    # A list is judged as a whole: [128] lacks a number, "128" in it is not the only mistake.
    while place and isinstance(place[-1], int) and not is_section(annotation):
        place = place[:-1]
        annotation, _ = _follow(expected, detail["loc"][: len(place) - len(detail["loc"])])
    found = data
    for part in place:
        found = found[part]
    return place, f"found {_text(found)}; {remedy(annotation, found)}"


def _purpose(annotation: Any) -> str:
    """Return the first sentence about a text, in brackets."""
    about = " ".join((annotation.__metadata__[0].description or "").replace("`", "").split())
    sentence = about.partition(". ")[0].removesuffix(".")
    return f" ({sentence})" if about and bare(annotation) is str else ""


def _text(found: Any) -> str:
    text = "nothing" if found is None else in_yaml(found)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} ..."


def _unknown_key(key: str, section: Any, expected: Any) -> str:
    keys = sorted(section.model_fields)
    places: dict[str, set[str]] = {}
    for place, model in sections_of(expected):
        for name in model.model_fields:
            places.setdefault(name, set()).add(place or "the top level")
    plain = re.sub(r"[- ]", "_", key.lower()).rpartition(".")[2]
    if plain in _MEAN_URI and "uri" in keys:
        plain = "uri"
    here = difflib.get_close_matches(plain, keys, n=1, cutoff=0.8)
    cutoff = 0.8 if "." in key else 0.92  # batch_size is no patch_size
    anywhere = difflib.get_close_matches(plain, places, n=1, cutoff=cutoff)
    if anywhere and ("." in key or not here):
        found = sorted(places[anywhere[0]], key=lambda place: (place.count("."), place))
        nearest = [place for place in found if place.count(".") == found[0].count(".")]
        subject = "it" if anywhere[0] == key else repr(anywhere[0])
        return f"unknown key {key!r}; {subject} belongs in {one_of(nearest)}"
    here = here or difflib.get_close_matches(plain, keys, n=1, cutoff=0.5)
    hint = f"did you mean {here[0]!r}?" if here else f"the keys here are: {', '.join(keys)}"
    return f"unknown key {key!r}; {hint}"


def _follow(annotation: Any, location: Location) -> tuple[Any, Location]:
    """Return the annotation at an error's location, with its field, and the location as written in
    the file: pydantic also names the kind of each section on the way."""
    place: list[int | str] = []
    for part in location:
        if kinds := kinds_of(annotation):
            annotation = kinds.get(str(part))
            continue
        annotation = bare(annotation)
        if get_origin(annotation) in (Union, UnionType):
            continue  # of plain values: the part names one of them
        place.append(part)
        if get_origin(annotation) in (tuple, dict):
            annotation = get_args(annotation)[get_origin(annotation) is dict]
        elif is_section(annotation) and (field := annotation.model_fields.get(str(part))):
            annotation = Annotated[(field.annotation, field)]
        else:
            annotation = None
    return annotation, tuple(place)


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
    examples = [f" such as {one_of(one.examples)}" for one in _fields(annotation) if one.examples]
    annotation = bare(annotation)
    arguments = get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation] + " and".join(limits or examples)
    if kinds := kinds_of(annotation):
        return f"a section with kind: {one_of(kinds)}"
    if is_section(annotation):
        fields = annotation.model_fields
        return f"a section with {', '.join(_required(fields) or fields)}"
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
    return {kind: one for one in members for kind in get_args(one.model_fields["kind"].annotation)}


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
