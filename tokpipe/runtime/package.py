"""What `tokpipe submit` sends to a cluster: the job, and the code of a custom tokenizer.

The job is sent as it was checked: with values of variables, absolute paths, and the settings of its
checkpoint. So it is the same job there. No other file of the project is sent.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

import tokpipe
from tokpipe.config.base import leaves, variables_of
from tokpipe.config.job import JobConfig
from tokpipe.config.load import parse_job, project_root
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.errors import ConfigError
from tokpipe.runtime import submitted
from tokpipe.telemetry.redact import holds_secret

STARTER = "start_tokpipe.py"


class Package(NamedTuple):
    """A job, ready to be sent. Holds no secret."""

    name: str
    job: JobConfig
    text: str  # The resolved job as YAML
    code: Mapping[str, Path]
    """Files and folders of a custom tokenizer, by their place in the package."""
    options: tuple[str, ...]  # Options of ``tokpipe run``
    variables: Mapping[str, str]
    """Environment variables for the driver and the workers, as asked for."""

    @property
    def entrypoint(self) -> str:
        """The driver's command: ``exec``, so that signals and exit codes are the driver's."""
        words = ["python", STARTER, tokpipe.__version__, self.name, *self.options]
        return f"exec {shlex.join(words)}"

    def write(self, folder: Path) -> None:
        """Write everything that is sent into an empty folder."""
        (folder / self.name).write_text(self.text, encoding="utf-8")
        shutil.copyfile(submitted.__file__, folder / STARTER)
        for place, path in self.code.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, folder / place, ignore=_not_code)
            else:
                shutil.copyfile(path, folder / place)

    def local_paths(self) -> list[str]:
        """Return the paths of the job that are on a disk, which all nodes must see."""
        parts = self.job.model_dump(mode="json", include={"sources", "output", "tokenizer"})
        values = [value for _, _, value in leaves("job", parts) if isinstance(value, str)]
        return sorted({value for value in values if value.startswith(("/", "file://"))})


def make_package(
    path: Path, job: JobConfig, options: Iterable[str], asked: Iterable[str]
) -> Package:
    """Prepare a loaded job for sending. Copies nothing yet.

    ``asked``: variables to set on the cluster, each as NAME or NAME=VALUE; secrets are rejected.
    """
    data = read_mapping(path.read_bytes(), str(path))
    for name, _ in variables_of(data):
        if name in os.environ and holds_secret(name, os.environ[name]):
            raise _secret(f"{path}: ${{{name}}}")
    if job.runtime.cluster != "auto":
        where = f"runtime.cluster: {job.runtime.cluster}"
        raise ConfigError(f"{where}: leave it out, and name the cluster with --address")
    return Package(
        path.name, job, _resolved(path, job), dict(_code_of(path, job)), tuple(options),
        dict(map(_variable, asked)),
    )  # fmt: skip


def _variable(asked: str) -> tuple[str, str]:
    name, given, value = asked.partition("=")
    if not given and name not in os.environ:
        raise ConfigError(f"--env {name}: the variable is not set here: set it, or leave it out")
    value = value if given else os.environ[name]
    if holds_secret(name, value):
        raise _secret(f"--env {name}")
    if "$" in value:
        raise ConfigError(f"--env {name}: Ray would expand the $ in its value: set it on the nodes")
    return name, value


def _secret(place: str) -> ConfigError:
    return ConfigError(
        f"{place} is secret by its name or its value, and Ray stores and shows what is submitted. "
        "Nothing was sent: set it on the nodes before `ray start`, or use an instance role"
    )


def _resolved(path: Path, job: JobConfig) -> str:
    """Return the job as text that is read as the same job in any environment."""
    sections = job.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    try:
        if parse_job(text, name=str(path), root=Path("/"), environ={}) == job:
            return text
    except ConfigError:
        pass
    raise ConfigError(
        f"{path}: a URI contains ${{...}} after variables were replaced, so it would be replaced "
        "again on the cluster: set the variable to its final value"
    )


def _code_of(path: Path, job: JobConfig) -> Iterator[tuple[str, Path]]:
    """Yield the module or package of a custom tokenizer, unless it is installed or not here."""
    if not isinstance(job.tokenizer, CustomConfig):
        return
    parts = job.tokenizer.implementation.partition(":")[0].split(".")
    places = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    stdlib = sysconfig.get_path("stdlib")
    for folder in (*map(Path, sys.path), project_root(path), path.resolve().parent):
        for place in places:  # of a folder without __init__.py, only what is named in it
            for code, file in ((place, f"{place}/__init__.py"), (f"{place}.py", f"{place}.py")):
                if (folder / file).is_file():
                    in_site = {"site-packages", "dist-packages"} & {*folder.parts}
                    if not in_site and not folder.is_relative_to(stdlib):
                        yield code, folder / code
                    return


def _not_code(folder: str, names: list[str]) -> set[str]:
    """Select what is not copied: hidden files (``.env``, ``.git``), caches, links to folders."""
    paths = {name: Path(folder, name) for name in names}
    links = {name for name, path in paths.items() if path.is_symlink() and not path.is_file()}
    return links | shutil.ignore_patterns(".*", "__pycache__")(folder, names)
