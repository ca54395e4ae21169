"""Checks settings against pydantic models and explains what is wrong in terms of the file."""

import difflib
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tokpipe.errors import ConfigError

Location = tuple[int | str, ...]


def validate_settings(
    expected: Any,
    data: Any,
    *,
    name: str,
    context: Mapping[str, Any] | None = None,
    tokenizer_from: str | None = None,
) -> Any:
    """Check ``data``, as read from YAML or JSON, and build what ``expected`` describes.

    Args:
        expected: a pydantic model, or a union of models with different ``kind``s.
        name: the file or object that ``data`` comes from; messages start with it.
        context: passed to the validators.
        tokenizer_from: the file of the ``tokenizer`` section, if that is another one.

    Raises:
        ConfigError: one line that names each wrong key, what was found and what would be right.
    """
    try:
        # Strict models accept a list for a tuple only when they parse JSON.
        return TypeAdapter(expected).validate_json(json.dumps(data), context=dict(context or {}))
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            place, message = _explained(expected, detail)
            where = ".".join(map(str, place))
            if tokenizer_from is not None and place[:1] == ("tokenizer",):
                where = f"{where} (in {tokenizer_from})"
            problems.append(f"{where}: {message}" if where else message)
        raise ConfigError(f"{name}: {'; '.join(problems)}") from error


def _explained(expected: Any, detail: ErrorDetails) -> tuple[Location, str]:
    """Return where a problem is, as written in the file, and what it is."""
    annotation, place = _follow(expected, detail["loc"])
    found, message = detail["input"], detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        section, _ = _follow(expected, detail["loc"][:-1])
        return place[:-1], _unknown_key(str(place[-1]), section)
    if detail["type"].startswith("union_tag"):
        kinds = ", ".join(map(repr, _kinds(annotation)))
        if isinstance(found, dict):
            return place, f"kind {found.get('kind')!r} is not one of {kinds}"
        return place, f"found {found!r} in place of a section, whose kind is one of {kinds}"
    if detail["type"] not in ("value_error", "missing") and not isinstance(found, dict | list):
        message += f" (found {found!r})"
    return place, message


def _unknown_key(key: str, section: Any) -> str:
    keys = sorted(section.model_fields) if _is_model(section) else []
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the keys here are: {', '.join(keys)}"
    return f"unknown key {key!r}; {hint}"


def _follow(annotation: Any, location: Location) -> tuple[Any, Location]:
    """Follow an error's location down from ``annotation``.

    Returns the annotation found there, and the location as written in the file: pydantic also
    names the kind of each section on the way.
    """
    place: list[int | str] = []
    for part in location:
        annotation = _bare(annotation)
        if kinds := _kinds(annotation):
            annotation = kinds.get(str(part))
            continue
        place.append(part)
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        elif _is_model(annotation) and (field := annotation.model_fields.get(str(part))):
            annotation = field.annotation
        else:
            annotation = None
    return _bare(annotation), tuple(place)


def _bare(annotation: Any) -> Any:
    """Return an annotation without its metadata and without ``| None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return _bare(members[0])
    return annotation


def _kinds(annotation: Any) -> dict[str, Any]:
    """Return the models of a discriminated union by kind; empty for any other annotation."""
    if get_origin(annotation) not in (Union, UnionType):
        return {}
    return {
        get_args(member.model_fields["kind"].annotation)[0]: member
        for member in map(_bare, get_args(annotation))
        if _is_model(member)
    }


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
