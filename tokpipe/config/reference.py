"""The job file's reference, written from the models themselves: ``docs/jobs.md``.

``python -m tokpipe.config.reference`` prints it; a test holds the page to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tokpipe.config.job import JobConfig

INTRODUCTION = """\
# Job files

One YAML file says what to tokenize, how, where to, and with what. A wrong file is refused with the
key, what was found and what would be right; `tokpipe check` looks at sources and output as well.

- **Paths** without a scheme start at the project: the nearest folder at or above the job file that
  holds `pyproject.toml` or `.git`, else the folder that holds `jobs/`.
- **Environment variables** stand in URIs as `${NAME}` or `${NAME:-default}`.
- **Tokenizers** are of several kinds, `native` when a section names none;
  [tokenizers.md](tokenizers.md) explains them. `tokenizer: {checkpoint: URI}` stands for the
  section of a checkpoint folder.
- **Credentials** are never in a job file: they come from the environment of each node, or its role.
- What decides the codes is part of the output's fingerprint and cannot change on a resume:
  `sampling`, `frames`, `tokenizer` (but not its name, licence and decoder), `chunking`,
  `decode.backend` and `on_damage`, `encode`. Nor can `dataset`, `sources` and `on_duplicate`.
  Everything else can.

[jobs/demo.yaml](../jobs/demo.yaml) and [jobs/webvid.yaml](../jobs/webvid.yaml) are complete.

This page is written by `python -m tokpipe.config.reference > docs/jobs.md`.
"""


def reference() -> str:
    """Return the page, in Markdown."""
    lines = [INTRODUCTION]
    for title, model in _sections("", JobConfig):
        lines.append(f"## {title or 'The whole file'}\n\n{_paragraph(model.__doc__)}\n")
        lines.append("| key | type | default | |\n|---|---|---|---|")
        lines.extend(_row(name, field) for name, field in model.model_fields.items())
        lines.append("")
    return "\n".join(lines)


def _sections(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted key, model) of a section and of all below it, each model once."""
    seen: set[type[BaseModel]] = set()

    def walk(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
        if model in seen:
            return
        seen.add(model)
        yield path, model
        for name, field in model.model_fields.items():
            for inner in _models(field.annotation):
                kind = inner.model_fields.get("kind")
                tag = f" (kind: {get_args(kind.annotation)[0]})" if kind else ""
                yield from walk(f"{path}.{name}{tag}" if path else f"{name}{tag}", inner)

    yield from walk(path, model)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _row(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif isinstance(field.default, BaseModel) or field.default is PydanticUndefined:
        default = ""
    else:
        default = f"`{_yaml(field.default)}`"
    return f"| `{name}` | {_type(field.annotation)} | {default} | {_paragraph(field.description)} |"


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(member) for member in inner))
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {_type(inner[0])}"
        return f"[{', '.join(_type(member) for member in inner)}]"
    if origin is dict:
        return "mapping"
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}[annotation]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    print(reference(), end="")
