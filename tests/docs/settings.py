"""The tables of docs/jobs.md, written from the models' own docstrings.

``python -m tests.docs.settings docs/jobs.md`` updates the page; a test checks that it is up
to date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from tokpipe.config.explain import accepted, bare, in_yaml, is_section, kinds_of, one_of
from tokpipe.config.job import JobConfig

START = "## The whole file\n"
"""The page's prose ends where this line begins."""


def reference() -> str:
    """Return the page from ``START`` on, in Markdown."""
    lines, places = [], dict[type[BaseModel], str]()
    for place, model in _sections_of(JobConfig):
        places.setdefault(model, place)
    for model, place in places.items():
        kind = model.model_fields.get("kind")
        tag = f" (kind: {one_of(get_args(kind.annotation))})" if kind else ""
        lines.append(f"## {place + tag or 'The whole file'}\n\n{_paragraph(model.__doc__)}\n")
        lines.append("| key | type | default | |\n|---|---|---|---|")
        lines.extend(_row(name, field) for name, field in model.model_fields.items())
        lines.append("")
    return "\n".join(lines)


def _sections_of(annotation: Any, above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section at any depth: its dotted key, and a model that it may be read as."""
    annotation = bare(annotation)
    if get_origin(annotation) is tuple:
        annotation = bare(get_args(annotation)[0])
    if is_section(annotation):
        for model in kinds_of(annotation).values() or [annotation]:
            yield above, model
            for name, info in model.model_fields.items():
                yield from _sections_of(info.annotation, f"{above}.{name}".lstrip("."))


def _row(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif isinstance(field.default, BaseModel) or field.default is PydanticUndefined:
        default = ""
    else:
        default = f"`{in_yaml(to_jsonable_python(field.default))}`"
    return f"| `{name}` | {_type(field)} | {default} | {_paragraph(field.description)} |"


def _type(field: FieldInfo) -> str:
    annotation: Any = Annotated[(field.annotation, field)]
    plain = bare(annotation)
    if get_origin(plain) is Literal:
        text = one_of(f"`{in_yaml(value)}`" for value in get_args(plain))
    else:
        text = "a section" if is_section(plain) else accepted(annotation)
    return f"{text}, or `null`" if NoneType in get_args(field.annotation) else text


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    prose, _, _ = page.read_text().partition(START)
    page.write_text(prose + reference())
