"""Checks settings against pydantic models and explains what is wrong in terms of the file."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tokpipe.config.suggest import (
    accepted,
    bare,
    in_yaml,
    is_section,
    kinds_of,
    one_of,
    remedy,
    sections_of,
)
from tokpipe.errors import ConfigError

_MAX_CHARS = 80
_MEAN_URI = ("path", "file", "folder", "url")

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

    A ConfigError is one line that names each wrong key, what was found and what would be right. It
    starts with ``name``, the file that ``data`` comes from; ``tokenizer_from`` is that of the
    ``tokenizer`` section, if it is another one.
    """
    # Strict models accept a list for a tuple only when they parse JSON.
    text = json.dumps(data, default=str)
    try:
        return TypeAdapter(expected).validate_json(text, context=dict(context or {}))
    except ValidationError as error:
        explained: dict[Location, tuple[Location, str]] = {}
        for detail in error.errors(include_url=False):
            place, message = _explained(expected, data, detail)
            shown = place[:-1] if detail["type"] == "extra_forbidden" else place
            explained.setdefault(place, (shown, message))
        problems = []
        for place, (shown, message) in explained.items():
            if any(place == other[: len(place)] != other for other in explained):
                continue  # a consequence of what is wrong within
            where = ".".join(map(str, shown))
            if tokenizer_from is not None and place[:1] == ("tokenizer",):
                where = f"{where} (in {tokenizer_from})"
            problems.append(f"{where}: {message}" if where else message)
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
    """Follow an error's location down from ``annotation``.

    Returns the annotation found there, with its field, and the location as written in the file:
    pydantic also names the kind of each section on the way.
    """
    place: list[int | str] = []
    for part in location:
        if kinds := kinds_of(annotation):
            annotation = kinds.get(str(part))
            continue
        annotation = bare(annotation)
        place.append(part)
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        elif is_section(annotation) and (field := annotation.model_fields.get(str(part))):
            annotation = Annotated[(field.annotation, field)]
        else:
            annotation = None
    return annotation, tuple(place)
